"""The training loop: from a config to a finished run on disk, to be stopped and continued at any step."""

import contextlib
import json
import math
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqvae_jax import __version__, builders, checkpoint, plots, sharding
from vqvae_jax.api import Run, check_support
from vqvae_jax.data import batches
from vqvae_jax.errors import InputError
from vqvae_jax.evaluate import evaluate
from vqvae_jax.metric_writer import MetricWriter, write_json
from vqvae_jax.train_step import TrainState, init_state, make_train_step

GRID_IMAGES = 8
# What may differ when a run goes on: it changes no parameter.
NEUTRAL = ("data.data_dir", "data.num_threads", "data.max_bad_images", "data.eval_crop", "logging.")
NEUTRAL += ("train.log_every", "train.eval_every", "train.checkpoint_every")
NEUTRAL += ("eval.batch_size", "eval.validation_images", "eval.test_images", "eval.fit_images")
NEUTRAL += ("eval.samples", "eval.subset_images", "eval.subset_samples")
# What the progress line shows: the first of these that the family has.
PROGRESS = {
    "bits_per_dim": "bits/dim",
    "distortion": "bits/dim of distortion",
    "half_squared_error": "half squared error",
    "relaxed_bits_per_dim": "relaxed bits/dim (no bound)",
}


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run was asked to stop and has saved itself."""


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Turn nested dicts into one with dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def differences(old: dict, new: dict) -> list[str]:
    """Name the keys in which two configs would compute something else, with both values."""
    old, new = (flatten(json.loads(json.dumps(config))) for config in (old, new))
    found = []
    for key in sorted(old.keys() | new.keys()):
        longer = key == "train.num_steps" and old.get("optimizer.schedule") == "constant"
        neutral = longer or key.startswith(NEUTRAL)
        if old.get(key) != new.get(key) and not neutral:
            found.append(f"{key} ({old.get(key)} there, {new.get(key)} now)")
    return found


def prepare_workdir(config: dict, workdir: Path, resume: bool) -> None:
    """Make the run's folder; keep a run of the same config, put aside one that isn't to be resumed.

    Raises:
        InputError: the folder holds a run of another config, or can't be written.
    """
    if not resume and workdir.exists():
        number = next(n for n in range(1, 10**6) if not workdir.with_name(f"{workdir.name}.{n}").exists())
        workdir.rename(workdir.with_name(f"{workdir.name}.{number}"))
        print(f"the old run is now {workdir}.{number}")
    path = workdir / "config.json"
    if path.is_file():
        _check_same(json.loads(path.read_text()), config, workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {workdir}: {error.strerror}; choose another --workdir") from error


def _check_same(old: dict, new: dict, workdir: Path) -> None:
    changed = differences(old, new)
    if changed:
        raise InputError(
            f"{workdir} holds a run of another config: {', '.join(changed)}; "
            "choose another --workdir, or start over with --resume=never"
        )


@contextlib.contextmanager
def stop_signals():
    """Turn SIGTERM and the first Ctrl-C into a flag that the loop reads; a second Ctrl-C interrupts at once."""
    received = []

    def handle(number, frame):
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_finite(step: int, metrics: dict[str, float]) -> None:
    for key in ("loss_nats", "gradient_norm"):
        if not math.isfinite(metrics[key]):
            raise InputError(
                f"{key} is {metrics[key]} at step {step}: training stopped, the last checkpoint is from before; "
                "lower optimizer.learning_rate and start over, or look at the data"
            )


class Loop:
    """One training run in progress; `run` takes it to its last step."""

    def __init__(self, config: dict, workdir: Path, source, validation):
        """Build everything from the config; nothing is computed yet but the first state."""
        self.config, self.workdir, self.source, self.validation = config, workdir, source, validation
        self.num_steps = config["train"]["num_steps"]
        self.mesh = sharding.make_mesh()
        self.model = builders.build_model(config["model"], source.image_shape)
        optimizer = builders.build_optimizer(config["optimizer"], self.num_steps)
        self.train_step = make_train_step(self.model, optimizer, config["seed"], self.mesh)
        self.init = partial(init_state, self.model, optimizer, config["seed"], mesh=self.mesh)
        self.state: TrainState
        self.meta = {
            "config": config,
            "class_names": list(source.class_names),
            "image_shape": list(source.image_shape),
            "data_fingerprint": source.fingerprint(),
            "images_removed": source.images_removed,
            "version": __version__,
        }

    def _batches(self, steps: range):
        data = self.config["data"]
        arrays = batches.train_batches(
            self.source, data["batch_size"], self.config["seed"], data["flip"], steps, data["num_threads"]
        )
        return (sharding.put_batch(batch, self.mesh) for batch in arrays)

    def start(self, manager) -> bool:
        """Restore the newest checkpoint or draw the first state; tell whether the run is finished already."""
        first = next(self._batches(range(0, 1)))["image"]
        step = manager.latest_step()
        if step is None:
            self.state = self.init(first)
            return False
        meta = checkpoint.read_meta(manager, step)
        _check_same(meta["config"], self.config, self.workdir)
        if step > self.num_steps or (step == self.num_steps < meta["config"]["train"]["num_steps"]):
            raise InputError(
                f"the run in {self.workdir} is already at step {step}: "
                f"train.num_steps={self.num_steps} cannot shorten it"
            )
        if meta["data_fingerprint"] != self.meta["data_fingerprint"]:
            raise InputError(
                f"the training images are not those of the run in {self.workdir}: "
                "name the old data with --data_dir, or start over with --resume=never"
            )
        everywhere = sharding.replicated(self.mesh)
        abstract = jax.eval_shape(self.init, first)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), abstract)
        self.state = checkpoint.restore_state(manager, step, abstract)
        print(f"resumed at step {step}", flush=True)
        return step == self.num_steps and checkpoint.is_fitted(self.workdir, step)

    def as_run(self, fitted: dict | None = None) -> Run:
        """The model as it is now, with what `fit` counted."""
        variables = {"params": self.state.params, "state": self.state.model_state, "fitted": fitted or {}}
        return Run(self.model, variables, {**self.meta, "step": int(self.state.step)})

    def fit(self, num_images: int = 0) -> dict:
        """Count on training images, 0 meaning all of them."""
        return self.as_run().fit(self.source, num_images)

    def _validate(self, step: int, writer: MetricWriter) -> None:
        run = self.as_run(self.fit(self.config["eval"]["fit_images"]))
        result = evaluate(run, self.validation, self.config["eval"]["validation_images"])
        keys = ("bits_per_dim", "rate", "distortion", "psnr", "ssim", "perplexity", "codebook_usage")
        values = {f"eval/{key}": result[key] for key in keys if result.get(key) is not None}
        # `bad` counts since this process began.
        about = {"data/images_removed": self.source.images_removed, "data/bad_images": len(self.source.bad)}
        writer.scalars(step, values | about)
        images = self.validation.take(np.arange(min(GRID_IMAGES, len(self.validation))))
        images = images["image"][images["mask"]]
        if len(images):
            writer.image(step, "reconstructions", plots.image_grid([images, run.reconstruct(images)]))

    def run(self, manager, writer: MetricWriter, received: list) -> None:
        """Train to the last step, saving it and others; raises `Stopped` after saving if a signal was received."""
        every, size = self.config["train"], self.config["data"]["batch_size"]
        start, saved = int(self.state.step), int(self.state.step)
        pending = None  # metrics of the step before, fetched when the next one is already running
        clock = _Clock(size)
        for step, batch in enumerate(self._batches(range(start, self.num_steps)), start + 1):
            self.state, metrics = self.train_step(self.state, batch)
            if pending is not None:
                self._finish(*pending, writer, clock)
            pending = (step, metrics)
            due = [step % every[key] == 0 or step == self.num_steps for key in ("eval_every", "checkpoint_every")]
            if not (any(due) or received):
                continue
            self._finish(*pending, writer, clock)
            pending = None
            if due[0]:
                with clock.paused():
                    self._validate(step, writer)
            if (due[1] or received) and step > saved:
                with clock.paused():
                    checkpoint.save(manager, self.state, {**self.meta, "step": step})
                saved = step
            if received:
                manager.wait_until_finished()
                raise Stopped(f"stopped at step {step} and saved; the same command goes on from there")

    def _finish(self, step: int, metrics, writer: MetricWriter, clock) -> None:
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        _check_finite(step, values)
        clock.step()
        text = None
        if step % self.config["train"]["log_every"] == 0 or step == self.num_steps:
            speed = clock.images_per_second()
            writer.scalars(step, {f"train/{key}": value for key, value in values.items()} | clock.times(speed))
            shown = next(key for key in PROGRESS if key in values)
            text = f"{values[shown]:.3f} {PROGRESS[shown]}, {speed:.0f} images/s"
        writer.progress(step, text)


class _Clock:
    """Counts training time alone, for images/s; starts after the first step, which compiles."""

    def __init__(self, batch_size: int):
        self._batch_size, self._steps, self._start = batch_size, -1, time.perf_counter()

    def step(self):
        self._steps += 1
        if self._steps == 0:
            self._start = time.perf_counter()

    @contextlib.contextmanager
    def paused(self):
        begin = time.perf_counter()
        yield
        self._start += time.perf_counter() - begin

    def images_per_second(self) -> float:
        now = time.perf_counter()
        speed = self._steps * self._batch_size / max(now - self._start, 1e-9)
        self._steps, self._start = 0, now
        return speed

    def times(self, speed: float) -> dict[str, float | int]:
        times = {"images_per_second": round(speed, 1)} if speed else {}
        return times | _most_memory() | {"unix_time": round(time.time(), 3)}


def _most_memory() -> dict[str, int]:
    """Give the most memory that this program took so far, where the system tells it."""
    path = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", path.read_text()) if path.is_file() else None
    return {"most_memory_mb": int(found[1]) // 1024} if found else {}


def train(config: dict, workdir: str | Path, resume: bool = True) -> Run:
    """Train what `config` (plain dicts) says in `workdir`, or go on with it; give the finished, fitted run.

    Raises:
        InputError: something in the config, the data or the folder is wrong.
        Stopped: SIGTERM or Ctrl-C came, and the run has saved itself.
    """
    workdir = Path(workdir)
    builders.check_config(config)
    sharding.check_batch_size(config["data"]["batch_size"])
    source, validation = (builders.build_source(config["data"], split) for split in ("train", "validation"))
    # Mistakes in the config come to light before the folder is touched.
    model = builders.build_model(config["model"], source.image_shape)
    check_support(model, source.take(np.arange(min(8, len(source))))["image"])
    builders.build_optimizer(config["optimizer"], config["train"]["num_steps"])
    prepare_workdir(config, workdir, resume)
    with checkpoint.open_manager(workdir) as manager:
        loop = Loop(config, workdir, source, validation)
        finished = loop.start(manager)
        write_json(workdir / "config.json", config)
        if finished:
            return loop.as_run(checkpoint.read_fitted(workdir, loop.num_steps))
        main_process = jax.process_index() == 0
        tensorboard = config["logging"]["tensorboard"]
        writer = MetricWriter(workdir, int(loop.state.step), loop.num_steps, tensorboard, active=main_process)
        try:
            with stop_signals() as received:
                loop.run(manager, writer, received)
        finally:
            writer.close()
        # From here on a signal ends the program at once: all is saved, and what follows is done again.
        manager.wait_until_finished()
        print("counting codes on the training images", flush=True)
        fitted = loop.fit(config["eval"]["final_fit_images"])
        checkpoint.save_fitted(workdir, loop.num_steps, fitted)
        return loop.as_run(fitted)
