"""Copy a finished run's figures and numbers to `experiments/results/`, with how they came about.

python -m experiments.collect RUN --out=experiments/results/NAME --command="..." --data="..."
"""

import argparse
import json
import shutil
from pathlib import Path

from experiments.provenance import provenance
from vqvae_jax.training import checkpoint
from vqvae_jax.training.record import read_record, write_json

KEPT = ("evaluation.json", "figures/curves.png", "figures/reconstructions.png")
OF_A_PRIOR = ("figures/prior_curves.png", "figures/samples.png")


def training_minutes(record: list[dict], batch_size: int) -> list[tuple[int, float]]:
    """Add up, at every logged step, the time of the steps so far: validation, pauses and compilation left out."""
    step, minutes, points = 0, 0.0, []
    for line in record:
        if "images_per_second" in line:
            minutes += (line["step"] - step) * batch_size / line["images_per_second"] / 60
            step = line["step"]
            points.append((step, minutes))
    return points


def copy_record(run: Path, path: Path) -> list[dict]:
    """Copy the record of a stage without its dates."""
    record = read_record(run)
    lines = [json.dumps({k: v for k, v in line.items() if k != "unix_time"}) + "\n" for line in record]
    path.write_text("".join(lines))
    return record


def copy_checkpoints(run: Path, target: Path) -> None:
    """Copy a finished run's checkpoints without what only training needs, and without the data's path."""
    for stage in (checkpoint.MODEL, checkpoint.PRIOR):
        path = checkpoint.newest(run, stage, "fitted")
        if path is None:
            continue
        meta, state = checkpoint.read_meta(path), checkpoint.read_arrays(path / "state")
        meta["config"]["data"]["data_dir"] = None
        with checkpoint.open_manager(target, stage) as manager:
            checkpoint.save(
                manager, {key: state[key] for key in ("params", "model_state", "average") if key in state}, meta
            )
        copy = checkpoint.folder(target, stage)
        checkpoint.save_fitted(copy / path.name, checkpoint.read_fitted(path))
        for note in copy.rglob("commit_success.txt"):  # orbax's, of where it was written
            note.unlink()


def main():
    """Copy one run."""
    parser = argparse.ArgumentParser(description="Copy a finished run to experiments/results/.")
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--command", required=True, help="how the run was made")
    parser.add_argument("--data", required=True, help="which data, and where they are from")
    parser.add_argument("--commit", help="the code that trained; default: the one checked out")
    parser.add_argument("--note", default="", help="what else to know of the run")
    parser.add_argument("--checkpoints", type=Path, help="a folder for what of the checkpoints a reader needs, if any")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    prior = (arguments.run / "prior").is_dir()
    for name in KEPT + OF_A_PRIOR * prior:
        shutil.copy(arguments.run / name, arguments.out / Path(name).name)
    config = json.loads((arguments.run / "config.json").read_text())
    config["data"]["data_dir"] = None  # a path of the machine that trained
    write_json(arguments.out / "config.json", config)
    record = copy_record(arguments.run, arguments.out / "metrics.jsonl")
    minutes = training_minutes(record, config["data"]["batch_size"])[-1][1]
    if prior:
        of_prior = copy_record(arguments.run / "prior", arguments.out / "prior_metrics.jsonl")
        minutes += training_minutes(of_prior, config["prior"]["batch_size"])[-1][1]
    if arguments.checkpoints:
        copy_checkpoints(arguments.run, arguments.checkpoints)
    about = {
        "command": arguments.command,
        "data": arguments.data,
        **provenance(),
        **({"commit": arguments.commit} if arguments.commit else {}),
        "training_minutes": round(minutes, 1),
        "note": arguments.note,
    }
    write_json(arguments.out / "about.json", about)
    print(json.dumps(about))


if __name__ == "__main__":
    main()
