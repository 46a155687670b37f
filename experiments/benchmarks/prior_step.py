"""Time the training step of a PixelCNN prior against a plain stack of `nn.Conv` with the same multiply-adds.

    python -m experiments.benchmarks.prior_step [--out=FILE]

The prior: 12 layers, 128 features, K = 512, field 32x32, batch 16, float32, Adam, no dropout. The plain stack has the
same kernels (2x3, 1x2 and 1x1 taps, none of them masked), ReLUs in place of gates, and no care for causality: what
the network costs if it is written down simply. Timed in turns; `ratio` is our median time over the plain one. The
last line is one JSON object, and the exit status is 1 if the ratio is above 1.2.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax
from tqdm import tqdm

from experiments.benchmarks.sampling import BATCH, FEATURES, FIELD, LAYERS, SIZE
from experiments.provenance import report
from vqvae_jax.priors import pixelcnn
from vqvae_jax.priors.autoregressive import Autoregressive
from vqvae_jax.training import sharding
from vqvae_jax.training.step import init_state, make_train_step

GOAL = 1.2


class PlainNetwork(nn.Module):
    """The PixelCNN's convolutions as `nn.Conv`."""

    field: tuple[int, int, int]
    codebook_size: int
    features: int
    layers: int

    @nn.compact
    def __call__(self, codes, label, training=False):
        """Logits that may depend on any code."""
        f = self.features
        v = h = nn.Embed(self.codebook_size, f)(codes[..., 0])
        for _ in range(self.layers):
            v = v + nn.relu(nn.Conv(2 * f, (2, 3))(v))[..., :f]
            both = nn.Conv(2 * f, (1, 2))(h) + nn.Conv(2 * f, (1, 1))(v)
            h = h + nn.Conv(f, (1, 1))(nn.relu(both)[..., :f])
        h = nn.relu(nn.Conv(f, (1, 1))(nn.relu(h)))
        return nn.Conv(self.codebook_size, (1, 1))(h)[..., None, :]


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time the prior's training step against plain convolutions.")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    codes = random.integers(0, SIZE, (BATCH, *FIELD)).astype(np.int32)
    batch = sharding.put_batch({"codes": codes, "label": np.zeros(BATCH, np.int32)})
    networks = {
        "ours": pixelcnn.Network(FIELD, SIZE, 0, FEATURES, LAYERS, 0.0),
        "plain": PlainNetwork(FIELD, SIZE, FEATURES, LAYERS),
    }
    priors = {name: Autoregressive(network, (SIZE,), 0, 0.0) for name, network in networks.items()}
    optimizer = optax.adam(1e-3)
    states = {name: init_state(prior, optimizer, 0, batch) for name, prior in priors.items()}
    steps = {name: make_train_step(prior, optimizer, 0) for name, prior in priors.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    for n in tqdm(range(arguments.rounds + 1), "rounds"):
        for name, step in steps.items():
            start = time.perf_counter()
            states[name], values = step(states[name], batch)
            jax.block_until_ready((states[name], values))
            if n:  # the first one compiles
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "benchmark": "prior_step",
        "ratio": round(median["ours"] / median["plain"], 3),
        "ours_ms": round(1000 * median["ours"], 1),
        "plain_ms": round(1000 * median["plain"], 1),
        "ours_ms_range": [round(1000 * f(times["ours"]), 1) for f in (min, max)],
        "plain_ms_range": [round(1000 * f(times["plain"]), 1) for f in (min, max)],
        "parameters": {name: sum(x.size for x in jax.tree.leaves(s.params)) for name, s in states.items()},
        "prior": f"{LAYERS} layers, {FEATURES} features, K = {SIZE}, field 32x32, batch {BATCH}, float32",
        "rounds": arguments.rounds,
        "command": "python -m experiments.benchmarks.prior_step",
    }
    report(result, arguments.out)
    return 0 if result["ratio"] <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
