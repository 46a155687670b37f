"""Encoded images on disk, read by number: a TFDS data set, or a folder of image files."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from vqvae_jax.data import prepare
from vqvae_jax.errors import InputError

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class Record(NamedTuple):
    """One encoded image: its name within the data set, the bytes of its file, and its label."""

    name: str
    data: bytes
    label: int


@runtime_checkable
class Records(Protocol):
    """Encoded images by number; `class_names` of their labels, and `cache`, where what is found out is kept, if so."""

    @property
    def class_names(self) -> tuple[str, ...]: ...

    @property
    def cache(self) -> Path | None: ...

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> list[Record]: ...

    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class TfdsRecords:
    """One split of a TFDS data set; names are TFDS's `file_name` or `id`, or else a digest of the file."""

    dataset: Any
    class_names: tuple[str, ...]
    cache: Path

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: np.ndarray) -> list[Record]:
        """Read by number."""
        found = self.dataset.__getitems__([int(index) for index in indices])
        return [Record(self._name(example), example["image"], int(example["label"])) for example in found]

    def fingerprint(self) -> str:
        """Tell whether the files have changed: their names, sizes and times."""
        folder = self.cache.parent
        return _digest_of_files(folder, sorted(path.name for path in folder.glob("*.array_record*")))

    @staticmethod
    def _name(example) -> str:
        for key in ("file_name", "id"):
            if key in example:
                name = example[key]
                return name.decode() if isinstance(name, bytes) else str(name)
        return hashlib.blake2b(example["image"], digest_size=8).hexdigest()


@dataclass(frozen=True)
class FolderRecords:
    """Image files below a folder; their names are relative paths, their labels the first sub-folder of each."""

    root: Path
    paths: tuple[str, ...]
    class_names: tuple[str, ...]
    cache: Path

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, indices: np.ndarray) -> list[Record]:
        """Read by number."""
        return [self._read(self.paths[int(index)]) for index in indices]

    def fingerprint(self) -> str:
        """Tell whether the files have changed: their names, sizes and times."""
        return _digest_of_files(self.root, self.paths)

    def _read(self, path: str) -> Record:
        label = self.class_names.index(path.split("/")[0]) if len(self.class_names) > 1 else 0
        return Record(path, (self.root / path).read_bytes(), label)


def _digest_of_files(root: Path, paths: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        status = (root / path).stat()
        digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def open_tfds(name: str, split: str, data_dir: str | None) -> TfdsRecords:
    """Open one TFDS split, prepared first if it isn't there; `split` is TFDS's own."""
    dataset, class_names, folder = prepare.open_dataset(name, split, data_dir)
    return TfdsRecords(dataset, class_names, folder / f"scan_{split}")


def open_folder(data_dir: str | None) -> FolderRecords:
    """Find all images below `data_dir`; classes are its sub-folders, if every image lies in one.

    Raises:
        InputError: no folder is given, it isn't there, or it holds no image.
    """
    if data_dir is None:
        raise InputError("the data set 'folder' needs --data_dir=DIR, the folder of your images")
    root = Path(data_dir).expanduser()
    if not root.is_dir():
        raise InputError(f"no data folder {root}: name the one that holds your images with --data_dir")
    found = (path.relative_to(root) for path in root.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    shown = (path for path in found if not any(part.startswith(".") for part in path.parts))
    paths = tuple(sorted(path.as_posix() for path in shown if (root / path).is_file()))
    if not paths:
        raise InputError(f"no images in {root}: known are files ending in {', '.join(sorted(IMAGE_SUFFIXES))}")
    classes = sorted({path.split("/")[0] for path in paths}) if all("/" in path for path in paths) else ["image"]
    return FolderRecords(root, paths, tuple(classes), root / ".vqvae_jax" / "scan")
