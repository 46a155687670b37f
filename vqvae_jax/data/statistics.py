"""What is to be known of every image before training: its name, label and size, read once and kept beside the data."""

import contextlib
import hashlib
import io
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from vqvae_jax.data.records import Record, Records
from vqvae_jax.files import replacing

AT_ONCE = 256


class Scan(NamedTuple):
    """One row an image, in the order of the digests of their names: the same whatever the files are shuffled like.

    `index` int64 [N] is the image's number in the records; `names` [N] strings; `labels`, `widths` and `heights`
    int32 [N], the sizes being 0 where the file's header can't be read; `digests` uint64 [N] of the files' bytes.
    """

    index: np.ndarray
    names: np.ndarray
    labels: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    digests: np.ndarray

    def keep(self, rows) -> "Scan":
        """Keep some rows."""
        return Scan(*(column[rows] for column in self))


def image_size(data: bytes) -> tuple[int, int]:
    """Read width and height from a file's header; 0, 0 if it has none."""
    try:
        return Image.open(io.BytesIO(data)).size
    except Exception:  # Pillow raises whatever its parsers stumble over
        return 0, 0


def scan(records: Records, threads: int = 4) -> Scan:
    """Look at the header of every image, in parallel; the result is kept in the file `records.cache`.npz.

    It is read again as long as the data are the same; where the folder can't be written, nothing is kept.
    """
    path = Path(f"{records.cache}.npz")
    fingerprint = records.fingerprint()
    # No such file, or one that is damaged or of an older version, is made anew.
    with (
        contextlib.suppress(OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile),
        np.load(path, allow_pickle=False) as kept,
    ):
        if str(kept["fingerprint"]) == fingerprint:
            return Scan(*(kept[column] for column in Scan._fields))
    found = _read_headers(records, threads)
    try:
        path.parent.mkdir(exist_ok=True)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, fingerprint=fingerprint, **found._asdict())
    except OSError as error:
        print(f"the sizes of the images are not kept in {path.parent}: {error.strerror}", flush=True)
    return found


def _read_headers(records, threads) -> Scan:
    parts = []
    layout = "{desc}: {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} images [{elapsed}, {remaining} left]"
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(records), desc="reading image sizes", bar_format=layout, delay=2) as progress,
    ):
        starts = range(0, len(records), AT_ONCE)
        rows = (np.arange(start, min(start + AT_ONCE, len(records))) for start in starts)
        for part in pool.map(lambda index: _columns(index, records.read(index)), rows):
            parts.append(part)
            progress.update(len(part.index))
    everything = Scan(*map(np.concatenate, zip(*parts, strict=True)))
    return everything.keep(np.argsort(_digests(name.encode() for name in everything.names.tolist()), kind="stable"))


def _columns(index: np.ndarray, found: list[Record]) -> Scan:
    names, labels = np.array([record.name for record in found]), np.array([record.label for record in found], np.int32)
    widths, heights = np.array([image_size(record.data) for record in found], np.int32).T
    return Scan(index, names, labels, widths, heights, _digests(record.data for record in found))


def _digests(values: Iterable[bytes]) -> np.ndarray:
    digests = [hashlib.blake2b(value, digest_size=8).digest() for value in values]
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)


def write_removed(records: Records, split: str, removed: Scan, min_side: int) -> Path | None:
    """List the images that are left out beside the data; None where that can't be written."""
    if records.cache is None:
        return None
    path = Path(f"{records.cache}_{split}_removed_below_{min_side}.txt")
    rows = zip(removed.names, removed.widths, removed.heights, strict=True)
    try:
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{name} {width}x{height}\n" for name, width, height in rows))
    except OSError:
        return None
    return path
