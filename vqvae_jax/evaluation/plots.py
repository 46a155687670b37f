"""Pictures: grids of images as PNG, and figures of a run's record."""

import contextlib
import itertools
from pathlib import Path

import numpy as np
from PIL import Image

from vqvae_jax.data import image_files
from vqvae_jax.errors import InputError

GAP = 2
MOST_BOXES = 40  # classes in a box plot
MIN_SIDE = 64  # smaller images are enlarged to this, pixel by pixel, so that they can be looked at
CONTRAST = 4.0  # levels by which pixels, or images in the mean, must differ to be worth a look


def image_grid(rows: list[np.ndarray]) -> np.ndarray:
    """Lay out rows of images, each uint8 [n,H,W,C] with 1, 3 or 4 channels, on white: uint8 [h,w,3]."""
    height, width = (max(row.shape[side] for row in rows) + GAP for side in (1, 2))
    canvas = Image.new("RGB", (max(map(len, rows)) * width - GAP, len(rows) * height - GAP), "white")
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            part = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            canvas.paste(part, (x * width, y * height), part if part.mode == "RGBA" else None)
    return np.asarray(canvas)


def show(images, outfile: str | Path | None = None, *, columns: int = 8) -> Image.Image:
    """Draw a grid of images for a notebook, which displays what this returns; write it to `outfile` (PNG), too.

    `images` are uint8 [H,W,C], [H,W] or floats from 0 to 1 of one size, or (image, label) pairs as `load_data` gives.

    Raises:
        InputError: there is no image, or floats lie outside 0..1.
    """
    found = [_as_uint8(image[0] if isinstance(image, tuple) else image) for image in images]
    if not found:
        raise InputError("no images to show")
    rows = side_by_side(columns, np.stack(found))
    if outfile is not None:
        save_grid(outfile, rows)
    return _enlarged(rows)


def _as_uint8(image) -> np.ndarray:
    image = np.atleast_3d(image)
    if image.dtype == np.uint8:
        return image
    if image.size and not (image.min() >= 0 and image.max() <= 1):
        raise InputError(f"images of {image.dtype} must lie in 0..1, not {image.min():g}..{image.max():g}")
    return np.round(255 * image).astype(np.uint8)


def distinct(images: np.ndarray, most: int) -> np.ndarray:
    """Pick the first `most` of images [N,H,W,C] that are neither half of one colour nor nearly equal to one before."""
    chosen: list[np.ndarray] = []
    for image in images.astype(np.float32):
        varied = np.abs(image - np.median(image, axis=(0, 1))).max(axis=-1) >= CONTRAST
        if varied.mean() >= 0.5 and all(np.abs(image - other).mean() >= CONTRAST for other in chosen[:most]):
            chosen.append(image)
    return np.array(chosen[:most], np.uint8).reshape(-1, *images.shape[1:])


def side_by_side(columns: int, *parts: np.ndarray) -> list[np.ndarray]:
    """Rows of `columns` images of each part [N,H,W,C], those of the same images right below each other."""
    return [part[start : start + columns] for start in range(0, len(parts[0]), columns) for part in parts]


def save_grid(path: str | Path, rows: list[np.ndarray]) -> None:
    """Write rows of images as PNG, if there are any; small images are enlarged by a whole factor."""
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"cannot write a picture to {path}: its name must end in .png")
    if not sum(map(len, rows)):
        return
    with image_files.writing(Path(path)) as file:
        _enlarged(rows).save(file, "PNG")


def _enlarged(rows: list[np.ndarray]) -> Image.Image:
    factor = max(1, -(-MIN_SIDE // rows[0].shape[1]))
    image = Image.fromarray(image_grid(rows))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def save_box_plot(path: str | Path, values: np.ndarray, labels: np.ndarray, names, axis_label: str, title: str) -> None:
    """Draw how a measure of the images [N] is spread in each class: median, quartiles, and 1.5 times their distance."""
    groups = {name: values[labels == n] for n, name in enumerate(names) if np.any(labels == n)}
    if not groups:
        return
    if len(groups) > MOST_BOXES:
        groups = {f"all {len(groups)} classes": values}
    with open_figure(path, 7.0, 0.9 + 0.33 * len(groups)) as (_, [axis]):
        boxes, ticks = list(groups.values())[::-1], list(groups)[::-1]
        axis.boxplot(boxes, orientation="horizontal", tick_labels=ticks, sym=".", widths=0.6)
        axis.set(xlabel=axis_label, title=title)
        axis.grid(alpha=0.3, axis="x")


@contextlib.contextmanager
def open_figure(path: str | Path, width: float, height: float, columns: int = 1):
    """Give a figure and its axes to draw in, and write it."""
    from matplotlib.figure import Figure  # here, for it takes a while

    figure = Figure((width, height), layout="constrained")
    yield figure, figure.subplots(1, columns, squeeze=False)[0]
    with image_files.writing(Path(path)) as file:
        figure.savefig(file, dpi=120)


CURVES = {  # metric: title of its panel, axis
    "bits_per_dim": ("negative log-likelihood bound", "bits/dim"),
    "distortion": ("distortion, −log P(x | z)", "bits/dim"),
    "half_squared_error": ("half the squared error", "of pixels in −1..1"),
    "perplexity": ("perplexity of the codebook", "codes"),
    "bits_per_code": ("the prior's −log p(z)", "bits per code"),
}
LINES = {  # how the keys of a metric begin: label, color
    "train/": ("training batch", "0.7"),
    "train/batch_": ("training batch", "0.7"),
    "eval_train/": ("training images", "C1"),
    "eval/": ("validation", "C0"),
}


def save_curves(path: str | Path, record: list[dict], title: str) -> None:
    """Draw training and validation curves from the lines of `metrics.jsonl`, if it has any."""
    panels: dict[str, dict[str, list]] = {}
    for stem, prefix in itertools.product(CURVES, LINES):
        points = [(line["step"], line[prefix + stem]) for line in record if line.get(prefix + stem) is not None]
        if points:
            panels.setdefault(stem, {})[prefix] = points
    if not panels:
        return
    with open_figure(path, 4.0 * len(panels), 3.4, len(panels)) as (figure, axes):
        figure.suptitle(title)
        for axis, (stem, curves) in zip(axes, panels.items(), strict=True):
            _draw_panel(axis, *CURVES[stem], curves)


def _draw_panel(axis, name: str, unit: str, curves: dict[str, list]) -> None:
    for prefix, points in curves.items():
        marker = "o" if prefix.startswith("eval") and len(points) < 30 else None
        label, color = LINES[prefix]
        axis.plot(*zip(*points, strict=True), label=label, color=color, marker=marker, markersize=3, lw=1.2)
    if unit == "bits/dim":  # the first steps, far off the rest, would flatten the curve
        values = [value for points in curves.values() for _, value in points]
        low, high = np.min(values), np.percentile(values, 97)
        axis.set_ylim(low - 0.05 * (high - low) - 0.01, high + 0.1 * (high - low) + 0.01)
    axis.set(title=name, xlabel="step", ylabel=unit)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
