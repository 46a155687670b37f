"""Folders of images to one `.vqz` file and back; its format: codec/container.py."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vqvae_jax.codec import container
from vqvae_jax.codec.container import NO_LABEL, Container
from vqvae_jax.codec.entropy import Decoder, Encoder
from vqvae_jax.codec.environment import differences, environment
from vqvae_jax.codec.tiles import Picture, TileCoder
from vqvae_jax.data import image_files
from vqvae_jax.data.image_files import MOST_VALUES, Found
from vqvae_jax.errors import InputError
from vqvae_jax.run import Run
from vqvae_jax.training import checkpoint


class Sizes(NamedTuple):
    """Bytes of a file: in all, of codes and pixels, labels, names; its images, sub-pixels, and bytes as PNG files."""

    total: int
    stream: float
    labels: float
    names: int
    images: int
    values: int
    png: int
    left_out: list[tuple[Path, str]]  # files that were skipped, and why


def fingerprint(run: Run) -> bytes:
    """Give 8 bytes that say which image model and prior a file needs, with all that was counted for them."""
    learned = run.learned.variables if run.learned else {}
    return bytes.fromhex(checkpoint.digest({"model": run.variables, "prior": learned}))


def compress(
    run: Run,
    inputs: list[str],
    *,
    lossy: bool = False,
    label: int | None = None,
    search_label: bool = False,
    skip: bool = False,
) -> tuple[bytes, Sizes]:
    """Code images, in folders or by themselves, with a finished run: give the file and where its bytes are.

    `lossy` keeps the codes alone. `label` is the class of all images, for a prior that needs one; `search_label` tries
    all classes for every image, and stores the one with which it costs least. `skip` leaves out images that can't be
    coded, which otherwise are an InputError, as is a label that the prior doesn't know.
    """
    tiles, encoder, png = TileCoder(run), Encoder(), []
    found, left_out = image_files.gather(inputs, tiles.shape[2], skip=skip)
    fixed = _fixed_label(tiles.prior, label, search_label)
    labels, cost = _coded_labels(tiles, found, encoder) if search_label else ([fixed] * len(found), 0.0)

    def pictures() -> Iterator[Picture]:
        for image, of_image in zip(found, labels, strict=True):
            pixels, file = image_files.load(image), image_files.read_file(str(image.path))
            png.append(len(file if file.startswith(b"\x89PNG") else image_files.encode(pixels, optimize=True)))
            yield Picture(pixels, of_image)

    shapes = [(image.height, image.width) for image in found]
    packed = Container(
        lossy=lossy,
        labels=search_label,
        label=fixed,
        model=fingerprint(run),
        environment=environment(),
        names=[image.name for image in found],
        sizes=[(*shape, len(list(same))) for shape, same in itertools.groupby(shapes)],
        crcs=[crc for crc, _ in tiles.code(pictures(), shapes, encoder, lossy=lossy, title="compress")],
        stream=encoder.finish(),
    )
    data, values = container.pack(packed), tiles.shape[2] * sum(map(math.prod, shapes))
    stream, names = len(packed.stream) - cost, len(container.deflated(packed.names))
    return data, Sizes(len(data), stream, cost, names, len(found), values, sum(png), left_out)


def _fixed_label(prior, label: int | None, search: bool) -> int:
    """Give the label of all images: the one that is asked for, the one that means none, or NO_LABEL."""
    if not prior.num_classes and (label is not None or search):
        raise InputError("this run's prior knows no classes: leave out --class and --search_label")
    if label is not None and search:
        raise InputError("--class and --search_label say two things: leave out one")
    if search or not prior.num_classes:
        return NO_LABEL
    if label is None and not prior.label_dropout:
        raise InputError("this run's prior knows classes: name one with --class, or let --search_label try all")
    return prior.num_classes if label is None else label


def _coded_labels(tiles: TileCoder, found: list[Found], encoder: Encoder) -> tuple[list[int], float]:
    """Code the class of every image under which it and its class cost least; give them, and their bytes in all."""
    learned, labels = tiles.run.trained_prior(), []
    log_frequencies = np.asarray(learned.variables["fitted"]["log_class_frequencies"], np.float64)
    for image in found:
        shown = [tiles.padded(tile.pixels) for tile in tiles.cut(Picture(image_files.load(image), 0))]
        log_prob = learned.log_prob_of_classes(tiles.run.encode(np.stack(shown)))
        labels.append(int(np.argmax(log_prob.sum(axis=0, dtype=np.float64) + log_frequencies)))
    tiles.code_labels(labels, encoder)
    return labels, -float(np.sum(log_frequencies[labels])) / math.log(256)


def compress_to(
    run: Run, inputs: list[str], path: str | Path, *, overwrite: bool = False, verify: bool = True, **options
) -> Sizes:
    """Write what `compress` gives, with its options, to a file, which appears whole or not at all.

    With `verify` it appears once it was decoded and all its checksums were right. It is an InputError if the file is
    there already, can't be written or verified, or an image can't be coded.
    """
    path = Path(path)
    if image_files.is_there(path) and not overwrite:
        raise InputError(f"{path} is there already: choose another --output, or replace it with --overwrite")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file with --output")
    with image_files.writing(path) as file:  # opened first: who can't write here needn't wait
        data, sizes = compress(run, inputs, **options)
        if verify:
            try:
                for _ in _images(TileCoder(run), container.unpack(data), "verify"):
                    pass
            except InputError as error:
                raise InputError(f"nothing is written, for the file doesn't decode here: {error}") from error
        file.write(data)
    return sizes


def decompress(run: Run, data: bytes, folder: str | Path, *, overwrite: bool = False) -> int:
    """Write all images of a file to a folder, as PNG under their names; give their number.

    A file that was made where programs may compute otherwise is decoded as far as its checksums hold. It is an
    InputError if the file is damaged, of another run, or doesn't decode here, or a picture is there already.
    """
    packed = container.unpack(data)
    if packed.model != fingerprint(run):
        raise InputError("this file was made with another run: name that one with --workdir")
    paths = [Path(folder) / name for name in packed.names]
    for path in paths:
        if not path.parent.resolve().is_relative_to(Path(folder).resolve()):
            raise InputError(f"{path} would lie outside of {folder}, where a link leads: choose another --output")
    there = [path for path in paths if image_files.is_there(path)]
    if there and not overwrite:
        raise InputError(f"{there[0]} is there already: choose another --output, or replace with --overwrite")
    tiles, differs = TileCoder(run), differences(packed.environment, environment())
    if differs and not packed.lossy:
        print(f"this file was made elsewhere ({differs}): trying, its checksums tell")
    images = _images(tiles, packed, "decompress")
    for path in paths:
        try:
            image = next(images)
        except InputError as error:
            made = f"; it was made elsewhere ({differs}): decode it there" if differs else ""
            raise InputError(f"{error}{made}") from error
        image_files.save(path, image)
    return len(paths)


def _images(tiles: TileCoder, packed: Container, title: str) -> Iterator[np.ndarray]:
    """Give the images of a file; InputError if one isn't what it was."""
    if any(height * width * tiles.shape[2] > MOST_VALUES for height, width, _ in packed.sizes):
        raise InputError("this file contradicts itself: an image is larger than any that can be stored")
    known = tiles.prior.num_classes + bool(tiles.prior.label_dropout)
    of_all = range(known) if known and not packed.labels else (NO_LABEL,)
    if packed.label not in of_all or (packed.labels and not known):
        raise InputError("this file contradicts itself: it names a class that its run doesn't know")
    labels, decoder = [packed.label] * len(packed.names), Decoder(packed.stream)
    labels = tiles.code_labels(labels, decoder) if packed.labels else labels
    shapes = [(height, width) for height, width, number in packed.sizes for _ in range(number)]
    blank = (np.broadcast_to(np.uint8(0), (*shape, tiles.shape[2])) for shape in shapes)
    decoded = tiles.code(map(Picture, blank, labels), shapes, decoder, lossy=packed.lossy, title=title)
    for (crc, image), expected, name in zip(decoded, packed.crcs, packed.names, strict=True):
        if crc != expected:
            raise InputError(f"{name} does not come back as it was: this file is damaged")
        yield image
