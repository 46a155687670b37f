"""An evaluation as a table for people."""

import numpy as np
from rich.console import Console
from rich.table import Column, Table

from vqvae_jax.evaluation.evaluate import CODED, SHOWN

COLUMNS = {"bits_per_dim": "bits/dim", "rate": "rate", "distortion": "distortion", "psnr": "PSNR, dB", "ssim": "SSIM"}
CODECS = {"png": "PNG", "webp": "lossless WebP"}
MOST_CLASSES = 40  # that are printed; the file has all


def _right(*names: str) -> list[Column]:
    return [Column(name, justify="right") for name in names]


def _number(value, digits=3):
    return "–" if value is None else f"{value:.{digits}f}"


def print_table(result: dict) -> None:
    """Print what `evaluate` gives: the bound and its parts, reconstruction, codebook, other codecs, and each class."""
    number, errors = result["num_images"], result["standard_errors"]
    part = "" if number == result["num_images_in_split"] else f" of {result['num_images_in_split']}"
    title = f"{result['dataset']}, {result['split']} split, {number}{part} images, step {result['step']}"
    table = Table("", *_right("value", "± s.e."), title=title, title_justify="left")
    for key, label in _labels(result).items():
        table.add_row(label, _number(result[key]), _number(errors.get(key)))
    if "bits_per_dim_pixelwise" in result:
        table.add_row("bits/dim if no pixel saw another", _number(result["bits_per_dim_pixelwise"]))
    for name, prior in result["priors"].items():
        if name != result["prior"]:
            table.add_row(f"bits/dim ({name} prior)", _number(prior["bits_per_dim"]))
    if "given_label" in result:
        label = f"bits/dim of the image given its class ({result['prior']} prior), which bounds no p(x)"
        table.add_row(label, _number(result["given_label"]["bits_per_dim"]))
    if "perplexity" in result:
        table.add_row("codebook usage", f"{100 * result['codebook_usage']:.1f} %")
        table.add_row(f"perplexity (at most {np.mean(result['codebook_sizes']):g})", _number(result["perplexity"], 1))
    first = f", first {CODED:,} images" if number > CODED else ""
    for codec, bits in result.get("codecs", {}).items():
        table.add_row(f"bits/dim of {CODECS[codec]}, a file an image{first}", _number(bits))
    console = Console(highlight=False)
    console.print(table)
    _print_other_bounds(console, result.get("other_bounds", []))
    if len(result["per_class"]) > MOST_CLASSES:
        return
    keys = [key for key in SHOWN if key in errors and key in COLUMNS]
    classes = Table("class", *_right("images", *(COLUMNS[key] for key in keys)))
    for name, row in result["per_class"].items():
        classes.add_row(name, str(row["num_images"]), *(_number(row[key]) for key in keys))
    console.print(classes)


def _labels(result: dict) -> dict[str, str]:
    """Name the rows of the table, by key."""
    rows = {"mse": "MSE, squared levels", "psnr": "PSNR, dB", "ssim": "SSIM"}
    if result["prior"] is None:
        return {"distortion": f"distortion, bits/dim (no bound: {result['family']}, which has no p(z))"} | rows
    # A Monte-Carlo estimate of a bound may lie on either side of it.
    expected = ", in expectation" if result["in_expectation"] else ""
    if result["samples"] > 1:
        bound = f"bits/dim ({result['prior']} prior, bound of {result['samples']} draws{expected})"
        return {"bits_per_dim": bound, "elbo_bits_per_dim": f"bits/dim (bound of 1 draw{expected})"} | rows
    gaussian = ", Gaussian of fitted scale" if result["likelihood"] == "squared_error" else ""
    bound = f"bits/dim ({result['prior']} prior) = rate + distortion{gaussian}{expected}"
    return {"bits_per_dim": bound, "rate": "  rate", "distortion": "  distortion"} | rows


def _print_other_bounds(console: Console, bounds: list[dict]) -> None:
    """Print bounds of several draws or codes; the gain of further codes is one that is certain."""
    for bound in bounds:
        kind, expected = ("codes", "") if "codes" in bound else ("draws", ", in expectation")
        counted = f"{bound[kind]} {kind}" if bound[kind] > 1 else f"1 {kind[:-1]}"
        text = f"bits/dim, {counted}{expected}, first {bound['num_images']} images: "
        console.print(f"{text}{_number(bound['bits_per_dim'])} ± {_number(bound['standard_error'])}")
    codes = [bound for bound in bounds if "codes" in bound]
    if codes and all(bound["bits_per_dim"] is not None for bound in codes):
        gain = codes[0]["bits_per_dim"] - codes[-1]["bits_per_dim"]
        console.print(f"what the codes that were not chosen are worth: at least {gain:.5f} bits/dim")
