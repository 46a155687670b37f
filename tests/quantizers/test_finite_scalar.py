"""Finite scalars and the joint index: every level is reached, in every dtype, and an index stands for its vector."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.errors import InputError
from vqvae_jax.quantizers import FiniteScalarQuantizer, LookupFreeQuantizer
from vqvae_jax.quantizers.joint_index import LARGEST, join_digits, split_indices, split_levels

NONE = {"params": {}, "state": ()}


def every_code(quantizer):
    (size,) = quantizer.codebook_sizes
    return quantizer.look_up(NONE, jnp.arange(size, dtype=jnp.int32)[:, None])


def inputs_of(quantizer):
    """Inputs that are rounded to each code: the inverse of the bound, from the paper's formula."""
    levels = np.array(quantizer.levels)
    half, offset = (levels - 1) * 1.001 / 2, np.where(levels % 2, 0, 0.5)
    places = np.asarray(every_code(quantizer), np.float64) * (levels // 2)
    return np.arctanh(np.clip((places + offset) / half, -0.9999, 0.9999)) - np.arctanh(offset / half)


@pytest.mark.parametrize("levels", [3, 4, 5, 7, 8, 16, 255, 2048])
def test_each_level_is_reached_in_order_and_0_stays_0(levels):
    quantizer = FiniteScalarQuantizer((levels,))
    z_e = np.linspace(-12, 12, 50_001, dtype=np.float32)[:, None]
    z_q, indices, _ = jax.jit(lambda z_e: quantizer(NONE, z_e))(z_e)
    np.testing.assert_array_equal(np.unique(indices), np.arange(levels))
    assert np.all(np.diff(indices[:, 0]) >= 0)
    half = levels // 2
    np.testing.assert_allclose(np.unique(z_q), np.arange(-half, levels - half) / half, rtol=1e-6)
    assert float(z_q[25_000, 0]) == 0.0
    assert int(indices[25_000, 0]) == half


def test_the_bound_of_an_even_number_of_levels_is_around_the_level_0():
    # tan for the inverse of tanh would put 0 elsewhere than at the level 0, ever more for few levels.
    quantizer = FiniteScalarQuantizer((4, 8))
    bound = jax.jit(quantizer._bound)(np.array([[0.0, 0.0], [-30.0, -30.0], [30.0, 30.0]], np.float32))
    half = 1.001 * np.array([1.5, 3.5])
    np.testing.assert_allclose(bound, [[0, 0], -half - 0.5, half - 0.5], atol=1e-6)


@pytest.mark.parametrize("levels", [(8, 8, 8), (8, 5, 5, 5), (8, 8, 8, 8)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_low_precision_reaches_every_code(levels, dtype):
    # Whole numbers above 256 have no bfloat16 each: an index computed in it would lose most codes.
    quantizer = FiniteScalarQuantizer(levels)
    z_e = jnp.asarray(inputs_of(quantizer), dtype)
    indices = jax.jit(lambda z_e: quantizer(NONE, z_e).indices)(z_e)
    np.testing.assert_array_equal(indices[:, 0], np.arange(math.prod(levels)))


def test_the_joint_index_is_that_of_numpy_both_ways():
    levels = (4, 3, 5)
    digits = np.array(list(itertools.product(*map(range, levels))), np.int32)
    indices = join_digits(digits, (levels,))
    np.testing.assert_array_equal(indices[:, 0], np.ravel_multi_index(digits.T, levels, order="F"))
    np.testing.assert_array_equal(split_indices(indices, (levels,)), digits)


def test_levels_are_whole_numbers_in_any_sequence():
    assert FiniteScalarQuantizer([8, 5]) == FiniteScalarQuantizer((8, 5))
    with pytest.raises(InputError, match=r"quantizer.levels is \(8.5, 5\): give whole numbers"):
        FiniteScalarQuantizer((8.5, 5))


@pytest.mark.parametrize(
    ("levels", "sizes"),
    [
        ((8, 5, 5, 5), (1000,)),
        ((2,) * 14, (2**14,)),
        ((2,) * 15, (2**8, 2**7)),
        ((2,) * 18, (2**9, 2**9)),
        ((8,) * 6, (2**9, 2**9)),
        ((8, 8, 8, 8, 8, 5), (2**9, 320)),
        ((LARGEST, 3), (LARGEST, 3)),
        ((2,) * 60, (2**12,) * 5),
    ],
)
def test_a_large_space_is_several_codes_of_which_none_is_large(levels, sizes):
    parts = split_levels(levels)
    assert tuple(map(math.prod, parts)) == sizes
    assert sum(parts, ()) == levels
    digits = np.random.default_rng(0).integers(0, levels, (50, len(levels)), np.int32)
    indices = jax.jit(lambda digits: join_digits(digits, parts))(digits)
    assert np.all(np.asarray(indices) < np.array(sizes))
    np.testing.assert_array_equal(split_indices(indices, parts), digits)


@pytest.mark.parametrize("quantizer", [FiniteScalarQuantizer((8, 8, 8, 8, 8, 5)), LookupFreeQuantizer(18)])
def test_several_codes_a_position_stand_for_the_vector(quantizer):
    z_e = np.random.default_rng(0).normal(size=(3, 20, quantizer.dim)).astype(np.float32)
    z_q, indices, _ = jax.jit(lambda z_e: quantizer(NONE, z_e))(z_e)
    assert indices.shape == (3, 20, 2)
    np.testing.assert_allclose(quantizer.look_up(NONE, indices), z_q, rtol=1e-6)
