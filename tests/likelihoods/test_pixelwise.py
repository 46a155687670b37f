"""Likelihoods against SciPy in float64: proper distributions over the 256 levels, with finite gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vqvae_jax.likelihoods.discretised import round_to_uint8
from vqvae_jax.likelihoods.pixelwise import (
    PIXELWISE,
    Bernoulli,
    Gaussian,
    Logistic,
    LogisticMixture,
    Softmax,
    SoftmaxEmbedding,
    SquaredError,
)

LEVELS = np.arange(256, dtype=np.uint8)
# Means on the decoder's scale: ordinary, at and between the ends' levels, and far outside 0..255.
MEANS = [0.0, 1 / 255, 0.3, -0.77, 1.0, -1.0, 1.004, 3.0, -3.0, 50.0, -50.0, 700.0, -700.0]
# A logistic's log scale before and beyond where it is cut; a Gaussian's scale in levels as `fit` may give it.
LOG_SCALES = [-1e4, -20.0, -5.0, -2.0, 0.0, 1.0, 3.0, 7.7, 8.6, 20.0, 1e4]
GAUSSIAN_SCALES = [0.1, 0.3, 1.0, 7.3, 40.0, 128.0, 255.0]


def grid(means, scales):
    """Params [1,N,1,2]: every mean with every scale, for images of one channel."""
    return np.array([(mean, scale) for mean in means for scale in scales], np.float32).reshape(1, -1, 1, 2)


def softmax_params():
    """Params [1,6,1,256]: near uniform, ordinary, and with logits large enough to overflow an exp."""
    logits = np.random.default_rng(0).normal(size=(6, 256)) * np.array([[1e-3], [1], [10], [300], [1e4], [1e6]])
    return logits.astype(np.float32).reshape(1, 6, 1, 256)


def mixture_params():
    """Params [1,N,1,15] of five components: weights, means and log scales, each from hardly to wildly different."""
    random, rows = np.random.default_rng(0), []
    for spread in (0.01, 1.0, 30.0, 1e3):
        for mean in (0.0, -1.0, 1.0, 3.0, -50.0):
            parts = random.normal(size=(3, 5)) * np.array([[spread], [min(spread, 2)], [min(spread, 8)]])
            rows.append(parts + np.array([[0], [mean], [0]]))
    return np.array(rows, np.float32).reshape(1, -1, 1, 15)


GAUSSIANS = ("gaussian_global", "gaussian_channel", "gaussian_pixel")
# Likelihoods and what distributions of theirs are made of.
CASES = {
    "softmax": (Softmax(), softmax_params()),
    "softmax_embedding": (SoftmaxEmbedding(), softmax_params()),
    "logistic": (Logistic(), grid(MEANS, LOG_SCALES)),
    "squared_error": (SquaredError(), grid(MEANS, GAUSSIAN_SCALES)),
    "logistic_mixture": (LogisticMixture(5), mixture_params()),
    "bernoulli": (Bernoulli(), np.array([*MEANS, 88.0, -88.0], np.float32).reshape(1, -1, 1, 1)),
    # Means, and log scales on the decoder's scale.
    **{name: (PIXELWISE[name](), grid(MEANS, LOG_SCALES)) for name in GAUSSIANS},
}
OF_ALL_LEVELS = [name for name in CASES if name != "bernoulli"]


def all_log_probs(likelihood, params):
    """Log probabilities [N,256] of all levels under params [1,N,1,P] of one sub-pixel each."""

    def of_level(level):
        return likelihood.log_prob_of(params, jnp.full((*params.shape[:3], 1), level, jnp.uint8))

    return jnp.transpose(jax.vmap(of_level)(jnp.asarray(LEVELS)).reshape(256, -1))


def log_difference(log_cdf, log_sf, mean, scale):
    """SciPy's log mass of every level, [N,256] in float64, with open tails at 0 and 255."""
    ends = (np.arange(257) - 0.5 - mean[:, None]) / scale[:, None]
    low, high = ends[:, :-1], ends[:, 1:]
    # On the right of the centre, differences of the survival function keep the digits.
    right = low + high > 0
    near, far = np.where(right, log_sf(low), log_cdf(high)), np.where(right, log_sf(high), log_cdf(low))
    expected = near + np.log1p(-np.exp(far - near))
    expected[:, 0], expected[:, -1] = log_cdf(high[:, 0]), log_sf(low[:, -1])
    return expected


def scipy_logistic(params):
    mean, log_scale = params.astype(np.float64).reshape(-1, 2).T
    scale = 127.5 * np.exp(np.clip(log_scale - 2, -7, 7))
    return log_difference(stats.logistic.logcdf, stats.logistic.logsf, 127.5 + 127.5 * mean, scale)


def scipy_gaussian(params):
    mean, scale = params.astype(np.float64).reshape(-1, 2).T
    return log_difference(stats.norm.logcdf, stats.norm.logsf, 127.5 + 127.5 * mean, scale)


def scipy_learned_gaussian(params):
    mean, log_scale = params.astype(np.float64).reshape(-1, 2).T
    scale = 127.5 * np.exp(np.clip(log_scale - 2, -7, 2))
    return log_difference(stats.norm.logcdf, stats.norm.logsf, 127.5 + 127.5 * mean, scale)


def scipy_mixture(params):
    weights, means, log_scales = params.astype(np.float64).reshape(-1, 3, 5).transpose(1, 2, 0)
    of_each = [scipy_logistic(np.stack([m, s], axis=-1)) for m, s in zip(means, log_scales, strict=True)]
    return special.logsumexp(special.log_softmax(weights, axis=0)[..., None] + np.array(of_each), axis=0)


def scipy_bernoulli(params):
    result = np.full((params.size, 256), -np.inf)
    result[:, 0], result[:, 255] = (special.log_expit(sign * params.astype(np.float64).ravel()) for sign in (-1, 1))
    return result


REFERENCES = dict.fromkeys(GAUSSIANS, scipy_learned_gaussian) | {
    "logistic_mixture": scipy_mixture,
    "bernoulli": scipy_bernoulli,
}


def scipy_softmax(params):
    return special.log_softmax(params.astype(np.float64).reshape(-1, 256), axis=-1)


@pytest.mark.parametrize("name", PIXELWISE)
def test_probabilities_sum_to_one_also_at_extreme_params(name):
    log_probs = np.asarray(jax.jit(all_log_probs, static_argnums=0)(*CASES[name]))
    assert log_probs.dtype == np.float32
    np.testing.assert_allclose(np.exp(log_probs.astype(np.float64)).sum(-1), 1.0, atol=1e-5)


# Beside the relative error of float32: a wide Gaussian's mass is a difference of logarithms, which costs digits.
@pytest.mark.parametrize(
    ("name", "reference", "tolerance"),
    [
        ("softmax", scipy_softmax, 5e-6),
        ("softmax_embedding", scipy_softmax, 5e-6),
        ("logistic", scipy_logistic, 5e-6),
        ("logistic_mixture", scipy_mixture, 5e-5),
        ("bernoulli", scipy_bernoulli, 5e-6),
        ("squared_error", scipy_gaussian, 1e-4),
        *((name, scipy_learned_gaussian, 1e-3) for name in GAUSSIANS),
    ],
)
def test_log_prob_equals_scipy_with_open_tails(name, reference, tolerance):
    likelihood, params = CASES[name]
    log_probs = jax.jit(all_log_probs, static_argnums=0)(likelihood, params)
    np.testing.assert_allclose(log_probs, reference(params), rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("name", PIXELWISE)
def test_gradients_are_finite_also_at_extreme_params(name):
    likelihood, params = CASES[name]

    def gradients(params):
        return jax.vmap(lambda level: jax.grad(lambda p: jnp.sum(all_of(level, p)))(params))(jnp.asarray(LEVELS))

    def all_of(level, params):
        return likelihood.log_prob_of(params, jnp.full((*params.shape[:3], 1), level, jnp.uint8))

    assert np.all(np.isfinite(jax.jit(gradients)(params)))


@pytest.mark.parametrize("name", OF_ALL_LEVELS)
def test_gradients_equal_finite_differences_of_scipy(name):
    likelihood, params = {
        "softmax": (Softmax(), softmax_params()[:, 1:2]),
        "softmax_embedding": (SoftmaxEmbedding(), softmax_params()[:, 1:2]),
        "logistic": (Logistic(), grid([0.3, -1.0, 1.2], [-2.0, 1.0])),
        "squared_error": (SquaredError(), grid([0.3, -1.0, 1.2], [7.3, 40.0])),
        "logistic_mixture": (LogisticMixture(5), mixture_params()[:, 5:7]),
        **{key: (PIXELWISE[key](), grid([0.3, -1.0, 1.2], [-1.0, 1.0])) for key in GAUSSIANS},
    }[name]
    known = {
        "softmax": scipy_softmax,
        "softmax_embedding": scipy_softmax,
        "logistic": scipy_logistic,
        "squared_error": scipy_gaussian,
    } | REFERENCES
    reference = known[name]
    weights = np.random.default_rng(1).normal(size=256).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(all_log_probs(likelihood, p) @ weights)))(params)
    flat, step = params.astype(np.float64).ravel(), 1e-6
    expected = [
        np.sum((reference(flat + step * unit) - reference(flat - step * unit)) @ weights) / (2 * step)
        for unit in np.eye(flat.size)
    ]
    np.testing.assert_allclose(np.ravel(gradient), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def narrow_params(name):
    """Params [1,256,1,P] of very sharp distributions, the n-th at level n."""
    centres = (np.arange(256) - 127.5) / 127.5
    if name in ("softmax", "softmax_embedding"):
        return (20 * np.eye(256)).astype(np.float32).reshape(1, 256, 1, 256)
    if name == "logistic_mixture":
        components = np.stack([np.zeros((256, 5)), np.repeat(centres[:, None], 5, 1), np.full((256, 5), -9.0)], axis=1)
        return components.astype(np.float32).reshape(1, 256, 1, 15)
    return grid(centres, [{"logistic": -9.0, "squared_error": 0.3}.get(name, -5.0)])


@pytest.mark.parametrize("name", OF_ALL_LEVELS)
def test_every_level_has_its_own_bin(name):
    # Targets that were rebuilt from floats and truncated shift 63 of the 256 (PAPER.md, 5.4).
    log_probs = jax.jit(all_log_probs, static_argnums=0)(CASES[name][0], narrow_params(name))
    np.testing.assert_array_equal(np.argmax(log_probs, axis=-1), LEVELS)
    assert np.all(np.diagonal(log_probs) > np.log(0.8))


@pytest.mark.parametrize("name", OF_ALL_LEVELS)
def test_reconstruction_of_a_sharp_distribution_is_its_level(name):
    levels = jax.jit(CASES[name][0].mean_of)(narrow_params(name))
    np.testing.assert_array_equal(round_to_uint8(levels).ravel(), LEVELS)


@pytest.mark.parametrize("name", OF_ALL_LEVELS)
def test_log_prob_is_a_log_probability_and_not_a_density_or_the_log_of_a_pixel(name):
    # Regression PAPER.md 5.7: the density of a Gaussian of scale 0.1 is above 1; log(255/255) is 0 whatever the params.
    log_probs = np.asarray(jax.jit(all_log_probs, static_argnums=0)(*CASES[name]))
    assert np.all(log_probs <= 1e-6)
    sharp = np.asarray(jax.jit(all_log_probs, static_argnums=0)(CASES[name][0], narrow_params(name)))
    assert np.all(sharp[0, 1:] < -1)
    assert sharp[0, 255] < -10


def test_the_logits_of_a_softmax_embedding_are_products_with_the_vectors_of_levels():
    likelihood, random = SoftmaxEmbedding(rank=4), np.random.default_rng(0)
    params = {"embedding": random.normal(size=(256, 4)).astype(np.float32)}
    features = jnp.asarray(random.normal(size=(2, 3, 1, 8)), jnp.float32)
    images = random.integers(0, 256, (2, 3, 1, 2)).astype(np.uint8)
    found = np.asarray(likelihood.log_prob(params, features, images))
    for n, row, c in np.ndindex(2, 3, 2):
        logits = params["embedding"] @ np.asarray(features)[n, row, 0, 4 * c : 4 * c + 4]
        expected = special.log_softmax(logits)[images[n, row, 0, c]]
        np.testing.assert_allclose(found[n, row, 0, c], expected, rtol=1e-5)


def test_the_vectors_of_levels_start_smooth_and_can_tell_levels_apart():
    embedding = np.asarray(SoftmaxEmbedding().init(jax.random.key(0), 3)["embedding"], np.float64)
    steps = np.linalg.norm(np.diff(embedding, axis=0), axis=1)
    ends = np.linalg.norm(embedding[0] - embedding[-1])
    assert steps.max() < 0.3 * ends
    assert np.linalg.matrix_rank(embedding) == 32


def test_softmax_keeps_the_logits_of_each_channel_together():
    params = random_params(512)
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 2), np.uint8)
    log_probs, means = np.empty(images.shape), np.empty(images.shape)
    for position in np.ndindex(images.shape):
        *place, c = position
        one = special.log_softmax(params[*place, 256 * c : 256 * (c + 1)].astype(np.float64))
        log_probs[position], means[position] = one[images[position]], np.exp(one) @ np.arange(256)
    np.testing.assert_allclose(jax.jit(Softmax().log_prob)({}, params, images), log_probs, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(Softmax().mean)({}, params), means, rtol=1e-5)


def test_logistic_takes_first_the_means_and_then_the_log_scales_of_the_channels():
    params = random_params(4)
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 2), np.uint8)
    by_channel = np.stack([params[..., :2], params[..., 2:]], axis=-1)
    expected = np.take_along_axis(scipy_logistic(by_channel), images.reshape(-1, 1).astype(int), axis=1)
    np.testing.assert_allclose(jax.jit(Logistic().log_prob)({}, params, images).ravel(), expected[:, 0], rtol=1e-4)
    np.testing.assert_allclose(jax.jit(Logistic().mean)({}, params), 127.5 + 127.5 * params[..., :2], rtol=1e-5)


def test_squared_error_with_a_scale_per_channel_is_a_gaussian_around_its_reconstruction():
    raw, scale = random_params(2), np.array([5.0, 60.0], np.float32)
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 4, 2), np.uint8)
    by_channel = np.stack([raw, np.broadcast_to(scale, raw.shape)], axis=-1)
    expected = np.take_along_axis(scipy_gaussian(by_channel), images.reshape(-1, 1).astype(int), axis=1)
    np.testing.assert_allclose(
        jax.jit(SquaredError().log_prob)({"scale": scale}, raw, images).ravel(), expected[:, 0], rtol=1e-4
    )
    np.testing.assert_allclose(jax.jit(SquaredError().mean)({"scale": scale}, raw), 127.5 + 127.5 * raw, rtol=1e-5)


def random_params(channels):
    return np.random.default_rng(0).normal(size=(2, 3, 4, channels)).astype(np.float32)


# PAPER.md 5.3: the error in [-1, 1] is twice, and its square four times, that in [0, 1].
@pytest.mark.parametrize(
    ("raw", "level", "expected"), [(-1.0, 0, 0.0), (1.0, 255, 0.0), (-1.0, 255, 2.0), (1.0, 0, 2.0), (0.0, 255, 0.5)]
)
def test_squared_error_loss_is_half_the_square_at_the_decoders_scale(raw, level, expected):
    raw, image = np.full((1, 1, 1, 1), raw, np.float32), np.full((1, 1, 1, 1), level, np.uint8)
    np.testing.assert_allclose(jax.jit(SquaredError().loss)({}, raw, image).item(), expected, atol=1e-7)
    # Levels are 127.5 times as fine, and there is no half.
    sums = jax.jit(SquaredError().fit_sums)({}, raw, image, np.ones(1, bool))
    np.testing.assert_allclose(sums["squares"], [2 * expected * 127.5**2], rtol=1e-6)


def test_squared_error_loss_has_the_gradient_of_a_gaussian_of_scale_127_5():
    # Loss and measure agree on the scale: both are on the decoder's, whose 1 is 127.5 levels.
    raw, image = random_params(1) / 4, np.full((2, 3, 4, 1), 100, np.uint8)
    loss = jax.jit(jax.grad(lambda raw: jnp.sum(SquaredError().loss({}, raw, image))))(raw)
    density = stats.norm(scale=127.5)
    step = 1e-3
    below, above = (density.logpdf(100 - 127.5 - 127.5 * (raw.astype(np.float64) + d)) for d in (-step, step))
    np.testing.assert_allclose(loss, -(above - below) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("num_images", [5, 3])
def test_the_fitted_scale_is_the_root_of_the_mean_square_of_a_channel(num_images):
    random = np.random.default_rng(0)
    raw = (random.normal(size=(5, 7, 4, 3)) * [0.1, 0.3, 1.0]).astype(np.float32)
    images, mask = random.integers(0, 256, raw.shape, np.uint8), np.arange(5) < num_images
    parts = [jax.jit(SquaredError().fit_sums)({}, raw[n:m], images[n:m], mask[n:m]) for n, m in ((0, 2), (2, 5))]
    fitted = SquaredError().fit(jax.tree.map(lambda *x: np.add(*(np.asarray(y, np.float64) for y in x)), *parts))
    errors = (127.5 + 127.5 * raw.astype(np.float64) - images)[:num_images]
    np.testing.assert_allclose(fitted["scale"], np.sqrt(np.mean(errors**2, axis=(0, 1, 2))), rtol=1e-5)


def test_a_perfect_fit_has_a_scale_above_0():
    raw = jnp.zeros((1, 2, 2, 1))
    fitted = SquaredError().fit({"squares": np.zeros(1), "num_images": np.ones(())})
    assert np.all(np.isfinite(SquaredError().log_prob(fitted, raw, np.full((1, 2, 2, 1), 128, np.uint8))))


def test_round_to_uint8_rounds_and_clips():
    levels = jnp.array([-1e9, -0.6, 0.4, 0.6, 99.4, 99.6, 254.6, 255.4, 256.0, 1e9])
    rounded = jax.jit(round_to_uint8)(levels)
    assert rounded.dtype == jnp.uint8
    np.testing.assert_array_equal(rounded, [0, 0, 0, 1, 99, 100, 255, 255, 255, 255])


def coupled_params(spread):
    """Params [1,40,1,50] of five components for three channels, and an image [1,40,1,3] with both ends in it."""
    random = np.random.default_rng(0)
    params = random.normal(size=(1, 40, 1, 50)) * spread
    return params.astype(np.float32), random.choice([0, 1, 90, 200, 254, 255], (1, 40, 1, 3)).astype(np.uint8)


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 300.0])
def test_coupled_channels_each_sum_to_one_given_the_earlier_ones(channel, spread):
    params, image = coupled_params(spread)

    def of_level(level):
        pixels = jnp.asarray(image).at[..., channel].set(level)
        return LogisticMixture(5).log_prob({}, jnp.asarray(params), pixels)[..., channel]

    log_probs = np.asarray(jax.jit(jax.vmap(of_level))(jnp.asarray(LEVELS)), np.float64)
    np.testing.assert_allclose(np.exp(log_probs).sum(0), 1.0, atol=1e-5)


@pytest.mark.parametrize("channel", [0, 1, 2])
@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 300.0])
def test_masses_of_a_mixture_are_its_log_probabilities(channel, spread):
    params, image = coupled_params(spread)
    pmf = jax.jit(LogisticMixture(5).pmf, static_argnums=2)
    masses = np.asarray(pmf(params[:, :, 0], image[:, :, 0], channel), np.float64)
    for level in (0, 1, 90, 200, 254, 255):
        image[..., channel] = level
        log_prob = np.asarray(jax.jit(LogisticMixture(5).log_prob)({}, params, image), np.float64)
        np.testing.assert_allclose(masses[..., level], np.exp(log_prob[:, :, 0, channel]), rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(masses.sum(-1), 1.0, atol=1e-5)


def test_the_mixture_is_that_of_pixelcnn_plus_plus():
    # Salimans et al. 2017, eq. 3, in float64: components are mixed once a pixel, green sees red, blue sees both.
    params, image = coupled_params(1.0)
    logits, *rest = params.astype(np.float64).reshape(40, 10, 5).transpose(1, 2, 0)
    means, log_scales, couplings = rest[:3], rest[3:6], np.tanh(rest[6:])
    red, green, _ = (image.reshape(-1, 3).T.astype(np.float64) - 127.5) / 127.5
    moved = means[0], means[1] + couplings[0] * red, means[2] + couplings[1] * red + couplings[2] * green
    joint = special.log_softmax(logits, axis=0)
    for c in range(3):
        of_levels = scipy_logistic(np.stack([moved[c], log_scales[c]], axis=-1)).reshape(5, 40, 256)
        joint = (
            joint + np.take_along_axis(of_levels, image.reshape(1, 40, 3)[..., c, None].astype(int), axis=-1)[..., 0]
        )
    log_prob = jax.jit(LogisticMixture(5).log_prob)({}, params, image)
    np.testing.assert_allclose(np.sum(log_prob, axis=-1).ravel(), special.logsumexp(joint, axis=0), rtol=1e-4)


def test_the_mixtures_mean_follows_the_couplings():
    params, _ = coupled_params(1.0)
    mean = jax.jit(LogisticMixture(5).mean)({}, params)
    logits, *rest = params.astype(np.float64).reshape(40, 10, 5).transpose(1, 2, 0)
    red = np.clip(rest[0], -1, 1)
    green = np.clip(rest[1] + np.tanh(rest[6]) * red, -1, 1)
    blue = np.clip(rest[2] + np.tanh(rest[7]) * red + np.tanh(rest[8]) * green, -1, 1)
    weights = special.softmax(logits, axis=0)
    expected = np.stack([127.5 + 127.5 * np.sum(weights * centre, axis=0) for centre in (red, green, blue)], axis=-1)
    np.testing.assert_allclose(np.reshape(mean, (40, 3)), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("shared", "size"), [("global", 1), ("channel", 3)])
def test_a_gaussians_own_scale_is_learned(shared, size):
    likelihood, raw = Gaussian(shared), jnp.asarray(random_params(3))
    image = np.random.default_rng(1).integers(0, 256, raw.shape, np.uint8)
    own = likelihood.init(jax.random.key(0), 3)
    assert own["log_scale"].shape == (size,)
    gradient = jax.grad(lambda own: jnp.sum(likelihood.log_prob(own, raw, image)))(own)
    assert np.all(np.abs(gradient["log_scale"]) > 1e-3)


def test_a_bernoulli_gives_gray_no_probability():
    log_prob = Bernoulli().log_prob({}, jnp.zeros((1, 1, 1, 1)), np.full((1, 1, 1, 1), 128, np.uint8))
    assert np.all(np.isneginf(log_prob))
    np.testing.assert_array_equal(Bernoulli().levels, [0, 255])
