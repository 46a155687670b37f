"""The training step: one jitted function from state and batch to state and metrics; and what a stage of training is."""

import abc
import zlib
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from vqvae_jax import __version__
from vqvae_jax.data.splits import Source
from vqvae_jax.errors import InputError, at_least
from vqvae_jax.training import sharding
from vqvae_jax.training.checkpoint import MODEL
from vqvae_jax.training.record import MetricWriter


class TrainState(NamedTuple):
    """All that changes in training: `step` int32 scalar, `params`, `model_state` (EMA codebook or ()), `opt_state`.

    `average` is a moving average of `params` and `model_state`, {"params", "model_state"}, or () where none is kept.
    """

    step: Array
    params: Any
    model_state: Any
    opt_state: Any
    average: Any = ()

    def saved(self) -> dict:
        """Give what a checkpoint holds."""
        return {key: value for key, value in self._asdict().items() if key != "average" or value}

    def measured(self) -> dict:
        """Give the variables that are measured and used: the average if one is kept."""
        return self.average or {"params": self.params, "model_state": self.model_state}


@dataclass(frozen=True)
class TrainOptions:
    """The config's section `train`, in steps."""

    num_steps: int
    log_every: int
    eval_every: int
    checkpoint_every: int
    average_decay: float
    patience = 0  # validations without a better score after which training ends; 0: never

    def __post_init__(self):
        check_average_decay("train", self.average_decay)
        at_least("train", **{key: (value, 1) for key, value in vars(self).items() if key != "average_decay"})


def check_average_decay(section: str, decay: float) -> None:
    """Raise InputError unless it is a share below 1."""
    if not 0 <= decay < 1:
        raise InputError(f"{section}.average_decay is {decay}: it must be at least 0 (no average) and below 1")


@dataclass(frozen=True)
class EvalOptions:
    """The config's section `eval`, in images (0: all), and `samples` and `subset_samples` in draws (0: none)."""

    batch_size: int
    validation_images: int
    test_images: int
    fit_images: int
    final_fit_images: int
    samples: int
    subset_images: int
    subset_samples: int

    def __post_init__(self):
        at_least("eval", **{key: (value, int(key == "batch_size")) for key, value in vars(self).items()})


# The metrics in which a step is seen to fail, in causal order, and what they say of; then come codebook and parameters.
LOOKED_AT = {"commitment_loss": " (of the encoder's output)", "rate": "", "distortion": " (of the decoder's output)"}
LOOKED_AT |= {"half_squared_error": " (of the decoder's output)", "loss_nats": "", "gradient_norm": ""}
# The first step that was not finite, int32 scalar, 0 if there is none; which tensor, and its value.
Unsound = namedtuple("Unsound", "step where value")


class Stage(abc.ABC):
    """What the training loop has to know of a stage."""

    name: str  # of its checkpoints and its random numbers
    section: str  # of the config, which says how long it is
    record: str  # the folder in the run's for its record
    options: Any  # TrainOptions, or others that have these
    model: Any  # has `init(key, first)` and `loss(variables, batch, key)`
    optimizer: optax.GradientTransformation

    def __init__(self, config: dict, source: Source, **meta):
        """Say in `meta` what checkpoints tell beside the config, the version and which data they are of."""
        self.config, self.source = config, source
        self.meta = {"config": config, "data_fingerprint": source.fingerprint(), "version": __version__, **meta}

    @abc.abstractmethod
    def batches(self, steps: range) -> Iterator[dict]:
        """Give the batches of a range of steps, on the devices."""

    def first(self, batch: dict) -> Any:
        """Pick of the first batch what `model.init` needs."""
        return batch

    @abc.abstractmethod
    def validate(self, state: TrainState, writer: MetricWriter) -> float | None:
        """Measure a state and record it; give a score, of which the best is kept, or None."""

    @abc.abstractmethod
    def count(self, state: TrainState) -> dict:
        """Count what is saved with the finished stage."""


def step_key(seed: int, stage: str, step) -> Array:
    """The random key of a step, which no other stage shares."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), zlib.crc32(stage.encode())), step)


def init_state(
    model, optimizer: optax.GradientTransformation, seed: int, first, stage: str = MODEL, averages: bool = False
) -> TrainState:
    """Draw the first state, on every device; `first` is what `model.init` needs of the first batch."""

    def init(first):
        variables = model.init(step_key(seed, stage, 0), first)
        opt_state = optimizer.init(variables["params"])
        state = TrainState(jnp.zeros((), jnp.int32), variables["params"], variables["state"], opt_state)
        return state._replace(average=state.measured() if averages else ())

    return jax.jit(init, out_shardings=sharding.placed())(first)


def make_train_step(
    model, optimizer: optax.GradientTransformation, seed: int, stage: str = MODEL, average_decay: float = 0.0
):
    """Build `(state, batch) -> (state, metrics)`: jitted, the state donated, its key of seed, stage and step alone.

    Metrics are float32 scalars; `loss_nats` and `gradient_norm` are finite as long as training is sound. The decay of
    an average, if the state has one, rises with the steps to `average_decay`: the first draws are soon forgotten.
    """

    def step(state: TrainState, batch):
        key = step_key(seed, stage, state.step + 1)

        def loss(params):
            return model.loss({"params": params, "state": state.model_state}, batch, key)

        gradients, (model_state, metrics) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "gradient_norm": optax.global_norm(gradients)}
        new = TrainState(state.step + 1, params, model_state, opt_state)
        if average_decay:
            decay = jnp.minimum(average_decay, (1.0 + state.step) / (10.0 + state.step))
            new = new._replace(average=optax.incremental_update(new.measured(), state.average, 1 - decay))
        return new, metrics

    return jax.jit(step, donate_argnums=0, out_shardings=sharding.placed())


def make_watch():
    """Build a jitted `(found, state, metrics) -> found` that keeps the first step that was not finite."""

    def watch(found: Unsound, state: TrainState, metrics: dict):
        arrays = [jnp.where(jnp.all(jnp.isfinite(x)), 0.0, jnp.nan) for x in jax.tree.leaves(_learned(state))]
        values = jnp.stack([*(metrics[name] for name in LOOKED_AT if name in metrics), *arrays])
        first = (found.step == 0) & ~jnp.all(jnp.isfinite(values))
        where = jnp.argmin(jnp.isfinite(values)).astype(jnp.int32)
        return jax.tree.map(partial(jnp.where, first), Unsound(state.step, where, values[where]), found)

    none = Unsound(np.int32(0), np.int32(0), np.float32(0))
    return jax.jit(watch, out_shardings=sharding.placed()), jax.device_put(none, sharding.placed())


def _learned(state: TrainState) -> dict:
    return {"codebook": state.model_state, "params": state.params}


def check_sound(unsound: Unsound, state: TrainState, metrics: dict, section: str) -> None:
    """Raise InputError if a step so far was not finite: name the first tensor, and the config key to look at."""
    unsound = jax.device_get(unsound)
    if not unsound.step:
        return
    forward = [name for name in LOOKED_AT if name in metrics]
    learned = jax.tree_util.tree_leaves_with_path(_learned(state))
    names = [*forward, *(jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in learned)]
    name, about = names[unsound.where], LOOKED_AT.get(names[unsound.where], "")
    optimizer = "optimizer" if section == "train" else f"{section}.optimizer"
    hint = f"lower {optimizer}.learning_rate and start over, or look at the data"
    if unsound.step == 1 and unsound.where < len(forward):  # nothing was learned yet
        hint = "look at model.pixel_mean, model.pixel_std and the data"
    raise InputError(
        f"{name} is {unsound.value}{about} at step {unsound.step}: training stopped, the last checkpoint is from "
        f"before; {hint}"
    )
