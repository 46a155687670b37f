"""Where figures come from: commit, date, hardware and versions; and the last line that every benchmark prints."""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "pillow")


def provenance() -> dict:
    """Say with what code, when and on what something is measured, without the paths of this machine."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "commit": head.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].platform}",
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
    }


def report(result: dict, out: Path | None) -> None:
    """Print a result and its provenance as one line of JSON, the last one, and write it to `out` if that is given."""
    line = json.dumps(result | provenance())
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(line + "\n")
    print(line)
