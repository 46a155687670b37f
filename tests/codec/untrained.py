"""Runs that were never trained, and pictures, for tests of the codec; as a program: `compress` or `decompress` them.

python untrained.py compress|decompress CONFIG.json INPUT OUTPUT
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from vqvae_jax import registry
from vqvae_jax.codec import compress
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.likelihoods.pixelwise import Logistic
from vqvae_jax.priors.trained import TrainedPrior
from vqvae_jax.run import Run

SHAPE = (8, 12, 3)


class Earlier(Logistic):
    """Column by column, the mean moved by the pixel one to the left and one below: a likelihood that sees x."""

    def order(self, height, width):
        rows, columns = np.meshgrid(np.arange(height), np.arange(width))
        places = np.stack([rows, columns], axis=-1)
        padding = np.broadcast_to(np.array([height, width]), (width, 2, 2))
        return np.concatenate([places, padding], axis=1).astype(np.int32)

    def _moved(self, q, neighbours):
        c = neighbours.shape[-1]
        return q.at[..., :c].add(neighbours.astype(jnp.float32) / 255)

    def at(self, params, features, images, places):
        # A row below and a column to the left of the image are black.
        known = jnp.pad(images, ((0, 0), (0, 1), (1, 0), (0, 0)))
        q = self.distribution(params, features[:, places[:, 0], places[:, 1]])
        return self._moved(q, known[:, places[:, 0] + 1, places[:, 1]])

    def log_prob(self, params, features, images):
        shifted = np.zeros_like(images)
        shifted[:, :-1, 1:] = images[:, 1:, :-1]
        return self.log_prob_of(self._moved(self.distribution(params, features), shifted), images)


def make_run(config, prior="none", shape=SHAPE, seed=0, pixel_model=None, frequencies=(0.5, 0.5), **changes) -> Run:
    """A run that was never trained, whose codes and prior are far from uniform all the same."""
    config = {**config, "model": config["model"] | {"pixel_mean": (0.5,), "pixel_std": (0.25,)} | changes}
    model = registry.build_model(config["model"], shape)
    if pixel_model is not None:
        model = dataclasses.replace(model, trunk=dataclasses.replace(model.trunk, likelihood=pixel_model))
    images = np.random.default_rng(seed).integers(0, 256, (64, *shape), dtype=np.uint8)
    variables = jax.jit(model.init)(jax.random.key(seed), images)
    source = ArraySource("noise", "train", images, np.zeros(64, np.int32), ("one", "two"))
    meta = {"config": config, "image_shape": list(shape), "class_names": ["one", "two"], "step": 0}
    run = Run(model, {**variables, "fitted": {}}, meta)
    run = Run(model, {**variables, "fitted": run.fit(source)}, meta)
    if prior == "none":
        return run
    section = config["prior"] | {"name": prior, "features": 32, "layers": 1, "conditional": prior == "conditional"}
    section["name"] = "pixelcnn" if prior == "conditional" else prior
    network = registry.build_prior(section, run.field, model.codebook_sizes, 2)
    batch = {"codes": np.zeros((1, *run.field), np.int32), "label": np.zeros(1, np.int32)}
    params = jax.jit(network.init)(jax.random.key(1), batch)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    fitted = {"log_class_frequencies": jnp.log(jnp.array(frequencies))}
    variables = {"params": jax.tree.unflatten(tree, moved), "fitted": fitted}
    return run.with_prior(TrainedPrior(section["name"], network, variables, 8))


def pictures(folder: Path, channels=3) -> dict[str, np.ndarray]:
    """Save images of every kind in a folder; give them by the name that they come back under."""
    random = np.random.default_rng(3)
    found = {
        "noise.png": random.integers(0, 256, SHAPE, dtype=np.uint8),
        "sub/more noise.png": random.integers(0, 256, SHAPE, dtype=np.uint8),
        "constant.png": np.full((9, 25, 3), 255, np.uint8),
        "sub/deep/pixel.png": np.full((1, 1, 3), 7, np.uint8),
        "wide.png": random.integers(0, 256, (3, 40, 3), dtype=np.uint8),
        "exact.png": random.integers(100, 130, (16, 24, 3), dtype=np.uint8),
    }
    found = {name: image[..., :channels] for name, image in found.items()}
    for name, image in found.items():
        save(image if channels == 3 else image[..., 0], folder / name)
    return found


def save(array: np.ndarray, path: Path, **options) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return str(path)


def read(folder: Path) -> dict[str, np.ndarray]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in paths}


def assert_same(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for name, image in expected.items():
        np.testing.assert_array_equal(found[name].reshape(image.shape), image, err_msg=name)


def tiles_of(image: np.ndarray, mode: str) -> np.ndarray:
    """Cut an image, continued by its edge ("edge") or in black ("constant"), into tiles of SHAPE."""
    rows, columns = (-(-size // tile) for size, tile in zip(image.shape, SHAPE[:2], strict=False))
    beyond = [(0, n * tile - size) for n, tile, size in zip((rows, columns), SHAPE[:2], image.shape, strict=False)]
    padded = np.pad(image, [*beyond, (0, 0)], mode=mode)
    return padded.reshape(rows, SHAPE[0], columns, SHAPE[1], 3).swapaxes(1, 2).reshape(-1, *SHAPE)


if __name__ == "__main__":
    direction, config, given, output = sys.argv[1:]
    run = make_run(json.loads(Path(config).read_text()), "pixelcnn", pixel_model=Earlier())
    if direction == "compress":
        compress.compress_to(run, [given], output)
    else:
        compress.decompress(run, Path(given).read_bytes(), output)
