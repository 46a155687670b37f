"""Data sources and batches: splits that share nothing, batches that depend on (seed, step) alone."""

import io
import json
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from vqvae_jax.data import batches, prepare, sources, transforms
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.errors import InputError

IMAGES = 12  # per file of the made-up CIFAR-10 archive


@pytest.fixture(scope="session")
def cifar10_archive(tmp_path_factory):
    """An archive in the official layout, with random images and labels."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("archive") / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name in [*prepare.CIFAR10_FILES["train"], *prepare.CIFAR10_FILES["test"]]:
            records = random.integers(0, 256, (IMAGES, prepare.CIFAR10_RECORD), dtype=np.uint8)
            records[:, 0] %= 10
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = records.nbytes
            tar.addfile(info, io.BytesIO(records.tobytes()))
    return path


@pytest.fixture
def cifar10_dir(cifar10_archive, tmp_path, monkeypatch):
    """A data folder in which the real builder has prepared that archive."""
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda self, url: cifar10_archive)
    sources._tfds_arrays.cache_clear()
    return str(tmp_path)


def official_images(archive, split):
    with tarfile.open(archive) as tar:
        for name in prepare.CIFAR10_FILES[split]:
            data = tar.extractfile(f"cifar-10-batches-bin/{name}").read()
            for record in np.frombuffer(data, np.uint8).reshape(-1, 3073):
                yield (
                    int(record[0]),
                    np.stack([record[1 + 1024 * c :][:1024].reshape(32, 32) for c in range(3)], axis=-1),
                )


def test_cifar10_is_prepared_from_the_official_archive_with_every_pixel_and_label(cifar10_dir, cifar10_archive):
    parts = {split: sources.SOURCES["cifar10"](split, cifar10_dir) for split in sources.SPLITS}
    assert [len(parts[split]) for split in sources.SPLITS] == [5 * IMAGES - 6, 6, IMAGES]
    together = [pair for s in ("train", "validation") for pair in zip(parts[s].labels, parts[s].images, strict=True)]
    found = {(int(y), x.tobytes()) for y, x in together}
    assert found == {(y, x.tobytes()) for y, x in official_images(cifar10_archive, "train")}
    found = {(int(y), x.tobytes()) for y, x in zip(parts["test"].labels, parts["test"].images, strict=True)}
    assert found == {(y, x.tobytes()) for y, x in official_images(cifar10_archive, "test")}
    assert parts["test"].class_names[6] == "frog"


def test_prepared_cifar10_is_read_by_the_stock_tfds(cifar10_dir):
    import tensorflow_datasets as tfds

    sources.SOURCES["cifar10"]("test", cifar10_dir)
    stock = tfds.data_source("cifar10", split="test", data_dir=cifar10_dir, download=False)
    assert len(stock) == IMAGES
    assert stock[0]["image"].shape == (32, 32, 3)


def test_order_depends_on_the_pixels_and_not_on_the_preparation(cifar10_dir, monkeypatch, tmp_path):
    before = sources.SOURCES["cifar10"]("train", cifar10_dir)
    whole = prepare.open_dataset

    class Reversed:
        def __init__(self, dataset):
            self.dataset = dataset

        def __len__(self):
            return len(self.dataset)

        def __getitem__(self, key):
            return self.dataset[len(self.dataset) - 1 - key]

    def reversed_dataset(*args):
        dataset, *rest = whole(*args)
        return Reversed(dataset), *rest

    monkeypatch.setattr(prepare, "open_dataset", reversed_dataset)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    sources._tfds_arrays.cache_clear()
    after = sources.SOURCES["cifar10"]("train", cifar10_dir)
    assert after.fingerprint() == before.fingerprint()
    np.testing.assert_array_equal(after.images, before.images)


def test_a_missing_data_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="no data folder .*nowhere"):
        prepare.open_dataset("cifar10", "train", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("lost", ["cifar10-train.array_record-00000-of-00001", "dataset_info.json"])
def test_a_half_prepared_folder_is_refused(cifar10_dir, tmp_path, lost):
    sources.SOURCES["cifar10"]("train", cifar10_dir)
    next(tmp_path.rglob(lost)).unlink()
    sources._tfds_arrays.cache_clear()
    with pytest.raises(InputError, match="incomplete.*delete this folder"):
        sources.SOURCES["cifar10"]("train", cifar10_dir)


def test_a_copy_in_tfrecord_files_is_refused_with_a_way_out(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    info = {"name": "cifar10", "version": "3.0.2", "fileFormat": "tfrecord", "splits": []}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text("{}")
    with pytest.raises(InputError, match="was prepared as TFRecord files, which need TensorFlow: name another folder"):
        prepare.open_dataset("cifar10", "train", str(tmp_path))
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(InputError, match="is damaged .*: delete it and run again"):
        prepare.open_dataset("cifar10", "train", str(tmp_path))


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, url):
        raise ConnectionError("no route")

    monkeypatch.setattr(tfds.download.DownloadManager, "download", fail)
    with pytest.raises(InputError, match=r"cannot download https://.*check the network"):
        prepare.open_dataset("cifar10", "train", str(tmp_path))


def test_photos_have_three_regions_that_share_no_pixel(tmp_path):
    # Each pixel of these photographs says where it lies: red and green count columns and rows in steps of 4.
    rows, columns = np.mgrid[0:400, 0:600]
    photograph = np.stack([columns // 4, rows // 4, 0 * rows], axis=-1).astype(np.uint8)
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png"):
        Image.fromarray(photograph).save(tmp_path / name)
    Image.fromarray(photograph).save(tmp_path / "rocket.jpg", quality=100)
    seen = {}
    for split in sources.SPLITS:
        source = sources.photos(split, str(tmp_path))
        lossless = source.images[source.labels != sources.PHOTOS.index("rocket")]
        seen[split] = set(np.unique(lossless[..., 0].astype(int) * 256 + lossless[..., 1]).tolist())
    assert len(seen["train"]) > 5000  # of 15,000 cells of 4x4 pixels
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not seen[one] & seen[other]


def test_the_shipped_photographs_are_there():
    test = sources.photos("test", None)
    assert test.images.dtype == np.uint8
    assert test.image_shape == (32, 32, 3)
    assert set(test.labels.tolist()) == set(range(5))
    assert test.fingerprint() == sources.photos("test", None).fingerprint()


def test_streams_of_different_purposes_share_no_numbers():
    keys = [("a", 1, 5), ("a", 1, 5, 0), ("a", 15), ("a", 1), ("b", 1, 5), ("a 1", 5), ("a",), ("a", -1)]
    drawn = {transforms.random_stream(*key).random(4).tobytes() for key in keys}
    assert len(drawn) == len(keys)
    again = transforms.random_stream("a", np.int64(1), np.uint8(5)).random(4).tobytes()
    assert again == transforms.random_stream("a", 1, 5).random(4).tobytes()


def test_the_photographs_are_ordered_as_in_every_committed_result():
    # As version 0.1 ordered them: which images are validation, and their first, decide every figure.
    found = [sources.photos(split, None).fingerprint() for split in sources.SPLITS]
    assert found == ["d64f64d2f1374d38", "0b55107ab2ebd8fb", "b193848f375d11ad"]


def numbered(size):
    images = np.arange(size, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((1, 2, 2, 1), np.uint8)
    return ArraySource("numbered", "train", images, np.arange(size, dtype=np.int32), ("all",) * size)


def test_every_epoch_sees_every_image_once_in_another_order():
    source = numbered(10)
    seen = np.concatenate(
        [batches.batch_at(source, 4, seed=3, flip=False, step=s, stage="model")["label"] for s in range(5)]
    )
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert list(seen[:10]) != list(seen[10:])


def test_the_stages_share_neither_order_nor_flips():
    source = numbered(1000)
    model, prior = (batches.batch_at(source, 1000, 1, True, 0, stage=stage) for stage in ("model", "prior"))
    assert sorted(model["label"]) == sorted(prior["label"])
    assert np.mean(model["label"] == prior["label"]) < 0.02
    assert batches.random_stream("model shuffle", 0, 1).random() != batches.random_stream("sample", 0, 1).random()


@pytest.mark.parametrize(("changes", "message"), [({"batch_size": 0}, "1"), ({"num_threads": -1}, "0")])
def test_options_of_batches_are_in_range(changes, message):
    (key, value), options = *changes.items(), {"batch_size": 4, "num_threads": 0} | changes
    with pytest.raises(InputError, match=f"data.{key} is {value}: it must be at least {message}"):
        batches.train_batches(numbered(9), seed=0, flip=False, steps=range(2), stage="model", **options)


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_a_batch_depends_on_seed_and_step_alone(num_threads):
    source = numbered(10)
    expected = [batches.batch_at(source, 4, seed=1, flip=True, step=s, stage="model") for s in range(3, 9)]
    made = batches.train_batches(source, 4, 1, True, range(3, 9), num_threads, stage="model")
    for got, want in zip(made, expected, strict=True):
        assert got.keys() == {"image", "label", "mask"}
        for key in want:
            np.testing.assert_array_equal(got[key], want[key])
    other = batches.batch_at(source, 4, seed=2, flip=True, step=3, stage="model")
    assert list(other["label"]) != list(expected[0]["label"])


def test_two_processes_get_the_two_halves_of_the_same_batch(monkeypatch):
    source = numbered(10)
    whole = batches.batch_at(source, 4, seed=1, flip=True, step=2, stage="model")
    monkeypatch.setattr(batches.jax, "process_count", lambda: 2)
    halves = []
    for index in range(2):
        monkeypatch.setattr(batches.jax, "process_index", lambda index=index: index)
        halves.append(batches.batch_at(source, 4, seed=1, flip=True, step=2, stage="model"))
    for key in whole:
        np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), whole[key])


def test_flips_mirror_about_half_of_the_images_and_nothing_else():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 2), dtype=np.uint8)
    flipped = transforms.flip_where(images, np.array([True, False, True]))
    np.testing.assert_array_equal(flipped[1], images[1])
    np.testing.assert_array_equal(flipped[0], images[0][:, ::-1])
    source = ArraySource("one", "train", images[:1], np.zeros(1, np.int32), ("x",))
    many = batches.batch_at(source, 400, seed=0, flip=True, step=0, stage="model")["image"]
    share = np.mean([np.array_equal(image, images[0][:, ::-1]) for image in many])
    assert 0.4 < share < 0.6


@pytest.mark.parametrize(("batch_size", "num_images", "expected"), [(4, 0, 10), (10, 0, 10), (3, 7, 7), (16, 99, 10)])
def test_evaluation_sees_every_image_exactly_once(batch_size, num_images, expected):
    # Regression 5: the last, partial batch counts, and none follows it.
    got = list(batches.eval_batches(numbered(10), batch_size, num_images))
    assert {len(batch["mask"]) for batch in got} == {batch_size}
    labels = np.concatenate([batch["label"][batch["mask"]] for batch in got])
    assert list(labels) == list(range(expected))


def test_reading_data_imports_no_tensorflow():
    code = "import sys; from vqvae_jax.data import sources, prepare; prepare._import_tfds(); sources.photos('test', None); "
    code += "sys.exit('tensorflow' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
