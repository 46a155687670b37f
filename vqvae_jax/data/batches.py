"""Batches as pure functions of (seed, step): nothing to store but the step, for any number of hosts."""

from collections.abc import Iterator
from functools import lru_cache

import grain
import jax
import numpy as np

from vqvae_jax.data import transforms
from vqvae_jax.data.sources import ArraySource

# First words of the seeds: streams that share no numbers.
SHUFFLE, AUGMENT = 1, 2


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """The shuffled order of one epoch."""
    return np.random.default_rng((SHUFFLE, seed, epoch)).permutation(size)


def batch_indices(size: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """The images of batch `step`: the next stretch of an endless row of shuffled epochs."""
    places = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, offsets = np.divmod(places, size)
    parts = [epoch_order(seed, int(epoch), size)[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
    return np.concatenate(parts)


def batch_at(source: ArraySource, batch_size: int, seed: int, flip: bool, step: int) -> dict[str, np.ndarray]:
    """Build the global batch of `step`, of which this process keeps its rows."""
    indices = batch_indices(len(source), batch_size, seed, step)
    # Drawn for the global batch, so that the number of hosts changes nothing.
    random = np.random.default_rng((AUGMENT, seed, step))
    flips = random.random(batch_size) < (0.5 if flip else 0.0)
    share = batch_size // jax.process_count()
    rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    batch = source.take(indices[rows])
    batch["image"] = transforms.flip_where(batch["image"], flips[rows])
    return {**batch, "mask": np.ones(share, bool)}


def train_batches(
    source: ArraySource, batch_size: int, seed: int, flip: bool, steps: range, num_threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of `steps`, made ahead by `num_threads` threads (0: when asked for)."""
    dataset = grain.MapDataset.range(steps.start, steps.stop)
    dataset = dataset.map(lambda step: batch_at(source, batch_size, seed, flip, int(step)))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset.to_iter_dataset(options))


def eval_batches(source: ArraySource, batch_size: int, num_images: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yield the first `num_images` (0: all) images once, in order; `mask` is False on rows that fill the last batch."""
    total = min(num_images, len(source)) if num_images else len(source)
    for start in range(0, total, batch_size):
        indices = np.arange(start, start + batch_size)
        yield {**source.take(np.minimum(indices, total - 1)), "mask": indices < total}
