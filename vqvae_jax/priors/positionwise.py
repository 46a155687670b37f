"""Codes are drawn independently, each with the frequencies of training images at its own position and codebook."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def fit(code_counts: Float[Array, "h w g k"]) -> Float[Array, "h w g k"]:
    """Give the log probability of every code from its count, smoothed by adding one."""
    counts = code_counts + 1
    return jnp.log(counts / jnp.sum(counts, axis=-1, keepdims=True))


def log_prob(
    variables: Float[Array, "h w g k"], codes: Int[Array | np.ndarray, "b h w g"], label=None
) -> Float[Array, "b"]:
    """Sum the log probabilities of an image's codes, in nats; the label tells nothing."""
    places = jnp.indices(variables.shape[:-1], sparse=True)
    return jnp.sum(variables[(*(place[None] for place in places), codes)], axis=(1, 2, 3))
