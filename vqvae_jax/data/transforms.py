"""Pure functions from images and random numbers to images."""

import hashlib
import math

import numpy as np
from PIL import Image

TRIES = 10
# Random numbers that `random_box` takes: three for every try.
UNIFORMS = 3 * TRIES

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def random_stream(purpose: str, *numbers: int | np.integer) -> np.random.Generator:
    """Give the random numbers of one purpose and, e.g., a seed and a step: streams that differ in any share nothing."""
    key = repr((purpose, *map(int, numbers))).encode()
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(key, digest_size=16).digest(), "big"))


def flip_where(images: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Mirror left and right those of the uint8 images [B,H,W,C] whose entry in `flips` [B] is true."""
    return np.where(flips[:, None, None, None], images[:, :, ::-1], images)


def random_box(width: int, height: int, scale: tuple[float, float], uniforms: np.ndarray) -> Box:
    """Draw a square of a random share of the area, as torchvision's `RandomResizedCrop` with ratio 1 does.

    Ten tries with an area uniform in `scale` (shares of the image's `width` x `height` pixels, above 0 and up to 1); if
    none fits, the largest square in the middle. All randomness is in `uniforms`, UNIFORMS numbers in [0, 1).
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
