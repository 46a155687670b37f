"""Bits/dim of a whole split, every image once, and what stands beside it.

Values of images are summed in float64 and divided once, so neither batch size nor device count nor order matters.
"""

import math
from typing import NamedTuple

import numpy as np

from vqvae_jax.data import image_files
from vqvae_jax.data.splits import Source
from vqvae_jax.evaluation import metrics
from vqvae_jax.run import Run
from vqvae_jax.training import sharding

SHOWN = ("bits_per_dim", "rate", "distortion", "mse", "psnr", "ssim")
PIXELWISE = ("bits_per_dim_pixelwise", "distortion_pixelwise")  # as if no pixel saw another, where some do
CODECS = {"png": {"optimize": True}, "webp": {"lossless": True, "quality": 100, "method": 6, "exact": True}}
CODED = 1000  # images of a split that other codecs compress


class Measured(NamedTuple):
    """A split, an image a row: `per_image` [N] of every measure, `labels` [N], `counts` [G,K] of codes, `rows` [N].

    `rows` are the images' numbers in the split, of which those that can't be decoded are left out.
    """

    per_image: dict[str, np.ndarray]
    labels: np.ndarray
    counts: np.ndarray  # [0,0] where there are no codes
    rows: np.ndarray


def measure(run: Run, source: Source, num_images: int = 0) -> Measured:
    """Measure the first `num_images` (0: all) of a split: rates, distortion and bits/dim in bits per sub-pixel."""
    sizes = run.model.codebook_sizes if run.model.latents == "codes" else ()
    parts, masks, draws = [], [], run.model.headline_samples
    counts = np.zeros((len(sizes), max(sizes, default=0)))
    for batch in sharding.whole_batches(source, num_images):
        masks.append(batch["mask"])
        images, label = (batch[key][batch["mask"]] for key in ("image", "label"))
        measured = run.measure(images, label) | {"label": label}
        if draws > 1:
            measured["bits_per_dim"] = run.importance_bound(images, draws)
        for group, count in enumerate(counts):
            count += np.bincount(measured["codes"][..., group].ravel(), minlength=len(count))
        parts.append({key: measured[key] for key in measured.keys() - {"codes"}})
    per_image = {key: np.concatenate([part[key] for part in parts]) for key in sorted(parts[0])}
    labels = per_image.pop("label")
    for key, values in per_image.items():
        nats = key.startswith(("rate", "distortion", "bits_per_dim"))
        values = values.astype(np.float64)
        per_image[key] = metrics.nats_to_bits_per_dim(values, source.image_shape) if nats else values
    if draws > 1:  # a bound of several draws isn't made of a rate and a distortion
        per_image["elbo_bits_per_dim"] = per_image.pop(f"rate/{run.prior}") + per_image.pop("distortion")
    elif run.prior is not None:
        per_image["rate"] = per_image[f"rate/{run.prior}"]
        per_image["bits_per_dim"] = per_image["rate"] + per_image["distortion"]
        if "distortion_pixelwise" in per_image:
            per_image["bits_per_dim_pixelwise"] = per_image["rate"] + per_image["distortion_pixelwise"]
    return Measured(per_image, labels, counts, np.flatnonzero(np.concatenate(masks)))


def evaluate(run: Run, source: Source, num_images: int = 0) -> dict:
    """Measure the first `num_images` (0: all) of a split; the keys are those of `evaluation.json`.

    `bits_per_dim`, `rate` and `distortion` are bits per sub-pixel under the run's headline prior, and for every
    prior under `priors`; `standard_errors` are those of the means over images.
    """
    return summarise(run, source, measure(run, source, num_images), num_images)


def summarise(run: Run, source: Source, measured: Measured, num_images: int = 0) -> dict:
    """Divide what was measured of the images once by their number."""
    per_image, labels, counts, _ = measured
    shown = [key for key in SHOWN if key in per_image]

    def under(rate: np.ndarray) -> dict:
        bits = rate + per_image["distortion"]
        return {"bits_per_dim": _mean(bits), "rate": _mean(rate), "standard_error": _standard_error(bits)}

    given, codes = "rate_given_label", {}
    if len(counts):
        codes = {"codebook_usage": float(np.mean(metrics.codebook_usage(counts, run.model.codebook_sizes)))}
        codes |= {"perplexity": float(np.mean(metrics.perplexity(counts)))}
        codes |= {"codebook_size": counts.shape[1], "num_codebooks": counts.shape[0]}
        codes |= {"codebook_sizes": list(run.model.codebook_sizes)}
    wanted, model, config = num_images or len(source), run.model, run.meta["config"]["model"]
    of_run = {"family": run.family, "likelihood": config["likelihood"], "step": run.meta["step"], "prior": run.prior}
    of_run |= {"samples": model.headline_samples, "in_expectation": model.draws_posterior}
    of_split = {"dataset": source.name, "split": source.split, "crop": source.crop_name}
    of_split |= {"num_images": len(labels), "num_images_in_split": len(source)}
    of_split |= {"images_undecodable": min(wanted, len(source)) - len(labels), "images_removed": source.images_removed}
    result = {key: _mean(per_image.get(key, ())) for key in (*SHOWN, "elbo_bits_per_dim")} | of_run | of_split | codes
    result |= {key: _mean(per_image[key]) for key in PIXELWISE if key in per_image}
    result["priors"] = {key[5:]: under(per_image[key]) for key in per_image if key.startswith("rate/")}
    if given in per_image:
        result["given_label"] = under(per_image[given])
    result["standard_errors"] = {key: _standard_error(per_image[key]) for key in shown}
    result["per_class"] = {
        name: {"num_images": int(np.sum(labels == n))} | {k: _mean(per_image[k][labels == n]) for k in shown}
        for n, name in enumerate(source.class_names)
    }
    return result


def other_bounds(run: Run, source: Source, options: dict) -> list[dict]:
    """Measure bounds that cost many passes of the decoder: of several draws, or of several codes of a VQ-VAE.

    `options` are the config's section `eval`: `samples` draws on `test_images` of the split, and on the first
    `subset_images` 1, `samples` and `subset_samples` of them; or the VQ-VAE's sum over 1 and over `samples` codes.
    """
    samples, subset, found = options["samples"], options["subset_images"], []
    parts = [(k, subset) for k in (1, samples, options["subset_samples"]) if k]
    if samples and run.model.has_distances and run.variables["fitted"]:
        kind, bound, parts = "codes", run.several_codes_bound, parts[:2]
    elif samples and run.model.draws_posterior:
        kind, bound, parts = "draws", run.importance_bound, [(samples, options["test_images"]), *parts]
    else:
        return []
    for k, num_images in parts:
        chunks = sharding.whole_batches(source, num_images)
        nats = np.concatenate([bound(chunk["image"][chunk["mask"]], k) for chunk in chunks])
        bits = metrics.nats_to_bits_per_dim(nats, source.image_shape)
        row = {kind: k, "num_images": len(bits), "bits_per_dim": _mean(bits), "standard_error": _standard_error(bits)}
        found.append(row)
    return found


def file_bits(images: np.ndarray, kind: str, **options) -> float | None:
    """Bits per sub-pixel of images uint8 [N,H,W,C] as Pillow writes them: a file each, every byte counted."""
    return _mean([8 * len(image_files.encode(image, kind, **options)) / image.size for image in images])


def _mean(values) -> float | None:
    """The mean, or None (null in JSON) where there is none: no image, or images that can't be compared."""
    mean = float(np.mean(values)) if len(values) else math.nan
    return mean if math.isfinite(mean) else None


def _standard_error(values) -> float | None:
    error = float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
    return error if math.isfinite(error) else None
