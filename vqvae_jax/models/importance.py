"""The importance-weighted bound (Burda et al. 2016), for every family that draws its latents: memory constant in k."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Key

from vqvae_jax.models.trunk import Images, LogSum


def image_keys(seeds: Integer[Array, "b"]) -> Key[Array, "b"]:
    """Give every image a key of its own, so that its noise depends on no other image of the batch."""
    return jax.vmap(jax.random.key)(seeds)


def importance_bound(
    model, variables, images: Images, keys: Key[Array, "b"], k: int | Integer[Array, ""]
) -> Float[Array, "b"]:
    """Bound the NLL in nats per image: -log of the mean of P(x, z) / q(z | x) over `k` draws of z from q.

    Never worse than the bound of fewer draws in expectation, and the NLL itself as k grows.
    """
    posterior = model.posterior(variables, images)

    def add(n, total):
        draws = jax.vmap(jax.random.fold_in, (0, None))(keys, n)
        return total.add(model.log_weight(variables, posterior, images, draws))

    return -jax.lax.fori_loop(0, k, add, LogSum.of_nothing(images.shape[0])).log(jnp.asarray(k, jnp.float32))
