"""Latents that are drawn from K codes each, with a uniform p(z): what VIMCO and Gumbel-softmax share."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqvae_jax.models import quantizer
from vqvae_jax.models.trunk import Bound, Images, Trunk
from vqvae_jax.models.vqvae import Codes

LogQ = Float[Array, "b y x g k"]  # log q(z | x) of every code of every latent


def draw_codes(log_q: LogQ, uniforms: Float[Array, "b y x g"]) -> Int[Array, "b y x g"]:
    """Draw every latent by inverting its distribution function at a uniform number."""
    cumulative = jnp.cumsum(jnp.exp(log_q), axis=-1)
    # In float32 it may end below 1: what is missing must not fall to the last code.
    below = cumulative <= uniforms[..., None] * cumulative[..., -1:]
    return jnp.minimum(jnp.sum(below, axis=-1), log_q.shape[-1] - 1).astype(jnp.int32)


def log_prob_of(log_q: LogQ, codes: Int[Array, "b y x g"]) -> Float[Array, "b"]:
    """Sum log q(z | x) over an image's latents, in nats."""
    return jnp.sum(jnp.take_along_axis(log_q, codes[..., None], axis=-1), axis=(1, 2, 3, 4))


def kl_to_uniform(log_q: LogQ) -> Float[Array, "b"]:
    """KL(q || uniform), exactly, in nats per image."""
    return jnp.sum(jnp.exp(log_q) * (log_q + math.log(log_q.shape[-1])), axis=(1, 2, 3, 4))


@dataclass(frozen=True)
class Categorical:
    """G latents a position of K codes each, every code a vector of D numbers; the encoder gives log q(z | x)."""

    trunk: Trunk
    codebook_size: int
    num_codebooks: int
    embedding_dim: int

    prior_name = "uniform"

    def init(self, key: Key[Array, ""], images: Images):
        """Draw the networks and a normal codebook."""
        encoder_key, decoder_key, codebook_key = jax.random.split(key, 3)
        params = self.trunk.init(encoder_key, decoder_key, images, self.num_codebooks * self.embedding_dim)
        size = (self.num_codebooks, self.codebook_size, self.embedding_dim)
        params["codebook"] = jax.random.normal(codebook_key, (math.prod(size),)).reshape(size)
        return {"params": params, "state": ()}

    def posterior(self, variables, images: Images) -> LogQ:
        """Give log q(z | x)."""
        return self.log_q(variables["params"], images)

    def log_q(self, params, images: Images) -> LogQ:
        """Give log q(z | x)."""
        logits = self.trunk.encode(params, images).astype(jnp.float32)
        return jax.nn.log_softmax(logits.reshape(*logits.shape[:3], self.num_codebooks, self.codebook_size))

    def bound(self, variables, images: Images, keys: Key[Array, "b"]) -> Bound:
        """Bound the NLL by the negative ELBO: the exact KL, and the distortion of one hard draw per image."""
        log_q = self.posterior(variables, images)
        codes = draw_codes(log_q, _uniforms(keys, log_q.shape[1:4]))
        return Bound(rate=kl_to_uniform(log_q), distortion=self.distortion(variables, codes, images))

    def log_weight(self, variables, log_q: LogQ, images: Images, keys: Key[Array, "b"]) -> Float[Array, "b"]:
        """Draw z from q and give log P(x, z) / q(z | x), in nats per image."""
        codes = draw_codes(log_q, _uniforms(keys, log_q.shape[1:4]))
        log_p = -codes[0].size * math.log(self.codebook_size)
        return log_p - self.distortion(variables, codes, images) - log_prob_of(log_q, codes)

    def distortion(self, variables, codes: Codes, images: Images) -> Float[Array, "b"]:
        """-log P(x | z) in nats per image, in float32."""
        return self.trunk.distortion(variables, self.vectors(variables["params"], codes), images)

    def encode(self, variables, images: Images) -> Codes:
        """Images to their most probable codes."""
        return jnp.argmax(self.posterior(variables, images), axis=-1).astype(jnp.int32)

    def decode(self, variables, codes: Codes) -> Float[Array, "b h w p"]:
        """Code indices to the parameters of the likelihood."""
        return self.trunk.decode(variables, self.vectors(variables["params"], codes))

    def decode_mean(self, variables, codes: Codes) -> Images:
        """Code indices to images, the mean of the likelihood rounded to 8-bit levels."""
        return self.trunk.decode_mean(variables, self.vectors(variables["params"], codes))

    def sample_latents(self, variables, key: Key[Array, ""], shape: tuple[int, int, int]) -> Codes:
        """Draw from p(z), where all codes are as probable; `shape` is [n, rows, columns]."""
        return jax.random.randint(key, (*shape, self.num_codebooks), 0, self.codebook_size)

    def fit_sums(self, variables, images: Images, mask):
        """Nothing is fitted, so nothing but images is counted."""
        return {"num_images": jnp.sum(mask)}

    def fit(self, sums):
        """Nothing is fitted; the number of images says that the run was finished."""
        return sums

    def vectors(self, params, codes: Codes) -> Float[Array, "b y x d"]:
        """Fetch the vectors of codes, those of a position side by side."""
        vectors = quantizer.look_up(params["codebook"], jnp.asarray(codes))
        return vectors.reshape(*vectors.shape[:3], -1)


def _uniforms(keys, shape):
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys)
