"""Sums over several latents against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.evaluation import bounds


@pytest.mark.parametrize("num", [1, 2, 40, 256])
def test_nearest_combinations_are_the_cheapest_of_all(num):
    distances = np.random.default_rng(0).exponential(size=(2, 1, 2, 4)).astype(np.float32)
    nearest = jnp.asarray(np.argmin(distances, axis=-1), jnp.int32)
    found, valid = jax.jit(bounds.nearest_combinations, static_argnums=2)(jnp.asarray(distances), nearest, num)
    assert np.all(valid)
    everything = np.array(list(itertools.product(range(4), repeat=4))).reshape(-1, 2, 1, 2)

    def costs(codes):
        return np.take_along_axis(distances[None], codes[..., None], axis=-1).sum((1, 2, 3, 4))

    np.testing.assert_allclose(costs(np.asarray(found)), np.sort(costs(everything))[:num], rtol=1e-4)
    assert len({codes.tobytes() for codes in np.asarray(found)}) == num
    np.testing.assert_array_equal(found[0], nearest)


@pytest.mark.parametrize("num", [1, 3])
def test_the_chosen_code_comes_first_even_if_rounding_puts_another_nearer(num):
    distances, chosen = jnp.array([[[[0.25, 0.25 - 1e-7, 2.0]]]]), jnp.array([[[0]]], jnp.int32)
    found, valid = bounds.nearest_combinations(distances, chosen, num)
    np.testing.assert_array_equal(found[:, 0, 0, 0], [0, 1, 2][:num])
    assert np.all(valid)


def test_no_more_combinations_than_there_are():
    distances, nearest = jnp.array([[[[0.0, 2.0], [3.0, 1.0]]]]), jnp.array([[[0, 1]]], jnp.int32)
    found, valid = bounds.nearest_combinations(distances, nearest, 6)
    np.testing.assert_array_equal(valid, [True] * 4 + [False] * 2)
    np.testing.assert_array_equal(found[:4, 0, 0], [[0, 1], [1, 1], [0, 0], [1, 0]])


def test_a_sum_of_logarithms_equals_that_in_float64():
    terms = np.random.default_rng(0).normal(-10_000, 3, (1000, 4)).astype(np.float32)
    terms[::7, 1] = -np.inf
    terms[:, 2] = -np.inf

    def add_up(terms, divisor):
        return bounds.log_sum(1000, 4, lambda n: terms[n], divisor)

    total, mean = (jax.jit(add_up)(terms, divisor) for divisor in (1.0, 1000.0))
    expected = np.logaddexp.reduce(terms.astype(np.float64), axis=0)
    np.testing.assert_allclose(np.asarray(total)[[0, 1, 3]], expected[[0, 1, 3]], rtol=2e-7)
    np.testing.assert_allclose(np.asarray(mean)[0], expected[0] - np.log(1000), rtol=2e-7)
    assert np.isneginf(total[2])


def test_the_keys_of_images_depend_on_their_own_seed_alone():
    seeds = jnp.array([5, 7, 5], jnp.uint32)
    noise = jax.vmap(jax.random.uniform)(bounds.image_keys(seeds))
    assert noise[0] == noise[2] != noise[1]
    np.testing.assert_array_equal(jax.vmap(jax.random.uniform)(bounds.image_keys(seeds[1:2])), noise[1:2])
