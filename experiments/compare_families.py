"""Train every family for the same time with the same networks, measure them, and draw them beside each other.

    python -m experiments.compare_families --dataset=cifar10 --data_dir=DIR --minutes=12 --seeds=2 [--bounds]
    python -m experiments.compare_families --dataset=cifar10 --data_dir=DIR --minutes=6 --sweep

The minutes are turned into a number of steps for each family once, by timing them in turns, and kept, so a family's
time is its steps times the time of a step when nothing else ran. Whatever is finished is not done again, and a run that
was stopped goes on. `--bounds` then measures what takes many passes of the decoder: bounds of many draws, and what a
VQ-VAE's other codes are worth. `--sweep` trains VQ-VAEs of several rates instead. Every run is the ordinary
program in a process of its own. Writes `DATASET_FAMILY_SEED.json`, `DATASET.md` and figures to `--out`.
"""

import argparse
import ast
import contextlib
import json
import math
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import matplotlib

from configs import families
from experiments.provenance import provenance
from vqvae_jax import api, builders, sharding
from vqvae_jax.data import batches
from vqvae_jax.errors import InputError
from vqvae_jax.evaluate import other_bounds
from vqvae_jax.metric_writer import read_record, write_json
from vqvae_jax.train_step import init_state, make_train_step

matplotlib.use("Agg")
from matplotlib import pyplot as plt

TITLES = {"cifar10": "CIFAR-10", "fashion_mnist": "Fashion-MNIST", "photos": "photos"}
SWEEP = {  # name: overrides of the VQ-VAE's latents
    "2x64": {"model.num_codebooks": 2, "model.codebook_size": 64},
    "5x32": {"model.num_codebooks": 5, "model.codebook_size": 32},
    "5x512": {"model.num_codebooks": 5, "model.codebook_size": 512},
    "12x128": {"model.num_codebooks": 12, "model.codebook_size": 128},
}
TIMINGS = 2  # of every family, in turns
SHORT = {"train.eval_every": 8, "train.checkpoint_every": 8, "train.log_every": 200}  # times in a run
KEPT = ("bits_per_dim", "rate", "distortion", "psnr", "ssim", "mse", "samples", "prior", "standard_errors")
KEPT += ("priors", "codebook_usage", "perplexity", "codebook_size", "num_codebooks", "num_images", "likelihood")


def seconds_per_step(config: dict, source) -> float:
    """Time steps of a family, the median of a few after the first, which compiles."""
    mesh, size = sharding.make_mesh(), config["data"]["batch_size"]
    model = builders.build_model(config["model"], source.image_shape)
    optimizer = builders.build_optimizer(config["optimizer"], 1000)
    made = [sharding.put_batch(batches.batch_at(source, size, 0, True, n), mesh) for n in range(4)]
    state = init_state(model, optimizer, 0, made[0]["image"], mesh)
    step, times = make_train_step(model, optimizer, 0, mesh), []
    for n in range(60):
        begin = time.perf_counter()
        state, values = step(state, made[n % len(made)])
        jax.block_until_ready((state, values))
        times.append(time.perf_counter() - begin)
        if sum(times[1:]) > 30 and n > 3:
            break
    return statistics.median(times[1:])


def plan(arguments, jobs: list) -> dict:
    """Turn the minutes into `steps`, with `seconds_per_step`, for every name of a run: once; then read from a file."""
    path = arguments.runs / f"steps_{arguments.dataset.replace('/', '_')}.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    said = [f"{arguments.minutes:g} minutes", *(f"{k}={v}" for k, v in arguments.set.items())]
    keys = {name: " ".join([name, *said]) for _, _, name, _ in jobs}
    new = {name: (family, changes) for family, _, name, changes in jobs if keys[name] not in known}
    times = {name: [] for name in new}
    for _ in range(TIMINGS):  # in turns: a machine that slows down slows all of them
        for name, (family, changes) in new.items():
            options = {"data.name": arguments.dataset} | arguments.set | changes
            program = "from experiments import compare_families as c; import sys; c.time_steps(*sys.argv[1:])"
            line = [sys.executable, "-c", program, family, arguments.data_dir or ""]
            line += [f"{key}={value}" for key, value in options.items()]
            done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=True)
            times[name].append(float(done.stdout.split()[-1]))
    for name, values in times.items():
        seconds = statistics.median(values)
        known[keys[name]] = {"seconds_per_step": seconds, "steps": max(2, round(60 * arguments.minutes / seconds))}
    if new:
        write_json(path, known)
    return {name: known[key] for name, key in keys.items()}


def time_steps(family: str, data_dir: str, *options: str) -> None:
    """Print the seconds of a step; in a process of its own, so that no run's memory is this one's."""
    config = families.get_config(family).to_dict()
    config["data"]["data_dir"] = data_dir or None
    for option in options:
        key, _, value = option.partition("=")
        section, _, name = key.partition(".")
        with contextlib.suppress(ValueError, SyntaxError):  # a word
            value = ast.literal_eval(value)
        config[section][name] = value
    print(seconds_per_step(config, builders.build_source(config["data"], "validation")))


def train(arguments, family: str, workdir: Path, seed: int, overrides: dict) -> None:
    """Run the ordinary program, which goes on with a run that was stopped."""
    steps = overrides["train.num_steps"]
    overrides |= {key: max(1, steps // times) for key, times in SHORT.items()}
    overrides |= {"optimizer.warmup_steps": min(200, steps // 10), "eval.samples": 0, "seed": seed}
    overrides |= {"data.name": arguments.dataset} | arguments.set
    line = [sys.executable, "-m", "vqvae_jax.main", f"--config=configs/families.py:{family}", f"--workdir={workdir}"]
    line += [f"--config.{key}={value}" for key, value in overrides.items()]
    line += [f"--data_dir={arguments.data_dir}"] if arguments.data_dir else []
    if subprocess.run(line, check=False).returncode:
        sys.exit(f"stopped: {shlex.join(line)}")


def row_of(arguments, family: str, workdir: Path, seed: int, name: str, seconds: float) -> dict:
    """Gather what is known of a finished run; its minutes are its steps times the time of one, in seconds."""
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    config = json.loads((workdir / "config.json").read_text())
    record = read_record(workdir)
    run = api.load(workdir, arguments.data_dir)
    curve = curve_of(record, seconds)
    return {
        "family": family,
        "name": name,
        "dataset": arguments.title,
        "seed": seed,
        "steps": run.meta["step"],
        "training_minutes": round(run.meta["step"] * seconds / 60, 1),
        "seconds_per_step": seconds,
        **{key: evaluation[key] for key in KEPT if key in evaluation},
        "parameters": sum(x.size for x in jax.tree.leaves(run.variables["params"])),
        "most_memory_mb": max((line["most_memory_mb"] for line in record if "most_memory_mb" in line), default=None),
        "batch_size": config["data"]["batch_size"],
        "curve": curve,
        "model": config["model"],
        "minutes": arguments.minutes,
        "set": arguments.set,
        "command": arguments.command,
        **provenance(),
    }


def curve_of(record: list[dict], seconds: float) -> list[dict]:
    """Give every validation: its step, minutes, bound and distortion, if the family has both."""
    keys = ("eval/bits_per_dim", "eval/distortion")
    return [
        {"step": line["step"], "minutes": line["step"] * seconds / 60}
        | {key.removeprefix("eval/"): line[key] for key in keys if key in line}
        for line in record
        if any(key in line for key in keys)
    ]


def add_bounds(arguments, path: Path, workdir: Path) -> None:
    """Measure what takes many passes of the decoder, and add it to a row."""
    row = json.loads(path.read_text())
    if row.get("other_bounds_images") == arguments.images:
        return
    run = api.load(workdir, arguments.data_dir)
    source = builders.build_source(run.meta["config"]["data"], "test")
    wanted = families.get_config(row["family"]).to_dict()["eval"] | {"test_images": arguments.images}
    row |= {"other_bounds": other_bounds(run, source, wanted), "other_bounds_images": arguments.images}
    write_json(path, row)


def read_rows(arguments) -> list[dict]:
    """Read the rows of this data set that are there: of the sweep, or of the comparison."""
    rows = [json.loads(path.read_text()) for path in sorted(arguments.out.glob(f"{arguments.slug}_*_[0-9]*.json"))]
    rows = [row for row in rows if row.get("dataset") == arguments.title]
    return [row for row in rows if row["name"].startswith("sweep_") == arguments.sweep]


def _mean_and_spread(values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{statistics.mean(known):.3f}" + (f" ± {(max(known) - min(known)) / 2:.3f}" if len(known) > 1 else "")


def write_table(arguments, rows: list[dict]) -> str:
    """Write the comparison as Markdown: the mean over seeds, ± half of what lies between them."""
    lines = [
        "| family | p(z) | seeds | steps | minutes | **bits/dim** | rate | distortion | PSNR, dB | SSIM | memory, MB |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for family in sorted({row["family"] for row in rows}, key=lambda f: _order(rows, f)):
        mine = [row for row in rows if row["family"] == family]
        name, prior = _label(mine[0]), mine[0]["prior"] or "none, so no bound"
        numbers = [_mean_and_spread([row[key] for row in mine]) for key in ("bits_per_dim", "rate", "distortion")]
        pictures = [_mean_and_spread([row[key] for row in mine]) for key in ("psnr", "ssim")]
        minutes = statistics.mean(row["training_minutes"] for row in mine)
        memory = max((row["most_memory_mb"] or 0 for row in mine), default=0)
        sizes = [f"{mine[0]['steps']:,}", f"{minutes:.1f}"]
        cells = [name, prior, len(mine), *sizes, *numbers, *pictures, f"{memory:,}" if memory else "–"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += _lines_of_other_bounds(rows)
    anchors = arguments.out / f"{arguments.slug}_anchors.json"
    if anchors.is_file():
        lines += ["", "| for comparison, the same test images | bits/dim |", "|---|---:|"]
        found = json.loads(anchors.read_text())["bits_per_dim"]
        lines += [f"| {name} | {value:.3f} |" for name, value in found.items()]
    text = "\n".join(lines) + "\n"
    (arguments.out / f"{arguments.slug}.md").write_text(text)
    return text


def _label(row: dict) -> str:
    return row["family"] + (f" (bound of {row['samples']} draws)" if row["samples"] > 1 else "")


def _lines_of_other_bounds(rows: list[dict]) -> list[str]:
    """Tabulate bounds of several draws, and what a VQ-VAE's other codes are worth at least."""
    lines = []
    for row in rows:
        for bound in row.get("other_bounds", []):
            kind = "codes" if "codes" in bound else "draws"
            name = f"{row['family']}, seed {row['seed']}, {bound[kind]:,} {kind}"
            value = f"{bound['bits_per_dim']:.5f} ± {bound['standard_error']:.3f}"
            lines.append(f"| {name} | {bound['num_images']:,} | {value} |")
    header = ["", "| bound | test images | bits/dim ± s.e. |", "|---|---:|---:|"]
    return header + lines if lines else []


def _order(rows, family):
    known = [row["bits_per_dim"] for row in rows if row["family"] == family and row["bits_per_dim"] is not None]
    return statistics.mean(known) if known else math.inf


def draw_curves(arguments, rows: list[dict]) -> None:
    """Draw the bound on validation images against steps and against training time."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", sharey=True)
    names = sorted({row["family"] for row in rows if row["bits_per_dim"] is not None})
    for row in rows:
        points = [point for point in row["curve"] if point.get("bits_per_dim") is not None]
        for axis, key in zip(axes, ("step", "minutes"), strict=True):
            if points:
                label = _label(row) if row["seed"] == 0 else None
                color = f"C{names.index(row['family'])}"
                values = [point["bits_per_dim"] for point in points]
                axis.plot([point[key] for point in points], values, "o-", ms=3, lw=1.2, color=color, label=label)
    for axis, label in zip(axes, ("step", f"minutes of training, {rows[0]['hardware']}"), strict=True):
        axis.set(xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set(ylabel="bits/dim, bound on validation images", xscale="log")
    axes[1].legend(frameon=False)
    figure.suptitle(f"{arguments.title}: one network, batch {rows[0]['batch_size']}, every seed a line")
    _save(figure, arguments.out / f"{arguments.slug}_curves")


def draw_sweep(arguments, rows: list[dict]) -> None:
    """Draw distortion against rate for VQ-VAEs of several capacities."""
    figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="constrained")
    rows = sorted(rows, key=lambda row: row["rate"])
    axis.plot([row["rate"] for row in rows], [row["distortion"] for row in rows], "o-", color="C0")
    middle = (rows[0]["rate"] + rows[-1]["rate"]) / 2
    for row in rows:
        text = f"{row['num_codebooks']} × K = {row['codebook_size']}: {row['bits_per_dim']:.3f}"
        # Towards the middle, and on the side where the falling line isn't.
        place = {"xytext": (-6, -12), "ha": "right"} if row["rate"] > middle else {"xytext": (6, 4), "ha": "left"}
        axis.annotate(text, (row["rate"], row["distortion"]), textcoords="offset points", fontsize=9, **place)
    axis.margins(x=0.08, y=0.12)
    axis.set(xlabel="rate (unigram prior), bits/dim", ylabel="distortion, bits/dim")
    axis.set_title(
        f"{arguments.title}: VQ-VAEs of {rows[0]['training_minutes']:.0f} minutes, bits/dim beside the points",
        fontsize=11,
    )
    axis.grid(alpha=0.3)
    _save(figure, arguments.out / f"{arguments.slug}_sweep")


def _save(figure, path: Path) -> None:
    for suffix in ("svg", "png"):
        figure.savefig(f"{path}.{suffix}", dpi=120)
    plt.close(figure)


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _command(arguments) -> str:
    """Say how to do it again, without the paths of this machine."""
    line = ["python", "-m", "experiments.compare_families", f"--dataset={arguments.dataset}", "--data_dir=DIR"]
    line += [f"--title={arguments.title}"] if arguments.title else []
    line += [f"--minutes={arguments.minutes:g}", f"--seeds={arguments.seeds}"] + ["--sweep"] * arguments.sweep
    line += ["--set", *(f"{key}={value}" for key, value in arguments.set.items())] if arguments.set else []
    return shlex.join(line)


def _row_path(arguments, seed: int, name: str) -> Path:
    return arguments.out / f"{arguments.slug}_{name}_{seed}.json"


def compare(arguments) -> None:
    """Train and measure what is missing; write the table and the figures after every run."""
    jobs = [(family, seed, family, {}) for seed in range(arguments.seeds) for family in arguments.families]
    if arguments.sweep:
        jobs = [("vqvae", 0, f"sweep_{name}", changes) for name, changes in SWEEP.items()]
    planned = plan(arguments, [job for job in jobs if not _row_path(arguments, *job[1:3]).is_file()])
    for family, seed, name, changes in jobs:
        path = _row_path(arguments, seed, name)
        workdir = arguments.runs / f"{arguments.dataset}_{name}_{seed}"
        if path.is_file():
            known = json.loads(path.read_text())
            if (known["minutes"], known["set"]) != (arguments.minutes, arguments.set):
                said = f"--minutes={known['minutes']:g} --set {known['set']}"
                raise InputError(f"{path} is of {said}: choose another --out and --runs")
        else:
            train(arguments, family, workdir, seed, changes | {"train.num_steps": planned[name]["steps"]})
            write_json(path, row_of(arguments, family, workdir, seed, name, planned[name]["seconds_per_step"]))
        if arguments.bounds:
            add_bounds(arguments, path, workdir)
        rows = read_rows(arguments)
        (draw_sweep if arguments.sweep else draw_curves)(arguments, rows)
        if not arguments.sweep:
            print(write_table(arguments, rows), flush=True)


def main():
    """Run the comparison."""
    parser = argparse.ArgumentParser(description="Train all families on equal terms and compare them.")
    parser.add_argument("--dataset", default="cifar10", help="photos, cifar10, fashion_mnist, ...")
    parser.add_argument("--data_dir")
    parser.add_argument("--title", help="what to call the data")
    parser.add_argument("--minutes", type=float, default=12, help="of training, a run")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--families", nargs="+", default=list(families.FAMILIES), choices=families.FAMILIES)
    parser.add_argument("--sweep", action="store_true", help="VQ-VAEs of several capacities instead")
    parser.add_argument("--bounds", action="store_true", help="also bounds of many draws and codes")
    parser.add_argument("--images", type=int, default=0, help="of the test split for those; 0: all")
    parser.add_argument("--set", type=_setting, nargs="*", default=[], metavar="KEY=VALUE", help="config overrides")
    parser.add_argument("--runs", type=Path, default=Path("runs/families"))
    parser.add_argument("--out", type=Path, default=Path("experiments/results/families"))
    arguments = parser.parse_args()
    if not (arguments.minutes > 0 and arguments.seeds > 0):
        parser.error("--minutes and --seeds must be above 0")
    arguments.set = dict(arguments.set)
    arguments.command = _command(arguments)
    arguments.title = str(arguments.title or TITLES.get(arguments.dataset, arguments.dataset))
    arguments.slug = arguments.title.lower().replace(" ", "_").replace("(", "").replace(")", "").replace("/", "_")
    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    try:
        compare(arguments)
    except InputError as error:
        parser.error(str(error))
    rows = read_rows(arguments)
    kept = ("hardware", "versions", "commit")
    found = {f"{row['name']}_{row['seed']}": row["bits_per_dim"] for row in rows}
    print(json.dumps({"experiment": "compare_families", "bits_per_dim": found} | {key: rows[0][key] for key in kept}))


if __name__ == "__main__":
    main()
