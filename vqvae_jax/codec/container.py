"""The file format `.vqz`: what is in it, byte by byte, and how a file is read that may be damaged or hostile.

All numbers are little-endian.

    4   magic "VQZ1"
    1   version of the format
    1   flags: 1 = lossy (codes alone), 2 = labels of each image follow
    2   label of all images, 65535 = none
    8   fingerprint of the image model and its prior
    8   fingerprint of the environment (libraries, device, processor), which decoding must share
    4   number of images N
    2   number of sizes S
    4   bytes of the names, n
    n   names, zlib: relative paths separated by line feeds, in the order of the images
    8   for each of S sizes: height (2), width (2), number of images (4); the images are ordered by size
    2   for each image its label, if the flag says so
    4   for each image the CRC-32 of its pixels as they are decoded, row by row
    …   the stream of the range coder
    8   BLAKE2b of everything before

A reader checks the checksum first, and every count against the length of the file before it allocates anything.
"""

import hashlib
import struct
import zlib
from pathlib import PurePosixPath
from typing import NamedTuple

from vqvae_jax.errors import InputError

MAGIC, VERSION, NO_LABEL = b"VQZ1", 1, 65535
LOSSY, LABELS = 1, 2
HEAD = struct.Struct("<4sBBH8s8sIHI")
SIZE = struct.Struct("<HHI")
CHECKSUM = 8
BYTES_OF_LABEL = 2
LONGEST_NAME, LONGEST_PART = 1024, 250  # bytes of a path, and of one of its parts
MOST_BYTES_OF_NAMES, MOST_SIZES = 2**26, 2**16 - 1  # inflated


class Container(NamedTuple):
    """Everything in a file: `sizes` are (height, width, number of images), `labels` one per image or empty."""

    lossy: bool
    label: int
    model: bytes
    environment: bytes
    names: list[str]
    sizes: list[tuple[int, int, int]]
    labels: list[int]
    crcs: list[int]
    stream: bytes


def bytes_of_names(container: Container) -> int:
    """Give how many bytes of a file are names."""
    return len(_packed_names(container.names))


def _packed_names(names: list[str]) -> bytes:
    return zlib.compress("\n".join(names).encode(), 9)


def checksum(data: bytes) -> bytes:
    """Give the checksum at the end of a file."""
    return hashlib.blake2b(data, digest_size=CHECKSUM).digest()


def pack(container: Container) -> bytes:
    """Write a file.

    Raises:
        InputError: there are more sizes, or longer names in all, than the format has room for.
    """
    c, names = container, _packed_names(container.names)
    if len(c.sizes) > MOST_SIZES or len("\n".join(c.names).encode()) > MOST_BYTES_OF_NAMES:
        raise InputError("these are more sizes or names of images than one file can hold: make several")
    flags = LOSSY * c.lossy + LABELS * bool(c.labels)
    numbers = len(c.names), len(c.sizes), len(names)
    parts = [HEAD.pack(MAGIC, VERSION, flags, c.label, c.model, c.environment, *numbers), names]
    parts += [SIZE.pack(*size) for size in c.sizes]
    parts += [struct.pack(f"<{len(c.labels)}H", *c.labels), struct.pack(f"<{len(c.crcs)}I", *c.crcs), c.stream]
    data = b"".join(parts)
    return data + checksum(data)


def unpack(data: bytes) -> Container:
    """Read a file.

    Raises:
        InputError: it isn't one, is of another version, is damaged, or names files outside the output folder.
    """
    if len(data) < HEAD.size + CHECKSUM or data[:4] != MAGIC:
        raise InputError("this is no .vqz file, or the beginning of one")
    if data[4] != VERSION:
        raise InputError(f"this file is of version {data[4]} of the format, known is {VERSION}: use another version")
    if checksum(data[:-CHECKSUM]) != data[-CHECKSUM:]:
        raise InputError("this file is damaged: its checksum is wrong; get it again")
    _, _, flags, label, model, environment, count, sizes, length = HEAD.unpack_from(data)
    reader = _Reader(data[:-CHECKSUM], HEAD.size)
    reader.check(4 * count)
    names = _names(reader.take(length), count)
    found = [SIZE.unpack(reader.take(SIZE.size)) for _ in range(sizes)]
    if sum(number for _, _, number in found) != count or any(0 in size for size in found):
        raise InputError("this file contradicts itself: its sizes are not those of its images")
    labels = struct.unpack(f"<{count}H", reader.take(2 * count)) if flags & LABELS else ()
    crcs = struct.unpack(f"<{count}I", reader.take(4 * count))
    return Container(
        bool(flags & LOSSY), label, model, environment, names, found, list(labels), list(crcs), reader.rest()
    )


class _Reader:
    def __init__(self, data: bytes, start: int):
        self._data, self._at = data, start

    def check(self, length: int) -> None:
        if length > len(self._data) - self._at:
            raise InputError("this file contradicts itself: it is shorter than it says")

    def take(self, length: int) -> bytes:
        self.check(length)
        self._at += length
        return self._data[self._at - length : self._at]

    def rest(self) -> bytes:
        return self._data[self._at :]


def _names(packed: bytes, count: int) -> list[str]:
    """Inflate names, no further than so many can be long."""
    limit = min((count + 1) * LONGEST_NAME, MOST_BYTES_OF_NAMES)
    inflate = zlib.decompressobj()
    try:
        text = inflate.decompress(packed, limit).decode()
    except (zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"this file contradicts itself: its names can't be read: {error}") from error
    names = text.split("\n") if count else []
    if not inflate.eof or len(names) != count or len(set(names)) != count:
        raise InputError("this file contradicts itself: its names are not those of its images")
    for name in names:
        check_name(name)
    return names


def check_name(name: str) -> None:
    """Raise InputError unless a name is a relative path that stays in its folder."""
    path = PurePosixPath(name)
    # What isn't UTF-8 on disk reads as halves of surrogate pairs.
    strange = any(c < " " or c in '\\:*?"<>|' or "\ud800" <= c <= "\udfff" for c in name)
    if strange:
        raise InputError(f"{name!r} can't be the name of an image in such a file: rename it")
    long = len(name.encode()) > LONGEST_NAME or any(len(part.encode()) > LONGEST_PART for part in path.parts)
    if not path.name or path.is_absolute() or ".." in path.parts or long:
        raise InputError(f"{name!r} can't be the name of an image in such a file: rename it")
