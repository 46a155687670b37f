"""What the program does, a function for each mode; their keyword arguments are the flags of the command line."""

import importlib.util
import re
from pathlib import Path

import jax
import numpy as np

from vqvae_jax import registry
from vqvae_jax.codec import compress as codec
from vqvae_jax.data import image_files
from vqvae_jax.data.splits import Source
from vqvae_jax.errors import InputError, is_out_of_space
from vqvae_jax.evaluation import codebook, plots
from vqvae_jax.evaluation.evaluate import CODECS, CODED, Measured, file_bits, measure, other_bounds, summarise
from vqvae_jax.evaluation.tables import print_table
from vqvae_jax.priors.ancestral import Options
from vqvae_jax.run import Run, load
from vqvae_jax.training import loop
from vqvae_jax.training.record import read_record, write_json

COLUMNS = 16  # of a grid
EXTREMES = 16  # images with the fewest bits, and as many with the most
CANDIDATES = 512  # among which these are looked for
HIDDEN = 128  # level of what isn't given of an image
Names = list[str] | tuple[str, ...]
Place = str | Path


def train(*, config: dict, workdir: Place, data_dir: str | None = None, resume: str = "auto") -> Run:
    """Train or go on, then measure the test split and draw the figures."""
    if data_dir is not None:
        config = {**config, "data": {**config.get("data", {}), "data_dir": data_dir}}
    workdir = Path(workdir)
    print(f"run folder: {workdir}   device: {jax.devices()[0].device_kind} x {jax.device_count()}", flush=True)
    run = loop.train(config, workdir, resume=resume == "auto")
    figures, name, step = workdir / "figures", run.meta["config"]["data"]["name"], run.meta["step"]
    report(run, workdir, registry.build_source(run.meta["config"]["data"], "test"))
    record = read_record(workdir)
    if health := codebook.look(run):
        print(f"codes:       {codebook.summary(health)}")
        if advice := codebook.advice(health, run.model.advice):
            print(f"advice:      {advice}")
        codebook.draw(figures / "codebook.png", health, record, f"{name}, {step} steps")
    _save_pairs(run, figures / "reconstructions.png", _chosen(run, (), "test", 2 * COLUMNS)[0])
    plots.save_curves(figures / "curves.png", record, f"{name}, {step} steps")
    if run.learned:
        title = f"{run.learned.name} prior over the codes of {name}"
        plots.save_curves(figures / "prior_curves.png", read_record(workdir / "prior"), title)
    board = config["logging"]["tensorboard"] and importlib.util.find_spec("tensorboard")
    curves = f"   (curves: tensorboard --logdir {workdir}/tensorboard)" if board else ""
    print(f"figures:     {figures}/: {', '.join(sorted(path.name for path in figures.glob('*.png')))}")
    print(f"log:         {workdir}/metrics.jsonl{curves}")
    print(f"checkpoint:  {workdir}/checkpoints/model/{step}{', prior' if run.learned else ''}")
    return run


def evaluate(
    *,
    workdir: Place,
    data_dir: str | None = None,
    step: int | None = None,
    split: str = "test",
    output: Place | None = None,
) -> dict:
    """Measure a split with the newest checkpoint, print the table and write `evaluation.json`."""
    run = load(workdir, data_dir, step)
    of_step = "" if step is None else f"_step_{step}"
    source = registry.build_source(run.meta["config"]["data"], split)
    return report(run, Path(workdir), source, Path(output) if output else None, of_step)


def reconstruct(
    *,
    workdir: Place,
    data_dir: str | None = None,
    step: int | None = None,
    split: str = "test",
    input: Names = (),
    output: Place | None = None,
    num: int = 32,
) -> Path:
    """Draw originals and their reconstructions, of a split or of image files of any size."""
    run = load(workdir, data_dir, step)
    path = Path(output or Path(workdir) / "figures" / "reconstructions.png")
    _save_pairs(run, path, _chosen(run, input, split, num)[0])
    print(f"originals and reconstructions: {path}")
    return path


def sample(
    *,
    workdir: Place,
    step: int | None = None,
    output: Place | None = None,
    num: int = 32,
    class_: Names = (),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    pixels: str = "mean",
    overwrite: bool = False,
) -> Path:
    """Draw codes from the learned prior (or latents from p(z)) and write their images."""
    run, folder = load(workdir, step=step), Path(output or Path(workdir) / "samples")
    labels = np.repeat(np.array(class_numbers(run, class_), np.int32), num)
    old, options = _replaceable(folder, overwrite), Options(temperature, top_k, top_p)
    images = run.sample(len(labels) or num, seed, labels if class_ else None, options, pixels)
    with image_files.writing(folder / "samples.npz") as file:
        np.savez(file, images=images, labels=labels)
    for path in old if jax.process_index() == 0 else ():
        path.unlink()
    for n, image in enumerate(images):
        image_files.save(folder / f"{n:04d}.png", image)
    plots.save_grid(folder / "grid.png", plots.side_by_side(num if class_ else COLUMNS, images))
    print(f"samples:     {folder / 'grid.png'}")
    return folder / "grid.png"


def complete(
    *,
    workdir: Place,
    data_dir: str | None = None,
    step: int | None = None,
    split: str = "test",
    input: Names = (),
    output: Place | None = None,
    num: int = 32,
    class_: Names = (),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    keep: float = 0.5,
) -> Path:
    """Keep the upper part of images and draw the rest: originals, what was given, and completions."""
    run = load(workdir, data_dir, step)
    known, labels = run.trained_prior().num_classes, class_numbers(run, class_)
    if len(labels) > 1 or (labels and not known):
        raise InputError("--class names one class for all completions, of a prior that knows classes")
    if not 0 < keep < 1:
        raise InputError(f"the share to keep is {keep}: it must be between 0 and 1, e.g. 0.5")
    (chosen, own), shape = _chosen(run, input, split, num), tuple(run.meta["image_shape"])
    for height, width, _ in (image.shape for image in chosen if image.shape != shape):
        trained = f"{shape[0]}x{shape[1]}, the size this run was trained on"
        raise InputError(f"images of {height}x{width} pixels: completions are of {trained}")
    images, labels = np.array(chosen, np.uint8).reshape(-1, *shape), labels or (own if known else [])
    rows = min(max(1, round(keep * run.grid[0])), run.grid[0] - 1)  # of codes: at least one, and not all
    given = np.resize(np.asarray(labels, np.int32), len(images)) if labels else None
    completed = run.complete(images, rows, seed, given, Options(temperature, top_k, top_p))
    shown = images.copy()
    shown[:, rows * images.shape[1] // run.grid[0] :] = HIDDEN
    path = Path(output or Path(workdir) / "figures" / "completions.png")
    plots.save_grid(path, plots.side_by_side(COLUMNS, images, shown, completed))
    print(f"originals, what was given, completions: {path}")
    return path


def compress(
    *,
    workdir: Place,
    step: int | None = None,
    input: Names,
    output: Place,
    class_: Names = (),
    lossy: bool = False,
    search_label: bool = False,
    overwrite: bool = False,
    skip: bool = False,
    verify: bool = True,
) -> codec.Sizes:
    """Code images, losslessly or not, in one file."""
    run = load(workdir, step=step)
    labels = class_numbers(run, class_)
    if len(labels) > 1:
        raise InputError("one --class is for all images: leave out the others, or let --search_label choose")
    options = {"lossy": lossy, "search_label": search_label, "overwrite": overwrite, "skip": skip, "verify": verify}
    sizes = codec.compress_to(run, list(input), output, label=labels[0] if labels else None, **options)
    header = sizes.total - sizes.stream - sizes.labels - sizes.names
    classes = f"classes {sizes.labels:,.0f}, " if sizes.labels else ""
    bits = [8 * size / sizes.values for size in (sizes.stream, sizes.total, sizes.png)]
    for path, reason in sizes.left_out:
        print(f"left out:    {path}: {reason}")
    print(f"compressed:  {sizes.images:,} images of {sizes.values:,} sub-pixels to {output}, {sizes.total:,} bytes")
    print(f"of these:    stream {sizes.stream:,.0f}, {classes}names {sizes.names:,}, header {header:,.0f}")
    print(f"bits/dim:    {bits[0]:.4f} of the stream, {bits[1]:.4f} in all, {bits[2]:.4f} as PNG files")
    if sizes.total > sizes.png and not lossy:
        print("note:        the same images are shorter as PNG files; this model knows too little of such images")
    return sizes


def decompress(*, workdir: Place, step: int | None = None, input: Names, output: Place, overwrite: bool = False) -> int:
    """Write the images of a .vqz file as PNG; give their number."""
    if len(input) != 1:
        raise InputError("--mode=decompress needs one --input=FILE.vqz")
    run = load(workdir, step=step)
    number = codec.decompress(run, image_files.read_file(input[0]), output, overwrite=overwrite)
    print(f"decompressed: {number:,} images in {output}")
    return number


def report(run: Run, workdir: Path, source: Source, output: Path | None = None, suffix: str = "") -> dict:
    """Evaluate a split, print the table, write `evaluation.json` (`evaluation_SPLIT.json` if not of test), and draw.

    `output` takes the place of that file, and figures are drawn beside it; `suffix` is added to names.
    """
    if list(source.class_names) != run.meta["class_names"]:
        raise InputError(f"the classes of {source.name} are not those of the run: name its data with --data_dir")
    options = run.meta["config"]["eval"]
    measured = measure(run, source, options["test_images"])
    result = summarise(run, source, measured, options["test_images"])
    coded = source.take(measured.rows[:CODED])["image"]
    result["codecs"] = {kind: file_bits(coded, kind, **how) for kind, how in CODECS.items()}
    result["other_bounds"] = other_bounds(run, source, options)
    suffix = suffix if source.split == "test" else f"_{source.split}{suffix}"
    path = output or workdir / f"evaluation{suffix}.json"
    print_table(result)
    try:
        write_json(path, result)
        print(f"table:       {path}")
        _save_figures(run, path.parent / "figures", source, measured, suffix)
    except (OSError, InputError) as error:  # the table is printed, whatever the folder is like
        if is_out_of_space(error):
            raise
        if output:
            raise InputError(f"cannot write {path}: {error}; choose another --output") from error
        print(f"not written: {path} or its figures ({error}): name a file elsewhere with --output")
    return result


def _save_figures(run: Run, folder: Path, source: Source, measured: Measured, suffix: str) -> None:
    _save_extremes(run, folder, source, measured, suffix)
    # Without a p(z), samples are of a Gaussian that was fitted to training latents after the fact.
    if run.learned or (run.model.samples_latents and run.variables["fitted"]):
        name = "samples_ex_post" if run.prior is None else "samples"
        plots.save_grid(folder / f"{name}.png", plots.side_by_side(COLUMNS, run.sample(4 * COLUMNS)))


def _save_extremes(run: Run, folder: Path, source: Source, measured: Measured, suffix: str) -> None:
    key = "bits_per_dim" if "bits_per_dim" in measured.per_image else "distortion"
    values = measured.per_image[key]
    if not np.isfinite(values).all():
        return
    label = "bits/dim of an image" if key == "bits_per_dim" else "distortion of an image, bits/dim (no bound)"
    title = f"{source.name}, {source.split} split"
    plots.save_box_plot(folder / f"per_class{suffix}.png", values, measured.labels, source.class_names, label, title)
    rows = []
    for order in (np.argsort(values), np.argsort(-values)):
        images = plots.distinct(source.take(measured.rows[order[:CANDIDATES]])["image"], EXTREMES)
        rows += [images, run.reconstruct(images)] if len(images) else []
    plots.save_grid(folder / f"extremes{suffix}.png", rows)


def class_numbers(run: Run, classes: Names) -> list[int]:
    """Turn names or numbers of classes into numbers; InputError for an unknown one."""
    names = {name: n for n, name in enumerate(run.meta["class_names"])}
    known = {str(n): n for n in names.values()} | names  # a name that looks like a number is a name
    return [registry.pick(known if name in known else names, name, "class") for name in classes]


def _chosen(run: Run, inputs: Names, split: str, num: int) -> tuple[list[np.ndarray], list[int]]:
    """Give images uint8 [H,W,C] of files and folders, or the first ones of a split and their classes."""
    if not inputs:
        source = registry.build_source(run.meta["config"]["data"], split)
        batch = source.take(np.arange(min(num, len(source))))
        return list(batch["image"][batch["mask"]]), batch["label"][batch["mask"]].tolist()
    paths = [path for given in map(Path, inputs) for path, _ in image_files.inside(given)]
    if not paths:
        raise InputError(f"no images in {', '.join(inputs)}: name folders or files with --input")
    return [image_files.read_image(path, run.meta["image_shape"][2]) for path in paths], []


def _save_pairs(run: Run, path: Path, images: list[np.ndarray]) -> None:
    """Draw images of one size in rows above their reconstructions, and others a pair a row."""
    if len({image.shape for image in images}) == 1:
        originals = np.stack(images)
        rows = plots.side_by_side(COLUMNS, originals, _of_any_size(run, originals))
    else:
        rows = [np.concatenate([image[None], _of_any_size(run, image[None])]) for image in images]
    plots.save_grid(path, rows)


def _of_any_size(run: Run, images: np.ndarray) -> np.ndarray:
    """Reconstruct images whose edges are repeated up to the next size that the network takes."""
    height, width = images.shape[1:3]
    factor = run.model.trunk.factor
    padded = np.pad(images, ((0, 0), (0, -height % factor), (0, -width % factor), (0, 0)), "edge")
    return run.reconstruct(padded)[:, :height, :width]


def _replaceable(folder: Path, overwrite: bool) -> list[Path]:
    """Give the pictures of earlier samples; InputError if new ones may not replace them, or they aren't samples."""
    old = [path for path in folder.glob("*.png") if re.fullmatch(r"\d{4,}|grid", path.stem)]
    if (folder / "samples.npz").is_file():
        if not overwrite:
            raise InputError(f"{folder} holds samples: choose another --output, or replace them with --overwrite")
    elif old:
        raise InputError(f"{folder} holds a picture {old[0].name}, which is no sample: choose another --output")
    return old
