"""One honest number: bits/dim of a whole split, every image once, and what stands beside it.

Per-image values are summed in float64 and divided once, so neither batch size nor device count nor order matters.
"""

import math
from collections.abc import Iterator

import numpy as np
from rich.console import Console
from rich.table import Table

from vqvae_jax import metrics
from vqvae_jax.api import PRIORS, Run
from vqvae_jax.data import batches
from vqvae_jax.data.images import Source

IMAGES_AT_ONCE = 1024
MOST_CLASSES = 40  # that are printed; the file has all


def _chunks(run: Run, source: Source, num_images: int) -> Iterator[tuple[np.ndarray, dict]]:
    for batch in batches.eval_batches(source, IMAGES_AT_ONCE, num_images):
        keep = batch["mask"]
        yield batch["label"][keep], run.measure(batch["image"][keep])


def evaluate(run: Run, source: Source, num_images: int = 0) -> dict:
    """Measure the first `num_images` (0: all) of a split; the keys are those of `evaluation.json` (see README).

    `bits_per_dim`, `rate` and `distortion` are bits per sub-pixel under the run's headline prior, and for every
    prior under `priors`; `standard_errors` are those of the means over images.
    """
    values: dict[str, list] = {}
    labels = []
    counts = np.zeros((run.model.num_codebooks, run.model.codebook_size))
    for label, measured in _chunks(run, source, num_images):
        labels.append(label)
        for group, row in enumerate(counts):
            row += np.bincount(measured["codes"][..., group].ravel(), minlength=len(row))
        for key in measured.keys() - {"codes", "x_recon"}:
            values.setdefault(key, []).append(measured[key].astype(np.float64))
    per_image = {key: np.concatenate(parts) for key, parts in values.items()}
    for key in [key for key in per_image if key.startswith("rate/") or key == "distortion"]:
        per_image[key] = metrics.nats_to_bits_per_dim(per_image[key], source.image_shape)
    per_image["rate"] = per_image[f"rate/{run.prior}"]
    per_image["bits_per_dim"] = per_image["rate"] + per_image["distortion"]
    result = _summary(run, source, per_image, np.concatenate(labels), counts)
    asked = min(num_images or len(source), len(source))
    return result | {"images_undecodable": asked - result["num_images"]}


def _summary(run, source, per_image, labels, counts):
    shown = ("bits_per_dim", "rate", "distortion", "mse", "psnr", "ssim")
    size = len(labels)
    priors = {}
    for name in (name for name in PRIORS if f"rate/{name}" in per_image):
        rate = per_image[f"rate/{name}"]
        priors[name] = {"bits_per_dim": _mean(rate + per_image["distortion"]), "rate": _mean(rate)}
    per_class = {
        name: {"num_images": int(np.sum(labels == n))} | {k: _mean(per_image[k][labels == n]) for k in shown}
        for n, name in enumerate(source.class_names)
    }
    return {
        **{key: _mean(per_image[key]) for key in shown},
        "prior": run.prior,
        "priors": priors,
        "codebook_usage": float(np.mean(metrics.codebook_usage(counts))),
        "perplexity": float(np.mean(metrics.perplexity(counts))),
        "codebook_size": run.model.codebook_size,
        "num_codebooks": run.model.num_codebooks,
        "num_images": size,
        "num_images_in_split": len(source),
        "dataset": source.name,
        "split": source.split,
        "crop": source.crop_name,
        "images_removed": source.images_removed,
        "likelihood": run.meta["config"]["model"]["likelihood"],
        "step": run.meta["step"],
        "standard_errors": {key: _standard_error(per_image[key]) for key in shown},
        "per_class": per_class,
    }


def _mean(values) -> float | None:
    """The mean, or None (null in JSON) where there is none: no image, or images that can't be compared."""
    mean = float(np.mean(values)) if len(values) else math.nan
    return mean if math.isfinite(mean) else None


def _standard_error(values) -> float | None:
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return error if math.isfinite(error) else None


def _number(value, digits=3):
    return "–" if value is None else f"{value:.{digits}f}"


def print_table(result: dict) -> None:
    """Print an evaluation for people: the bound and its parts, reconstruction, codebook, and each class."""
    part = "" if result["num_images"] == result["num_images_in_split"] else f" of {result['num_images_in_split']}"
    console = Console()
    title = f"{result['dataset']}, {result['split']} split, {result['num_images']}{part} images, step {result['step']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("value", "± s.e."):
        table.add_column(column, justify="right")
    errors = result["standard_errors"]
    bound = f"bits/dim ({result['prior']} prior) = rate + distortion"
    if result["likelihood"] == "squared_error":
        bound += ", Gaussian of fitted scale"
    rows = {"bits_per_dim": bound, "rate": "  rate", "distortion": "  distortion", "psnr": "PSNR, dB", "ssim": "SSIM"}
    for key, label in rows.items():
        table.add_row(label, _number(result[key]), _number(errors[key]))
    for name, prior in result["priors"].items():
        if name != result["prior"]:
            table.add_row(f"bits/dim ({name} prior)", _number(prior["bits_per_dim"]), "")
    table.add_row("codebook usage", f"{100 * result['codebook_usage']:.1f} %", "")
    table.add_row(f"perplexity (at most {result['codebook_size']})", _number(result["perplexity"], 1), "")
    console.print(table)
    if len(result["per_class"]) > MOST_CLASSES:
        return
    classes = Table()
    classes.add_column("class")
    for column in ("images", "bits/dim", "rate", "distortion", "PSNR, dB", "SSIM"):
        classes.add_column(column, justify="right")
    for name, row in result["per_class"].items():
        numbers = [_number(row[key]) for key in ("bits_per_dim", "rate", "distortion", "psnr", "ssim")]
        classes.add_row(name, str(row["num_images"]), *numbers)
    console.print(classes)
