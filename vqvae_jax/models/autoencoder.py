"""The plain autoencoder: reconstructions and no bound, since it has no p(z)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from vqvae_jax.errors import InputError, at_least
from vqvae_jax.likelihoods.interface import Images
from vqvae_jax.models.trunk import Family, Vectors


@dataclass(frozen=True)
class Autoencoder(Family):
    """An autoencoder with `latent_channels` real numbers a position."""

    latent_channels: int

    latents = "continuous"
    has_bound = False
    samples_latents = True
    prior_name = None

    def __post_init__(self):
        super().__post_init__()
        at_least("model", latent_channels=(self.latent_channels, 1))

    def init(self, key: Key[Array, ""], images: Images) -> dict:
        return {"params": self.trunk.init(key, images, self.latent_channels, self.latent_channels), "state": ()}

    def loss(self, variables, batch: dict, key: Key[Array, ""]):
        """Give the distortion in nats per sub-pixel (or half the squared error) and (no state, metrics)."""
        z = self.encode(variables, batch["image"])
        distortion, logged = self.trunk.training_distortion(variables["params"], z, batch["image"])
        return distortion, ((), {"loss_nats": distortion} | logged)

    def encode(self, variables, images: Images) -> Vectors:
        return self.trunk.encode(variables["params"], images, self.latent_channels)

    def fit_sums(self, variables, images: Images, mask) -> dict:
        """Add up the moments of latents less those of a gray image, and what the likelihood needs.

        Products of latents whose mean is large would lose the covariance in float32.
        """
        reference = self.encode(variables, jnp.full((1, *images.shape[1:]), 128, jnp.uint8))
        shifted = (self.encode(variables, images) - reference) * mask.astype(jnp.float32).reshape(-1, 1, 1, 1)
        flat = shifted.reshape(-1, self.latent_channels)
        return super().fit_sums(variables, images, mask) | {
            "reference": reference[0] * jnp.sum(mask),
            "latent_sum": jnp.sum(shifted, axis=0),
            "latent_products": jnp.matmul(flat.T, flat, precision="highest"),
        }

    def fit(self, sums: dict) -> dict:
        """Fit the ex-post Gaussian: a mean per position and channel [h,w,c], one covariance of channels [c,c].

        In float64, for the covariance is a difference of two large numbers.
        """
        fitted = super().fit(sums)
        names = "latent_sum", "reference", "latent_products"
        mean, reference, products = (np.asarray(fitted.pop(name), np.float64) / sums["num_images"] for name in names)
        flat = mean.reshape(-1, self.latent_channels)
        return fitted | {"latent_mean": mean + reference, "latent_covariance": (products - flat.T @ flat) / len(flat)}

    def sample_latents(self, variables, key: Key[Array, ""], shape: tuple[int, int, int]) -> Vectors:
        """Draw from a Gaussian fitted to training latents ex post, which is no p(z); `shape` is [n, rows, columns]."""
        if "latent_mean" not in variables["fitted"]:
            raise InputError("the Gaussian of the latents is fitted when the run is finished: train on first")
        values, vectors = jnp.linalg.eigh(variables["fitted"]["latent_covariance"])
        root = vectors * jnp.sqrt(jnp.maximum(values, 0)).reshape(1, -1)
        noise = jax.random.normal(key, (*shape, self.latent_channels))
        return variables["fitted"]["latent_mean"][None] + noise @ root.T
