"""Metrics against scikit-image, SciPy and hand-worked numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy
from skimage.metrics import mean_squared_error, peak_signal_noise_ratio, structural_similarity

from vqvae_jax.evaluation import metrics


def pairs(shape, noise):
    """Smooth images and noisy copies of them, uint8."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: shape[1], : shape[2]]
    smooth = 127 + 100 * np.sin(rows / 5 + columns / 7)[None, ..., None] * np.ones(shape)
    noisy = smooth + rng.normal(0, noise, shape)
    return [np.clip(np.round(x), 0, 255).astype(np.uint8) for x in (smooth, noisy)]


@pytest.mark.parametrize(
    ("nats", "shape", "expected"),
    [
        (3072 * np.log(2), (32, 32, 3), 1.0),
        (28 * 28 * np.log(256), (28, 28, 1), 8.0),
        (100.0, (2, 5, 10), 1.4426950408889634),
        (0.0, (8, 8, 3), 0.0),
    ],
)
def test_nats_to_bits_per_dim_equals_hand_worked_numbers(nats, shape, expected):
    assert metrics.nats_to_bits_per_dim(nats, shape) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("shape", "noise"), [((2, 8, 12, 3), 3), ((3, 28, 28, 1), 60)])
def test_mean_squared_error_and_psnr_equal_scikit_image(shape, noise):
    a, b = pairs(shape, noise)
    mse = jax.jit(metrics.mean_squared_error)(a, b)
    np.testing.assert_allclose(mse, [mean_squared_error(*pair) for pair in zip(a, b, strict=True)], rtol=1e-5)
    expected = [peak_signal_noise_ratio(*pair, data_range=255) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(jax.jit(metrics.psnr)(mse), expected, rtol=1e-5)


def test_mean_squared_error_of_opposite_ends_is_not_wrapped_around():
    ends = np.zeros((1, 2, 2, 1), np.uint8), np.full((1, 2, 2, 1), 255, np.uint8)
    for pair in (ends, ends[::-1]):
        mse = jax.jit(metrics.mean_squared_error)(*pair)
        np.testing.assert_array_equal(mse, [255.0**2])
        np.testing.assert_allclose(jax.jit(metrics.psnr)(mse), [0.0], atol=1e-5)


def test_psnr_of_equal_images_is_infinite():
    assert np.isposinf(metrics.psnr(jnp.zeros(1)))


def expected_ssim(a, b):
    _, full = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=-1, full=True
    )
    # scikit-image also takes windows that reach over the border, 5 pixels on every side.
    return full[5:-5, 5:-5].mean()


@pytest.mark.parametrize(
    ("shape", "noise"), [((2, 32, 32, 3), 5), ((2, 28, 28, 1), 40), ((1, 16, 24, 3), 100), ((1, 11, 13, 1), 20)]
)
def test_ssim_equals_scikit_image(shape, noise):
    a, b = pairs(shape, noise)
    expected = [expected_ssim(*pair) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(jax.jit(metrics.ssim)(a, b), expected, atol=1e-6)


@pytest.mark.parametrize("level", [0, 128, 250])
def test_ssim_of_nearly_constant_images_equals_scikit_image(level):
    # In float32 E[x^2] - E[x]^2 would be off by up to 1e-4.
    rng = np.random.default_rng(0)
    a, b = (level + rng.integers(0, 2, (4, 32, 32, 3)).astype(np.uint8) for _ in range(2))
    expected = [expected_ssim(*pair) for pair in zip(a, b, strict=True)]
    np.testing.assert_allclose(jax.jit(metrics.ssim)(a, b), expected, atol=1e-6)


def test_ssim_of_equal_images_is_1():
    a, _ = pairs((2, 16, 16, 3), 0)
    np.testing.assert_allclose(jax.jit(metrics.ssim)(a, a), 1.0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(10, 32), (32, 10), (8, 8)])
def test_ssim_is_nan_where_the_window_does_not_fit(height, width):
    a, b = pairs((2, height, width, 3), 5)
    values = jax.jit(metrics.ssim)(a, b)
    assert values.shape == (2,)
    assert np.all(np.isnan(values))


def test_perplexity_of_uniform_use_is_k_and_of_a_single_code_1():
    counts = jnp.array([[3.0] * 8, [0.0] * 7 + [5.0], [1.0, 1.0] + [0.0] * 6])
    np.testing.assert_allclose(jax.jit(metrics.perplexity)(counts), [8, 1, 2], rtol=1e-6)


def test_perplexity_equals_scipy_and_does_not_depend_on_the_total():
    counts = np.random.default_rng(0).integers(0, 4, (3, 50)).astype(np.float32)
    expected = np.exp(entropy(counts.astype(np.float64), axis=-1))
    for scale in (1, 1000):
        np.testing.assert_allclose(jax.jit(metrics.perplexity)(counts * scale), expected, rtol=1e-5)


def test_perplexity_of_summed_counts_is_not_the_mean_of_batches():
    batches = jnp.array([[[4.0, 0.0]], [[0.0, 4.0]]])
    np.testing.assert_allclose(metrics.perplexity(batches.sum(0)), [2.0], rtol=1e-6)
    np.testing.assert_allclose([metrics.perplexity(batch) for batch in batches], [[1.0], [1.0]], rtol=1e-6)


def test_codebook_usage_is_the_share_of_codes_that_occur():
    counts = jnp.array([[0.0, 1.0, 0.0, 900.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 2.0]])
    np.testing.assert_array_equal(metrics.codebook_usage(counts, (4, 4, 4)), [0.5, 1.0, 0.25])
    np.testing.assert_array_equal(metrics.codebook_usage(counts[:2, 1:], (2, 3)), [1.0, 1.0])  # of different sizes
