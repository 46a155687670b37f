"""Folders of images to one `.vqz` file and back: which files, in what order, what is checked; codec/container.py."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from vqvae_jax.api import Run
from vqvae_jax.codec import container
from vqvae_jax.codec.container import NO_LABEL, Container
from vqvae_jax.codec.entropy import Decoder, Encoder
from vqvae_jax.data.images import MODES
from vqvae_jax.errors import InputError
from vqvae_jax.learned import Learned
from vqvae_jax.tiles import (
    Tile,
    TileCoder,
    corners,
    crc,
    cut,
    decode_tiles,
    encode_tiles,
    environment,
    fingerprint,
)

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LONGEST_SIDE = 65535
# Of one image; a forged size must not take all memory.
MOST_VALUES = 2**28


class Found(NamedTuple):
    """An image to be coded: what it is called in the file, where it lies, its height and width."""

    name: str
    path: Path
    height: int
    width: int


@dataclass(frozen=True)
class Sizes:
    """Where the bits of a file are: bytes in all, of the stream, and of names; images and values (sub-pixels)."""

    total: int
    stream: int
    names: int
    images: int
    values: int


def gather(inputs: list[str], channels: int) -> list[Found]:
    """Find the images in folders and among files, ordered by size, then by name.

    Raises:
        InputError: there are none, two would have one name, or one isn't 8-bit gray or RGB as the model needs it.
    """
    listed: dict[str, Path] = {}
    for given in map(Path, inputs):
        try:
            files = sorted(p for p in given.rglob("*") if p.suffix.lower() in SUFFIXES) if given.is_dir() else [given]
        except OSError as error:
            raise InputError(f"cannot read {given}: {error.strerror or error}") from error
        for path in files:
            name = str((path.relative_to(given) if given.is_dir() else Path(path.name)).with_suffix(".png").as_posix())
            container.check_name(name)
            if name in listed:
                raise InputError(f"{listed[name]} and {path} would both be {name}: rename one")
            listed[name] = path
    if not listed:
        raise InputError(f"no images in {', '.join(inputs) or 'nothing'}: name folders or files with --input")
    found = [Found(name, path, *_check_image(path, channels)) for name, path in listed.items()]
    return sorted(found, key=lambda image: (image.height, image.width, image.name))


def _check_image(path: Path, channels: int) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            mode, (width, height), more = image.mode, image.size, _lost(image)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or 'it is no image'}") from error
    except Exception as error:  # Pillow has many, e.g. of pictures that are too large
        raise InputError(f"cannot read {path}: {error}") from error
    if mode != MODES[channels]:
        raise InputError(f"{path} has the mode {mode}, this model takes {MODES[channels]} alone (8 bits): convert it")
    if more:
        raise InputError(f"{path} has {more}, which would be lost: convert it")
    if max(height, width) > LONGEST_SIDE or height * width * channels > MOST_VALUES:
        raise InputError(f"{path} is too large, {width}x{height}: cut it into parts")
    return height, width


def _lost(image: Image.Image) -> str | None:
    """Say what an image has that its 8-bit array doesn't."""
    tiles = getattr(image, "tile", [])
    coding = [word for tile in tiles for word in (tile[3] if isinstance(tile[3], tuple) else (tile[3],))]
    if any(";16" in str(word) or (image.format == "PPM" and isinstance(word, int) and word != 255) for word in coding):
        return "levels that aren't of 8 bits"
    if image.has_transparency_data and image.mode != "RGBA":
        return "a transparent colour"
    return "more than one picture" if getattr(image, "n_frames", 1) > 1 else None


def _load(found: Found) -> np.ndarray:
    try:
        with Image.open(found.path) as image:
            pixels = np.asarray(image)
    except Exception as error:  # Pillow has many
        raise InputError(f"cannot read {found.path}: {error}") from error
    return pixels.reshape(found.height, found.width, -1)


def compress(
    run: Run, inputs: list[str], *, lossy: bool = False, label: int | None = None, search_label: bool = False
) -> tuple[bytes, Sizes]:
    """Code images with a run: give the file and where its bits are.

    Args:
        run: a finished run with codes.
        inputs: folders and image files.
        lossy: keep the codes alone.
        label: the class of all images, for a prior that needs one.
        search_label: try all classes for every image, and store the best one.

    Raises:
        InputError: an image can't be coded, or a label is asked of a prior that knows none.
    """
    coder, channels = TileCoder(run), run.meta["image_shape"][2]
    images = gather(inputs, channels)
    fixed = _fixed_label(run, label, search_label)
    encoder, crcs, labels = Encoder(), [], []

    def tiles() -> Iterator[tuple[int, Tile]]:
        for number, found in enumerate(images):
            pixels = _load(found)
            best = _best_label(run, run.learned, pixels, coder.shape) if search_label and run.learned else fixed
            labels.append(best)
            for tile in cut(pixels, coder.shape, labels[-1]):
                yield number, tile

    total = _number_of_tiles([(image.height, image.width) for image in images], coder.shape)
    pieces = _Pieces([(image.height, image.width) for image in images], coder.shape)
    for batch in _batches(tiles(), coder.batch_size, total, "compress"):
        coded = encode_tiles(coder, [tile for _, tile in batch], encoder, lossy)
        crcs += [crc(image) for image in pieces.add(coded)]
    sizes = [(*size, len(list(group))) for size, group in itertools.groupby((i.height, i.width) for i in images)]
    packed = Container(
        lossy=lossy,
        label=NO_LABEL if search_label or not (run.learned and run.learned.prior.num_classes) else fixed,
        model=fingerprint(run),
        environment=environment(),
        names=[image.name for image in images],
        sizes=sizes,
        labels=labels if search_label else [],
        crcs=crcs,
        stream=encoder.finish(),
    )
    data = container.pack(packed)
    values = sum(image.height * image.width * channels for image in images)
    return data, Sizes(len(data), len(packed.stream), container.bytes_of_names(packed), len(images), values)


def _fixed_label(run: Run, label: int | None, search: bool) -> int:
    classes = run.learned.prior.num_classes if run.learned else 0
    if not classes:
        if label is not None or search:
            raise InputError("this run's prior knows no classes: leave out --class and --search_label")
        return 0
    if label is not None and search:
        raise InputError("--class and --search_label say two things: leave out one")
    if run.learned and run.learned.prior.label_dropout and label is None:
        return classes  # "none"
    if label is None and not search:
        raise InputError("this run's prior knows classes: name one with --class, or let --search_label try all")
    return label or 0


def _best_label(run: Run, learned: Learned, pixels: np.ndarray, shape) -> int:
    """Give the class under which the image's codes cost least."""
    tiles = np.stack([tile.pixels for tile in cut(pixels, shape, 0)])
    codes = run.encode(tiles)
    classes = learned.prior.num_classes
    costs = [-learned.log_prob(codes, np.full(len(codes), label)).sum() for label in range(classes)]
    return int(np.argmin(costs))


def _batches(tiles: Iterator, size: int, total: int, title: str) -> Iterator[list]:
    with tqdm(total=total, desc=title, unit=" tiles") as bar:
        for batch in iter(lambda: list(itertools.islice(tiles, size)), []):
            yield batch
            bar.update(len(batch))


def _number_of_tiles(sizes: list[tuple[int, int]], shape) -> int:
    return sum(-(-height // shape[0]) * -(-width // shape[1]) for height, width in sizes)


class _Pieces:
    """Puts images together from tiles that come in order."""

    def __init__(self, sizes: list[tuple[int, int]], shape):
        self._sizes, self._shape = iter(sizes), shape
        self._next()

    def _next(self):
        size = next(self._sizes, (0, 0))
        self._image = np.zeros((*size, self._shape[2]), np.uint8)
        self._corners = iter(corners(*size, self._shape))
        self._corner = next(self._corners, None)

    def add(self, tiles: np.ndarray) -> Iterator[np.ndarray]:
        """Take more tiles, and give the images that are complete now."""
        for tile in tiles:
            assert self._corner is not None
            top, left = self._corner
            part = self._image[top : top + self._shape[0], left : left + self._shape[1]]
            part[:] = tile[: part.shape[0], : part.shape[1]]
            self._corner = next(self._corners, None)
            if self._corner is None:
                yield self._image
                self._next()


def compress_to(run: Run, inputs: list[str], path: str | Path, *, overwrite: bool = False, **options) -> Sizes:
    """Write what `compress` gives to a file, which appears whole or not at all.

    Raises:
        InputError: the file is there already, can't be written, or an image can't be coded.
    """
    path = Path(path)
    if _is_there(path) and not overwrite:
        raise InputError(f"{path} is there already: choose another --output, or replace it with --overwrite")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file with --output")
    with _replacing(path) as file:  # opened first: who can't write here needn't wait
        data, sizes = compress(run, inputs, **options)
        file.write(data)
    return sizes


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"cannot look at {path}: {error.strerror or error}; choose another --output") from error


@contextlib.contextmanager
def _replacing(path: Path):
    """Give a file to write to that takes its place when all is written, and is gone if it never is."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_file(path: str) -> bytes:
    """Read a file; InputError if it can't be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def decompress(run: Run, data: bytes, folder: str | Path, *, overwrite: bool = False) -> int:
    """Write all images of a file to a folder, as PNG under their names; give their number.

    Raises:
        InputError: the file is damaged, of another run or (lossless) made where programs compute otherwise, or
            a picture is there already.
    """
    packed = container.unpack(data)
    if packed.model != fingerprint(run):
        raise InputError("this file was made with another run: name that one with --workdir")
    if packed.environment != environment():
        raise InputError(
            "this file was made on a machine or with libraries that compute otherwise in the last digits, so it can't "
            "be decoded here: decode it there, or install the versions with which it was made"
        )
    coder, channels = TileCoder(run), run.meta["image_shape"][2]
    if any(height * width * channels > MOST_VALUES for height, width, _ in packed.sizes):
        raise InputError("this file contradicts itself: an image is larger than any that can be stored")
    folder = Path(folder)
    paths = [folder / name for name in packed.names]
    there = [path for path in paths if _is_there(path)]
    if there and not overwrite:
        raise InputError(f"{there[0]} is there already: choose another --output, or replace with --overwrite")
    sizes = [(height, width) for height, width, number in packed.sizes for _ in range(number)]
    classes = run.learned.prior.num_classes if run.learned else 0
    known = classes + bool(run.learned and run.learned.prior.label_dropout)
    labels = packed.labels or [0 if packed.label == NO_LABEL else packed.label] * len(sizes)
    if labels and max(labels) >= max(1, known):
        raise InputError("this file contradicts itself: it names a class that its run doesn't know")

    def tiles() -> Iterator[Tile]:
        for (height, width), label in zip(sizes, labels, strict=True):
            for top, left in corners(height, width, coder.shape):
                yield Tile(min(coder.shape[0], height - top), min(coder.shape[1], width - left), label)

    decoder, pieces, done = Decoder(packed.stream), _Pieces(sizes, coder.shape), 0
    total = _number_of_tiles(sizes, coder.shape)
    for batch in _batches(tiles(), coder.batch_size, total, "decompress"):
        for image in pieces.add(decode_tiles(coder, batch, decoder, packed.lossy)):
            if crc(image) != packed.crcs[done]:
                raise InputError(
                    f"{packed.names[done]} does not come back as it was: this file is damaged, or was made where "
                    "programs compute otherwise in the last digits"
                )
            with _replacing(paths[done]) as file:
                Image.fromarray(image[..., 0] if channels == 1 else image).save(file, format="PNG")
            done += 1
    return done
