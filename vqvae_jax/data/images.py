"""Splits of images of one size: in memory, or decoded and cropped when a batch is made."""

import hashlib
import threading
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from vqvae_jax.data import prepare, transforms
from vqvae_jax.data.records import Record, Records
from vqvae_jax.data.statistics import Scan, write_removed
from vqvae_jax.data.transforms import BadImage
from vqvae_jax.errors import InputError

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
EVALUATION = 3  # first word of the seeds of evaluation's random crops


@runtime_checkable
class Source(Protocol):
    """One split of a data set; images uint8 [H,W,C] of one shape, by number."""

    @property
    def name(self) -> str: ...

    @property
    def split(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def images_removed(self) -> int: ...

    @property
    def bad(self) -> dict[str, str]: ...

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    @property
    def crop_name(self) -> str: ...

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...

    def draw(self, indices: np.ndarray, uniforms: np.ndarray) -> dict[str, np.ndarray]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class ArraySource:
    """One split in memory: `images` uint8 [N,H,W,C], `labels` int32 [N], and what the labels are called."""

    name: str
    split: str
    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    images_removed: int = 0
    bad: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of every image."""
        return tuple(self.images.shape[1:])

    @property
    def crop_name(self) -> str:
        """Images are taken as they are."""
        return "none"

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Gather a batch: {"image": uint8 [B,H,W,C], "label": int32 [B], "mask": bool [B], all true}."""
        return {"image": self.images[indices], "label": self.labels[indices], "mask": np.ones(len(indices), bool)}

    def draw(self, indices: np.ndarray, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        """Gather a training batch; nothing about it is random."""
        return self.take(indices)

    def fingerprint(self) -> str:
        """A digest of pixels and labels in their order: equal if and only if the data are."""
        digest = hashlib.blake2b(np.ascontiguousarray(self.images).data, digest_size=8)
        digest.update(np.ascontiguousarray(self.labels, np.int32).data)
        return digest.hexdigest()


class Crop(NamedTuple):
    """How images of any size become `size` x `size`: training's share of the area, and evaluation's crop."""

    size: int
    scale: tuple[float, float]
    evaluation: str  # "centre", or "random": training's crop, with randomness fixed by the image's number


@dataclass(frozen=True)
class RecordSource:
    """One split on disk: rows of `scan` are its images, decoded as `mode` and, unless all are of one size, cropped."""

    name: str
    split: str
    records: Records
    scan: Scan
    mode: str
    crop: Crop | None
    images_removed: int
    max_bad_images: int
    bad: dict[str, str] = field(default_factory=dict)  # names and reasons of files that could not be decoded
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return len(self.scan.index)

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the labels are called."""
        return self.records.class_names

    @property
    def labels(self) -> np.ndarray:
        """The class of every image, int32 [N]."""
        return self.scan.labels

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[H, W, C] of every image."""
        if self.crop:
            return self.crop.size, self.crop.size, len(self.mode)
        return int(self.scan.heights.max()), int(self.scan.widths.max()), len(self.mode)

    @property
    def crop_name(self) -> str:
        """How evaluation crops."""
        return self.crop.evaluation if self.crop else "none"

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Read a batch for evaluation: `mask` is False, and the image black, where a file can't be decoded."""
        return self._stack([self._decode(*pair) for pair in self._read(indices)], indices)

    def draw(self, indices: np.ndarray, uniforms: np.ndarray) -> dict[str, np.ndarray]:
        """Read a batch for training, cropped by `uniforms` [B, UNIFORMS]; the next image replaces one that is bad.

        Raises:
            InputError: more than `max_bad_images` can't be decoded, or all.
        """
        images, used = [], np.array(indices)
        for row, (index, record) in enumerate(self._read(indices)):
            image = self._decode(index, record, uniforms[row])
            while image is None:
                used[row] = (used[row] + 1) % len(self)
                if used[row] == index:
                    raise InputError(f"not one image of {self.name}, {self.split}, can be decoded: mend the data")
                image = self._decode(*self._read(used[row : row + 1])[0], uniforms[row])
            images.append(image)
        return self._stack(images, used)

    def fingerprint(self) -> str:
        """A digest of files and labels in their order, and of training's crop."""
        crop = self.crop and (self.crop.size, self.crop.scale)
        digest = hashlib.blake2b(repr((self.mode, crop)).encode(), digest_size=8)
        digest.update(self.scan.digests.tobytes() + self.scan.labels.tobytes())
        return digest.hexdigest()

    def _read(self, indices) -> list[tuple[int, Record]]:
        return list(zip(map(int, indices), self.records.read(self.scan.index[indices]), strict=True))

    def _stack(self, images, indices):
        mask = np.array([image is not None for image in images])
        black = np.zeros(self.image_shape, np.uint8)
        pixels = np.stack([black if image is None else image for image in images])
        return {"image": pixels, "label": self.scan.labels[indices], "mask": mask}

    def _decode(self, index: int, record: Record, uniforms: np.ndarray | None = None) -> np.ndarray | None:
        try:
            image = transforms.decode(record.data, self.mode)
        except BadImage as error:
            self._skip(record.name, str(error))
            return None
        if self.crop is None:
            return transforms.to_array(image)
        size, scale, evaluation = self.crop
        if uniforms is None and evaluation == "centre":
            return transforms.to_array(transforms.centre(image, size))
        if uniforms is None:
            uniforms = np.random.default_rng((EVALUATION, index)).random(transforms.UNIFORMS)
        box = transforms.random_box(*image.size, scale, uniforms)
        return transforms.to_array(transforms.crop_to(image, box, size))

    def _skip(self, name: str, reason: str) -> None:
        with self._lock:
            if name not in self.bad:
                self.bad[name] = reason
                tqdm.write(f"skipped {name}, bad image {len(self.bad)} of at most {self.max_bad_images}: {reason}")
        if len(self.bad) > self.max_bad_images:
            raise InputError(
                f"{len(self.bad)} images of {self.name} can't be decoded, the last one {name} ({reason}): "
                "mend the data, or allow more with data.max_bad_images"
            )


class Opened(NamedTuple):
    """A split whose images have yet to be given one size."""

    name: str
    split: str
    records: Records
    scan: Scan
    channels: int

    def is_of_one_size(self) -> bool:
        """Tell whether all images that have a header have one width and one height."""
        readable = self.scan.widths > 0
        return all(len(np.unique(sides[readable])) < 2 for sides in (self.scan.widths, self.scan.heights))


def prepare_split(
    opened: ArraySource | Opened, *, image_size, channels, crop_scale, eval_crop, min_side, max_bad_images
) -> Source:
    """Give the images of a split one size: cropped to `image_size`, or as they are if that is None.

    Args:
        opened: what an entry of SOURCES gives.
        image_size: side of the square images, in pixels; None: the images as they are, all of one size.
        channels: 1, 3 or 4; None: as the data set has them (3 for folders).
        crop_scale: the smallest and largest share of the area that a training crop takes.
        eval_crop: "centre", or "random": as in training, but always the same for an image.
        min_side: smaller images, in pixels, are left out.
        max_bad_images: how many undecodable files are skipped before training stops.

    Raises:
        InputError: an option doesn't fit the data, or no image is left.
    """
    if isinstance(opened, ArraySource):
        own = opened.image_shape[2]
        if channels not in (None, own):
            raise InputError(f"data.channels is {channels}, the images of {opened.name} have {own}: leave it None")
        if image_size is None:
            return opened
        opened = _as_opened(opened)
    if channels not in (None, *MODES):
        raise InputError(f"data.channels is {channels}: known: 1 (gray), 3 (colour), 4 (colour and alpha)")
    if eval_crop not in ("centre", "random"):
        raise InputError(f"unknown data.eval_crop {eval_crop!r}: known: centre, random")
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise InputError(f"data.crop_scale is {tuple(crop_scale)}: it must be two shares of the area, above 0, up to 1")
    if image_size is not None and image_size < 1:
        raise InputError(f"data.image_size is {image_size}: it must be at least 1, or None for the images as they are")
    short = np.minimum(opened.scan.widths, opened.scan.heights)
    small = (short > 0) & (short < min_side)  # those without a size are found to be damaged when they are read
    if small.any():
        listed = write_removed(opened.records, opened.split, opened.scan.keep(small), min_side)
        where = f": {listed}" if listed else ""
        count = f"{small.sum()} of {len(small)} images"
        print(f"{opened.name}, {opened.split}: {count} left out, a side under {min_side}{where}", flush=True)
    kept = opened.scan.keep(~small)
    if not kept.widths.any():
        raise InputError(
            f"no image of {opened.name}, {opened.split}, has sides of {min_side} or more: lower data.min_side"
        )
    if image_size is None and not opened._replace(scan=kept).is_of_one_size():
        raise InputError(f"the images of {opened.name} differ in size: choose one with data.image_size, e.g. 128")
    crop = Crop(image_size, tuple(crop_scale), eval_crop) if image_size else None
    mode = MODES[channels or opened.channels]
    removed = int(small.sum())
    return RecordSource(opened.name, opened.split, opened.records, kept, mode, crop, removed, max_bad_images)


@dataclass(frozen=True)
class _ArrayRecords:
    """Images in memory as records, for those who want them in another size."""

    source: ArraySource
    cache: None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.source.class_names

    def __len__(self) -> int:
        return len(self.source)

    def read(self, indices: np.ndarray) -> list[Record]:
        return [Record(str(n), prepare.png(self.source.images[n]), int(self.source.labels[n])) for n in indices]

    def fingerprint(self) -> str:
        return self.source.fingerprint()


def _as_opened(source: ArraySource) -> Opened:
    size, (height, width, channels) = len(source), source.image_shape
    rows = np.arange(size)
    widths, heights = (np.full(size, side, np.int32) for side in (width, height))
    digests = np.full(size, int(source.fingerprint(), 16), np.uint64)  # of all images together, which will do
    everything = Scan(rows, rows.astype(str), source.labels, widths, heights, digests)
    return Opened(source.name, source.split, _ArrayRecords(source), everything, channels)
