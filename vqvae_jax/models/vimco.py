"""The categorical latent variable model trained by VIMCO (Mnih & Rezende 2016): several draws, no relaxation."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.errors import at_least
from vqvae_jax.evaluation import metrics
from vqvae_jax.memory import at_once
from vqvae_jax.models.categorical import Categorical, draw_codes, kl_to_uniform, log_prob_of

# So many draws go through the decoder at once on a CPU, so memory doesn't grow with their number.
DRAWS_AT_ONCE = 5


class Signals(NamedTuple):
    """The multi-sample bound [B] (a lower bound on log p, in nats) and what each draw learned of it, [S,B] each."""

    bound: Array
    advantage: Array
    weight: Array


def signals(log_weights: Float[Array, "s b"]) -> Signals:
    """Compare the bound of all S draws with that where one is replaced by the mean of the others' logs (eq. 8-10).

    `weight` is each draw's share of the sum.
    """
    size = log_weights.shape[0]
    total = jax.nn.logsumexp(log_weights, axis=0)
    others = (jnp.sum(log_weights, axis=0, keepdims=True) - log_weights) / (size - 1)
    # log of the sum with draw s replaced: the S x S table is tiny beside the images.
    eye = jnp.eye(size, dtype=bool)[..., None]
    without = jax.nn.logsumexp(jnp.where(eye, others[:, None], log_weights[None]), axis=1)
    return Signals(total - jnp.log(float(size)), total[None] - without, jnp.exp(log_weights - total[None]))


@dataclass(frozen=True)
class Vimco(Categorical):
    """Trained on the bound of `training_samples` draws, and reported by that of `samples`."""

    samples: int
    training_samples: int

    def __post_init__(self):
        super().__post_init__()
        at_least("model", samples=(self.samples, 1), training_samples=(self.training_samples, 2))  # they are compared

    @property
    def headline_samples(self) -> int:
        return self.samples

    def loss(self, variables, batch, key: Key[Array, ""]):
        """Give the negative multi-sample bound in nats per sub-pixel, and (no state, metrics in bits/dim).

        Its gradient is VIMCO's: that of sum_s [advantage_s log q(z_s) + weight_s log P(x, z_s) / q(z_s)], the factors
        being constants (eq. 6 and 10); its value is the bound's.
        """
        images, params = batch["image"], variables["params"]
        log_q = self.posterior(variables, images)
        codes = self._draws(log_q, key)  # [S,B,h,w,G]
        log_q_of_draws = jax.vmap(log_prob_of, (None, 0))(log_q, codes)
        log_p = self._log_joint(params, codes, images)
        learned = jax.lax.stop_gradient(signals(log_p - log_q_of_draws))
        surrogate = learned.advantage * log_q_of_draws + learned.weight * (log_p - log_q_of_draws)
        gradient_part = jnp.mean(jnp.sum(surrogate, axis=0))
        bound = jnp.mean(learned.bound) + gradient_part - jax.lax.stop_gradient(gradient_part)
        bits = metrics.nats_to_bits_per_dim(-bound, images.shape[1:])
        kl = metrics.nats_to_bits_per_dim(jnp.mean(kl_to_uniform(log_q)), images.shape[1:])
        effective = jnp.mean(1 / jnp.sum(learned.weight**2, axis=0))
        result = {"loss_nats": -bound / images[0].size, "bits_per_dim": bits, "kl": kl, "effective_draws": effective}
        return result["loss_nats"], ((), result)

    def _draws(self, log_q, key):
        uniforms = jax.random.uniform(key, (self.training_samples * log_q[..., 0].size,))
        return jax.vmap(draw_codes, (None, 0))(log_q, uniforms.reshape(self.training_samples, *log_q.shape[:4]))

    def _log_joint(self, params, codes, images):
        """Give log P(x | z) p(z) of every draw, [S,B].

        Where they don't fit at once, activations are made again for the gradient instead of kept.
        """
        batch, draws = images.shape[0], self.training_samples
        size = next(n for n in range(min(at_once(DRAWS_AT_ONCE), draws), 0, -1) if draws % n == 0)
        repeated = jnp.broadcast_to(images[None], (size, *images.shape)).reshape(-1, *images.shape[1:])

        def of_some(some):
            distortion = self.distortion({"params": params, "fitted": {}}, some.reshape(-1, *some.shape[2:]), repeated)
            return -distortion.reshape(size, batch)

        log_p_z = -codes[0, 0].size * jnp.log(float(self.codebook_size))
        chunks = codes.reshape(-1, size, *codes.shape[1:])
        parts = jax.lax.map(jax.checkpoint(of_some), chunks) if len(chunks) > 1 else of_some(codes)
        return parts.reshape(draws, batch) + log_p_z
