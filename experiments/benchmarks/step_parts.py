"""Where a training step's time goes: each part by itself, forward and its gradients, beside a matrix product.

    python -m experiments.benchmarks.step_parts [--case=headline] [--rounds=15] [--out=FILE]

Cases are those of `train_step.py`. All parts take turns in one run. `share` is of the rate of a matrix product in the
same run; it counts multiply-adds of plain convolutions, so a part that needs fewer can be above 1.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from vqvae_jax.start import with_huge_pages

if __name__ == "__main__":  # before jax is imported
    with_huge_pages()

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.benchmarks.step_cases import CASES, Case, product_rate
from experiments.provenance import report
from vqvae_jax.models.convolutions import convolution, downsample, upsample
from vqvae_jax.models.networks import residual


def parts(case: Case) -> dict[str, tuple[Callable, tuple, float]]:
    """Give each part: a function, its float arguments, all of which have gradients, and plain multiply-adds."""
    model: Any = case.build()
    random = np.random.default_rng(0)
    trunk, quantizer = model.trunk, model.quantizer
    h, r, b, n = trunk.hidden, trunk.residual_units, case.batch, case.side
    small, features = n // trunk.factor, trunk.likelihood.features(3)

    def draw(*shape):
        return jnp.asarray(random.normal(size=shape) / np.sqrt(np.prod(shape[:-1]) / b), jnp.float32)

    def layer(size, i, o):
        return draw(size, size, i, o), draw(o)

    def scaled(sizes):
        return [layer(4, i, o) for i, o in pairwise(sizes)]

    images, standardised = jnp.asarray(case.images()), draw(b, n, n, 3)
    z_e, x, dim = draw(b, small, small, quantizer.dim), draw(b, small, small, h), quantizer.dim
    state = quantizer.init(jax.random.key(0), z_e)[1]

    def quantize(z_e):
        variables = {"params": {}, "state": state}
        z_q, indices, losses = quantizer(variables, z_e)
        moved = quantizer.next_state(variables, z_e, indices, jax.random.key(1))
        return z_q, losses["commitment"], jax.lax.stop_gradient(moved)

    down, up = [3] + [h] * trunk.downsamplings, [h] * trunk.downsamplings + [features]
    sides = [n >> level for level in range(trunk.downsamplings + 1)]
    down_work = sum(16 * i * o * side**2 for (i, o), side in zip(pairwise(down), sides[1:], strict=True))
    up_work = sum(16 * i * o * side**2 for (i, o), side in zip(pairwise(up), sides[:0:-1], strict=True))
    look = sum(quantizer.codebook_sizes) * quantizer.embedding_dim / 3  # it has no gradients
    first = partial(convolution, padding=((1, 1), (1, 1)))
    return {
        "downsampling": (partial(downsample, standardised), (scaled(down),), down_work),
        "one residual block": (residual, (x, layer(3, h, r), layer(1, r, h)), 10 * h * r * small**2),
        "first 3x3 of the decoder": (first, (z_e, layer(3, dim, h)[0]), 9 * dim * h * small**2),
        "upsampling": (upsample, (x, scaled(up)), up_work),
        "quantizer": (quantize, (z_e,), look * small**2),
        "likelihood": (lambda f: trunk.likelihood.loss({}, f, images), (draw(b, n, n, features),), 0),
    }


def with_gradients(function: Callable) -> Callable[..., Any]:
    """Compute a function and the gradients of all its arguments."""

    def both(*arguments):
        output, pull = jax.vjp(function, *arguments)
        return output, pull(jax.tree.map(jnp.ones_like, output))

    return jax.jit(both)


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time the parts of a training step.")
    parser.add_argument("--case", default="headline", choices=CASES)
    parser.add_argument("--rounds", type=int, default=15, help="turns of each part")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    case = CASES[arguments.case]
    found = {name: (with_gradients(function), given, work) for name, (function, given, work) in parts(case).items()}
    times: dict[str, list[float]] = {name: [] for name in found}
    products = []
    for n in tqdm(range(arguments.rounds + 1), "rounds"):
        products.append(product_rate(count=1))
        for name, (function, given, _) in found.items():
            begin = time.perf_counter()
            jax.block_until_ready(function(*given))
            if n:  # the first one compiles
                times[name].append(time.perf_counter() - begin)
    peak = statistics.median(products)
    result = {"benchmark": "step_parts", "case": arguments.case, "product_gflops": round(peak, 1), "parts": {}}
    for name, (_, _, work) in found.items():
        median, gflop = statistics.median(times[name]), 6 * case.batch * work / 1e9
        result["parts"][name] = {
            "ms": round(1000 * median, 1),
            "range": [round(1000 * f(times[name]), 1) for f in (min, max)],
            "gflop": round(gflop, 2),
            "share": round(gflop / median / peak, 3),
        }
    command = f"python -m experiments.benchmarks.step_parts --case={arguments.case}"
    report(result | {"rounds": arguments.rounds, "data": "random numbers", "command": command}, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
