"""The command: `python -m vqvae_jax.main --config=configs/quickstart.py`, or `--mode=... --workdir=RUN`."""

import os
import re
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

# Before jax is imported: its C++ half would report on TPUs and compilation that no user asked about.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from vqvae_jax import api, builders, compress, pictures, plots, sample
from vqvae_jax.data import transforms
from vqvae_jax.data.images import MODES, Source
from vqvae_jax.errors import InputError, is_out_of_space
from vqvae_jax.evaluate import Measured, measure, other_bounds, print_table, summarise
from vqvae_jax.metric_writer import read_record, write_json
from vqvae_jax.priors.ancestral import Options
from vqvae_jax.train import Stopped, train

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, and a variant: configs/cifar10.py:smoke")
MODES_HELP = "What to do: train, evaluate, reconstruct, sample, complete, compress, decompress."
MODE = flags.DEFINE_string("mode", "train", MODES_HELP)
WORKDIR = flags.DEFINE_string("workdir", None, "The run's folder; default: runs/NAME of the config.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the data set lies; default: as in the config.")
RESUME = flags.DEFINE_enum("resume", "auto", ["auto", "never"], "never: put an old run aside and start over.")
SPLIT = flags.DEFINE_string("split", "test", "evaluate, reconstruct, complete: train, validation or test.")
INPUT = flags.DEFINE_multi_string(
    "input",
    [],
    "reconstruct, complete: an image file, not the split; compress: an image or a folder; may be repeated. "
    "decompress: a .vqz file.",
)
OUTPUT = flags.DEFINE_string(
    "output", None, "Where to write: a PNG, for sample and decompress a folder, for compress a file; default: in RUN."
)
NUM = flags.DEFINE_integer("num", 32, "How many images of the split, or samples (of each class).", lower_bound=1)
CLASS = flags.DEFINE_multi_string(
    "class",
    [],
    "sample: a class by name or number; may be repeated, a row each. complete, compress: that of all images.",
)
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "sample, complete: below 1 for more probable codes.")
TOP_K = flags.DEFINE_integer("top_k", 0, "sample, complete: draw from the k most probable codes; 0: all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "sample, complete: draw from the fewest codes with this probability.")
SEED = flags.DEFINE_integer("seed", 0, "sample, complete: of the random numbers.", lower_bound=0)
LOSSY = flags.DEFINE_boolean("lossy", False, "compress: keep the codes alone, of which reconstructions are made.")
SEARCH_LABEL = flags.DEFINE_boolean("search_label", False, "compress: try all classes for every image.")
OVERWRITE = flags.DEFINE_boolean("overwrite", False, "compress, decompress: replace what is there.")
KEEP = flags.DEFINE_float("keep", 0.5, "complete: the share of each image, from the top, that is given.")

GRID_COLUMNS = 16
EXTREMES = 16  # images with the fewest bits, and as many with the most


def run_train() -> None:
    """Train or go on, then measure the test split and draw the figures."""
    if CONFIG.value is None:
        raise InputError("--mode=train needs a config: e.g. --config=configs/quickstart.py")
    config = CONFIG.value.to_dict()
    if DATA_DIR.value is not None:
        config["data"]["data_dir"] = DATA_DIR.value
    workdir = Path(WORKDIR.value or default_workdir())
    print(f"run folder: {workdir}   device: {jax.devices()[0].device_kind} x {jax.device_count()}", flush=True)
    run = train(config, workdir, resume=RESUME.value == "auto")
    source = builders.build_source(run.meta["config"]["data"], "test")
    report(run, workdir, source)
    save_reconstructions(run, workdir / "figures" / "reconstructions.png", source)
    title = f"{run.meta['config']['data']['name']}, {run.meta['step']} steps"
    plots.save_curves(workdir / "figures" / "curves.png", read_record(workdir), title)
    if run.learned:
        title = f"{run.learned.name} prior over the codes of {run.meta['config']['data']['name']}"
        plots.save_curves(workdir / "figures" / "prior_curves.png", read_record(workdir / "prior"), title)
    print(f"figures:     {workdir}/figures/: {', '.join(sorted(p.name for p in (workdir / 'figures').glob('*.png')))}")
    print(f"table:       {workdir}/evaluation.json")
    print(f"log:         {workdir}/metrics.jsonl   (curves: tensorboard --logdir {workdir}/tensorboard)")
    print(f"checkpoint:  {workdir}/checkpoints/model/{run.meta['step']}" + (", prior" if run.learned else ""))


def run_evaluate() -> None:
    """Measure a split with the newest checkpoint; other splits than test get a file of their own."""
    workdir = existing_workdir()
    run = api.load(workdir, DATA_DIR.value)
    path = report(run, workdir, builders.build_source(run.meta["config"]["data"], SPLIT.value))
    print(f"table:       {path}")


def run_reconstruct() -> None:
    """Write originals above reconstructions as one PNG."""
    workdir = existing_workdir()
    run = api.load(workdir, DATA_DIR.value)
    path = Path(OUTPUT.value or workdir / "figures" / "reconstructions.png")
    if INPUT.value:
        pairs = [[image, run.reconstruct(image)] for image in map(read_image(run), INPUT.value)]
        columns = [np.concatenate(pair) for pair in pairs] if _one_size(pairs) else None
        rows = [np.stack(row) for row in zip(*columns, strict=True)] if columns else [x for pair in pairs for x in pair]
        plots.save_grid(path, rows)
    else:
        save_reconstructions(run, path, builders.build_source(run.meta["config"]["data"], SPLIT.value))
    print(f"originals above reconstructions: {path}")


def run_sample() -> None:
    """Draw codes from the learned prior (or latents from p(z)) and write their images."""
    workdir = existing_workdir()
    run = api.load(workdir, DATA_DIR.value)
    labels = sample.labels_of(run, CLASS.value, NUM.value)
    images = run.sample(NUM.value if labels is None else len(labels), SEED.value, labels, sampling_options())
    columns = GRID_COLUMNS if labels is None else NUM.value
    print(f"samples:     {sample.save(Path(OUTPUT.value or workdir / 'samples'), images, labels, columns)}")


def run_complete() -> None:
    """Keep the upper part of images and draw the rest: originals, what was given, and completions as one PNG."""
    workdir = existing_workdir()
    run = api.load(workdir, DATA_DIR.value)
    known = run.trained_prior().prior.num_classes
    labels = sample.class_numbers(run, CLASS.value)
    if len(labels) > 1 or (labels and not known):
        raise InputError("--class names one class for all completions, of a prior that knows classes")
    if INPUT.value:
        read = [read_image(run)(path) for path in INPUT.value]
        if len({image.shape for image in read}) > 1:
            raise InputError("the images differ in size: complete them one by one")
        images = np.concatenate(read)
    else:
        source = builders.build_source(run.meta["config"]["data"], SPLIT.value)
        batch = source.take(np.arange(min(NUM.value, len(source))))
        images = batch["image"][batch["mask"]]
        labels = labels or (batch["label"][batch["mask"]] if known else [])
    rows = sample.rows_kept(run, KEEP.value)
    given = np.resize(np.asarray(labels, np.int32), len(images)) if len(labels) else None
    completed = run.complete(images, rows, SEED.value, given, sampling_options())
    path = Path(OUTPUT.value or workdir / "figures" / "completions.png")
    parts = (images, sample.hide_below(run, images, rows), completed)
    starts = range(0, len(images), GRID_COLUMNS)
    plots.save_grid(path, [part[start : start + GRID_COLUMNS] for start in starts for part in parts])
    print(f"originals, what was given, completions: {path}")


def run_compress() -> None:
    """Code images, losslessly or not, in one file."""
    run = api.load(existing_workdir(), DATA_DIR.value)
    labels = sample.class_numbers(run, CLASS.value)
    if len(labels) > 1:
        raise InputError("one --class is for all images: leave out the others, or let --search_label choose")
    path = _needed(OUTPUT.value, "output=FILE.vqz, the file to write")
    sizes = compress.compress_to(
        run,
        INPUT.value,
        path,
        overwrite=OVERWRITE.value,
        lossy=LOSSY.value,
        label=labels[0] if labels else None,
        search_label=SEARCH_LABEL.value,
    )
    header = sizes.total - sizes.stream - sizes.labels - sizes.names
    labels = f"classes {sizes.labels:,}, " if sizes.labels else ""
    print(f"compressed:  {sizes.images:,} images of {sizes.values:,} sub-pixels to {path}, {sizes.total:,} bytes")
    print(f"of these:    stream {sizes.stream:,}, {labels}names {sizes.names:,}, header and checksums {header:,}")
    bits = [8 * size / sizes.values for size in (sizes.stream, sizes.total)]
    print(f"bits/dim:    {bits[0]:.4f} of the stream, {bits[1]:.4f} in all")


def run_decompress() -> None:
    """Write the images of a file as PNG."""
    run = api.load(existing_workdir(), DATA_DIR.value)
    path = _needed(OUTPUT.value, "output=DIR, the folder to write to")
    if len(INPUT.value) != 1:
        raise InputError("--mode=decompress needs one --input=FILE.vqz")
    number = compress.decompress(run, pictures.read_file(INPUT.value[0]), path, overwrite=OVERWRITE.value)
    print(f"decompressed: {number:,} images in {path}")


def _needed(value: str | None, option: str) -> str:
    if value is None:
        raise InputError(f"--mode={MODE.value} needs --{option}")
    return value


def sampling_options() -> Options:
    """What the flags say of drawing codes."""
    return Options(TEMPERATURE.value, TOP_K.value, TOP_P.value)


def _one_size(pairs) -> bool:
    return len({image.shape for image, _ in pairs}) == 1


COMMANDS: dict[str, Callable[[], None]] = {
    "train": run_train,
    "evaluate": run_evaluate,
    "reconstruct": run_reconstruct,
    "sample": run_sample,
    "complete": run_complete,
    "compress": run_compress,
    "decompress": run_decompress,
}


def report(run: api.Run, workdir: Path, source: Source) -> Path:
    """Evaluate, print the table, and write it to `evaluation.json`, or `evaluation_SPLIT.json` if not of the test."""
    if list(source.class_names) != run.meta["class_names"]:
        raise InputError(
            f"the classes of {source.name} are not those that the run was trained with: name its data with --data_dir"
        )
    options = run.meta["config"]["eval"]
    measured = measure(run, source, options["test_images"])
    result = summarise(run, source, measured, options["test_images"])
    result["other_bounds"] = other_bounds(run, source, options)
    path = workdir / ("evaluation.json" if source.split == "test" else f"evaluation_{source.split}.json")
    write_json(path, result)
    print_table(result)
    save_figures(run, workdir / "figures", source, measured)
    return path


def save_figures(run: api.Run, folder: Path, source: Source, measured: Measured) -> None:
    """Draw a box of bits/dim per class, the images with the least and the most, and samples if there is a p(z)."""
    suffix = "" if source.split == "test" else f"_{source.split}"
    key = "bits_per_dim" if "bits_per_dim" in measured.per_image else "distortion"
    values = measured.per_image[key]
    if np.isfinite(values).all() and len(values):
        label = "bits/dim of an image" if key == "bits_per_dim" else "distortion of an image, bits/dim (no bound)"
        title = f"{source.name}, {source.split} split"
        plots.save_box_plot(
            folder / f"per_class{suffix}.png", values, measured.labels, source.class_names, label, title
        )
        order = np.argsort(values)[:EXTREMES], np.argsort(-values)[:EXTREMES]
        rows = [source.take(measured.rows[chosen])["image"] for chosen in order]
        pairs = [part for images in rows for part in (images, run.reconstruct(images))]
        plots.save_grid(folder / f"extremes{suffix}.png", pairs)
    if run.learned or (hasattr(run.model, "sample_latents") and run.variables["fitted"]):
        images = run.sample(4 * GRID_COLUMNS)
        # Without a p(z), of a Gaussian that was fitted to training latents after the fact.
        name = "samples_ex_post" if run.prior is None else "samples"
        plots.save_grid(folder / f"{name}.png", list(images.reshape(4, GRID_COLUMNS, *images.shape[1:])))


def save_reconstructions(run: api.Run, path: Path, source: Source) -> None:
    """Draw the first images of the split above their reconstructions."""
    batch = source.take(np.arange(min(NUM.value, len(source))))
    images = batch["image"][batch["mask"]]
    plots.save_grid(path, plots.reconstruction_rows(images, run.reconstruct(images), GRID_COLUMNS))


def read_image(run: api.Run) -> Callable[[str], np.ndarray]:
    """Give a reader of image files with the run's number of channels: path to uint8 [1,H,W,C]."""
    mode = MODES[run.meta["image_shape"][2]]

    def read(path: str) -> np.ndarray:
        try:
            return transforms.to_array(transforms.decode(Path(path).read_bytes(), mode))[None]
        except transforms.BadImage as error:
            raise InputError(f"{path} is not an image that can be used: {error}") from error
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from error

    return read


def default_workdir() -> str:
    """runs/NAME for configs/NAME.py, and runs/NAME-VARIANT for configs/NAME.py:VARIANT."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return f"runs/{Path(path).stem}" + (f"-{variant}" if variant else "")


def existing_workdir() -> Path:
    """The folder of --workdir, or the config's default one."""
    if WORKDIR.value is None and CONFIG.value is None:
        raise InputError(f"--mode={MODE.value} needs --workdir=RUN, the folder of a trained run")
    return Path(WORKDIR.value or default_workdir())


def main(argv: list[str]) -> None:
    """Run the command that --mode names."""
    logging.set_verbosity(logging.FATAL)  # orbax logs its inner workings and tracebacks of what it raises anyway
    keep_compiled()
    quiet_threads()
    if len(argv) > 1:
        raise InputError(f"unexpected argument {argv[1]!r}: image files are named with --input={argv[1]}")
    builders.pick(COMMANDS, MODE.value, "mode")()


def quiet_threads() -> None:
    """Leave out tracebacks of the threads that write checkpoints: a full disk is raised again where it is handled."""
    in_thread, in_callback = threading.excepthook, sys.unraisablehook

    def thread_hook(arguments):
        if not is_out_of_space(arguments.exc_value):
            in_thread(arguments)

    def callback_hook(arguments):
        # TensorStore reports failed writes one by one, to an event loop that ended with the first of them.
        if str(arguments.exc_value) != "Event loop is closed" and not is_out_of_space(arguments.exc_value):
            in_callback(arguments)

    threading.excepthook, sys.unraisablehook = thread_hook, callback_hook


def keep_compiled() -> None:
    """Keep compiled programs on disk, so that only the first start waits; a damaged file is compiled again."""
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/vqvae_jax"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; whatever is wrong with them or the config file is one line."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            path = (value if equals else following).partition(":")[0]
            if not os.path.isfile(path):  # ml_collections would print a traceback and go on
                _fail(f"no config file {path}: see configs/")
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(_explain(str(error)))


def _explain(message: str) -> str:
    """Turn what ml_collections or absl says of the command line into one line, with a suggestion for a wrong key."""
    wrong = re.search(r"Did you mean \"(\w+)\" instead of \"(\w+)\"", message)
    if wrong:
        keys = [argument[9:].partition("=")[0] for argument in sys.argv if argument.startswith("--config.")]
        key = next((key for key in keys if wrong[2] in key.split(".")), wrong[2])
        return f"unknown option {key}: did you mean {key.replace(wrong[2], wrong[1])!r}?"
    unknown = re.fullmatch(r"[\"']+(\w+)[\"']+", message)
    if unknown:
        return f"unknown option {unknown[1]}: the config file names the known ones"
    message = message.rpartition("ValueError: ")[2]  # a config file's own error, after its traceback
    return " ".join(message.replace("\\n", " ").split())


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def run() -> None:
    """Run the program; a mistake of the user's is one line and exit status 2, a stop by signal 130."""
    try:
        app.run(main, flags_parser=parse)
    except InputError as error:
        _fail(str(error))
    except Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except Exception as error:
        if not is_out_of_space(error):
            raise
        _fail("no space left on disk: make room and run the same command, it goes on from the last checkpoint")


if __name__ == "__main__":
    run()
