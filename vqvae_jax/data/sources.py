"""Where images come from: one table of named data sets, each split into train, validation and test.

Small sets are decoded once and kept in memory. An image's place in its split depends on its pixels or its name alone,
so neither the way a data set was prepared nor the machine changes a run.
"""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vqvae_jax.data import prepare, records, transforms
from vqvae_jax.data.images import MODES, ArraySource, Opened, prepare_split
from vqvae_jax.data.statistics import scan
from vqvae_jax.errors import InputError, suggest

SPLITS = ("train", "validation", "test")


def check_split(split: str) -> None:
    """Raise InputError unless `split` is a known one."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: known: {', '.join(SPLITS)}")


def content_order(images: np.ndarray) -> np.ndarray:
    """Sort images by a digest of their pixels: an order that is random to the eye and the same everywhere."""
    digests = [hashlib.blake2b(image, digest_size=8).digest() for image in images]
    return np.argsort(np.array(digests), kind="stable")


class Tfds(NamedTuple):
    """What is to be known of a TFDS data set of images."""

    channels: int
    in_memory: bool
    validation: int  # images of train, the first by digest; a tenth of smaller sets
    test: str = "test"  # TFDS's name of the labelled images that are not for training


TFDS = {
    "cifar10": Tfds(channels=3, in_memory=True, validation=5000),
    "fashion_mnist": Tfds(channels=1, in_memory=True, validation=5000),
    "imagenet2012": Tfds(channels=3, in_memory=False, validation=10_000, test="validation"),
    "imagenet_resized/32x32": Tfds(channels=3, in_memory=False, validation=10_000, test="validation"),
    "imagenet_resized/64x64": Tfds(channels=3, in_memory=False, validation=10_000, test="validation"),
}


def open_tfds_split(name: str, split: str, data_dir: str | None) -> ArraySource | Opened:
    """Open a data set of the table TFDS: in memory, or as records."""
    check_split(split)
    about = TFDS[name]
    theirs = about.test if split == "test" else "train"

    def part(total: int) -> slice:
        held = min(about.validation, total // 10)
        return {"train": slice(held, None), "validation": slice(held), "test": slice(None)}[split]

    if about.in_memory:
        images, labels, class_names = _tfds_arrays(name, theirs, data_dir)
        return ArraySource(name, split, images[part(len(images))], labels[part(len(images))], class_names)
    opened = records.open_tfds(name, theirs, data_dir)
    return Opened(name, split, opened, scan(opened).keep(part(len(opened))), about.channels)


@lru_cache(maxsize=2)
def _tfds_arrays(name: str, split: str, data_dir: str | None) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Decode all images of a TFDS split, in the order of their content: uint8 [N,H,W,C], labels int32 [N], classes."""
    dataset, class_names, _ = prepare.open_dataset(name, split, data_dir)
    found = dataset.__getitems__(list(range(len(dataset))))
    mode = MODES[TFDS[name].channels]
    with ThreadPoolExecutor() as pool:
        decoded = pool.map(lambda row: transforms.to_array(transforms.decode(row["image"], mode)), found)
        images = np.stack(list(decoded))
    order = content_order(images)
    return images[order], np.array([row["label"] for row in found], np.int32)[order], class_names


def hash_share(name: str) -> float:
    """Map a name to a number that looks uniform in [0, 1) and never changes."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64


FOLDER_SHARES = {"test": (0.0, 0.1), "validation": (0.1, 0.2), "train": (0.2, 1.0)}


def folder(split: str, data_dir: str | None) -> Opened:
    """Any tree of images: a tenth each for test and validation, by a hash of the relative path."""
    check_split(split)
    opened = records.open_folder(data_dir)
    found = scan(opened)
    low, high = FOLDER_SHARES[split]
    rows = np.array([low <= hash_share(str(name)) < high for name in found.names])
    if not rows.any():
        raise InputError(f"{len(rows)} images in {data_dir} are too few: none falls to the {split} split")
    return Opened("folder", split, opened, found.keep(rows), 3)


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


SOURCES: dict[str, Callable[[str, str | None], ArraySource | Opened]] = {
    **{name: partial(open_tfds_split, name) for name in TFDS},
    "folder": folder,
    "photos": photos,
}


def load_data(
    dataset: str,
    transformation: Callable[[np.ndarray], object] | None = None,
    n_train: int | None = None,
    n_test: int | None = None,
    *,
    seed: int = 0,
    data_dir: str | None = None,
    image_size: int | None = None,
) -> tuple[Iterator, Iterator]:
    """Give two lazy generators of (image, label), of training and of test images, for notebooks.

    Images are uint8 [H,W,C], or what `transformation` makes of them; labels are int. Nothing is read before the first
    one is asked for; the order is shuffled by `seed`, and no image is in both.

    Args:
        dataset: a name of the table SOURCES.
        transformation: applied to every image.
        n_train: how many training images; None: all.
        n_test: how many test images; None: all.
        seed: of the order.
        data_dir: where the data set lies; None: its own place.
        image_size: the side of square crops from the middle, in pixels; None: as the images are, or 128 if they differ.

    Raises:
        InputError: the data set is unknown.
    """
    if dataset not in SOURCES:
        raise InputError(f"unknown dataset {dataset!r}: {suggest(dataset, SOURCES)}")

    def images(split: str, count: int | None) -> Iterator:
        opened = SOURCES[dataset](split, data_dir)
        size = image_size or (128 if isinstance(opened, Opened) and not opened.is_of_one_size() else None)
        source = prepare_split(
            opened,
            image_size=size,
            channels=None,
            crop_scale=(1.0, 1.0),
            eval_crop="centre",
            min_side=1,
            max_bad_images=len(opened.scan.index) if isinstance(opened, Opened) else 0,
        )
        for index in np.random.default_rng(seed).permutation(len(source))[:count]:
            row = source.take(np.array([index]))
            if row["mask"][0]:
                image = row["image"][0]
                yield transformation(image) if transformation else image, int(row["label"][0])

    return images("train", n_train), images("test", n_test)
