"""Compare quantizers on CIFAR-10 as it is: one network, as many steps, and what their codes cost under a learned prior.

    python -m experiments.compare_quantizers --data_dir=DIR                every row with two seeds
    python -m experiments.compare_quantizers --data_dir=DIR --rows finite_scalar_9 --seeds 0 --steps 400

Each row is the program with `configs/families.py`, a quantizer of 2^9 or 2^12 values a position, and a short PixelCNN.
What is finished is not done again, what was stopped goes on. Writes a file for each row and seed, and a figure of all
that are there, to `--out`. Each run is measured on the test split, once. What a step costs:
`experiments.benchmarks.quantizer_steps`.
"""

from vqvae_jax.start import with_huge_pages

if __name__ == "__main__":
    with_huge_pages()

import argparse
import ast
import json
import sys
from pathlib import Path

import jax
import matplotlib

from configs import default, families
from experiments.provenance import provenance
from experiments.reproduce import rows_of, setting
from vqvae_jax import commands, registry
from vqvae_jax.errors import InputError
from vqvae_jax.training import loop
from vqvae_jax.training.record import read_record, write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt

VALIDATIONS = 12  # in a run
ONE = {"codebook_size": 512, "num_codebooks": 1, "embedding_dim": 8, "commitment_cost": 1.0}
STAGES = {"codebook_size": 8, "num_codebooks": 3, "embedding_dim": 8, "commitment_cost": 1.0}

# NAME_BITS of a position: quantizer and options
ROWS = {
    "vector_ema_9": ("vector_ema", ONE),
    "vector_ema_cosine_9": ("vector_ema", ONE | {"distance": "cosine"}),
    "vector_ema_rotation_9": ("vector_ema", ONE | {"estimator": "rotation"}),
    "vector_ema_kmeans_9": ("vector_ema", ONE | {"start": "kmeans"}),
    "vector_gradient_9": ("vector_gradient", ONE),
    "vector_simvq_9": ("vector_simvq", ONE),
    "residual_9": ("residual", STAGES),
    "finite_scalar_9": ("finite_scalar", {"levels": (8, 8, 8)}),
    "lookup_free_9": ("lookup_free", {"bits": 9}),
    "vector_ema_12": ("vector_ema", ONE | {"codebook_size": 4096}),
    "residual_12": ("residual", STAGES | {"num_codebooks": 4}),
    "finite_scalar_12": ("finite_scalar", {"levels": (8, 8, 8, 8)}),
    "lookup_free_12": ("lookup_free", {"bits": 12}),
}


def config_of(
    name: str, seed: int, steps: int, prior_steps: int, data_dir: str | None, changes: dict[str, str]
) -> dict:
    """Give the config of a row; `changes` of all rows come last."""
    config = families.get_config("vqvae")
    quantizer, options = ROWS[name]
    default.set_quantizer(config, quantizer, **options)
    config.seed = seed
    config.train.update(num_steps=steps, eval_every=max(1, steps // VALIDATIONS))
    config.train.checkpoint_every = config.train.eval_every
    config.prior.update(name="pixelcnn", num_steps=prior_steps, eval_every=max(1, prior_steps // 4))
    config.data.data_dir = data_dir
    config.update_from_flattened_dict({key: value_of(text) for key, text in changes.items()})
    return config.to_dict()


def value_of(text: str):
    """Read a number, a tuple or the like, or leave the text as it is."""
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def result_of(name: str, config: dict, workdir: Path, command: str) -> dict:
    """Gather what is known of a finished run: its rows for every prior, and its curve."""
    rows, record = rows_of(name, workdir, command, None), read_record(workdir)
    kept = ("codebook_usage", "perplexity", "bits_per_dim")
    curve = [
        {"step": line["step"]} | {key: line[f"eval/{key}"] for key in kept if f"eval/{key}" in line}
        for line in record
        if "eval/bits_per_dim" in line
    ]
    return {
        "name": name,
        "seed": config["seed"],
        "priors": rows,
        "curve": curve,
    }


def read_results(out: Path) -> list[dict]:
    """Read the results that are there, in the order of ROWS."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*_seed*.json"))]
    return sorted(found, key=lambda result: list(ROWS).index(result["name"]))


def learned(result: dict) -> dict:
    """Give the row of a result under the learned prior."""
    return next(row for row in result["priors"] if row["prior"] == "pixelcnn")


def draw(path: Path, results: list[dict]) -> None:
    """Draw distortion against rate, and the share of codes in use over the steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    labelled = set()
    for result in results:
        number, row = list(ROWS).index(result["name"]), learned(result)
        style = {"color": f"C{number % 10}", "marker": "os"[number // 10]}
        label = f"{result['name']}: {row['bits_per_dim']:.3f}" if result["name"] not in labelled else None
        labelled.add(result["name"])
        left.plot(row["rate"], row["distortion"], linestyle="", label=label, **style)
        points = [(point["step"], point["codebook_usage"]) for point in result["curve"]]
        right.plot(*zip(*points, strict=True), lw=1.2, markersize=3, **style)
    left.set(xlabel="rate under the learned prior, bits/dim", ylabel="distortion, bits/dim")
    left.set_title("CIFAR-10 test images", fontsize=10)
    right.set(xlabel="step", ylabel="share of codes in use", ylim=(0, 1.05))
    right.set_title("validation images", fontsize=10)
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    for suffix in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=120)
    plt.close(figure)


def train(name: str, seed: int, arguments) -> None:
    """Train and measure a row with a seed, or go on with it, and write what was found; nothing if that is there."""
    label = f"{name}_seed{seed}"
    path, workdir = arguments.out / f"{label}.json", arguments.runs / label
    steps = arguments.steps, arguments.prior_steps
    config = config_of(name, seed, *steps, arguments.data_dir, dict(arguments.set))
    with loop.claimed(config, workdir, resume=True):  # refuses a run of another config, also a finished one
        pass
    if path.is_file():
        if json.loads(path.read_text())["priors"][0]["steps"] != arguments.steps:
            raise InputError(f"{path} is of another number of steps: name another --out")
        return
    if not (workdir / "evaluation.json").is_file():
        commands.train(config=config, workdir=workdir)
    command = f"python -m experiments.compare_quantizers --data_dir=DIR --rows {name} --seeds {seed}"
    command += f" --steps {steps[0]} --prior_steps {steps[1]}"
    command += " --set " + " ".join(f"{key}={value}" for key, value in arguments.set) if arguments.set else ""
    write_json(path, result_of(name, config, workdir, command))
    draw(arguments.out / "quantizers", read_results(arguments.out))
    jax.clear_caches()


def main():
    """Train and measure what is missing."""
    parser = argparse.ArgumentParser(description="Compare quantizers.")
    parser.add_argument("--data_dir")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), help=f"some of {', '.join(ROWS)}; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--prior_steps", type=int, default=300)
    parser.add_argument("--runs", type=Path, default=Path("runs/quantizers"))
    parser.add_argument("--out", type=Path, default=Path("experiments/results/quantizers"))
    parser.add_argument("--set", type=setting, nargs="*", default=[], metavar="KEY=VALUE", help="changes of all rows")
    arguments = parser.parse_args()
    try:
        for name in arguments.rows:
            registry.pick(ROWS, name, "row")
        for seed in arguments.seeds:
            for name in arguments.rows:
                train(name, seed, arguments)
    except InputError as error:
        parser.error(str(error))
    except loop.Stopped as stopped:
        print(stopped)
        sys.exit(130)
    found = {f"{r['name']}, seed {r['seed']}": learned(r)["bits_per_dim"] for r in read_results(arguments.out)}
    print(json.dumps({"experiment": "compare_quantizers", "bits_per_dim": found} | provenance()))


if __name__ == "__main__":
    main()
