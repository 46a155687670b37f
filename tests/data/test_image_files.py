"""Image files come in as one sees them, without loss or not at all, and all that can't is said at once."""

import io
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vqvae_jax.data import image_files, sources, transforms
from vqvae_jax.data.image_files import SUFFIXES, gather, read_image
from vqvae_jax.errors import InputError

COLOUR = np.random.default_rng(0).integers(0, 256, (8, 6, 3), dtype=np.uint8)
GRAY = COLOUR[..., 0]


def save(image, path, **options):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **options)
    return path


# What a viewer does with each value of the tag, EXIF 2.3, table "Orientation": row 0 and column 0 of what is stored.
TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x.swapaxes(0, 1)[:, ::-1],
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x.swapaxes(0, 1)[::-1],
}


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_images_are_turned_as_their_exif_data_say_for_training_and_the_codec(tmp_path, suffix, orientation):
    root, exif = tmp_path / "images", Image.Exif()
    root.mkdir()
    smooth = np.asarray(Image.fromarray(COLOUR).resize((48, 64), Image.Resampling.BICUBIC))
    options = {"webp": {"lossless": True}}.get(suffix, {})
    stored = np.asarray(Image.open(save(smooth, tmp_path / f"as_it_is.{suffix}", **options)))
    exif[0x0112] = orientation
    path = save(smooth, root / f"turned.{suffix}", exif=exif, **options)
    expected = TURNS[orientation](stored)
    np.testing.assert_array_equal(read_image(path, 3), expected)
    np.testing.assert_array_equal(transforms.to_array(image_files.decode(path.read_bytes(), 3)), expected)
    (found,), _ = gather([str(root)], 3)
    assert (found.height, found.width) == expected.shape[:2]
    np.testing.assert_array_equal(image_files.load(found), expected)
    scan = image_files.scan(lambda _: (path.name, 0, path.read_bytes()), 1, [path], tmp_path / "scan")
    assert (scan["height"][0], scan["width"][0]) == expected.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_turn_nothing(tmp_path):
    path = save(COLOUR, tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(read_image(path, 3), np.asarray(Image.open(save(COLOUR, tmp_path / "b.jpg"))))


def palette(pixels):
    """An image of a palette of all the colours that it has."""
    colours, indices = np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0, return_inverse=True)
    image = Image.fromarray(indices.reshape(pixels.shape[:2]).astype(np.uint8), "L").convert("P")
    image.putdata(indices.ravel().tolist())
    image.putpalette(colours.astype(np.uint8).tobytes(), "RGB")
    return image


def same(gray):
    return np.repeat(gray[..., None], 3, axis=-1)


OPAQUE = np.full((8, 6, 1), 255, np.uint8)
BITS = (GRAY > 99).astype(np.uint8) * 255


@pytest.mark.parametrize(
    ("image", "channels", "expected"),
    [
        (COLOUR, 3, COLOUR),
        (GRAY, 1, GRAY[..., None]),
        (GRAY, 3, same(GRAY)),
        (same(GRAY), 1, GRAY[..., None]),
        (Image.fromarray(BITS).convert("1"), 3, same(BITS)),
        (Image.fromarray(BITS).convert("1"), 1, BITS[..., None]),
        (palette(COLOUR), 3, COLOUR),
        (palette(same(GRAY)), 1, GRAY[..., None]),
        (np.concatenate([COLOUR, OPAQUE], -1), 3, COLOUR),
        (np.concatenate([same(GRAY), OPAQUE], -1), 1, GRAY[..., None]),
        (np.concatenate([COLOUR, OPAQUE // 3], -1), 4, np.concatenate([COLOUR, OPAQUE // 3], -1)),
        (COLOUR, 4, np.concatenate([COLOUR, OPAQUE], -1)),
    ],
)
def test_what_the_channels_hold_without_loss_is_converted(tmp_path, image, channels, expected):
    path = save(image, tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(path, channels), expected)
    (found,), left_out = gather([str(path)], channels)
    assert (found.name, found[2:], left_out) == ("a.png", expected.shape, [])
    np.testing.assert_array_equal(image_files.load(found), expected)


def png_of_16_bits(pixels):
    """Encode uint16 [H,W,3], which Pillow reads and doesn't write (PNG specification, sections 5 and 11.2)."""

    def chunk(kind, data):
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = np.array(pixels.shape[1::-1], ">u4").tobytes() + bytes([16, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


@pytest.fixture
def unusable(tmp_path):
    """A folder with one good image and all that can't be coded; what must be said of each."""
    root = tmp_path / "in"
    root.mkdir()
    save(COLOUR, root / "good.png")
    reasons = {
        save(COLOUR, root / "good.bmp"): "too: rename one",
        save(np.concatenate([COLOUR, OPAQUE - 1], -1), root / "alpha.png"): "alpha channel",
        save(COLOUR, root / "clear.png", transparency=tuple(map(int, COLOUR[0, 0]))): "alpha channel",
        save(GRAY.astype(np.uint16) * 200, root / "deep.png"): "levels aren't of 8 bits",
        save(Image.fromarray(COLOUR).convert("CMYK"), root / "print.jpg"): "its mode CMYK",
        save(COLOUR, root / "two.tif", save_all=True, append_images=[Image.fromarray(COLOUR)]): "more than one picture",
        root / "deep.ppm": "levels aren't of 8 bits",
        root / "deep_colour.png": "levels aren't of 8 bits",
        root / "dark.pgm": "levels aren't of 8 bits",
        root / "text.png": "its format is unknown",
        root / "empty.png": "it is empty",
        root / "photo.heic": "its format isn't read",
        Path(os.fsdecode(os.fsencode(root) + b"/\xff.png")): "can't be the name of an image",
        save(COLOUR, root / "broken.png"): "truncated",
    }
    (root / "deep_colour.png").write_bytes(png_of_16_bits(COLOUR.astype(np.uint16) * 257))
    (root / "deep.ppm").write_bytes(b"P6 2 2 65535\n" + bytes(range(24)))
    (root / "dark.pgm").write_bytes(b"P5 2 2 100\n" + bytes(range(4)))
    (root / "text.png").write_text("no image")
    (root / "empty.png").touch()
    (root / "photo.heic").write_bytes(bytes(30))
    (root / "notes.txt").write_text("no image, and nobody would think so")
    save(COLOUR, Path(os.fsdecode(os.fsencode(root) + b"/\xff.png")))
    (root / "broken.png").write_bytes((root / "broken.png").read_bytes()[:-60])
    # Of the two that would be good.png, the first by name is coded.
    good = {root / "good.bmp": root / "good.png"}
    return root, {good.get(path, path): reason for path, reason in reasons.items()}


def test_all_files_that_cannot_be_coded_are_named_at_once_or_left_out(unusable):
    root, reasons = unusable
    found, left_out = gather([str(root)], 3, skip=True)
    assert [image.path.name for image in found] == ["good.bmp"]
    assert {path for path, _ in left_out} == set(reasons)
    for path, reason in left_out:
        assert reasons[path] in reason, path
    with pytest.raises(InputError, match=r"cannot code 14 of 15 images: .*alpha.png \(it has .*; and 9 more") as caught:
        gather([str(root)], 3)
    assert "\n" not in str(caught.value)


def test_missing_and_single_files_and_empty_folders_are_said(tmp_path, unusable, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in .*empty"):
        gather([str(tmp_path / "empty")], 3)
    with pytest.raises(InputError, match=r"no images in .*deep.png"):
        gather([str(unusable[0] / "deep.png")], 3, skip=True)
    with pytest.raises(InputError, match=r"cannot code 1 of 1 images: .*missing.png \(No such file"):
        gather([str(tmp_path / "missing.png")], 3)
    with pytest.raises(InputError, match="cannot read .*missing.png: No such file"):
        read_image(tmp_path / "missing.png", 3)
    with pytest.raises(InputError, match="it has colours"):
        read_image(save(COLOUR, tmp_path / "colour.png"), 1)
    (found,), _ = gather([str(tmp_path / "colour.png")], 3)
    save(COLOUR[:5], tmp_path / "colour.png")
    with pytest.raises(InputError, match="has changed"):
        image_files.load(found)
    monkeypatch.setattr(image_files, "MOST_VALUES", 10)
    with pytest.raises(InputError, match="too large, 6x8"):
        read_image(save(COLOUR, tmp_path / "large.png"), 3)


def test_training_and_the_codec_know_the_same_suffixes(tmp_path):
    for n in range(10):
        for suffix in SUFFIXES:
            out = io.BytesIO()
            Image.fromarray(COLOUR).save(out, Image.registered_extensions()[suffix])
            (tmp_path / f"{suffix[1:]}{n}{suffix.upper() if n % 2 else suffix}").write_bytes(out.getvalue())
    trained = [name for split in sources.SPLITS for name in sources.folder(split, str(tmp_path)).scan["name"]]
    found, left_out = gather([str(tmp_path)], 3)
    assert sorted(trained) == sorted(image.path.name for image in found)
    assert (len(trained), left_out) == (10 * len(SUFFIXES), [])
