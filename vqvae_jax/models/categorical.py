"""Latents that are drawn from K codes each, with a uniform p(z): what VIMCO and Gumbel-softmax share."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqvae_jax.errors import at_least
from vqvae_jax.likelihoods.interface import Images
from vqvae_jax.models.interface import Bound, Codes
from vqvae_jax.models.trunk import Family, Vectors, draw_each
from vqvae_jax.quantizers.nearest import look_up

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
class Categorical(Family):
    """G latents a position of K codes each, every code a vector of D numbers; the encoder gives log q(z | x)."""

    codebook_size: int
    num_codebooks: int
    embedding_dim: int

    latents = "codes"
    draws_posterior = True
    samples_latents = True
    prior_name = "uniform"

    def __post_init__(self):
        super().__post_init__()
        at_least("model", codebook_size=(self.codebook_size, 2), num_codebooks=(self.num_codebooks, 1))
        at_least("model", embedding_dim=(self.embedding_dim, 1))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.num_codebooks

    def init(self, key: Key[Array, ""], images: Images) -> dict:
        """Draw the networks and a normal codebook."""
        networks_key, codebook_key = jax.random.split(key)
        depth = self.num_codebooks * self.embedding_dim
        params = self.trunk.init(networks_key, images, self.num_codebooks * self.codebook_size, depth)
        size = (self.num_codebooks, self.codebook_size, self.embedding_dim)
        params["codebook"] = jax.random.normal(codebook_key, (math.prod(size),)).reshape(size)
        return {"params": params, "state": ()}

    def posterior(self, variables, images: Images) -> LogQ:
        """Give log q(z | x)."""
        logits = self.trunk.encode(variables["params"], images, self.num_codebooks * self.codebook_size)
        return jax.nn.log_softmax(logits.reshape(*logits.shape[:3], self.num_codebooks, self.codebook_size))

    def bound(self, variables, images: Images, keys: Key[Array, "b"]) -> Bound:
        """Bound the NLL in expectation by the negative ELBO: the exact KL, and the distortion of one hard draw."""
        log_q = self.posterior(variables, images)
        codes = draw_codes(log_q, draw_each(jax.random.uniform, keys, log_q.shape[1:4]))
        return Bound(rate=kl_to_uniform(log_q), distortion=self.distortion(variables, codes, images))

    def log_weight(self, variables, log_q: LogQ, images: Images, keys: Key[Array, "b"]) -> Float[Array, "b"]:
        """Draw z from q and give log P(x, z) / q(z | x), in nats per image."""
        codes = draw_codes(log_q, draw_each(jax.random.uniform, keys, log_q.shape[1:4]))
        log_p = -codes[0].size * math.log(self.codebook_size)
        return log_p - self.distortion(variables, codes, images) - log_prob_of(log_q, codes)

    def encode(self, variables, images: Images) -> Codes:
        return jnp.argmax(self.posterior(variables, images), axis=-1).astype(jnp.int32)

    def vectors(self, variables, latents: Codes) -> Vectors:
        """Fetch the vectors of codes, those of a position side by side."""
        vectors = look_up(variables["params"]["codebook"], jnp.asarray(latents))
        return vectors.reshape(*vectors.shape[:3], -1)

    def sample_latents(self, variables, key: Key[Array, ""], shape: tuple[int, int, int]) -> Codes:
        """Draw from p(z), where all codes are as probable; `shape` is [n, rows, columns]."""
        return jax.random.randint(key, (*shape, self.num_codebooks), 0, self.codebook_size)
