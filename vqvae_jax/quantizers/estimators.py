"""How a gradient passes a quantizer: each gives exactly `z_q`, with a gradient to `z_e` and none to `z_q`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vqvae_jax.quantizers.interface import AnyArray
from vqvae_jax.quantizers.nearest import NO_LENGTH, normalise

# Squared length of the sum of two unit vectors below which they are opposite.
OPPOSITE = 1e-8


def straight_through(z_e: Float[AnyArray, "*s"], z_q: Float[AnyArray, "*s"]) -> Float[Array, "*s"]:
    """Give exactly `z_q`, with a gradient that goes unchanged to `z_e` and not at all to `z_q` (sec. 3.2)."""
    return jax.lax.stop_gradient(jnp.asarray(z_q)) + (z_e - jax.lax.stop_gradient(z_e))


def rotation(z_e: Float[AnyArray, "*s d"], z_q: Float[AnyArray, "*s d"]) -> Float[Array, "*s d"]:
    """Give exactly `z_q`, with the gradient of the rotation and scaling that takes `z_e` there (Fifty et al. 2024).

    The map is |q|/|e| (I - 2rr' + 2(q/|q|)(e/|e|)'), r being the unit vector half way from e to q; it is held constant.
    Between opposite vectors, which have no such r, it is a reflection. Where either vector has no length the gradient
    goes straight through: the scale would be 0 or without bound.
    """
    z_e, z_q = jnp.asarray(z_e), jax.lax.stop_gradient(jnp.asarray(z_q))
    constant = jax.lax.stop_gradient(z_e)
    squares_e, squares_q = (jnp.sum(v**2, axis=-1, keepdims=True) for v in (constant, z_q))
    possible = jnp.minimum(squares_e, squares_q) > NO_LENGTH
    scale = jnp.sqrt(squares_q / jnp.where(possible, squares_e, 1.0))
    e, q = normalise(constant), normalise(z_q)
    r = normalise(e + q, least=OPPOSITE)
    along_r, along_e = (jnp.sum(z_e * v, axis=-1, keepdims=True) for v in (r, e))
    moved = jnp.where(possible, scale * (z_e - 2 * along_r * r + 2 * along_e * q), z_e)
    return straight_through(moved, z_q)


ESTIMATORS: dict[str, Callable] = {"straight_through": straight_through, "rotation": rotation}
