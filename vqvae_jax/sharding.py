"""One mesh over all devices: the batch is split, everything else is everywhere."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vqvae_jax.errors import InputError


def make_mesh() -> Mesh:
    """Build a one-axis mesh over all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


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
