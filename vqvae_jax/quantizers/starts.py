"""Where the codes of a codebook start, given the first batch: functions of a key, vectors [*b,G,D] and K."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.quantizers.nearest import Split, count_codes, draw_vectors, nearest_code, sum_by_code

LLOYD_ITERATIONS = 10


def kmeans(key: Key[Array, ""], z_e: Split, num: int) -> Float[Array, "g num d"]:
    """Improve drawn vectors by Lloyd's iterations (1982); a code that is nearest to no vector stays where it is."""
    z_e = jnp.asarray(z_e)

    def iterate(_, codebook):
        indices = nearest_code(z_e, codebook)
        count = count_codes(indices, num)[..., None]
        return jnp.where(count > 0, sum_by_code(z_e, indices, num) / jnp.maximum(count, 1), codebook)

    return jax.lax.fori_loop(0, LLOYD_ITERATIONS, iterate, draw_vectors(key, z_e, num))


def random_vectors(key: Key[Array, ""], z_e: Split, num: int) -> Float[Array, "g num d"]:
    """Draw normal vectors, with the mean and the standard deviation of every dimension of the batch."""
    flat = jnp.asarray(z_e).reshape(-1, *z_e.shape[-2:])
    mean, deviation = jnp.mean(flat, axis=0)[:, None], jnp.std(flat, axis=0)[:, None]
    return mean + deviation * jax.random.normal(key, (flat.shape[1], num, flat.shape[2]), jnp.float32)


STARTS: dict[str, Callable] = {"data": draw_vectors, "kmeans": kmeans, "random": random_vectors}
