"""Masses of the 8-bit levels 0..255 under continuous distributions: each sums to one, in float32, with no epsilon."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

FARTHEST_MEAN = 1e5  # levels
LEVELS = np.arange(256, dtype=np.uint8)
Levels = Integer[Array | np.ndarray, "*s"]


def mass_of_level(at_most, at_least, mass, x):
    """Choose the mass of level x, or its log: P(X <= x) at 0, P(X >= x) at 255, else that of the interval."""
    return jnp.where(x == 0, at_most, jnp.where(x == 255, at_least, mass))


def logistic_log_prob(x: Levels, mean: Float[Array, "*s"], log_scale: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Give the log mass of [x - 1/2, x + 1/2] under a logistic, tails included; all in 8-bit levels.

    With a, b the standardised ends, s(b) - s(a) = s(b) s(-a) (1 - e^(a-b)): a sum of logarithms that
    loses no digits anywhere (Salimans et al. 2017, eq. 2, which needed an epsilon).
    """
    inverse = jnp.exp(-log_scale)
    centred = x.astype(jnp.float32) - mean
    below = jax.nn.log_sigmoid((centred + 0.5) * inverse)  # log P(X <= x)
    above = jax.nn.log_sigmoid(-(centred - 0.5) * inverse)  # log P(X >= x)
    return mass_of_level(below, above, below + above + jnp.log(-jnp.expm1(-inverse)), x)


def logistic_masses(mean: Float[Array, "*s"], log_scale: Float[Array, "*s"]) -> Float[Array, "*s 256"]:
    """Give the masses of all levels under a logistic, by the same product as `logistic_log_prob`."""
    levels = LEVELS.reshape(*(1,) * mean.ndim, -1)
    inverse, centred = jnp.exp(-log_scale)[..., None], levels.astype(jnp.float32) - mean[..., None]
    below, above = jax.nn.sigmoid((centred + 0.5) * inverse), jax.nn.sigmoid(-(centred - 0.5) * inverse)
    return mass_of_level(below, above, below * above * -jnp.expm1(-inverse), levels)


def gaussian_log_prob(x: Levels, mean: Float[Array, "*s"], scale: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Give the log mass of [x - 1/2, x + 1/2] under a Gaussian, tails included; all in 8-bit levels."""
    # Farther out, half a level is lost in float32.
    centred = x.astype(jnp.float32) - jnp.clip(mean, -FARTHEST_MEAN, FARTHEST_MEAN)
    low, high = (centred - 0.5) / scale, (centred + 0.5) / scale
    # Symmetric: work in the left tail, where both logarithms of the distribution function are exact.
    left_low, left_high = jnp.where(centred > 0, -high, low), jnp.where(centred > 0, -low, high)
    log_low, log_high = jax.scipy.stats.norm.logcdf(left_low), jax.scipy.stats.norm.logcdf(left_high)
    mass = log_high + jnp.log(-jnp.expm1(log_low - log_high))
    return mass_of_level(jax.scipy.stats.norm.logcdf(high), jax.scipy.stats.norm.logcdf(-low), mass, x)


def to_levels(unit):
    """Map the decoder's scale, about -1 to 1, to 8-bit levels."""
    return 127.5 + 127.5 * unit


def round_to_uint8(levels: Float[Array, "*s"]) -> UInt8[Array, "*s"]:
    """Round to the nearest 8-bit level; what lies outside 0..255 goes to the ends."""
    return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8)
