"""One split of a data set, in memory or on disk, and how its images are given one size."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from vqvae_jax.data import image_files, transforms
from vqvae_jax.data.image_files import MODES, BadImage
from vqvae_jax.errors import InputError, at_least


@dataclass(frozen=True)
class ArraySource:
    """One split in memory: `images` uint8 [N,H,W,C], `labels` int32 [N], and what the labels are called."""

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    images_removed, bad, crop_name = 0, (), "none"  # which vary in a FileSource

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of every image."""
        return tuple(self.images.shape[1:])

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Gather a batch: {"image": uint8 [B,H,W,C], "label": int32 [B], "mask": bool [B], all true}."""
        return {"image": self.images[indices], "label": self.labels[indices], "mask": np.ones(len(indices), bool)}

    def draw(self, indices: np.ndarray, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        """Gather a training batch; nothing about it is random."""
        return self.take(indices)

    def fingerprint(self) -> str:
        """Digest pixels and labels in their order: equal if and only if the data are."""
        return image_files.digest(self.images.tobytes(), self.labels.astype(np.int32).tobytes()).hex()


class Crop(NamedTuple):
    """How images become `size` x `size`: training's share of the area, and evaluation's crop ("centre", "random")."""

    size: int
    scale: tuple[float, float]
    evaluation: str

    def __call__(self, image: Image.Image, row: int, uniforms: np.ndarray | None) -> Image.Image:
        """Crop for training, as `uniforms` say, or without them for evaluation, a `row` in the same way every time."""
        if uniforms is None and self.evaluation == "centre":
            return transforms.centre(image, self.size)
        if uniforms is None:
            uniforms = transforms.random_stream("crop for evaluation", row).random(transforms.UNIFORMS)
        return transforms.crop_to(image, transforms.random_box(*image.size, self.scale, uniforms), self.size)


@dataclass(frozen=True)
class FileSource:
    """One split of encoded images, decoded, and cropped if there is a `crop`, when a batch is made.

    Their names, labels, sizes and digests are in `scan` (see `image_files.scan`), which is kept beside `cache`;
    `fetch` gives an image's name, label and file by its number there.
    """

    name: str
    split: str
    class_names: tuple[str, ...]
    channels: int
    scan: np.ndarray
    fetch: Callable[[int], tuple[str, int, bytes]]
    cache: Path
    crop: Crop | None = None
    images_removed: int = 0
    max_bad_images: int | None = 10**6  # None: `bad` is counted elsewhere
    bad: dict[str, str] = field(default_factory=dict)  # names and reasons of files that could not be decoded

    def __len__(self) -> int:
        return len(self.scan)

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int32 [N]."""
        return self.scan["label"]

    @property
    def crop_name(self) -> str:
        """How evaluation crops: "none", "centre" or "random", which is always the same for an image."""
        return self.crop.evaluation if self.crop else "none"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of every image."""
        if self.crop:
            return self.crop.size, self.crop.size, self.channels
        return int(self.scan["height"].max()), int(self.scan["width"].max()), self.channels

    def of_one_size(self) -> bool:
        """Tell whether all images that have a header have one width and one height."""
        return len(np.unique(self.scan[["width", "height"]][self.scan["width"] > 0])) < 2

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Read a batch for evaluation: `mask` is False, and the image black, where a file can't be decoded."""
        return self._stack([self._read(int(row)) for row in indices], indices)

    def draw(self, indices: np.ndarray, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        """Read a batch for training, cropped by `uniforms` [B, UNIFORMS]; the next image replaces one that is bad.

        InputError if more than `max_bad_images` can't be decoded, or all.
        """
        images, used = [], np.array(indices)
        for n, index in enumerate(indices):
            while (image := self._read(int(used[n]), uniforms[n])) is None:
                used[n] = (used[n] + 1) % len(self)
                if used[n] == index:
                    raise InputError(f"not one image of {self.name}, {self.split}, can be decoded: mend the data")
            images.append(image)
        return self._stack(images, used)

    def fingerprint(self) -> str:
        """Digest files and labels in their order, and training's crop."""
        how = repr((self.channels, self.crop and self.crop[:2])).encode()
        return image_files.digest(how, self.scan["digest"].tobytes(), self.labels.tobytes()).hex()

    def _read(self, row: int, uniforms: np.ndarray | None = None) -> np.ndarray | None:
        try:
            image = image_files.decode(self.fetch(int(self.scan["number"][row]))[2], self.channels)
        except BadImage as error:
            self.note_bad(str(self.scan["name"][row]), str(error))
            return None
        return transforms.to_array(self.crop(image, row, uniforms) if self.crop else image)

    def note_bad(self, name: str, reason: str) -> None:
        """Count a file that can't be decoded, and say so once; InputError if they are more than `max_bad_images`."""
        most, new = self.max_bad_images, name not in self.bad
        self.bad[name] = reason
        if most is None:
            return
        if new:
            tqdm.write(f"skipped {name}, bad image {len(self.bad)} of at most {most}: {reason}")
        if len(self.bad) > most:
            what = f"{len(self.bad)} images of {self.name} can't be decoded, the last one {name} ({reason})"
            raise InputError(f"{what}: mend the data, or allow more with data.max_bad_images")

    def _stack(self, images, indices):
        mask, blank = np.array([image is not None for image in images], bool), np.zeros(self.image_shape, np.uint8)
        pixels = np.stack([blank if image is None else image for image in images]) if images else blank[None][:0]
        return {"image": pixels, "label": self.labels[indices], "mask": mask}


Source = ArraySource | FileSource  # which have the same attributes and methods


def _fetch_image(source: ArraySource, number: int) -> tuple[str, int, bytes]:
    return str(number), int(source.labels[number]), image_files.encode(source.images[number])


def as_files(source: Source) -> FileSource:
    """Give images in memory as if they were files, so that they can be cropped."""
    if isinstance(source, FileSource):
        return source
    height, width, channels = source.image_shape
    found = zip(source.labels, image_files.digests(source.images), strict=True)
    rows = [(n, f"{source.split}/{n}", label, width, height, digest) for n, (label, digest) in enumerate(found)]
    fetch, cache = partial(_fetch_image, source), image_files.cache_of(source.name)
    return FileSource(source.name, source.split, source.class_names, channels, image_files.as_scan(rows), fetch, cache)


def prepare_split(
    source: Source, *, max_bad_images, image_size=None, channels=None, crop_scale=(1, 1), eval_crop="centre", min_side=1
) -> Source:
    """Give the images of a split, as SOURCES has it, one size; the options are those of config.data.

    InputError if an option is out of range or doesn't fit the data, or if no image is left.
    """
    side = 1 if image_size is None else image_size  # None: as they are
    at_least("data", image_size=(side, 1), min_side=(min_side, 1), max_bad_images=(max_bad_images, 0))
    if channels not in (None, *MODES):
        raise InputError(f"data.channels is {channels}: known: 1 (gray), 3 (colour), 4 (colour and alpha)")
    if eval_crop not in ("centre", "random"):
        raise InputError(f"unknown data.eval_crop {eval_crop!r}: known: centre, random")
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise InputError(f"data.crop_scale is {tuple(crop_scale)}: it must be two shares of the area, above 0, up to 1")
    if isinstance(source, ArraySource):
        own = source.image_shape[2]
        if channels not in (None, own):
            raise InputError(f"data.channels is {channels}, the images of {source.name} have {own}: leave it None")
        if image_size is None:
            return source
    crop = Crop(image_size, tuple(crop_scale), eval_crop) if image_size else None
    files = _without_small(as_files(source), min_side)
    files = replace(files, channels=channels or files.channels, crop=crop, max_bad_images=max_bad_images)
    if image_size is None and not files.of_one_size():
        raise InputError(f"the images of {source.name} differ in size: choose one with data.image_size, e.g. 128")
    return files


def _without_small(files: FileSource, min_side: int) -> FileSource:
    """Leave out images with a side below `min_side` pixels, and list them beside the scan."""
    short, which = np.minimum(files.scan["width"], files.scan["height"]), f"{files.name}, {files.split}"
    small = (short > 0) & (short < min_side)  # those without a size are found to be damaged when they are read
    if not (short >= min_side).any():
        raise InputError(f"no image of {which}, has sides of {min_side} or more: lower data.min_side")
    if small.any():
        path = Path(f"{files.cache}_{files.split}_removed_below_{min_side}.txt")
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(f"{row['name']} {row['width']}x{row['height']}\n" for row in files.scan[small]))
        print(f"{which}: {small.sum()} of {len(small)} images left out, a side under {min_side}: {path}", flush=True)
    return replace(files, scan=files.scan[~small], images_removed=int(small.sum()))
