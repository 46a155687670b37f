"""The file format by itself: what is written comes back, and no bytes do harm."""

import random
import struct
import time
import tracemalloc
import zlib

import pytest

from vqvae_jax.codec import container
from vqvae_jax.codec.container import HEAD, NO_LABEL, Container
from vqvae_jax.errors import InputError

ORDINARY = Container(
    lossy=False,
    labels=True,
    label=NO_LABEL,
    model=b"12345678",
    environment=["jax 1.2.3", "XLA_FLAGS --a=b"],
    names=["a.png", "sub/b.png", "sub/ü c.png"],
    sizes=[(3, 5, 2), (65535, 1, 1)],
    crcs=[0, 1, 2**32 - 1],
    stream=b"\0\1\2\3" * 9,
)
TWO_SIZES = struct.pack("<HHIHHI", 3, 5, 2, 1, 1, 1)
LENGTHS = HEAD.size - 16  # where the lengths of environment, names, sizes and CRCs stand


def sealed(data):
    return data + container.checksum(data)


def forged(start, value):
    """The ordinary file with other bytes at a place, and a checksum that fits."""
    data = container.pack(ORDINARY)[: -container.CHECKSUM]
    return sealed(data[:start] + value + data[start + len(value) :])


def with_parts(names=b"a\nb\nc", environment=b"", crcs=bytes(12), sizes=TWO_SIZES):
    parts = zlib.compress(environment), zlib.compress(names), sizes, crcs
    return sealed(HEAD.pack(container.MAGIC, 0, NO_LABEL, b"1" * 8, *map(len, parts)) + b"".join(parts))


@pytest.mark.parametrize(
    "packed",
    [
        ORDINARY,
        ORDINARY._replace(lossy=True, label=4, labels=False, stream=b""),
        ORDINARY._replace(names=[], sizes=[], environment=[], crcs=[]),
    ],
)
def test_what_is_packed_comes_back(packed):
    assert container.unpack(container.pack(packed)) == packed


def test_the_bytes_are_those_that_the_page_describes():
    data = container.pack(ORDINARY)
    about = zlib.compress(b"jax 1.2.3\nXLA_FLAGS --a=b", 9)
    names = zlib.compress("a.png\nsub/b.png\nsub/ü c.png".encode(), 9)
    assert data[:15] == b"VQZ2" + bytes([2, 255, 255]) + b"12345678"
    assert struct.unpack("<4I", data[15:31]) == (len(about), len(names), 16, 12)
    rest = struct.pack("<HHI HHI III", 3, 5, 2, 65535, 1, 1, 0, 1, 2**32 - 1)
    assert data[31:-8] == about + names + rest + ORDINARY.stream
    assert container.deflated(ORDINARY.names) == names


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "this is no .vqz file"),
        (b"VQZ2" + bytes(20), "this is no .vqz file, or the beginning of one"),
        (b"PK\3\4" + bytes(100), "this is no .vqz file"),
        (b"VQZ1" + bytes(100), "another format, b'VQZ1': decompress it with vqvae_jax 0.1"),
        (b"VQZ3" + bytes(100), "decompress it with vqvae_jax of a later version"),
        (container.pack(ORDINARY)[:-1] + b"x", "its checksum is wrong"),
        (forged(LENGTHS, struct.pack("<I", 2**32 - 1)), "shorter than it says"),
        (forged(LENGTHS + 8, struct.pack("<I", 2**31)), "shorter than it says"),
        (forged(LENGTHS + 12, struct.pack("<I", 16)), "contradicts itself"),
        (forged(LENGTHS + 12, struct.pack("<I", 13)), "contradicts itself"),
        (with_parts(crcs=bytes(13)), "its crcs can't be read"),
        (with_parts(sizes=bytes(11)), "its sizes can't be read"),
        (with_parts(sizes=struct.pack("<HHI", 3, 5, 2)), "its sizes are not those"),
        (with_parts(sizes=struct.pack("<HHIHHI", 3, 5, 3, 1, 1, 0)), "its sizes are not those"),
        (with_parts(sizes=struct.pack("<HHI", 0, 5, 3)), "its sizes are not those"),
        (with_parts(environment=b"\xff"), "its environment can't be read"),
        (with_parts(environment=bytes(2**20)), "its environment can't be read: the text ends early, or is longer"),
        (with_parts(b"a\nb\na"), "its names can't be read: they are not those"),
        (with_parts(b"a\nb"), "its names can't be read: they are not those"),
        (with_parts(b"a\nb\n../c"), "can't be the name"),
        (with_parts(b"a\nb\nc/../../d"), "can't be the name"),
        (with_parts(b"a\nb\n/etc/c"), "can't be the name"),
        (with_parts(b"a\nb\nc:\\d"), "can't be the name"),
        (with_parts(b"a\nb\nc\0d"), "can't be the name"),
        (with_parts(b"a\nb\n"), "can't be the name"),
        (with_parts(b"a\nb\n" + b"c" * 251), "can't be the name"),
        (with_parts(b"a\nb\n\xff"), "its names can't be read"),
        (with_parts(b"c/" * 600 + b"c\nb\na"), "can't be the name"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        container.unpack(data)
    assert "\n" not in str(caught.value)


def test_names_that_inflate_without_end_take_no_memory():
    bomb = with_parts(bytes(2**26))  # a thousand times their length
    tracemalloc.start()
    with pytest.raises(InputError, match="its names"):
        container.unpack(bomb)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**24


def test_ten_thousand_mutated_and_truncated_files_are_refused_or_are_whole():
    chance = random.Random(0)
    data = container.pack(ORDINARY)
    refused, slowest = 0, 0.0
    for n in range(10_000):
        mutated = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        if n % 3 == 0:
            del mutated[chance.randrange(len(mutated)) :]
        elif n % 3 == 1:  # an attacker would mend the checksum
            mutated = bytearray(sealed(bytes(mutated[:-8])))
        begin = time.perf_counter()
        try:
            packed = container.unpack(bytes(mutated))
        except InputError:
            refused += 1
        else:
            # What passes says what a file can say: nothing outside the folder, as many of everything as images.
            assert len(packed.names) == len(packed.crcs) == sum(number for *_, number in packed.sizes)
            assert all(".." not in name.split("/") and not name.startswith("/") for name in packed.names)
            assert n % 3 == 1 or bytes(mutated) == data
        slowest = max(slowest, time.perf_counter() - begin)
    assert refused > 6_000
    assert slowest < 1
