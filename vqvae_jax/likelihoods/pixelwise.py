"""Distributions of every pixel by itself, given z: the decoder's features of a pixel are all they look at.

Each sums to one over the integers 0..255, in float32, with no epsilon. All know their pixels in a single step.
"""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer, Key

from vqvae_jax.errors import InputError
from vqvae_jax.likelihoods.discretised import LEVELS, gaussian_log_prob, logistic_log_prob, logistic_masses, to_levels
from vqvae_jax.likelihoods.interface import Features, Images, PerSubPixel, PixelModel, Places, StepPixels

# A wider or narrower scale than e^±7 of half the range is a uniform or a single level for 8-bit images.
MAX_LOG_SCALE = 7.0
# A Gaussian wider than e^2 of it is uniform, too, and the masses of wider ones would be differences of equal numbers.
MAX_LOG_SCALE_GAUSSIAN = 2.0
# Decoders start at a scale of e^-2 of half the range, about 17 levels.
FIRST_LOG_SCALE = -2.0
# Of the vectors of levels: features of deviation 1 then give logits that tell levels apart from the first step on.
EMBEDDING_SCALE = 3.0
# Any scale gives a valid bound; below a tenth of a level nothing is gained, and 0 would divide by zero.
MIN_FITTED_SCALE = 0.1

Pixels = Integer[Array | np.ndarray, "*s c"]
Distribution = Float[Array, "*s q"]  # what a pixel's distribution is made of, float32
PerChannel = Float[Array, "*s c"]


def _log_scale(raw, largest=MAX_LOG_SCALE):
    """The log of a scale in levels, from the decoder's."""
    return jnp.clip(raw + FIRST_LOG_SCALE, -MAX_LOG_SCALE, largest) + math.log(127.5)


class Pixelwise(abc.ABC):
    """What all have in common; a distribution says what `log_prob_of` and `mean_of` are for any leading axes."""

    levels: tuple[int, ...] = tuple(range(256))
    objective = "distortion"
    head: "Pixelwise | None" = None
    per_channel = 1  # features

    @abc.abstractmethod
    def log_prob_of(self, q: Distribution, pixels: Pixels) -> PerChannel:
        """Log probability of every channel given the earlier ones of its pixel, in nats."""

    def mean_of(self, q: Distribution) -> PerChannel:
        """The centre of the distribution, in levels; here of one whose first half are means."""
        return to_levels(jnp.split(q, 2, axis=-1)[0])

    def distribution(self, params: dict, features: Float[Array, "*s f"]) -> Distribution:
        """Join the decoder's features and the likelihood's own parameters, [1] or [C] each."""
        own = (jnp.broadcast_to(values.astype(jnp.float32), features.shape) for values in params.values())
        return jnp.concatenate([features.astype(jnp.float32), *own], axis=-1)

    def features(self, channels: int) -> int:
        return self.per_channel * channels

    def init(self, key: Key[Array, ""], channels: int) -> dict:
        return {}

    def loss(self, params: dict, features: Features, images: Images) -> PerSubPixel:
        return -self.log_prob(params, features, images)

    def log_prob(self, params: dict, features: Features, images: Images) -> PerSubPixel:
        expected = self.features(images.shape[-1])
        if features.shape[-1] != expected:
            raise InputError(f"{type(self).__name__} needs {expected} features a pixel, not {features.shape[-1]}")
        return self.log_prob_of(self.distribution(params, features), images)

    def log_prob_of_head(self, features: Features, images: Images) -> PerSubPixel:
        raise InputError(f"{type(self).__name__} sees no pixels, so it has no head without them")

    def mean(self, params: dict, features: Features) -> PerSubPixel:
        return self.mean_of(self.distribution(params, features))

    def fit_sums(self, params: dict, features: Features, images: Images, mask) -> dict:
        return {}

    def fit(self, sums: dict) -> dict:
        return {}

    def order(self, height: int, width: int) -> Int[np.ndarray, "1 p 2"]:
        """All pixels in one step."""
        return np.stack(np.divmod(np.arange(height * width, dtype=np.int32), width), axis=-1)[None]

    def at(self, params: dict, features: Features, images: Images, places: Places) -> Float[Array, "b p q"]:
        return self.distribution(params, features[:, places[:, 0], places[:, 1]])

    def pmf(self, q: Float[Array, "b p q"], pixels: StepPixels, channel: int) -> Float[Array, "b p 256"]:
        pixels = jnp.asarray(pixels)

        def of_level(level):
            return self.log_prob_of(q, pixels.at[..., channel].set(level))[..., channel]

        return jnp.exp(jnp.moveaxis(jax.vmap(of_level)(LEVELS), 0, -1))


@dataclass(frozen=True)
class Softmax(Pixelwise):
    """A free categorical distribution over the 256 levels of every sub-pixel (the paper's decoder)."""

    per_channel = 256

    def log_prob_of(self, q: Distribution, pixels: Pixels) -> PerChannel:
        logits = q.reshape(*q.shape[:-1], -1, 256)
        logits = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        # As sums over levels, which XLA makes without another array of all of them, nor one in the gradient.
        chosen = jnp.where(pixels[..., None] == LEVELS.reshape(*(1,) * pixels.ndim, 256), logits, 0)
        return jnp.sum(chosen, axis=-1) - jnp.log(jnp.sum(jnp.exp(logits), axis=-1))

    def mean_of(self, q: Distribution) -> PerChannel:
        probabilities = jax.nn.softmax(q.reshape(*q.shape[:-1], -1, 256), axis=-1)
        return jnp.matmul(probabilities, jnp.arange(256.0), precision="highest")


@dataclass(frozen=True)
class SoftmaxEmbedding(Softmax):
    """A softmax over the 256 levels whose logits are products of `rank` features with a learned vector of every level.

    The vectors start as cosines, the slow ones largest, so that near levels begin alike: a free softmax has to learn
    that they are.
    """

    rank: int = 32

    def features(self, channels: int) -> int:
        return self.rank * channels

    def init(self, key: Key[Array, ""], channels: int) -> dict:
        n = np.arange(1, self.rank + 1)
        cosines = np.cos(np.pi / 256 * (np.arange(256)[:, None] + 0.5) * n)
        return {"embedding": jnp.asarray(EMBEDDING_SCALE * cosines / np.sqrt(n), jnp.float32)}

    def distribution(self, params: dict, features: Float[Array, "*s f"]) -> Distribution:
        split = features.astype(jnp.float32).reshape(*features.shape[:-1], -1, self.rank)
        logits = jnp.matmul(split, params["embedding"].T, precision="highest")
        return logits.reshape(*features.shape[:-1], -1)


@dataclass(frozen=True)
class Logistic(Pixelwise):
    """A discretised logistic per sub-pixel: the decoder gives mean and log scale (Kingma et al. 2016)."""

    per_channel = 2

    def log_prob_of(self, q: Distribution, pixels: Pixels) -> PerChannel:
        mean, log_scale = jnp.split(q, 2, axis=-1)
        return logistic_log_prob(pixels, to_levels(mean), _log_scale(log_scale))


@dataclass(frozen=True)
class LogisticMixture(Pixelwise):
    """Logistics mixed per pixel, the mean of a channel moved by the earlier ones (PixelCNN++, Salimans et al. 2017).

    A channel's distribution is that given the earlier channels of its pixel; their product is that of the pixel.
    """

    components: int = 3

    def features(self, channels: int) -> int:
        """Weights, means, scales, couplings of every component."""
        return self.components * (1 + 2 * channels + channels * (channels - 1) // 2)

    def _split(self, q, c):
        """Give log weights [...,M], means on the decoder's scale and log scales [...,C,M], couplings [...,C,C,M]."""
        parts = q.reshape(*q.shape[:-1], -1, self.components)
        weights, means, scales = jax.nn.log_softmax(parts[..., 0, :]), parts[..., 1 : 1 + c, :], parts[..., 1 + c :, :]
        below = jnp.tanh(scales[..., c:, :])
        rows, columns = np.tril_indices(c, -1)
        couplings = jnp.zeros((*parts.shape[:-2], c, c, self.components)).at[..., rows, columns, :].set(below)
        return weights, means, _log_scale(scales[..., :c, :]), couplings

    def log_prob_of(self, q: Distribution, pixels: Pixels) -> PerChannel:
        return jnp.stack([jax.nn.logsumexp(joint, axis=-1) for *_, joint in self._channels(q, pixels)], axis=-1)

    def pmf(self, q: Float[Array, "b p q"], pixels: StepPixels, channel: int) -> Float[Array, "b p 256"]:
        """Probabilities of all levels of one channel, as one product of sigmoids for each component."""
        weights, centres, log_scales, _ = list(self._channels(q, jnp.asarray(pixels)))[channel]
        of_components = zip(*(jnp.moveaxis(x, -1, 0) for x in (jnp.exp(weights), centres, log_scales)), strict=True)
        return jnp.asarray(sum(weight[..., None] * logistic_masses(*logistic) for weight, *logistic in of_components))

    def _channels(self, q, pixels):
        """Give of every channel in turn, given the earlier ones, its components' parameters and its level under each.

        Log weights, centres and log scales in levels, and log p(component, level), all [...,M].
        """
        c = pixels.shape[-1]
        weights, means, log_scales, couplings = self._split(q, c)
        unit = ((pixels.astype(jnp.float32) - 127.5) / 127.5)[..., None]
        for n in range(c):
            centres = to_levels(means[..., n, :] + jnp.sum(couplings[..., n, :n, :] * unit[..., :n, :], axis=-2))
            level = jnp.broadcast_to(pixels[..., n, None], centres.shape)
            joint = weights + logistic_log_prob(level, centres, log_scales[..., n, :])
            yield weights, centres, log_scales[..., n, :], joint
            # What the channels so far say of the component; normalised again, so that no error adds up.
            weights = jax.nn.log_softmax(joint)

    def mean_of(self, q: Distribution) -> PerChannel:
        """The centre of every component, couplings followed, weighted."""
        c = next(c for c in range(1, q.shape[-1]) if self.features(c) == q.shape[-1])
        weights, means, _, couplings = self._split(q, c)
        centres = []
        for n in range(c):
            moved = means[..., n, :] + sum(couplings[..., n, m, :] * centres[m] for m in range(n))
            centres.append(jnp.clip(moved, -1, 1))
        return to_levels(jnp.sum(jnp.stack(centres, axis=-2) * jnp.exp(weights)[..., None, :], axis=-1))


@dataclass(frozen=True)
class Gaussian(Pixelwise):
    """A discretised Gaussian; `shared` says how far its learned scale reaches: "global", "channel" or "pixel"."""

    shared: str

    @property
    def per_channel(self) -> int:
        return 2 if self.shared == "pixel" else 1

    def init(self, key: Key[Array, ""], channels: int) -> dict:
        """Give the log scale, on the decoder's scale: [1] or [C]; {} if the decoder gives it."""
        size = {"global": 1, "channel": channels}
        return {"log_scale": jnp.zeros(size[self.shared])} if self.shared in size else {}

    def log_prob_of(self, q: Distribution, pixels: Pixels) -> PerChannel:
        mean, log_scale = jnp.split(q, 2, axis=-1)
        return gaussian_log_prob(pixels, to_levels(mean), jnp.exp(_log_scale(log_scale, MAX_LOG_SCALE_GAUSSIAN)))


@dataclass(frozen=True)
class Bernoulli(Pixelwise):
    """Black or white per sub-pixel, levels 0 and 255; any other level has no probability (log: -inf)."""

    levels = (0, 255)

    def log_prob_of(self, q: Distribution, pixels: Pixels) -> PerChannel:
        of_either = jax.nn.log_sigmoid(jnp.where(pixels == 255, q, -q))
        return jnp.where((pixels == 0) | (pixels == 255), of_either, -jnp.inf)

    def mean_of(self, q: Distribution) -> PerChannel:
        return 255 * jax.nn.sigmoid(q)


@dataclass(frozen=True)
class SquaredError(Pixelwise):
    """Squared error in training; measured as a discretised Gaussian, one scale a channel, fitted to training images.

    Its distribution is [mean, scale], the scale in levels: NaN, so no likelihood, until it is fitted.
    """

    objective = "half_squared_error"

    def loss(self, params: dict, features: Features, images: Images) -> PerSubPixel:
        """Half the squared error on the decoder's scale: a Gaussian's nats but for the constant."""
        return 0.5 * (features.astype(jnp.float32) - (images.astype(jnp.float32) - 127.5) / 127.5) ** 2

    def distribution(self, params: dict, features: Float[Array, "*s f"]) -> Distribution:
        return super().distribution(params or {"scale": jnp.full(1, jnp.nan)}, features)

    def log_prob_of(self, q: Distribution, pixels: Pixels) -> PerChannel:
        mean, scale = jnp.split(q, 2, axis=-1)
        return gaussian_log_prob(pixels, to_levels(mean), scale)

    def fit_sums(self, params: dict, features: Features, images: Images, mask) -> dict:
        squares = (to_levels(features.astype(jnp.float32)) - images.astype(jnp.float32)) ** 2
        kept = squares * mask.astype(jnp.float32).reshape(-1, 1, 1, 1)
        return {"squares": jnp.sum(jnp.mean(kept, axis=(1, 2)), axis=0), "num_images": jnp.sum(mask)}

    def fit(self, sums: dict) -> dict:
        """Give the scale [C] in levels of the best Gaussian."""
        return {"scale": jnp.maximum(jnp.sqrt(sums["squares"] / sums["num_images"]), MIN_FITTED_SCALE)}


PIXELWISE: dict[str, Callable[[], PixelModel]] = {
    "softmax": Softmax,
    "softmax_embedding": SoftmaxEmbedding,
    "logistic": Logistic,
    "logistic_mixture": LogisticMixture,
    "gaussian_global": partial(Gaussian, "global"),
    "gaussian_channel": partial(Gaussian, "channel"),
    "gaussian_pixel": partial(Gaussian, "pixel"),
    "bernoulli": Bernoulli,
    "squared_error": SquaredError,
}
