"""What simple codes need for the same test images, in bits/dim: to read the models' figures against.

    python -m experiments.anchors --dataset=cifar10 --data_dir=DIR [--sources=DIR] --out=FILE.json

`uniform` and the histogram per position are distributions of the integers; the Gaussian is a density, measured at
pixels to which a uniform draw of [0, 1) was added: its mean bounds that of the integers from above (Theis et al. 2016).
PNG, WebP and JPEG XL are counted by their files. `--sources`: a folder of the files from which the images were
decoded (CIFAR-10 (JPEG) is made of JPEG files), which are a lossless code for them, too.
"""

import argparse
import contextlib
import io
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image, features

from experiments.provenance import provenance
from vqvae_jax.data import sources, transforms
from vqvae_jax.data.images import MODES, ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.metric_writer import write_json
from vqvae_jax.pictures import SUFFIXES

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


def file_bits(test: np.ndarray, kind: str, **options) -> float:
    """Files of one image each, encoded losslessly by Pillow; every byte counts."""
    size = 0
    for image in test:
        out = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(out, kind, **options)
        size += out.tell()
    return 8 * size / test.size


def source_bits(images: np.ndarray, folder: Path) -> float:
    """Give bits/dim of the files from which images [N,H,W,C] were decoded, found by their pixels, the smallest of each.

    Raises:
        InputError: of an image there is none.
    """
    mode, sizes = MODES[images.shape[-1]], {}
    for path in folder.rglob("*"):
        if path.suffix.lower() not in SUFFIXES:
            continue
        with contextlib.suppress(transforms.BadImage):
            pixels = transforms.to_array(transforms.decode(path.read_bytes(), mode)).tobytes()
            sizes[pixels] = min(path.stat().st_size, sizes.get(pixels, math.inf))
    missing = sum(image.tobytes() not in sizes for image in images)
    if missing:
        raise InputError(f"{missing} of the {len(images)} images are in none of the {len(sizes)} files of {folder}")
    return 8 * sum(sizes[image.tobytes()] for image in images) / images.size


def anchors(train: ArraySource, validation: ArraySource, test: ArraySource, files: Path | None) -> dict[str, float]:
    """Measure all that are installed; training images are those that models may see, validation included."""
    known = np.concatenate([train.images, validation.images])
    found = {
        "uniform": 8.0,
        "histogram per position": histogram_bits(known, test.images),
        "Gaussian, full covariance": gaussian_bits(known, test.images),
        "PNG": file_bits(test.images, "PNG", optimize=True),
    }
    if features.check("webp"):
        found["WebP, lossless"] = file_bits(test.images, "WEBP", lossless=True, quality=100, method=6)
    if ".jxl" in Image.registered_extensions():
        found["JPEG XL, lossless"] = file_bits(test.images, "JXL", lossless=True, effort=9)
    if files:
        found["the source files themselves"] = source_bits(test.images, files)
    return found


def main():
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Bits/dim of simple codes for a test split.")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--data_dir")
    parser.add_argument("--title")
    parser.add_argument("--sources", type=Path, help="the files from which the test images were decoded")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        if arguments.dataset not in sources.SOURCES:
            raise InputError(f"unknown dataset {arguments.dataset!r}: known: {', '.join(sources.SOURCES)}")
        opened = [sources.SOURCES[arguments.dataset](split, arguments.data_dir) for split in sources.SPLITS]
        if not all(isinstance(split, ArraySource) for split in opened):
            raise InputError(f"{arguments.dataset} doesn't fit into memory, which the full covariance needs")
        found = anchors(*opened, arguments.sources)  # pyright: ignore - all are ArraySource
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
