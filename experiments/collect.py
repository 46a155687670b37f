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
from pathlib import Path

import jax

from vqvae_jax.metric_writer import read_record, write_json

KEPT = ("evaluation.json", "figures/curves.png", "figures/reconstructions.png")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def training_minutes(record: list[dict], batch_size: int) -> list[tuple[int, float]]:
    """Add up, at every logged step, the time of the steps so far: validation, pauses and compilation left out."""
    step, minutes, points = 0, 0.0, []
    for line in record:
        if "images_per_second" in line:
            minutes += (line["step"] - step) * batch_size / line["images_per_second"] / 60
            step = line["step"]
            points.append((step, minutes))
    return points


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
        "training_minutes": round(training_minutes(record, config["data"]["batch_size"])[-1][1], 1),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {jax.devices()[0].platform}",
        "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES},
        "note": arguments.note,
    }
    write_json(arguments.out / "about.json", about)
    print(json.dumps(about))


if __name__ == "__main__":
    main()
