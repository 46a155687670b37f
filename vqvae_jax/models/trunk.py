"""What every family is built around: encoder, decoder and likelihood; and what a family gives, `Bound`."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt8

from vqvae_jax.models.likelihoods import Likelihood, SquaredError, round_to_uint8
from vqvae_jax.models.networks import Decoder, Encoder

Images = UInt8[Array | np.ndarray, "b h w c"]
Latents = Float[Array, "b y x d"]  # y, x: rows and columns of the latent field
# Any scale gives a valid bound; below a tenth of a level nothing is gained, and 0 would divide by zero.
MIN_SCALE = 0.1


class Bound(NamedTuple):
    """Nats per image, float32 [B] each: NLL <= rate + distortion, -log p(z) (or the KL) and -log P(x | z)."""

    rate: Array
    distortion: Array


class LogSum(NamedTuple):
    """A sum that is added up from the logarithms of its terms: log of the largest so far, and the sum over it.

    Adding up logarithms themselves rounds every time, and at -10,000 nats a thousand roundings can raise the sum.
    """

    largest: Array
    total: Array

    @classmethod
    def of_nothing(cls, size: int) -> "LogSum":
        """Start `size` sums at zero."""
        return cls(jnp.full(size, -jnp.inf), jnp.zeros(size))

    def add(self, term: Float[Array, "b"]) -> "LogSum":
        """Add a term, given by its logarithm."""
        largest = jnp.maximum(self.largest, term)
        at = jnp.where(jnp.isfinite(largest), largest, 0.0)
        return LogSum(largest, self.total * jnp.exp(self.largest - at) + jnp.exp(term - at))

    def log(self, divisor: float | Array = 1.0) -> Float[Array, "b"]:
        """Give the logarithm of the sum over `divisor`."""
        return self.largest + jnp.log(self.total / divisor)


@dataclass(frozen=True)
class Trunk:
    """The networks of a family without what lies between them.

    `params` has "encoder", "decoder" and, if the likelihood learns something of its own, "likelihood"; `variables` is
    {"params", "state", "fitted"} of the family.
    """

    encoder: Encoder
    decoder: Decoder
    likelihood: Likelihood
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    def init(self, encoder_key: Key[Array, ""], decoder_key: Key[Array, ""], images: Images, depth: int) -> dict:
        """Draw the parameters, for latents of `depth` channels."""
        shown = jax.ShapeDtypeStruct(images.shape, jnp.float32)
        params = {"encoder": self.encoder.lazy_init(encoder_key, shown)["params"]}
        field = jax.eval_shape(self.encode, params, images).shape[:3]
        latents = jax.ShapeDtypeStruct((*field, depth), jnp.float32)
        params["decoder"] = self.decoder.lazy_init(decoder_key, latents)["params"]
        own = self.likelihood.init(images.shape[-1])
        return params | ({"likelihood": own} if own else {})

    def standardise(self, images: Images) -> Float[Array, "b h w c"]:
        """Map pixels to 0..1, subtract the mean and divide by the deviation."""
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (self.pixel_mean, self.pixel_std))
        return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std

    def encode(self, params, images: Images) -> Latents:
        """Give the encoder's output."""
        return jnp.asarray(self.encoder.apply({"params": params["encoder"]}, self.standardise(images)))

    def raw(self, params, latents: Latents) -> Float[Array, "b h w r"]:
        """Give the decoder's output."""
        return jnp.asarray(self.decoder.apply({"params": params["decoder"]}, latents))

    def decode(self, variables, latents: Latents) -> Float[Array, "b h w p"]:
        """Give the parameters of the likelihood; squared error has a scale (else NaN) once it is fitted."""
        fitted = isinstance(self.likelihood, SquaredError)
        own = variables["fitted"] if fitted else variables["params"].get("likelihood", {})
        return self.likelihood.complete(self.raw(variables["params"], latents), own)

    def distortion(self, variables, latents: Latents, images: Images) -> Float[Array, "b"]:
        """-log P(x | z) in nats per image, in float32."""
        return -jnp.sum(self.likelihood.log_prob(self.decode(variables, latents), images), axis=(1, 2, 3))

    def decode_mean(self, variables, latents: Latents) -> Images:
        """Give the mean of the likelihood, rounded to 8-bit levels."""
        return round_to_uint8(self.likelihood.mean(self.decode(variables, latents)))

    def training_distortion(self, params, latents: Latents, images: Images) -> Float[Array, ""]:
        """Mean of -log P(x | z) in nats per sub-pixel; of half the squared error, where that is trained."""
        if isinstance(self.likelihood, SquaredError):
            return jnp.mean(self.likelihood.loss(self.raw(params, latents), images))
        return -jnp.mean(self.likelihood.log_prob(self.decode({"params": params}, latents), images))

    def named_distortion(self, distortion) -> dict[str, Array]:
        """Give the training distortion under its name: bits/dim, or half the squared error."""
        if isinstance(self.likelihood, SquaredError):
            return {"half_squared_error": distortion}
        return {"distortion": distortion / jnp.log(2.0)}

    def fit_sums(self, params, latents: Latents, images: Images, mask) -> dict[str, Array]:
        """Sum over the images that `mask` keeps what `fit` needs."""
        sums = {"num_images": jnp.sum(mask)}
        if isinstance(self.likelihood, SquaredError):
            squares = self.likelihood.squared_levels(self.raw(params, latents), images) * mask.reshape(-1, 1, 1, 1)
            sums["squared_levels"] = jnp.sum(jnp.mean(squares, axis=(1, 2)), axis=0)
        return sums

    def fit(self, sums) -> dict[str, Array]:
        """Turn sums over training images into the scale [C], in levels, of a Gaussian for squared error; else {}."""
        if "squared_levels" not in sums:
            return {}
        return {"scale": jnp.maximum(jnp.sqrt(sums["squared_levels"] / sums["num_images"]), MIN_SCALE)}
