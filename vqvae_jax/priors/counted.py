"""Priors that draw every code by itself, with the frequencies of training images, smoothed by adding one."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqvae_jax.errors import InputError
from vqvae_jax.priors.interface import Codes, Labels

# From counts [h,w,G,K] to those that stand for a position.
COUNTED: dict[str, Callable[[Array], Array]] = {
    "uniform": lambda counts: jnp.zeros_like(counts[:1, :1]),  # log K nats a code, the rate of stage 1 (sec. 3.2)
    "unigram": lambda counts: jnp.sum(counts, axis=(0, 1), keepdims=True),
    "positionwise": lambda counts: counts,
}


@dataclass(frozen=True)
class Counted:
    """A prior of the table COUNTED; its variables are log probabilities, [h,w,G,K] or [1,1,G,K] for any field."""

    name: str
    codebook_sizes: tuple[int, ...]

    num_classes = 0
    label_dropout = 0.0

    def fit(self, code_counts: Float[Array, "h w g k"] | None = None) -> Float[Array, "h2 w2 g k"]:
        """Give the variables from counts of codes; without counts those of a uniform prior."""
        shape = (1, 1, len(self.codebook_sizes), max(self.codebook_sizes))
        counts = jnp.zeros(shape) if code_counts is None else COUNTED[self.name](jnp.asarray(code_counts))
        known = jnp.arange(shape[-1]).reshape(1, 1, 1, -1) < jnp.asarray(self.codebook_sizes).reshape(1, 1, -1, 1)
        counts = jnp.where(known, counts + 1, 0)
        return jnp.log(counts / jnp.sum(counts, axis=-1, keepdims=True))

    def table(self, variables: Float[Array, "h2 w2 g k"], field: tuple[int, ...]) -> Float[Array, "h w g k"]:
        """Give the log probabilities at every position; InputError if these were counted on a field of another size."""
        (h, w), (h2, w2) = field[:2], variables.shape[:2]
        if self.name == "positionwise" and (h, w) != (h2, w2):
            raise InputError(f"the positionwise prior was counted on {h2}x{w2} codes, these images have {h}x{w}")
        return jnp.broadcast_to(variables, (*field, variables.shape[-1]))

    def log_prob(self, variables, codes: Codes, label: Labels = None) -> Float[Array, "b"]:
        """Sum the log probabilities of an image's codes, in nats; the label tells nothing."""
        places = jnp.indices(codes.shape[1:], sparse=True)
        table = self.table(variables, codes.shape[1:])
        return jnp.sum(table[(*(place[None] for place in places), codes)], axis=(1, 2, 3))

    def start(self, variables, batch_size: int, label: Labels = None) -> tuple:
        return ()

    def row(self, variables, cache, codes: Codes, i: Int[Array, ""] | int) -> tuple:
        return ()

    def step(self, variables, cache, codes: Codes, n: Int[Array, ""] | int) -> tuple[Float[Array, "b k"], tuple]:
        """Give the log probabilities of code `n`."""
        table = self.table(variables, codes.shape[1:])
        one = jax.lax.dynamic_index_in_dim(table.reshape(-1, table.shape[-1]), n, keepdims=True)
        return jnp.broadcast_to(one, (len(codes), table.shape[-1])), ()
