"""Every code is as probable as any other: log K nats a latent, the rate of stage 1 (sec. 3.2)."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def fit(code_counts: Float[Array, "h w g k"]) -> Float[Array, "g k"]:
    """Give the log probability of every code: the same for all."""
    num_codebooks, codebook_size = code_counts.shape[2:]
    return jnp.full((num_codebooks, codebook_size), -math.log(codebook_size))


def log_prob(
    variables: Float[Array, "g k"], codes: Int[Array | np.ndarray, "b h w g"], label=None
) -> Float[Array, "b"]:
    """Sum the log probabilities of an image's codes, in nats; the label tells nothing."""
    num_codebooks = variables.shape[0]
    return jnp.sum(variables[jnp.arange(num_codebooks).reshape(1, 1, 1, -1), codes], axis=(1, 2, 3))
