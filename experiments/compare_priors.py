"""Train several priors over the codes of one finished image model, and measure what each makes of the same test images.

    python -m experiments.compare_priors --run=runs/cifar10-small --data_dir=DIR --out=experiments/results/prior/NAME \
        [--priors pixelcnn conditional transformer] [--set num_steps=5000 transformer.num_steps=2000 ...]

Every prior but the run's own gets a folder beside RUN with a copy of the image model and its codes; what is finished is
not done again, what was stopped goes on. Writes `table.md`, `table.json`, curves of training and validation images, and
samples.
"""

import argparse
import ast
import contextlib
import json
import shutil
from pathlib import Path

import jax
import matplotlib
import numpy as np

from experiments.collect import training_minutes
from experiments.provenance import provenance
from vqvae_jax import registry
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation import plots
from vqvae_jax.evaluation.evaluate import evaluate
from vqvae_jax.run import Run, load_model
from vqvae_jax.training import checkpoint
from vqvae_jax.training.loop import train
from vqvae_jax.training.prior_stage import CODES
from vqvae_jax.training.record import read_record, write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PRIORS = {  # changes of the config's section `prior`
    "pixelcnn": {"name": "pixelcnn", "conditional": False},
    "conditional": {"name": "pixelcnn", "conditional": True},
    "transformer": {"name": "transformer", "conditional": False},
}
COUNTED = ("uniform", "unigram", "positionwise")
SAMPLES = 10  # a row, and rows where there are no classes


def train_prior(arguments, name: str) -> tuple[Run, Path]:
    """Train one prior in a folder beside the run, or in the run's if it is its own, or go on with it."""
    config = load_model(arguments.run, arguments.data_dir).meta["config"]
    own = {key: value for (of, key), value in arguments.set.items() if of == name}
    prior = config["prior"] | PRIORS[name] | {key: value for (of, key), value in arguments.set.items() if not of} | own
    workdir = arguments.run
    if prior != config["prior"]:
        config["prior"], workdir = prior, arguments.run.with_name(f"{arguments.run.name}_{name}")
    if not workdir.exists():
        copied = workdir.with_name(f".{workdir.name}.tmp")
        shutil.rmtree(copied, ignore_errors=True)
        shutil.copytree(checkpoint.folder(arguments.run), checkpoint.folder(copied))
        if (arguments.run / CODES).is_file():
            shutil.copy(arguments.run / CODES, copied)
        copied.rename(workdir)
    return train(config, workdir), workdir


def row_of(run: Run, workdir: Path, source, num_images: int) -> dict:
    """Measure the test split under a prior."""
    result = evaluate(run, source, num_images)
    record = read_record(workdir / "prior")
    minutes = training_minutes(record, run.meta["config"]["prior"]["batch_size"])[-1][1]
    record = [line for line in record if "eval/bits_per_code" in line]
    best = min(record, key=lambda line: line["eval/bits_per_code"])
    codes = int(np.prod(run.field))
    return {
        "rate": result["rate"],
        "bits_per_dim": result["bits_per_dim"],
        "distortion": result["distortion"],
        "bits_per_code": result["rate"] * float(np.prod(source.image_shape)) / codes,
        "standard_error_of_rate": result["standard_errors"]["rate"],
        "given_label": result.get("given_label"),
        "counted": {name: result["priors"][name] for name in COUNTED},
        "parameters": sum(x.size for x in jax.tree.leaves(run.learned.variables["params"])) if run.learned else 0,
        "steps": record[-1]["step"],
        "training_minutes": minutes,
        "best_step": best["step"],
        "validation_bits_per_code": best["eval/bits_per_code"],
        "training_bits_per_code": best["eval_train/bits_per_code"],
        "num_images": result["num_images"],
    }


def write_table(rows: dict[str, dict], field: tuple[int, int, int], shape: tuple[int, ...], out: Path) -> None:
    """Write the priors, the counted ones first, as Markdown."""
    first = next(iter(rows.values()))
    per_code = np.prod(shape) / np.prod(field)
    lines = [
        "| p(z) | parameters | steps | minutes | bits per code | rate | **bits/dim** | less than unigram |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    unigram = first["counted"]["unigram"]["rate"]

    def line(name, about, rate, bits):
        less = f"{100 * (1 - rate / unigram):.1f} %"
        return f"| {name} | {about} | {rate * per_code:.3f} | {rate:.4f} | {bits:.4f} | {less} |"

    for name, values in first["counted"].items():
        lines.append(line(name, "– | – | –", values["rate"], values["bits_per_dim"]))
    for name, row in rows.items():
        about = f"{row['parameters']:,} | {row['steps']:,} | {row['training_minutes']:.1f}"
        lines.append(line(name, about, row["rate"], row["bits_per_dim"]))
        if row["given_label"]:
            given = row["given_label"]
            name = f"{name}, given the class (no bound of p(x))"
            lines.append(line(name, " | | ", given["rate"], given["bits_per_dim"]))
    (out / "table.md").write_text("\n".join(lines) + "\n")


def draw_curves(records: dict[str, list[dict]], title: str, out: Path) -> None:
    """Draw bits per code of training and validation images of every prior."""
    figure, axis = plt.subplots(figsize=(6.8, 4.2), layout="constrained")
    for n, (name, record) in enumerate(records.items()):
        for key, style in (("eval", "-"), ("eval_train", ":")):
            points = [(line["step"], line[f"{key}/bits_per_code"]) for line in record if f"{key}/bits_per_code" in line]
            label = f"{name}, {'validation' if key == 'eval' else 'training'}"
            axis.plot(*zip(*points, strict=True), style, color=f"C{n}", label=label, lw=1.4)
    axis.set(xlabel="step", ylabel="bits per code", title=title)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    for suffix in ("svg", "png"):
        figure.savefig(out / f"curves.{suffix}", dpi=120)
    plt.close(figure)


def draw_samples(run: Run, path: Path) -> None:
    """Draw the first samples of seed 0, none picked: a row per class where the prior knows classes."""
    classes = min(SAMPLES, len(run.meta["class_names"]))
    labels = np.repeat(np.arange(classes), SAMPLES) if run.learned and run.learned.prior.num_classes else None
    rows = classes if labels is not None else SAMPLES
    images = run.sample(rows * SAMPLES, 0, labels)
    plots.save_grid(path, list(images.reshape(rows, SAMPLES, *images.shape[1:])))


def compare(arguments) -> dict[str, dict]:
    """Train and measure all priors; write table, curves and samples after each."""
    rows, records = {}, {}
    for name in arguments.priors:
        run, workdir = train_prior(arguments, name)
        source = registry.build_source(run.meta["config"]["data"], "test")
        title = arguments.title or source.name
        rows[name] = row_of(run, workdir, source, arguments.images)
        records[name] = read_record(workdir / "prior")
        write_table(rows, run.field, source.image_shape, arguments.out)
        draw_curves(records, f"{title}: priors over {'x'.join(map(str, run.field))} codes", arguments.out)
        draw_samples(run, arguments.out / f"samples_{name}.png")
        settings = [f"{of}.{key}={value}".lstrip(".") for (of, key), value in arguments.set.items()]
        line = f"python -m experiments.compare_priors --run=RUN --data_dir=DIR --priors {' '.join(arguments.priors)}"
        line += f" --set {' '.join(settings)}" if settings else ""
        about = {"dataset": title, "priors": rows, "command": line, **provenance()}
        write_json(arguments.out / "table.json", about)
    return rows


def setting(text: str) -> tuple[tuple[str, str], object]:
    """Turn KEY=VALUE or PRIOR.KEY=VALUE into ((prior or "", key), value)."""
    name, equals, value = text.partition("=")
    prior, _, key = name.rpartition(".")
    if not equals or prior not in ("", *PRIORS):
        raise argparse.ArgumentTypeError(f"{text!r} is neither KEY=VALUE nor PRIOR.KEY=VALUE of {', '.join(PRIORS)}")
    with contextlib.suppress(ValueError, SyntaxError):  # a word
        return (prior, key), ast.literal_eval(value)
    return (prior, key), value


def main():
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="Compare priors over the codes of one image model.")
    parser.add_argument("--run", type=Path, required=True, help="folder of a finished image model")
    parser.add_argument("--data_dir")
    parser.add_argument("--title", help="what to call the data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--priors", nargs="+", default=list(PRIORS), choices=PRIORS)
    parser.add_argument("--images", type=int, default=0, help="of the test split; 0: all")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        type=setting,
        metavar="KEY=VALUE",
        help="of the section `prior`; PRIOR.KEY=VALUE: of one",
    )
    arguments = parser.parse_args()
    arguments.set = dict(arguments.set)
    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        rows = compare(arguments)
    except InputError as error:
        parser.error(str(error))
    print((arguments.out / "table.md").read_text())
    rates = {name: row["rate"] for name, row in rows.items()}
    print(json.dumps({"experiment": "compare_priors", "rates": rates, **provenance()}))


if __name__ == "__main__":
    main()
