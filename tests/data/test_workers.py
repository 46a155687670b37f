"""Processes that read images give the batches of threads, and never a hang or a gap when one dies."""

import multiprocessing
import os
import signal

import numpy as np
import pytest
from PIL import Image

from vqvae_jax.data import batches, sources
from vqvae_jax.data.splits import FileSource
from vqvae_jax.errors import InputError

FIRST = 3  # step, in the middle of an epoch


@pytest.fixture
def source(tmp_path):
    """About 32 small JPEG files in two classes, one of which is cut off."""
    for n in range(40):
        path = tmp_path / "ab"[n % 2] / f"{n}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(n).integers(0, 256, (20 + n, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    options = {"image_size": 8, "crop_scale": (0.2, 1.0), "max_bad_images": 1}
    found = sources.prepare_split(sources.folder("train", str(tmp_path)), **options)
    assert isinstance(found, FileSource)
    path = tmp_path / found.scan["name"][5]
    path.write_bytes(path.read_bytes()[:-60])
    return found


def expected(source, last):
    return [batches.batch_at(source, 8, seed=1, flip=True, step=n, stage="model") for n in range(FIRST, last)]


def made(source, last, num_workers):
    return batches.train_batches(
        source, 8, 1, True, range(FIRST, last), num_threads=0, stage="model", num_workers=num_workers
    )


def assert_equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys() == {"image", "label", "mask"}
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype


@pytest.mark.parametrize("num_workers", [0, 1])
def test_batches_and_bad_files_are_those_of_any_number_of_workers(source, num_workers, monkeypatch, capfd):
    wanted = expected(source, FIRST + 9)
    assert len(source.bad) == 1
    name = next(iter(source.bad))
    source.bad.clear()
    capfd.readouterr()
    monkeypatch.setenv("JAX_PLATFORMS", "none")  # a worker that wants a device fails
    assert_equal(made(source, FIRST + 9, num_workers), wanted)
    assert list(source.bad) == [name]
    assert capfd.readouterr().out.count(f"skipped {name}, bad image 1 of at most 1") == 1
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_one_line_after_the_right_batches(source):
    wanted, found, stream = expected(source, FIRST + 100), [], made(source, FIRST + 400, num_workers=4)
    found += [next(stream) for _ in range(6)]
    workers = [worker.pid or 0 for worker in multiprocessing.active_children()]
    assert len(workers) == 4
    for number in (signal.SIGINT, signal.SIGTERM):  # which the program answers by saving, for which it needs them
        os.kill(workers[1], number)
    found += [next(stream) for _ in range(48)]
    os.kill(workers[1], signal.SIGKILL)
    with pytest.raises(
        InputError, match=r"a process that reads images was killed.*data.num_workers \(now 4\)"
    ) as caught:
        found.extend(stream)
    assert "\n" not in str(caught.value)
    assert_equal(found, wanted[: len(found)])
    assert not multiprocessing.active_children()


def test_a_few_batches_need_no_process(source):
    stream = made(source, FIRST + 4, num_workers=4)
    next(stream)
    assert not multiprocessing.active_children()


def test_the_number_of_workers_is_in_range(source):
    with pytest.raises(InputError, match=r"data.num_workers is -1: it must be at least 0"):
        made(source, FIRST + 9, num_workers=-1)
