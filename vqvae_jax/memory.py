"""What fits a device: numbers that change speed and memory alone, and no result beyond rounding; and what fits none."""

import contextlib
import os
from pathlib import Path

import jax

from vqvae_jax.errors import InputError

CGROUPS = "/sys/fs/cgroup"
LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}  # of control groups of version 2, and of version 1
TUNED_FOR = 2**33  # bytes; the numbers that `at_once` takes were chosen on a machine of so many


def device_bytes() -> int:
    """Give the memory that a device has for this program; 0 where it does not tell, as a CPU."""
    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", 0)


def at_once(count: int) -> int:
    """Give how many of what a CPU takes `count` of at a time fit a device: more in proportion to its memory."""
    return count * max(1, device_bytes() // TUNED_FOR)


def host_bytes(cgroups: str = CGROUPS, own: str = "/proc/self/cgroup") -> int:
    """Give the memory of this machine, or what its control groups leave this program; 0 where neither is told."""
    found = []
    with contextlib.suppress(AttributeError, OSError, ValueError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError):
        for line in Path(own).read_text().splitlines():
            _, kind, place = line.split(":", 2)
            below = Path("/", kind, place.lstrip("/"))
            for folder in (below, *below.parents) if kind in LIMITS else ():
                with contextlib.suppress(OSError, ValueError):  # there is none, or it is "max"
                    found.append(int(Path(f"{cgroups}{folder}", LIMITS[kind]).read_text()))
    return min(found, default=0)


def check_fits(option: str, needed: int) -> None:
    """Raise InputError if an option's arrays, of which `needed` bytes are the least, can't be in memory."""
    there = device_bytes() or host_bytes()
    if there and needed > there:
        gib = [f"{size / 2**30:,.1f} GiB" for size in (needed, there)]
        raise InputError(f"{option}: this needs at least {gib[0]} of memory, and there are {gib[1]}: make it smaller")
