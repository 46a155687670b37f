"""Train for hours, and watch what must not grow: memory, threads, open files and compiled programs.

    python -m experiments.soak --work=runs/soak --minutes=120 --out=experiments/results/soak.json

The real command trains the quick start's model, validates and saves every 200 steps, and is asked to stop at the end.
What it takes is read from outside, from /proc (Linux). Memory is compared between the second quarter of the time and
the last one, by medians; the first quarter fills caches.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from experiments.provenance import report
from vqvae_jax.training.record import read_record

EVERY = 200  # steps between validations, and between checkpoints
OPTIONS = ["--config.train.num_steps=100000000", f"--config.train.eval_every={EVERY}"]
OPTIONS += [f"--config.train.checkpoint_every={EVERY}"]
OPTIONS += ["--config.train.log_every=50", "--config.optimizer.schedule=constant"]
GROWS = ("memory_mb", "threads", "open_files", "compiled_programs")


def start(workdir: Path, data_dir: str | None, config: str, log: Path) -> subprocess.Popen:
    """Start the real command; JAX notes in `log` what it compiles."""
    line = [sys.executable, "-m", "vqvae_jax.main", f"--config={config}", *OPTIONS, f"--workdir={workdir}"]
    line += [f"--data_dir={data_dir}"] if data_dir else []
    with open(log, "w") as file:
        return subprocess.Popen(
            line, stdout=subprocess.DEVNULL, stderr=file, env={**os.environ, "JAX_LOG_COMPILES": "1"}
        )


def look(pid: int, log: Path) -> dict:
    """Read what a process holds now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    compiled = log.read_text(errors="replace").count("Finished XLA compilation of ")
    return {
        "memory_mb": round(int(status["VmRSS"].split()[0]) / 1024, 1),
        "threads": int(status["Threads"]),
        "open_files": len(os.listdir(f"/proc/{pid}/fd")),
        "compiled_programs": compiled,
    }


def growth(samples: list[dict]) -> dict:
    """Compare the last quarter of the samples with the second one, by medians, in percent of the second."""
    quarter = len(samples) // 4
    found = {}
    for key in GROWS:
        before, after = (statistics.median(s[key] for s in samples[n : n + quarter]) for n in (quarter, 3 * quarter))
        found[key] = round(100 * (after / before - 1), 2)
    return found


def main() -> int:
    """Train, look, stop, and report."""
    parser = argparse.ArgumentParser(description="Train for long, and watch what must not grow.")
    parser.add_argument("--work", type=Path, default=Path("runs/soak"))
    parser.add_argument("--config", default="configs/quickstart.py")
    parser.add_argument("--data_dir", help="of photographs; default: scikit-image's")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--every", type=float, default=30, help="seconds between two looks")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    shutil.rmtree(arguments.work, ignore_errors=True)
    arguments.work.mkdir(parents=True)
    workdir, log, samples = arguments.work / "run", arguments.work / "compiled.log", []
    process = start(workdir, arguments.data_dir, arguments.config, log)
    while not read_record(workdir):  # the first steps are compiled
        if process.poll() is not None:
            sys.exit(f"the training ended with status {process.returncode}: see {log}")
        time.sleep(1)
    end = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        time.sleep(arguments.every)
        if process.poll() is not None:
            sys.exit(f"the training ended with status {process.returncode}: see {log}")
        step = read_record(workdir)[-1]["step"]
        samples.append({"step": step, **look(process.pid, log)})
        print(samples[-1], flush=True)
    process.send_signal(signal.SIGTERM)
    status = process.wait()
    if len(samples) < 8:
        sys.exit("too few looks to compare: give more --minutes, or look more often with --every")
    grown = growth(samples)
    last = samples[-1]["step"]
    about = {"minutes": arguments.minutes, "steps": last, "validations_and_checkpoints": last // EVERY}
    about |= {"exit_status": status, "config": arguments.config}
    report({"experiment": "soak", **about, "growth_percent": grown, "samples": samples}, arguments.out)
    return int(grown["memory_mb"] > 2 or any(grown[key] > 0 for key in GROWS[1:]))


if __name__ == "__main__":
    sys.exit(main())
