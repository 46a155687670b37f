"""Values, indices, gradients and twenty steps of state equal those of other libraries.

These are vector-quantize-pytorch (make_peers.py) and, last, dm-haiku (make_haiku.py).
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.evaluation import metrics
from vqvae_jax.quantizers import (
    FiniteScalarQuantizer,
    GradientVectorQuantizer,
    LookupFreeQuantizer,
    Projected,
    ResidualQuantizer,
    SimVectorQuantizer,
    VectorQuantizer,
    rotation,
    starts,
)
from vqvae_jax.quantizers.ema import Ema
from vqvae_jax.quantizers.nearest import count_codes

PEERS = json.loads((Path(__file__).parent / "peers.json").read_text())
HAIKU = json.loads((Path(__file__).parent / "haiku.json").read_text())
KEY = jax.random.key(0)
MOVING = {"commitment_cost": 1.0, "ema_decay": 0.8, "ema_epsilon": 1e-5, "revival_threshold": 0.0}


def numbers(case, peers=PEERS):
    """What the peer has found, as arrays of the dtypes of JAX."""
    arrays = {key: np.asarray(value) for key, value in peers[case].items()}
    return {key: a.astype(np.int32 if a.dtype.kind == "i" else np.float32) for key, a in arrays.items()}


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def quantize(quantizer, variables, z_e, upstream):
    """Quantized vectors, and the gradients of <z_q, upstream> + the weighted losses at the parameters and at z_e."""

    def total(params, z_e):
        quantized = quantizer(variables | {"params": params}, z_e)
        losses = sum(weight * quantized.losses[name] for name, weight in quantizer.loss_weights.items())
        return jnp.sum(quantized.z_q * upstream) + losses, quantized

    (_, quantized), to = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(variables["params"], z_e)
    return quantized, to


def moved(quantizer, state, batches):
    """The state after all batches, and the indices and commitments on the way."""

    def step(state, z_e):
        variables = {"params": {}, "state": state}
        _, indices, losses = quantizer(variables, z_e)
        return quantizer.next_state(variables, z_e, indices, KEY), (indices, losses["commitment"])

    return jax.jit(lambda state: jax.lax.scan(step, state, batches))(state)


@pytest.mark.parametrize("case", ["ema", "ema_rotation", "cosine", "cosine_rotation"])
def test_a_codebook_by_moving_averages(case):
    peer = numbers(case)
    estimator = "rotation" if case.endswith("rotation") else "straight_through"
    distance = "cosine" if case.startswith("cosine") else "euclidean"
    quantizer = VectorQuantizer(7, 1, 4, distance=distance, estimator=estimator, **MOVING)
    state = Ema(jnp.ones((1, 7)), peer["codebook"][None])
    first, (_, to_z_e) = quantize(quantizer, {"params": {}, "state": state}, peer["z_e"][0], peer["upstream"])
    close(first.z_q, peer["z_q"])
    # The peer's loss has no codebook term, which moves nothing here either.
    close(to_z_e, peer["to_z_e"])
    state, (indices, commitment) = moved(quantizer, state, peer["z_e"])
    np.testing.assert_array_equal(indices[..., 0], peer["indices"])
    close(commitment, peer["commitment"])
    close(state.count[0], peer["count"])
    close(state.total[0], peer["total"])
    close(quantizer.codebook({"params": {}, "state": state})[0], peer["last_codebook"])


@pytest.mark.parametrize("case", ["gradient", "gradient_rotation"])
def test_a_codebook_by_gradient(case):
    peer = numbers(case)
    estimator = "rotation" if case.endswith("rotation") else "straight_through"
    quantizer = GradientVectorQuantizer(7, 1, 4, commitment_cost=1.0, estimator=estimator)
    variables = {"params": {"codebook": peer["codebook"][None]}, "state": ()}
    quantized, (to_params, to_z_e) = quantize(quantizer, variables, peer["z_e"], peer["upstream"])
    np.testing.assert_array_equal(quantized.indices[:, 0], peer["indices"])
    close(quantized.z_q, peer["z_q"])
    close(quantized.losses["commitment"], peer["loss"])
    close(to_z_e, peer["to_z_e"])
    close(to_params["codebook"][0], peer["to_codebook"])


@pytest.mark.parametrize("case", ["simvq", "simvq_rotation"])
def test_frozen_codes_times_a_matrix(case):
    peer = numbers(case)
    estimator = "rotation" if case.endswith("rotation") else "straight_through"
    quantizer = SimVectorQuantizer(7, 1, 4, commitment_cost=0.25, estimator=estimator)
    frozen = jnp.asarray(peer["frozen"])[None]
    first = {"params": {"map": peer["map"][None]}, "state": frozen}
    quantized, (_, to_z_e) = quantize(quantizer, first, peer["z_e"][0], peer["upstream"])
    close(quantized.z_q, peer["z_q"])
    close(to_z_e, peer["to_z_e"])

    def step(params, z_e):
        def loss(params):
            _, indices, losses = quantizer({"params": params, "state": frozen}, z_e)
            return sum(weight * losses[name] for name, weight in quantizer.loss_weights.items()), indices

        (value, indices), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), (value, indices)

    last, (losses, indices) = jax.jit(lambda params: jax.lax.scan(step, params, peer["z_e"]))(first["params"])
    np.testing.assert_array_equal(indices[..., 0], peer["indices"])
    close(losses, peer["loss"])
    close(last["map"][0], peer["last_map"])
    assert np.abs(last["map"][0] - peer["map"]).max() > 0.01


def test_residual_stages():
    peer = numbers("residual")
    quantizer = ResidualQuantizer(7, 3, 4, **MOVING)
    state = Ema(jnp.ones((3, 7)), peer["codebook"])
    variables = {"params": {}, "state": state}
    first, (_, to_z_e) = quantize(quantizer, variables, peer["z_e"][0], np.zeros((12, 4), np.float32))
    close(first.z_q, peer["z_q"])
    close(to_z_e, peer["to_z_e"])
    close(quantizer.look_up(variables, first.indices), peer["z_q"])
    state, (indices, commitment) = moved(quantizer, state, peer["z_e"])
    np.testing.assert_array_equal(indices, peer["indices"])
    close(commitment, peer["commitment"])
    close(state.count, peer["count"])
    close(state.total, peer["total"])
    close(quantizer.codebook({"params": {}, "state": state}), peer["last_codebook"])


def test_finite_scalars():
    peer = numbers("finite_scalar")
    quantizer, none = FiniteScalarQuantizer(tuple(peer["levels"].tolist())), {"params": {}, "state": ()}
    quantized, (_, to_z_e) = quantize(quantizer, none, peer["z_e"], peer["upstream"])
    np.testing.assert_array_equal(quantized.indices[:, 0], peer["indices"])
    close(quantized.z_q, peer["z_q"])
    close(to_z_e, peer["to_z_e"])
    close(quantizer.look_up(none, peer["indices"][:, None]), peer["z_q"])


def test_lookup_free_bits():
    peer = numbers("lookup_free")
    quantizer = LookupFreeQuantizer(4, 0.25, 0.1, 0.9, float(peer["temperature"]))
    # A softmax of 2 z·code / T there, where the squared distance is divided by T here, too.
    quantized, (_, to_z_e) = quantize(quantizer, {"params": {}, "state": ()}, peer["z_e"], peer["upstream"])
    # The first bit of the peer's index counts most.
    bits = peer["indices"][:, None] >> np.arange(4)[None, ::-1] & 1
    np.testing.assert_array_equal(quantized.indices[:, 0], np.sum(bits << np.arange(4)[None], axis=1))
    close(quantized.z_q, peer["z_q"])
    for name in ("commitment", "sample_entropy", "batch_entropy"):
        close(quantized.losses[name], peer[name])
    close(sum(weight * quantized.losses[name] for name, weight in quantizer.loss_weights.items()), peer["loss"])
    close(to_z_e, peer["to_z_e"])


def test_projections():
    peer = numbers("projected")
    quantizer = Projected(VectorQuantizer(7, 1, 4, **MOVING), 6)
    state = Ema(jnp.ones((1, 7)), peer["codebook"][None])
    variables = {"params": {"in": peer["in"], "out": peer["out"], "quantizer": {}}, "state": state}
    quantized, (to_params, to_z_e) = quantize(quantizer, variables, peer["z_e"], peer["upstream"])
    np.testing.assert_array_equal(quantized.indices[:, 0], peer["indices"])
    close(quantized.z_q, peer["z_q"])
    close(quantized.losses["commitment"], peer["commitment"])
    close(to_z_e, peer["to_z_e"])
    close(to_params["in"], peer["to_in"])
    close(to_params["out"], peer["to_out"])


def test_clusters_of_the_first_batch(monkeypatch):
    peer = numbers("kmeans")
    monkeypatch.setattr(starts, "draw_vectors", lambda *_: jnp.asarray(peer["start"])[None])
    means = jax.jit(lambda z_e: starts.kmeans(KEY, z_e, 7))(peer["z_e"][:, None])
    close(means[0], peer["means"])


def test_the_gradient_of_a_rotation():
    peer = numbers("rotation")
    moved, back = jax.vjp(rotation, peer["z_e"], peer["z_q"])
    to_z_e, to_z_q = back(peer["upstream"])
    np.testing.assert_array_equal(moved, peer["z_q"])
    close(to_z_e, peer["to_z_e"])
    np.testing.assert_array_equal(to_z_q, 0)


def test_moving_averages_of_haiku():
    """Its averages start at 0 and are corrected for that, which their quotient, the codebook, does not depend on."""
    peer = numbers("ema", HAIKU)
    quantizer = VectorQuantizer(7, 1, 4, commitment_cost=0.25, ema_decay=0.8, ema_epsilon=1e-7, revival_threshold=0.0)
    state = Ema(peer["first_count"][None], peer["first_total"][None])
    variables = {"params": {}, "state": state}
    close(quantizer.codebook(variables)[0], peer["first_codebook"])
    first, (_, to_z_e) = quantize(quantizer, variables, peer["z_e"][0], peer["upstream"])
    close(first.z_q, peer["z_q"])
    close(to_z_e, peer["to_z_e"])
    state, (indices, commitment) = moved(quantizer, state, peer["z_e"])
    np.testing.assert_array_equal(indices[..., 0], peer["indices"])
    close(0.25 * commitment, peer["loss"])
    close(metrics.perplexity(jax.vmap(lambda i: count_codes(i, 7)[0])(indices)), peer["perplexity"])
    close(state.count[0], peer["last_count"])
    close(state.total[0], peer["last_total"])
    close(quantizer.codebook({"params": {}, "state": state})[0], peer["last_codebook"])


def test_a_codebook_by_gradient_of_haiku():
    peer = numbers("gradient", HAIKU)
    quantizer = GradientVectorQuantizer(7, 1, 4, commitment_cost=0.25)
    variables = {"params": {"codebook": peer["codebook"][None]}, "state": ()}
    quantized, (to_params, to_z_e) = quantize(quantizer, variables, peer["z_e"], peer["upstream"])
    np.testing.assert_array_equal(quantized.indices[:, 0], peer["indices"])
    close(quantized.z_q, peer["z_q"])
    close(sum(weight * quantized.losses[name] for name, weight in quantizer.loss_weights.items()), peer["loss"])
    close(metrics.perplexity(count_codes(quantized.indices, 7))[0], peer["perplexity"])
    close(to_z_e, peer["to_z_e"])
    close(to_params["codebook"][0], peer["to_codebook"])
