"""P(x | decoder output) over the integers 0..255: each distribution sums to one, in float32, with no epsilon.

A likelihood takes `params`, what the decoder gives, [B,H,W,channels(C)], completed by `complete` with what the
likelihood learns or fits for itself, and the uint8 image [B,H,W,C].
"""

import abc
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, UInt8

from vqvae_jax.errors import InputError

Images = UInt8[Array | np.ndarray, "b h w c"]
# A wider or narrower scale than e^±7 of half the range is a uniform or a single level for 8-bit images.
MAX_LOG_SCALE = 7.0
# A Gaussian wider than e^2 of it is uniform, too, and the masses of wider ones would be differences of equal numbers.
MAX_LOG_SCALE_GAUSSIAN = 2.0
FARTHEST_MEAN = 1e5  # levels
# Decoders start at a scale of e^-2 of half the range, about 17 levels.
FIRST_LOG_SCALE = -2.0
LEVELS = np.arange(256, dtype=np.uint8)


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


def _logistic_masses(mean: Float[Array, "*s"], log_scale: Float[Array, "*s"]) -> Float[Array, "*s 256"]:
    """Give the masses of all levels under a logistic, by the same product as `logistic_log_prob`."""
    levels = LEVELS.reshape(*(1,) * mean.ndim, -1)
    inverse, centred = jnp.exp(-log_scale)[..., None], levels.astype(jnp.float32) - mean[..., None]
    below, above = jax.nn.sigmoid((centred + 0.5) * inverse), jax.nn.sigmoid(-(centred - 0.5) * inverse)
    return jnp.where(levels == 0, below, jnp.where(levels == 255, above, below * above * -jnp.expm1(-inverse)))


def gaussian_log_prob(
    x: Integer[Array | np.ndarray, "*s"], mean: Float[Array, "*s"], scale: Float[Array, "*s"]
) -> Float[Array, "*s"]:
    """Give the log mass of [x - 1/2, x + 1/2] under a Gaussian, tails included; all in 8-bit levels."""
    # Farther out, half a level is lost in float32.
    centred = x.astype(jnp.float32) - jnp.clip(mean, -FARTHEST_MEAN, FARTHEST_MEAN)
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


def _checked(params, expected: int, what: str):
    """Give `params` in float32; InputError unless they have the number of channels that a likelihood expects."""
    if params.shape[-1] != expected:
        raise InputError(f"{what} needs {expected} channels of parameters for such images, not {params.shape[-1]}")
    return params.astype(jnp.float32)


def _log_scale(raw, largest=MAX_LOG_SCALE):
    """The log of a scale in levels, from the decoder's."""
    return jnp.clip(raw + FIRST_LOG_SCALE, -MAX_LOG_SCALE, largest) + math.log(127.5)


class _Likelihood(abc.ABC):
    """What most have in common: nothing but the decoder's output, and training by the likelihood itself."""

    def init(self, c: int) -> dict:
        """Give the first values of parameters that are learned beside the decoder; {} if there are none."""
        return {}

    def complete(self, raw: Float[Array, "b h w r"], own: dict) -> Float[Array, "b h w p"]:
        """Join what the decoder gives and the likelihood's own parameters."""
        return raw

    def support(self) -> np.ndarray:
        """The levels that have a probability."""
        return np.arange(256)

    @abc.abstractmethod
    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel, in nats."""

    def pmf(self, params: Float[Array, "b h w p"], image: Images, channel: int) -> Float[Array, "b h w 256"]:
        """Give the probabilities of all levels of one channel, given the earlier channels of `image`."""
        image = jnp.asarray(image)

        def of_level(level):
            return self.log_prob(params, image.at[..., channel].set(level))[..., channel]

        return jnp.exp(jnp.moveaxis(jax.vmap(of_level)(LEVELS), 0, -1))


@dataclass(frozen=True)
class Softmax(_Likelihood):
    """A free categorical distribution over the 256 levels of every sub-pixel (the paper's decoder)."""

    def channels(self, c: int) -> int:
        """The decoder's output channels for images of `c` channels."""
        return 256 * c

    def _logits(self, params):
        return jax.nn.log_softmax(params.astype(jnp.float32).reshape(*params.shape[:-1], -1, 256), axis=-1)

    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel, in nats."""
        logits = self._logits(_checked(params, self.channels(image.shape[-1]), "a softmax"))
        return jnp.take_along_axis(logits, image.astype(jnp.int32)[..., None], axis=-1)[..., 0]

    def mean(self, params: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        """The expected level, 0 to 255."""
        return jnp.matmul(jnp.exp(self._logits(params)), jnp.arange(256.0), precision="highest")


@dataclass(frozen=True)
class Logistic(_Likelihood):
    """A discretised logistic per sub-pixel: the decoder gives mean and log scale (Kingma et al. 2016)."""

    def channels(self, c: int) -> int:
        """The decoder's output channels for images of `c` channels."""
        return 2 * c

    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel, in nats."""
        params = _checked(params, self.channels(image.shape[-1]), "a logistic")
        mean, log_scale = jnp.split(params, 2, axis=-1)
        return logistic_log_prob(image, to_levels(mean), _log_scale(log_scale))

    def mean(self, params: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        """The centre of the distribution, in levels."""
        return to_levels(jnp.split(params.astype(jnp.float32), 2, axis=-1)[0])


@dataclass(frozen=True)
class LogisticMixture(_Likelihood):
    """Logistics mixed per pixel, the mean of a channel moved by the earlier ones (PixelCNN++, Salimans et al. 2017).

    A channel's distribution is that given the earlier channels of its pixel; their product is that of the pixel.
    """

    components: int = 3

    def channels(self, c: int) -> int:
        """The decoder's output channels for images of `c` channels: weights, means, scales, couplings."""
        return self.components * (1 + 2 * c + c * (c - 1) // 2)

    def _split(self, params, c):
        """Give log weights [...,M], means on the decoder's scale and log scales [...,C,M], couplings [...,C,C,M]."""
        parts = params.reshape(*params.shape[:-1], -1, self.components)
        weights, means, scales = jax.nn.log_softmax(parts[..., 0, :]), parts[..., 1 : 1 + c, :], parts[..., 1 + c :, :]
        below = jnp.tanh(scales[..., c:, :])
        rows, columns = np.tril_indices(c, -1)
        couplings = jnp.zeros((*parts.shape[:-2], c, c, self.components)).at[..., rows, columns, :].set(below)
        return weights, means, _log_scale(scales[..., :c, :]), couplings

    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel given the earlier channels of its pixel, in nats."""
        joints = [joint for *_, joint in self._channels(params, image)]
        return jnp.stack([jax.nn.logsumexp(joint, axis=-1) for joint in joints], axis=-1)

    def pmf(self, params: Float[Array, "b h w p"], image: Images, channel: int) -> Float[Array, "b h w 256"]:
        """Give the probabilities of all levels of one channel, given the earlier channels of `image`."""
        weights, centres, log_scales, _ = next(itertools.islice(self._channels(params, image), channel, None))
        of_components = zip(*(jnp.moveaxis(x, -1, 0) for x in (jnp.exp(weights), centres, log_scales)), strict=True)
        return jnp.asarray(sum(weight[..., None] * _logistic_masses(*logistic) for weight, *logistic in of_components))

    def _channels(self, params, image):
        """Give of every channel in turn, given the earlier ones, its components' parameters and its level under each.

        Log weights, centres and log scales in levels, and log p(component, level), all [...,M].
        """
        c = image.shape[-1]
        params = _checked(params, self.channels(c), "a mixture of logistics")
        weights, means, log_scales, couplings = self._split(params, c)
        unit = ((image.astype(jnp.float32) - 127.5) / 127.5)[..., None]
        for n in range(c):
            centres = to_levels(means[..., n, :] + jnp.sum(couplings[..., n, :n, :] * unit[..., :n, :], axis=-2))
            level = jnp.broadcast_to(image[..., n, None], centres.shape)
            joint = weights + logistic_log_prob(level, centres, log_scales[..., n, :])
            yield weights, centres, log_scales[..., n, :], joint
            # What the channels so far say of the component; normalised again, so that no error adds up.
            weights = jax.nn.log_softmax(joint)

    def mean(self, params: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        """The centre of every component, couplings followed, weighted: in levels."""
        per_component = params.shape[-1] // self.components  # 1 + 2c + c(c - 1)/2
        c = (math.isqrt(9 + 8 * (per_component - 1)) - 3) // 2
        weights, means, _, couplings = self._split(params.astype(jnp.float32), c)
        centres = []
        for n in range(c):
            moved = means[..., n, :] + sum(couplings[..., n, m, :] * centres[m] for m in range(n))
            centres.append(jnp.clip(moved, -1, 1))
        return to_levels(jnp.sum(jnp.stack(centres, axis=-2) * jnp.exp(weights)[..., None, :], axis=-1))


@dataclass(frozen=True)
class Gaussian(_Likelihood):
    """A discretised Gaussian; `shared` says how far its learned scale reaches: "global", "channel" or "pixel"."""

    shared: str

    def init(self, c: int) -> dict:
        """Give the log scale, on the decoder's scale: [1] or [C]; {} if the decoder gives it."""
        size = {"global": 1, "channel": c}
        return {"log_scale": jnp.zeros(size[self.shared])} if self.shared in size else {}

    def channels(self, c: int) -> int:
        """The decoder's output channels for images of `c` channels."""
        return 2 * c if self.shared == "pixel" else c

    def complete(self, raw: Float[Array, "b h w r"], own: dict) -> Float[Array, "b h w p"]:
        """Add the log scale to the decoder's means, unless it is there."""
        if self.shared == "pixel":
            return raw
        raw = raw.astype(jnp.float32)
        log_scale = jnp.broadcast_to(own["log_scale"].astype(jnp.float32).reshape(1, 1, 1, -1), raw.shape)
        return jnp.concatenate([raw, log_scale], axis=-1)

    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel, in nats."""
        mean, log_scale = jnp.split(_checked(params, 2 * image.shape[-1], "a Gaussian"), 2, axis=-1)
        return gaussian_log_prob(image, to_levels(mean), jnp.exp(_log_scale(log_scale, MAX_LOG_SCALE_GAUSSIAN)))

    def mean(self, params: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        """The centre of the distribution, in levels."""
        return to_levels(jnp.split(params.astype(jnp.float32), 2, axis=-1)[0])


@dataclass(frozen=True)
class Bernoulli(_Likelihood):
    """Black or white per sub-pixel, levels 0 and 255; any other level has no probability (log: -inf)."""

    def channels(self, c: int) -> int:
        """The decoder's output channels for images of `c` channels."""
        return c

    def support(self) -> np.ndarray:
        """The levels that have a probability."""
        return np.array([0, 255])

    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel, in nats."""
        logit = _checked(params, image.shape[-1], "a Bernoulli")
        of_either = jax.nn.log_sigmoid(jnp.where(image == 255, logit, -logit))
        return jnp.where((image == 0) | (image == 255), of_either, -jnp.inf)

    def mean(self, params: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        """The expected level, 0 to 255."""
        return 255 * jax.nn.sigmoid(params.astype(jnp.float32))


@dataclass(frozen=True)
class SquaredError(_Likelihood):
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

    def complete(self, raw: Float[Array, "b h w c"], own: dict) -> Float[Array, "b h w p"]:
        """Add the fitted scale [C] to what the decoder gives; NaN, so no likelihood, as long as there is none."""
        raw = raw.astype(jnp.float32)
        scale = own.get("scale", jnp.full(raw.shape[-1], jnp.nan, jnp.float32))
        return jnp.concatenate([raw, jnp.broadcast_to(scale.reshape(1, 1, 1, -1), raw.shape)], axis=-1)

    def log_prob(self, params: Float[Array, "b h w p"], image: Images) -> Float[Array, "b h w c"]:
        """Log probability of every sub-pixel, in nats."""
        mean, scale = jnp.split(_checked(params, 2 * image.shape[-1], "a Gaussian"), 2, axis=-1)
        return gaussian_log_prob(image, to_levels(mean), scale)

    def mean(self, params: Float[Array, "b h w p"]) -> Float[Array, "b h w c"]:
        """The centre of the distribution, in levels."""
        return to_levels(jnp.split(params, 2, axis=-1)[0])


@runtime_checkable
class Likelihood(Protocol):
    """What a family asks of a likelihood."""

    def init(self, c: int) -> dict: ...

    def channels(self, c: int) -> int: ...

    def complete(self, raw: Array, own: dict) -> Array: ...

    def support(self) -> np.ndarray: ...

    def log_prob(self, params: Array, image: Images) -> Array: ...

    def pmf(self, params: Array, image: Images, channel: int) -> Array: ...

    def mean(self, params: Array) -> Array: ...


LIKELIHOODS: dict[str, Callable[[], Likelihood]] = {
    "softmax": Softmax,
    "logistic": Logistic,
    "logistic_mixture": LogisticMixture,
    "gaussian_global": partial(Gaussian, "global"),
    "gaussian_channel": partial(Gaussian, "channel"),
    "gaussian_pixel": partial(Gaussian, "pixel"),
    "bernoulli": Bernoulli,
    "squared_error": SquaredError,
}
