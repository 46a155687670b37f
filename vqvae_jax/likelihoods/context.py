"""P(x | z) that also sees earlier pixels: a mixture of logistics for each pixel, from its causal neighbours and z.

Every layer is a product with a matrix at each pixel by itself, so a pixel costs the same whether all are known, as in
training, or one step after the other, as in sampling and coding.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vqvae_jax.errors import InputError, at_least
from vqvae_jax.likelihoods.interface import Features, Images, PerSubPixel, Places
from vqvae_jax.likelihoods.pixelwise import LogisticMixture

# Of what layers say of means. An optimizer moves all parameters about as far, and means have to be right to a level.
MEAN_SCALE = 0.1


def _dot(x, kernel):
    return jnp.matmul(x, kernel, precision="highest")


def _plus(x, bias):
    return x + bias.reshape(*(1,) * (x.ndim - 1), -1)


@dataclass(frozen=True)
class Context(LogisticMixture):
    """A mixture of discretised logistics of each pixel, given z and the pixels within `reach` above and to the left.

    The decoder's first features are the parameters of a mixture given z alone, the `head`: it shows reconstructions,
    and is trained beside with a weight of `head_weight`. The other features, `conditioning`, are for the context alone.
    Every mean is a linear prediction from the neighbours, at first half left and half above, plus what a network of
    `units` hidden units and `blocks` residual blocks says.
    """

    reach: int = 3  # pixels
    units: int = 96
    blocks: int = 1
    conditioning: int = 32
    head_weight: float = 0.05

    def __post_init__(self):
        least = {"components": 1, "reach": 1, "units": 1, "blocks": 0, "conditioning": 0, "head_weight": 0}
        at_least("model.context", **{name: (getattr(self, name), value) for name, value in least.items()})

    @property
    def head(self) -> LogisticMixture:
        """The distribution of every pixel given z alone, whose features are the first of the decoder's."""
        return LogisticMixture(self.components)

    @property
    def offsets(self) -> Int[np.ndarray, "t 2"]:
        """Row and column of the neighbours that a pixel sees, relative to it."""
        near = np.arange(-self.reach, self.reach + 1)
        above = [(y, x) for y in near if y < 0 for x in near]
        return np.array(above + [(0, x) for x in near if x < 0], np.int32)

    def features(self, channels: int) -> int:
        return self.head.features(channels) + self.conditioning

    def init(self, key: Key[Array, ""], channels: int) -> dict:
        keys = iter(jax.random.split(key, 3 + 2 * self.blocks))
        taps, units, size = len(self.offsets) * (channels + 1), self.units, self.head.features(channels)

        def drawn(*shape, gain=2.0):
            return jnp.sqrt(gain / shape[0]) * jax.random.normal(next(keys), shape)

        left_and_above = np.zeros((len(self.offsets), channels + 1, channels), np.float32)
        for offset in ((0, -1), (-1, 0)):
            left_and_above[(self.offsets == offset).all(axis=1), :channels] = 0.5 / MEAN_SCALE * np.eye(channels)
        return {
            "taps": drawn(taps, units),
            "conditioning": drawn(self.features(channels), units, gain=1.0),
            "bias": jnp.zeros(units),
            "blocks": [{"in": drawn(units, units), "out": drawn(units, units, gain=0.1)} for _ in range(self.blocks)],
            "out": drawn(units, size, gain=0.1),
            "out_bias": jnp.zeros(size),
            "prediction": jnp.asarray(left_and_above.reshape(taps, channels)),
        }

    def loss(self, params: dict, features: Features, images: Images) -> PerSubPixel:
        """The nats of `log_prob`; their gradient also trains the head, whose nats are left out of the value."""
        of_head = self.head.loss({}, self._of_head(features, images.shape[-1]), images)
        return self.head_weight * (of_head - jax.lax.stop_gradient(of_head)) - self.log_prob(params, features, images)

    def log_prob(self, params: dict, features: Features, images: Images) -> PerSubPixel:
        channels, (height, width) = images.shape[-1], images.shape[1:3]
        if features.shape[-1] != self.features(channels):
            raise InputError(f"Context needs {self.features(channels)} features a pixel, not {features.shape[-1]}")
        padded, corners = self._padded(images), self.offsets + self.reach
        taps = [padded[:, y : y + height, x : x + width] for y, x in corners]
        return self.log_prob_of(self._mixture(params, jnp.concatenate(taps, axis=-1), features, channels), images)

    def log_prob_of_head(self, features: Features, images: Images) -> PerSubPixel:
        """Log probability given z alone, in nats: what the pixels cost without their neighbours."""
        return self.head.log_prob({}, self._of_head(features, images.shape[-1]), images)

    def mean(self, params: dict, features: Features) -> PerSubPixel:
        channels = next(c for c in range(1, features.shape[-1]) if self.features(c) == features.shape[-1])
        return self.head.mean({}, self._of_head(features, channels))

    def order(self, height: int, width: int) -> Int[np.ndarray, "s p 2"]:
        """A front that moves through the image: pixel (y, x) comes in step x + (reach + 1) y."""
        rows, columns = np.divmod(np.arange(height * width, dtype=np.int32), width)
        number = columns + (self.reach + 1) * rows
        sizes = np.bincount(number)
        order = np.full((len(sizes), sizes.max(), 2), (height, width), np.int32)
        for step, size in enumerate(sizes):
            order[step, :size] = np.stack([rows, columns], axis=-1)[number == step]
        return order

    def at(self, params: dict, features: Features, images: Images, places: Places) -> Float[Array, "b p q"]:
        corners = jnp.asarray(places)[:, None] + (self.offsets + self.reach)[None]
        taps = self._padded(jnp.asarray(images))[:, corners[..., 0], corners[..., 1]]
        features = features[:, places[:, 0], places[:, 1]]
        return self._mixture(params, taps.reshape(*taps.shape[:2], -1), features, images.shape[-1])

    def _of_head(self, features, channels):
        return features[..., : self.head.features(channels)]

    def _padded(self, images):
        """Pixels on -1..1 and a 1 for each that lies in the image, with `reach` rows above and columns beside of 0."""
        unit = (jnp.asarray(images).astype(jnp.float32) - 127.5) / 127.5
        inside = jnp.ones((*unit.shape[:-1], 1))
        beyond = (self.reach, self.reach)
        return jnp.pad(jnp.concatenate([unit, inside], axis=-1), ((0, 0), (self.reach, 0), beyond, (0, 0)))

    def _mixture(self, params, taps: Float[Array, "*s t"], features: Float[Array, "*s f"], channels):
        """Parameters of the mixture of every pixel, from its taps, [T,C+1] each in a row, and features."""
        features = features.astype(jnp.float32)
        hidden = _dot(taps, params["taps"]) + _dot(features, params["conditioning"])
        hidden = jax.nn.relu(_plus(hidden, params["bias"]))
        for block in params["blocks"]:
            hidden += _dot(jax.nn.relu(_dot(hidden, block["in"])), block["out"])
        q = _plus(_dot(jax.nn.relu(hidden), params["out"]), params["out_bias"])
        # Parameters are ordered as in LogisticMixture: log weights, then the means, of every component.
        first, predicted = self.components, jnp.repeat(_dot(taps, params["prediction"]), self.components, axis=-1)
        means = slice(first, first + self.components * channels)
        return q.at[..., means].set(MEAN_SCALE * (q[..., means] + predicted))
