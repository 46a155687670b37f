"""Kill and damage a small run of both stages at random moments: every one that goes on must end in the same bits.

    python -m experiments.faults --work=runs/faults --kills=25 --flips=200 --out=experiments/results/faults.json

Cases are written to WORK/cases.jsonl as they are done; the same command goes on where it was stopped.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.provenance import report
from vqvae_jax.errors import InputError
from vqvae_jax.run import load
from vqvae_jax.training import checkpoint
from vqvae_jax.training.record import read_record

OPTIONS = ["--config.model.hidden=8", "--config.data.batch_size=8", "--config.train.num_steps=200"]
OPTIONS += ["--config.train.checkpoint_every=20", "--config.train.eval_every=40", "--config.train.log_every=5"]
OPTIONS += ["--config.prior.num_steps=100", "--config.prior.eval_every=20"]
TIMES = ("images_per_second", "most_memory_mb", "unix_time")
STAGES = (checkpoint.MODEL, checkpoint.PRIOR)
DAMAGE = ("flip", "flip", "flip", "truncate", "delete")


def start(workdir: Path, data_dir: str | None) -> subprocess.Popen:
    """Start the real command."""
    line = [sys.executable, "-m", "vqvae_jax.main", "--config=configs/quickstart.py:smoke", *OPTIONS]
    line += [f"--workdir={workdir}"] + ([f"--data_dir={data_dir}"] if data_dir else [])
    return subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def outcome(workdir: Path) -> dict:
    """Digest all arrays of what both stages ended in, and their records without times."""
    found = {}
    for stage in STAGES:
        path = checkpoint.newest(workdir, stage, "fitted")
        if path is not None:
            found[stage] = [path.name, checkpoint.digests(checkpoint.read_arrays(path / "state"))]
            found[stage].append(checkpoint.digests(checkpoint.read_fitted(path)))
    for folder in ("", "prior"):
        lines = read_record(workdir / folder)
        found[f"record {folder}"] = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    return json.loads(json.dumps(found))


def read(workdir: Path) -> str:
    """Digest all that a reader of a run sees."""
    run = load(workdir)
    return checkpoint.digest([run.variables, run.learned and run.learned.variables])


def progress(workdir: Path) -> str:
    """Say how far a run has come, by what it left on disk."""
    steps = {stage: [int(path.name) for path in checkpoint.find(workdir, stage)] for stage in STAGES}
    partial = sorted(path.name for path in workdir.rglob("*tmp*"))[:2]
    return f"checkpoints {steps}" + (f", half-written {partial}" if partial else "")


def kill(number: int, arguments, whole: dict, seconds: float) -> dict:
    """Train, kill at a random moment of the whole, go on, and compare."""
    workdir, moments = arguments.work / "killed run", random.Random(number)
    shutil.rmtree(workdir, ignore_errors=True)
    how, process = (signal.SIGKILL, signal.SIGTERM)[number % 2], start(workdir, arguments.data_dir)
    time.sleep(moments.uniform(0, seconds))
    ended = process.poll() is not None
    process.send_signal(how)
    process.wait()
    at = progress(workdir)
    status = start(workdir, arguments.data_dir).wait()
    result = "identical" if status == 0 and outcome(workdir) == whole else f"DIFFERENT (exit status {status})"
    return {"what": how.name, "at": at, "before_the_end": not ended, "result": result}


def damage(number: int, arguments, whole: dict) -> dict:
    """Damage one file of a finished run's checkpoints: it is named or changes nothing. Some of them are trained on."""
    workdir, numbers = arguments.work / "damaged run", random.Random(number)
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(arguments.work / "whole", workdir)
    file = numbers.choice(sorted(path for path in workdir.glob("checkpoints/**/*") if path.is_file()))
    how, data = numbers.choice(DAMAGE), bytearray(file.read_bytes())
    if how == "delete":
        file.unlink()
    elif how == "truncate":
        file.write_bytes(data[: numbers.randrange(len(data))])
    else:
        data[numbers.randrange(len(data))] ^= 1 << numbers.randrange(8)
        file.write_bytes(data)
    case = {"what": how, "at": str(file.relative_to(workdir))}
    try:
        case["result"] = "changes nothing" if read(workdir) == read(arguments.work / "whole") else "DIFFERENT"
    except InputError as error:
        case["result"], case["message"] = "named", str(error).replace(str(workdir.absolute()), "RUN")
    if number % arguments.resume_every == 0:
        status = start(workdir, arguments.data_dir).wait()
        try:
            same = outcome(workdir) == whole
        except InputError:  # in what further training alone would read, and a finished stage does not train
            same = status == 0 and read(workdir) == read(arguments.work / "whole")
        # Where no whole checkpoint is left, training stops with a line that says so.
        case["resumed"] = "identical" if same else "named" if status == 2 else f"DIFFERENT (exit status {status})"
    return case


def main() -> int:
    """Run all cases that are not done yet."""
    parser = argparse.ArgumentParser(description="Kill and damage a small run; its results must not change.")
    parser.add_argument("--work", type=Path, default=Path("runs/faults"))
    parser.add_argument("--data_dir", help="of photographs; default: scikit-image's")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--flips", type=int, default=200, help="flips, truncations and deletions")
    parser.add_argument("--resume_every", type=int, default=20, help="damaged runs of which one is trained on")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    record, began, timing = arguments.work / "cases.jsonl", time.perf_counter(), arguments.work / "seconds"
    if not timing.is_file():
        shutil.rmtree(arguments.work / "whole", ignore_errors=True)
        if start(arguments.work / "whole", arguments.data_dir).wait():
            raise SystemExit("the run that nobody disturbs failed: run the command of this file by hand")
        timing.write_text(str(time.perf_counter() - began))
    whole, seconds = outcome(arguments.work / "whole"), float(timing.read_text())
    lines = record.read_text().splitlines() if record.is_file() else []
    done = {(case["kind"], case["number"]): case for case in map(json.loads, lines)}
    for kind, count in (("kill", arguments.kills), ("damage", arguments.flips)):
        for number in range(count):
            if (kind, number) not in done:
                more = kill(number, arguments, whole, seconds) if kind == "kill" else damage(number, arguments, whole)
                done[kind, number] = case = {"kind": kind, "number": number} | more
                with open(record, "a") as file:
                    file.write(json.dumps(case) + "\n")
                print(case, flush=True)
    cases = list(done.values())
    bad = [case for case in cases if "DIFFERENT" in json.dumps(case)]
    counts = {kind: sum(case["kind"] == kind for case in cases) for kind in ("kill", "damage")}
    for result in ("named", "changes nothing"):
        counts[result] = sum(case["result"] == result for case in cases)
    report({"experiment": "faults", **counts, "different": len(bad), "cases": cases}, arguments.out)
    return len(bad) > 0


if __name__ == "__main__":
    sys.exit(main())
