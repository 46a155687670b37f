"""What the last digits of probabilities depend on, as text: other digits may turn a stream into noise."""

import importlib.metadata
import os
import platform
import sys
import zlib
from pathlib import Path

import jax

from vqvae_jax import __version__

LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "constriction")
SETTINGS = ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64", "JAX_DISABLE_MOST_OPTIMIZATIONS")


def environment() -> list[str]:
    """Give versions, device, processor (its flags as a CRC) and settings, a line each: its name and its value."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    about = {
        "vqvae_jax": __version__,
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": f"{jax.device_count()} {jax.devices()[0].device_kind}",
        "processor": f"{platform.machine()} {cpu.get('model name', platform.processor())}",
        "instructions": f"{zlib.crc32(cpu.get('flags', cpu.get('Features', '')).encode()):08x}",
        "cores": str(len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()),
        **{name: os.environ.get(name, "") for name in SETTINGS},
    }
    return [" ".join([name, *value.split()]) for name, value in about.items() if value]


def differences(made: list[str], here: list[str]) -> str:
    """Say in one line what differs between where a file was made and here; "" if nothing does."""
    return ", ".join(f"{line!r} {'there' if line in made else 'here'}" for line in sorted({*made} ^ {*here}))
