"""The report on a data set finds what was hidden in one."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from experiments import dataset_report
from vqvae_jax.data import sources


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """What is known of a folder's images goes to another cache than the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.slow
def test_counts_duplicates_small_and_damaged_images_are_found(tmp_path, monkeypatch):
    root, random = tmp_path / "images", np.random.default_rng(0)

    def save(name, pixels):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def picture():
        coarse = Image.fromarray(random.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        return np.asarray(coarse.resize((60, 40), Image.Resampling.BICUBIC))

    names = [f"{'ab'[n % 3 == 0]}/{n}.png" for n in range(60)]
    pixels = {name: picture() for name in names}
    test = [name for name in names if sources.hash_share(name) < 0.1]
    train = [name for name in names if sources.hash_share(name) >= 0.2]
    pixels[train[1]] = pixels[train[0]]
    pixels[test[0]] = np.clip(pixels[train[5]].astype(int) + 3, 0, 255).astype(np.uint8)  # a near duplicate
    pixels[train[2]] = pixels[train[2]][:20]
    for name, level in ((test[1], 90), (train[7], 91)):  # flat, so that they are alike, and that says nothing
        pixels[name] = np.full_like(pixels[name], level)
    for name, values in pixels.items():
        save(name, values)
    damaged = root / train[3]
    damaged.write_bytes(damaged.read_bytes()[:-100])
    out = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["report", "--dataset=folder", f"--data_dir={root}", f"--out={out}", "--image_size=32"]
    )
    dataset_report.main()
    result = json.loads((out / "report.json").read_text())
    assert (result["train_images"], result["test_images"]) == (60 - len(test), len(test))
    assert result["image_size"] == "60×20 to 60×40"
    assert (result["images_with_a_side_under_32"], result["undecodable_images"]) == (1, 1)
    assert result["examples_of_equal_images"] == [sorted(train[:2], key=result["examples_of_equal_images"][0].index)]
    assert [pair[:2] for pair in result["examples_of_near_duplicates"]] == [[test[0], train[5]]]
    assert result["examples_of_flat_images"] == [[test[1], train[7], 0, 0.0]]
    assert (result["near_duplicates_of_training_images_in_test"], result["flat_test_images_like_a_training_image"]) == (
        1,
        1,
    )
    assert "- flat test images like a training image: 1\n" in (out / "table.md").read_text()
    kept = np.stack(
        [pixels[n].reshape(-1, 3) for n in names if n not in test and pixels[n].shape[0] == 40 and n != train[3]]
    )
    alone = pixels[train[2]].reshape(-1, 3) / 255
    mean = np.mean([*(kept / 255).mean(1), alone.mean(0)], axis=0)
    np.testing.assert_allclose(result["mean"], mean, atol=1e-4)
    for name in ("images_per_class", "examples", "resolution_deviation", "resolutions"):
        assert (out / f"{name}.svg").stat().st_size > 1000
        assert Image.open(out / f"{name}.png").size[0] > 500
    assert "| folder | " in (out / "table.md").read_text()


def test_a_figure_without_anything_to_show_is_not_written(photo_dir, tmp_path):
    result = dataset_report.report("photos", "five photographs", photo_dir, None, tmp_path / "out", 2)
    assert result["image_size"] == "32×32"
    figures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert figures == {"images_per_class", "examples"}
