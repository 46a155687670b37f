"""The context likelihood: what a pixel may see, in which order pixels are known, and what is trained beside."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.errors import InputError
from vqvae_jax.likelihoods.context import Context
from vqvae_jax.likelihoods.discretised import to_levels
from vqvae_jax.likelihoods.pixelwise import LogisticMixture

KEY = jax.random.key(0)


def case(likelihood, shape, seed=0):
    random = np.random.default_rng(seed)
    features = jnp.asarray(0.3 * random.normal(size=(*shape[:3], likelihood.features(shape[3]))), jnp.float32)
    return likelihood.init(KEY, shape[3]), features, random.integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_a_pixel_changes_the_probabilities_of_those_that_see_it_which_come_later(reach):
    likelihood, (height, width) = Context(reach=reach, units=8), (5, 6)
    params, features, images = case(likelihood, (1, height, width, 3))
    params["prediction"] += 1.0  # by which every neighbour counts
    log_prob = jax.jit(likelihood.log_prob)
    before = np.asarray(log_prob(params, features, images))
    order = likelihood.order(height, width)
    number = {tuple(place): step for step, places in enumerate(order) for place in places.tolist()}
    for y, x in np.ndindex(height, width):
        changed = images.copy()
        changed[0, y, x] ^= 128
        differs = np.argwhere((np.asarray(log_prob(params, features, changed)) != before)[0].any(-1))
        later = [(y + dy, x + dx) for dy in range(1, reach + 1) for dx in range(-reach, reach + 1)]
        later += [(y, x + dx) for dx in range(1, reach + 1)]
        seeing = {(a, b) for a, b in later if 0 <= a < height and 0 <= b < width}
        assert {tuple(place) for place in differs.tolist()} == seeing | {(y, x)}
        assert all(number[place] > number[y, x] for place in seeing)


@pytest.mark.parametrize(("size", "steps", "pixels"), [(32, 156, 8), (128, 636, 32)])
def test_the_front_takes_so_many_steps(size, steps, pixels):
    assert Context().order(size, size).shape == (steps, pixels, 2)


def test_the_first_prediction_is_half_left_and_half_above():
    likelihood = Context(units=8, components=2, conditioning=0)
    params, features, images = case(likelihood, (1, 4, 5, 3))
    params = {
        key: value if key == "prediction" else jax.tree.map(jnp.zeros_like, value) for key, value in params.items()
    }
    q = likelihood.at(params, features, images, np.array([[2, 3], [0, 0]], np.int32))
    means = np.asarray(to_levels(q))[0, :, 2:8].reshape(2, 3, 2)  # two log weights stand before them
    expected = (images[0, 2, 2].astype(float) + images[0, 1, 3]) / 2
    np.testing.assert_allclose(means[0], np.stack([expected, expected], -1), rtol=1e-5)
    np.testing.assert_allclose(means[1], 127.5, err_msg="outside the image there is gray")


def test_the_head_is_a_mixture_given_z_alone_and_is_trained_by_its_weight():
    likelihood = Context(units=8, head_weight=0.25)
    params, features, images = case(likelihood, (1, 3, 4, 3))
    head, size = LogisticMixture(3), LogisticMixture(3).features(3)
    np.testing.assert_array_equal(
        likelihood.log_prob_of_head(features, images), head.log_prob({}, features[..., :size], images)
    )
    np.testing.assert_array_equal(likelihood.mean(params, features), head.mean({}, features[..., :size]))
    of_loss, of_context, of_head = (
        jax.grad(lambda f, g=g: jnp.sum(g(f)))(features)
        for g in (
            lambda f: likelihood.loss(params, f, images),
            lambda f: -likelihood.log_prob(params, f, images),
            lambda f: -likelihood.log_prob_of_head(f, images),
        )
    )
    np.testing.assert_allclose(of_loss, of_context + 0.25 * of_head, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(of_head).max()) > 0.1


def test_options_out_of_range_are_named():
    for options in ({"reach": 0}, {"units": 0}, {"blocks": -1}, {"head_weight": -0.1}):
        with pytest.raises(InputError, match=rf"model.context.{next(iter(options))}"):
            Context(**options)
