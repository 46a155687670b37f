"""Images that are drawn: with the probabilities of their pixels, in the steps of the likelihood."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vqvae_jax.likelihoods.pixelwise import PIXELWISE, LogisticMixture, Pixelwise
from vqvae_jax.likelihoods.sampling import draw_pixels

NUM = 6000


def draw(likelihood, params, features, seed=0, channels=1, start=0):
    keys = jax.vmap(lambda n: jax.random.fold_in(jax.random.key(seed), n))(start + jnp.arange(len(features)))
    return np.asarray(
        jax.jit(draw_pixels, static_argnums=0, static_argnames="channels")(
            likelihood, params, features, keys, channels=channels
        )
    )


@pytest.mark.parametrize("name", PIXELWISE)
def test_levels_are_drawn_with_their_probabilities(name):
    likelihood = PIXELWISE[name]()
    params = {"scale": jnp.full(1, 40.0)} if name == "squared_error" else likelihood.init(jax.random.key(0), 1)
    # Off the centre, so that an end of the range has a mass of its own.
    features = jax.random.normal(jax.random.key(1), (1, 1, 1, likelihood.features(1)))
    features = 0.3 * features if name == "softmax_embedding" else 0.8 + 0.1 * features  # whose sums are far from flat
    drawn = draw(likelihood, params, jnp.broadcast_to(features, (NUM, *features.shape[1:])))
    levels = np.array(likelihood.levels, np.uint8).reshape(1, -1, 1, 1)
    log_probs = likelihood.log_prob(params, jnp.broadcast_to(features, (1, levels.size, 1, features.shape[-1])), levels)
    counts, expected = np.zeros(256), np.zeros(256)
    np.add.at(counts, drawn.ravel(), 1)
    expected[levels.ravel()] = NUM * np.exp(np.asarray(log_probs, np.float64)).ravel()
    # Neighbouring levels together, until some ten draws of each are to be expected.
    bins = (np.cumsum(expected) // 10).astype(int)
    counts, expected = (np.bincount(bins, x) for x in (counts, expected))
    kept = expected > 3
    assert kept.sum() >= min(20, len(likelihood.levels))
    assert stats.chisquare(counts[kept], expected[kept] * counts[kept].sum() / expected[kept].sum()).pvalue > 1e-3
    assert counts[~kept].sum() < 20


def test_coupled_channels_are_drawn_together():
    # Two components far apart, and in both green at -0.5 + tanh(1) red.
    weights, red, green, sharp = [0.0, 0.0], [-0.8, 0.8], [-0.5, -0.5], [-3.0, -3.0]
    features = jnp.array([*weights, *red, *green, *sharp, *sharp, 1.0, 1.0]).reshape(1, 1, 1, -1)
    drawn = draw(LogisticMixture(2), {}, jnp.broadcast_to(features, (2000, 1, 1, 12)), channels=2)
    unit = (drawn[:, 0, 0].astype(np.float64) - 127.5) / 127.5
    assert 900 < np.sum(unit[:, 0] > 0) < 1100
    np.testing.assert_allclose(unit[:, 1], -0.5 + np.tanh(1) * unit[:, 0], atol=0.15)


@pytest.mark.parametrize("name", ["logistic_mixture", "gaussian_pixel"])
def test_an_image_does_not_depend_on_its_batch(name):
    likelihood = PIXELWISE[name]()
    features = jax.random.normal(jax.random.key(0), (5, 3, 7, likelihood.features(3)))
    together = draw(likelihood, {}, features, channels=3)
    np.testing.assert_array_equal(draw(likelihood, {}, features[3:], channels=3, start=3), together[3:])
    assert np.mean(draw(likelihood, {}, features, seed=1, channels=3) != together) > 0.5
    # Every pixel has random numbers of its own.
    same = draw(likelihood, {}, jnp.broadcast_to(features[:, :1, :1], features.shape), channels=3)
    assert len(np.unique(same[0].reshape(-1, 3), axis=0)) > 10


@dataclass(frozen=True)
class Snake(Pixelwise):
    """A row at a time, padded: the first pixel of an image is at level 3, others are above the one before by 2 and 5.

    Level and step are certain, so the drawn image tells whether each step has seen the earlier ones.
    """

    def order(self, height, width):
        """One pixel a step, and in each a padded place, which is no pixel."""
        places = np.stack(np.divmod(np.arange(height * width, dtype=np.int32), width), axis=-1)
        return np.stack([places, np.broadcast_to(np.array([height, width], np.int32), places.shape)], axis=1)

    def at(self, params, features, images, places):
        """The level of the pixel before, and of a place that is none whatever is there."""
        number = places[:, 0] * images.shape[2] + places[:, 1] - 1
        before = images.reshape(len(images), -1, images.shape[-1])[:, jnp.maximum(number, 0)]
        return jnp.where((number < 0).reshape(1, -1, 1), 1.0, before.astype(jnp.float32))

    def log_prob_of(self, q, pixels):
        """Certain: the first channel is 2 above q, the second 3 above the first."""
        first = q[..., 0] + 2
        expected = jnp.stack([first, pixels[..., 0].astype(jnp.float32) + 3], axis=-1)
        return jnp.where(pixels == expected, 0.0, -jnp.inf)


def test_steps_see_earlier_ones_and_padded_places_are_no_pixels():
    drawn = draw(Snake(), {}, jnp.zeros((2, 3, 5, 2)), channels=2)
    first = 3 + 2 * np.arange(15).reshape(3, 5)
    np.testing.assert_array_equal(drawn, np.broadcast_to(np.stack([first, first + 3], axis=-1), drawn.shape))


class Noise(Snake):
    """The same steps, and all levels as probable."""

    def log_prob_of(self, q, pixels):
        return jnp.full((*pixels.shape[:-1], 2), -np.log(256))


def test_every_step_has_random_numbers_of_its_own():
    drawn = draw(Noise(), {}, jnp.zeros((2, 3, 5, 2)), channels=2)
    assert len(np.unique(drawn)) > 40
