"""Write haiku.json: what dm-haiku 0.0.17 computes, which test_peers.py compares with.

pip install dm-haiku==0.0.17 jax==0.10.2 && python tests/quantizers/make_haiku.py
"""

import json
from importlib.metadata import version
from pathlib import Path

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

STEPS, VECTORS, DEPTH, CODES, BETA = 21, 12, 4, 7, 0.25
EMA = {"commitment_cost": BETA, "decay": 0.8, "epsilon": 1e-7}


def listed(tree):
    """Arrays to nested lists, floats with the digits that float32 has."""
    if isinstance(tree, dict):
        return {key: listed(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [listed(value) for value in tree]
    return float(f"{tree:.9g}") if isinstance(tree, float) else tree


def drawn(seed, *shape):
    """Normal numbers."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def by_moving_averages():
    """Codes from zeroed averages: the state after the first step, and every later step up to the last one."""
    module = hk.transform_with_state(lambda z_e: hk.nets.VectorQuantizerEMA(DEPTH, CODES, **EMA)(z_e, is_training=True))
    batches, upstream = drawn(0, STEPS, VECTORS, DEPTH), drawn(1, VECTORS, DEPTH)
    _, state = module.init(jax.random.key(0), batches[0])
    found = {"z_e": batches[1:], "upstream": upstream, "indices": [], "loss": [], "perplexity": []}
    for n, z_e in enumerate(batches):

        def total(z_e, state=state):
            out, new = module.apply({}, state, None, z_e)
            return jnp.sum(out["quantize"] * upstream) + out["loss"], (out, new)

        (_, (out, new)), to_z_e = jax.value_and_grad(total, has_aux=True)(z_e)
        if n:
            found["indices"].append(out["encoding_indices"])
            found["loss"].append(out["loss"])
            found["perplexity"].append(out["perplexity"])
        if n == 1:
            found |= {"z_q": out["quantize"], "to_z_e": to_z_e} | sums("first_", state)
        state = new
    return found | sums("last_", state)


def sums(name, state):
    """Averages before haiku's correction for their start at 0, and the codebook."""
    averages, codes = state["vector_quantizer_ema/~/ema_dw"], state["vector_quantizer_ema"]["embeddings"]
    count = state["vector_quantizer_ema/~/ema_cluster_size"]["hidden"]
    return {f"{name}count": count, f"{name}total": averages["hidden"].T, f"{name}codebook": codes.T}


def by_gradient():
    """One batch with codes that are parameters."""
    module = hk.without_apply_rng(
        hk.transform(lambda z_e: hk.nets.VectorQuantizer(DEPTH, CODES, BETA)(z_e, is_training=True))
    )
    z_e, upstream = drawn(2, VECTORS, DEPTH), drawn(3, VECTORS, DEPTH)
    params = module.init(jax.random.key(1), z_e)

    def total(params, z_e):
        out = module.apply(params, z_e)
        return jnp.sum(out["quantize"] * upstream) + out["loss"], out

    (_, out), (to_params, to_z_e) = jax.value_and_grad(total, (0, 1), has_aux=True)(params, z_e)
    (codebook,), (to_codebook,) = map(jax.tree.leaves, (params, to_params))
    found = {"z_e": z_e, "upstream": upstream, "codebook": codebook.T, "indices": out["encoding_indices"]}
    found |= {"z_q": out["quantize"], "loss": out["loss"], "perplexity": out["perplexity"]}
    return found | {"to_z_e": to_z_e, "to_codebook": to_codebook.T}


if __name__ == "__main__":
    peers = {
        "versions": {name: version(name) for name in ("dm-haiku", "jax")},
        "ema": by_moving_averages(),
        "gradient": by_gradient(),
    }
    lists = jax.tree.map(lambda leaf: np.asarray(leaf).tolist() if hasattr(leaf, "shape") else leaf, peers)
    lines = ",\n".join(f'"{name}": {json.dumps(listed(values))}' for name, values in lists.items())
    (Path(__file__).parent / "haiku.json").write_text(f"{{\n{lines}\n}}\n")
