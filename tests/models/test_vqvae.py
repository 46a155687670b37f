"""The model as a whole: where gradients go, on what scale the loss is, and that its bound is a bound."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax import registry
from vqvae_jax.evaluation import metrics


def build(config, quantizer=(), **changes):
    """The model of `config` with other options, also of its quantizer."""
    section = config["model"] | {"quantizer": config["model"]["quantizer"] | dict(quantizer)} | changes
    return registry.build_model(section, (8, 12, 3))


def by_gradient(config, **changes):
    """The same with a codebook that is learned by gradient."""
    keys = registry.arguments(registry.QUANTIZERS["vector_gradient"])
    quantizer = {key: value for key, value in config["model"]["quantizer"].items() if key in keys}
    quantizer |= {"name": "vector_gradient", "commitment_cost": 0.25} | changes
    return registry.build_model(config["model"] | {"quantizer": quantizer}, (8, 12, 3))


def start(model, images):
    return {**jax.jit(model.init)(jax.random.key(0), images), "fitted": {}}


def encoded(model, variables, images):
    return model.trunk.encode(variables["params"], images, model.quantizer.dim)


def gradients_of(model, variables, images, loss):
    """Gradients at all parameters of a function of what the quantizer gives and of the decoder's features."""

    def scalar(params):
        own = {"params": params["quantizer"], "state": ()}
        quantized = model.quantizer(own, model.trunk.encode(params, images, model.quantizer.dim))
        return loss(quantized, model.trunk.decode(params, quantized.z_q))

    return jax.jit(jax.grad(scalar))(variables["params"])


def largest(tree):
    return max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))


def test_the_distortion_moves_encoder_and_decoder_and_never_the_codebook(config, images):
    model = by_gradient(config)
    variables = start(model, images)
    moved = gradients_of(model, variables, images, lambda _, features: jnp.mean(features**2))
    assert largest(moved["encoder"]) > 0
    assert largest(moved["decoder"]) > 0
    assert largest(moved["quantizer"]) == 0


@pytest.mark.parametrize(
    ("loss", "moves", "stays"), [("codebook", "quantizer", "encoder"), ("commitment", "encoder", "quantizer")]
)
def test_each_quantization_loss_moves_its_own_side_alone(config, images, loss, moves, stays):
    model = by_gradient(config)
    variables = start(model, images)
    moved = gradients_of(model, variables, images, lambda quantized, _: quantized.losses[loss])
    assert largest(moved[moves]) > 0
    assert largest(moved[stays]) == 0
    assert largest(moved["decoder"]) == 0


@pytest.mark.parametrize(
    "build",
    [
        lambda config, beta: build(config, {"commitment_cost": beta}),
        lambda config, beta: by_gradient(config, commitment_cost=beta),
    ],
    ids=["ema", "gradient"],
)
def test_loss_is_nats_per_sub_pixel_plus_means_with_beta_on_the_commitment(config, images, build):
    beta = 0.7
    model = build(config, beta)
    variables = start(model, images)
    total, (_, logged) = jax.jit(model.loss)(variables, {"image": images}, jax.random.key(1))

    z_e = np.asarray(encoded(model, variables, images), np.float64)
    codes = model.encode(variables, images)
    z_q = np.asarray(model.vectors(variables, codes), np.float64)
    square = np.mean((z_e - z_q) ** 2)
    nats = np.asarray(model.distortion(variables, codes, images), np.float64)
    distortion = np.mean(nats) / math.prod(images.shape[1:])
    np.testing.assert_allclose(total, distortion + square + beta * square, rtol=1e-5)
    np.testing.assert_allclose(logged["distortion"], distortion / math.log(2), rtol=1e-5)
    rate = codes[0].size * math.log2(config["model"]["quantizer"]["codebook_size"]) / math.prod(images.shape[1:])
    np.testing.assert_allclose(logged["bits_per_dim"], rate + distortion / math.log(2), rtol=1e-5)


def test_beta_weighs_the_encoders_term_and_leaves_the_codebook_alone(config, images):
    # Regression 1. The two terms have one value, so only their gradients tell where beta went.
    def gradients(beta):
        model = by_gradient(config, commitment_cost=beta)
        variables = start(model, images)

        def loss(params):
            return model.loss({**variables, "params": params}, {"image": images}, jax.random.key(1))[0]

        return jax.jit(jax.grad(loss))(variables["params"])

    none, some = gradients(0.0), gradients(2.0)
    assert largest(none["quantizer"]["codebook"]) > 0
    np.testing.assert_array_equal(none["quantizer"]["codebook"], some["quantizer"]["codebook"])
    assert largest(jax.tree.map(jnp.subtract, none["encoder"], some["encoder"])) > 1e-4


def test_ema_codebook_is_no_parameter_of_the_optimizer_but_moves(config, model, variables, images):
    assert set(variables["params"]) == {"encoder", "decoder"}
    _, (state, _) = jax.jit(model.loss)(variables, {"image": images}, jax.random.key(1))
    assert float(jnp.max(jnp.abs(state.total - variables["state"].total))) > 0


def test_lookup_comes_before_the_ema_update(config, model, variables, images):
    # The reconstruction of a step must use the codebook from before it (regression 8).
    _, (state, logged) = jax.jit(model.loss)(variables, {"image": images}, jax.random.key(1))
    before = jnp.mean(model.bound(variables, images).distortion)
    after = jnp.mean(model.bound({**variables, "state": state}, images).distortion)
    dims = math.prod(images.shape[1:]) * math.log(2)
    np.testing.assert_allclose(logged["distortion"], before / dims, rtol=1e-5)
    assert abs(float(logged["distortion"] - after / dims)) > 1e-6


def test_bound_is_above_the_exact_likelihood_summed_over_all_codes(config, images):
    # 4x4 images, one position, two codebooks of three codes: all nine z can be summed.
    model = build(config, {"codebook_size": 3})
    small = images[:, :4, :4]
    variables = start(model, small)
    joint = []
    for codes in itertools.product(range(3), repeat=2):
        z = jnp.broadcast_to(jnp.array(codes, jnp.int32), (len(small), 1, 1, 2))
        joint.append(-np.asarray(model.distortion(variables, z, small), np.float64) - 2 * math.log(3))
    exact = -np.logaddexp.reduce(joint, axis=0)
    rate, distortion = model.bound(variables, small)
    np.testing.assert_allclose(rate, 2 * math.log(3), rtol=1e-6)
    assert np.all(rate + distortion >= exact - 1e-4)
    chosen = np.asarray(model.encode(variables, small))[:, 0, 0] @ np.array([3, 1])
    of_chosen = np.take_along_axis(np.array(joint), chosen[None], axis=0)[0]
    np.testing.assert_allclose(rate + distortion, -of_chosen, rtol=1e-5)


def test_standardisation_uses_one_scale_for_mean_and_deviation(config, images):
    model = build(config, pixel_mean=(0.2, 0.4, 0.6), pixel_std=(0.1, 0.2, 0.3))
    expected = (images / 255.0 - np.array([0.2, 0.4, 0.6])) / np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(model.trunk.standardise(images), expected, atol=1e-5)


def test_fit_counts_codes_per_position_and_finds_the_gaussian_scale(config, images):
    model = build(config, likelihood="squared_error")
    variables = start(model, images)
    mask = np.arange(len(images)) < 7
    fitted = model.fit(jax.jit(model.fit_sums)(variables, images, mask))
    codes = np.asarray(model.encode(variables, images))[mask]
    counts = np.zeros(fitted["code_counts"].shape)
    for _, y, x, g in np.ndindex(codes.shape):
        counts[y, x, g] += np.bincount(codes[_, y, x, g : g + 1], minlength=counts.shape[-1])
    np.testing.assert_array_equal(fitted["code_counts"], counts)

    features = model.features(variables, codes)
    error = (127.5 + 127.5 * np.asarray(features, np.float64)) - images[mask]
    np.testing.assert_allclose(fitted["likelihood"]["scale"], np.sqrt(np.mean(error**2, axis=(0, 1, 2))), rtol=1e-4)
    measured = model.bound({**variables, "fitted": fitted}, images)
    assert np.all(np.isfinite(measured.distortion))


def test_codes_and_parameters_fit_any_image_size(config, model, variables):
    large = np.zeros((2, 16, 20, 3), np.uint8)
    assert model.encode(variables, large).shape == (2, 4, 5, 2)
    assert model.decode(variables, model.encode(variables, large)).shape == large.shape


def test_rate_and_distortion_are_both_per_image(config, model, variables, images):
    # Regression 6: a per-image rate must not meet a per-dimension distortion.
    rate, distortion = model.bound(variables, images)
    assert rate.shape == distortion.shape == (len(images),)
    bits = metrics.nats_to_bits_per_dim(distortion, images.shape[1:])
    features = model.features(variables, model.encode(variables, images))
    log_prob = model.likelihood.log_prob(model.likelihood_params(variables), features, images)
    np.testing.assert_allclose(bits, -np.mean(log_prob, axis=(1, 2, 3)) / math.log(2), rtol=1e-5)


def test_an_unfinished_run_of_squared_error_can_be_looked_at_but_has_no_likelihood(config, images):
    model = build(config, likelihood="squared_error")
    variables = start(model, images)
    assert model.decode(variables, model.encode(variables, images)).shape == images.shape
    assert np.all(np.isnan(model.bound(variables, images).distortion))
