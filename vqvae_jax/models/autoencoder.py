"""The plain autoencoder: reconstructions and no bound, since it has no p(z)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.models.trunk import Images, Latents, Trunk


@dataclass(frozen=True)
class Autoencoder:
    """An autoencoder with `latent_channels` real numbers a position."""

    trunk: Trunk
    latent_channels: int

    def init(self, key: Key[Array, ""], images: Images):
        """Draw the networks."""
        encoder_key, decoder_key = jax.random.split(key)
        return {"params": self.trunk.init(encoder_key, decoder_key, images, self.latent_channels), "state": ()}

    def loss(self, variables, batch, key: Key[Array, ""]):
        """Give the distortion in nats per sub-pixel (or half the squared error) and (no state, metrics)."""
        images, params = batch["image"], variables["params"]
        distortion = self.trunk.training_distortion(params, self.trunk.encode(params, images), images)
        return distortion, ((), {"loss_nats": distortion} | self.trunk.named_distortion(distortion))

    def encode(self, variables, images: Images) -> Latents:
        """Images to latents."""
        return self.trunk.encode(variables["params"], images).astype(jnp.float32)

    def decode(self, variables, latents: Latents) -> Float[Array, "b h w p"]:
        """Latents to the parameters of the likelihood."""
        return self.trunk.decode(variables, latents)

    def decode_mean(self, variables, latents: Latents) -> Images:
        """Latents to images, the mean of the likelihood rounded to 8-bit levels."""
        return self.trunk.decode_mean(variables, latents)

    def fit_sums(self, variables, images: Images, mask):
        """Sum over the images that `mask` keeps what `fit` needs: the latents' moments."""
        z = self.encode(variables, images)
        kept = z * mask.astype(jnp.float32).reshape(-1, 1, 1, 1)
        sums = self.trunk.fit_sums(variables["params"], z, images, mask)
        flat, kept_flat = (x.reshape(-1, z.shape[-1]) for x in (z, kept))
        products = jnp.matmul(flat.T, kept_flat, precision="highest") / (z.shape[1] * z.shape[2])
        return sums | {"latent_sum": jnp.sum(kept, axis=0), "latent_products": products}

    def fit(self, sums):
        """Fit the ex-post Gaussian: a mean per position and channel [h,w,c], one covariance of channels [c,c]."""
        mean = sums["latent_sum"] / sums["num_images"]
        flat = mean.reshape(-1, mean.shape[-1])
        covariance = sums["latent_products"] / sums["num_images"] - flat.T @ flat / len(flat)
        return {"latent_mean": mean, "latent_covariance": covariance} | self.trunk.fit(sums)

    def sample_latents(self, variables, key: Key[Array, ""], shape: tuple[int, int, int]) -> Latents:
        """Draw from a Gaussian fitted to training latents ex post, which is no p(z); `shape` is [n, rows, columns]."""
        values, vectors = jnp.linalg.eigh(variables["fitted"]["latent_covariance"])
        root = vectors * jnp.sqrt(jnp.maximum(values, 0)).reshape(1, -1)
        noise = jax.random.normal(key, (*shape, self.latent_channels))
        return variables["fitted"]["latent_mean"][None] + noise @ root.T
