"""What simple codes need for the same test images, in bits/dim: to read the models' figures against.

    python -m experiments.anchors --dataset=cifar10 --data_dir=DIR --out=experiments/results/anchors/cifar10.json

`uniform` and the histogram per position are distributions of the integers; the Gaussian is a density, measured at
pixels to which a uniform draw of [0, 1) was added: its mean bounds that of the integers from above (Theis et al. 2016).
PNG, WebP and JPEG XL are counted by their files.
"""

import argparse
import contextlib
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, features

from experiments.provenance import provenance
from vqvae_jax.data import sources
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation.evaluate import CODECS, file_bits
from vqvae_jax.training.record import write_json

with contextlib.suppress(ImportError):
    import pillow_jxl  # noqa: F401 # pyright: ignore - optional, it teaches Pillow JPEG XL

AT_ONCE = 1000


def histogram_bits(train: np.ndarray, test: np.ndarray) -> float:
    """One table of 256 frequencies for every position and channel, counted on training images, +1."""
    train, test = train.reshape(len(train), -1), test.reshape(len(test), -1)
    total = 0.0
    for column in range(train.shape[1]):
        counts = np.bincount(train[:, column], minlength=256) + 1
        total -= np.log2(counts / counts.sum())[test[:, column]].sum()
    return total / test.size


def gaussian_bits(train: np.ndarray, test: np.ndarray) -> float:
    """A Gaussian of full covariance fitted to training images, both with uniform noise in [0, 1)."""
    random = np.random.default_rng(0)

    def rows(images):
        for start in range(0, len(images), AT_ONCE):
            flat = images[start : start + AT_ONCE].reshape(-1, images[0].size).astype(np.float64)
            yield flat + random.random(flat.shape)

    size = train[0].size
    total, products = np.zeros(size), np.zeros((size, size))
    for part in rows(train):
        total += part.sum(0)
        products += part.T @ part
    mean = total / len(train)
    covariance = products / len(train) - np.outer(mean, mean)
    root = np.linalg.cholesky(covariance)
    log_volume = np.log(np.diag(root)).sum()
    squares = sum(np.sum(np.linalg.solve(root, (part - mean).T) ** 2) for part in rows(test))
    nats = 0.5 * squares / len(test) + log_volume + 0.5 * size * math.log(2 * math.pi)
    return nats / size / math.log(2)


def anchors(train: ArraySource, validation: ArraySource, test: ArraySource) -> dict:
    """Measure all that are installed; training images are those that models may see, validation included."""
    known = np.concatenate([train.images, validation.images])
    found = {
        "uniform": 8.0,
        "histogram per position": histogram_bits(known, test.images),
        "Gaussian, full covariance": gaussian_bits(known, test.images),
        "PNG": file_bits(test.images, "PNG", **CODECS["png"]),
    }
    if features.check("webp"):
        found["WebP, lossless"] = file_bits(test.images, "WEBP", **CODECS["webp"])
    if ".jxl" in Image.registered_extensions():
        found["JPEG XL, lossless"] = file_bits(test.images, "JXL", lossless=True, effort=9)
    return found


def main():
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Bits/dim of simple codes for a test split.")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--title")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        if arguments.dataset not in sources.SOURCES:
            raise InputError(f"unknown dataset {arguments.dataset!r}: known: {', '.join(sources.SOURCES)}")
        opened = [sources.SOURCES[arguments.dataset](split, arguments.data_dir) for split in sources.SPLITS]
        if not all(isinstance(split, ArraySource) for split in opened):
            raise InputError(f"{arguments.dataset} doesn't fit into memory, which the full covariance needs")
        found = anchors(*opened)  # pyright: ignore - all are ArraySource
    except InputError as error:
        parser.error(str(error))
    result = {
        "dataset": arguments.title or arguments.dataset,
        "bits_per_dim": {name: round(value, 4) for name, value in found.items()},
        "command": f"python -m experiments.anchors --dataset={arguments.dataset} --data_dir=DIR --out=FILE",
        **provenance(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(arguments.out, result)
    for name, value in found.items():
        print(f"{value:7.3f}  {name}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
