"""Codes are drawn independently with the frequencies of training images, one table per codebook."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vqvae_jax.priors.uniform import log_prob

__all__ = ["fit", "log_prob"]


def fit(code_counts: Float[Array, "h w g k"]) -> Float[Array, "g k"]:
    """Give the log probability of every code from its count over all positions, smoothed by adding one."""
    counts = jnp.sum(code_counts, axis=(0, 1)) + 1
    return jnp.log(counts / jnp.sum(counts, axis=-1, keepdims=True))
