"""Pictures on disk: found, looked at, read and written; and the files that they are packed in."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from vqvae_jax.codec import container
from vqvae_jax.data.images import MODES
from vqvae_jax.errors import InputError
from vqvae_jax.files import replacing

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
LONGEST_SIDE = 65535
ORIENTATION = 0x0112  # the EXIF tag
# Of one image; a forged size must not take all memory.
MOST_VALUES = 2**28


class Found(NamedTuple):
    """An image to be coded: what it is called in the file, where it lies, its height and width."""

    name: str
    path: Path
    height: int
    width: int


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
    if image.getexif().get(ORIENTATION, 1) != 1:
        return "a rotation among its EXIF data"
    return "more than one picture" if getattr(image, "n_frames", 1) > 1 else None


def load(found: Found) -> np.ndarray:
    """Read the pixels of an image, uint8 [H,W,C]; InputError if it can't be read any more."""
    try:
        with Image.open(found.path) as image:
            pixels = np.asarray(image)
    except Exception as error:  # Pillow has many
        raise InputError(f"cannot read {found.path}: {error}") from error
    return pixels.reshape(found.height, found.width, -1)


def is_there(path: Path) -> bool:
    """Tell whether something has this name; InputError if nobody can look."""
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"cannot look at {path}: {error.strerror or error}; choose another --output") from error


def read_file(path: str) -> bytes:
    """Read a file; InputError if it can't be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which appears whole or not at all, in a folder that is made if need be.

    Raises:
        InputError: it can't be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error


def save(path: Path, image: np.ndarray) -> None:
    """Write an image uint8 [H,W,C] as PNG; InputError if it can't be written."""
    with writing(path) as file:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, format="PNG")
