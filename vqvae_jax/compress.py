"""Folders of images to one `.vqz` file and back; its format: codec/container.py."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from vqvae_jax import pictures
from vqvae_jax.api import Run
from vqvae_jax.codec import container
from vqvae_jax.codec.container import NO_LABEL, Container
from vqvae_jax.codec.entropy import Decoder, Encoder
from vqvae_jax.errors import InputError
from vqvae_jax.pictures import MOST_VALUES
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


@dataclass(frozen=True)
class Sizes:
    """Where the bits of a file are: bytes in all, of the stream, labels and names; images and values (sub-pixels)."""

    total: int
    stream: int
    labels: int
    names: int
    images: int
    values: int


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
    images = pictures.gather(inputs, channels)
    fixed = _fixed_label(run, label, search_label)
    encoder, crcs, labels = Encoder(), [], []

    def tiles() -> Iterator[Tile]:
        for found in images:
            pixels = pictures.load(found)
            labels.append(_best_label(run, pixels, coder.shape) if search_label else fixed)
            yield from cut(pixels, coder.shape, labels[-1])

    total = _number_of_tiles([(image.height, image.width) for image in images], coder.shape)
    pieces = _Pieces([(image.height, image.width) for image in images], coder.shape)
    for batch in _batches(tiles(), coder.batch_size, total, "compress"):
        crcs += [crc(image) for image in pieces.add(encode_tiles(coder, batch, encoder, lossy))]
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
    parts = len(packed.stream), container.BYTES_OF_LABEL * len(packed.labels), container.bytes_of_names(packed)
    return data, Sizes(len(data), *parts, len(images), values)


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


def _best_label(run: Run, pixels: np.ndarray, shape) -> int:
    """Give the class under which the image's codes cost least."""
    tiles = np.stack([tile.pixels for tile in cut(pixels, shape, 0)])
    return int(np.argmax(run.trained_prior().log_prob_of_classes(run.encode(tiles)).sum(axis=0)))


def _batches(tiles: Iterator[Tile], size: int, total: int, title: str) -> Iterator[list[Tile]]:
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
    if pictures.is_there(path) and not overwrite:
        raise InputError(f"{path} is there already: choose another --output, or replace it with --overwrite")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file with --output")
    with pictures.writing(path) as file:  # opened first: who can't write here needn't wait
        data, sizes = compress(run, inputs, **options)
        file.write(data)
    return sizes


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
    there = [path for path in paths if pictures.is_there(path)]
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
            pictures.save(paths[done], image)
            done += 1
    return done
