"""Time drawing codes from a PixelCNN step by step against a whole pass of the same network for every code.

    python -m experiments.benchmarks.sampling [--out=FILE]

The prior: 12 layers, 128 features, K = 512, on a field of 32x32 codes, batch 16, float32. Naive is the same network's
jitted whole pass at all positions, and a draw, once for every position; a few positions are timed and multiplied by
their number, which says so in the result. Both draw with the same random numbers, and the steps' logits must equal
the whole pass's to 1e-4. They are timed in turns; `speedup` is the naive time over ours, by medians. Then the time
per sample for other batches and fields, which grows with the number of positions alone. The last line is one JSON
object, and the exit status is 1 if the speedup is below 800.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from experiments.provenance import report
from vqvae_jax.priors import ancestral, pixelcnn
from vqvae_jax.priors.autoregressive import Autoregressive

GOAL = 800
FIELD, SIZE, FEATURES, LAYERS, BATCH = (32, 32, 1), 512, 128, 12, 16
NAIVE_POSITIONS = 5  # timed in every round
OTHERS = [((32, 32, 1), 1), ((32, 32, 1), 4), ((32, 32, 1), 64), ((16, 16, 1), 16), ((8, 8, 1), 16), ((8, 8, 10), 16)]


class Case:
    """A prior of random parameters on a field, with everything compiled that is timed."""

    def __init__(self, field: tuple[int, int, int], batch: int):
        """Draw parameters and random numbers."""
        self.field, self.batch = field, batch
        self.prior = Autoregressive(pixelcnn.Network(field, SIZE, 0, FEATURES, LAYERS, 0.0), (SIZE,) * field[2], 0, 0.0)
        self.codes = jnp.zeros((batch, *field), jnp.int32)
        example = {"codes": self.codes, "label": jnp.zeros(batch, jnp.int32)}
        self.variables = jax.jit(self.prior.init)(jax.random.key(0), example)
        out = self.variables["params"]["out"]  # zeros at first, which would draw uniform codes
        self.variables["params"]["out"] = 0.1 * jax.random.normal(jax.random.key(2), out.shape)
        self.uniforms = jax.random.uniform(jax.random.key(1), (int(np.prod(field)), batch))
        self._sample = jax.jit(partial(ancestral.sample, self.prior))
        self._naive = jax.jit(self._naive_step)

    def sample(self):
        """All codes, step by step."""
        return jax.block_until_ready(self._sample(self.variables, self.codes, None, self.uniforms))

    def _naive_step(self, variables, codes, place, uniforms):
        logits = self.prior.logits(variables, codes)[:, *place]
        code = ancestral.draw(logits, uniforms, ancestral.Options())
        return codes.at[:, *place].set(code), logits

    def naive(self, codes, n: int):
        """The next code by a whole pass, and its logits."""
        place = tuple(map(int, np.unravel_index(n, self.field)))
        return jax.block_until_ready(self._naive(self.variables, codes, place, self.uniforms[n]))

    def cache_megabytes(self) -> float:
        """Memory of what the sampler keeps, without constants."""
        cache = jax.eval_shape(lambda v: self.prior.start(v, self.batch), self.variables)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(cache._replace(kernels=None, bias=None))) / 2**20


def seconds(function, *arguments) -> float:
    """Time one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def largest_difference(case: Case, codes) -> float:
    """Compare the logits of a whole pass at some positions with those of the steps up to there."""
    row, step = jax.jit(case.prior.row), jax.jit(case.prior.step)
    cache, found = case.prior.start(case.variables, case.batch), 0.0
    whole = jax.jit(case.prior.logits)(case.variables, codes)
    for n, (i, j, g) in enumerate(np.ndindex(*case.field)):
        if j == g == 0:
            cache = row(case.variables, cache, codes, i)
        logits, cache = step(case.variables, cache, codes, n)
        found = max(found, float(jnp.max(jnp.abs(logits - whole[:, i, j, g]))))
    return found


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time cached against naive sampling.")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    case = Case(FIELD, BATCH)
    codes, positions = case.sample(), int(np.prod(FIELD))
    case.naive(codes, 0)  # compiles
    difference = largest_difference(case, codes)
    ours, naive = [], []
    for _ in tqdm(range(arguments.rounds), "rounds"):
        ours.append(seconds(case.sample))
        places = np.linspace(0, positions - 1, NAIVE_POSITIONS).astype(int)
        naive += [seconds(case.naive, codes, n) for n in places]
    others = []
    for field, batch in tqdm(OTHERS, "other sizes"):
        other = Case(field, batch)
        other.sample()
        median = statistics.median(seconds(other.sample) for _ in range(3))
        number = int(np.prod(field))
        others.append(
            {
                "field": "x".join(map(str, field)),
                "batch": batch,
                "ms_per_sample": round(1000 * median / batch, 2),
                "us_per_code_of_a_batch": round(1e6 * median / number, 1),
                "cache_mb": round(other.cache_megabytes(), 2),
            }
        )
    naive_seconds = statistics.median(naive) * positions
    result = {
        "benchmark": "sampling",
        "speedup": round(naive_seconds / statistics.median(ours), 1),
        "ours_seconds": round(statistics.median(ours), 3),
        "ms_per_sample": round(1000 * statistics.median(ours) / BATCH, 2),
        "ours_seconds_range": [round(f(ours), 3) for f in (min, max)],
        "naive_seconds_extrapolated": round(naive_seconds, 1),
        "naive_ms_per_position": round(1000 * statistics.median(naive), 1),
        "naive_ms_per_position_range": [round(1000 * f(naive), 1) for f in (min, max)],
        "naive_positions_timed": len(naive),
        "largest_difference_of_logits": difference,
        "cache_mb": round(case.cache_megabytes(), 2),
        "prior": f"{LAYERS} layers, {FEATURES} features, K = {SIZE}, field 32x32, batch {BATCH}, float32",
        "others": others,
        "rounds": arguments.rounds,
        "command": "python -m experiments.benchmarks.sampling",
    }
    report(result, arguments.out)
    return 0 if result["speedup"] >= GOAL and difference < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
