"""Samples of a run and completions of images, as a user asks for them: classes by name, pictures and arrays on disk."""

from pathlib import Path

import numpy as np

from vqvae_jax import pictures, plots
from vqvae_jax.api import Run
from vqvae_jax.errors import InputError, suggest

COLUMNS = 16  # of a grid
HIDDEN = 128  # level of what isn't kept of an image


def class_numbers(run: Run, classes: list[str]) -> list[int]:
    """Turn names or numbers of classes into numbers.

    Raises:
        InputError: a class is unknown.
    """
    names = run.meta["class_names"]
    # A name that looks like a number is a name.
    numbers = {str(n): n for n in range(len(names))} | {name: n for n, name in enumerate(names)}
    for name in classes:
        if name not in numbers:
            raise InputError(f"unknown class {name!r}: {suggest(name, names)}")
    return [numbers[name] for name in classes]


def labels_of(run: Run, classes: list[str], num: int) -> np.ndarray | None:
    """Give labels for `num` samples of each class, or None if none is asked for."""
    return np.repeat(np.array(class_numbers(run, classes), np.int32), num) if classes else None


def save(folder: Path, images: np.ndarray, labels: np.ndarray | None, columns: int = COLUMNS) -> Path:
    """Write images uint8 [N,H,W,C] as one grid, as a PNG each, and as arrays in `samples.npz`; give the grid's path.

    Raises:
        InputError: the folder can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for n, image in enumerate(images):
            pictures.save(folder / f"{n:04d}.png", image)
        np.savez(folder / "samples.npz", images=images, labels=np.zeros(0, np.int32) if labels is None else labels)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; choose another --output") from error
    rows = [images[start : start + columns] for start in range(0, len(images), columns)]
    plots.save_grid(folder / "grid.png", rows)
    return folder / "grid.png"


def rows_kept(run: Run, share: float) -> int:
    """Give how many rows of codes make up a share of an image, at least one and not all.

    Raises:
        InputError: the share isn't between 0 and 1.
    """
    if not 0 < share < 1:
        raise InputError(f"the share to keep is {share}: it must be between 0 and 1, e.g. 0.5")
    return min(max(1, round(share * run.field[0])), run.field[0] - 1)


def hide_below(run: Run, images: np.ndarray, rows: int) -> np.ndarray:
    """Give images whose part below the kept rows of codes is gray, to be shown beside completions."""
    shown = images.copy()
    shown[:, rows * images.shape[1] // run.field[0] :] = HIDDEN
    return shown
