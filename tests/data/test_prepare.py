"""Images on disk: the official ImageNet archives through the real builder, folders, small and damaged files."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from PIL import Image

from vqvae_jax import registry
from vqvae_jax.data import batches, image_files, prepare, sources, transforms
from vqvae_jax.errors import InputError

SYNSETS = ("n01440764", "n01443537", "n02105855", "n01739381")
PER_SYNSET = 6


def picture(seed, width=50, height=40, channels=3):
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    return Image.fromarray(coarse.squeeze()).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, kind="JPEG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """A manual folder with both archives in the official layout; one PNG, one CMYK and one tiny file among them."""
    folder = tmp_path_factory.mktemp("manual")
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for number, synset in enumerate(SYNSETS):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for n in range(PER_SYNSET):
                    add(tar, f"{synset}_{n}.JPEG", encoded(picture(100 * number + n)))
                if synset == "n02105855":
                    add(tar, "n02105855_2933.JPEG", encoded(picture(900), "PNG"))
                if synset == "n01739381":
                    add(tar, "n01739381_1309.JPEG", encoded(picture(901).convert("CMYK")))
                    add(tar, "n01739381_99.JPEG", encoded(picture(902, 8, 10)))
            add(outer, f"{synset}.tar", inner.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for n in (2, 1, 3):
            add(tar, f"ILSVRC2012_val_{n:08d}.JPEG", encoded(picture(1000 + n)))
    return folder


@pytest.fixture(scope="session")
def imagenet_dir(archives, tmp_path_factory):
    """A data folder in which the real builder has prepared those archives."""
    folder = tmp_path_factory.mktemp("imagenet")
    (folder / "downloads").mkdir()
    (folder / "downloads" / "manual").symlink_to(archives)
    prepare.open_dataset("imagenet2012", "train", str(folder))
    return folder


@pytest.fixture
def section(config, imagenet_dir):
    return config["data"] | {"name": "imagenet2012", "data_dir": str(imagenet_dir), "image_size": 32}


def names_and_labels(name, split, folder):
    source = sources._tfds_files(name, split, str(folder))
    rows = [source.fetch(number) for number in range(len(source))]
    return {name: (source.class_names[label], data) for name, label, data in rows}


def test_imagenet_is_prepared_from_the_official_archives(imagenet_dir):
    found = names_and_labels("imagenet2012", "train", imagenet_dir)
    assert len(found) == len(SYNSETS) * PER_SYNSET + 3
    for name, (label, _) in found.items():
        assert name.startswith(label)
    assert found["n01440764_3.JPEG"][1] == encoded(picture(3)), "a JPEG's bytes are kept"
    for name, seed in (("n02105855_2933.JPEG", 900), ("n01739381_1309.JPEG", 901)):
        image = Image.open(io.BytesIO(found[name][1]))
        assert (image.format, image.mode) == ("JPEG", "RGB")
        tolerance = 3 if seed == 900 else 40  # Pillow's way from CMYK knows no profiles
        np.testing.assert_allclose(np.asarray(image, float), np.asarray(picture(seed), float), atol=tolerance)


def test_validation_labels_follow_the_sorted_file_names(imagenet_dir):
    import tensorflow_datasets as tfds

    official = tfds.core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    found = names_and_labels("imagenet2012", "validation", imagenet_dir)
    for n in (1, 2, 3):
        name = f"ILSVRC2012_val_{n:08d}.JPEG"
        assert found[name] == (official[n - 1], encoded(picture(1000 + n)))


def test_prepared_imagenet_is_read_by_the_stock_tfds(imagenet_dir):
    import tensorflow_datasets as tfds

    stock = tfds.data_source("imagenet2012", split="validation", data_dir=str(imagenet_dir), download=False)
    assert len(stock) == 3
    assert stock[0]["image"].shape == (40, 50, 3)


def test_missing_archives_are_named_with_where_to_put_and_get_them(tmp_path):
    with pytest.raises(InputError, match=r"no ILSVRC2012_img_train.tar in .*manual: register at https://image-net.org"):
        prepare.open_dataset("imagenet2012", "train", str(tmp_path))


def test_an_interrupted_preparation_is_begun_again(archives, imagenet_dir, tmp_path, monkeypatch):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "manual").symlink_to(archives)
    whole = prepare.imagenet_examples

    def interrupted(*args):
        for n, example in enumerate(whole(*args)):
            if n == 5:
                raise KeyboardInterrupt
            yield example

    monkeypatch.setattr(prepare, "imagenet_examples", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.open_dataset("imagenet2012", "train", str(tmp_path))
    remnant = tmp_path / "imagenet2012" / "incomplete.ABCDEF_5.1.0"
    remnant.mkdir(parents=True)  # as a kill leaves it
    monkeypatch.setattr(prepare, "imagenet_examples", whole)
    prepare.open_dataset("imagenet2012", "train", str(tmp_path))
    assert not remnant.exists()
    assert names_and_labels("imagenet2012", "train", tmp_path) == names_and_labels(
        "imagenet2012", "train", imagenet_dir
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", prepare.IMAGENET_FILES.values())
@pytest.mark.parametrize("cut", ["between", "within"])
def test_an_archive_that_was_cut_off_is_refused(archives, tmp_path, name, cut):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    for other in prepare.IMAGENET_FILES.values():
        (manual / other).write_bytes((archives / other).read_bytes())
    with tarfile.open(archives / name) as tar:
        second = tar.getmembers()[1].offset
    data = (archives / name).read_bytes()
    (manual / name).write_bytes(data[: second + (0 if cut == "between" else 700)])
    with pytest.raises(InputError, match=f"{name} is cut off or damaged: download it again"):
        prepare.open_dataset("imagenet2012", "train", str(tmp_path))
    assert not list(tmp_path.rglob("5.1.0"))


def test_archives_of_another_layout_are_refused(archives, tmp_path):
    manual = tmp_path / "downloads" / "manual"
    manual.mkdir(parents=True)
    train, validation = prepare.IMAGENET_FILES.values()
    (manual / train).symlink_to(archives / validation)
    (manual / validation).symlink_to(archives / train)
    with pytest.raises(InputError, match="holds ILSVRC2012_val_00000002.JPEG, not a tar per synset"):
        prepare.open_dataset("imagenet2012", "train", str(tmp_path))
    (manual / train).unlink()
    (manual / train).symlink_to(archives / train)
    with pytest.raises(InputError, match=r"holds n01440764.tar, no official name"):
        prepare.open_dataset("imagenet2012", "train", str(tmp_path))


def test_splits_share_no_image_and_small_ones_are_left_out_and_listed(section, cache, capsys):
    parts = {split: registry.build_source(section, split) for split in sources.SPLITS}
    total = len(SYNSETS) * PER_SYNSET + 3
    assert [len(parts[split]) for split in sources.SPLITS] == [total - 2 - 1, 2, 3]
    assert not set(parts["train"].scan["name"]) & set(parts["validation"].scan["name"])
    assert (parts["train"].images_removed, parts["train"].image_shape) == (1, (32, 32, 3))
    assert "1 of 25 images left out, a side under 32" in capsys.readouterr().out
    listed = next(cache.rglob("*_train_removed_below_32.txt")).read_text()
    assert listed == "n01739381_99.JPEG 8x10\n"


def scan_of(root):
    return np.sort(np.concatenate([sources.folder(split, str(root)).scan for split in sources.SPLITS]), order="name")


def test_the_scan_is_kept_and_made_anew_when_the_data_change(tree, cache, monkeypatch):
    first = scan_of(tree)
    assert set(zip(first["width"], first["height"], strict=True)) == {(40 + n, 50) for n in range(40)}
    monkeypatch.setattr(image_files, "_header", None)  # reading a header now is an error
    np.testing.assert_array_equal(scan_of(tree), first)
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    picture(3, 99, 77).save(tree / "dog" / "more" / "3.png")
    changed = scan_of(tree)
    assert (99, 77) in set(zip(changed["width"], changed["height"], strict=True))
    kept = list(cache.rglob("*.npz"))
    assert len(kept) == 1
    kept[0].write_bytes(b"PK damaged")
    np.testing.assert_array_equal(scan_of(tree), changed)


def test_nothing_is_written_into_a_folder_of_images(config, tree, cache):
    before = sorted(tree.rglob("*"))
    registry.build_source(folder_section(config, tree, min_side=45), "train")
    assert sorted(tree.rglob("*")) == before
    listed = next((cache / "vqvae_jax").rglob("*_train_removed_below_45.txt")).read_text()
    assert listed.count("x50\n") == len(listed.splitlines()) > 0
    scan_of(tree)
    assert len(list(cache.rglob("*.npz"))) == 1, "its splits share a scan"


def test_files_that_are_no_images_by_their_suffix_are_listed_once(tree, capsys):
    for name in ("a.heic", "b.HEIC", "cat/c.jxl", "LICENSE"):
        (tree / name).write_bytes(b"what it is, nobody can tell")
    sources.folder("test", str(tree))
    assert not capsys.readouterr().out
    sources.folder("train", str(tree))
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert "5 files are left out" in out
    for part in ("2 .heic (a.heic)", "1 .jxl (cat/c.jxl)", "1 .txt (notes.txt)", "1 without suffix (LICENSE)"):
        assert part in out


def test_training_crops_are_torchvisions_of_the_box_that_the_uniforms_name(section):
    source = registry.build_source(section, "train")
    uniforms = np.random.default_rng(0).random((3, transforms.UNIFORMS))
    batch = source.draw(np.array([4, 0, 7]), uniforms)
    assert batch["mask"].all()
    for row, index in enumerate((4, 0, 7)):
        name, _, data = source.fetch(int(source.scan["number"][index]))
        image = image_files.decode(data, 3)
        box = transforms.random_box(*image.size, (0.2, 1.0), uniforms[row])
        np.testing.assert_array_equal(batch["image"][row], np.asarray(transforms.crop_to(image, box, 32)))
        assert source.class_names[batch["label"][row]] == name.split("_")[0]


def test_evaluation_crops_are_the_same_every_time(section):
    for eval_crop in ("centre", "random"):
        source = registry.build_source(section | {"eval_crop": eval_crop}, "train")
        whole = source.take(np.arange(6))["image"]
        np.testing.assert_array_equal(source.take(np.array([4, 2]))["image"], whole[[4, 2]])
        assert source.crop_name == eval_crop
    centre = registry.build_source(section, "train").take(np.arange(6))["image"]
    assert (centre != whole).any()


@pytest.mark.parametrize("num_threads", [0, 1, 2])
def test_batches_resume_in_the_middle_of_an_epoch(section, num_threads):
    source = registry.build_source(section, "train")
    whole = list(
        batches.train_batches(source, 4, 0, True, range(9), num_threads, stage="model")
    )  # 22 images: more than an epoch
    rest = list(batches.train_batches(source, 4, 0, True, range(5, 9), 1, stage="model"))
    for one, other in zip(whole[5:], rest, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
    assert len({batch["image"].tobytes() for batch in whole}) == 9


def test_two_processes_share_a_batch_of_crops(section, monkeypatch):
    source = registry.build_source(section, "train")
    whole = batches.batch_at(source, 6, 0, True, 3, stage="model")
    monkeypatch.setattr(batches.jax, "process_count", lambda: 2)
    halves = []
    for index in range(2):
        monkeypatch.setattr(batches.jax, "process_index", lambda index=index: index)
        halves.append(batches.batch_at(source, 6, 0, True, 3, stage="model"))
    for key in whole:
        np.testing.assert_array_equal(np.concatenate([half[key] for half in halves]), whole[key])


@pytest.fixture
def tree(tmp_path):
    """A tree of images in two classes, 40 files, two of them damaged; and other files, which do not count."""
    for n in range(40):
        path = tmp_path / ("cat" if n % 3 else "dog") / "more" / f"{n}.{'png' if n % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(n, 40 + n, 50).save(path)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def folder_section(config, tree, **changes):
    return config["data"] | {"name": "folder", "data_dir": str(tree), "image_size": 16} | changes


def test_a_folder_is_split_by_its_paths_and_labelled_by_its_sub_folders(config, tree):
    parts = {split: registry.build_source(folder_section(config, tree), split) for split in sources.SPLITS}
    names = [set(part.scan["name"]) for part in parts.values()]
    assert sum(map(len, names)) == len(set.union(*names)) == 40
    for split, part in parts.items():
        low, high = sources.FOLDER_SHARES[split]
        for name, label in zip(part.scan["name"], part.labels, strict=True):
            assert low <= sources.hash_share(name) < high
            assert name.startswith(part.class_names[label] + "/")
    (tree / "cat" / "new.png").write_bytes((tree / "cat" / "more" / "1.png").read_bytes())
    more = registry.build_source(folder_section(config, tree), "test")
    assert set(parts["test"].scan["name"]) <= set(more.scan["name"]), "another file moves none"


def test_a_fingerprint_tells_pixels_labels_and_training_crops_but_not_evaluations(config, tree):
    def fingerprint(**changes):
        return registry.build_source(folder_section(config, tree, **changes), "train").fingerprint()

    first = fingerprint()
    assert fingerprint(eval_crop="random") == first
    assert fingerprint(crop_scale=(0.5, 1.0)) != first
    source = registry.build_source(folder_section(config, tree), "train")
    path = tree / source.scan["name"][3]
    picture(77, *Image.open(path).size).save(path)  # in place, of the same size
    assert fingerprint() != first


def test_sources_go_to_other_processes(section, config, tree):
    for of_files in (section, folder_section(config, tree), config["data"] | {"image_size": 16}):
        source = registry.build_source(of_files, "train")
        there = pickle.loads(pickle.dumps(source))
        drawn = np.arange(4), np.random.default_rng(0).random((4, transforms.UNIFORMS))
        np.testing.assert_array_equal(there.draw(*drawn)["image"], source.draw(*drawn)["image"])


def test_hidden_files_and_folders_hold_no_images(config, tree):
    before = scan_of(tree)["name"].tolist()
    for name in (".thumbnails/cat/1.png", "cat/.trash/1.png", "cat/._1.png"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        picture(0).save(tree / name)
    assert scan_of(tree)["name"].tolist() == before


def test_a_file_without_a_header_is_bad_and_not_small(config, tree, capsys):
    source = registry.build_source(folder_section(config, tree), "train")
    (tree / source.scan["name"][2]).write_bytes(b"not an image")
    source = registry.build_source(folder_section(config, tree, max_bad_images=1), "train")
    assert source.images_removed == 0
    batch = source.take(np.arange(len(source)))
    assert list(np.flatnonzero(~batch["mask"])) == [2]
    assert list(source.bad) == [source.scan["name"][2]]


def test_nothing_but_bad_images_stops(config, tree):
    source = registry.build_source(folder_section(config, tree, max_bad_images=1000), "train")
    damage(tree, source, *range(len(source)))
    with pytest.raises(InputError, match="not one image of folder, train, can be decoded"):
        source.draw(np.array([3]), np.zeros((1, transforms.UNIFORMS)))


def damage(root, source, *rows):
    for row in rows:
        path = root / source.scan["name"][row]
        path.write_bytes(path.read_bytes()[:-60])


def test_damaged_files_are_skipped_named_and_counted_up_to_a_number(config, tree, capsys):
    source = registry.build_source(folder_section(config, tree, max_bad_images=2), "train")
    before = source.take(np.arange(len(source)))
    damage(tree, source, 3, 5)
    uniforms = np.random.default_rng(0).random((4, transforms.UNIFORMS))
    batch = source.draw(np.array([2, 3, 4, 5]), uniforms)
    instead = source.draw(np.array([2, 4, 4, 6]), uniforms)
    np.testing.assert_array_equal(batch["image"], instead["image"])
    assert batch["mask"].all()
    assert set(source.bad) == {source.scan["name"][3], source.scan["name"][5]}
    out = capsys.readouterr().out
    assert f"skipped {source.scan['name'][3]}, bad image 1 of at most 2: " in out
    source.draw(np.array([3]), uniforms[:1])
    assert capsys.readouterr().out == "", "each is named once"

    taken = source.take(np.arange(len(source)))
    assert list(np.flatnonzero(~taken["mask"])) == [3, 5]
    np.testing.assert_array_equal(taken["image"][taken["mask"]], before["image"][taken["mask"]])
    seen = list(batches.eval_batches(source, 8))
    assert sum(batch["mask"].sum() for batch in seen) == len(source) - 2

    damage(tree, source, 9)
    with pytest.raises(InputError, match=r"3 images of folder can't be decoded, the last one .*data.max_bad_images"):
        list(batches.train_batches(source, 8, 0, False, range(9), 2, stage="model"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": None}, "the images of folder differ in size: choose one with data.image_size"),
        ({"min_side": 1000}, "no image of folder, train, has sides of 1000 or more: lower data.min_side"),
        ({"channels": 2}, "data.channels is 2: known: 1"),
        ({"eval_crop": "center"}, "unknown data.eval_crop 'center': known: centre, random"),
        ({"crop_scale": (0.0, 1.0)}, "data.crop_scale is .*two shares"),
        ({"crop_scale": (0.2,)}, "data.crop_scale is .*two shares"),
        ({"image_size": 0}, "data.image_size is 0: it must be at least 1"),
        ({"min_side": 0}, "data.min_side is 0: it must be at least 1"),
        ({"max_bad_images": -1}, "data.max_bad_images is -1: it must be at least 0"),
        ({"data_dir": None}, "the data set 'folder' needs --data_dir=DIR"),
        ({"data_dir": "nowhere"}, "no data folder nowhere"),
    ],
)
def test_options_that_do_not_fit_the_images_are_one_clear_line(config, tree, changes, message):
    with pytest.raises(InputError, match=message) as caught:
        registry.build_source(folder_section(config, tree, **changes), "train")
    assert "\n" not in str(caught.value)


def test_an_empty_folder_is_named(config, tmp_path):
    with pytest.raises(InputError, match="no images in .*known are files ending in"):
        registry.build_source(folder_section(config, tmp_path), "train")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_one_three_and_four_channels(config, tree, channels):
    source = registry.build_source(folder_section(config, tree, channels=channels), "train")
    assert source.take(np.arange(2))["image"].shape == (2, 16, 16, channels)


def test_photos_take_another_size_where_a_config_wants_one(config):
    source = registry.build_source(config["data"] | {"image_size": 16}, "test")
    batch = source.draw(np.arange(3), np.random.default_rng(0).random((3, transforms.UNIFORMS)))
    assert batch["image"].shape == (3, 16, 16, 3)
    assert source.class_names == sources.PHOTOS
    with pytest.raises(InputError, match="data.channels is 1, the images of photos have 3"):
        registry.build_source(config["data"] | {"channels": 1}, "test")


def test_fashion_mnist_is_prepared_from_its_four_files(tmp_path, config, monkeypatch):
    import gzip

    import tensorflow_datasets as tfds

    random, arrays = np.random.default_rng(0), {}
    for prefix, size in (("train", 30), ("t10k", 7)):
        arrays[prefix] = random.integers(0, 256, (size, 28, 28), np.uint8), random.integers(0, 10, size, np.uint8)
        for array, name in zip(arrays[prefix], ("images-idx3-ubyte", "labels-idx1-ubyte"), strict=True):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (tmp_path / f"{prefix}-{name}.gz").write_bytes(gzip.compress(header + array.tobytes()))
    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda self, url: tmp_path / url.rpartition("/")[2])
    (tmp_path / "data").mkdir()
    section = config["data"] | {"name": "fashion_mnist", "data_dir": str(tmp_path / "data")}
    parts = {split: registry.build_source(section, split) for split in sources.SPLITS}
    assert [len(parts[split]) for split in sources.SPLITS] == [27, 3, 7]
    assert parts["test"].image_shape == (28, 28, 1)
    found = {(int(y), x.tobytes()) for y, x in zip(parts["test"].labels, parts["test"].images, strict=True)}
    assert found == {(int(y), x.tobytes()) for x, y in zip(*arrays["t10k"], strict=True)}
    assert parts["test"].class_names[9] == "Ankle boot"


def prepare_imagenet_resized(folder, monkeypatch):
    """Prepare random images; give them and their labels by split, as in the archives."""
    import zipfile

    import tensorflow_datasets as tfds

    random, arrays = np.random.default_rng(0), {}
    for split, size in (("train", 30), ("val", 4)):
        arrays[split] = random.integers(0, 256, (size, 3 * 32 * 32), np.uint8), random.integers(1, 1001, size)
        out = io.BytesIO()
        np.savez(out, data=arrays[split][0], labels=arrays[split][1])
        with zipfile.ZipFile(folder / f"Imagenet32_{split}_npz.zip", "w") as zipped:
            zipped.writestr(f"{split}_32x32.npz", out.getvalue())
    monkeypatch.setattr(tfds.download.DownloadManager, "download", lambda self, url: folder / url.rpartition("/")[2])
    (folder / "data").mkdir()
    return arrays


def test_imagenet_resized_is_prepared_from_its_zipped_arrays(tmp_path, config, monkeypatch):
    arrays = prepare_imagenet_resized(tmp_path, monkeypatch)
    section = config["data"] | {"name": "imagenet_resized/32x32", "data_dir": str(tmp_path / "data")}
    test = registry.build_source(section, "test")
    assert (len(test), test.image_shape) == (4, (32, 32, 3))
    batch = test.take(np.arange(4))
    found = {(int(y) + 1, x.transpose(2, 0, 1).tobytes()) for y, x in zip(batch["label"], batch["image"], strict=True)}
    assert found == {(int(y), x.tobytes()) for x, y in zip(*arrays["val"], strict=True)}
    assert len(registry.build_source(section, "train")) == 27


def test_the_order_of_images_without_names_depends_on_no_encoder(tmp_path, config, monkeypatch):
    def encode(pixels, level):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG", compress_level=level)
        return out.getvalue()

    made = []
    for level in (0, 9):
        (tmp_path / str(level)).mkdir()
        prepare_imagenet_resized(tmp_path / str(level), monkeypatch)
        monkeypatch.setattr(prepare, "encode", lambda pixels, level=level: encode(pixels, level))
        section = config["data"] | {"name": "imagenet_resized/32x32", "data_dir": str(tmp_path / str(level) / "data")}
        made.append([registry.build_source(section, split) for split in ("train", "validation")])
    for one, other in zip(*made, strict=True):
        np.testing.assert_array_equal(*(source.take(np.arange(len(source)))["image"] for source in (one, other)))
        assert one.fingerprint() == other.fingerprint()


@pytest.mark.slow
def test_a_run_on_a_folder_trains_and_is_measured(config, tree, tmp_path):
    from vqvae_jax.evaluation.evaluate import evaluate
    from vqvae_jax.training import loop

    config["data"] = folder_section(config, tree)
    config["train"]["num_steps"] = 2
    run = loop.train(config, tmp_path / "run")
    source = registry.build_source(config["data"], "train")
    damage(tree, source, 0)
    result = evaluate(run, source)
    assert (result["crop"], result["images_removed"], result["images_undecodable"]) == ("centre", 0, 1)
    assert result["num_images"] == len(source) - 1
    assert json.dumps(result)
