"""Pure functions from images and random numbers to images."""

import io
import math

import numpy as np
from PIL import Image, UnidentifiedImageError

try:  # The same pixels as Pillow's, and faster.
    import simplejpeg
except ImportError:
    simplejpeg = None

TRIES = 10
# Random numbers that `random_box` takes: three for every try.
UNIFORMS = 3 * TRIES

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


class BadImage(Exception):  # noqa: N818 - it is the file's error, not the program's
    """An image file that can't be decoded to its end."""


def flip_where(images: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Mirror left and right those of the uint8 images [B,H,W,C] whose entry in `flips` [B] is true."""
    return np.where(flips[:, None, None, None], images[:, :, ::-1], images)


def decode(data: bytes, mode: str) -> Image.Image:
    """Decode an image file to Pillow's `mode` ("L", "RGB" or "RGBA"); a rotation in its EXIF data is ignored.

    Raises:
        BadImage: the file is truncated, damaged or no image, or has an alpha channel that `mode` would lose.
    """
    if simplejpeg is not None and mode == "RGB" and data[:3] == b"\xff\xd8\xff":
        try:
            return Image.fromarray(simplejpeg.decode_jpeg(data, fastdct=False, fastupsample=False, strict=True))
        except ValueError:
            pass  # CMYK, which Pillow converts, or damaged, which Pillow can say better
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"{image.mode} has more than 8 bits a channel")
    except UnidentifiedImageError as error:
        raise BadImage("its format is unknown") from error
    except Exception as error:  # Pillow raises whatever its parsers stumble over
        raise BadImage(f"{type(error).__name__}: {error}") from error
    if "A" in mode or not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    raise BadImage(f"it has an alpha channel, which {mode} would lose")


def random_box(width: int, height: int, scale: tuple[float, float], uniforms: np.ndarray) -> Box:
    """Draw a square of a random share of the area, as torchvision's `RandomResizedCrop` with ratio 1 does.

    Ten tries with an area uniform in `scale` times the image's; if none fits, the largest square in the middle.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        scale: the smallest and largest share of the area, above 0 and up to 1.
        uniforms: UNIFORMS numbers in [0, 1), all the randomness there is.
    """
    low, high = scale
    for area, x, y in uniforms.reshape(TRIES, 3):
        side = round(math.sqrt(width * height * (low + (high - low) * area)))
        if 0 < side <= min(width, height):
            top, left = int(y * (height - side + 1)), int(x * (width - side + 1))
            return left, top, left + side, top + side
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    return left, top, left + side, top + side


def crop_to(image: Image.Image, box: Box, size: int) -> Image.Image:
    """Cut `box` out and resize it to `size` x `size`, antialiased bilinear: the pixels that torchvision gives.

    Not `resize(box=...)`, which lets pixels outside the box bleed in.
    """
    return image.crop(box).resize((size, size), Image.Resampling.BILINEAR)


def centre(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size`, antialiased bilinear, and cut out the middle, as torchvision does."""
    short = min(image.size)
    width, height = (size if side == short else int(size * side / short) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def to_array(image: Image.Image) -> np.ndarray:
    """Give uint8 [H,W,C], the channel axis always there."""
    return np.asarray(image).reshape(image.height, image.width, -1)
