"""The VAE (Kingma & Welling 2014): a diagonal Gaussian for every position and channel of the latent field."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.errors import at_least
from vqvae_jax.evaluation import metrics
from vqvae_jax.likelihoods.interface import Images
from vqvae_jax.models.interface import Bound
from vqvae_jax.models.trunk import Family, Vectors, draw_each

# Narrower or wider posteriors than e^±7 of the prior's deviation mean nothing in float32.
MAX_LOG_STD = 7.0
# Posteriors start narrow: drowned in noise, the latents are ignored for long (measured: experiments/TRIALS.md).
FIRST_LOG_STD = -2.0


class Posterior(NamedTuple):
    """q(z | x): `mean` and `log_std`, float32 [B,h,w,c] each."""

    mean: Array
    log_std: Array


def kl_to_standard_normal(q: Posterior) -> Float[Array, "b h w c"]:
    """KL(q || N(0, 1)) of every latent, in nats (Kingma & Welling 2014, app. B)."""
    return 0.5 * (q.mean**2 + jnp.expm1(2 * q.log_std)) - q.log_std


@dataclass(frozen=True)
class VAE(Family):
    """A VAE with `latent_channels` Gaussian latents a position."""

    latent_channels: int

    latents = "continuous"
    draws_posterior = True
    samples_latents = True
    prior_name = "normal"

    def __post_init__(self):
        super().__post_init__()
        at_least("model", latent_channels=(self.latent_channels, 1))

    def init(self, key: Key[Array, ""], images: Images) -> dict:
        return {"params": self.trunk.init(key, images, 2 * self.latent_channels, self.latent_channels), "state": ()}

    def loss(self, variables, batch: dict, key: Key[Array, ""]):
        """Give the negative ELBO in nats per sub-pixel, one draw, and (no state, metrics in bits/dim)."""
        images, params = batch["image"], variables["params"]
        q = self.posterior(variables, images)
        noise = jax.random.normal(key, (q.mean.size,)).reshape(q.mean.shape)  # drawn flat, which is faster
        distortion, logged = self.trunk.training_distortion(params, q.mean + jnp.exp(q.log_std) * noise, images)
        kl = jnp.mean(jnp.sum(kl_to_standard_normal(q), axis=(1, 2)), axis=0)  # nats a channel
        # Both terms per sub-pixel: on different scales one of them would be everything.
        total = distortion + jnp.sum(kl) / images[0].size
        bits = metrics.nats_to_bits_per_dim(kl, images.shape[1:])
        rate = jnp.sum(bits)
        logged |= {"loss_nats": total, "rate": rate, "bits_per_dim": rate + logged["distortion"]}
        # A channel whose rate is near 0 says nothing: where all are, the posterior has collapsed.
        return total, ((), logged | {f"rate_of_channel_{n:02d}": bits[n] for n in range(self.latent_channels)})

    def posterior(self, variables, images: Images) -> Posterior:
        encoded = self.trunk.encode(variables["params"], images, 2 * self.latent_channels)
        mean, log_std = jnp.split(encoded, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_std + FIRST_LOG_STD, -MAX_LOG_STD, MAX_LOG_STD))

    def bound(self, variables, images: Images, keys: Key[Array, "b"]) -> Bound:
        """Bound the NLL in expectation by the negative ELBO: the exact KL, and the distortion of one draw per image."""
        q = self.posterior(variables, images)
        z = q.mean + jnp.exp(q.log_std) * draw_each(jax.random.normal, keys, q.mean.shape[1:])
        rate = jnp.sum(kl_to_standard_normal(q), axis=(1, 2, 3))
        return Bound(rate=rate, distortion=self.distortion(variables, z, images))

    def log_weight(self, variables, q: Posterior, images: Images, keys: Key[Array, "b"]) -> Float[Array, "b"]:
        """Draw z from q and give log P(x, z) / q(z | x), in nats per image."""
        noise = draw_each(jax.random.normal, keys, q.mean.shape[1:])
        z = q.mean + jnp.exp(q.log_std) * noise
        log_ratio = jnp.sum(0.5 * (noise**2 - z**2) + q.log_std, axis=(1, 2, 3))  # log p(z) / q(z | x)
        return log_ratio - self.distortion(variables, z, images)

    def encode(self, variables, images: Images) -> Vectors:
        return self.posterior(variables, images).mean

    def sample_latents(self, variables, key: Key[Array, ""], shape: tuple[int, int, int]) -> Vectors:
        """Draw from p(z), the standard normal; `shape` is [n, rows, columns]."""
        return jax.random.normal(key, (*shape, self.latent_channels))
