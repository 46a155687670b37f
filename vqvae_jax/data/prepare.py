"""TFDS data sets without TensorFlow: the stock builder's name, version and features, our reading of the archives.

What this writes, the stock `tfds.data_source` reads, and the other way round. TFDS writes into a folder of another
name and renames it at the end, so a data set is there whole or not at all.
"""

import contextlib
import gzip
import io
import logging
import math
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from vqvae_jax.data.image_files import encode
from vqvae_jax.errors import InputError, is_out_of_space

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
CIFAR10_FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
IMAGENET_FILES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
IMAGENET_COUNTS = {"train": 1_281_167, "validation": 50_000}
TAR_END = 1024  # bytes, all zero, at the end of a tar

Examples = Iterator[tuple[str, dict]]


def _png_of_planes(planes: np.ndarray) -> bytes:
    """Encode the red, green and blue planes of a square image."""
    side = math.isqrt(planes.size // 3)
    return encode(planes.reshape(3, side, side).transpose(1, 2, 0))


def cifar10_examples(split: str, archive: Path) -> Examples:
    """Read one split of the official binary archive: (key, {"id", "image" (PNG bytes), "label"})."""
    with tarfile.open(archive) as tar:
        members = {Path(member.name).name: member for member in tar}
        if absent := [name for name in CIFAR10_FILES[split] if name not in members]:
            raise InputError(f"{archive} holds no {absent[0]}: delete it, so that it is downloaded again")
        files = [tar.extractfile(members[name]) for name in CIFAR10_FILES[split]]
        records = np.frombuffer(b"".join(file.read() for file in files if file), np.uint8)
    for number, record in enumerate(records.reshape(-1, CIFAR10_RECORD)):
        key = f"{split}_{number:05d}"
        yield key, {"id": key, "image": _png_of_planes(record[1:]), "label": int(record[0])}


def fashion_mnist_examples(split: str, images: Path, labels: Path) -> Examples:
    """Read one split from gzipped IDX files, which have headers of 16 and 8 bytes: (number, {"image", "label"})."""
    pixels = np.frombuffer(gzip.decompress(images.read_bytes()), np.uint8, offset=16).reshape(-1, 28, 28)
    classes = np.frombuffer(gzip.decompress(labels.read_bytes()), np.uint8, offset=8)
    for number, (image, label) in enumerate(zip(pixels, classes, strict=True)):
        yield str(number), {"image": encode(image), "label": int(label)}


def imagenet_resized_examples(split: str, *archives: Path) -> Examples:
    """Read the zipped NumPy files of one split, whose labels count from 1."""
    for archive in archives:
        with zipfile.ZipFile(archive) as zipped:
            for name in sorted(zipped.namelist()):
                with np.load(io.BytesIO(zipped.read(name)), allow_pickle=False) as part:
                    for number, (planes, label) in enumerate(zip(part["data"], part["labels"], strict=True)):
                        yield f"{name}{number}", {"image": _png_of_planes(planes), "label": int(label) - 1}


def _members(archive: str, file) -> Iterator[tuple[str, bytes]]:
    """Stream the files of a tar: name and content; InputError after them if it doesn't end as a tar does."""
    end = 0  # where the zeros of a tar's end must be: at its start, where none are, unless it is read to the end
    with contextlib.suppress(tarfile.ReadError), tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            if member.isfile() and (content := tar.extractfile(member)):
                yield Path(member.name).name, content.read()
        end = tar.offset
    file.seek(end)
    if file.read(TAR_END) != bytes(TAR_END):  # which Python's reader doesn't ask for
        raise InputError(f"{archive} is cut off or damaged: download it again, and compare its MD5 sum with the site's")


def _as_rgb_jpeg(data: bytes) -> bytes:
    """Encode again, at the best quality, what is no RGB JPEG."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    return encode(np.asarray(image), "JPEG", quality=100, subsampling=0)


def _imagenet_train(archive: Path, file) -> Iterator[tuple[str, str, bytes]]:
    """Stream a tar of one tar per synset: (file name, synset, file)."""
    for outer, content in _members(archive.name, file):
        if not re.fullmatch(r"n\d{8}\.tar", outer):
            raise InputError(f"{archive} holds {outer}, not a tar per synset: it isn't the official archive")
        for name, data in _members(f"{outer} in {archive.name}", io.BytesIO(content)):
            yield name, Path(outer).stem, data


def _imagenet_validation(archive: Path, file) -> Iterator[tuple[str, str, bytes]]:
    """Stream a tar of images, whose names number TFDS's list of their synsets: (file name, synset, file)."""
    labels = _import_tfds().core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    for name, data in _members(archive.name, file):
        number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
        if not number or not 1 <= int(number[1]) <= len(labels):
            raise InputError(f"{archive} holds {name}, no official name: put the official archive there")
        yield name, labels[int(number[1]) - 1], data


def imagenet_examples(split: str, archive: Path) -> Examples:
    """Stream an archive once: (file name, {"image", "label", "file_name"}).

    Another number of images than the official one is said; the files that TFDS lists as CMYK or PNG are converted.
    """
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock

    number, read = 0, {"train": _imagenet_train, "validation": _imagenet_validation}[split]
    with open(archive, "rb") as raw, tqdm.wrapattr(raw, "read", archive.stat().st_size, desc=archive.name) as file:
        for name, synset, data in read(archive, file):
            data = _as_rgb_jpeg(data) if name in stock.CMYK_IMAGES + stock.PNG_IMAGES else data
            yield name, {"image": data, "label": synset, "file_name": name}
            number += 1
    if number != IMAGENET_COUNTS[split]:
        print(f"{archive.name}: {number:,} images, not the {IMAGENET_COUNTS[split]:,} of ILSVRC 2012", flush=True)


def _import_tfds():
    logger = logging.getLogger("absl")
    logger.setLevel(max(logger.level, logging.ERROR))  # TFDS advises on OpenCV and GCS, neither of which is used
    import tensorflow_datasets as tfds

    return tfds


def write_dataset(name: str, data_dir: str | None, splits: Callable) -> None:
    """Write the TFDS data set `name` in ArrayRecord files; `splits(download_manager)` gives examples by split."""
    tfds = _import_tfds()
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    builder._split_generators = splits  # pyright: ignore - of its sub-classes
    if name == "cifar10":  # the stock code reads the names from the archive
        builder.info.features["label"].names = list(CIFAR10_CLASSES)  # pyright: ignore - a FeaturesDict
    for remnant in Path(builder.data_path).parent.glob("incomplete.*"):
        shutil.rmtree(remnant, ignore_errors=True)  # of a preparation that was interrupted
    builder._log_download_bytes = lambda: None  # "Unknown size", as nothing is registered with TFDS
    tfds.disable_progress_bar()
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def _download(dl_manager, url: str) -> Path:
    try:
        return Path(dl_manager.download(url))
    except Exception as error:
        if is_out_of_space(error):
            raise
        what = f"cannot download {url} ({type(error).__name__})"
        raise InputError(f"{what}: check the network, or name the folder of a prepared copy with --data_dir") from error


def _downloaded(read: Callable, address: str, dl_manager, **files: list[str]) -> dict[str, Examples]:
    """Give the examples of every split, which `read` takes from the files whose names fill the `address`."""
    urls = {split: [address.format(name) for name in names] for split, names in files.items()}
    return {split: read(split, *[_download(dl_manager, url) for url in urls[split]]) for split in urls}


def _imagenet2012(dl_manager) -> dict[str, Examples]:
    folder = Path(dl_manager.download_dir) / "manual"
    for name in IMAGENET_FILES.values():
        if not (folder / name).is_file():
            raise InputError(
                f"no {name} in {folder}: register at https://image-net.org/download-images, "
                "download the ILSVRC 2012 archives of training and validation images and put them there"
            )
    return {split: imagenet_examples(split, folder / name) for split, name in IMAGENET_FILES.items()}


_cifar10 = partial(_downloaded, cifar10_examples, "https://www.cs.toronto.edu/~kriz/{}")
_resized = partial(_downloaded, imagenet_resized_examples, "https://image-net.org/data/downsample/Imagenet{}_npz.zip")
PREPARE = {  # files by split
    "cifar10": partial(_cifar10, train=["cifar-10-binary.tar.gz"], test=["cifar-10-binary.tar.gz"]),
    "fashion_mnist": partial(
        _downloaded,
        fashion_mnist_examples,
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{}-ubyte.gz",
        train=["train-images-idx3", "train-labels-idx1"],
        test=["t10k-images-idx3", "t10k-labels-idx1"],
    ),
    "imagenet2012": _imagenet2012,
    "imagenet_resized/32x32": partial(_resized, train=["32_train"], validation=["32_val"]),
    "imagenet_resized/64x64": partial(_resized, train=["64_train_part1", "64_train_part2"], validation=["64_val"]),
}


def open_dataset(name: str, split: str, data_dir: str | None):
    """Open a TFDS split for random access, images as file bytes; prepare the data set first if it is not there.

    Gives the data source, the names of its classes, the number of channels, and the folder in which it lies. InputError
    if `data_dir` does not exist, the data set in it is damaged, or it can't be downloaded.
    """
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)
        if not os.path.isdir(data_dir):
            raise InputError(f"no data folder {data_dir}: create it, or name the one that holds {name} with --data_dir")
    tfds = _import_tfds()
    stock = _stock_builder(tfds, name, data_dir)
    folder, root = Path(stock.data_path), Path(stock.data_dir_root)
    if not folder.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        with open(root / ".preparing", "w") as lock:  # goes with the process that holds it
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():  # nor has another process prepared it meanwhile
                print(f"preparing {name} in {folder.parent}, once", flush=True)
                write_dataset(name, data_dir, PREPARE[name])
        stock = _stock_builder(tfds, name, data_dir)
    try:
        about = stock.info.splits[split]  # a split that isn't there is a KeyError
        for path in about.filepaths:
            os.stat(path)
        decoders = {"image": tfds.decode.SkipDecoding()}
        dataset = stock.as_data_source(split=split, decoders=decoders)  # pyright: ignore - wrapt hides the signature
        if len(dataset) != about.num_examples:
            raise FileNotFoundError(f"{about.num_examples - len(dataset)} images of {split}")
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        what = f"{name} in {folder} is incomplete ({error})"
        raise InputError(f"{what}: delete this folder and run again, so that it is prepared anew") from error
    features: Any = stock.info.features
    return dataset, tuple(features["label"].names), features["image"].shape[-1], folder


def _stock_builder(tfds, name, data_dir):
    """Give the stock builder of `name`, which reads what the folder says of itself."""
    where = f"{name} in {data_dir or tfds.core.constants.DATA_DIR}"
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except ValueError as error:
        if "File format is already set" not in str(error):
            raise
        what = f"{where} was prepared as TFRecord files, which need TensorFlow"
        raise InputError(f"{what}: name another folder with --data_dir, in which it is prepared anew") from error
    except Exception as error:
        raise InputError(f"{where} is damaged ({type(error).__name__}): delete it and run again") from error
