"""The categorical VAE trained by Gumbel-softmax (Jang et al. 2017; Maddison et al. 2017), measured by hard draws."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vqvae_jax import metrics
from vqvae_jax.models.categorical import Categorical, kl_to_uniform

# Uniform numbers are kept this far from 0 and 1, where the Gumbel distribution has no value.
SMALLEST = 1e-7


def relaxed_draw(log_q, uniforms, temperature):
    """Draw a softmax near a corner of the simplex, [...,K] (Jang et al. 2017, eq. 2): the nearer, the colder."""
    uniforms = jnp.clip(uniforms, SMALLEST, 1 - SMALLEST)
    return jax.nn.softmax((log_q - jnp.log(-jnp.log(uniforms))) / temperature)


@dataclass(frozen=True)
class Gumbel(Categorical):
    """Training sees relaxed codes at one `temperature`; every figure that is reported is of hard ones."""

    temperature: float

    headline_samples = 1

    def loss(self, variables, batch, key: Key[Array, ""]):
        """Give the relaxed negative ELBO in nats per sub-pixel, and (no state, metrics in bits/dim).

        `relaxed_bits_per_dim` is no bound of anything; the exact categorical KL is in it, and a distortion of codes
        that can't be sent.
        """
        images, params = batch["image"], variables["params"]
        log_q = self.log_q(params, images)
        uniforms = jax.random.uniform(key, (log_q.size,)).reshape(log_q.shape)
        weights = relaxed_draw(log_q, uniforms, self.temperature)
        vectors = self._mixed(params, weights)
        distortion = self.trunk.training_distortion(params, vectors, images)
        kl = jnp.mean(kl_to_uniform(log_q))
        total = distortion + kl / images[0].size
        rate = metrics.nats_to_bits_per_dim(kl, images.shape[1:])
        result = {"loss_nats": total, "rate": rate, "relaxed_distortion": distortion / jnp.log(2.0)}
        return total, ((), result | {"relaxed_bits_per_dim": rate + result["relaxed_distortion"]})

    def _mixed(self, params, weights):
        mixed = [weights[..., g, :] @ params["codebook"][g] for g in range(self.num_codebooks)]
        return jnp.concatenate(mixed, axis=-1)
