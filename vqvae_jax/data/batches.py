"""Batches as pure functions of (seed, step): nothing to store but the step, for any number of hosts."""

from collections.abc import Iterator
from functools import lru_cache

import grain
import jax
import numpy as np

from vqvae_jax.data import transforms
from vqvae_jax.data.images import Source

# First words of the seeds: streams that share no numbers.
SHUFFLE, AUGMENT = 1, 2
EVAL_THREADS = 2


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


def batch_at(source: Source, batch_size: int, seed: int, flip: bool, step: int) -> dict[str, np.ndarray]:
    """Build the global batch of `step`, of which this process keeps its rows."""
    indices = batch_indices(len(source), batch_size, seed, step)
    # Drawn for the global batch, so that the number of hosts changes nothing.
    uniforms = np.random.default_rng((AUGMENT, seed, step)).random((batch_size, 1 + transforms.UNIFORMS))
    share = batch_size // jax.process_count()
    rows = slice(jax.process_index() * share, (jax.process_index() + 1) * share)
    batch = source.draw(indices[rows], uniforms[rows, 1:])
    if flip:
        batch["image"] = transforms.flip_where(batch["image"], uniforms[rows, 0] < 0.5)
    return batch


def train_batches(
    source: Source, batch_size: int, seed: int, flip: bool, steps: range, num_threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of `steps`, made ahead by `num_threads` threads (0: when asked for)."""
    dataset = grain.MapDataset.range(steps.start, steps.stop)
    dataset = dataset.map(lambda step: batch_at(source, batch_size, seed, flip, int(step)))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return iter(dataset.to_iter_dataset(options))


def eval_batches(source: Source, batch_size: int, num_images: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yield the first `num_images` (0: all) images once, in order; `mask` is False on rows that fill the last batch."""
    total = min(num_images, len(source)) if num_images else len(source)

    def batch_from(start: int):
        batch = source.take(np.arange(start, min(start + batch_size, total)))
        padding = batch_size - len(batch["mask"])
        return {key: np.pad(rows, [(0, padding)] + [(0, 0)] * (rows.ndim - 1)) for key, rows in batch.items()}

    dataset = grain.MapDataset.range(0, total, batch_size).map(lambda start: batch_from(int(start)))
    options = grain.ReadOptions(num_threads=EVAL_THREADS, prefetch_buffer_size=2 * EVAL_THREADS)
    return iter(dataset.to_iter_dataset(options))
