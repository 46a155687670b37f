"""How a codebook is used: by how many codes, how evenly, how far apart these lie, and what each of them paints."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vqvae_jax.evaluation import metrics, plots
from vqvae_jax.models.trunk import Family
from vqvae_jax.run import Run

LEAST_USAGE = 0.3  # share of the codes of a codebook in use below which it is said what to change
MOST = 1024  # codes of a codebook whose distances are looked at, those in most use
PAINTED = 64  # codes that are shown, those of the first codebook in most use
SHOWN = 3  # positions of a side of such an image that are shown, from its middle


class Health(NamedTuple):
    """What is known of the codes of a finished run.

    `counts` [G,K]: how often each stands for a position of the training images. `nearest` [n]: the distance from each
    code in use to the nearest other one of its codebook, among the `MOST` codes in most use. `painted` uint8 [m,S,S,C]:
    the middle of images all of whose positions have one and the same code of the first codebook, and the most frequent
    ones of the others.
    """

    counts: np.ndarray
    sizes: tuple[int, ...]
    nearest: np.ndarray
    painted: np.ndarray


def look(run: Run) -> Health | None:
    """Look at the codes of a run; None before they are counted, or where there are none."""
    if "code_counts" not in run.variables["fitted"]:
        return None
    counts = np.asarray(run.variables["fitted"]["code_counts"], np.float64).sum(axis=(0, 1))
    order = [np.argsort(-count, kind="stable")[: np.count_nonzero(count)] for count in counts]
    variables = jax.tree.map(np.asarray, run.variables)  # each of several processes looks by itself
    nearest = [_nearest(run.model, variables, order, group) for group in range(len(order))]
    codes = _with_one(order, 0, order[0][:PAINTED])
    fields = np.broadcast_to(codes, (len(codes), SHOWN + 2, SHOWN + 2, codes.shape[-1]))
    factor = run.model.trunk.factor  # of a position, which surrounds what is shown
    painted = run.decode(fields)[:, factor:-factor, factor:-factor]
    return Health(counts, run.model.codebook_sizes, np.concatenate(nearest), painted)


def _with_one(order: list[np.ndarray], group: int, codes: np.ndarray) -> np.ndarray:
    """Give positions [n,1,1,G] that have these codes of one codebook, and of the others the most frequent one."""
    positions = np.tile([of_one[0] for of_one in order], (len(codes), 1, 1, 1)).astype(np.int32)
    positions[..., group] = codes[:, None, None]
    return positions


def _nearest(model: Family, variables, order: list[np.ndarray], group: int) -> np.ndarray:
    vectors = model.vectors(variables, _with_one(order, group, order[group][:MOST]))
    vectors = np.asarray(vectors, np.float64).reshape(len(order[group][:MOST]), -1)
    squares = np.sum(vectors**2, axis=1)
    distances = squares[:, None] + squares[None] - 2 * vectors @ vectors.T
    np.fill_diagonal(distances, np.inf)
    return np.sqrt(np.maximum(distances.min(axis=1), 0)) if len(vectors) > 1 else np.zeros(0)


def summary(health: Health) -> str:
    """Say in a line how many codes are in use, how evenly, and how far apart they lie."""
    used, perplexity = np.count_nonzero(health.counts), float(np.mean(metrics.perplexity(health.counts)))
    text = f"{used:,} of {sum(health.sizes):,} in use, perplexity {perplexity:.1f} of {np.mean(health.sizes):,.0f}"
    if not len(health.nearest):
        return text
    low, middle, high = np.percentile(health.nearest, (5, 50, 95))
    return f"{text}; from a code to its nearest {middle:.2g} (5 to 95 %: {low:.2g} to {high:.2g})"


def advice(health: Health, changes: str) -> str | None:
    """Say which options to change where a codebook is in use by a small part of its codes; None where none is."""
    usage = metrics.codebook_usage(health.counts, health.sizes)
    worst = int(np.argmin(usage))
    if not changes or usage[worst] >= LEAST_USAGE:
        return None
    which = f" of codebook {worst + 1}" if len(usage) > 1 else ""
    return f"{100 * usage[worst]:.1f} % of the codes{which} are in use: in model.quantizer, {changes}"


def draw(path: str | Path, health: Health, record: list[dict], title: str) -> None:
    """Draw usage over training, how often each code is used, distances of neighbours, and what codes paint."""
    with plots.open_figure(path, 14.0, 3.6, 4) as (figure, (usage, histogram, distances, painted)):
        figure.suptitle(title)
        points = [(x["step"], 100 * x["eval/codebook_usage"]) for x in record if "eval/codebook_usage" in x]
        if points:
            usage.plot(*zip(*points, strict=True), marker="o", markersize=3)
        usage.set(title="codes in use, validation images", xlabel="step", ylabel="%", ylim=(0, 105))
        for count, size in zip(health.counts, health.sizes, strict=True):
            shares = np.sort(count[:size])[::-1] / count.sum() * size
            histogram.plot(np.arange(1, size + 1), np.maximum(shares, 1e-4), lw=1.2)
        histogram.axhline(1, color="0.6", lw=0.8)
        histogram.set(title="use of each code, training images", xlabel="rank of the code", ylabel="times even use")
        histogram.set_yscale("log", base=2)
        if len(health.nearest):
            distances.hist(health.nearest, bins=40)
        distances.set(title="from a code to its nearest", xlabel="distance", ylabel="codes")
        painted.imshow(plots.image_grid(plots.side_by_side(8, health.painted)), interpolation="nearest")
        painted.set(title="a code everywhere, by use", xticks=[], yticks=[])
        for axis in (usage, histogram, distances):
            axis.grid(alpha=0.3)
