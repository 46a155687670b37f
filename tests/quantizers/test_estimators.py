"""The rotation trick: its gradient is that of a rotation, also where there is none, and of normalised codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.quantizers import VectorQuantizer, rotation, straight_through
from vqvae_jax.quantizers.ema import Ema


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@jax.jit
def jacobians(z_e, z_q):
    """D rotation / d z_e of every pair of vectors."""
    return jax.vmap(jax.jacrev(rotation))(z_e, z_q)


def test_the_map_is_a_rotation_times_the_ratio_of_lengths_and_takes_z_e_to_z_q():
    z_e, z_q = random(50, 5), random(50, 5, seed=1)
    ratio = np.linalg.norm(z_q, axis=-1) / np.linalg.norm(z_e, axis=-1)
    turns = np.asarray(jacobians(z_e, z_q), np.float64) / ratio[:, None, None]
    np.testing.assert_allclose(turns @ turns.swapaxes(1, 2), np.broadcast_to(np.eye(5), (50, 5, 5)), atol=1e-4)
    np.testing.assert_allclose(np.linalg.det(turns), 1, rtol=1e-4)
    np.testing.assert_allclose((turns @ z_e[..., None])[..., 0] * ratio[:, None], z_q, atol=1e-4)
    # Upstream gradients keep their angle to the code: <g, q> / |q| = <J'g, e> / |e| / ratio.
    upstream = random(50, 5, seed=2)
    back = np.einsum("nij,ni->nj", turns, upstream)
    expected = np.sum(upstream * z_q, axis=-1) / np.linalg.norm(z_q, axis=-1)
    np.testing.assert_allclose(np.sum(back * z_e, axis=-1) / np.linalg.norm(z_e, axis=-1), expected, atol=1e-4)


@pytest.mark.parametrize("estimator", [straight_through, rotation])
def test_an_estimator_gives_exactly_z_q_and_its_map_does_not_depend_on_z_e(estimator):
    z_e, z_q = 1e6 * random(4), random(4, seed=1)
    assert np.asarray(jax.jit(estimator)(z_e, z_q)).tobytes() == z_q.tobytes()
    second = jax.jit(jax.jacfwd(jax.jacrev(lambda z_e: estimator(z_e, z_q))))(z_e)
    np.testing.assert_array_equal(second, 0)


def test_vectors_without_a_length_let_the_gradient_straight_through():
    zero, some, tiny = np.zeros(3, np.float32), random(3), np.full(3, 1e-12, np.float32)
    pairs = [(zero, some), (some, zero), (zero, zero), (tiny, some)]
    found = jacobians(*(jnp.asarray(side) for side in zip(*pairs, strict=True)))
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(3), (4, 3, 3)))


@pytest.mark.parametrize("off", [0.0, 1e-6, 1e-3])
def test_opposite_vectors_have_a_finite_gradient_that_keeps_lengths(off):
    z_e = random(20, 4)
    z_q = -z_e + np.float32(off) * random(20, 4, seed=1)
    found = np.asarray(jacobians(z_e, z_q), np.float64)
    np.testing.assert_allclose(found @ found.swapaxes(1, 2), np.broadcast_to(np.eye(4), (20, 4, 4)), atol=1e-2)
    np.testing.assert_allclose((found @ z_e[..., None])[..., 0], z_q, atol=1e-2)


def test_with_normalised_codes_the_rotation_is_between_unit_vectors():
    # Between z_e as it came and a code of length 1, the gradient of a long z_e would be scaled down twice.
    z_e, upstream = 30 * random(40, 3).astype(np.float64), random(40, 3, seed=1).astype(np.float64)
    quantizer = VectorQuantizer(6, 1, 3, distance="cosine", estimator="rotation")
    codes = random(6, 3, seed=2)
    variables = {"params": {}, "state": Ema(jnp.ones((1, 6)), jnp.asarray(codes)[None])}
    z_q, back = jax.vjp(jax.jit(lambda z_e: quantizer(variables, z_e).z_q), jnp.asarray(z_e, jnp.float32))
    (to_z_e,) = back(jnp.asarray(upstream, jnp.float32))
    e, q = z_e / np.linalg.norm(z_e, axis=-1, keepdims=True), codes / np.linalg.norm(codes, axis=-1, keepdims=True)
    q = q[np.argmax(e @ q.T, axis=-1)]
    np.testing.assert_allclose(z_q, q, rtol=1e-5)
    r = (e + q) / np.linalg.norm(e + q, axis=-1, keepdims=True)
    for n in range(len(z_e)):
        turn = np.eye(3) - 2 * np.outer(r[n], r[n]) + 2 * np.outer(q[n], e[n])
        normalisation = (np.eye(3) - np.outer(e[n], e[n])) / np.linalg.norm(z_e[n])
        np.testing.assert_allclose(to_z_e[n], upstream[n] @ turn @ normalisation, rtol=1e-3, atol=1e-5)


def test_a_vector_without_a_length_can_be_normalised_and_its_gradient_is_finite():
    quantizer = VectorQuantizer(4, 1, 3, distance="cosine")
    variables = {"params": {}, "state": Ema(jnp.ones((1, 4)), jnp.asarray(random(1, 4, 3)))}

    def total(z_e):
        z_q, _, losses = quantizer(variables, z_e)
        return jnp.sum(z_q) + sum(losses.values())

    gradient = jax.jit(jax.grad(total))(jnp.zeros((2, 3)))
    assert np.all(np.isfinite(gradient))
    assert np.abs(gradient).max() < 10
