"""Grids pixel by pixel, and figures that are written if they have something to show."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from vqvae_jax.errors import InputError
from vqvae_jax.evaluation import plots


def test_grid_shows_originals_above_reconstructions(images):
    rows = plots.side_by_side(4, images, 255 - images)
    assert [len(row) for row in rows] == [4, 4, 4, 4, 2, 2]
    grid = plots.image_grid(rows)
    np.testing.assert_array_equal(grid[:8, :12], images[0])
    np.testing.assert_array_equal(grid[10:18, :12], 255 - images[0])
    np.testing.assert_array_equal(grid[20:28, 14:26], images[5])
    assert np.all(grid[8:10] == 255)


def test_gray_becomes_colour_and_what_is_transparent_white():
    images = np.random.default_rng(0).integers(0, 256, (1, 5, 6, 4), dtype=np.uint8)
    share = images[..., 3:] / 255
    expected = np.round(images[..., :3] * share + 255 * (1 - share))
    np.testing.assert_array_equal(plots.image_grid([images]), expected[0])
    np.testing.assert_array_equal(plots.image_grid([images[..., :1]]), np.repeat(images[0, ..., :1], 3, axis=-1))


def test_distinct_images_leave_out_flat_ones_and_repetitions():
    rng = np.random.default_rng(0)
    varied = rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    flat = np.full((1, 8, 8, 3), (200, 0, 0), np.uint8) + rng.integers(0, 3, (1, 8, 8, 3), dtype=np.uint8)
    repeated = varied[:1] // 2 * 2  # off by one level here and there
    corner = np.where(np.arange(8)[:, None, None] < 5, np.uint8(0), varied[:1])  # five of eight rows are black
    images = np.concatenate([flat, varied[:2], repeated, corner, varied[2:]])
    np.testing.assert_array_equal(plots.distinct(images, 5), varied)
    np.testing.assert_array_equal(plots.distinct(images, 2), varied[:2])
    assert plots.distinct(flat, 5).shape == (0, 8, 8, 3)


def test_curves_have_a_panel_for_each_metric_that_was_recorded(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, dpi: drawn.append(figure))
    record = [
        {"step": 1, "train/bits_per_dim": 9.0, "train/batch_perplexity": 3.0, "eval/rate": 1.0},
        {"step": 2, "train/bits_per_dim": None, "eval/bits_per_dim": 8.0},
        {"step": 3, "train/bits_per_dim": 7.0, "eval/perplexity": 4.0},
    ]
    plots.save_curves(tmp_path / "curves.png", record, "mine")
    (figure,) = drawn
    lines = {axis.get_title(): {line.get_label(): line.get_xydata() for line in axis.lines} for axis in figure.axes}
    assert {title: set(found) for title, found in lines.items()} == {
        "negative log-likelihood bound": {"training batch", "validation"},
        "perplexity of the codebook": {"training batch", "validation"},
    }
    np.testing.assert_array_equal(lines["negative log-likelihood bound"]["training batch"], [[1, 9], [3, 7]])
    np.testing.assert_array_equal(lines["perplexity of the codebook"]["validation"], [[3, 4]])


def test_figures_with_nothing_to_show_are_not_written(tmp_path):
    plots.save_curves(tmp_path / "curves.png", [{"step": 1, "unix_time": 1.0}, {"step": 2, "eval/rate": None}], "mine")
    plots.save_curves(tmp_path / "curves.png", [], "mine")
    plots.save_box_plot(tmp_path / "box.png", np.zeros(0), np.zeros(0, int), ("a", "b"), "bits/dim", "mine")
    plots.save_grid(tmp_path / "grid.png", [])
    plots.save_grid(tmp_path / "grid.png", [np.zeros((0, 8, 8, 3), np.uint8)])
    assert not list(tmp_path.iterdir())


def test_figures_are_written(tmp_path):
    plots.save_curves(tmp_path / "curves.png", [{"step": 1, "train/distortion": 2.0}], "mine")
    labels = np.array([0, 0, 2])
    plots.save_box_plot(tmp_path / "box.png", np.arange(3.0), labels, ("a", "b", "c"), "bits/dim", "mine")
    for name in ("curves.png", "box.png"):
        assert np.ptp(np.asarray(Image.open(tmp_path / name).convert("L"))) > 100


def test_show_takes_what_notebooks_have(tmp_path):
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for given in ([image], [image[..., None]], [(image, 3)], [image.astype(np.float64) / 255]):
        shown = plots.show(given, tmp_path / "shown.png")
        np.testing.assert_array_equal(np.asarray(shown)[::8, ::8, 0], image)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "shown.png")), np.asarray(shown))
    with pytest.raises(InputError, match="no images to show"):
        plots.show([])
    with pytest.raises(InputError, match=r"must lie in 0..1, not 0..63"):
        plots.show([image.astype(np.float32)])
    with pytest.raises(InputError, match="its name must end in .png"):
        plots.show([image], tmp_path / "shown.jpg")
