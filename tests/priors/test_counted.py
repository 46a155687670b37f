"""Counted priors against tables worked out in NumPy, whole fields and one code after the other."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.errors import InputError
from vqvae_jax.priors import ancestral
from vqvae_jax.priors.counted import COUNTED, Counted

SIZES = (3, 2)
FIELD = (2, 1, 2)


def random_codes(number, field=FIELD, sizes=SIZES, seed=0):
    """Codes that lean to low numbers, at every position by another amount."""
    random = np.random.default_rng(seed)
    sharpness = 1 + np.arange(math.prod(field)).reshape(field)
    return np.floor(random.random((number, *field)) ** sharpness * np.array(sizes)).astype(np.int32)


def counts_of(codes, size=3):
    return np.stack([np.sum(codes == k, axis=0) for k in range(size)], axis=-1).astype(np.float32)


def table_of(name, counts):
    """Probabilities [h,w,G,K] in float64, one added to every code there is."""
    counts = counts.astype(np.float64)
    by_place = {
        "uniform": np.zeros_like(counts),
        "unigram": np.broadcast_to(counts.sum((0, 1)), counts.shape),
        "positionwise": counts,
    }[name]
    smoothed = (by_place + 1) * (np.arange(3) < np.array(SIZES)[:, None])
    return smoothed / smoothed.sum(-1, keepdims=True)


@pytest.fixture
def counts():
    return counts_of(random_codes(50))


@pytest.mark.parametrize("name", COUNTED)
def test_every_field_has_the_probability_of_the_table_and_all_sum_to_one(name, counts):
    prior = Counted(name, SIZES)
    every = np.array(list(itertools.product(range(3), repeat=4)), np.int32).reshape(-1, *FIELD)
    log_prob = jax.jit(prior.log_prob)(prior.fit(jnp.asarray(counts)), every)
    places = np.indices(FIELD)
    expected = np.prod(table_of(name, counts)[(*places, every)], axis=(1, 2, 3))
    np.testing.assert_allclose(np.exp(np.asarray(log_prob, np.float64)), expected, rtol=1e-5)
    assert np.exp(np.asarray(log_prob, np.float64)).sum() == pytest.approx(1, abs=1e-5)
    possible = np.all(every < np.array(SIZES), axis=(1, 2, 3))
    np.testing.assert_array_equal(np.isneginf(log_prob), ~possible)


def test_counting_more_is_worth_something_where_places_differ(counts):
    codes = random_codes(50)
    of_each = [
        np.mean(Counted(name, SIZES).log_prob(Counted(name, SIZES).fit(jnp.asarray(counts)), codes)) for name in COUNTED
    ]
    assert list(COUNTED) == ["uniform", "unigram", "positionwise"]
    assert of_each[0] + 0.1 < of_each[1]
    assert of_each[1] + 0.1 < of_each[2]


@pytest.mark.parametrize("name", COUNTED)
def test_one_code_after_the_other_is_the_whole(name, counts):
    prior, codes = Counted(name, SIZES), random_codes(7, seed=1)
    variables = prior.fit(jnp.asarray(counts))
    cache, total = prior.start(variables, len(codes)), np.zeros(7)
    for n, (i, j, g) in enumerate(np.ndindex(*FIELD)):
        if j == g == 0:
            cache = prior.row(variables, cache, codes, i)
        logits, cache = prior.step(variables, cache, np.full_like(codes, 1), n)
        total += jax.nn.log_softmax(logits)[np.arange(7), codes[:, i, j, g]]
    np.testing.assert_allclose(total, prior.log_prob(variables, codes), rtol=1e-5)


@pytest.mark.parametrize("name", COUNTED)
def test_codes_are_drawn_with_the_probabilities_of_the_table(name, counts):
    prior, number = Counted(name, SIZES), 4000
    uniforms = np.random.default_rng(0).random((4, number)).astype(np.float32)
    start = np.zeros((number, *FIELD), np.int32)
    codes = jax.jit(partial(ancestral.sample, prior))(prior.fit(jnp.asarray(counts)), start, None, uniforms)
    np.testing.assert_allclose(counts_of(np.asarray(codes)) / number, table_of(name, counts), atol=0.035)
    np.testing.assert_array_equal(np.max(codes, axis=(0, 1, 2)), [2, 1])


@pytest.mark.parametrize("field", [(1, 1, 2), (1, 2, 2), (4, 3, 2)])
def test_a_positionwise_prior_refuses_a_field_of_another_size(counts, field):
    # Broadcast over a field of one position, it would count every position of the table.
    prior = Counted("positionwise", SIZES)
    variables, codes = prior.fit(jnp.asarray(counts)), np.zeros((2, *field), np.int32)
    size = f"{field[0]}x{field[1]}"
    for call in (lambda: prior.log_prob(variables, codes), lambda: prior.step(variables, (), codes, 0)):
        with pytest.raises(InputError, match=f"counted on 2x1 codes, these images have {size}") as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", [(1, 1, 2), (4, 3, 2)])
def test_uniform_and_unigram_measure_any_size(counts, field):
    codes = random_codes(3, field)
    nats = -Counted("uniform", SIZES).log_prob(Counted("uniform", SIZES).fit(jnp.asarray(counts)), codes)
    np.testing.assert_allclose(nats, field[0] * field[1] * math.log(3 * 2), rtol=1e-6)
    nats = -Counted("unigram", SIZES).log_prob(Counted("unigram", SIZES).fit(jnp.asarray(counts)), codes)
    of_codes = table_of("unigram", counts)[0, 0][np.arange(2), codes]
    np.testing.assert_allclose(nats, -np.log(of_codes).sum((1, 2, 3)), rtol=1e-5)


def test_without_counts_all_codes_are_as_probable():
    prior = Counted("uniform", (5, 5, 5))
    nats = -prior.log_prob(prior.fit(None), np.full((2, 3, 4, 3), 4, np.int32))
    np.testing.assert_allclose(nats, 3 * 3 * 4 * math.log(5), rtol=1e-6)
