"""Several processes that run one command together: how they find each other, and what they agree on."""

import contextlib
import os
import sys
from collections.abc import Iterator
from functools import cache
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from vqvae_jax.errors import InputError
from vqvae_jax.training import sharding


def start(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Join the other processes that flags name, or a cluster that JAX detects (SLURM, GKE, TPU pods), if there are any.

    Nothing of JAX's devices may have been used before. The first process alone goes on printing to standard output.
    """
    given = coordinator, num_processes, process_id
    if num_processes == 1 or (given == (None,) * 3 and os.environ.get("SLURM_NTASKS") == "1"):
        return  # JAX would take but the first GPU of a single task
    if given != (None,) * 3:
        if coordinator is None or num_processes is None or process_id is None:
            raise InputError("--coordinator, --num_processes and --process_id belong together: give all or none")
        if not process_id < num_processes:
            raise InputError(f"--process_id is {process_id}: it must be below --num_processes={num_processes}")
        if not coordinator.rpartition(":")[2].isdigit() or ":" not in coordinator:
            raise InputError(f"--coordinator is {coordinator!r}: give HOST:PORT of the first process")
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM away from the training loop
    try:
        jax.distributed.initialize(*given)
    except ValueError as error:
        if "coordinator_address" not in str(error):
            raise
        return  # no cluster
    except RuntimeError as error:
        raise InputError(f"the processes of this run do not find each other: {str(error).splitlines()[0]}") from error
    # CPUs look for each other no longer than 30 s, at their first exchange of each kind: here, where all come at once.
    barrier("start")
    jax.block_until_ready(in_any(False))
    if jax.process_index():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def leave(code: int) -> NoReturn:
    """End this process; where there are others, who can't go on without it, JAX would wait minutes for them."""
    if jax.distributed.is_initialized():
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def barrier(name: str) -> None:
    """Wait until all processes are here."""
    multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def first_alone(name: str) -> Iterator[None]:
    """Let the first process go through a block before the others, who then find what it has written."""
    if jax.process_index():
        barrier(name)
    try:
        yield
    finally:
        if not jax.process_index():
            barrier(name)


@cache
def _any():
    return jax.jit(jax.numpy.any, out_shardings=sharding.placed())


def in_any(flag: bool) -> jax.Array | bool:
    """Tell whether any process says so: the same answer for all, which is waited for when it is looked at."""
    if jax.process_count() == 1:
        return flag
    return _any()(sharding.put_batch(np.full(jax.local_device_count(), flag)))
