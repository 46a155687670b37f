"""Batches on the devices: sent there or, of a data set that fits, gathered there."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vqvae_jax.data import batches
from vqvae_jax.data.splits import ArraySource, Source
from vqvae_jax.memory import device_bytes
from vqvae_jax.training.sharding import placed, put_batch

SHARE = 8  # a data set that is kept on a device takes at most 1/8 of its memory


def on_devices(stage: str, config: dict, source: Source, batch_size: int, flip: bool, steps: range) -> Iterator[dict]:
    """Give the batches of `steps` (see `batches.train_batches`) on the devices, split along the first axis."""
    what, data = (batch_size, config["seed"], flip, steps), config["data"]
    how = {"num_threads": data["num_threads"], "num_workers": data["num_workers"], "stage": stage}
    if not isinstance(source, ArraySource) or source.images.nbytes > device_bytes() // SHARE:
        return map(put_batch, batches.train_batches(source, *what, **how))
    # Instead of an image the host takes, and mirrors, its two numbers: the first one is odd if the image is mirrored.
    numbers = replace(source, images=np.arange(2 * len(source), dtype=np.int32).reshape(-1, 1, 2, 1))
    images = jax.make_array_from_process_local_data(placed(), source.images)
    gather = partial(jax.jit(_gather, out_shardings=placed("data")), images)  # before the step, which nobody waits for
    return map(gather, map(put_batch, batches.train_batches(numbers, *what, **how)))


@partial(jax.jit, static_argnames="size")
def patches(batch: dict, key: Key[Array, ""], size: int) -> dict:
    """Cut a random square of `size` x `size` pixels out of every image of a batch."""
    images = batch["image"]
    height, width, channels = images.shape[1:]
    last = jnp.array([[height, width]]) - size
    corners = jax.random.randint(key, (len(images), 2), 0, last + 1)

    def cut(image, corner):
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (size, size, channels))

    return batch | {"image": jax.vmap(cut)(images, corners)}


def _gather(images, batch):
    number = batch["image"][:, 0, 0, 0]
    chosen, mirrored = images[number // 2], (number % 2 == 1).reshape(-1, *[1] * (images.ndim - 1))
    return batch | {"image": jnp.where(mirrored, chosen[:, :, ::-1], chosen)}
