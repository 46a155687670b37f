"""Files of trained runs against PNG, WebP, JPEG XL and JPEG, on the same test images: lossless, and at matched rates.

    python -m experiments.rate_distortion --runs NAME=RUN [...] --data_dir=DIR --images=1000 --out=DIR

The runs are of one data set; NAME is what tables call one. Lossless: all images in one `.vqz`, decoded again and
compared, against what evaluation reports for them, and against a file an image of the other codecs. Lossy: codes alone,
at log2 K bits a code and coded under the run's prior, against JPEG and WebP of many qualities. The headers of their
files weigh much on small images, so JPEG stands there a second time by its coded coefficients alone (with the standard
Huffman tables, which needn't be sent), and a `.vqz` is counted by its stream, classes included. Writes
`table.md`, `result.json`, `curves.svg`, `curves.png` and `pictures.png`.
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, features

from experiments.provenance import provenance
from vqvae_jax import registry
from vqvae_jax.codec import compress
from vqvae_jax.data.splits import Source
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation import metrics, plots
from vqvae_jax.evaluation.evaluate import CODECS, file_bits
from vqvae_jax.run import Run, load
from vqvae_jax.training.record import most_memory, write_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter

FORMATS = ("JPEG", "WEBP") if features.check("webp") else ("JPEG",)
COMPARED = {  # lossy files of which codec, and which of their bits
    "JPEG without its header": ("JPEG", "bits_per_pixel_of_scans"),
    "JPEG": ("JPEG", "bits_per_pixel"),
    "WebP": ("WEBP", "bits_per_pixel"),
}
QUALITIES = (*range(1, 13), 15, 18, 22, 26, 30, 35, 42, 50, 58, 65, 72, 80, 86, 90, 95)
START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
SHOWN = 8  # images, the first ones of the split
LOSSLESS = {  # Pillow's names and options
    "PNG": ("PNG", CODECS["png"]),
    "WebP, lossless": ("WEBP", CODECS["webp"]),
    "JPEG XL, lossless": ("JXL", {"lossless": True, "effort": 9}),
}


def save_all(images: np.ndarray, folder: Path) -> None:
    """Write images uint8 [N,H,W,C] as numbered PNG."""
    for n, image in enumerate(images):
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(folder / f"{n:05d}.png")


def timed(function: Callable):
    """Give what a function gives, and its seconds."""
    begin = time.perf_counter()
    return function(), time.perf_counter() - begin


def needs_class(run: Run) -> bool:
    """Tell whether the prior can't do without a class: then the best one of each image is searched and stored."""
    return bool(run.learned and run.learned.prior.num_classes and not run.learned.prior.label_dropout)


def nats_of_codes(run: Run, images: np.ndarray) -> np.ndarray:
    """Give what the codec's stream needs for the codes of every image, and for its class if that is stored."""
    if needs_class(run):
        log_frequencies = np.asarray(run.trained_prior().variables["fitted"]["log_class_frequencies"])
        return -(run.trained_prior().log_prob_of_classes(run.encode(images)) + log_frequencies).max(axis=1)
    return run.measure(images)[f"rate/{run.prior}"]


def lossless(run: Run, images: np.ndarray) -> dict:
    """Compress and decompress all images, check every pixel, and count against what evaluation reports."""
    options, times = {"search_label": needs_class(run)}, {}
    with tempfile.TemporaryDirectory() as folder:
        source, back, first = (Path(folder) / name for name in ("in", "out", "first"))
        source.mkdir()
        save_all(images, source)
        one = compress.compress(run, [str(source / "00000.png")], **options)[0]  # compiles
        compress.decompress(run, one, first)
        if options["search_label"]:
            compress.compress(run, [str(source / "00000.png")], label=0)
            _, times["compress_with_one_label"] = timed(lambda: compress.compress(run, [str(source)], label=0))
        (data, sizes), times["compress"] = timed(lambda: compress.compress(run, [str(source)], **options))
        number, times["decompress"] = timed(lambda: compress.decompress(run, data, back))
        for path in source.iterdir():
            if not np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(back / path.name))):
                raise RuntimeError(f"{path.name} came back changed")
    nats = nats_of_codes(run, images) + run.measure(images)["distortion"]
    expected = float(np.sum(nats, dtype=np.float64)) / np.log(2) / 8
    reported = float(np.sum(run.bits_per_dim(images))) * images[0].size / 8
    return {
        "images_decoded_exactly": number,
        **options,
        "file_bytes": sizes.total,
        "stream_bytes": sizes.stream,
        "label_bytes": sizes.labels,
        "name_bytes": sizes.names,
        "header_bytes": sizes.total - sizes.stream - sizes.labels - sizes.names,
        "reported_bytes": reported,
        "expected_stream_bytes": expected,  # with the class, where one is stored; else what is reported
        "stream_bits_per_dim": 8 * sizes.stream / images.size,
        "bits_per_dim": 8 * sizes.total / images.size,
        "reported_bits_per_dim": 8 * reported / images.size,
        "seconds": times,
    }


def other_lossless(images: np.ndarray) -> dict:
    """Give bits/dim of the other codecs that are installed."""
    installed = Image.registered_extensions().values()
    return {name: file_bits(images, kind, **options) for name, (kind, options) in LOSSLESS.items() if kind in installed}


def quality(images: np.ndarray, others: np.ndarray) -> dict:
    """Give PSNR in dB and SSIM, means over images."""
    mse = metrics.mean_squared_error(images, others)
    return {"psnr": float(np.mean(metrics.psnr(mse))), "ssim": float(np.mean(metrics.ssim(images, others)))}


def lossy(run: Run, images: np.ndarray) -> dict:
    """Give bits per pixel of a run's codes, and how good the reconstructions are."""
    with tempfile.TemporaryDirectory() as folder:
        save_all(images, Path(folder))
        _, sizes = compress.compress(run, [folder], lossy=True, search_label=needs_class(run))
    pixels = np.prod(images.shape[:3])
    uniform = np.prod(run.grid) * np.sum(np.log2(run.model.codebook_sizes)) * len(images) / pixels
    coded = 8 * (sizes.stream + sizes.labels) / pixels
    found = {"bits_per_pixel_uniform": float(uniform), "bits_per_pixel": float(coded), "prior": name_of_prior(run)}
    return found | quality(images, run.reconstruct(images))


def name_of_prior(run: Run) -> str:
    """Give what tables call the headline prior."""
    return f"{run.prior}, classes" if run.learned and run.learned.prior.num_classes else str(run.prior)


def other_codec(images: np.ndarray, kind: str) -> list[dict]:
    """Give bits per pixel and quality of JPEG or WebP at many settings; a file an image."""
    rows = []
    for setting in QUALITIES:
        files = [encode(image, kind, setting) for image in images]
        decoded = np.stack([decode(file, images.shape[-1]) for file in files])
        row = {"setting": setting, "bits_per_pixel": 8 * sum(map(len, files)) / np.prod(images.shape[:3])}
        if kind == "JPEG":
            scans = sum(len(scan_of(encode(image, kind, setting, optimize=False))) for image in images)
            row["bits_per_pixel_of_scans"] = 8 * scans / np.prod(images.shape[:3])
        rows.append({key: float(value) for key, value in row.items()} | quality(images, decoded))
    return rows


def scan_of(file: bytes) -> bytes:
    """Give the coded coefficients alone of a baseline JPEG file."""
    start = file.index(START_OF_SCAN) + len(START_OF_SCAN)
    return file[start + int.from_bytes(file[start : start + 2], "big") : -len(END_OF_IMAGE)]


def encode(image: np.ndarray, kind: str, setting: int, *, optimize: bool = True) -> bytes:
    """Give the file of one image; a JPEG that isn't optimised has the standard Huffman tables."""
    out = io.BytesIO()
    options = {"optimize": optimize} if kind == "JPEG" else {"method": 6}
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(out, kind, quality=setting, **options)
    return out.getvalue()


def decode(file: bytes, channels: int) -> np.ndarray:
    """Give the pixels of a file, uint8 [H,W,C]."""
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def write_table(result: dict, out: Path) -> str:
    """Write lossless and lossy figures as Markdown."""
    lines = ["| lossless, all in one file | bits/dim of the file | reported | stream and classes − reported, bytes |"]
    lines[0] += " of reported | names, bytes | header, bytes | s to compress | s back |"
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, row in result["lossless"].items():
        more = row["stream_bytes"] + row["label_bytes"] - row["reported_bytes"]
        cells = [f"{row['bits_per_dim']:.4f}", f"{row['reported_bits_per_dim']:.4f}"]
        cells += [f"{more:+,.0f}", f"{more / row['reported_bytes']:+.3%}"]
        cells += [f"{row['name_bytes']:,}", f"{row['header_bytes']:,}"]
        cells += [f"{row['seconds'][key]:.0f}" for key in ("compress", "decompress")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [f"| {name}, a file each | {bits:.4f} | | | | | | | |" for name, bits in result["other_lossless"].items()]
    lines += ["", "| lossy, codes alone | bits/pixel, uniform | bits/pixel, prior | PSNR, dB | SSIM |"]
    lines.append("|---|---:|---:|---:|---:|")
    for name, row in result["lossy"].items():
        bits = f"{row['bits_per_pixel_uniform']:.3f} | {row['bits_per_pixel']:.3f}"
        lines.append(f"| {name} ({row['prior']}) | {bits} | {row['psnr']:.2f} | {row['ssim']:.3f} |")
    lines += ["", "| the setting nearest to the rate of the codes | setting | bits/pixel | times the codes' |"]
    lines[-1] += " PSNR, dB | SSIM | bits/pixel at the codes' PSNR | times the codes' |"
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, kinds in result["matched"].items():
        rate = result["lossy"][name]["bits_per_pixel"]
        for kind, found in kinds.items():
            cells = [
                f"{found['setting']:.0f}",
                f"{found['bits_per_pixel']:.3f}",
                f"{found['bits_per_pixel'] / rate:.2f}",
            ]
            cells += [f"{found['psnr']:.2f}", f"{found['ssim']:.3f}"]
            equal = found["bits_per_pixel_at_equal_psnr"]
            cells += [f"{equal:.3f}", f"{equal / rate:.2f}"] if equal else ["lower than any", ""]
            lines.append(f"| {kind}, beside {name} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (out / "table.md").write_text(text)
    return text


def matched(others: dict[str, list[dict]], row_of_run: dict) -> dict[str, dict]:
    """Give of every other codec the setting whose bits per pixel are nearest, and its bits per pixel at equal PSNR.

    The latter lie on the line between two settings; None where the worst setting is better.
    """
    rate, wanted = row_of_run["bits_per_pixel"], row_of_run["psnr"]
    found = {}
    for title, (kind, key) in COMPARED.items():
        if kind in others:
            rows = sorted(others[kind], key=lambda row: row["psnr"])
            row = min(rows, key=lambda row: abs(np.log(row[key] / rate)))
            reached = rows[0]["psnr"] <= wanted <= rows[-1]["psnr"]
            equal = float(np.interp(wanted, [r["psnr"] for r in rows], [r[key] for r in rows])) if reached else None
            found[title] = {name: row[name] for name in ("setting", "psnr", "ssim")}
            found[title] |= {"bits_per_pixel": row[key], "bits_per_pixel_at_equal_psnr": equal}
    return found


def draw_curves(result: dict, out: Path) -> None:
    """Draw PSNR and SSIM against bits per pixel."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for axis, key, title in zip(axes, ("psnr", "ssim"), ("PSNR, dB", "SSIM"), strict=True):
        for kind, rows in result["other_lossy"].items():
            values = [row[key] for row in rows]
            label = {"WEBP": "WebP"}.get(kind, kind)
            axis.plot([row["bits_per_pixel"] for row in rows], values, ".-", label=label, lw=1.2)
            if kind == "JPEG":
                rates = [row["bits_per_pixel_of_scans"] for row in rows]
                axis.plot(rates, values, ".:", color=axis.lines[-1].get_color(), label="JPEG without its header")
        for n, (name, row) in enumerate(result["lossy"].items()):
            # Smaller and smaller, for several may lie on one point.
            look = {"marker": "o", "ls": "", "color": f"C{n + 3}", "ms": max(4, 10 - 2 * n)}
            axis.plot(row["bits_per_pixel_uniform"], row[key], mfc="none", **look)
            axis.plot(row["bits_per_pixel"], row[key], label=f"VQ-VAE {name}", **look)
        axis.set(xlabel="bits per pixel", ylabel=title, xscale="log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3, which="both")
    axes[1].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{result['dataset']}, {result['num_images']} test images; hollow: codes of log2 K bits each")
    for suffix in ("svg", "png"):
        figure.savefig(out / f"curves.{suffix}", dpi=120)
    plt.close(figure)


def draw_pictures(runs: dict[str, Run], images: np.ndarray, result: dict, out: Path) -> None:
    """Draw originals, each image model's reconstructions, and JPEG's coefficients at the rate nearest to theirs."""
    shown = images[:SHOWN]
    rows = [shown]
    first_of_model = {run.fingerprint(): name for name, run in reversed(runs.items())}
    for name, run in runs.items():
        if first_of_model[run.fingerprint()] != name:
            continue
        setting = int(result["matched"][name]["JPEG without its header"]["setting"])
        files = [encode(image, "JPEG", setting) for image in shown]
        rows += [run.reconstruct(shown), np.stack([decode(file, shown.shape[-1]) for file in files])]
    plots.save_grid(out / "pictures.png", rows)


def _named(text: str) -> tuple[str, Path]:
    name, equals, path = text.rpartition("=")
    return (name, Path(path)) if equals else (Path(path).name, Path(path))


def command(arguments) -> str:
    """Say how to do it again, without the paths of this machine."""
    runs = " ".join(f"{name}=RUN" for name, _ in arguments.runs)
    return f"python -m experiments.rate_distortion --runs {runs} --data_dir=DIR --images={arguments.images}"


def about(run: Run) -> dict:
    """Say what a run is: its codes, its likelihood and how long it was trained."""
    config = run.meta["config"]
    return {
        "field": list(run.field),
        "codebook_size": max(run.model.codebook_sizes),
        "likelihood": config["model"]["likelihood"],
        "steps": run.meta["step"],
        "batch_size": config["data"]["batch_size"],
        "prior": name_of_prior(run),
        "prior_steps": config["prior"]["num_steps"] if run.learned else 0,
    }


def first_images(source: Source, number: int) -> np.ndarray:
    """Give the first images of a split."""
    batch = source.take(np.arange(min(number, len(source))))
    return batch["image"][batch["mask"]]


def main():
    """Measure and write."""
    parser = argparse.ArgumentParser(description="Rate and distortion of runs and of other codecs.")
    parser.add_argument("--runs", type=_named, nargs="+", required=True, metavar="NAME=RUN")
    parser.add_argument("--data_dir")
    parser.add_argument("--title", help="what to call the data")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        runs = {name: load(path, arguments.data_dir) for name, path in arguments.runs}
        source = registry.build_source(next(iter(runs.values())).meta["config"]["data"], "test")
        if len(runs) < len(arguments.runs):
            raise InputError("two runs have one name: call them otherwise, NAME=RUN")
        if len({(run.meta["config"]["data"]["name"], *run.meta["image_shape"]) for run in runs.values()}) > 1:
            raise InputError("the runs are of different data or image sizes: compare those of one data set")
        images = first_images(source, arguments.images)
        arguments.out.mkdir(parents=True, exist_ok=True)
        result = {
            "dataset": arguments.title or source.name,
            "num_images": len(images),
            "image_shape": list(source.image_shape),
            "lossless": {name: lossless(run, images) for name, run in runs.items()},
            "other_lossless": other_lossless(images),
            "lossy": {name: lossy(run, images) for name, run in runs.items()},
            "other_lossy": {kind: other_codec(images, kind) for kind in FORMATS},
            "command": command(arguments),
            "runs": {name: about(run) for name, run in runs.items()},
            **most_memory(),
            **provenance(),
        }
    except InputError as error:
        parser.error(str(error))
    result["matched"] = {name: matched(result["other_lossy"], row) for name, row in result["lossy"].items()}
    write_json(arguments.out / "result.json", result)
    draw_curves(result, arguments.out)
    draw_pictures(runs, images, result, arguments.out)
    print(write_table(result, arguments.out))
    bits = {name: row["bits_per_dim"] for name, row in result["lossless"].items()}
    print(json.dumps({"experiment": "rate_distortion", "bits_per_dim": bits, **provenance()}))


if __name__ == "__main__":
    main()
