"""Copy a finished run's figures and numbers to `experiments/results/`, with how they came about.

python -m experiments.collect RUN --out=experiments/results/NAME --command="..." --data="..."
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import jax

from vqvae_jax.metric_writer import read_record, write_json

KEPT = ("evaluation.json", "figures/curves.png", "figures/reconstructions.png")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def training_seconds(record: list[dict], batch_size: int) -> float:
    """Add up the steps at the speed that the record has for them: pauses, validation and compilation left out."""
    lines = [{"step": 0}, *(line for line in record if "images_per_second" in line)]
    return sum((b["step"] - a["step"]) * batch_size / b["images_per_second"] for a, b in pairwise(lines))


def main():
    """Copy one run."""
    parser = argparse.ArgumentParser(description="Copy a finished run to experiments/results/.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", required=True, help="how the run was made")
    parser.add_argument("--data", required=True, help="which data, and where they are from")
    parser.add_argument("--commit", help="the code that trained; default: the one checked out")
    parser.add_argument("--note", default="", help="what else to know of the run")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(arguments.run / name, arguments.out / Path(name).name)
    config = json.loads((arguments.run / "config.json").read_text())
    config["data"]["data_dir"] = None  # a path of the machine that trained
    write_json(arguments.out / "config.json", config)
    record = read_record(arguments.run)
    lines = [json.dumps({k: v for k, v in line.items() if k != "unix_time"}) + "\n" for line in record]
    (arguments.out / "metrics.jsonl").write_text("".join(lines))
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    about = {
        "command": arguments.command,
        "data": arguments.data,
        "commit": arguments.commit or head.stdout.strip(),
        "date": datetime.date.today().isoformat(),
        "training_minutes": round(training_seconds(record, config["data"]["batch_size"]) / 60, 1),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].platform}",
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "note": arguments.note,
    }
    write_json(arguments.out / "about.json", about)
    print(json.dumps(about))


if __name__ == "__main__":
    main()
