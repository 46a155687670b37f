"""The file format `.vqz`: what is in it, byte by byte, and how a file is read that may be damaged or hostile.

All numbers are little-endian.

    4   magic "VQZ2": 2 is the version of the format
    1   flags: 1 = lossy (codes alone), 2 = the stream begins with a label of each image
    2   label of all images, 65535 = none
    8   fingerprint of the image model and its prior
    16  bytes of each of the four parts that follow
    …   environment, zlib: lines, what decoding depends on besides the run
    …   names, zlib: relative paths separated by line feeds, in the order of the images
    …   for each size: height (2), width (2), number of images (4); the images are ordered by size
    …   for each image a CRC-32 (4): of its pixels, row by row; in a lossy file of its codes, int32, tile by tile
    …   the stream of the range coder
    8   BLAKE2b of everything before

A reader checks the checksum first, and every count against the length of the file before it allocates anything.
"""

import hashlib
import struct
import zlib
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from vqvae_jax.errors import InputError

MAGIC, NO_LABEL = b"VQZ2", 65535
LOSSY, LABELS = 1, 2
HEAD = struct.Struct("<4sBH8s4I")
CHECKSUM = 8
LONGEST_NAME, LONGEST_PART = 1024, 250  # bytes of a path, and of one of its parts
MOST_BYTES_OF_NAMES, MOST_BYTES_OF_ENVIRONMENT = 2**26, 2**14  # inflated


class Container(NamedTuple):
    """Everything in a file: `sizes` are (height, width, number of images)."""

    lossy: bool
    labels: bool
    label: int
    model: bytes
    environment: list[str]
    names: list[str]
    sizes: list[tuple[int, int, int]]
    crcs: list[int]
    stream: bytes


def checksum(data: bytes) -> bytes:
    """Give the checksum at the end of a file."""
    return hashlib.blake2b(data, digest_size=CHECKSUM).digest()


def pack(container: Container) -> bytes:
    """Write a file; InputError if there are longer names in all than the format has room for."""
    c = container
    if len("\n".join(c.names).encode()) > MOST_BYTES_OF_NAMES:
        raise InputError("these are more names of images than one file can hold: make several")
    parts = [write(getattr(c, name)) for name, (write, _) in PARTS.items()]
    head = HEAD.pack(MAGIC, LOSSY * c.lossy + LABELS * c.labels, c.label, c.model, *map(len, parts))
    data = b"".join([head, *parts, c.stream])
    return data + checksum(data)


def unpack(data: bytes) -> Container:
    """Read a file; InputError if it isn't one, is of another version, damaged, or names files outside a folder."""
    if len(data) < HEAD.size + CHECKSUM or data[:3] != MAGIC[:3]:
        raise InputError("this is no .vqz file, or the beginning of one")
    if data[:4] != MAGIC:
        version = "0.1, which made it" if data[:4] == b"VQZ1" else "of a later version"
        raise InputError(f"this file is of another format, {data[:4]!r}: decompress it with vqvae_jax {version}")
    if checksum(data[:-CHECKSUM]) != data[-CHECKSUM:]:
        raise InputError("this file is damaged: its checksum is wrong; get it again")
    _, flags, label, model, *lengths = HEAD.unpack_from(data)
    at, end = HEAD.size, len(data) - CHECKSUM
    if sum(lengths) > end - at:
        raise InputError("this file contradicts itself: it is shorter than it says")
    found, count = {}, lengths[-1] // 4
    for (name, (_, read)), length in zip(PARTS.items(), lengths, strict=True):
        try:
            found[name] = read(data[at : at + length], count)
        except (zlib.error, ValueError) as error:
            raise InputError(f"this file contradicts itself: its {name} can't be read: {error}") from error
        at += length
    if sum(number for _, _, number in found["sizes"]) != count or any(0 in size for size in found["sizes"]):
        raise InputError("this file contradicts itself: its sizes are not those of its images")
    return Container(bool(flags & LOSSY), bool(flags & LABELS), label, model, **found, stream=data[at:end])


def deflated(lines: list[str]) -> bytes:
    """Give the bytes of a part of a file that is text."""
    return zlib.compress("\n".join(lines).encode(), 9)


def _inflated(packed: bytes, limit: int) -> list[str]:
    inflate = zlib.decompressobj()
    text = inflate.decompress(packed, limit).decode()
    if not inflate.eof:
        raise ValueError("the text ends early, or is longer than any")
    return text.split("\n") if text else []


def _names(packed: bytes, count: int) -> list[str]:
    names = _inflated(packed, min((count + 1) * LONGEST_NAME, MOST_BYTES_OF_NAMES))
    if len(names) != count or len(set(names)) != count:
        raise ValueError("they are not those of its images")
    for name in names:
        check_name(name)
    return names


def _rows(dtype: str):
    return lambda rows: np.array(rows, dtype).tobytes(), lambda data, count: np.frombuffer(data, dtype).tolist()


# How each part is written, and read in a file of `count` images.
PARTS = {
    "environment": (deflated, lambda data, count: _inflated(data, MOST_BYTES_OF_ENVIRONMENT)),
    "names": (deflated, _names),
    "sizes": _rows("<u2,<u2,<u4"),
    "crcs": _rows("<u4"),
}


def check_name(name: str) -> None:
    """Raise InputError unless a name is a relative path that stays in its folder."""
    path = PurePosixPath(name)
    # What isn't UTF-8 on disk reads as halves of surrogate pairs.
    strange = any(c < " " or c in '\\:*?"<>|' or "\ud800" <= c <= "\udfff" for c in name)
    long = [len(name.encode(errors="replace")) > LONGEST_NAME]
    long += [len(part.encode(errors="replace")) > LONGEST_PART for part in path.parts]
    if strange or not path.name or path.is_absolute() or ".." in path.parts or any(long):
        raise InputError(f"{name!r} can't be the name of an image in such a file: rename it")
