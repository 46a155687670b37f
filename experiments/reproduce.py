"""Reproduce the comparison of van den Oord et al. 2017 (sec. 4.1), and measure what its figure depends on.

    python -m experiments.reproduce cifar10 --data_dir=DIR     VAE, VQ-VAE, VIMCO; the hours of each row: ROWS
    python -m experiments.reproduce families --data_dir=DIR    five families, two seeds, as many images for each
    python -m experiments.reproduce study --data_dir=DIR       one change at a time, short runs, validation images

Each row is the ordinary program with `configs/families.py` and the changes below. What is finished is not done again,
what was stopped goes on, and `--rows` picks some. After every row `TABLE.json` and `TABLE_curves.json` are written to
`--out`, and a figure but for `study`. The rows of `cifar10` and `families` are measured on the test split, once each;
those of `study` never.
"""

from vqvae_jax.start import with_huge_pages

if __name__ == "__main__":
    with_huge_pages()

import argparse
import json
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import flags

from configs import families
from experiments.collect import training_minutes
from experiments.provenance import provenance
from vqvae_jax import commands, registry
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation.evaluate import evaluate
from vqvae_jax.main import load_config
from vqvae_jax.run import Run, load
from vqvae_jax.training import checkpoint, loop
from vqvae_jax.training.image_stage import ImageStage
from vqvae_jax.training.record import read_record, write_json
from vqvae_jax.training.step import init_state

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PAPER_IMAGES = 250_000 * 128  # that the paper's runs have seen
PAPER = {"vae": 4.51, "vqvae": 4.67, "vimco": 5.14}  # its bits/dim
VALIDATIONS = 12  # in a run
CONFIG = Path(__file__).parents[1] / "configs" / "families.py"
SOFTMAX = {"model.likelihood": "softmax"}
EMBEDDING = {"model.likelihood": "softmax_embedding"}
WITH_PRIOR = {"prior.name": "pixelcnn"}

# VIMCO that starts at the finished row "vqvae" instead of at random numbers.
FROM_VQVAE = {"start": "vqvae", "model.num_codebooks": 4, "model.codebook_size": 256, "model.embedding_dim": 4}
FROM_VQVAE |= {"optimizer.name": "adam", "optimizer.learning_rate": 1e-4}
TEMPERATURE = 0.1  # of its first q(z | x), in units of the VQ-VAE's mean squared error of quantization

# NAME: variant of configs/families.py, and what it changes
ROWS = {
    "cifar10": {
        "vae": ("vae", {"train.num_steps": 18_000}),
        "vqvae": ("vqvae", WITH_PRIOR | {"train.num_steps": 18_000}),
        "vqvae_gradient": ("vqvae_gradient", {"train.num_steps": 3_200}),
        "vqvae_softmax_embedding": ("vqvae", EMBEDDING | {"train.num_steps": 6_000}),
        "vqvae_softmax": ("vqvae", SOFTMAX | {"train.num_steps": 8_000}),
        "vqvae_short": ("vqvae", {"train.num_steps": 8_000}),
        "vqvae_quarter_hour": ("vqvae", {"train.num_steps": 3_200}),
        "vimco": ("vimco", {"train.num_steps": 2_000, "eval.samples": 0}),
        "vimco_from_vqvae": ("vimco", FROM_VQVAE | {"train.num_steps": 1_000, "eval.samples": 0}),
    },
    "families": {
        f"{family}_{seed}": (family, {"seed": seed, "train.num_steps": 600, "eval.samples": 0})
        for seed in range(2)
        for family in families.FAMILIES
    },
}


def _codes(num_codebooks: int, codebook_size: int) -> dict:
    return {"model.quantizer.num_codebooks": num_codebooks, "model.quantizer.codebook_size": codebook_size}


STUDY = {  # what changes, one at a time, of a VQ-VAE of 4 codes of K = 256 a position
    "as it is": {},
    "softmax": SOFTMAX,
    "softmax over embedded levels": EMBEDDING,
    "one logistic": {"model.likelihood": "logistic"},
    "1 x 512": _codes(1, 512),
    "5 x 128": _codes(5, 128),
    "7 x 32": _codes(7, 32),
    "10 x 8": _codes(10, 8),
    "10 x 128": _codes(10, 128),
    "10 x 512": _codes(10, 512),
    "beta 0.1": {"model.quantizer.commitment_cost": 0.1},
    "beta 0.25": {"model.quantizer.commitment_cost": 0.25},
    "beta 4": {"model.quantizer.commitment_cost": 4.0},
    "no revival": {"model.quantizer.revival_threshold": 0.0},
    "64/16 units": {"model.hidden": 64, "model.residual_units": 16},
    "256/64 units": {"model.hidden": 256, "model.residual_units": 64},
    "Adam": {"optimizer.name": "adam"},
    "average of weights": {"train.average_decay": 0.998},
}
ROWS["study"] = {name: ("vqvae", changes | {"train.num_steps": 400}) for name, changes in STUDY.items()}
ROWS["study"]["codebook by gradient"] = ("vqvae_gradient", {"train.num_steps": 400})
KEPT = ("rate", "distortion", "psnr", "ssim", "perplexity", "codebook_usage", "codebook_size", "num_codebooks")
KEPT += ("num_images", "dataset", "split", "samples", "elbo_bits_per_dim", "in_expectation", "other_bounds")


def config_of(table: str, name: str, data_dir: str | None, common: dict) -> dict:
    """Give the config of a row; what is `common` to all rows changes it last."""
    variant, changes = ROWS[table][name]
    changes = {key: value for key, value in changes.items() if key != "start"} | common
    config, _ = load_config(str(CONFIG), variant, [f"--config.{key}={value}" for key, value in changes.items()])
    steps = config["train"]["num_steps"]
    config["train"]["eval_every"] = config["train"]["checkpoint_every"] = max(1, steps // VALIDATIONS)
    config["data"]["data_dir"] = data_dir
    return config


def as_categorical(run: Run, images: np.ndarray) -> dict:
    """Turn a VQ-VAE into a model that draws its codes: q(z | x) ~ exp(-|z_e - e|² / T), the rest as it is.

    The squared distance is linear in z_e but for what all codes share, so that the encoder's last layer can give
    -|z_e - e|² / T of every code. T is TEMPERATURE times the mean squared distance of `images` to their codes.
    """
    params, quantizer = run.variables["params"], run.model.quantizer
    codebook = np.asarray(quantizer.codebook({"params": params.get("quantizer", {}), "state": run.variables["state"]}))
    last, size = params["encoder"]["out"], codebook.shape
    kernel, bias = (np.asarray(last[key]).reshape(-1, size[0], size[2]) for key in ("kernel", "bias"))
    nearest = np.asarray(run.model.distances(run.variables, images)).min(axis=-1)
    scale = 1 / (TEMPERATURE * nearest.mean())
    wide = scale * 2 * np.einsum("hgd,gkd->hgk", kernel, codebook)
    shift = scale * (2 * np.einsum("gd,gkd->gk", bias[0], codebook) - np.sum(codebook**2, axis=-1))
    out = {"kernel": wide.reshape(1, 1, len(kernel), -1), "bias": shift.ravel()}
    kept = {key: params[key] for key in ("decoder", "likelihood") if key in params}
    return jax.tree.map(jnp.asarray, kept | {"encoder": {**params["encoder"], "out": out}, "codebook": codebook})


def start_at(run: Run, config: dict, workdir: Path) -> None:
    """Make the first checkpoint of a run, whose parameters are those of a finished VQ-VAE."""
    source, validation = (registry.build_source(config["data"], split) for split in ("train", "validation"))
    stage = ImageStage(config, source, validation)
    batch = next(stage.batches(range(1)))
    state = init_state(stage.model, stage.optimizer, config["seed"], batch["image"])
    params = as_categorical(run, np.asarray(batch["image"]))
    chex.assert_trees_all_equal_shapes_and_dtypes(state.params, params)
    state = state._replace(params=params, opt_state=stage.optimizer.init(params))
    with checkpoint.open_manager(workdir) as manager:
        checkpoint.save(manager, state.saved(), {**stage.meta, "step": 0})


def train(table: str, name: str, config: dict, workdir: Path) -> None:
    """Train a row, or go on with it, and measure it: on the test split, or in a study on all validation images."""
    start = ROWS[table][name][1].get("start")
    if start and checkpoint.newest(workdir) is None:
        start_at(load(workdir.parent / start, config["data"]["data_dir"]), config, workdir)
    if table != "study":
        commands.train(config=config, workdir=workdir)
        return
    run = loop.train(config, workdir)
    write_json(workdir / "evaluation.json", evaluate(run, registry.build_source(config["data"], "validation")))


def rows_of(name: str, workdir: Path, command: str, start: str | None) -> list[dict]:
    """Gather what is known of a finished run, a row for every p(z); images that its `start` saw are not counted."""
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["data_dir"] = None  # a path of this machine
    run, step = load(workdir), evaluation["step"]
    minutes = training_minutes(read_record(workdir), config["data"]["batch_size"])[-1][1]
    about = {
        "family": evaluation["family"],
        "name": name,
        "likelihood": evaluation["likelihood"],
        "codebook_update": config["model"].get("quantizer", {}).get("name", "").removeprefix("vector_") or None,
        "seed": config["seed"],
        "steps": step,
        "images_seen": step * config["data"]["batch_size"],
        "start": start,
        "minutes": round(minutes, 1),
        "parameters": sum(x.size for x in jax.tree.leaves(run.variables["params"])),
        **{key: evaluation[key] for key in KEPT if key in evaluation},
        "config": config,
        "command": command,
        **provenance(),
    }
    error = evaluation["standard_errors"].get("bits_per_dim")
    headline = {"bits_per_dim": evaluation["bits_per_dim"], "standard_error": error}
    if evaluation["bits_per_dim"] is None or about.get("samples", 1) > 1:  # without a bound, or one that isn't a sum
        return [{"prior": evaluation["prior"]} | headline | about]
    return [{"prior": prior} | about | values for prior, values in evaluation["priors"].items()]


def curve_of(workdir: Path, batch_size: int) -> list[dict]:
    """Give every validation of a run: images seen, and the bound with the codes counted, if the family has one."""
    lines = (line for line in read_record(workdir) if line.get("eval/bits_per_dim") is not None)
    return [{"images_seen": line["step"] * batch_size, "bits_per_dim": line["eval/bits_per_dim"]} for line in lines]


def draw(path: Path, curves: dict[str, list], rows: list[dict]) -> None:
    """Draw the bound on validation images against images seen, and on the test images at the end."""
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    for n, (name, points) in enumerate(curves.items()):
        mine = [row for row in rows if row["name"] == name and row["bits_per_dim"] is not None]
        if not (points and mine):
            continue
        axes.plot(*zip(*((p["images_seen"], p["bits_per_dim"]) for p in points), strict=True), color=f"C{n}", lw=1.4)
        best = min(mine, key=lambda row: row["bits_per_dim"])
        label = f"{name}: {best['bits_per_dim']:.3f} ({best['prior']} prior)"
        axes.plot(best["images_seen"], best["bits_per_dim"], "o", color=f"C{n}", label=label)
    for family, bits in PAPER.items():
        axes.plot(PAPER_IMAGES, bits, "k*", ms=9)
        axes.annotate(f"{family}, paper {bits}", (PAPER_IMAGES, bits), (-8, 4), textcoords="offset points", ha="right")
    axes.axvline(PAPER_IMAGES, color="0.7", lw=1, zorder=0)
    axes.set(xscale="log", xlabel="images seen", ylabel="bits/dim", ylim=(None, 6.2))
    axes.set_title("CIFAR-10: lines on validation images (codes counted), points on test images", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(framealpha=1, edgecolor="none", fontsize=8)
    for suffix in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{suffix}"), dpi=120)
    plt.close(figure)


def read_rows(arguments) -> list[dict]:
    """Read the rows of the table that are known."""
    path = arguments.out / f"{arguments.table}.json"
    return json.loads(path.read_text()) if path.is_file() else []


def add(arguments, name: str, config: dict, workdir: Path) -> None:
    """Put a finished run's rows and curve into the files of its table, and draw them."""
    path, curves_path = (arguments.out / f"{arguments.table}{end}.json" for end in ("", "_curves"))
    rows = read_rows(arguments)
    curves = json.loads(curves_path.read_text()) if curves_path.is_file() else {}
    command = f"python -m experiments.reproduce {arguments.table} --data_dir=DIR --rows {name}"
    command += " --set " + " ".join(f"{key}={value}" for key, value in arguments.set) if arguments.set else ""
    start = ROWS[arguments.table][name][1].get("start")
    rows = [row for row in rows if row["name"] != name] + rows_of(name, workdir, command, start)
    rows.sort(key=lambda row: list(ROWS[arguments.table]).index(row["name"]))
    curves[name] = curve_of(workdir, config["data"]["batch_size"])
    write_json(path, rows)
    write_json(curves_path, curves)
    if arguments.table != "study":  # all of whose runs are short
        draw(arguments.out / f"{arguments.table}_curves", curves, rows)
    for row in rows:
        if row["name"] == name:
            print(f"{name}, {row['prior']} prior: {row['bits_per_dim']} bits/dim", flush=True)


def setting(text: str) -> tuple[str, str]:
    """Read KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def main():
    """Train and measure the rows of a table that are missing."""
    parser = argparse.ArgumentParser(description="Reproduce the paper's comparison.")
    parser.add_argument("table", choices=ROWS)
    parser.add_argument("--data_dir")
    parser.add_argument("--rows", nargs="+", help="some rows of the table; default: all")
    parser.add_argument("--runs", type=Path, default=Path("runs/reproduction"))
    parser.add_argument("--out", type=Path, default=Path("experiments/results/reproduction"))
    parser.add_argument("--set", type=setting, nargs="*", default=[], metavar="KEY=VALUE", help="changes of all rows")
    arguments = parser.parse_args()
    try:
        for name in arguments.rows or ROWS[arguments.table]:
            registry.pick(ROWS[arguments.table], name, f"row of {arguments.table}")
            config = config_of(arguments.table, name, arguments.data_dir, dict(arguments.set))
            workdir = arguments.runs / arguments.table / name.replace(" ", "_").replace("/", "_")
            with loop.claimed(config, workdir, resume=True):  # refuses a run of another config, also a finished one
                pass
            if not (workdir / "evaluation.json").is_file():
                train(arguments.table, name, config, workdir)
            elif any(row["name"] == name for row in read_rows(arguments)):
                continue  # what is known of it says with which code it was made
            add(arguments, name, config, workdir)
            jax.clear_caches()
    except (InputError, flags.Error) as error:
        parser.error(str(error))
    except loop.Stopped as stopped:
        print(stopped)
        sys.exit(130)
    found = {f"{row['name']}, {row['prior']}": row["bits_per_dim"] for row in read_rows(arguments)}
    print(json.dumps({"experiment": f"reproduce {arguments.table}", "bits_per_dim": found} | provenance()))


if __name__ == "__main__":
    main()
