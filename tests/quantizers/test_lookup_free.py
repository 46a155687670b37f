"""Entropies of lookup-free codes against all 2^d values, and in cases that are worked by hand."""

import itertools
import math

import jax
import numpy as np
import pytest

from vqvae_jax.quantizers import LookupFreeQuantizer

NONE = {"params": {}, "state": ()}


def losses_of(quantizer, z_e):
    return jax.jit(lambda z_e: quantizer(NONE, z_e).losses)(np.asarray(z_e, np.float32))


def entropies(z_e, temperature):
    """The two entropies from the distances to all codes."""
    codes = np.array(list(itertools.product((-1, 1), repeat=z_e.shape[1])))
    logits = -np.sum((z_e[:, None] - codes[None]) ** 2, axis=-1) / temperature
    p = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    mean = p.mean(axis=0)
    return -np.mean(np.sum(p * np.log(p), axis=1)), -np.sum(mean * np.log(mean))


@pytest.mark.parametrize(("bits", "temperature"), [(1, 1.0), (5, 0.5), (8, 2.0)])
def test_entropies_equal_those_of_all_codes(bits, temperature):
    z_e = np.random.default_rng(0).normal(size=(30, bits))
    losses = losses_of(LookupFreeQuantizer(bits, temperature=temperature), z_e)
    expected = entropies(z_e, temperature)
    assert [float(losses[name]) for name in ("sample_entropy", "batch_entropy")] == pytest.approx(expected, rel=1e-4)


def test_entropies_of_several_codes_are_their_mean():
    z_e = np.random.default_rng(0).normal(size=(10, 15))
    losses = losses_of(LookupFreeQuantizer(15), z_e)
    expected = np.mean([entropies(part, 1.0) for part in np.split(z_e, [8], axis=1)], axis=0)
    assert [float(losses[name]) for name in ("sample_entropy", "batch_entropy")] == pytest.approx(expected, rel=1e-4)


def test_entropies_in_cases_that_are_worked_by_hand():
    quantizer, all_bits = LookupFreeQuantizer(3), np.array(list(itertools.product((-20.0, 20.0), repeat=3)))
    for z_e, sample, batch in [
        (np.zeros((5, 3)), 3 * math.log(2), 3 * math.log(2)),  # not sure of anything
        (np.full((5, 3), 20.0), 0, 0),  # sure of one code
        (all_bits, 0, 3 * math.log(2)),  # sure, and all codes alike
        (all_bits[:4], 0, 2 * math.log(2)),  # half of them
    ]:
        losses = losses_of(quantizer, z_e)
        assert float(losses["sample_entropy"]) == pytest.approx(sample, abs=1e-5)
        assert float(losses["batch_entropy"]) == pytest.approx(batch, abs=1e-5)
    assert quantizer.loss_weights == {"commitment": 0.25, "sample_entropy": 0.1, "batch_entropy": -0.1}


def test_gradients_are_finite_far_from_and_at_the_boundary():
    quantizer = LookupFreeQuantizer(4, temperature=0.01)

    def total(z_e):
        losses = quantizer(NONE, z_e).losses
        return sum(weight * losses[name] for name, weight in quantizer.loss_weights.items())

    gradient = jax.jit(jax.grad(total))(np.array([[0.0, 1e-9, 100.0, -100.0]] * 2, np.float32))
    assert np.all(np.isfinite(gradient))


def test_many_bits_are_quantized_without_listing_codes():
    quantizer = LookupFreeQuantizer(60)
    z_e = np.random.default_rng(0).normal(size=(7, 60)).astype(np.float32)
    z_q, indices, losses = jax.jit(lambda z_e: quantizer(NONE, z_e))(z_e)
    assert quantizer.codebook_sizes == (2**12,) * 5
    np.testing.assert_array_equal(z_q, np.where(z_e > 0, 1, -1))
    np.testing.assert_array_equal(quantizer.look_up(NONE, indices), z_q)
    assert np.all(np.isfinite(list(losses.values())))
