"""Time the training step against the same network written with `nn.Conv` and `nn.ConvTranspose`.

    python -m experiments.benchmarks.train_step [--out=FILE]

The network: 128 units, 32 residual units, K = 512, D = 64, batch 128, 32x32x3, float32, discretised logistic, EMA
codebook, Adam. Both steps start from the same parameters and see the same batch; their outputs must agree to 1e-5
(the parameters' own gradients and the loss), then they are timed in turn. Also measured: how many CIFAR-sized
batches a second the input delivers, and how often the step was traced. The last line is one JSON object; `speedup`
is the plain step's median time over ours, and the exit status is 1 if it is below 2.
"""

import argparse
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from configs import cifar10
from experiments.provenance import report
from vqvae_jax import builders, sharding
from vqvae_jax.data import batches
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.train_step import init_state, make_train_step

GOAL = 2.0


class PlainResidualStack(nn.Module):
    """`ResidualStack` in plain `nn.Conv`."""

    hidden: int
    residual_units: int
    blocks: int

    @nn.compact
    def __call__(self, x):
        for n in range(self.blocks):
            y = nn.relu(nn.Conv(self.residual_units, (3, 3), name=f"conv3x3_{n}")(nn.relu(x)))
            x = x + nn.Conv(self.hidden, (1, 1), name=f"conv1x1_{n}")(y)
        return nn.relu(x)


class PlainEncoder(nn.Module):
    """`Encoder` with strided convolutions."""

    hidden: int
    residual_units: int
    residual_blocks: int
    downsamplings: int
    features: int

    @nn.compact
    def __call__(self, x):
        for n in range(self.downsamplings):
            x = nn.Conv(self.hidden, (4, 4), (2, 2), padding=((1, 1), (1, 1)), name=f"down_{n}")(x)
            x = nn.relu(x) if n + 1 < self.downsamplings else x
        x = PlainResidualStack(self.hidden, self.residual_units, self.residual_blocks, name="residual")(x)
        return nn.Conv(self.features, (1, 1), name="out")(x)


class PlainDecoder(nn.Module):
    """`Decoder` with transposed convolutions."""

    hidden: int
    residual_units: int
    residual_blocks: int
    upsamplings: int
    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.hidden, (3, 3), name="in")(x)
        x = PlainResidualStack(self.hidden, self.residual_units, self.residual_blocks, name="residual")(x)
        for n in range(self.upsamplings):
            last = n + 1 == self.upsamplings
            features = self.features if last else self.hidden
            x = nn.ConvTranspose(features, (4, 4), (2, 2), padding=((2, 2), (2, 2)), name=f"up_{n}")(x)
            x = x if last else nn.relu(x)
        return x


def flip_transposed(params):
    """Exchange our kernels of transposed convolutions and those of `nn.ConvTranspose`, which runs them backwards."""
    decoder = dict(params["decoder"])
    for name in (name for name in decoder if name.startswith("up_")):
        decoder[name] = {**decoder[name], "kernel": jnp.flip(decoder[name]["kernel"], (0, 1))}
    return {**params, "decoder": decoder}


def make_models():
    """Our model and the plain one, from the same options."""
    options = cifar10.get_config("small").to_dict()["model"]
    options |= {"hidden": 128, "residual_units": 32, "codebook_size": 512, "num_codebooks": 1, "embedding_dim": 64}
    ours = builders.build_model(options, (32, 32, 3))
    encoder = PlainEncoder(128, 32, 2, downsamplings=2, features=64)
    decoder = PlainDecoder(128, 32, 2, upsamplings=2, features=ours.trunk.likelihood.channels(3))
    return ours, replace(ours, trunk=replace(ours.trunk, encoder=encoder, decoder=decoder))


def largest_difference(ours, plain, state, batch):
    """Compare loss and gradients at the same parameters: the largest difference, relative to the largest entry."""

    def gradients(model, params):
        variables = {"state": state.model_state}
        return jax.value_and_grad(lambda p: model.loss({**variables, "params": p}, batch, jax.random.key(0))[0])(params)

    one = jax.jit(lambda p: gradients(ours, p))(state.params)
    other = jax.jit(lambda p: gradients(plain, p))(flip_transposed(state.params))
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves((other[0], flip_transposed(other[1]))), strict=True)
    return max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs)


def batches_per_second(source, count=400):
    """How fast the input makes batches of 128 when nobody else computes."""
    start = time.perf_counter()
    for _ in batches.train_batches(source, 128, 0, True, range(count), num_threads=2):
        pass
    return count / (time.perf_counter() - start)


def main():
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description="Time the training step against plain convolutions.")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    parser.add_argument("--rounds", type=int, default=9, help="timed steps of each kind")
    arguments = parser.parse_args()

    mesh, random = sharding.make_mesh(), np.random.default_rng(0)
    images = random.integers(0, 256, (50_000, 32, 32, 3), dtype=np.uint8)
    source = ArraySource("noise", "train", images, np.zeros(len(images), np.int32), ("noise",))
    batch = sharding.put_batch(
        {k: v for k, v in batches.batch_at(source, 128, 0, True, 0).items() if k == "image"}, mesh
    )
    ours, plain = make_models()
    optimizer = builders.build_optimizer(cifar10.get_config("").to_dict()["optimizer"], 1000)
    state = init_state(ours, optimizer, 0, batch["image"], mesh)
    difference = largest_difference(ours, plain, state, batch)

    traces = []
    counted = type(ours).loss
    type(ours).loss = lambda self, *args: traces.append(type(self.trunk.encoder).__name__) or counted(self, *args)
    states = {"ours": state, "plain": jax.tree.map(jnp.copy, state._replace(params=flip_transposed(state.params)))}
    steps = {name: make_train_step(model, optimizer, 0, mesh) for name, model in (("ours", ours), ("plain", plain))}
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for n in tqdm(range(arguments.rounds + 1), desc="rounds"):
        for name, step in steps.items():
            start = time.perf_counter()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready((states[name], metrics))
            if n:  # the first one compiles
                times[name].append(time.perf_counter() - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    rate = batches_per_second(source)
    result = {
        "benchmark": "train_step",
        "speedup": round(median["plain"] / median["ours"], 2),
        "ours_ms": round(1000 * median["ours"], 1),
        "plain_ms": round(1000 * median["plain"], 1),
        "ours_ms_range": [round(1000 * f(times["ours"]), 1) for f in (min, max)],
        "plain_ms_range": [round(1000 * f(times["plain"]), 1) for f in (min, max)],
        "images_per_second": round(128 / median["ours"], 1),
        "largest_relative_difference": difference,
        "traces_of_our_step": traces.count("Encoder"),
        "input_batches_per_second": round(rate, 1),
        "input_over_step": round(rate * median["ours"], 1),
        "rounds": arguments.rounds,
        "data": "random images, 50,000 of 32x32x3 in memory",
        "command": "python -m experiments.benchmarks.train_step",
    }
    report(result, arguments.out)
    return 0 if result["speedup"] >= GOAL and difference < 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
