"""TFDS data sets without TensorFlow: the stock builder's name, version and features, our reading of the archives.

What this writes, the stock `tfds.data_source` reads, and the other way round. TFDS writes into a folder of another
name and renames it at the end, so a data set is there whole or not at all.
"""

import contextlib
import gzip
import io
import logging
import os
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from vqvae_jax.errors import InputError, is_out_of_space

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
CIFAR10_FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}
FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
FASHION_MNIST_FILES = {"train": "train", "test": "t10k"}
RESIZED_URL = "https://image-net.org/data/downsample/Imagenet"
RESIZED_FILES = {  # size: split: files
    32: {"train": ["32_train_npz.zip"], "validation": ["32_val_npz.zip"]},
    64: {"train": ["64_train_part1_npz.zip", "64_train_part2_npz.zip"], "validation": ["64_val_npz.zip"]},
}
IMAGENET_FILES = {"train": "ILSVRC2012_img_train.tar", "validation": "ILSVRC2012_img_val.tar"}
IMAGENET_COUNTS = {"train": 1_281_167, "validation": 50_000}
TAR_END = 1024  # bytes, all zero, at the end of a tar

Examples = Iterator[tuple[str, dict]]


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H,W], [H,W,1] or [H,W,3] losslessly."""
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[2:] == (1,) else pixels).save(out, "PNG")
    return out.getvalue()


def cifar10_examples(archive: Path, split: str) -> Examples:
    """Read one split of the official binary archive: (key, {"id", "image" (PNG bytes), "label"})."""
    number = 0
    with tarfile.open(archive) as tar:
        members = {Path(member.name).name: member for member in tar if member.isfile()}
        for name in CIFAR10_FILES[split]:
            if name not in members:
                raise InputError(f"{archive} holds no {name}: delete it, so that it is downloaded again")
            file = tar.extractfile(members[name])
            records = np.frombuffer(file.read() if file else b"", np.uint8).reshape(-1, CIFAR10_RECORD)
            for record in records:
                pixels = record[1:].reshape(3, 32, 32).transpose(1, 2, 0)
                key = f"{split}_{number:05d}"
                yield key, {"id": key, "image": png(pixels), "label": int(record[0])}
                number += 1


def read_idx(path: Path) -> np.ndarray:
    """Read a gzipped IDX file of bytes, MNIST's format: its last magic byte is the number of axes."""
    raw = gzip.decompress(Path(path).read_bytes())
    shape = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def fashion_mnist_examples(images: Path, labels: Path) -> Examples:
    """Read one split: (number, {"image" (PNG bytes), "label"})."""
    for number, (pixels, label) in enumerate(zip(read_idx(images), read_idx(labels), strict=True)):
        yield str(number), {"image": png(pixels), "label": int(label)}


def imagenet_resized_examples(archives: list[Path], size: int) -> Examples:
    """Read the zipped NumPy files of one split, whose labels count from 1."""
    for archive in archives:
        with zipfile.ZipFile(archive) as zipped:
            for name in sorted(zipped.namelist()):
                with np.load(io.BytesIO(zipped.read(name)), allow_pickle=False) as part:
                    for number, (planes, label) in enumerate(zip(part["data"], part["labels"], strict=True)):
                        pixels = planes.reshape(3, size, size).transpose(1, 2, 0)
                        yield f"{name}{number}", {"image": png(pixels), "label": int(label) - 1}


def _members(archive: str, file, progress: tqdm | None = None) -> Iterator[tuple[str, bytes]]:
    """Stream the files of a tar: name and content; InputError after them if it doesn't end as a tar does."""
    end = 0  # where the zeros of a tar's end must be: at its start, where none are, unless it is read to the end
    try:
        with tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() else None
                if content is not None:
                    yield Path(member.name).name, content.read()
                if progress is not None:
                    progress.update(file.tell() - progress.n)
            end = tar.offset
    except tarfile.ReadError:
        pass
    file.seek(end)
    if file.read(TAR_END) != bytes(TAR_END):  # which Python's reader doesn't ask for
        raise InputError(f"{archive} is cut off or damaged: download it again, and compare its MD5 sum with the site's")


def _as_rgb_jpeg(data: bytes) -> bytes:
    """Encode again, at the best quality, what is no RGB JPEG."""
    out = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(out, "JPEG", quality=100, subsampling=0)
    return out.getvalue()


def imagenet_train_images(archive: Path, progress: tqdm) -> Iterator[tuple[str, str, bytes]]:
    """Stream a tar of one tar per synset: (file name, synset, file)."""
    with open(archive, "rb") as file:
        for outer, content in _members(archive.name, file, progress):
            if not re.fullmatch(r"n\d{8}\.tar", outer):
                raise InputError(f"{archive} holds {outer}, not a tar per synset: it isn't the official archive")
            for name, data in _members(f"{outer} in {archive.name}", io.BytesIO(content)):
                yield name, Path(outer).stem, data


def imagenet_validation_images(archive: Path, progress: tqdm, labels: list[str]) -> Iterator[tuple[str, str, bytes]]:
    """Stream a tar of images: (file name, synset, file); `labels` lists the synsets by the number in the name."""
    with open(archive, "rb") as file:
        for name, data in _members(archive.name, file, progress):
            number = re.fullmatch(r"ILSVRC2012_val_(\d{8})\.JPEG", name)
            if not number or not 1 <= int(number[1]) <= len(labels):
                raise InputError(f"{archive} holds {name}, no official name: put the official archive there")
            yield name, labels[int(number[1]) - 1], data


def imagenet_examples(archive: Path, read: Callable, official: int, not_rgb_jpeg: frozenset[str]) -> Examples:
    """Stream an official archive once, one synset in memory: (file name, {"image", "label", "file_name"}).

    Args:
        archive: its file.
        read: one of the two functions above.
        official: how many images it should hold; fewer are said, as those who made it may have wanted.
        not_rgb_jpeg: the files that TFDS knows to be CMYK or PNG, which are converted.
    """
    layout = "{desc}: {percentage:3.0f}%|{bar:20}| [{elapsed}, {remaining} left{postfix}]"
    number = 0
    with tqdm(total=os.path.getsize(archive), desc=archive.name, bar_format=layout, mininterval=0.5) as progress:
        for name, synset, data in read(archive, progress):
            data = _as_rgb_jpeg(data) if name in not_rgb_jpeg else data
            yield name, {"image": data, "label": synset, "file_name": name}
            number += 1
            progress.set_postfix_str(f"{number} images", refresh=False)
        progress.update(progress.total - progress.n)
    if number != official:
        print(f"{archive.name}: {number:,} images, not the {official:,} of ILSVRC 2012", flush=True)


def _import_tfds():
    logger = logging.getLogger("absl")
    logger.setLevel(max(logger.level, logging.ERROR))  # TFDS advises on OpenCV and GCS, neither of which is used
    import tensorflow_datasets as tfds

    return tfds


def _label_feature(builder):
    return builder.info.features["label"]


def write_dataset(name: str, data_dir: str | None, splits: Callable) -> None:
    """Write the TFDS data set `name` in ArrayRecord files; `splits(dl_manager, manual_dir)` gives examples by split."""
    tfds = _import_tfds()
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    manual_dir = Path(builder.data_path).parents[1 + name.count("/")] / "downloads" / "manual"  # TFDS's own place
    builder._split_generators = lambda dl_manager: splits(dl_manager, manual_dir)  # pyright: ignore - of its sub-classes
    if name == "cifar10":  # the stock code reads the names from the archive
        _label_feature(builder).names = list(CIFAR10_CLASSES)
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
        raise InputError(
            f"cannot download {url} ({type(error).__name__}): check the network, "
            "or name the folder of a prepared copy with --data_dir"
        ) from error


def _cifar10(dl_manager, manual_dir):
    archive = _download(dl_manager, CIFAR10_URL)
    return {split: cifar10_examples(archive, split) for split in CIFAR10_FILES}


def _fashion_mnist(dl_manager, manual_dir):
    def examples(prefix):
        files = (f"{prefix}-images-idx3-ubyte.gz", f"{prefix}-labels-idx1-ubyte.gz")
        return fashion_mnist_examples(*(_download(dl_manager, FASHION_MNIST_URL + file) for file in files))

    return {split: examples(prefix) for split, prefix in FASHION_MNIST_FILES.items()}


def _imagenet_resized(dl_manager, manual_dir, size):
    archives = {s: [_download(dl_manager, RESIZED_URL + f) for f in files] for s, files in RESIZED_FILES[size].items()}
    return {split: imagenet_resized_examples(paths, size) for split, paths in archives.items()}


def _imagenet2012(dl_manager, manual_dir):
    from tensorflow_datasets.datasets.imagenet2012 import imagenet2012_dataset_builder as stock

    folder = manual_dir
    for name in IMAGENET_FILES.values():
        if not (folder / name).is_file():
            raise InputError(
                f"no {name} in {folder}: register at https://image-net.org/download-images, "
                "download the ILSVRC 2012 archives of training and validation images and put them there"
            )
    labels = _import_tfds().core.tfds_path("datasets/imagenet2012/validation_labels.txt").read_text().split()
    readers = {"train": imagenet_train_images, "validation": partial(imagenet_validation_images, labels=labels)}
    not_rgb_jpeg = frozenset(stock.CMYK_IMAGES) | frozenset(stock.PNG_IMAGES)
    return {
        split: imagenet_examples(folder / name, readers[split], IMAGENET_COUNTS[split], not_rgb_jpeg)
        for split, name in IMAGENET_FILES.items()
    }


PREPARE = {
    "cifar10": _cifar10,
    "fashion_mnist": _fashion_mnist,
    "imagenet2012": _imagenet2012,
    "imagenet_resized/32x32": partial(_imagenet_resized, size=32),
    "imagenet_resized/64x64": partial(_imagenet_resized, size=64),
}


def open_dataset(name: str, split: str, data_dir: str | None):
    """Open a TFDS split for random access, images as file bytes; prepare the data set first if it is not there.

    Returns:
        The data source, the names of its classes, and the folder in which it lies.

    Raises:
        InputError: `data_dir` does not exist, the data set in it is damaged, or it can't be downloaded.
    """
    if data_dir is not None:
        data_dir = os.path.expanduser(data_dir)
        if not os.path.isdir(data_dir):
            raise InputError(f"no data folder {data_dir}: create it, or name the one that holds {name} with --data_dir")
    tfds = _import_tfds()
    stock = _stock_builder(tfds, name, data_dir)
    folder = Path(stock.data_path)
    if not folder.is_dir():
        with _one_at_a_time(folder.parents[1 + name.count("/")]):
            if not folder.is_dir():
                print(f"preparing {name} in {folder.parent}, once", flush=True)
                write_dataset(name, data_dir, PREPARE[name])
        stock = _stock_builder(tfds, name, data_dir)
    with _damaged(folder, name):
        if split not in stock.info.splits:
            raise FileNotFoundError(f"split {split}")
        absent = [path for path in stock.info.splits[split].filepaths if not Path(path).is_file()]
        if absent:
            raise FileNotFoundError(Path(absent[0]).name)
        decoders = {"image": tfds.decode.SkipDecoding()}
        dataset = stock.as_data_source(split=split, decoders=decoders)  # pyright: ignore - wrapt hides the signature
        if len(dataset) != stock.info.splits[split].num_examples:
            raise FileNotFoundError(f"{stock.info.splits[split].num_examples - len(dataset)} images of {split}")
    return dataset, tuple(_label_feature(stock).names), folder


@contextlib.contextmanager
def _one_at_a_time(folder: Path):
    """Wait while another process prepares data here; the lock goes with the process that holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".preparing", "w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _stock_builder(tfds, name, data_dir):
    """Give the stock builder of `name`, which reads what the folder says of itself."""
    where = data_dir or tfds.core.constants.DATA_DIR
    try:
        return tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except ValueError as error:
        if "File format is already set" not in str(error):
            raise
        raise InputError(
            f"{name} in {where} was prepared as TFRecord files, which need TensorFlow: "
            "name another folder with --data_dir, in which it is prepared anew"
        ) from error
    except Exception as error:
        raise InputError(f"{name} in {where} is damaged ({type(error).__name__}): delete it and run again") from error


@contextlib.contextmanager
def _damaged(folder, name):
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name} in {folder} is incomplete ({error}): delete this folder and run again, so that it is prepared anew"
        ) from error
