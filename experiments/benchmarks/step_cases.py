"""The networks and batches whose training steps are timed."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import cifar10
from vqvae_jax import registry
from vqvae_jax.models.trunk import Family
from vqvae_jax.training import sharding
from vqvae_jax.training.step import TrainState, init_state


@dataclass(frozen=True)
class Case:
    """Options of the model beside those of the paper's network (configs/cifar10.py), and the batch."""

    batch: int
    side: int
    model: Mapping
    quantizer: Mapping
    goal: float  # PyTorch's time over ours

    def options(self, dtype: str = "float32") -> dict:
        """Give the config's section `model`; a KeyError if it has no such dtype."""
        options = cifar10.get_config("").to_dict()["model"] | dict(self.model)
        options["quantizer"] |= self.quantizer
        if dtype != "float32" and "dtype" not in options:
            raise KeyError("the config has no model.dtype")
        return options | ({"dtype": dtype} if "dtype" in options else {})

    def build(self, dtype: str = "float32") -> Family:
        """Build the model."""
        return registry.build_model(self.options(dtype), (self.side, self.side, 3))

    def images(self, count: int | None = None, seed: int = 0) -> np.ndarray:
        """Draw random images, uint8: the time doesn't depend on them."""
        shape = (count or self.batch, self.side, self.side, 3)
        return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

    def flops(self) -> int:
        """Count what the convolutions of a step need, forward and both gradients, each tap two operations."""
        trunk, quantizer = self.build().trunk, self.options()["quantizer"]
        h, r, dim = trunk.hidden, trunk.residual_units, quantizer["num_codebooks"] * quantizer["embedding_dim"]
        down, up = [3] + [h] * trunk.downsamplings, [h] * trunk.downsamplings + [trunk.likelihood.features(3)]
        # Multiply-adds at each position of the smaller side of the layer, and how large that is.
        layers = [(16 * i * o, self.side >> (n + 1)) for n, (i, o) in enumerate(pairwise(down))]
        layers += [(16 * i * o, self.side >> (len(up) - 1 - n)) for n, (i, o) in enumerate(pairwise(up))]
        layers += [(2 * trunk.residual_blocks * (9 * h * r + r * h) + h * dim + 9 * dim * h, self.side // trunk.factor)]
        return 3 * 2 * self.batch * sum(number * side**2 for number, side in layers)


SMALL = {"hidden": 128, "residual_units": 32, "likelihood": "logistic"}
ONE = {"codebook_size": 512, "num_codebooks": 1, "embedding_dim": 64}
CASES = {
    "headline": Case(128, 32, SMALL, ONE, 1.2),
    "batch32": Case(32, 32, SMALL, ONE, 1.2),
    "pixels128": Case(16, 128, SMALL, ONE, 1.2),
    "paper": Case(128, 32, {}, {}, 1.0),
    "tiny": Case(2, 8, {"hidden": 8, "residual_units": 4, "likelihood": "logistic"}, ONE, 0.0),
}


def optimizer():
    """Give the paper's: Adam at 2e-4."""
    return registry.build_optimizer(cifar10.get_config("").to_dict()["optimizer"], 1000)


def start(case: Case, model: Family, seed: int = 0) -> tuple[TrainState, dict]:
    """Draw the first state, and give it with the batch on the devices."""
    batch = sharding.put_batch({"image": case.images(seed=seed)})
    return init_state(model, optimizer(), seed, batch["image"]), batch


def write_network(case: Case, path: Path) -> None:
    """Write the first parameters, sizes and images of a case for `torch_step.py`."""
    model, options = case.build(), case.options()
    state, batch = start(case, model)
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    arrays = {jax.tree_util.keystr(keys, simple=True, separator="/"): np.asarray(value) for keys, value in leaves}
    of_image = {"mean": options["pixel_mean"], "std": options["pixel_std"]}
    arrays |= {name: np.broadcast_to(np.float32(value), 3).copy() for name, value in of_image.items()}
    arrays |= {name: np.asarray(value) for name, value in state.model_state._asdict().items()}
    sizes = {key: value for key, value in options.items() if isinstance(value, int | str)} | options["quantizer"]
    sizes["features"] = model.likelihood.features(3)
    sizes["learning_rate"] = cifar10.get_config("").optimizer.learning_rate
    text = np.frombuffer(json.dumps(sizes).encode(), np.uint8)
    np.savez(path, allow_pickle=False, sizes=text, images=np.asarray(batch["image"]), **arrays)


def memory_mb(compiled) -> int:
    """Give the memory that XLA plans for a program: arguments, results and what lies between."""
    found = compiled.memory_analysis()
    size = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return round((size + found.temp_size_in_bytes) / 2**20)


def product_rate(dtype=jnp.float32, rows: int = 4096, size: int = 1024, count: int = 5) -> float:
    """Measure a matrix product of [rows, size] and [size, size]: the best of `count`, in GFLOP/s."""
    one, other = jnp.ones((rows, size), dtype), jnp.ones((size, size), dtype)
    multiply, times = jax.jit(jnp.matmul), []
    jax.block_until_ready(multiply(one, other))
    for _ in range(count):
        begin = time.perf_counter()
        jax.block_until_ready(multiply(one, other))
        times.append(time.perf_counter() - begin)
    return 2 * rows * size * size / min(times) / 1e9
