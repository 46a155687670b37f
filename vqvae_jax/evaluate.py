"""One honest number: bits/dim of a whole split, every image once, and what stands beside it.

Per-image values are summed in float64 and divided once, so neither batch size nor device count nor order matters.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from vqvae_jax import metrics
from vqvae_jax.api import PRIORS, Run
from vqvae_jax.data import batches
from vqvae_jax.data.images import Source

IMAGES_AT_ONCE = 1024
SHOWN = ("bits_per_dim", "rate", "distortion", "mse", "psnr", "ssim")
COLUMNS = {"bits_per_dim": "bits/dim", "rate": "rate", "distortion": "distortion", "psnr": "PSNR, dB", "ssim": "SSIM"}
MOST_CLASSES = 40  # that are printed; the file has all


class Measured(NamedTuple):
    """A split, an image a row: `per_image` [N] of every measure, `labels` [N], `counts` [G,K] of codes, `rows` [N].

    `rows` are the images' numbers in the split, of which those that can't be decoded are left out.
    """

    per_image: dict[str, np.ndarray]
    labels: np.ndarray
    counts: np.ndarray | None
    rows: np.ndarray


def _chunks(source: Source, num_images: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    start = 0
    for batch in batches.eval_batches(source, IMAGES_AT_ONCE, num_images):
        keep = batch["mask"]
        yield batch["image"][keep], batch["label"][keep], start + np.flatnonzero(keep)
        start += len(keep)


def measure(run: Run, source: Source, num_images: int = 0) -> Measured:
    """Measure the first `num_images` (0: all) of a split: rates, distortion and bits/dim in bits per sub-pixel."""
    values: dict[str, list] = {}
    labels, rows, counts = [], [], None
    if hasattr(run.model, "codebook_size"):
        counts = np.zeros((run.model.num_codebooks, run.model.codebook_size))
    for images, label, row in _chunks(source, num_images):
        measured = run.measure(images, label)
        labels.append(label)
        rows.append(row)
        for group, count in enumerate(counts if counts is not None else ()):
            count += np.bincount(measured["codes"][..., group].ravel(), minlength=len(count))
        for key in measured.keys() - {"codes", "x_recon"}:
            values.setdefault(key, []).append(measured[key].astype(np.float64))
        if run.headline_samples > 1:
            values.setdefault("bound", []).append(run.importance_bound(images, run.headline_samples))
    per_image = {key: np.concatenate(parts) for key, parts in values.items()}
    for key in [key for key in per_image if key.startswith("rate") or key in ("distortion", "bound")]:
        per_image[key] = metrics.nats_to_bits_per_dim(per_image[key], source.image_shape)
    if run.headline_samples > 1:  # a bound of several draws has no rate of its own
        per_image["bits_per_dim"] = per_image.pop("bound")
    elif run.prior is not None:
        per_image["rate"] = per_image[f"rate/{run.prior}"]
        per_image["bits_per_dim"] = per_image["rate"] + per_image["distortion"]
    return Measured(per_image, np.concatenate(labels), counts, np.concatenate(rows))


def evaluate(run: Run, source: Source, num_images: int = 0) -> dict:
    """Measure the first `num_images` (0: all) of a split; the keys are those of `evaluation.json` (see README).

    `bits_per_dim`, `rate` and `distortion` are bits per sub-pixel under the run's headline prior, and for every
    prior under `priors`; `standard_errors` are those of the means over images.
    """
    return summarise(run, source, measure(run, source, num_images), num_images)


def summarise(run: Run, source: Source, measured: Measured, num_images: int = 0) -> dict:
    """Divide what was measured of the images once by their number."""
    per_image, labels, counts, _ = measured
    shown = [key for key in SHOWN if key in per_image]
    priors = {}
    # A bound of several draws isn't made of a rate and a distortion, which are those of the bound of one.
    several = run.headline_samples > 1
    elbo = per_image[f"rate/{run.prior}"] + per_image["distortion"] if several else None
    if several:
        per_image = {key: values for key, values in per_image.items() if key != "distortion"}
        shown.remove("distortion")
    known = [name for name in dict.fromkeys((*PRIORS, run.prior)) if f"rate/{name}" in per_image]
    for name in [] if several else known:
        rate = per_image[f"rate/{name}"]
        priors[name] = {"bits_per_dim": _mean(rate + per_image["distortion"]), "rate": _mean(rate)}
    given = {}
    if "rate_given_label" in per_image:
        rate = per_image["rate_given_label"]
        given = {"given_label": {"bits_per_dim": _mean(rate + per_image["distortion"]), "rate": _mean(rate)}}
    per_class = {
        name: {"num_images": int(np.sum(labels == n))} | {k: _mean(per_image[k][labels == n]) for k in shown}
        for n, name in enumerate(source.class_names)
    }
    codes = {}
    if counts is not None:
        codes = {
            "codebook_usage": float(np.mean(metrics.codebook_usage(counts))),
            "perplexity": float(np.mean(metrics.perplexity(counts))),
            "codebook_size": run.model.codebook_size,
            "num_codebooks": run.model.num_codebooks,
        }
    return {
        **{key: _mean(per_image[key]) if key in per_image else None for key in SHOWN},
        "family": run.family,
        "prior": run.prior,
        "samples": run.headline_samples,
        "priors": priors,
        **given,
        "elbo_bits_per_dim": _mean(elbo) if several else None,
        **codes,
        "num_images": len(labels),
        "num_images_in_split": len(source),
        "images_undecodable": min(num_images or len(source), len(source)) - len(labels),
        "images_removed": source.images_removed,
        "dataset": source.name,
        "split": source.split,
        "crop": source.crop_name,
        "likelihood": run.meta["config"]["model"]["likelihood"],
        "step": run.meta["step"],
        "standard_errors": {key: _standard_error(per_image[key]) for key in shown},
        "per_class": per_class,
    }


def other_bounds(run: Run, source: Source, options: dict) -> list[dict]:
    """Measure bounds that cost many passes of the decoder: of several draws, or of several codes of a VQ-VAE.

    Args:
        run: a finished run.
        source: the split.
        options: the config's section `eval`: `samples` draws on `test_images` of the split, and on the first
            `subset_images` 1, `samples` and `subset_samples` of them; or the VQ-VAE's sum over `samples` codes.
    """
    samples, subset, many = options["samples"], options["subset_images"], options["subset_samples"]
    if not samples:
        return []
    if hasattr(run.model, "several_codes_bound"):
        ks = [(1, subset), (samples, subset)] if "code_counts" in run.variables["fitted"] else []
        return [_bound_of(run, source, "codes", run.several_codes_bound, k, images) for k, images in ks if images]
    if not hasattr(run.model, "log_weight"):
        return []
    asked = options["test_images"]
    parts = [(samples, asked)] + [(k, subset) for k in (1, samples, many) if subset and k]
    return [_bound_of(run, source, "draws", run.importance_bound, k, images) for k, images in parts]


def _bound_of(run, source, kind, bound, k, num_images) -> dict:
    nats = np.concatenate([bound(images, k) for images, _, _ in _chunks(source, num_images)])
    bits = metrics.nats_to_bits_per_dim(nats, source.image_shape)
    return {kind: k, "num_images": len(bits), "bits_per_dim": _mean(bits), "standard_error": _standard_error(bits)}


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
    console = Console(highlight=False)
    title = f"{result['dataset']}, {result['split']} split, {result['num_images']}{part} images, step {result['step']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("value", "± s.e."):
        table.add_column(column, justify="right")
    errors = result["standard_errors"]
    for key, label in _labels(result).items():
        table.add_row(label, _number(result[key]), _number(errors.get(key)))
    for name, prior in result["priors"].items():
        if name != result["prior"]:
            table.add_row(f"bits/dim ({name} prior)", _number(prior["bits_per_dim"]), "")
    if "given_label" in result:
        label = f"bits/dim of the image given its class ({result['prior']} prior), which bounds no p(x)"
        table.add_row(label, _number(result["given_label"]["bits_per_dim"]), "")
    if "perplexity" in result:
        table.add_row("codebook usage", f"{100 * result['codebook_usage']:.1f} %", "")
        table.add_row(f"perplexity (at most {result['codebook_size']})", _number(result["perplexity"], 1), "")
    console.print(table)
    _print_other_bounds(console, result.get("other_bounds", []))
    if len(result["per_class"]) > MOST_CLASSES:
        return
    classes = Table()
    classes.add_column("class")
    keys = [key for key in SHOWN if key in errors and key != "mse"]
    for column in ("images", *(COLUMNS[key] for key in keys)):
        classes.add_column(column, justify="right")
    for name, row in result["per_class"].items():
        classes.add_row(name, str(row["num_images"]), *(_number(row[key]) for key in keys))
    console.print(classes)


def _labels(result: dict) -> dict[str, str]:
    """Name the rows of the table, by key."""
    rows = {"mse": "MSE, squared levels", "psnr": "PSNR, dB", "ssim": "SSIM"}
    if result["prior"] is None:
        return {"distortion": f"distortion, bits/dim (no bound: {result['family']}, which has no p(z))"} | rows
    if result["samples"] > 1:
        bound = f"bits/dim ({result['prior']} prior, bound of {result['samples']} draws)"
        return {"bits_per_dim": bound, "elbo_bits_per_dim": "bits/dim (bound of 1 draw)"} | rows
    bound = f"bits/dim ({result['prior']} prior) = rate + distortion"
    if result["likelihood"] == "squared_error":
        bound += ", Gaussian of fitted scale"
    return {"bits_per_dim": bound, "rate": "  rate", "distortion": "  distortion"} | rows


def _print_other_bounds(console: Console, bounds: list[dict]) -> None:
    """Print bounds of several draws or codes; the gain of further codes is one that is certain."""
    for bound in bounds:
        kind = "codes" if "codes" in bound else "draws"
        counted = f"{bound[kind]} {kind}" if bound[kind] > 1 else f"1 {kind[:-1]}"
        text = f"bits/dim, {counted}, first {bound['num_images']} images: "
        console.print(f"{text}{_number(bound['bits_per_dim'])} ± {_number(bound['standard_error'])}")
    codes = [bound for bound in bounds if "codes" in bound]
    if codes and all(bound["bits_per_dim"] is not None for bound in codes):
        gain = codes[0]["bits_per_dim"] - codes[-1]["bits_per_dim"]
        console.print(f"what the codes that were not chosen are worth: at least {gain:.5f} bits/dim")
