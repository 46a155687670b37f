"""The training step: one jitted function from state and batch to state and metrics."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from vqvae_jax import sharding


class TrainState(NamedTuple):
    """All that changes in training: `step` int32 scalar, `params`, `model_state` (EMA codebook or ()), `opt_state`."""

    step: Array
    params: Any
    model_state: Any
    opt_state: Any


def init_state(model, optimizer: optax.GradientTransformation, seed: int, first, mesh) -> TrainState:
    """Draw the first state, replicated over `mesh`; `first` is what `model.init` needs of the first batch."""

    def init(first):
        variables = model.init(jax.random.fold_in(jax.random.key(seed), 0), first)
        opt_state = optimizer.init(variables["params"])
        return TrainState(jnp.zeros((), jnp.int32), variables["params"], variables["state"], opt_state)

    return jax.jit(init, out_shardings=sharding.replicated(mesh))(first)


def make_train_step(model, optimizer: optax.GradientTransformation, seed: int, mesh):
    """Build `(state, batch) -> (state, metrics)`: jitted, the state donated, its key `fold_in(seed, step + 1)`.

    Metrics are float32 scalars; `loss_nats` and `gradient_norm` are finite as long as training is sound.
    """

    def step(state: TrainState, batch):
        key = jax.random.fold_in(jax.random.key(seed), state.step + 1)

        def loss(params):
            return model.loss({"params": params, "state": state.model_state}, batch, key)

        gradients, (model_state, metrics) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {**metrics, "gradient_norm": optax.global_norm(gradients)}
        return TrainState(state.step + 1, params, model_state, opt_state), metrics

    everywhere = sharding.replicated(mesh)
    return jax.jit(step, donate_argnums=0, out_shardings=(everywhere, everywhere))
