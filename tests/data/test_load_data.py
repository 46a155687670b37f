"""What notebooks use: two generators and a grid."""

import numpy as np
import pytest
from PIL import Image

import vqvae_jax
from vqvae_jax.data import sources
from vqvae_jax.errors import InputError


def test_two_lazy_generators_share_no_image(photo_dir, monkeypatch):
    train, test = vqvae_jax.load_data("photos", data_dir=photo_dir, seed=3)
    train, test = list(train), list(test)
    ours = {split: sources.photos(split, photo_dir) for split in ("train", "test")}
    for found, split in ((train, "train"), (test, "test")):
        expected = {(int(y), x.tobytes()) for y, x in zip(ours[split].labels, ours[split].images, strict=True)}
        assert {(y, x.tobytes()) for x, y in found} == expected
        assert len(found) == len(ours[split])
    monkeypatch.setattr(sources, "folder", None)
    vqvae_jax.load_data("folder", data_dir="nowhere")  # nothing is opened yet


def test_numbers_transformation_size_and_seed_are_kept(photo_dir):
    def few(seed):
        train, test = vqvae_jax.load_data(
            "photos", lambda x: x / 255.0, 5, 2, seed=seed, data_dir=photo_dir, image_size=16
        )
        return list(train), list(test)

    (train, test), (again, _), (other, _) = few(0), few(0), few(1)
    assert (len(train), len(test)) == (5, 2)
    assert all(image.shape == (16, 16, 3) and image.max() <= 1 for image, _ in train)
    np.testing.assert_array_equal([x for x, _ in train], [x for x, _ in again])
    assert any((x != y).any() for (x, _), (y, _) in zip(train, other, strict=True))


def test_an_unknown_data_set_is_refused_at_once():
    with pytest.raises(InputError, match="unknown dataset 'photo': did you mean 'photos'"):
        vqvae_jax.load_data("photo")


def test_show_draws_every_image_and_writes_a_file(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    grid = np.asarray(vqvae_jax.show([(image, 0) for image in images], tmp_path / "grid.png", columns=3))
    assert grid.shape == (2 * 66 - 2, 3 * 66 - 2, 3)
    np.testing.assert_array_equal(grid[66:, 66 : 66 + 64], images[4])
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), grid)
    gray = np.asarray(vqvae_jax.show([np.full((64, 64), 0.5)]))
    assert (gray == 128).all()
    clear = np.asarray(vqvae_jax.show([np.zeros((64, 64, 4), np.uint8)]))
    assert (clear == 255).all()
    with pytest.raises(InputError, match="must lie in 0..1, not 0..7"):
        vqvae_jax.show([np.arange(8.0).reshape(2, 2, 2)])
    with pytest.raises(InputError, match="no images to show"):
        vqvae_jax.show([])
