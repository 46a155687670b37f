"""Compress image files of any size without loss, and compare with other codecs, a file an image.

    python -m experiments.files --run RUN --trained_on="..." --input PHOTOS --data="..." [--num=20] --out=FILE.json

All images go into one `.vqz`, which is decoded again and compared pixel by pixel. Sizes are in bits per sub-pixel, with
headers and names. The last line is one JSON object.
"""

from vqvae_jax.start import with_huge_pages

if __name__ == "__main__":
    with_huge_pages()

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.provenance import report
from experiments.rate_distortion import LOSSLESS, timed
from vqvae_jax.codec import compress
from vqvae_jax.data import image_files
from vqvae_jax.run import Run, load


def other_codecs(images: list[np.ndarray]) -> dict[str, float]:
    """Give bits/dim of all images together under the codecs that are installed."""
    installed, total = Image.registered_extensions().values(), sum(image.size for image in images)
    return {
        name: sum(8 * len(image_files.encode(image, kind, **options)) for image in images) / total
        for name, (kind, options) in LOSSLESS.items()
        if kind in installed
    }


def measure(run: Run, paths: list[Path]) -> dict:
    """Compress files, decode and compare them, and give all sizes."""
    images = [image_files.read_image(path, run.meta["image_shape"][2]) for path in paths]
    with tempfile.TemporaryDirectory() as folder:
        names = [str(path) for path in paths]
        (data, sizes), seconds = timed(lambda: compress.compress(run, names))
        number, decoding = timed(lambda: compress.decompress(run, data, folder))
        for path, image in zip(paths, images, strict=True):
            back = np.asarray(Image.open(Path(folder) / f"{path.stem}.png"))
            if not np.array_equal(back.reshape(image.shape), image):
                raise RuntimeError(f"{path.name} came back changed")
    return {
        "images_decoded_exactly": number,
        "sub_pixels": sizes.values,
        "bits_per_dim": 8 * sizes.total / sizes.values,
        "bits_per_dim_of_stream": 8 * sizes.stream / sizes.values,
        "other_codecs": other_codecs(images),
        "seconds": {"compress": seconds, "decompress": decoding},
    }


def main():
    """Compress the files that are named."""
    parser = argparse.ArgumentParser(description="Compress image files without loss and compare with other codecs.")
    parser.add_argument("--run", required=True)
    parser.add_argument("--input", type=Path, nargs="+", required=True)
    parser.add_argument("--num", type=int, default=0, help="the first files only, by name; 0: all")
    parser.add_argument("--data", required=True, help="which images these are")
    parser.add_argument("--trained_on", required=True, help="the data of the run")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    paths = sorted(path for given in arguments.input for path, _ in image_files.inside(given))
    paths = paths[: arguments.num or None]
    result = measure(load(arguments.run), paths)
    report({"experiment": "files", "data": arguments.data, "trained_on": arguments.trained_on} | result, arguments.out)


if __name__ == "__main__":
    main()
