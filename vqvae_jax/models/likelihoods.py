"""P(x | decoder output) over the integers 0..255: each distribution sums to one, in float32, with no epsilon.

A likelihood takes `params` [B,H,W,channels(C)] as the decoder gives them and the uint8 image [B,H,W,C].
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

Images = UInt8[Array | np.ndarray, "b h w c"]
# A wider or narrower scale than e^±7 of half the range is a uniform or a single level for 8-bit images.
MAX_LOG_SCALE = 7.0


def log_interval(log_at_most, log_at_least, log_mass, x):
    """Choose the log mass of level x: P(X <= x) at 0, P(X >= x) at 255, else that of the interval."""
    return jnp.where(x == 0, log_at_most, jnp.where(x == 255, log_at_least, log_mass))


def logistic_log_prob(
    x: Integer[Array | np.ndarray, "*s"], mean: Float[Array, "*s"], log_scale: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Give the log mass of [x - 1/2, x + 1/2] under a logistic, tails included; all in 8-bit levels.

    With a, b the standardised ends, s(b) - s(a) = s(b) s(-a) (1 - e^(a-b)): a sum of logarithms that
    loses no digits anywhere (Salimans et al. 2017, eq. 2, which needed an epsilon).
    """
    inverse = jnp.exp(-log_scale)
    centred = x.astype(jnp.float32) - mean
    below = jax.nn.log_sigmoid((centred + 0.5) * inverse)  # log P(X <= x)
    above = jax.nn.log_sigmoid(-(centred - 0.5) * inverse)  # log P(X >= x)
    return log_interval(below, above, below + above + jnp.log(-jnp.expm1(-inverse)), x)


def gaussian_log_prob(
    x: Integer[Array | np.ndarray, "*s"], mean: Float[Array, "*s"], scale: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Give the log mass of [x - 1/2, x + 1/2] under a Gaussian, tails included; all in 8-bit levels."""
    centred = x.astype(jnp.float32) - mean
    low, high = (centred - 0.5) / scale, (centred + 0.5) / scale
    # Symmetric: work in the left tail, where both logarithms of the distribution function are exact.
    left_low, left_high = jnp.where(centred > 0, -high, low), jnp.where(centred > 0, -low, high)
    log_low, log_high = jax.scipy.stats.norm.logcdf(left_low), jax.scipy.stats.norm.logcdf(left_high)
    mass = log_high + jnp.log(-jnp.expm1(log_low - log_high))
    return log_interval(jax.scipy.stats.norm.logcdf(high), jax.scipy.stats.norm.logcdf(-low), mass, x)


def to_levels(unit):
    """Map the decoder's scale, about -1 to 1, to 8-bit levels."""
    return 127.5 + 127.5 * unit


def round_to_uint8(levels: Float[Array, "*s"]) -> UInt8[Array, "*s"]:
    """Round to the nearest 8-bit level; what lies outside 0..255 goes to the ends."""
    return jnp.clip(jnp.round(levels), 0, 255).astype(jnp.uint8)


@dataclass(frozen=True)
class Softmax:
    """A free categorical distribution over the 256 levels of every sub-pixel (the paper's decoder)."""

    def channels(self, c: int) -> int:
        """The decoder's output channels for images of `c` channels."""
        return 256 * c

    def _logits(self, params):
        params = params.astype(jnp.float32)
        return jax.nn.log_softmax(params.reshape(*params.shape[:-1], -1, 256), axis=-1)

    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel, in nats."""
        index = image.astype(jnp.int32)[..., None]
        return jnp.take_along_axis(self._logits(params), index, axis=-1)[..., 0]

    def mean(self, params: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        """The expected level, 0 to 255."""
        return jnp.exp(self._logits(params)) @ jnp.arange(256.0)


@dataclass(frozen=True)
class Logistic:
    """A discretised logistic per sub-pixel: the decoder gives mean and log scale (Kingma et al. 2016)."""

    def channels(self, c: int) -> int:
        """The decoder's output channels for images of `c` channels."""
        return 2 * c

    def _split(self, params):
        mean, log_scale = jnp.split(params.astype(jnp.float32), 2, axis=-1)
        # The decoder starts at a scale of e^-2 of half the range, about 17 levels.
        log_scale = jnp.clip(log_scale - 2, -MAX_LOG_SCALE, MAX_LOG_SCALE) + math.log(127.5)
        return to_levels(mean), log_scale

    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel, in nats."""
        return logistic_log_prob(image, *self._split(params))

    def mean(self, params: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        """The centre of the distribution, in levels."""
        return self._split(params)[0]


@dataclass(frozen=True)
class SquaredError:
    """Squared error in training; measured as a discretised Gaussian, one scale a channel, fitted to training images.

    Its `params` are [mean, scale] along channels, once `complete` has added the scale, in levels.
    """

    def channels(self, c: int) -> int:
        """The decoder's output channels for images of `c` channels."""
        return c

    def loss(self, raw: Float[Array, "b h w c"], image: Images) -> Float[Array, "b h w c"]:
        """Half the squared error on the decoder's scale: a Gaussian's nats but for the constant."""
        return 0.5 * (raw.astype(jnp.float32) - (image.astype(jnp.float32) - 127.5) / 127.5) ** 2

    def squared_levels(self, raw: Float[Array, "b h w c"], image: Images) -> Float[Array, "b h w c"]:
        """Squared error in levels, whose mean over images is the square of the best scale."""
        return (to_levels(raw.astype(jnp.float32)) - image.astype(jnp.float32)) ** 2

    def complete(self, raw: Float[Array, "b h w c"], scale: Float[Array, "c"]) -> Float[Array, "b h w p"]:
        """Add the fitted scale to what the decoder gives."""
        raw = raw.astype(jnp.float32)
        return jnp.concatenate([raw, jnp.broadcast_to(scale.reshape(1, 1, 1, -1), raw.shape)], axis=-1)

    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel, in nats."""
        mean, scale = jnp.split(params, 2, axis=-1)
        return gaussian_log_prob(image, to_levels(mean), scale)

    def mean(self, params: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        """The centre of the distribution, in levels."""
        return to_levels(jnp.split(params, 2, axis=-1)[0])


LIKELIHOODS = {"softmax": Softmax, "logistic": Logistic, "squared_error": SquaredError}
