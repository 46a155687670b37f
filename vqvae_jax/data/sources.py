"""Where images come from: one table of named data sets, each split into train, validation and test.

CIFAR-10 and photos are small: they are decoded once and kept in memory. An image's place in its split depends on
its pixels alone, so neither the way a data set was prepared nor the machine changes a run.
"""

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae_jax.data import prepare
from vqvae_jax.errors import InputError

SPLITS = ("train", "validation", "test")
VALIDATION_IMAGES = 5000


@dataclass(frozen=True)
class ArraySource:
    """One split in memory: `images` uint8 [N,H,W,C], `labels` int32 [N], and what the labels are called."""

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of every image."""
        return tuple(self.images.shape[1:])

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Gather a batch: {"image": uint8 [B,H,W,C], "label": int32 [B]}."""
        return {"image": self.images[indices], "label": self.labels[indices]}

    def fingerprint(self) -> str:
        """A digest of pixels and labels in their order: equal if and only if the data are."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.images).data, digest_size=8)
        digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        return digest.hexdigest()


def check_split(split: str) -> None:
    """Raise InputError unless `split` is a known one."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: known: {', '.join(SPLITS)}")


def content_order(images: np.ndarray) -> np.ndarray:
    """Sort images by a digest of their pixels: an order that is random to the eye and the same everywhere."""
    digests = [hashlib.blake2b(image, digest_size=8).digest() for image in images]
    return np.argsort(np.array(digests), kind="stable")


def decode(data: bytes) -> np.ndarray:
    """Decode an image file to uint8 [H,W,3]."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@lru_cache(maxsize=2)
def _tfds_arrays(name: str, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Decode all images of a TFDS split, in the order of their content: uint8 [N,H,W,3] and labels int32 [N]."""
    dataset = prepare.open_dataset(name, split, data_dir)
    records = dataset.__getitems__(list(range(len(dataset))))
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(lambda record: decode(record["image"]), records)))
    order = content_order(images)
    return images[order], np.array([record["label"] for record in records], np.int32)[order]


def cifar10(split: str, data_dir: str | None) -> ArraySource:
    """CIFAR-10 through TFDS: 45,000 / 5,000 / 10,000 images of 32x32x3; validation is the first 5,000 by digest.

    Args:
        split: "train", "validation" or "test".
        data_dir: TFDS folder; None means TFDS's own default. The data set is downloaded and prepared on first use.
    """
    check_split(split)
    images, labels = _tfds_arrays("cifar10", "test" if split == "test" else "train", data_dir)
    part = {"train": slice(VALIDATION_IMAGES, None), "validation": slice(VALIDATION_IMAGES), "test": slice(None)}[split]
    return ArraySource("cifar10", split, images[part], labels[part], prepare.CIFAR10_CLASSES)


PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle")
PHOTO_SIZE = 32
PHOTO_REGIONS = {  # left, top, right, bottom as shares of the photograph; they do not overlap
    "train": (0.0, 0.0, 0.7, 1.0),
    "validation": (0.7, 0.0, 1.0, 0.4),
    "test": (0.7, 0.4, 1.0, 1.0),
}
PHOTO_SCALES = (1, 2, 4)  # a region is reduced by these factors
PHOTO_STRIDES = {"train": 8, "validation": 16, "test": 16}


def photo_crops(photograph: Image.Image, split: str) -> list[np.ndarray]:
    """Cut 32x32 crops at several scales from the split's own region, which is cut out *before* it is reduced."""
    shares = PHOTO_REGIONS[split]
    width, height = photograph.size
    left, top, right, bottom = shares
    region = photograph.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
    crops = []
    for scale in PHOTO_SCALES:
        small = np.asarray(region.reduce(scale))
        rows, columns = (range(0, side - PHOTO_SIZE + 1, PHOTO_STRIDES[split]) for side in small.shape[:2])
        crops += [small[y : y + PHOTO_SIZE, x : x + PHOTO_SIZE] for y in rows for x in columns]
    return crops


def photos(split: str, data_dir: str | None) -> ArraySource:
    """32x32 crops of five photographs that ship inside scikit-image; the label is the photograph.

    Args:
        split: "train", "validation" or "test": three regions of every photograph that share no pixel.
        data_dir: a folder that holds the photographs instead (for tests); None means scikit-image's own.
    """
    import skimage

    check_split(split)
    files = {"rocket": "rocket.jpg", "motorcycle": "motorcycle_left.png"}
    folder = Path(data_dir) if data_dir else Path(skimage.__file__).parent / "data"
    images, labels = [], []
    for label, name in enumerate(PHOTOS):
        path = folder / files.get(name, f"{name}.png")
        if not path.is_file():
            raise InputError(f"no photograph {path}: reinstall scikit-image, or leave --data_dir out for photos")
        crops = photo_crops(Image.open(path).convert("RGB"), split)
        images += crops
        labels += [label] * len(crops)
    images = np.stack(images)
    order = content_order(images)
    return ArraySource("photos", split, images[order], np.array(labels, np.int32)[order], PHOTOS)


SOURCES: dict[str, Callable[[str, str | None], ArraySource]] = {"cifar10": cifar10, "photos": photos}
