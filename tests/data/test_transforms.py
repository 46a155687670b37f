"""Crops are torchvision's, pixel for pixel and box for box; damaged files are an error and nothing worse."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from vqvae_jax.data import image_files, transforms
from vqvae_jax.data.image_files import BadImage
from vqvae_jax.data.transforms import TRIES, UNIFORMS

PHOTOS = Path(skimage.__file__).parent / "data"
# Made by `experiments/benchmarks/torchvision_crops.py` with torchvision: file, box, size and digest of the pixels.
STORED = json.loads((Path(__file__).parent / "torchvision_crops.json").read_text())


def jpeg(pixels, mode="RGB", **options):
    out = io.BytesIO()
    Image.fromarray(pixels, mode).save(out, "JPEG", **options)
    return out.getvalue()


def digest(image):
    return hashlib.blake2b(transforms.to_array(image).tobytes(), digest_size=16).hexdigest()


@pytest.mark.parametrize("stored", STORED["resized_crop"], ids=lambda row: f"{row['file']}-{row['size']}")
def test_random_crops_have_torchvisions_pixels(stored):
    image = image_files.decode((PHOTOS / stored["file"]).read_bytes(), 3)
    left, top, side = stored["left"], stored["top"], stored["side"]
    crop = transforms.crop_to(image, (left, top, left + side, top + side), stored["size"])
    assert digest(crop) == stored["digest"]


@pytest.mark.parametrize("stored", STORED["centre"], ids=lambda row: f"{row['file']}-{row['size']}")
def test_centre_crops_have_torchvisions_pixels(stored):
    image = image_files.decode((PHOTOS / stored["file"]).read_bytes(), 3)
    assert digest(transforms.centre(image, stored["size"])) == stored["digest"]


def torchvisions_box(width, height, scale, random):
    """Torchvision's `RandomResizedCrop.make_params` for ratio (1, 1), read from its source and written anew."""
    for _ in range(10):
        area = width * height * random.uniform(*scale)
        side = round(np.sqrt(area))
        if 0 < side <= width and side <= height:
            top, left = random.integers(0, height - side + 1), random.integers(0, width - side + 1)
            return left, top, side
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side


@pytest.mark.parametrize(("width", "height"), [(50, 40), (100, 30)])
def test_boxes_are_distributed_like_torchvisions(width, height):
    ours, theirs = np.random.default_rng(0), np.random.default_rng(1)
    boxes = [transforms.random_box(width, height, (0.2, 1.0), ours.random(UNIFORMS)) for _ in range(20_000)]
    ours = np.array([(left, top, right - left) for left, top, right, _ in boxes])
    theirs = np.array([torchvisions_box(width, height, (0.2, 1.0), theirs) for _ in range(20_000)])
    for one, other in zip(ours.T, theirs.T, strict=True):
        values = np.arange(max(width, height) + 1)
        cumulative = [np.searchsorted(np.sort(column), values, side="right") / len(column) for column in (one, other)]
        # Kolmogorov and Smirnov: 1.95 sqrt(2 / n) is passed once in a thousand times.
        assert np.abs(cumulative[0] - cumulative[1]).max() < 1.95 * np.sqrt(2 / 20_000)


def test_ten_tries_that_do_not_fit_give_the_middle():
    never = np.full(UNIFORMS, 0.999)
    assert len(never) == 3 * TRIES
    assert transforms.random_box(100, 30, (0.9, 1.0), never) == (35, 0, 65, 30)


@pytest.mark.parametrize(
    ("data", "channels", "pixel"),
    [
        (jpeg(np.full((9, 9), 77, np.uint8), "L"), 3, (77, 77, 77)),
        (jpeg(np.full((9, 9, 4), (0, 0, 0, 55), np.uint8), "CMYK"), 3, (200, 200, 200)),
        (jpeg(np.full((9, 9, 3), 77, np.uint8)), 1, (77,)),
    ],
)
def test_gray_and_cmyk_become_colour_and_colour_becomes_gray(data, channels, pixel):
    np.testing.assert_array_equal(transforms.to_array(image_files.decode(data, channels))[4, 4], pixel)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "I;16"])
def test_what_eight_bit_colour_would_lose_is_refused(mode):
    out = io.BytesIO()
    Image.new(mode, (4, 4)).save(out, "PNG")
    with pytest.raises(BadImage, match="alpha channel|aren't of 8 bits"):
        image_files.decode(out.getvalue(), 3)


def test_simplejpeg_and_pillow_give_the_same_pixels(monkeypatch):
    pytest.importorskip("simplejpeg", reason="it is optional; requirements-dev.txt has it")
    random = np.random.default_rng(0)
    smooth = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8)).resize(
        (123, 77), Image.Resampling.BICUBIC
    )
    files = [
        (PHOTOS / "rocket.jpg").read_bytes(),
        *(jpeg(np.asarray(smooth), subsampling=n, quality=80) for n in range(3)),
    ]
    fast = [transforms.to_array(image_files.decode(data, 3)) for data in files]
    monkeypatch.setattr(image_files, "simplejpeg", None)
    for data, pixels in zip(files, fast, strict=True):
        np.testing.assert_array_equal(pixels, transforms.to_array(image_files.decode(data, 3)))


ROCKET = (PHOTOS / "rocket.jpg").read_bytes()
MARKERS = [n for n in range(len(ROCKET) - 1) if ROCKET[n] == 0xFF and ROCKET[n + 1] not in (0x00, 0xFF)]


@pytest.mark.parametrize(
    "end", [*MARKERS, *(n + 2 for n in MARKERS), *(n + 5 for n in MARKERS[:-1]), 0, 1, 1000, 50_000]
)
def test_a_truncated_file_is_a_bad_image(end):
    with pytest.raises(BadImage):
        image_files.decode(ROCKET[: min(end, len(ROCKET) - 3)], 3)
