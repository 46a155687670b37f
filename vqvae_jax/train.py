"""The training loop: from a config to a finished run on disk, to be stopped and continued at any step."""

import contextlib
import json
import math
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqvae_jax import api, builders, checkpoint, sharding
from vqvae_jax.errors import InputError
from vqvae_jax.metric_writer import Clock, MetricWriter, write_json
from vqvae_jax.stages import Stage, as_run, class_frequencies, image_stage, prior_stage
from vqvae_jax.train_step import TrainState, init_state, make_train_step

# What may differ when a run goes on: it changes no parameter.
NEUTRAL = ("data.data_dir", "data.num_threads", "data.max_bad_images", "data.eval_crop", "logging.")
NEUTRAL += ("train.log_every", "train.eval_every", "train.checkpoint_every", "prior.log_every")
NEUTRAL += ("eval.batch_size", "eval.validation_images", "eval.test_images", "eval.fit_images")
NEUTRAL += ("eval.samples", "eval.subset_images", "eval.subset_samples")
# What the progress line shows: the first of these that the family has.
PROGRESS = {
    "bits_per_dim": "bits/dim",
    "distortion": "bits/dim of distortion",
    "half_squared_error": "half squared error",
    "relaxed_bits_per_dim": "relaxed bits/dim (no bound)",
    "bits_per_code": "bits per code",
}


class Stopped(Exception):  # noqa: N818 - it is no error
    """A run was asked to stop and has saved itself."""


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """Turn nested dicts into one with dotted keys."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def differences(old: dict, new: dict, stage: str = checkpoint.MODEL) -> list[str]:
    """Name the keys in which two configs would compute something else up to a stage, with both values."""
    old, new = (flatten(json.loads(json.dumps(config))) for config in (old, new))
    found = []
    for key in sorted(old.keys() | new.keys()):
        section = key.partition(".")[0]
        schedule = "prior.optimizer.schedule" if section == checkpoint.PRIOR else "optimizer.schedule"
        longer = key == f"{section}.num_steps" and old.get(schedule) == "constant"
        later = section == checkpoint.PRIOR and stage == checkpoint.MODEL
        if old.get(key) != new.get(key) and not (longer or later or key.startswith(NEUTRAL)):
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


def _check_same(old: dict, new: dict, workdir: Path, stage: str = checkpoint.MODEL) -> None:
    changed = differences(old, new, stage)
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
    """One stage of training in progress; `run` takes it to its last step."""

    def __init__(self, stage: Stage, config: dict, workdir: Path):
        """Nothing is computed yet."""
        self.stage, self.config, self.workdir = stage, config, workdir
        self.mesh = sharding.make_mesh()
        self.train_step = make_train_step(stage.model, stage.optimizer, config["seed"], self.mesh)
        self.init = partial(init_state, stage.model, stage.optimizer, config["seed"], mesh=self.mesh)
        self.state: TrainState

    def start(self, manager) -> None:
        """Restore the newest checkpoint or draw the first state."""
        first = self.stage.first(next(self.stage.batches(range(0, 1))))
        step = manager.latest_step()
        if step is None:
            self.state = self.init(first)
            return
        self._check_resumable(checkpoint.read_meta(manager, step), step)
        everywhere = sharding.replicated(self.mesh)
        abstract = jax.eval_shape(self.init, first)
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), abstract)
        self.state = checkpoint.restore_state(manager, step, abstract)
        print(f"{self.stage.name}: resumed at step {step}", flush=True)

    def _check_resumable(self, meta: dict, step: int) -> None:
        section, last = _section(self.stage.name), self.stage.options["num_steps"]
        _check_same(meta["config"], self.config, self.workdir, self.stage.name)
        if step > last or (step == last < meta["config"][section]["num_steps"]):
            raise InputError(
                f"the run in {self.workdir} is already at step {step}: {section}.num_steps={last} cannot shorten it"
            )
        if meta["data_fingerprint"] != self.stage.meta["data_fingerprint"]:
            raise InputError(
                f"the training images are not those of the run in {self.workdir}: "
                "name the old data with --data_dir, or start over with --resume=never"
            )
        if meta.get("model_fingerprint") != self.stage.meta.get("model_fingerprint"):
            raise InputError(
                f"the prior in {self.workdir} is of another image model: delete "
                f"{checkpoint.folder(self.workdir, checkpoint.PRIOR)}, and it is trained again"
            )

    def run(self, manager, writer: MetricWriter, received: list) -> None:
        """Train to the last step, saving it and others; raises `Stopped` after saving if a signal was received."""
        every, last, size = self.stage.options, self.stage.options["num_steps"], self._batch_size()
        start, saved = int(self.state.step), int(self.state.step)
        pending = None  # metrics of the step before, fetched when the next one is already running
        clock = Clock(size)
        if self._is_enough(manager, start):
            return
        for step, batch in enumerate(self.stage.batches(range(start, last)), start + 1):
            self.state, metrics = self.train_step(self.state, batch)
            if pending is not None:
                self._finish(*pending, writer, clock)
            pending = (step, metrics)
            due = [step % every[key] == 0 or step == last for key in ("eval_every", "checkpoint_every")]
            if not (any(due) or received):
                continue
            self._finish(*pending, writer, clock)
            pending = None
            with clock.paused():
                score = self.stage.validate(self.state, step, writer) if due[0] else None
                if (due[1] or received) and step > saved:
                    checkpoint.save(manager, self.state, {**self.stage.meta, "step": step}, score)
                    saved = step
            if received:
                manager.wait_until_finished()
                raise Stopped(f"stopped at step {step} and saved; the same command goes on from there")
            if self._is_enough(manager, step):
                return

    def _batch_size(self) -> int:
        return self.config["prior" if self.stage.name == checkpoint.PRIOR else "data"]["batch_size"]

    def _is_enough(self, manager, step: int) -> bool:
        """Tell whether validations have not become better for as many times as the stage has patience."""
        patience = self.stage.options["patience"]
        if not (patience and step):
            return False
        manager.wait_until_finished()
        best = manager.best_step()
        return best is not None and step - best >= patience * self.stage.options["eval_every"]

    def _finish(self, step: int, metrics, writer: MetricWriter, clock: Clock) -> None:
        values = {key: float(value) for key, value in jax.device_get(metrics).items()}
        _check_finite(step, values)
        clock.step()
        text = None
        if step % self.stage.options["log_every"] == 0 or step == self.stage.options["num_steps"]:
            speed = clock.images_per_second()
            writer.scalars(step, {f"train/{key}": value for key, value in values.items()} | clock.times(speed))
            shown = next(key for key in PROGRESS if key in values)
            text = f"{values[shown]:.3f} {PROGRESS[shown]}, {speed:.0f} images/s"
        writer.progress(step, text)


def _section(stage: str) -> str:
    """The config's section that says how long a stage is."""
    return "train" if stage == checkpoint.MODEL else "prior"


def run_stage(stage: Stage, config: dict, workdir: Path, count: Callable[[TrainState], dict]) -> TrainState:
    """Take a stage to its end, unless it is there, and give the last state.

    What `count` then counts is saved with the last checkpoint, or with the best where validations give a score.
    """
    folder, last = checkpoint.folder(workdir, stage.name), stage.options["num_steps"]
    with checkpoint.open_manager(workdir, stage.name) as manager:
        loop = Loop(stage, config, workdir)
        loop.start(manager)
        write_json(workdir / "config.json", config)
        ended = checkpoint.finished_step(folder)
        then = ended and checkpoint.read_meta(manager, ended)["config"][_section(stage.name)]["num_steps"]
        if then == last:
            return loop.state
        record = workdir if stage.name == checkpoint.MODEL else workdir / stage.name
        record.mkdir(exist_ok=True)
        board, main_process = config["logging"]["tensorboard"], jax.process_index() == 0
        title = f"train {stage.name}"
        first = int(loop.state.step)
        writer = MetricWriter(record, first, last, tensorboard=board, active=main_process, title=title)
        try:
            with stop_signals() as received:
                loop.run(manager, writer, received)
        finally:
            writer.close()
        # From here on a signal ends the program at once: all is saved, and what follows is done again.
        manager.wait_until_finished()
        best = manager.best_step()
        kept = manager.latest_step() if best is None else best
        if not checkpoint.is_fitted(folder, kept):
            checkpoint.save_fitted(folder, kept, count(loop.state))
        return loop.state


def train(config: dict, workdir: str | Path, resume: bool = True) -> api.Run:
    """Train what `config` (plain dicts) says in `workdir`, or go on with it; give the finished, fitted run.

    First the image model, then, if `config` names one, the prior over its codes.

    Raises:
        InputError: something in the config, the data or the folder is wrong.
        Stopped: SIGTERM or Ctrl-C came, and the run has saved itself.
    """
    workdir = Path(workdir)
    builders.check_config(config)
    sharding.check_batch_size(config["data"]["batch_size"])
    source, validation = (builders.build_source(config["data"], split) for split in ("train", "validation"))
    # Mistakes in the config come to light before the folder is touched.
    stage = image_stage(config, source, validation)
    api.check_support(stage.model, source.take(np.arange(min(8, len(source))))["image"])
    if config["prior"]["name"] != "none":
        _check_prior(config, stage.model, len(source.class_names))
    prepare_workdir(config, workdir, resume)

    def count(state: TrainState) -> dict:
        print("counting on the training images", flush=True)
        return as_run(stage.model, state, stage.meta).fit(source, config["eval"]["final_fit_images"])

    run_stage(stage, config, workdir, count)
    if config["prior"]["name"] != "none":
        run = api.load_model(workdir, config["data"]["data_dir"])
        run_stage(
            prior_stage(config, source, validation, run, workdir), config, workdir, lambda _: class_frequencies(source)
        )
    return api.load(workdir, config["data"]["data_dir"])


def _check_prior(config: dict, model, num_classes: int) -> None:
    """Raise InputError unless a prior can be trained on the codes of a model."""
    builders.check(
        hasattr(model, "several_codes_bound"),
        f"the family {config['model']['family']} has no codes of which a prior could be learned: set prior.name=none",
    )
    sharding.check_batch_size(config["prior"]["batch_size"])
    builders.build_prior(config["prior"], (1, 1, model.num_codebooks), model.codebook_size, num_classes)
