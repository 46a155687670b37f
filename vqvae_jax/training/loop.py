"""The training loop: from a config to a finished run on disk, to be stopped and continued at any step."""

import contextlib
import json
import signal
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqvae_jax import registry
from vqvae_jax.errors import InputError, at_least
from vqvae_jax.memory import check_fits
from vqvae_jax.run import Run, check_support, load, load_model
from vqvae_jax.training import checkpoint, processes, sharding
from vqvae_jax.training.checkpoint import MODEL, PRIOR
from vqvae_jax.training.image_stage import ImageStage
from vqvae_jax.training.lock import held
from vqvae_jax.training.prior_stage import PriorOptions, PriorStage, check_prior
from vqvae_jax.training.record import LoggingOptions, MetricWriter, most_memory, write_json
from vqvae_jax.training.step import (
    EvalOptions,
    Stage,
    TrainOptions,
    check_sound,
    init_state,
    make_train_step,
    make_watch,
)

SECTIONS = {"train": TrainOptions, "prior": PriorOptions, "eval": EvalOptions, "logging": LoggingOptions}
# What may differ when a run goes on: it changes no parameter, and not which of them is best.
NEUTRAL = ("data.data_dir", "data.num_", "data.max_bad_images", "logging.", "prior.log_every")
NEUTRAL += ("train.log_every", "train.eval_every", "train.checkpoint_every")
NEUTRAL += ("eval.batch_size", "eval.test_images", "eval.fit_images")
NEUTRAL += ("eval.samples", "eval.subset_images", "eval.subset_samples")
OF_PRIOR = ("prior.", "eval.validation_images")  # changes nothing of the image model
# Training may become longer where the learning rate does not depend on its end.
SCHEDULES = {"train.num_steps": "optimizer.schedule", "prior.num_steps": "prior.optimizer.schedule"}
IN_FLIGHT = 2  # steps: the device never waits for the host, nor do batches pile up
# What the progress line shows: the first of these that the family has.
PROGRESS = {
    "bits_per_dim": "bits/dim",
    "distortion": "bits/dim of distortion",
    "half_squared_error": "half squared error",
    "relaxed_bits_per_dim": "relaxed bits/dim (no bound)",
    "bits_per_code": "bits per code",
}


def check_config(config: dict) -> None:
    """Raise InputError unless all sections are there, and those of options have their keys, with values in range."""
    registry.check_keys(config, {"seed", "data", "model", "optimizer", *SECTIONS}, "config")
    at_least("config", seed=(config["seed"], 0))
    if config["seed"] >= 2**32:
        raise InputError(f"config.seed is {config['seed']}: it must be below {2**32}")
    registry.check_data(config["data"])
    for section, options in SECTIONS.items():
        registry.build(options, config[section], section)


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run was asked to stop and has saved itself."""


def flatten(config: dict) -> dict:
    """Give a config as JSON has it, with dotted keys."""
    leaves = jax.tree_util.tree_leaves_with_path(json.loads(json.dumps(config)), is_leaf=lambda x: type(x) is not dict)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def differences(old: dict, new: dict, stage: str = MODEL) -> list[str]:
    """Name the keys in which two configs would compute something else up to a stage, with both values."""
    old, new, found = flatten(old), flatten(new), []
    allowed = NEUTRAL + (OF_PRIOR if stage == MODEL else ())
    for key in sorted(old.keys() | new.keys()):
        longer = old.get(SCHEDULES.get(key)) == "constant"
        if old.get(key) != new.get(key) and not (longer or key.startswith(allowed)):
            found.append(f"{key} ({old.get(key)} there, {new.get(key)} now)")
    return found


@contextlib.contextmanager
def claimed(config: dict, workdir: Path, resume: bool) -> Iterator[None]:
    """Hold the run's folder, made ready for a config; one that isn't to be resumed is put aside.

    Of several processes the first one holds it, before the others look.
    """
    is_first = jax.process_index() == 0
    if is_first and not resume and workdir.exists():
        with held(workdir):
            print(f"the old run is now {checkpoint.put_aside(workdir, workdir.name)}")
    with held(workdir) if is_first else contextlib.nullcontext():
        processes.barrier("folder")
        prepare_workdir(config, workdir)
        yield


def prepare_workdir(config: dict, workdir: Path) -> None:
    """Put aside damaged checkpoints in the run's folder; InputError if it holds a run of another config or version."""
    stages = (MODEL,) if config["prior"]["name"] == "none" else (MODEL, PRIOR)
    for stage in stages:
        checkpoint.put_damaged_aside(workdir, stage)
    found = [(stage, checkpoint.newest(workdir, stage)) for stage in stages]
    saved = [(stage, checkpoint.read_meta(path)["config"]) for stage, path in found if path]
    with contextlib.suppress(OSError, ValueError):  # missing or damaged; it is written again
        saved.append((MODEL, checkpoint.with_all_options(json.loads((workdir / "config.json").read_text()))))
    for stage, old in saved:
        if changed := differences(old, config, stage):
            raise InputError(
                f"{workdir} holds a run of another config: {', '.join(changed)}; "
                "choose another --workdir, or start over with --resume=never"
            )


@contextlib.contextmanager
def stop_signals():
    """Turn SIGTERM and the first Ctrl-C into a flag that the loop reads; a second Ctrl-C interrupts at once."""
    received = []

    def handle(number, frame):
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_resumable(stage: Stage, path: Path, workdir: Path) -> None:
    """Raise InputError unless a stage can go on from a checkpoint."""
    meta, step, section, last = checkpoint.read_meta(path), int(path.name), stage.section, stage.options.num_steps
    if step > last or (step == last < meta["config"][section]["num_steps"]):
        raise InputError(
            f"the run in {workdir} is already at step {step}: {section}.num_steps={last} cannot shorten it"
        )
    if meta["data_fingerprint"] != stage.meta["data_fingerprint"]:
        raise InputError(
            f"the training images are not those of the run in {workdir}: "
            "name the old data with --data_dir, or start over with --resume=never"
        )
    if meta.get("model_fingerprint") != stage.meta.get("model_fingerprint"):
        raise InputError(
            f"the prior in {workdir} is of another image model: move {path.parent} away, and it is trained again"
        )


class Loop:
    """One stage of training in progress; `run` takes it to its last step."""

    def __init__(self, stage: Stage, seed: int, path: Path | None, manager):
        """Restore the checkpoint `path` or draw the first state."""
        self.stage, self.manager = stage, manager
        what = stage.model, stage.optimizer, seed
        self.train_step = make_train_step(*what, stage.name, average_decay=stage.options.average_decay)
        self.watch, self.unsound = make_watch()
        self.timed_from: tuple[int, float] | None = None  # step and moment; none before the first step, which compiles
        init = partial(init_state, *what, stage=stage.name, averages=stage.options.average_decay > 0)
        batch = next(stage.batches(range(1)))
        self.batch_size, first = len(batch["label"]), stage.first(batch)
        abstract = sharding.everywhere(jax.eval_shape(init, first))
        kept = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((abstract, abstract.params)))
        check_fits(f"parameters, gradients and optimizer of the {stage.name}", kept)
        if path is None:
            self.state = init(first)
        else:
            self.state = abstract._replace(**checkpoint.restore_state(path, abstract.saved()))
            print(f"{stage.name}: resumed at step {path.name}", flush=True)

    def run(self, writer: MetricWriter, received: list) -> None:
        """Train to the last step, saving it and others; raises `Stopped` after saving if a signal was received."""
        options, start = self.stage.options, int(self.state.step)
        # Steps that may not be done yet, their metrics, what was unsound up to them, and whether a process is to stop.
        running: deque[tuple[int, dict, Any, Any]] = deque()
        stop = False  # which all processes say at the same step
        if self._is_enough(start):
            return
        for step, batch in enumerate(self.stage.batches(range(start, options.num_steps)), start + 1):
            self.state, metrics = self.train_step(self.state, batch)
            self.unsound = self.watch(self.unsound, self.state, metrics)
            running.append((step, metrics, self.unsound, processes.in_any(bool(received))))
            evaluate, save = (self._is_due(step, every) for every in (options.eval_every, options.checkpoint_every))
            stop = bool(received) and jax.process_count() == 1
            while len(running) > IN_FLIGHT * (not (evaluate or save or stop)):
                done, metrics, unsound, asked = running.popleft()
                self._finish(done, metrics, unsound, writer)
                stop = stop or bool(asked)
            if not (evaluate or save or stop):
                continue
            check_sound(self.unsound, self.state, metrics, self.stage.section)
            score = self.stage.validate(self.state, writer) if evaluate else None
            stop = stop or bool(processes.in_any(bool(received)))
            if save or stop:
                checkpoint.save(self.manager, self.state.saved(), {**self.stage.meta, "step": step}, score)
            if stop:
                self.manager.wait_until_finished()
                raise Stopped(f"stopped at step {step} and saved; the same command goes on from there")
            if self._is_enough(step):
                return
            self.timed_from = (step, time.perf_counter())

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.stage.options.num_steps

    def _is_enough(self, step: int) -> bool:
        """Tell whether validations have not become better for as many times as the stage has patience."""
        options = self.stage.options
        if not (options.patience and step):
            return False
        self.manager.wait_until_finished()
        best = self.manager.best_step()
        return best is not None and step - best >= options.patience * options.eval_every

    def _finish(self, step: int, metrics: dict, unsound: Any, writer: MetricWriter) -> None:
        """Wait for a step; if it is time to, check all so far, fetch the metrics of this one and record them."""
        jax.block_until_ready(metrics)
        text, now = None, time.perf_counter()
        logged = self._is_due(step, self.stage.options.log_every)
        if logged:
            check_sound(unsound, self.state, metrics, self.stage.section)
            values = {key: float(value) for key, value in jax.device_get(metrics).items()}
            shown = next(key for key in PROGRESS if key in values)
            text, about = f"{values[shown]:.3f} {PROGRESS[shown]}", most_memory() | {"unix_time": round(time.time(), 3)}
            if self.timed_from is not None:
                since, start = self.timed_from
                speed = (step - since) * self.batch_size / (now - start)
                text, about = f"{text}, {speed:.0f} images/s", {"images_per_second": round(speed, 1)} | about
            writer.scalars(step, {f"train/{key}": value for key, value in values.items()} | about)
        if logged or self.timed_from is None:
            self.timed_from = (step, now)
        writer.progress(step, text)


def run_stage(stage: Stage, config: dict, workdir: Path) -> None:
    """Take a stage to its end, unless it is there.

    What it counts then is saved with the last checkpoint, or with the best where validations give a score.
    """
    last = stage.options.num_steps
    path, finished = (checkpoint.newest(workdir, stage.name, item) for item in ("", "fitted"))
    if path is not None:
        check_resumable(stage, path, workdir)
    write_json(workdir / "config.json", config)
    if finished and checkpoint.read_meta(finished)["config"][stage.section]["num_steps"] == last:
        print(f"{stage.name}: finished at step {finished.name} already", flush=True)
        return
    with checkpoint.open_manager(workdir, stage.name) as manager:
        loop = Loop(stage, config["seed"], path, manager)
        place, about = workdir / stage.record, (f"train {stage.name}", int(loop.state.step), last)
        writer = MetricWriter(place, *about, tensorboard=config["logging"]["tensorboard"])
        with contextlib.closing(writer), stop_signals() as received:
            loop.run(writer, received)
        # From here on a signal ends the program at once: all is saved, and what follows is done again.
        manager.wait_until_finished()
        best = manager.best_step()
        kept = checkpoint.folder(workdir, stage.name) / str(manager.latest_step() if best is None else best)
        if not (kept / "fitted").is_dir():
            checkpoint.save_fitted(kept, stage.count(loop.state))
    processes.barrier("stage")


def train(config: dict, workdir: str | Path, resume: bool = True) -> Run:
    """Train what `config` (plain dicts) says in `workdir`, or go on with it; give the finished, fitted run.

    First the image model, then, if `config` names one, the prior over its codes.

    Raises:
        InputError: something in the config, the data or the folder is wrong.
        Stopped: SIGTERM or Ctrl-C came, and the run has saved itself.
    """
    # Mistakes in the config come to light before the folder is touched.
    check_config(config)
    with processes.first_alone("data"):  # which it may have to prepare
        source, validation = (registry.build_source(config["data"], split) for split in ("train", "validation"))
    image = ImageStage(config, source, validation)
    check_support(image.model, source.take(np.arange(min(8, len(source))))["image"])
    has_prior, workdir = config["prior"]["name"] != "none", Path(workdir)
    if has_prior:
        check_prior(config, image.model, source)
    with claimed(config, workdir, resume):
        run_stage(image, config, workdir)
        if has_prior:
            run_stage(PriorStage(config, source, validation, load_model(workdir), workdir), config, workdir)
    run = load(workdir)
    run.meta["config"] = config  # its options of evaluation may be newer than the checkpoint's
    return run
