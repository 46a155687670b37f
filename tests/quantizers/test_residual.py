"""Residual stages against a loop over positions; dropout; a codebook for all stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.quantizers import ResidualQuantizer
from vqvae_jax.quantizers.ema import Ema
from vqvae_jax.quantizers.estimators import ESTIMATORS

G, K, D = 3, 5, 2
KEY = jax.random.key(0)


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def variables_of(codebook):
    return {"params": {}, "state": Ema(jnp.ones(codebook.shape[:2]), jnp.asarray(codebook))}


def greedy(z_e, codebook):
    """What each stage sees [N,G,D] and chooses [N,G], one position after the other."""
    seen, chosen = np.zeros((len(z_e), G, D)), np.zeros((len(z_e), G), int)
    for n, residual in enumerate(z_e.astype(np.float64)):
        for g in range(G):
            seen[n, g] = residual
            chosen[n, g] = np.argmin(np.sum((residual - codebook[g]) ** 2, axis=-1))
            residual = residual - codebook[g, chosen[n, g]]
    return seen, chosen


def test_stages_equal_a_loop_and_the_first_few_codes_are_a_coarser_vector():
    z_e, codebook = random(40, D), random(G, K, D, seed=1) / np.array([1, 2, 4], np.float32).reshape(G, 1, 1)
    quantizer, variables = ResidualQuantizer(K, G, D), variables_of(codebook)
    z_q, indices, losses = jax.jit(quantizer)(variables, z_e)
    seen, chosen = greedy(z_e, codebook)
    np.testing.assert_array_equal(indices, chosen)
    codes = codebook[np.arange(G)[None], chosen]
    np.testing.assert_allclose(z_q, codes.sum(axis=1), rtol=1e-5, atol=1e-6)
    assert float(losses["commitment"]) == pytest.approx(np.mean((seen - codes) ** 2), rel=1e-5)
    for n in range(1, G + 1):
        coarse = quantizer.look_up(variables, indices[:, :n])
        np.testing.assert_allclose(coarse, codes[:, :n].sum(axis=1), rtol=1e-5, atol=1e-6)


def test_a_shared_codebook_moves_by_what_all_stages_see():
    z_e, codebook = random(40, D), random(1, K, D, seed=1)
    quantizer = ResidualQuantizer(K, G, D, shared=True, ema_decay=0.75, revival_threshold=0.0)
    variables = variables_of(codebook)
    indices = quantizer(variables, z_e).indices
    seen, chosen = greedy(z_e, np.repeat(codebook, G, axis=0))
    np.testing.assert_array_equal(indices, chosen)
    new = jax.jit(quantizer.next_state)(variables, z_e, indices, KEY)
    count, total = np.bincount(chosen.ravel(), minlength=K), np.zeros((K, D))
    np.add.at(total, chosen.ravel(), seen.reshape(-1, D))
    np.testing.assert_allclose(new.count[0], 0.75 + 0.25 * count, rtol=1e-5)
    np.testing.assert_allclose(new.total[0], 0.75 * codebook[0] + 0.25 * total, rtol=1e-4, atol=1e-5)


def test_each_stage_starts_at_what_the_stages_before_it_leave():
    z_e, quantizer = random(40, D), ResidualQuantizer(K, G, D)
    params, state = jax.jit(quantizer.init)(KEY, z_e)
    codebook = np.asarray(quantizer.codebook({"params": params, "state": state}))
    seen, _ = greedy(z_e, codebook)
    for g in range(G):
        distances = np.abs(codebook[g][:, None] - seen[None, :, g]).max(axis=-1)
        assert np.all(distances.min(axis=1) < 1e-4)


def test_dropout_leaves_some_examples_with_their_first_codes_in_training_alone():
    quantizer, z_e = ResidualQuantizer(K, G, D, quantizer_dropout=0.6), random(3000, 2, D)
    variables = variables_of(random(G, K, D, seed=1))
    whole, dropped = jax.jit(quantizer)(variables, z_e), jax.jit(quantizer)(variables, z_e, KEY)
    np.testing.assert_array_equal(whole.indices, dropped.indices)
    np.testing.assert_array_equal(whole.losses["commitment"], dropped.losses["commitment"])
    prefixes = jnp.stack([quantizer.look_up(variables, whole.indices[..., :n]) for n in range(1, G + 1)])
    is_prefix = np.all(np.isclose(prefixes, dropped.z_q[None], atol=1e-5), axis=(2, 3))  # both positions alike
    np.testing.assert_array_equal(is_prefix.sum(axis=0), 1)
    # 60 % have 1, 2 or 3 codes with the same probability.
    np.testing.assert_allclose(is_prefix.mean(axis=1), [0.2, 0.2, 0.6], atol=0.04)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_estimator_is_that_of_the_sum_of_all_stages(estimator):
    quantizer, z_e = ResidualQuantizer(K, G, D, estimator=estimator), random(20, D)
    variables, upstream = variables_of(random(G, K, D, seed=1)), random(20, D, seed=2)
    z_q = quantizer(variables, z_e).z_q
    got = jax.jit(jax.grad(lambda z_e: jnp.sum(quantizer(variables, z_e).z_q * upstream)))(z_e)
    expected = jax.jit(jax.grad(lambda z_e: jnp.sum(ESTIMATORS[estimator](z_e, z_q) * upstream)))(z_e)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_no_dropout_without_the_option():
    quantizer, z_e = ResidualQuantizer(K, G, D), random(20, D)
    variables = variables_of(random(G, K, D, seed=1))
    whole, trained = jax.jit(quantizer)(variables, z_e), jax.jit(quantizer)(variables, z_e, KEY)
    np.testing.assert_array_equal(whole.z_q, trained.z_q)
