"""Image files: found, looked at, read, converted and written, alike for training and for the codec.

Whatever reads an image turns it as its EXIF data say: height and width are those that one sees.
"""

import contextlib
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import BinaryIO, NamedTuple

import jax
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from vqvae_jax.codec import container
from vqvae_jax.errors import InputError

try:  # The same pixels as Pillow's, and faster.
    import simplejpeg
except ImportError:
    simplejpeg = None

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
LOSSLESS_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
# Images that aren't read. The codec names them, so that none is missing from a file unnoticed.
FOREIGN = {".arw", ".avif", ".cr2", ".dng", ".exr", ".heic", ".heif", ".jp2", ".jxl", ".nef", ".psd", ".raw", ".svg"}
LONGEST_SIDE, MOST_VALUES = 65535, 2**28  # of one image; a forged size must not take all memory
NAMED = 5  # files in a message


class BadImage(OSError):  # noqa: N818 - it is the file's error, not the program's
    """An image file that can't be decoded to its end, or not without loss."""


@contextlib.contextmanager
def _saying(verb: str, path: Path | str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot {verb} {path}: {error.strerror or error}{hint}") from error


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF data turn nothing
        return 1


def _decode(data: bytes, channels: int) -> tuple[Image.Image, int]:
    """Decode an 8-bit image in its own mode, and count the pictures in its file."""
    try:
        image = Image.open(io.BytesIO(data))
        if max(image.size) > LONGEST_SIDE or image.width * image.height * channels > MOST_VALUES:
            raise BadImage(f"it is too large, {image.width}x{image.height}: cut it into parts")
        coding = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in getattr(image, "tile", [])]
        levels = [word for words in coding for word in words if image.format == "PPM" and isinstance(word, int)]
        if image.mode[0] in "IF" or ";16" in str(coding) or levels not in ([], [255]):
            raise BadImage("its levels aren't of 8 bits")
        if simplejpeg is not None and (image.format, image.mode, _orientation(image)) == ("JPEG", "RGB", 1):
            with contextlib.suppress(ValueError):  # damaged, which Pillow can say better
                return Image.fromarray(simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False, strict=True)), 1
        pictures = getattr(image, "n_frames", 1)
        image.load()
        with contextlib.suppress(Exception):  # damaged EXIF data turn nothing
            ImageOps.exif_transpose(image, in_place=True)
        return image, pictures
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        raise BadImage("its format is unknown" if data else "it is empty, or can't be read") from error
    except Exception as error:  # Pillow raises whatever its parsers stumble over
        raise BadImage(f"{type(error).__name__}: {error}") from error


def _as_rgba(image: Image.Image, channels: int) -> Image.Image:
    image = image.convert("RGBA")
    if channels < 4 and np.asarray(image)[..., 3].min() < 255:
        raise BadImage("it has an alpha channel, which would be lost")
    return image


def decode(data: bytes, channels: int) -> Image.Image:
    """Decode an image file for training: gray (1 channel), colour (3), or colour and alpha (4).

    Colours become gray, and CMYK becomes colour, as Pillow converts them; of several pictures the first is taken. A
    file that is damaged or no image, isn't of 8 bits, or has transparency to lose is a BadImage.
    """
    image, _ = _decode(data, channels)
    image = _as_rgba(image, channels) if image.has_transparency_data else image
    return image if image.mode == MODES[channels] else image.convert(MODES[channels])


def _read_lossless(path: Path, channels: int) -> np.ndarray:
    image, pictures = _decode(path.read_bytes(), channels)
    if pictures > 1:
        raise BadImage("it has more than one picture")
    if image.mode not in LOSSLESS_MODES:
        raise BadImage(f"its mode {image.mode} can't become RGB without loss")
    pixels = np.asarray(_as_rgba(image, channels))
    if channels == 1 and (pixels[..., :1] != pixels[..., 1:3]).any():
        raise BadImage("it has colours, and this model is of gray images")
    return pixels[..., :channels]


def read_image(path: str | Path, channels: int) -> np.ndarray:
    """Read an image file without loss, uint8 [H,W,C].

    Gray, 1-bit and palette images become colour, colours that are gray become gray, an opaque alpha channel goes. One
    with what C channels don't have (CMYK, 16 bits, transparency, more pictures) or that can't be read is an InputError.
    """
    with _saying("read", path):
        return _read_lossless(Path(path), channels)


class Found(NamedTuple):
    """An image to be coded: what it is called in the file, where it lies, and its shape."""

    name: str
    path: Path
    height: int
    width: int
    channels: int


def inside(given: Path) -> list[tuple[Path, Path]]:
    """List the paths of a file, or of what looks like an image in a folder, as they are and as seen from there."""
    with _saying("read", given):
        if not given.is_dir():
            return [(given, Path(given.name))]
        return [(given / path, path) for path in files_below(given) if path.suffix.lower() in SUFFIXES | FOREIGN]


def gather(inputs: list[str], channels: int, *, skip: bool = False) -> tuple[list[Found], list[tuple[Path, str]]]:
    """Find the images in folders and among files, ordered by size, then by name; and those left out, with reasons.

    It is an InputError if there are none, or if some can't be coded without loss and `skip` doesn't leave them out.
    """
    found, unusable = {}, []
    for path, below in (pair for given in map(Path, inputs) for pair in inside(given)):
        name = below.with_suffix(".png").as_posix()
        try:
            container.check_name(name)
            if path.suffix.lower() in FOREIGN:
                raise BadImage("its format isn't read: convert it")
            if name in found:
                raise BadImage(f"{found[name].path} would be {name}, too: rename one")
            found[name] = Found(name, path, *_read_lossless(path, channels).shape)
        except (OSError, InputError) as error:
            unusable.append((path, getattr(error, "strerror", None) or str(error)))
    if unusable and not skip:
        named = "; ".join(f"{path} ({reason})" for path, reason in unusable[:NAMED])
        more = f"; and {len(unusable) - NAMED} more" if len(unusable) > NAMED else ""
        count = f"{len(unusable)} of {len(found) + len(unusable)} images"
        raise InputError(f"cannot code {count}: {named}{more}: convert these, or leave them out with --skip")
    if not found:
        raise InputError(f"no images in {', '.join(inputs) or 'nothing'}: name folders or files with --input")
    return sorted(found.values(), key=lambda image: (image.height, image.width, image.name)), unusable


def load(found: Found) -> np.ndarray:
    """Read the pixels of an image, uint8 [H,W,C]; InputError if it isn't any more what was found."""
    pixels = read_image(found.path, found.channels)
    if pixels.shape != found[2:]:
        raise InputError(f"{found.path} has changed since it was found: run again")
    return pixels


def files_below(root: Path) -> list[Path]:
    """List all files below a folder, relative to it, in the order of their names."""
    return sorted((path.relative_to(root) for path in root.rglob("*") if path.is_file()), key=Path.as_posix)


def digest(*parts) -> bytes:
    """Digest bytes or arrays to 8 bytes."""
    return hashlib.blake2b(b"".join(parts), digest_size=8).digest()


def digests(values: Iterable) -> np.ndarray:
    """Digest bytes or arrays, each by itself: uint64 [N]."""
    return np.frombuffer(b"".join(map(digest, values)), ">u8").astype(np.uint64)


def cache_of(*key) -> Path:
    """Name the cache of a data set: in the user's cache folder, by a digest of where the data lie."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "vqvae_jax" / "scans" / digest(repr(key).encode()).hex()


def as_scan(rows: list[tuple]) -> np.ndarray:
    """Make an array of the fields "number", "name", "label", "width", "height" and "digest" from rows of these."""
    longest = max((len(row[1]) for row in rows), default=1)
    fields = [("number", "i8"), ("name", f"U{longest}"), ("label", "i4"), ("width", "i4"), ("height", "i4")]
    return np.array(rows, [*fields, ("digest", "u8")])


def scan(fetch: Callable[[int], tuple[str, int, bytes]], size: int, files: Iterable[Path], cache: Path) -> np.ndarray:
    """Look at the headers of `size` images, in parallel; what is found is kept at `cache` until `files` change.

    `fetch` gives a name ("": a digest of the pixels), a label and a file by number. The result is an `as_scan`, ordered
    by the digests of the names, whose sizes are 0 where there is no header.
    """
    status = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    fingerprint = digest(repr(status).encode()).hex()
    path = Path(f"{cache}.npz")
    unreadable = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)  # or damaged, or of an older version
    with contextlib.suppress(*unreadable), np.load(path, allow_pickle=False) as kept:
        if str(kept["fingerprint"]) == fingerprint:
            return kept["scan"]
    with ThreadPool(16) as pool:  # most of them wait for the disk
        rows = pool.imap(lambda number: (number, *_header(*fetch(number))), range(size), chunksize=256)
        found = as_scan(list(tqdm(rows, "reading image sizes", size, delay=2)))
    found = found[np.argsort(digests(map(os.fsencode, found["name"].tolist())), kind="stable")]
    try:
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, fingerprint=fingerprint, scan=found)
    except OSError as error:
        print(f"the sizes of the images are not kept in {path.parent}: {error.strerror}", flush=True)
    return found


def _header(name: str, label: int, data: bytes) -> tuple[str, int, int, int, int]:
    content, width, height = data, 0, 0
    with contextlib.suppress(Exception):  # Pillow raises whatever its parsers stumble over
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if image.format != "TIFF" and _orientation(image) >= 5:  # on its side; TIFF is turned when it is opened
            width, height = height, width
        content = data if name else np.asarray(image.convert("RGB"))  # so that whoever encoded it changes nothing
    found = digest(content)
    return name or found.hex(), label, width, height, int.from_bytes(found, "big")


def is_there(path: Path) -> bool:
    """Tell whether something has this name; InputError if nobody can look."""
    with _saying("look at", path, "; choose another --output"):
        return path.exists()


def read_file(path: str) -> bytes:
    """Read a file; InputError if it can't be read."""
    with _saying("read", path):
        return Path(path).read_bytes()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write to, its folder made, that takes the place of `path` when all is written, or is gone."""
    # Short, for names that are as long as they may be; of this program alone, for others may write the same file.
    temporary = path.with_name(f".{zlib.crc32(path.name.encode()):08x}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(temporary, "wb") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """As `replacing`; InputError if it can't be written. What other processes than the first write is thrown away."""
    if jax.process_index():
        yield io.BytesIO()
        return
    with _saying("write", path, "; choose another --output"), replacing(path) as file:
        yield file


def encode(pixels: np.ndarray, kind: str = "png", **options) -> bytes:
    """Give the file of an image uint8 [H,W] or [H,W,C], as Pillow writes the format `kind` with its options."""
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[2:] == (1,) else pixels).save(out, kind, **options)
    return out.getvalue()


def save(path: Path, image: np.ndarray) -> None:
    """Write an image uint8 [H,W,C] as PNG; InputError if it can't be written."""
    with writing(path) as file:
        file.write(encode(image))
