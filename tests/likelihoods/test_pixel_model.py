"""The contract of every likelihood of the table: one step after the other is the whole, and each step sums to one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.errors import InputError
from vqvae_jax.likelihoods import LIKELIHOODS

KEY = jax.random.key(0)


def random(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def case(name, channels, size=(3, 5), batch=2):
    """A likelihood with parameters and features, and images of levels that it knows."""
    likelihood = LIKELIHOODS[name]()
    params = likelihood.init(KEY, channels)
    if likelihood.objective != "distortion":
        params |= {"scale": jnp.linspace(20.0, 60.0, channels)}
    # Near the centre, so that few masses underflow.
    features = 0.3 * random((batch, *size, likelihood.features(channels)))
    levels = np.random.default_rng(1).choice(likelihood.levels, (batch, *size, channels)).astype(np.uint8)
    return likelihood, params, features, levels


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_step_by_step_gives_the_log_probabilities_of_the_whole(name, channels):
    likelihood, params, features, images = case(name, channels)
    height, width = images.shape[1:3]
    at, pmf = jax.jit(likelihood.at), jax.jit(likelihood.pmf, static_argnums=2)
    # What isn't known yet is noise, at which nothing may look.
    known = np.random.default_rng(2).choice(likelihood.levels, images.shape).astype(np.uint8)
    stepwise = np.full(images.shape, np.nan)
    for places in likelihood.order(height, width):
        q = at(params, features, known, places)
        rows, columns = places[np.all(places < [height, width], axis=1)].T
        pixels = np.random.default_rng(3).choice(likelihood.levels, (2, len(places), channels)).astype(np.uint8)
        for channel in range(channels):
            masses = np.asarray(pmf(q, pixels, channel), np.float64)
            np.testing.assert_allclose(masses.sum(-1), 1.0, atol=1e-5)
            pixels[:, : len(rows), channel] = images[:, rows, columns, channel]
            of_pixel = np.take_along_axis(masses, pixels[..., channel, None].astype(int), axis=-1)[..., 0]
            stepwise[:, rows, columns, channel] = np.log(np.maximum(of_pixel, 1e-300))[:, : len(rows)]
        known[:, rows, columns] = images[:, rows, columns]
    whole = jax.jit(likelihood.log_prob)(params, features, images)
    large = np.asarray(whole) > -80
    assert np.mean(large) > 0.8
    np.testing.assert_allclose(stepwise[large], whole[large], rtol=1e-5, atol=1e-6)
    assert np.all(stepwise[~large] < -79)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (1, 7), (7, 1), (4, 4)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_order_has_every_pixel_once(name, height, width):
    order = LIKELIHOODS[name]().order(height, width)
    assert order.dtype == np.int32
    places = order.reshape(-1, 2)
    inside = places[np.all(places < [height, width], axis=1)]
    np.testing.assert_array_equal(np.sort(inside @ [width, 1]), np.arange(height * width))
    outside = places[np.any(places >= [height, width], axis=1)]
    np.testing.assert_array_equal(outside, np.broadcast_to([height, width], outside.shape))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_shapes_are_those_of_the_images(name, channels):
    likelihood, params, features, images = case(name, channels)
    for method in (likelihood.log_prob, likelihood.loss):
        found = jax.eval_shape(method, params, features, images)
        assert (found.shape, found.dtype) == (images.shape, jnp.float32)
    mean = np.asarray(jax.jit(likelihood.mean)(params, features))
    assert mean.shape == images.shape
    assert mean.min() > -2000, "levels, not the decoder's scale"
    assert np.ptp(mean) > 3


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_what_is_trained_is_what_is_measured_but_for_squared_error(name):
    likelihood, params, features, images = case(name, 3)
    loss, nats = (
        np.asarray(x)
        for x in (likelihood.loss(params, features, images), likelihood.log_prob(params, features, images))
    )
    if likelihood.objective == "distortion":
        np.testing.assert_array_equal(loss, -nats)
    else:
        error = np.asarray(features, np.float64) - (images / 127.5 - 1)
        np.testing.assert_allclose(loss, error**2 / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_low_precision_features_are_measured_in_float32(name, dtype):
    likelihood, params, features, images = case(name, 3)
    low = features.astype(dtype)

    def measures(features):
        step = likelihood.at(params, features, images, likelihood.order(3, 5)[0])
        return likelihood.log_prob(params, features, images), likelihood.mean(params, features), step

    for got, expected in zip(jax.jit(measures)(low), jax.jit(measures)(low.astype(jnp.float32)), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_features_for_another_number_of_channels_are_refused(name):
    likelihood, params, features, _ = case(name, 3)
    with pytest.raises(InputError, match=r"needs \d+ features a pixel, not \d+") as caught:
        likelihood.log_prob(params, features, np.zeros((2, 3, 5, 2), np.uint8))
    assert "\n" not in str(caught.value)


def test_squared_error_has_no_likelihood_before_its_scale_is_fitted():
    likelihood, _, features, images = case("squared_error", 3)
    assert np.all(np.isnan(likelihood.log_prob({}, features, images)))
    assert np.all(np.isfinite(likelihood.mean({}, features)))
