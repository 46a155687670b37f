"""Priors over codes: they sum to one, look only back, and give one after the other what they give all at once."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.priors import ancestral
from vqvae_jax.priors.autoregressive import Autoregressive
from vqvae_jax.registry import PRIORS as NETWORKS

FEATURES = {"pixelcnn": 6, "transformer": 32}


def make(name, field, size, num_classes=0, label_dropout=0.0, *, layers=2, sizes=None):
    """A prior with parameters that are far from their small first values."""
    labels = num_classes + (label_dropout > 0)
    network = NETWORKS[name](field, size, labels, FEATURES[name], layers, 0.1)
    prior = Autoregressive(network, sizes or (size,) * field[2], num_classes, label_dropout)
    batch = {"codes": jnp.zeros((2, *field), jnp.int32), "label": jnp.zeros(2, jnp.int32)}
    params = jax.jit(prior.init)(jax.random.key(0), batch)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(key, x.shape) for x, key in zip(leaves, keys, strict=True)]
    return prior, {"params": jax.tree.unflatten(tree, moved)}


def random_codes(field, size, number=3, seed=0):
    return np.random.default_rng(seed).integers(0, size, (number, *field)).astype(np.int32)


def naive_sample(prior, variables, label, uniforms, codes, keep):
    """One whole pass a code."""
    logits = jax.jit(prior.logits)
    codes = codes.copy()
    for n, place in enumerate(np.ndindex(*codes.shape[1:])):
        if n >= keep:
            at = (slice(None), *place)
            codes[at] = ancestral.draw(
                logits(variables, codes, label)[at], jnp.asarray(uniforms[n]), ancestral.Options()
            )
    return codes


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("num_classes", [0, 2])
def test_probabilities_of_all_fields_sum_to_one(name, num_classes):
    prior, variables = make(name, (2, 1, 2), 3, num_classes)
    every = np.array(list(itertools.product(range(3), repeat=4)), np.int32).reshape(-1, 2, 1, 2)
    label = np.full(len(every), 1, np.int32) if num_classes else None
    log_prob = jax.jit(prior.log_prob)(variables, every, label)
    assert np.ptp(log_prob) > 1
    assert np.exp(np.asarray(log_prob, np.float64)).sum() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("label", [None, pytest.param(1, marks=pytest.mark.slow)])
def test_a_code_depends_on_those_before_it_and_on_no_other(name, label):
    # Every place has a code of its own, so what depends on an embedding depends on a place.
    field = (3, 4, 2)
    total = math.prod(field)
    prior, variables = make(name, field, total, num_classes=0 if label is None else 2, layers=4)
    codes = np.arange(total, dtype=np.int32).reshape(1, *field)
    labels = None if label is None else np.array([label], np.int32)
    weights = jax.random.normal(jax.random.key(5), (total,))

    def outputs(embeddings):
        changed = {"params": variables["params"] | embeddings}
        return (prior.logits(changed, codes, labels) @ weights).reshape(-1)

    embeddings = {key: variables["params"][key] for key in ("embedding", "depth") if key in variables["params"]}
    jacobian = jax.jit(jax.jacrev(outputs))(embeddings)
    moved = sum(jnp.sum(jnp.abs(j), axis=(1, 3)) for j in jacobian.values())  # of output n by code m
    np.testing.assert_array_equal(np.asarray(moved) > 0, np.tril(np.ones((total, total), bool), -1))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("field", "num_classes"), [pytest.param((3, 4, 1), 0, marks=pytest.mark.slow), ((4, 3, 3), 3)])
def test_steps_give_the_logits_of_the_whole_pass(name, field, num_classes):
    prior, variables = make(name, field, 5, num_classes)
    codes = random_codes(field, 5)
    label = np.array([2, 0, 1], np.int32) if num_classes else None
    expected = np.asarray(jax.jit(prior.logits)(variables, codes, label))
    row, step = jax.jit(prior.row), jax.jit(prior.step)
    cache = prior.start(variables, len(codes), label)
    for n, (i, j, g) in enumerate(np.ndindex(*field)):
        # Whatever stands from here on must not be looked at.
        so_far = codes.reshape(len(codes), -1).copy()
        so_far[:, n:] = 4
        so_far = so_far.reshape(codes.shape)
        if j == g == 0:
            cache = row(variables, cache, so_far, i)
        logits, cache = step(variables, cache, so_far, n)
        np.testing.assert_allclose(logits, expected[:, i, j, g], atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("keep", [0, pytest.param(7, marks=pytest.mark.slow)])
def test_sampling_equals_the_naive_sampler_in_float64(name, keep):
    field = (3, 4, 2)
    with jax.enable_x64(True):
        prior, variables = make(name, field, 5, num_classes=2)
        variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
        given, label = random_codes(field, 5), np.array([1, 0, 1], np.int32)
        uniforms = np.random.default_rng(1).random((math.prod(field), 3))
        sample = jax.jit(partial(ancestral.sample, prior, keep=keep))
        got = np.asarray(sample(variables, given, label, uniforms))
        expected = naive_sample(prior, variables, label, uniforms, given, keep)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(got.reshape(3, -1)[:, :keep], given.reshape(3, -1)[:, :keep])
    assert len(np.unique(got)) == 5


def test_samples_have_the_probabilities_that_the_prior_gives():
    field = (1, 2, 1)
    prior, variables = make("pixelcnn", field, 3)
    number = 20_000
    uniforms = np.random.default_rng(0).random((2, number)).astype(np.float32)
    codes = jax.jit(partial(ancestral.sample, prior))(variables, np.zeros((number, *field), np.int32), None, uniforms)
    every = np.array(list(itertools.product(range(3), repeat=2)), np.int32).reshape(-1, *field)
    expected = np.exp(jax.jit(prior.log_prob)(variables, every))
    counts = np.bincount(np.asarray(codes).reshape(-1, 2) @ [3, 1], minlength=9)
    # Within four standard deviations of each count.
    assert np.all(np.abs(counts - number * expected) < 4 * np.sqrt(number * expected * (1 - expected)) + 1)


def chosen_from(logits, options):
    """Which codes can be drawn, found by drawing with many numbers."""
    numbers = np.linspace(0, 1, 4001, endpoint=False).astype(np.float32)
    rows = np.broadcast_to(logits, (len(numbers), len(logits)))
    codes = np.asarray(jax.jit(partial(ancestral.draw, options=options))(jnp.asarray(rows), jnp.asarray(numbers)))
    return np.bincount(codes, minlength=len(logits)) / len(numbers)


@pytest.mark.parametrize("temperature", [1e-3, 1e-38, 1e-60])
def test_the_coldest_draw_is_the_most_probable_code(temperature):
    logits = jnp.array([[1.0, 20.0, 3.0], [-7.0, -9.0, -8.0]])
    found = ancestral.draw(logits, jnp.array([0.99, 0.5]), ancestral.Options(temperature=temperature))
    np.testing.assert_array_equal(found, [1, 0])


def test_temperature_top_k_and_top_p_as_written_down():
    logits = np.log(np.array([0.4, 0.05, 0.3, 0.2, 0.05], np.float32))
    probabilities = np.exp(logits)
    np.testing.assert_allclose(chosen_from(logits, ancestral.Options()), probabilities, atol=1e-3)
    sharp = probabilities**2 / np.sum(probabilities**2)
    np.testing.assert_allclose(chosen_from(logits, ancestral.Options(temperature=0.5)), sharp, atol=1e-3)
    np.testing.assert_allclose(
        chosen_from(logits, ancestral.Options(top_k=2)), np.array([4, 0, 3, 0, 0]) / 7, atol=1e-3
    )
    # The fewest that have 0.75 of the probability: 0.4 and 0.3 have 0.7, so the third is needed.
    np.testing.assert_allclose(
        chosen_from(logits, ancestral.Options(top_p=0.75)), np.array([4, 0, 3, 2, 0]) / 9, atol=1e-3
    )
    np.testing.assert_allclose(chosen_from(logits, ancestral.Options(top_p=1e-6)), [1, 0, 0, 0, 0])
    np.testing.assert_allclose(chosen_from(logits, ancestral.Options(top_k=1)), [1, 0, 0, 0, 0])


@pytest.mark.parametrize("size", [1, 2, 31, 33, 512])
def test_the_last_number_below_one_draws_the_last_possible_code(size):
    logits = np.where(np.arange(size) > size // 2, -np.inf, 0).astype(np.float32)[None]
    highest = np.nextafter(np.float32(1), np.float32(0))[None]
    assert int(ancestral.draw(jnp.asarray(logits), jnp.asarray(highest), ancestral.Options())[0]) == min(
        size // 2, size - 1
    )
    assert int(ancestral.draw(jnp.asarray(logits), jnp.zeros(1), ancestral.Options())[0]) == 0


def test_labels_change_the_codes_and_the_marginal_adds_them_up():
    prior, variables = make("pixelcnn", (2, 3, 2), 4, num_classes=3)
    codes = random_codes((2, 3, 2), 4, number=5)
    given = np.stack([jax.jit(prior.log_prob)(variables, codes, np.full(5, y, np.int32)) for y in range(3)])
    assert np.abs(np.diff(given, axis=0)).min() > 1e-3
    frequencies = np.array([0.5, 0.2, 0.3])
    expected = np.log(frequencies @ np.exp(given.astype(np.float64)))
    log_frequencies = np.log(frequencies).astype(np.float32)
    fitted = {"log_class_frequencies": log_frequencies}
    got = jax.jit(prior.log_prob)(variables | {"fitted": fitted}, codes)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_without_a_label_means_the_label_that_stands_for_none():
    prior, variables = make("pixelcnn", (2, 3, 1), 4, num_classes=2, label_dropout=0.5)
    codes = random_codes((2, 3, 1), 4)
    none = jax.jit(prior.log_prob)(variables, codes, np.full(3, 2, np.int32))
    np.testing.assert_array_equal(jax.jit(prior.log_prob)(variables, codes), none)


def test_training_leaves_out_the_share_of_labels_that_it_is_told_to():
    prior, variables = make("pixelcnn", (1, 1, 1), 2, num_classes=1, label_dropout=0.25)
    # The label's own row is what moves the loss of a row of its label; count whose gradient reaches which row.
    batch = {"codes": jnp.zeros((4000, 1, 1, 1), jnp.int32), "label": jnp.zeros(4000, jnp.int32)}

    def loss(params):
        return prior.loss({"params": params}, batch, jax.random.key(3))[0]

    moved = jnp.abs(jax.jit(jax.grad(loss))(variables["params"])["label"]).sum((1, 2, 3))
    other = jax.jit(jax.grad(loss))(variables["params"] | {"label": variables["params"]["label"][jnp.array([0, 0])]})
    share = jnp.abs(other["label"]).sum((1, 2, 3))
    assert np.all(np.asarray(moved) > 0)
    assert float(share[1] / share.sum()) == pytest.approx(0.25, abs=0.03)


def test_the_loss_is_the_mean_of_what_evaluation_measures():
    prior, variables = make("pixelcnn", (2, 3, 2), 4)
    still = Autoregressive(prior.network.clone(dropout=0.0), (4, 4), 0, 0.0)
    batch = {"codes": random_codes((2, 3, 2), 4), "label": np.zeros(3, np.int32)}
    loss, (_, metrics) = jax.jit(still.loss)(variables, batch, jax.random.key(0))
    expected = -np.mean(jax.jit(still.log_prob)(variables, batch["codes"])) / 12
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    assert float(metrics["bits_per_code"]) == pytest.approx(float(expected) / math.log(2), rel=1e-5)
    dropped = jax.jit(prior.loss)(variables, batch, jax.random.key(0))[0]
    assert abs(float(dropped) - float(expected)) > 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_codebooks_of_a_position_may_differ_in_size(name):
    prior, variables = make(name, (2, 1, 2), 3, sizes=(3, 2))
    every = np.array(list(itertools.product(range(3), repeat=4)), np.int32).reshape(-1, 2, 1, 2)
    possible = np.all(every < np.array([3, 2]), axis=(1, 2, 3))
    probabilities = np.exp(np.asarray(jax.jit(prior.log_prob)(variables, every), np.float64))
    assert probabilities[possible].sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(probabilities[~possible], 0)
    uniforms = np.random.default_rng(0).random((4, 500)).astype(np.float32)
    uniforms[:, 0] = np.nextafter(np.float32(1), np.float32(0))
    start = np.zeros((500, 2, 1, 2), np.int32)
    drawn = np.asarray(jax.jit(partial(ancestral.sample, prior))(variables, start, None, uniforms))
    np.testing.assert_array_equal(drawn.max((0, 1, 2)), [2, 1])
