"""The categorical VAE trained by Gumbel-softmax (Jang et al. 2017; Maddison et al. 2017), measured by hard draws."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vqvae_jax.errors import InputError
from vqvae_jax.evaluation import metrics
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

    def __post_init__(self):
        super().__post_init__()
        if not self.temperature > 0:
            raise InputError(f"model.temperature is {self.temperature}: it must be above 0")

    def loss(self, variables, batch, key: Key[Array, ""]):
        """Give the relaxed negative ELBO in nats per sub-pixel, and (no state, metrics in bits/dim).

        `relaxed_bits_per_dim` is no bound of anything; the exact categorical KL is in it, and a distortion of codes
        that can't be sent.
        """
        images, params = batch["image"], variables["params"]
        log_q = self.posterior(variables, images)
        weights = relaxed_draw(log_q, jax.random.uniform(key, (log_q.size,)).reshape(log_q.shape), self.temperature)
        of_each = zip(jnp.unstack(weights, axis=-2), params["codebook"], strict=True)
        vectors = [jnp.matmul(some, codebook, precision="highest") for some, codebook in of_each]
        distortion, in_bits = self.trunk.training_distortion(params, jnp.concatenate(vectors, axis=-1), images)
        kl = jnp.mean(kl_to_uniform(log_q))
        total = distortion + kl / images[0].size
        rate = metrics.nats_to_bits_per_dim(kl, images.shape[1:])
        logged = {"loss_nats": total, "rate": rate, "relaxed_distortion": in_bits["distortion"]}
        return total, ((), logged | {"relaxed_bits_per_dim": rate + in_bits["distortion"]})
