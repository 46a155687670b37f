"""Measure what earlier pixels and codes are worth to each other: `likelihood=context` with codes and without.

    python -m experiments.context cifar10 --data_dir=DIR        or fashion_mnist, imagenet_128; all rows of it
    python -m experiments.context study --data_dir=DIR          CIFAR-10: neighbours and latents, short runs

Each row is the ordinary program with the variant `:context` of a page of configs/ and the changes below. "none" has a
codebook of one code, so its rate is 0: the model without latents, trained for as many minutes. What is finished is not
done again, what was stopped goes on, and `--rows` picks some. Every run is measured on the test split once, those of
`study` on validation images. Writes a file for each row, `headline.json`, and a figure of each table to `--out`.
"""

from vqvae_jax.start import with_huge_pages

if __name__ == "__main__":
    with_huge_pages()

import argparse
import json
import sys
from pathlib import Path

import jax
import matplotlib
from absl import flags

from experiments.collect import training_minutes
from experiments.provenance import provenance
from experiments.reproduce import rows_of, setting
from vqvae_jax import commands, registry
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation.evaluate import evaluate
from vqvae_jax.main import load_config
from vqvae_jax.training import loop
from vqvae_jax.training.record import read_record, write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt

CONFIGS = Path(__file__).parents[1] / "configs"
PAGES = {"cifar10": "cifar10", "fashion_mnist": "fashion_mnist", "imagenet_128": "imagenet", "study": "cifar10"}
NONE = {"model.quantizer.codebook_size": 1, "model.hidden": 8, "model.residual_units": 8, "prior.name": "none"}
NONE |= {"eval.samples": 0}
LATENTS = {  # of CIFAR-10
    "none": NONE,
    "2x2x1": {"model.downsamplings": 4},
    "4x4x1": {},
    "8x8x1": {"model.downsamplings": 2},
    "8x8x5": {"model.downsamplings": 2, "model.quantizer.num_codebooks": 5, "model.quantizer.codebook_size": 128},
}
NEIGHBOURS = {  # the pixels that a pixel sees
    0: {"model.likelihood": "logistic_mixture"},
    1: {"model.context.reach": 1},
    3: {},
}
SHORT = {"train.num_steps": 3000, "train.eval_every": 500, "train.checkpoint_every": 500, "prior.num_steps": 600}
SHORT |= {"prior.eval_every": 200, "eval.samples": 0}

# TABLE: NAME: what changes in the variant `:context` of its page
ROWS = {
    "cifar10": {"none": NONE, "4x4x1": {"train.num_steps": 16_000}},
    "fashion_mnist": {"none": NONE, "7x7x1": {}},
    "imagenet_128": {"none": NONE, "16x16x1": {}},
    "study": {
        f"reach {reach}, {latents}": seen | of_latents | SHORT
        for reach, seen in NEIGHBOURS.items()
        for latents, of_latents in LATENTS.items()
    },
}


def config_of(table: str, name: str, data_dir: str | None, common: dict) -> dict:
    """Give the config of a row; what is `common` to all rows changes it last."""
    changes = registry.pick(ROWS[table], name, f"row of {table}") | common
    options = [f"--config.{key}={value}" for key, value in changes.items()]
    config, _ = load_config(str(CONFIGS / f"{PAGES[table]}.py"), "context", options)
    config["data"]["data_dir"] = data_dir
    return config


def result_of(table: str, name: str, config: dict, workdir: Path, command: str) -> dict:
    """Gather what is known of a finished run: a row for every prior, the minutes of both stages, and its curve."""
    batch_size, record = config["data"]["batch_size"], read_record(workdir)
    minutes = training_minutes(record, batch_size)[-1][1]
    if of_prior := read_record(workdir / "prior"):
        minutes += training_minutes(of_prior, config["prior"]["batch_size"])[-1][1]
    at_step = dict(training_minutes(record, batch_size))
    curve = [
        {"step": line["step"], "minutes": at_step.get(line["step"]), "bits_per_dim": line["eval/bits_per_dim"]}
        for line in record
        if "eval/bits_per_dim" in line
    ]
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    pixelwise = {key: value for key, value in evaluation.items() if key.endswith("_pixelwise")}
    rows = rows_of(name, workdir, command, None)
    return {"table": table, "name": name, "minutes": round(minutes, 1), **pixelwise, "priors": rows, "curve": curve}


def best(result: dict) -> dict:
    """Give the row of a result under the prior that was declared, the learned one where there is one."""
    learned = [row for row in result["priors"] if row["prior"] == "pixelcnn"]
    uniform = [row for row in result["priors"] if row["prior"] == "uniform"]
    return (learned or uniform)[0]


def read_results(out: Path, table: str) -> list[dict]:
    """Read the results of a table that are there, in the order of ROWS."""
    found = [json.loads(path.read_text()) for path in out.glob("*.json") if path.name != "headline.json"]
    mine = [result for result in found if result["table"] == table]
    return sorted(mine, key=lambda result: list(ROWS[table]).index(result["name"]))


def headline(out: Path) -> dict:
    """Give the figures of each data set with codes, and beside them those of the same minutes without."""
    found = {}
    for table in PAGES:
        for result in read_results(out, table) if table != "study" else ():
            row, without = best(result), result["name"] == "none"
            about = {key: row[key] for key in ("bits_per_dim", "rate", "distortion")} | {"minutes": result["minutes"]}
            entry = found.setdefault(table, {})
            entry |= {"without_codes": about} if without else about
    if (kodak := out.parent / "files" / "kodak.json").is_file():  # by experiments.files, whole files
        found["kodak"] = {"without_codes": {"bits_per_dim": json.loads(kodak.read_text())["bits_per_dim"]}}
    return found


def draw(path: Path, results: list[dict]) -> None:
    """Draw the bound on validation images against minutes of training."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for result in results:
        points = [(p["minutes"], p["bits_per_dim"]) for p in result["curve"] if p["minutes"] is not None]
        label = {"none": "no codes"}.get(result["name"], result["name"])
        axes.plot(*zip(*points, strict=True), marker="o", ms=3, label=f"{label}: {best(result)['bits_per_dim']:.3f}")
    axes.set(xlabel="minutes of training", ylabel="bits/dim on validation images, codes counted")
    axes.legend(title="at the end, test images, learned prior", framealpha=1, edgecolor="none")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def train(table: str, name: str, arguments) -> None:
    """Train and measure a row, or go on with it, and write what was found; nothing if that is there."""
    config = config_of(table, name, arguments.data_dir, dict(arguments.set))
    label = f"{table}_{name}".replace(", ", "_").replace(" ", "_")
    path, workdir = arguments.out / f"{label}.json", arguments.runs / label
    with loop.claimed(config, workdir, resume=True):  # refuses a run of another config, also a finished one
        pass
    if path.is_file():
        return
    if not (workdir / "evaluation.json").is_file():
        if table == "study":
            run = loop.train(config, workdir)
            write_json(workdir / "evaluation.json", evaluate(run, registry.build_source(config["data"], "validation")))
        else:
            commands.train(config=config, workdir=workdir)
    command = f"python -m experiments.context {table} --data_dir=DIR --rows {name!r}"
    command += " --set " + " ".join(f"{key}={value}" for key, value in arguments.set) if arguments.set else ""
    write_json(path, result_of(table, name, config, workdir, command))
    draw(arguments.out / f"{table}.png", read_results(arguments.out, table))
    jax.clear_caches()


def main():
    """Train and measure the rows of a table that are missing."""
    parser = argparse.ArgumentParser(description="Measure the likelihood `context` with codes and without.")
    parser.add_argument("table", choices=ROWS)
    parser.add_argument("--data_dir")
    parser.add_argument("--rows", nargs="+", help="some rows of the table; default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs/context"))
    parser.add_argument("--out", type=Path, default=Path("experiments/results/context"))
    parser.add_argument("--set", type=setting, nargs="*", default=[], metavar="KEY=VALUE", help="changes of all rows")
    arguments = parser.parse_args()
    try:
        for name in arguments.rows or ROWS[arguments.table]:
            train(arguments.table, name, arguments)
    except (InputError, flags.Error) as error:
        parser.error(str(error))
    except loop.Stopped as stopped:
        print(stopped)
        sys.exit(130)
    write_json(arguments.out / "headline.json", headline(arguments.out))
    found = {r["name"]: best(r)["bits_per_dim"] for r in read_results(arguments.out, arguments.table)}
    print(json.dumps({"experiment": f"context {arguments.table}", "bits_per_dim": found} | provenance()))


if __name__ == "__main__":
    main()
