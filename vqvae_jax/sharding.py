"""One mesh over all devices: the batch is split, everything else is everywhere."""

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from vqvae_jax.errors import InputError


def make_mesh() -> Mesh:
    """Build a one-axis mesh over all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def everywhere(tree):
    """Give the shapes of a tree with a copy on every device, as checkpoints are restored."""
    sharding = replicated(make_mesh())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def split(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int) -> None:
    """Raise InputError unless the devices divide the batch."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % devices:
        nearest = max(devices, batch_size // devices * devices)
        raise InputError(
            f"batch size {batch_size} cannot be split over {devices} devices: "
            f"choose a multiple of {devices}, e.g. {nearest}"
        )


def put_batch(batch, mesh: Mesh):
    """Send this process's rows of a batch to its devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(split(mesh), np.asarray(x)), batch)


def batch_for(num_rows: int, most: int) -> int:
    """Give `most`, or for few rows the next power of two, a multiple of the devices either way."""
    devices = jax.device_count()
    return -(-min(most, 1 << max(0, num_rows - 1).bit_length()) // devices) * devices


def map_rows(function: Callable, batch_size: int, *arrays: np.ndarray, progress: str | None = None):
    """Apply a function of a batch to any number of rows of some arrays, in batches of one size that devices divide.

    `progress` is what stands before a bar, if there are several batches.
    """
    mesh, results, total = make_mesh(), [], len(arrays[0])
    size = -(-batch_size // jax.device_count()) * jax.device_count()
    starts = range(0, max(1, total), size)
    for start in tqdm(starts, progress, disable=progress is None or len(starts) < 2):
        chunks = [rows[start : start + size] for rows in arrays]
        length = len(chunks[0])
        padded = [np.concatenate([rows, np.zeros((size - length, *rows.shape[1:]), rows.dtype)]) for rows in chunks]
        result = function(*(put_batch(rows, mesh) for rows in padded))
        results.append(jax.tree.map(lambda x, n=length: np.asarray(x)[:n], result))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *results)
