"""Where images come from: one table of named data sets, each split into train, validation and test.

Small sets are decoded once and kept in memory. An image's place in its split depends on its pixels or its name alone,
so neither the way a data set was prepared nor the machine changes a run.
"""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae_jax.data import image_files, prepare, transforms
from vqvae_jax.data.image_files import SUFFIXES
from vqvae_jax.data.splits import ArraySource, FileSource, Source, as_files, prepare_split
from vqvae_jax.errors import InputError, suggest

SPLITS = ("train", "validation", "test")


def check_split(split: str) -> None:
    """Raise InputError unless `split` is a known one."""
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: known: {', '.join(SPLITS)}")


def in_content_order(name: str, split: str, images: np.ndarray, labels, class_names: tuple[str, ...]) -> ArraySource:
    """Sort images by a digest of their pixels: an order that is random to the eye and the same everywhere."""
    order = np.argsort(image_files.digests(images), kind="stable")
    return ArraySource(name, split, images[order], np.array(labels, np.int32)[order], class_names)


@lru_cache(maxsize=2)
def _tfds_arrays(name: str, split: str, data_dir: str | None) -> ArraySource:
    files = replace(_tfds_files(name, split, data_dir), max_bad_images=0)
    batch = files.take(np.argsort(files.scan["number"]))
    return in_content_order(name, split, batch["image"], batch["label"], files.class_names)


def _fetch_row(dataset, number: int) -> tuple[str, int, bytes]:  # which goes to other processes by its name
    row = dataset[number]
    return row.get("file_name", row.get("id", b"")).decode(), int(row["label"]), row["image"]


def _tfds_files(name: str, split: str, data_dir: str | None) -> FileSource:
    dataset, class_names, channels, folder = prepare.open_dataset(name, split, data_dir)
    fetch = partial(_fetch_row, dataset)
    cache = image_files.cache_of(str(folder.resolve()), split)
    scan = image_files.scan(fetch, len(dataset), sorted(folder.glob("*.array_record*")), cache)
    return FileSource(name, split, class_names, channels, scan, fetch, cache)


def open_tfds(name: str, split: str, data_dir: str | None, *, read: Callable, test: str, validation: int) -> Source:
    """Open a split of a TFDS data set, with one of the functions above.

    Of its split "train" the first images by digest, `validation` or a tenth if that is less, are for validation;
    `test` is its name of the labelled images that are not for training.
    """
    check_split(split)
    opened = read(name, test if split == "test" else "train", data_dir)
    held = min(validation, len(opened) // 10)
    rows = {"train": slice(held, None), "validation": slice(held), "test": slice(None)}[split]
    if isinstance(opened, FileSource):
        return replace(opened, split=split, scan=opened.scan[rows])
    return replace(opened, split=split, images=opened.images[rows], labels=opened.labels[rows])


FOLDER_SHARES = {"test": (0.0, 0.1), "validation": (0.1, 0.2), "train": (0.2, 1.0)}


def hash_share(name: str) -> float:
    """Map a name to a number that looks uniform in [0, 1) and never changes."""
    return int.from_bytes(image_files.digest(os.fsencode(name)), "big") / 2**64


def _fetch_file(root: Path, names: list, labels: list, number: int) -> tuple[str, int, bytes]:
    with contextlib.suppress(OSError):
        return names[number], labels[number], (root / names[number]).read_bytes()
    return names[number], labels[number], b""


def folder(split: str, data_dir: str | None) -> FileSource:
    """Any tree of images: a tenth each for test and validation, by a hash of the relative path.

    Classes are the sub-folders, if every image lies in one. Hidden files do not count; others that are no images by
    their suffix are counted when training opens the folder. InputError if it isn't there, or has too few images.
    """
    check_split(split)
    if data_dir is None:
        raise InputError("the data set 'folder' needs --data_dir=DIR, the folder of your images")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise InputError(f"no data folder {root}: name the one that holds your images with --data_dir")
    files = [path for path in image_files.files_below(root) if not any(part.startswith(".") for part in path.parts)]
    names = [path.as_posix() for path in files if path.suffix.lower() in SUFFIXES]
    if not names:
        raise InputError(f"no images in {root}: known are files ending in {', '.join(sorted(SUFFIXES))}")
    others = {path: path.suffix.lower() or "without suffix" for path in files if path.suffix.lower() not in SUFFIXES}
    if others and split == "train":
        first = {suffix: path for path, suffix in reversed(others.items())}
        counts = Counter(others.values()).most_common(image_files.NAMED)
        kinds = ", ".join(f"{count} {suffix} ({first[suffix]})" for suffix, count in counts)
        print(f"{root}: {len(others)} files are left out, no images by their suffix: {kinds}", flush=True)
    classes = sorted({name.split("/")[0] for name in names}) if all("/" in name for name in names) else ["image"]
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers.get(name.split("/")[0], 0) for name in names]
    fetch = partial(_fetch_file, root, names, labels)
    cache = image_files.cache_of(str(root.resolve()))
    scan = image_files.scan(fetch, len(names), [root / name for name in names], cache)
    low, high = FOLDER_SHARES[split]
    rows = np.array([low <= hash_share(name) < high for name in scan["name"].tolist()])
    if not rows.any():
        raise InputError(f"{len(rows)} images in {data_dir} are too few: none falls to the {split} split")
    return FileSource("folder", split, tuple(classes), 3, scan[rows], fetch, cache)


PHOTOS = ("astronaut", "chelsea", "coffee", "rocket", "motorcycle")
PHOTO_FILES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
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
    width, height = photograph.size
    left, top, right, bottom = PHOTO_REGIONS[split]
    region = photograph.crop((round(left * width), round(top * height), round(right * width), round(bottom * height)))
    crops = []
    for scale in PHOTO_SCALES:
        small = np.asarray(region.reduce(scale))
        rows, columns = (range(0, side - PHOTO_SIZE + 1, PHOTO_STRIDES[split]) for side in small.shape[:2])
        crops += [small[y : y + PHOTO_SIZE, x : x + PHOTO_SIZE] for y in rows for x in columns]
    return crops


def photos(split: str, data_dir: str | None) -> ArraySource:
    """32x32 crops of five photographs that ship inside scikit-image, or lie in `data_dir`; the label is the photograph.

    The splits are cut from three regions of every photograph that share no pixel.
    """
    import skimage

    check_split(split)
    folder = Path(data_dir) if data_dir else Path(skimage.__file__).parent / "data"
    try:
        photographs = [Image.open(folder / file).convert("RGB") for file in PHOTO_FILES]
    except FileNotFoundError as error:
        what = f"no photograph {error.filename}"
        raise InputError(f"{what}: reinstall scikit-image, or leave --data_dir out for photos") from error
    crops = [photo_crops(photograph, split) for photograph in photographs]
    labels = np.repeat(np.arange(len(PHOTOS)), [len(of_one) for of_one in crops])
    return in_content_order("photos", split, np.concatenate(crops), labels, PHOTOS)


_small = partial(open_tfds, read=_tfds_arrays, test="test", validation=5000)
_large = partial(open_tfds, read=_tfds_files, test="validation", validation=10_000)
SOURCES: dict[str, Callable[[str, str | None], Source]] = {
    "cifar10": partial(_small, "cifar10"),
    "fashion_mnist": partial(_small, "fashion_mnist"),
    "folder": folder,
    "imagenet2012": partial(_large, "imagenet2012"),
    "imagenet_resized/32x32": partial(_large, "imagenet_resized/32x32"),
    "imagenet_resized/64x64": partial(_large, "imagenet_resized/64x64"),
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
    """Give two lazy generators of (image, label), `n_train` and `n_test` (None: all), for notebooks.

    Images are uint8 [H,W,C], or what `transformation` makes of them; labels are int. Nothing is read before the first
    one is asked for; the order is shuffled by `seed`, and no image is in both.

    `dataset` is a name of the table SOURCES (another is an InputError), which lies in `data_dir` (None: its own place).
    `image_size` is the side of crops from the middle, in pixels; None: as the images are, or 128 if they differ.
    """
    if dataset not in SOURCES:
        raise InputError(f"unknown dataset {dataset!r}: {suggest(dataset, SOURCES)}")

    def images(split: str, count: int | None) -> Iterator:
        opened = SOURCES[dataset](split, data_dir)
        size = image_size or (None if as_files(opened).of_one_size() else 128)
        source = prepare_split(opened, image_size=size, max_bad_images=len(opened))
        for row in transforms.random_stream(f"load_data {split}", seed).permutation(len(source))[:count]:
            batch = source.take(np.array([row]))
            if batch["mask"][0]:
                image = batch["image"][0]
                yield transformation(image) if transformation else image, int(batch["label"][0])

    return images("train", n_train), images("test", n_test)
