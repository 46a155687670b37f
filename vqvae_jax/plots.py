"""Pictures: grids of images as PNG, and figures of a run's record."""

from pathlib import Path

import numpy as np
from PIL import Image

from vqvae_jax.errors import InputError, is_out_of_space

GAP = 2
MOST_BOXES = 40  # classes in a box plot
MIN_SIDE = 64  # smaller images are enlarged to this, pixel by pixel, so that they can be looked at


def image_grid(rows: list[np.ndarray]) -> np.ndarray:
    """Lay out rows of images, each uint8 [n,H,W,C] with 1, 3 or 4 channels, on white: uint8 [h,w,3]."""
    rows = [_on_white(row) for row in rows]
    height, width, channels = np.max([row.shape[1:] for row in rows], axis=0)
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            top, left = y * (height + GAP), x * (width + GAP)
            canvas[top : top + image.shape[0], left : left + image.shape[1]] = image
    return np.repeat(canvas, 3, axis=-1) if channels == 1 else canvas


def _on_white(row: np.ndarray) -> np.ndarray:
    if row.shape[-1] != 4:
        return row
    alpha = row[..., 3:].astype(np.float32) / 255
    return np.round(row[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def show(images, outfile: str | Path | None = None, *, columns: int = 8) -> Image.Image:
    """Draw a grid of images for a notebook, which displays what this returns.

    Args:
        images: uint8 [H,W,C], [H,W] or floats from 0 to 1 of one size, or (image, label) pairs as `load_data` gives.
        outfile: a PNG file to write, too.
        columns: images in a row.

    Raises:
        InputError: there is no image, or floats lie outside 0..1.
    """
    found = [_as_uint8(image[0] if isinstance(image, tuple) else image) for image in images]
    if not found:
        raise InputError("no images to show")
    rows = [np.stack(found[start : start + columns]) for start in range(0, len(found), columns)]
    if outfile is not None:
        save_grid(outfile, rows)
    return _enlarged(rows)


def _as_uint8(image) -> np.ndarray:
    image = np.asarray(image)
    image = image[..., None] if image.ndim == 2 else image
    if image.dtype == np.uint8:
        return image
    if image.size and not (image.min() >= 0 and image.max() <= 1):
        raise InputError(f"images of {image.dtype} must lie in 0..1, not {image.min():g}..{image.max():g}")
    return np.round(255 * image).astype(np.uint8)


def reconstruction_rows(originals: np.ndarray, reconstructions: np.ndarray, columns: int) -> list[np.ndarray]:
    """Pair rows of `columns` originals with their reconstructions right below."""
    rows = []
    for start in range(0, len(originals), columns):
        rows += [originals[start : start + columns], reconstructions[start : start + columns]]
    return rows


def save_grid(path: str | Path, rows: list[np.ndarray]) -> None:
    """Write rows of images as PNG; small images are enlarged by a whole factor."""
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"cannot write a picture to {path}: its name must end in .png")
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        _enlarged(rows).save(path)
    except OSError as error:
        if is_out_of_space(error):
            raise
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another --output") from error


def _enlarged(rows: list[np.ndarray]) -> Image.Image:
    factor = max(1, -(-MIN_SIDE // rows[0].shape[1]))
    image = Image.fromarray(image_grid(rows))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def save_box_plot(path: str | Path, values: np.ndarray, labels: np.ndarray, names, axis_label: str, title: str) -> None:
    """Draw how a measure of the images [N] is spread in each class: median, quartiles, and 1.5 times their distance."""
    plt = _pyplot()
    groups = {name: values[labels == n] for n, name in enumerate(names) if np.any(labels == n)}
    if len(groups) > MOST_BOXES:
        groups = {f"all {len(groups)} classes": values}
    figure, axis = plt.subplots(figsize=(7, 0.9 + 0.33 * len(groups)), layout="constrained")
    axis.boxplot(
        list(groups.values())[::-1], orientation="horizontal", tick_labels=list(groups)[::-1], sym=".", widths=0.6
    )
    axis.set(xlabel=axis_label, title=title)
    axis.grid(alpha=0.3, axis="x")
    _save(figure, path)


def _pyplot():
    """Matplotlib, imported where it is needed: it takes a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure, path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    _pyplot().close(figure)


CURVES = {  # panel title: metric stem, the axis
    "negative log-likelihood bound": ("bits_per_dim", "bits/dim"),
    "distortion, −log P(x | z)": ("distortion", "bits/dim"),
    "half the squared error": ("half_squared_error", "of pixels in −1..1"),
    "perplexity of the codebook": ("perplexity", "codes"),
    "the prior's −log p(z)": ("bits_per_code", "bits per code"),
}


def save_curves(path: str | Path, record: list[dict], title: str) -> None:
    """Draw training and validation curves from the lines of `metrics.jsonl`."""
    plt = _pyplot()
    known = {key.rpartition("/")[2].removeprefix("batch_") for line in record for key in line}
    panels = {name: panel for name, panel in CURVES.items() if panel[0] in known}
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.4), layout="constrained", squeeze=False)
    for axis, (name, (stem, unit)) in zip(axes[0], panels.items(), strict=True):
        prefixes = {
            f"train/{stem}": ("training batch", "0.7"),
            f"train/batch_{stem}": ("training batch", "0.7"),
            f"eval_train/{stem}": ("training images", "C1"),
            f"eval/{stem}": ("validation", "C0"),
        }
        for key, (label, color) in prefixes.items():
            points = [(line["step"], line[key]) for line in record if line.get(key) is not None]
            if points:
                marker = "o" if key.startswith("eval") and len(points) < 30 else None
                axis.plot(*zip(*points, strict=True), label=label, color=color, marker=marker, markersize=3, lw=1.2)
        values = [line[k] for line in record for k in prefixes if line.get(k) is not None]
        if unit == "bits/dim" and values:
            # The first steps, far off the rest, would flatten the curve.
            low, high = np.min(values), np.percentile(values, 97)
            axis.set_ylim(low - 0.05 * (high - low) - 0.01, high + 0.1 * (high - low) + 0.01)
        axis.set(title=name, xlabel="step", ylabel=unit)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    _save(figure, path)
