"""Batches that are gathered on the devices are those that the host makes, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vqvae_jax import registry
from vqvae_jax.data import batches
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.training import feed, sharding
from vqvae_jax.training.image_stage import ImageStage
from vqvae_jax.training.step import step_key

ROOT, SIZE = Path(__file__).parents[2], 16
STEPS = range(3, 12)  # of 21 images: 7 epochs
CONFIG = {"seed": 5, "data": {"num_threads": 0, "num_workers": 0}}


def make_source(dtype):
    images = np.random.default_rng(0).integers(0, 256, (21, 4, 6, 3)).astype(dtype)
    return ArraySource("tiny", "train", images, np.arange(21, dtype=np.int32), ("one",) * 21)


def check(dtype, flip, stage):
    """Compare the batches of `on_devices` with those of the host, and where they lie with `put_batch`."""
    source = make_source(dtype)
    found = list(feed.on_devices(stage, CONFIG, source, SIZE, flip, STEPS))
    wanted = [batches.batch_at(source, SIZE, 5, flip, step, stage=stage) for step in STEPS]
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype
            assert one[key].sharding.is_equivalent_to(sharding.placed("data"), one[key].ndim)
    flipped = [(one["image"] != source.images[one["label"]]).any((1, 2, 3)).mean() for one in wanted]
    assert 0.3 < np.mean(flipped) < 0.7 if flip else not any(flipped)


@pytest.mark.parametrize(
    ("dtype", "flip", "stage"), [("uint8", True, "model"), ("uint8", False, "prior"), ("int32", False, "prior")]
)
def test_batches_from_the_device_are_those_of_the_host(monkeypatch, dtype, flip, stage):
    images, sent, put_batch = make_source(dtype).images, [], sharding.put_batch

    def counted(batch):
        sent.append(sum(x.nbytes for x in batch.values()))
        return put_batch(batch)

    monkeypatch.setattr(feed, "put_batch", counted)
    rest = SIZE * (4 + 1)  # bytes of labels and mask
    whole, numbers = rest + SIZE * images[0].nbytes, rest + SIZE * 8
    for memory, expected in ((0, whole), (8 * images.nbytes - 1, whole), (8 * images.nbytes, numbers)):
        monkeypatch.setattr(feed, "device_bytes", lambda memory=memory: memory)
        sent.clear()
        check(dtype, flip, stage)
        assert sent == [expected] * len(STEPS)


def test_eight_devices_get_their_rows_of_the_same_batches():
    program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_feed as test\n"
    program += "test.feed.device_bytes = lambda: 10**9\n"
    program += "assert test.feed.jax.device_count() == 8; test.check('uint8', True, 'model')"
    flags = "--xla_force_host_platform_device_count=8"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], env=env, check=True)


def test_patches_are_random_squares_of_their_images():
    """Each position of a square is drawn about as often, by the step and the seed alone."""
    numbers = np.arange(6 * 8, dtype=np.uint8).reshape(1, 6, 8, 1)
    images = np.concatenate([numbers, numbers + 100, numbers + 200]).repeat(200, axis=0)
    batch = {"image": images, "label": np.arange(600)}
    key = step_key(0, "patches", 1)
    found = feed.patches(batch, key, 4)
    np.testing.assert_array_equal(found["label"], batch["label"])
    patches = np.asarray(found["image"])
    corners = patches[:, 0, 0, 0] - images[:, 0, 0, 0]
    for patch, image, (y, x) in zip(patches, images, zip(*np.divmod(corners, 8), strict=True), strict=True):
        np.testing.assert_array_equal(patch, image[y : y + 4, x : x + 4])
    _, counts = np.unique(corners, return_counts=True)
    assert len(counts) == 3 * 5
    assert counts.min() > 600 / 15 / 2
    np.testing.assert_array_equal(patches, feed.patches(batch, key, 4)["image"])
    assert (patches != np.asarray(feed.patches(batch, step_key(0, "patches", 2), 4)["image"])).any()


def test_the_image_model_trains_on_patches_and_is_measured_on_whole_images(config):
    source, validation = (registry.build_source(config["data"], split) for split in ("train", "validation"))
    config["data"]["patch_size"] = 16
    stage = ImageStage(config, source, validation)
    again = [np.asarray(batch["image"]) for batch in stage.batches(range(2, 4))]
    for batch, same in zip(list(stage.batches(range(4)))[2:], again, strict=True):
        assert batch["image"].shape == (4, 16, 16, 3)
        np.testing.assert_array_equal(batch["image"], same)
    for side, message in (
        (33, "data.patch_size is 33: it must be 1 to 32"),
        (0, "it must be 1 to 32"),
        (10, "do not fit"),
    ):
        config["data"]["patch_size"] = side
        with pytest.raises(InputError, match=message):
            ImageStage(config, source, validation)
