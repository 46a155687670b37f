"""One mesh over all devices: the batch is split, everything else is everywhere."""

from collections.abc import Callable, Iterator
from functools import cache, partial

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from vqvae_jax.data import batches
from vqvae_jax.data.splits import Source
from vqvae_jax.errors import InputError
from vqvae_jax.memory import check_fits

IMAGES_AT_ONCE = 1024  # in the host's memory; devices take eval.batch_size at a time


@cache
def placed(*axes: str) -> NamedSharding:
    """The sharding of the batch, `placed("data")`, over all devices of all processes, or of state, a copy on each."""
    # In the order of processes, each of which reads a stretch of the batch.
    devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return NamedSharding(Mesh(np.array(devices), ("data",), axis_types=(AxisType.Auto,)), PartitionSpec(*axes))


def everywhere(tree):
    """Give the shapes of a tree with a copy on every device, as checkpoints are restored."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed()), tree)


def check_batch_size(option: str, batch_size: int) -> None:
    """Raise InputError unless the devices divide the batch."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        nearest = max(devices, batch_size // devices * devices)
        raise InputError(
            f"{option} is {batch_size}, which cannot be split over {devices} devices: "
            f"choose a multiple of {devices}, e.g. {nearest}"
        )


def check_batch_fits(option: str, batch_size: int, numbers: int) -> None:
    """Raise InputError if a device can't hold its share of a batch, with so many float32 numbers a row at least."""
    check_fits(f"{option} is {batch_size}", 4 * numbers * batch_size // jax.device_count())


def put_batch(batch):
    """Send this process's rows of a batch to the devices, split along the first axis."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(placed("data"), np.asarray(x)), batch)


def put_rows(batch):
    """Send a batch that every process has whole to the devices, split along the first axis."""
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, placed("data"), x.__getitem__), batch)


def whole(tree):
    """Give every process all rows of arrays on the devices, or of NumPy's of which each process has a stretch."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def whole_batches(source: Source, num_images: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yield the first `num_images` (0: all) of a split to every process, each of which reads a part of them."""
    return map(whole, batches.eval_batches(source, IMAGES_AT_ONCE, num_images))


def batch_for(num_rows: int, most: int) -> int:
    """Give `most`, or for few rows the next power of two, a multiple of the devices either way."""
    devices = jax.device_count()
    return -(-min(most, 1 << max(0, num_rows - 1).bit_length()) // devices) * devices


def compiled(function: Callable, *arrays, **constants):
    """Call a pure function or method, compiled once for every function, shapes of arrays and constants."""
    return _compiled(function, tuple(sorted(constants.items())), *arrays)


@partial(jax.jit, static_argnums=(0, 1))
def _compiled(function, constants, *arrays):
    return function(*arrays, **dict(constants))


def map_rows(function: Callable, batch_size: int, *arrays: np.ndarray, progress: str | None = None):
    """Apply a function of a batch to any number of rows of some arrays, in batches of one size that devices divide.

    `progress` is what stands before a bar, if there are several batches.
    """
    total, size = len(arrays[0]), batch_for(batch_size, batch_size)
    starts = range(0, max(1, total), size)

    def on_devices(start: int):
        rows = [array[start : start + size] for array in arrays]
        return put_rows([np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1)) for x in rows])

    bar = tqdm(starts, progress, disable=progress is None or len(starts) < 2)
    results = []
    for start in bar:
        results.append(function(*on_devices(start)))
        if len(results) > 1:  # fetched while the next one is computed
            results[-2] = whole(results[-2])
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *results[:-1], whole(results[-1]))
