"""What every family is built around: encoder, decoder and likelihood, and what follows from these alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.errors import InputError, at_least, suggest
from vqvae_jax.likelihoods.discretised import round_to_uint8
from vqvae_jax.likelihoods.interface import Features, Images, PixelModel
from vqvae_jax.likelihoods.sampling import draw_pixels
from vqvae_jax.models.interface import ImageModel, Latents
from vqvae_jax.models.networks import Decoder, Encoder, for_gradients

Vectors = Float[Array, "b y x d"]
# Of activations; all else is float32.
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclass(frozen=True)
class Trunk:
    """The networks of a family without what lies between them, for images of `channels`.

    `params` has "encoder", "decoder" and, if the likelihood learns something of its own, "likelihood".
    """

    likelihood: PixelModel
    channels: int
    hidden: int
    residual_units: int
    residual_blocks: int
    downsamplings: int
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]
    dtype: str  # of activations
    rematerialise: bool  # compute activations again for gradients instead of keeping them

    def __post_init__(self):
        if self.dtype not in DTYPES:
            raise InputError(f"unknown model.dtype {self.dtype!r}: {suggest(self.dtype, DTYPES)}")
        at_least("model", hidden=(self.hidden, 1), residual_units=(self.residual_units, 1))
        at_least("model", residual_blocks=(self.residual_blocks, 0), downsamplings=(self.downsamplings, 1))
        if not all(0 < deviation < math.inf for deviation in self.pixel_std):
            raise InputError(f"model.pixel_std is {self.pixel_std}: it must be above 0")
        if not all(map(math.isfinite, self.pixel_mean)):
            raise InputError(f"model.pixel_mean is {self.pixel_mean}: it must be finite")
        for name, values in (("pixel_mean", self.pixel_mean), ("pixel_std", self.pixel_std)):
            if len(values) not in (1, self.channels):
                raise InputError(
                    f"model.{name} has {len(values)} values, the images have {self.channels} channels: "
                    f"give {' or '.join(map(str, sorted({1, self.channels})))}"
                )

    @property
    def factor(self) -> int:
        """Pixels of a side for each latent."""
        return 2**self.downsamplings

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of latents of an image; InputError if its sides aren't multiples of `factor`."""
        if not height or not width or height % self.factor or width % self.factor:
            raise InputError(f"images of {height}x{width} do not fit: sides must be multiples of {self.factor}")
        return height // self.factor, width // self.factor

    def init(self, key: Key[Array, ""], images: Images, features: int, depth: int) -> dict:
        """Draw the networks, whose encoder gives `features` and whose decoder takes latents of `depth` channels."""
        encoder_key, decoder_key, own_key = jax.random.split(key, 3)
        shown = jax.ShapeDtypeStruct(images.shape, jnp.float32)
        latents = jax.ShapeDtypeStruct((images.shape[0], *self.grid(*images.shape[1:3]), depth), jnp.float32)
        own = self.likelihood.init(own_key, self.channels)
        return {
            "encoder": self.encoder(features).lazy_init(encoder_key, shown)["params"],
            "decoder": self.decoder().lazy_init(decoder_key, latents)["params"],
        } | ({"likelihood": own} if own else {})

    def encoder(self, features: int) -> Encoder:
        """Give the encoder, of so many features."""
        return Encoder(**self._sizes(), features=features)

    def decoder(self) -> Decoder:
        """Give the decoder, whose features are the likelihood's."""
        return Decoder(**self._sizes(), features=self.likelihood.features(self.channels))

    def _sizes(self) -> dict:
        names = ("hidden", "residual_units", "residual_blocks", "rematerialise")
        return {name: getattr(self, name) for name in names} | {"scalings": self.downsamplings}

    def standardise(self, images: Images) -> Float[Array, "b h w c"]:
        """Map pixels to 0..1, subtract the mean and divide by the deviation."""
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (self.pixel_mean, self.pixel_std))
        return (jnp.asarray(images).astype(jnp.float32) / 255 - mean) / std

    def encode(self, params: dict, images: Images, features: int) -> Vectors:
        """Give the encoder's output, float32."""
        return self._run(self.encoder(features), params["encoder"], self.standardise(images))

    def decode(self, params: dict, vectors: Vectors) -> Features:
        """Give the decoder's output, float32."""
        return self._run(self.decoder(), params["decoder"], vectors)

    def training_distortion(self, params: dict, vectors: Vectors, images: Images) -> tuple[Array, dict[str, Array]]:
        """Mean of the likelihood's loss over images and sub-pixels, and its metric: bits/dim where that is nats."""
        loss = for_gradients(self.likelihood.loss, self.rematerialise)
        distortion = jnp.mean(loss(params.get("likelihood", {}), self.decode(params, vectors), images))
        name = self.likelihood.objective
        return distortion, {name: distortion / jnp.log(2.0) if name == "distortion" else distortion}

    def _run(self, network, params: dict, x) -> Float[Array, "b h w f"]:
        params, x = jax.tree.map(lambda array: array.astype(DTYPES[self.dtype]), (params, x))
        return jnp.asarray(network.apply({"params": params}, x)).astype(jnp.float32)


def draw_each(draw: Callable, keys: Key[Array, "b"], shape: tuple[int, ...]) -> Float[Array, "b *s"]:
    """Draw for every image with its own key, by a function of jax.random."""
    return jax.vmap(lambda key: draw(key, shape))(keys)


@dataclass(frozen=True)
class Family(ImageModel):
    """What families do alike, once `vectors` says what the decoder sees of latents."""

    trunk: Trunk

    def __post_init__(self):
        """Refuse to weigh a rate that is trained against what is no likelihood."""
        if self.draws_posterior and self.likelihood.objective != "distortion":
            raise InputError(
                f"the family {type(self).__name__} needs a likelihood to weigh its rate against, and squared_error is "
                "none: choose e.g. model.likelihood=gaussian_channel"
            )

    @property
    def likelihood(self) -> PixelModel:
        return self.trunk.likelihood

    def vectors(self, variables, latents: Latents) -> Vectors:
        """Give what the decoder sees of latents: continuous ones as they are."""
        return jnp.asarray(latents)

    def likelihood_params(self, variables) -> dict:
        """Give what the likelihood has learned and fitted of its own."""
        return variables["params"].get("likelihood", {}) | variables["fitted"].get("likelihood", {})

    def features(self, variables, latents: Latents) -> Features:
        """Latents to what the likelihood sees."""
        return self.trunk.decode(variables["params"], self.vectors(variables, latents))

    def distortion(self, variables, latents: Latents, images: Images) -> Float[Array, "b"]:
        features = self.features(variables, latents)
        log_prob = self.likelihood.log_prob(self.likelihood_params(variables), features, images)
        return -jnp.sum(log_prob, axis=(1, 2, 3))

    def distortion_of_head(self, variables, latents: Latents, images: Images) -> Float[Array, "b"]:
        """-log P(x | z) in nats as if no pixel saw another, of a likelihood with a head."""
        log_prob = self.likelihood.log_prob_of_head(self.features(variables, latents), images)
        return -jnp.sum(log_prob, axis=(1, 2, 3))

    def decode(self, variables, latents: Latents) -> Images:
        mean = self.likelihood.mean(self.likelihood_params(variables), self.features(variables, latents))
        return round_to_uint8(mean)

    def draw_images(self, variables, keys: Key[Array, "b"], latents: Latents) -> Images:
        """Latents to images drawn from P(x | z)."""
        features = self.features(variables, latents)
        return draw_pixels(self.likelihood, self.likelihood_params(variables), features, keys, self.trunk.channels)

    def fit_sums(self, variables, images: Images, mask) -> dict:
        features = self.features(variables, self.encode(variables, images))
        of_likelihood = self.likelihood.fit_sums(self.likelihood_params(variables), features, images, mask)
        return {"num_images": jnp.sum(mask), "likelihood": of_likelihood}

    def fit(self, sums: dict) -> dict:
        """Fit the likelihood, and keep the other sums: some number always says that the run was finished."""
        others = {name: value for name, value in sums.items() if name != "likelihood"}
        of_likelihood = self.likelihood.fit(sums["likelihood"])
        return others | ({"likelihood": of_likelihood} if of_likelihood else {})
