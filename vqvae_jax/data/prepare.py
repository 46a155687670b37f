"""TFDS data sets without TensorFlow: the stock builder's name, version and features, our reading of the archive.

What this writes, the stock `tfds.data_source` reads, and the other way round.
"""

import contextlib
import io
import logging
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae_jax.errors import InputError, is_out_of_space

CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
CIFAR10_FILES = {"train": [f"data_batch_{n}.bin" for n in range(1, 6)], "test": ["test_batch.bin"]}


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H,W,3] losslessly."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def cifar10_examples(archive: Path, split: str) -> Iterator[tuple[str, dict]]:
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


def _import_tfds():
    logger = logging.getLogger("absl")
    logger.setLevel(max(logger.level, logging.ERROR))  # TFDS advises on OpenCV and GCS, neither of which is used
    import tensorflow_datasets as tfds

    return tfds


def write_cifar10(data_dir: str | None, splits: Callable[[Callable], dict[str, Iterator]]) -> None:
    """Write TFDS's `cifar10` in ArrayRecord files; `splits` gets TFDS's `download` and gives examples by split."""
    tfds = _import_tfds()
    from tensorflow_datasets.image_classification import cifar

    class Cifar10(cifar.Cifar10, skip_registration=True):
        name = "cifar10"
        pkg_dir_path = tfds.core.tfds_path("image_classification")

        def _split_generators(self, dl_manager):
            self.info.features["label"].names = list(CIFAR10_CLASSES)  # pyright: ignore
            return splits(dl_manager.download)

    builder = Cifar10(data_dir=data_dir, file_format="array_record")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def prepare_cifar10(data_dir: str | None) -> None:
    """Download the official archive and write it."""

    def splits(download):
        try:
            archive = download(CIFAR10_URL)
        except Exception as error:
            if is_out_of_space(error):
                raise
            raise InputError(
                f"cannot download {CIFAR10_URL} ({type(error).__name__}): check the network, "
                "or name the folder of a prepared copy with --data_dir"
            ) from error
        return {split: cifar10_examples(Path(archive), split) for split in ("train", "test")}

    write_cifar10(data_dir, splits)


PREPARE = {"cifar10": prepare_cifar10}


def open_dataset(name: str, split: str, data_dir: str | None):
    """Open a TFDS split for random access, images as file bytes; prepare the data set first if it is not there.

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
        print(f"preparing {name} in {folder.parent}, once", flush=True)
        PREPARE[name](data_dir)
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
    return dataset


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
