"""A codebook as a moving average of the vectors that each code stands for (van den Oord et al. 2017, app. A.1).

Shapes are those of `nearest`: vectors [*b,G,D], a codebook [G,K,D].
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.errors import InputError, at_least
from vqvae_jax.quantizers.interface import Indices
from vqvae_jax.quantizers.nearest import Split, count_codes, draw_vectors, sum_by_code
from vqvae_jax.quantizers.starts import STARTS

# A new code counts as this share of a uniform use: it follows its first vectors quickly, and is soon replaced if
# there are none.
NEW_CODE_SHARE = 0.1


class Ema(NamedTuple):
    """Running sums behind an EMA codebook: `count` float32 [G,K] and `total` float32 [G,K,D] (app. A.1)."""

    count: Array
    total: Array


def ema_init(key: Key[Array, ""], z_e: Split, codebook_size: int, start: str = "data") -> Ema:
    """Start the codebook from the first batch (`STARTS`), with the small count of a new code."""
    vectors = STARTS[start](key, z_e, codebook_size)
    # A dtype, lest the first step's state differ in type from the next ones and the step be traced twice.
    count = jnp.full(vectors.shape[:2], NEW_CODE_SHARE * math.prod(z_e.shape[:-2]) / codebook_size, jnp.float32)
    return Ema(count=count, total=vectors * count[..., None])


def ema_codebook(ema: Ema, epsilon: float) -> Float[Array, "g k d"]:
    """Divide the sums by the counts (app. A.1), these Laplace-smoothed by `epsilon` (the authors' library, Sonnet)."""
    n = jnp.sum(ema.count, axis=-1, keepdims=True)
    smoothed = (ema.count + epsilon) / (n + ema.count.shape[-1] * epsilon) * n
    return ema.total / smoothed[..., None]


def ema_update(ema: Ema, z_e: Split, indices: Indices, decay: float) -> Ema:
    """Move counts and sums towards those of this batch by 1 - `decay` (app. A.1, eq. 6 and 7)."""
    size, z_e = ema.count.shape[-1], jax.lax.stop_gradient(z_e)
    batch = Ema(count=count_codes(indices, size), total=sum_by_code(z_e, indices, size))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, batch)


def revive(key: Key[Array, ""], ema: Ema, z_e: Split, threshold: float) -> Ema:
    """Put codes that are used less than `threshold` of a uniform share at random vectors of the batch.

    A revived code gets the count of a new code *and* the sum that belongs to it, so that the next update
    continues from its new place. `threshold` is a share, 0 (never) to NEW_CODE_SHARE.
    """
    size = ema.count.shape[-1]
    share = math.prod(z_e.shape[:-2]) / size
    fresh = draw_vectors(key, jax.lax.stop_gradient(z_e), size)
    dead = ema.count < threshold * share
    total = jnp.where(dead[..., None], fresh * NEW_CODE_SHARE * share, ema.total)
    return Ema(count=jnp.where(dead, NEW_CODE_SHARE * share, ema.count), total=total)


def check_ema(ema_decay: float, ema_epsilon: float, revival_threshold: float) -> None:
    """Raise InputError unless these options of a quantizer are in range."""
    at_least("quantizer", ema_decay=(ema_decay, 0))
    if not 0 < ema_epsilon < math.inf:
        raise InputError(f"quantizer.ema_epsilon is {ema_epsilon}: it must be above 0, as the count of a code may be 0")
    if ema_decay >= 1:
        raise InputError(f"quantizer.ema_decay is {ema_decay}: it must be below 1")
    if not 0 <= revival_threshold < NEW_CODE_SHARE:
        allowed = f"0 (never) to below {NEW_CODE_SHARE}, where a code counts as new"
        raise InputError(f"quantizer.revival_threshold is {revival_threshold}: it must be {allowed}")
