"""The VAE (Kingma & Welling 2014): a diagonal Gaussian for every position and channel of the latent field."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax import metrics
from vqvae_jax.models.trunk import Bound, Images, Latents, Trunk

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
class VAE:
    """A VAE with `latent_channels` Gaussian latents a position."""

    trunk: Trunk
    latent_channels: int

    prior_name = "normal"
    headline_samples = 1

    def init(self, key: Key[Array, ""], images: Images):
        """Draw the networks."""
        encoder_key, decoder_key = jax.random.split(key)
        return {"params": self.trunk.init(encoder_key, decoder_key, images, self.latent_channels), "state": ()}

    def loss(self, variables, batch, key: Key[Array, ""]):
        """Give the negative ELBO in nats per sub-pixel, one draw, and (no state, metrics in bits/dim)."""
        images, params = batch["image"], variables["params"]
        q = self._posterior(params, images)
        noise = jax.random.normal(key, (q.mean.size,)).reshape(q.mean.shape)  # drawn flat, which is faster
        distortion = self.trunk.training_distortion(params, q.mean + jnp.exp(q.log_std) * noise, images)
        kl = jnp.mean(jnp.sum(kl_to_standard_normal(q), axis=(1, 2)), axis=0)  # nats a channel
        # Both terms per sub-pixel: on different scales one of them would be everything.
        total = distortion + jnp.sum(kl) / images[0].size
        bits = metrics.nats_to_bits_per_dim(kl, images.shape[1:])
        result = {"loss_nats": total, "rate": jnp.sum(bits)} | self.trunk.named_distortion(distortion)
        result |= {"bits_per_dim": result["rate"] + result["distortion"]}
        # A channel whose rate is near 0 says nothing: where all are, the posterior has collapsed.
        return total, ((), result | {f"rate_of_channel_{n:02d}": bits[n] for n in range(self.latent_channels)})

    def posterior(self, variables, images: Images) -> Posterior:
        """Give q(z | x)."""
        return self._posterior(variables["params"], images)

    def bound(self, variables, images: Images, keys: Key[Array, "b"]) -> Bound:
        """Bound the NLL by the negative ELBO: the exact KL, and the distortion of one draw per image."""
        q = self.posterior(variables, images)
        z = q.mean + jnp.exp(q.log_std) * _noise(keys, q.mean.shape[1:])
        rate = jnp.sum(kl_to_standard_normal(q), axis=(1, 2, 3))
        return Bound(rate=rate, distortion=self.trunk.distortion(variables, z, images))

    def log_weight(self, variables, q: Posterior, images: Images, keys: Key[Array, "b"]) -> Float[Array, "b"]:
        """Draw z from q and give log P(x, z) / q(z | x), in nats per image."""
        noise = _noise(keys, q.mean.shape[1:])
        z = q.mean + jnp.exp(q.log_std) * noise
        log_ratio = jnp.sum(0.5 * (noise**2 - z**2) + q.log_std, axis=(1, 2, 3))  # log p(z) / q(z | x)
        return log_ratio - self.trunk.distortion(variables, z, images)

    def encode(self, variables, images: Images) -> Latents:
        """Images to the means of their posteriors."""
        return self.posterior(variables, images).mean

    def decode(self, variables, latents: Latents) -> Float[Array, "b h w p"]:
        """Latents to the parameters of the likelihood."""
        return self.trunk.decode(variables, latents)

    def decode_mean(self, variables, latents: Latents) -> Images:
        """Latents to images, the mean of the likelihood rounded to 8-bit levels."""
        return self.trunk.decode_mean(variables, latents)

    def sample_latents(self, variables, key: Key[Array, ""], shape: tuple[int, int, int]) -> Latents:
        """Draw from p(z), the standard normal; `shape` is [n, rows, columns]."""
        return jax.random.normal(key, (*shape, self.latent_channels))

    def fit_sums(self, variables, images: Images, mask):
        """Nothing is fitted, so nothing but images is counted."""
        return {"num_images": jnp.sum(mask)}

    def fit(self, sums):
        """Nothing is fitted; the number of images says that the run was finished."""
        return sums

    def _posterior(self, params, images):
        mean, log_std = jnp.split(self.trunk.encode(params, images).astype(jnp.float32), 2, axis=-1)
        return Posterior(mean, jnp.clip(log_std + FIRST_LOG_STD, -MAX_LOG_STD, MAX_LOG_STD))


def _noise(keys, shape):
    return jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
