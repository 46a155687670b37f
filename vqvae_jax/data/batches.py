"""Batches as pure functions of (seed, step): nothing to store but the step, for any number of hosts."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from vqvae_jax.data import transforms
from vqvae_jax.data.splits import FileSource, Source
from vqvae_jax.data.transforms import random_stream
from vqvae_jax.errors import InputError, at_least

EVAL_THREADS = 2


@lru_cache(maxsize=4)
def epoch_order(stage: str, seed: int, epoch: int, size: int) -> np.ndarray:
    """Shuffle the images of one epoch."""
    return random_stream(f"{stage} shuffle", seed, epoch).permutation(size)


def batch_at(
    source: Source, batch_size: int, seed: int, flip: bool, step: int, *, stage: str, share=None
) -> dict[str, np.ndarray]:
    """Build the global batch of `step`, the next stretch of endless epochs; a process keeps its share of the rows.

    `share` says which process of how many; None is this one.
    """
    size, places = len(source), range(step * batch_size, (step + 1) * batch_size)
    indices = np.array([epoch_order(stage, seed, place // size, size)[place % size] for place in places])
    # Drawn for the global batch, so that the number of hosts changes nothing.
    uniforms = random_stream(f"{stage} augment", seed, step).random((batch_size, 1 + transforms.UNIFORMS))
    process, processes = share or (jax.process_index(), jax.process_count())
    rows = slice(process * batch_size // processes, (process + 1) * batch_size // processes)
    batch = source.draw(indices[rows], uniforms[rows, 1:])
    if flip:
        batch["image"] = transforms.flip_where(batch["image"], uniforms[rows, 0] < 0.5)
    return batch


def train_batches(
    source: Source, batch_size: int, seed: int, flip: bool, steps: range, num_threads: int, *, stage, num_workers=0
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches of `steps`, made ahead by `num_threads` threads (0: when asked for), or by processes.

    `num_workers` processes take the place of the threads where images are files and there are more steps than
    processes. `stage` of training (a name) and `seed` decide the order of images and what is random in them.
    """
    at_least("data", batch_size=(batch_size, 1), num_threads=(num_threads, 0), num_workers=(num_workers, 0))
    share = jax.process_index(), jax.process_count()  # which a worker can't ask for, as it leaves the devices alone
    make = partial(batch_at, batch_size=batch_size, seed=seed, flip=flip, stage=stage, share=share)
    if isinstance(source, FileSource) and 0 < num_workers < len(steps):
        return _from_workers(source, make, steps, num_workers)
    return _ahead(lambda step: make(source, step=step), steps, num_threads)


def eval_batches(source: Source, batch_size: int, num_images: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yield the first `num_images` (0: all) images once, in order; `mask` is False on rows that fill the last batch.

    Each process gets its stretch of a batch, whose size is rounded up to a multiple of the processes.
    """
    total, processes = min(num_images, len(source)) if num_images else len(source), jax.process_count()
    size = -(-batch_size // processes)
    own = size * jax.process_index()

    def batch_from(start: int):
        batch = source.take(np.arange(start + own, max(start + own, min(start + own + size, total))))
        padding = size - len(batch["mask"])
        return {key: np.pad(rows, [(0, padding)] + [(0, 0)] * (rows.ndim - 1)) for key, rows in batch.items()}

    return _ahead(batch_from, range(0, total, size * processes), EVAL_THREADS)


def _ahead(make: Callable[[int], Any], numbers: range, num_threads: int, num_workers: int = 0) -> Any:
    dataset = grain.MapDataset.range(numbers.start, numbers.stop, numbers.step).map(lambda number: make(int(number)))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    # Processes send their batches pickled: a segmentation fault was seen with grain's shared memory.
    piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
    made = grain.experimental.WithOptionsIterDataset(dataset.to_iter_dataset(options), piped)
    return iter(made.mp_prefetch(grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2), _start_worker))


def _start_worker(number: int, of: int) -> None:
    """Let a worker end when the program says so or has ended itself, however suddenly."""
    for stop in (signal.SIGINT, signal.SIGTERM):  # sent to all, they ask the program to save itself first
        signal.signal(stop, signal.SIG_IGN)
    program: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (program.join(), os._exit(1)), daemon=True).start()


def _made_apart(make: Callable, source: FileSource, step: int) -> tuple[dict, dict]:
    alone = replace(source, bad={}, max_bad_images=None)
    return make(alone, step=step), alone.bad


def _from_workers(source: FileSource, make: Callable, steps: range, num_workers: int) -> Iterator[dict]:
    flags.FLAGS.mark_as_parsed()  # grain has some, which a program without absl never parses
    made = _ahead(partial(_made_apart, make, source), steps, 0, num_workers)
    try:
        for batch, bad in made:
            for name, reason in bad.items():
                source.note_bad(name, reason)
            yield batch
    except RuntimeError as error:
        if "Worker process was terminated" not in str(error):
            raise
        what = "a process that reads images was killed, perhaps for want of memory"
        raise InputError(f"{what}: run again, with fewer data.num_workers (now {num_workers})") from error
    finally:
        made.close()
