"""Describe a data set: counts, sizes, classes, duplicates, channel means, and what the network sees of it.

    python -m experiments.dataset_report --dataset=cifar10 --data_dir=DIR --out=experiments/results/datasets/cifar10

Writes `table.md`, `table.csv` and `report.json`, and as SVG and PNG: `images_per_class`, `examples`,
and, where sizes differ, `resolution_deviation` and `resolutions`. One pass over the images, in parallel; what is kept
of each is a few bytes.
"""

import argparse
import csv
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments.provenance import provenance
from vqvae_jax.data import sources
from vqvae_jax.data.splits import as_files, prepare_split
from vqvae_jax.errors import InputError

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those of ImageNet that the founding report standardises by
AT_ONCE = 64
# Found by looking at pairs of CIFAR-10: with these, each was a true one; 12 bits and 12 levels paired ships on a sea.
NEAR = 10  # bits of 64 in which the perceptual hashes of near duplicates may differ
NEAR_LEVELS = 8  # of 255, by which their 9x8 thumbnails may differ in the mean
MANY = 10_000  # images, from which on a histogram's axis is logarithmic
FLAT = 30  # levels of 255: images of a smaller standard deviation are so flat that many are alike
NOTES = {
    "imagenet2012": "The founding report counts 100,000 test images and calls the validation images unlabelled. "
    "It is the other way round: the 100,000 test images of ILSVRC 2012 have no public labels and are not used, the "
    "50,000 validation images have labels and are the test split here.",
}


class Split(NamedTuple):
    """One split as it is on disk, an image a row; what follows `names` is 0 where an image can't be decoded."""

    labels: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    names: np.ndarray
    decodable: np.ndarray  # bool
    digests: np.ndarray  # uint64, of the pixels
    hashes: np.ndarray  # uint64, perceptual
    thumbnails: np.ndarray  # uint8 [N,8,9], gray
    means: np.ndarray  # [N,C] of pixels in 0..1, over the image
    squares: np.ndarray  # [N,C], of their squares


def describe(pixels: np.ndarray | None, channels: int) -> tuple:
    """Reduce uint8 [H,W,C] to a row of the last six columns; None to zeros."""
    if pixels is None:
        return False, 0, 0, np.zeros((8, 9), np.uint8), np.zeros(channels), np.zeros(channels)
    digest = hashlib.blake2b(f"{pixels.shape}".encode() + pixels.tobytes(), digest_size=8).digest()
    unit = pixels.reshape(-1, channels) / np.float32(255)
    image = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
    thumbnail = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BILINEAR))
    # Whether it gets brighter to the right at 8x8 places (dHash): near images differ in few of the 64 bits.
    perceptual = np.packbits(thumbnail[:, 1:] > thumbnail[:, :-1]).tobytes()
    numbers = (int.from_bytes(part, "big") for part in (digest, perceptual))
    return True, *numbers, thumbnail, unit.mean(0, dtype=np.float64), (unit**2).mean(0, dtype=np.float64)


def read_split(source: sources.Source, threads: int) -> Split:
    """Look at every image once."""
    columns = as_files(source).scan
    labels, channels = columns["label"], source.image_shape[2]
    chunks = [np.arange(n, min(n + AT_ONCE, len(labels))) for n in range(0, len(labels), AT_ONCE)]

    def read(chunk):
        batches = (source.take(np.array([row])) for row in chunk)  # one by one, for they may differ in size
        rows = [describe(batch["image"][0] if batch["mask"][0] else None, channels) for batch in batches]
        types = (bool, np.uint64, np.uint64, np.uint8, np.float64, np.float64)
        return [np.array(column, dtype) for column, dtype in zip(zip(*rows, strict=True), types, strict=True)]

    parts = []
    with ThreadPoolExecutor(threads) as pool, tqdm(total=len(labels), desc=source.split, unit=" images") as progress:
        for n in range(0, len(chunks), 4 * threads):  # so that no more than these wait in memory
            for part in pool.map(read, chunks[n : n + 4 * threads]):
                parts.append(part)
                progress.update(len(part[0]))
    about = [columns[field] for field in ("label", "width", "height", "name")]
    return Split(*about, *map(np.concatenate, zip(*parts, strict=True)))


def join(splits: list[Split]) -> Split:
    """Put splits after each other."""
    return Split(*map(np.concatenate, zip(*splits, strict=True)))


def exact_duplicates(splits: list[Split]) -> list[list[str]]:
    """Group the names of images with the same pixels."""
    names = np.concatenate([split.names[split.decodable] for split in splits])
    digests = np.concatenate([split.digests[split.decodable] for split in splits])
    order = np.argsort(digests, kind="stable")
    groups = np.split(names[order], np.flatnonzero(np.diff(digests[order])) + 1)
    return [sorted(map(str, group)) for group in groups if len(group) > 1]


def near_duplicates(train: Split, test: Split) -> list[tuple[str, str, int, float]]:
    """Pair test images with the training image of the nearest hash that has nearly the same thumbnail, too.

    The third value is the number of bits in which the hashes differ, the fourth the test image's standard deviation:
    flat images, as of a clear sky, have such a partner whatever they are of.
    """
    hashes, thumbnails, names = (column[train.decodable] for column in (train.hashes, train.thumbnails, train.names))
    deviations = 255 * np.sqrt(np.maximum(test.squares - test.means**2, 0).mean(1))
    pairs = []
    for row in np.flatnonzero(test.decodable):
        distance = np.bitwise_count(hashes ^ test.hashes[row])
        found = np.flatnonzero(distance <= NEAR)
        off = np.abs(thumbnails[found].astype(int) - test.thumbnails[row]).mean((1, 2))
        found = found[off <= NEAR_LEVELS]
        if len(found):
            nearest = found[distance[found].argmin()]
            deviation = round(float(deviations[row]), 1)
            pairs.append((str(test.names[row]), str(names[nearest]), int(distance[nearest]), deviation))
    return pairs


def channel_statistics(split: Split) -> tuple[list[float], list[float]]:
    """Mean and deviation per channel of pixels in 0..1, every image counting the same."""
    mean, square = (column[split.decodable].mean(0) for column in (split.means, split.squares))
    return [round(float(x), 4) for x in mean], [round(float(x), 4) for x in np.sqrt(square - mean**2)]


def size_range(splits: list[Split]) -> str:
    """Smallest and largest image by area, of those with a header."""
    widths = np.concatenate([split.widths for split in splits]).astype(np.int64)
    heights = np.concatenate([split.heights for split in splits]).astype(np.int64)
    area = np.where(widths > 0, widths * heights, -1)
    low, high = np.where(area > 0, area, np.iinfo(np.int64).max).argmin(), area.argmax()
    names = [f"{widths[n]}×{heights[n]}" for n in (low, high)]
    return names[0] if names[0] == names[1] else " to ".join(names)


def save(figure, out: Path, name: str) -> None:
    """Write a figure as SVG and PNG."""
    for suffix in ("svg", "png"):
        figure.savefig(out / f"{name}.{suffix}", dpi=110)
    plt.close(figure)


def draw_images_per_class(train: Split, class_names: tuple[str, ...], title: str, out: Path) -> list[tuple[str, int]]:
    """Draw Fig. 2 of the founding report; give the smallest classes."""
    counts = np.bincount(train.labels, minlength=len(class_names))
    order = np.argsort(counts, kind="stable")
    present = order[counts[order] > 0]
    smallest = [(class_names[n], int(counts[n])) for n in present[:3]]
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    few = len(present) <= 40
    places = np.arange(len(present))
    axis.bar(places, counts[present], width=0.8 if few else 1.0, color="C0")
    if few:
        axis.set_xticks(places, [class_names[n] for n in present], rotation=45, ha="right")
    else:
        axis.set_xlabel("class, by size")
    text = "smallest: " + ", ".join(f"{name} {count}" for name, count in smallest)
    if counts[present].min() == counts[present].max():
        text = f"all {len(present)} classes have {counts[present[0]]}"
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set(ylabel="training images", title=f"{title}: images per class\n{text}")
    save(figure, out, "images_per_class")
    return smallest


def draw_histogram(values: np.ndarray, label: str, counted: str, title: str, path: Path) -> None:
    """Draw how values are distributed; nothing where there is nothing to see, because they are all alike."""
    if len(np.unique(values)) < 2:
        return
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
    axis.hist(values, bins=50, color="C0")
    axis.set(xlabel=label, ylabel=counted, yscale="log" if len(values) > MANY else "linear", title=title)
    save(figure, path.parent, path.name)


def draw_sizes(splits: list[Split], class_count: int, title: str, out: Path) -> None:
    """Draw Figs. 4 and 5: how sizes deviate within classes, and how they are distributed."""
    sides = [np.sqrt(split.widths.astype(float) * split.heights) for split in splits]
    train, labels = sides[0], splits[0].labels
    members = [train[(labels == n) & (train > 0)] for n in range(class_count)]
    deviations = np.array([np.std(side) for side in members if len(side) > 1])
    label = "standard deviation of √(width · height) within a class of training images"
    draw_histogram(
        deviations, label, "classes", f"{title}: resolution deviation across classes", out / "resolution_deviation"
    )
    side = np.concatenate(sides)
    draw_histogram(side[side > 0], "√(width · height), pixels", "images", f"{title}: resolutions", out / "resolutions")


def draw_examples(opened: sources.Source, title: str, size: int | None, out: Path) -> None:
    """Draw Figs. 3 and 6: training crops standardised, as the network sees them, and back in colour."""
    if as_files(opened).of_one_size():
        size = None
    scale, side = (0.2, 1.0), 32 if size else 1
    source = prepare_split(
        opened, image_size=size, crop_scale=scale, eval_crop="random", min_side=side, max_bad_images=100
    )
    batch = source.take(np.arange(min(32, len(source))))
    images = batch["image"][batch["mask"]][:16]
    mean, std = (np.array(values)[: images.shape[-1]] for values in (MEAN, STD))
    seen = (images / 255.0 - mean) / std
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.8), layout="constrained")
    panels = (("standardised, clipped to 0..1 for display", np.clip(seen, 0, 1)), ("back in colour", seen * std + mean))
    for axis, (name, values) in zip(axes, panels, strict=True):
        side = values.shape[1]
        grid = np.ones((4 * (side + 2) - 2, 4 * (side + 2) - 2, values.shape[-1]))
        for n, value in enumerate(values):
            y, x = divmod(n, 4)
            grid[y * (side + 2) : y * (side + 2) + side, x * (side + 2) : x * (side + 2) + side] = value
        axis.imshow(np.clip(grid, 0, 1).squeeze(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(name)
        axis.set_axis_off()
    crop = f"random crop of {scale[0]:g} to {scale[1]:g} of the area, ratio 1, to {size}×{size}" if size else "no crop"
    figure.suptitle(f"{title}: {crop}\nμ = {', '.join(map(str, mean))}; σ = {', '.join(map(str, std))}", fontsize=11)
    save(figure, out, "examples")


def report(dataset: str, title: str, data_dir: str | None, size: int | None, out: Path, threads: int) -> dict:
    """Make the whole report; give its figures."""
    opened = {split: sources.SOURCES[dataset](split, data_dir) for split in sources.SPLITS}
    train, validation, test = (read_split(source, threads) for source in opened.values())
    validation_images, train = len(validation.labels), join([train, validation])
    del validation
    first = opened["train"]
    class_names = first.class_names
    both = [train, test]
    out.mkdir(parents=True, exist_ok=True)
    mean, std = channel_statistics(train)
    small = sum(int(np.sum(np.minimum(split.widths, split.heights) < 32)) for split in both)
    pairs = near_duplicates(train, test)
    near, flat = [pair for pair in pairs if pair[3] >= FLAT], [pair for pair in pairs if pair[3] < FLAT]
    duplicates = exact_duplicates(both)
    result = {
        "dataset": title,
        "train_images": len(train.labels),
        "of_which_validation": validation_images,
        "test_images": len(test.labels),
        "classes": len(class_names),
        "classes_with_training_images": len(np.unique(train.labels)),
        "image_size": size_range(both),
        "images_with_a_side_under_32": small,
        "undecodable_images": sum(int(np.sum(~split.decodable)) for split in both),
        "groups_of_equal_images": len(duplicates),
        "images_in_them": sum(map(len, duplicates)),
        "near_duplicates_of_training_images_in_test": len(near),
        "flat_test_images_like_a_training_image": len(flat),
        "mean": mean,
        "standard_deviation": std,
        "smallest_classes": draw_images_per_class(train, class_names, title, out),
    }
    draw_sizes(both, len(class_names), title, out)
    draw_examples(first, title, size, out)
    write_tables(result, NOTES.get(dataset, ""), out)
    result |= {
        "examples_of_equal_images": duplicates[:10],
        "examples_of_near_duplicates": near[:10],
        "examples_of_flat_images": flat[:10],
        "near_means_at_most": {"bits_of_64": NEAR, "levels_of_255": NEAR_LEVELS},
        "flat_means_a_standard_deviation_below": FLAT,
        "command": f"python -m experiments.dataset_report --dataset={dataset} --data_dir=DIR --out=DIR",
        **provenance(),
    }
    (out / "report.json").write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def write_tables(result: dict, note: str, out: Path) -> None:
    """Write Table 1 as CSV and Markdown, and below it what was checked."""
    columns = {"Dataset": "dataset", "train images": "train_images", "test images": "test_images"}
    columns |= {"classes": "classes", "image size": "image_size"}
    values = [f"{result[key]:,}" if isinstance(result[key], int) else result[key] for key in columns.values()]
    with open(out / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([list(columns), [result[key] for key in columns.values()]])
    checked = {key: result[key] for key in list(result)[2:-1] if key not in columns.values()}
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}", f"| {' | '.join(values)} |", ""]
    lines += [f"- {key.replace('_', ' ')}: {value}" for key, value in checked.items()]
    (out / "table.md").write_text("\n".join([*lines, *(["", note] if note else [])]) + "\n")


def main():
    """Run the report."""
    parser = argparse.ArgumentParser(description="Describe a data set.")
    parser.add_argument("--dataset", required=True, help=f"one of {', '.join(sources.SOURCES)}")
    parser.add_argument("--title", help="what to call it; default: its name")
    parser.add_argument("--data_dir")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--image_size", type=int, default=128, help="of the examples, where sizes differ")
    parser.add_argument("--threads", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.dataset not in sources.SOURCES:
        parser.error(f"unknown dataset {arguments.dataset!r}: known: {', '.join(sources.SOURCES)}")
    title = arguments.title or arguments.dataset
    try:
        result = report(
            arguments.dataset, title, arguments.data_dir, arguments.image_size, arguments.out, arguments.threads
        )
    except InputError as error:
        parser.error(str(error))
    print((arguments.out / "table.md").read_text())
    print(f"tables and figures: {arguments.out}")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    main()
