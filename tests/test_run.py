"""A run on plain arrays: images of any size have the right number or one clear line, and so has every wrong argument."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax import memory, registry
from vqvae_jax import run as run_module
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.priors import pixelcnn
from vqvae_jax.priors.autoregressive import Autoregressive
from vqvae_jax.priors.trained import TrainedPrior
from vqvae_jax.run import Run
from vqvae_jax.training import sharding

TRAINED = (12, 8, 1)
OTHER = [(4, 4, 1), (8, 20, 1)]
NETWORK = {"likelihood": "logistic", "hidden": 6, "residual_units": 4, "residual_blocks": 1, "downsamplings": 2}
NETWORK |= {"pixel_mean": (0.5,), "pixel_std": (0.25,), "dtype": "float32", "rematerialise": False}
CODEBOOK = {"name": "vector_gradient", "codebook_size": 3, "num_codebooks": 2, "embedding_dim": 3}
CODEBOOK |= {"distance": "euclidean", "estimator": "straight_through", "start": "data"}
OWN = {
    "vqvae": {"quantizer": CODEBOOK | {"commitment_cost": 0.25}},
    "vae": {"latent_channels": 2},
    "autoencoder": {"latent_channels": 2},
}


def random_images(shape, number=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, *shape), dtype=np.uint8)


def make(family, **changes):
    """A finished run of an untrained model."""
    section = {"family": family} | NETWORK | OWN[family] | changes
    model, images = registry.build_model(section, TRAINED), random_images(TRAINED, 16)
    variables = {**jax.jit(model.init)(jax.random.key(0), images), "fitted": {}}
    meta = {"config": {"model": section, "eval": {"batch_size": 4}}, "class_names": ["one"], "step": 0}
    run = Run(model, variables, meta | {"image_shape": list(TRAINED)})
    return replace(run, variables={**variables, "fitted": run.fit(source_of(images))})


def source_of(images):
    return ArraySource("tiny", "train", images, np.zeros(len(images), np.int32), ("one",))


@pytest.fixture(scope="module")
def run():
    return make("vqvae")


@pytest.fixture(scope="module")
def run_with_prior(run):
    """The same with a prior of fields of the training size."""
    prior = Autoregressive(pixelcnn.Network(run.field, 3, 0, 4, 1, 0.0), (3, 3), 0, 0.0)
    batch = {"codes": np.zeros((1, *run.field), np.int32), "label": np.zeros(1, np.int32)}
    return run.with_prior(TrainedPrior("pixelcnn", prior, prior.init(jax.random.key(0), batch) | {"fitted": {}}, 4))


def one_line(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [TRAINED, *OTHER])
def test_images_of_any_size_are_measured_right_without_a_learned_prior(run, shape):
    images = random_images(shape, seed=1)
    codes, counts = run.encode(images), np.asarray(run.variables["fitted"]["code_counts"], np.float64)
    field, places = codes.shape[1:], np.arange(2)
    assert field == (shape[0] // 4, shape[1] // 4, 2)
    distortion = np.asarray(run.model.distortion(run.variables, jnp.asarray(codes), images), np.float64)
    unigram = (counts.sum((0, 1)) + 1) / (counts.sum((0, 1)) + 1).sum(-1, keepdims=True)
    rate = -np.log(unigram[places, codes]).sum((1, 2, 3))
    np.testing.assert_allclose(
        run.bits_per_dim(images), (rate + distortion) / math.prod(shape) / math.log(2), rtol=1e-5
    )
    bound = run.bound(images)
    np.testing.assert_allclose(bound.rate, rate, rtol=1e-5)
    np.testing.assert_allclose(bound.distortion, distortion, rtol=1e-5)
    measured = run.measure(images)
    np.testing.assert_allclose(measured["rate/uniform"], codes[0].size * math.log(3), rtol=1e-6)
    np.testing.assert_array_equal(measured["codes"], codes)
    assert ("rate/positionwise" in measured) == (shape == TRAINED), "counted on fields of the training size"
    one, more = (run.several_codes_bound(images, num) for num in (1, 6))
    np.testing.assert_allclose(one, rate + distortion, rtol=1e-5)
    assert np.all(more <= one + 1e-3)
    if field == (1, 1, 2):  # all nine codes that there are
        joint = [
            np.log(unigram[places, [a, b]]).sum()
            - np.asarray(run.model.distortion(run.variables, jnp.broadcast_to(jnp.array([a, b]), codes.shape), images))
            for a in range(3)
            for b in range(3)
        ]
        exact = -np.logaddexp.reduce(np.array(joint, np.float64))
        np.testing.assert_allclose(run.several_codes_bound(images, 9), exact, rtol=1e-5)


@pytest.mark.parametrize("call", ["bits_per_dim", "bound", "measure", "several_codes_bound", "complete"])
def test_a_learned_prior_refuses_images_of_another_size_in_one_line(run_with_prior, call):
    extra = {"several_codes_bound": [2], "complete": [1]}.get(call, [])
    for shape, size in zip(OTHER, ("1x1x2", "2x5x2"), strict=True):
        message = f"the pixelcnn prior is of 3x2x2 codes an image, not {size}"
        one_line(lambda shape=shape: getattr(run_with_prior, call)(random_images(shape), *extra), message)
    found = getattr(run_with_prior, call)(random_images(TRAINED), *extra)
    assert np.all(np.isfinite(found["rate/pixelcnn"] if call == "measure" else np.asarray(found)))


@pytest.mark.parametrize("call", ["encode", "bits_per_dim", "measure"])
def test_images_that_do_not_fit_are_one_line(run, call):
    method = getattr(run, call)
    one_line(lambda: method(random_images((6, 8, 1))), "images of 6x8 do not fit: sides must be multiples of 4")
    one_line(lambda: method(random_images((8, 8, 3))), r"images must be uint8 \[N,H,W,1\], not uint8 \[5, 8, 8, 3\]")
    one_line(lambda: method(random_images(TRAINED) / 255), "not float64")
    one_line(lambda: method(random_images(TRAINED)[0]), r"not uint8 \[12, 8, 1\]")


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (np.zeros((1, 3, 2, 2)), r"codes must be integers \[N,h,w,2\], not float64"),
        (np.zeros((1, 3, 2, 3), int), r"codes must be integers \[N,h,w,2\], not int64 \[1, 3, 2, 3\]"),
        (np.zeros((3, 2, 2), int), r"not int64 \[3, 2, 2\]"),
        (np.full((1, 3, 2, 2), 3), r"codes must lie in 0..2, not 3..3"),
        (np.full((1, 3, 2, 2), -1), r"codes must lie in 0..2, not -1..-1"),
        (np.full((1, 3, 2, 2), 2**32), r"codes must lie in 0..2, not 4294967296"),
    ],
)
def test_wrong_codes_are_one_line(run, latents, message):
    for method in (run.decode, run.draw):
        one_line(lambda method=method: method(latents), message)
    assert run.decode(np.zeros((1, 3, 2, 2), np.uint8)).shape == (1, *TRAINED)


def test_wrong_latents_of_a_continuous_family_are_one_line():
    run = make("vae")
    one_line(lambda: run.decode(np.zeros((1, 3, 2, 2), int)), r"latents must be floats \[N,h,w,2\], not int64")
    one_line(
        lambda: run.decode(np.zeros((1, 3, 2, 3))), r"latents must be floats \[N,h,w,2\], not float64 \[1, 3, 2, 3\]"
    )
    assert run.decode(np.zeros((1, 3, 2, 2))).shape == (1, *TRAINED)


@pytest.mark.parametrize("family", ["vae", "vqvae"])
def test_pixels_are_the_mean_or_drawn(family, run_with_prior):
    run = run_with_prior if family == "vqvae" else make(family)
    mean, drawn = run.sample(4, seed=3), run.sample(4, seed=3, pixels="sample")
    assert mean.shape == drawn.shape == (4, *TRAINED)
    assert drawn.dtype == np.uint8
    assert np.mean(mean != drawn) > 0.5
    np.testing.assert_array_equal(run.sample(4, seed=3, pixels="sample"), drawn)
    np.testing.assert_array_equal(run.sample(4, seed=3, pixels="mean"), mean)
    one_line(lambda: run.sample(1, pixels="mode"), "unknown pixels 'mode': .*known: mean, sample")


def test_drawn_images_of_equal_latents_differ_and_scatter_around_the_mean(run):
    latents = np.repeat(run.encode(random_images(TRAINED, 1)), 400, axis=0)
    drawn = run.draw(latents)
    assert len(np.unique(drawn.reshape(400, -1), axis=0)) == 400
    # An untrained logistic is some 17 levels wide, so nothing is cut off.
    mean = run.decode(latents[:1])[0].astype(float)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=6 * 32 / 20)
    np.testing.assert_array_equal(run.draw(latents[:3]), drawn[:3])


def test_the_gaussian_of_latents_with_a_large_mean_has_their_covariance():
    # Summed in float32 over the 300 batches, products of 90,000 leave little of a variance of 0.1.
    run, images = make("autoencoder"), random_images(TRAINED, 1200)
    variables = jax.tree.map(lambda x: x, run.variables)
    variables["params"]["encoder"]["out"]["bias"] += 300.0
    run = replace(run, variables={**variables, "fitted": {}})
    fitted = run.fit(source_of(images))
    z = run.encode(images).astype(np.float64)
    deviations = (z - z.mean(0)).reshape(-1, 2)
    expected = deviations.T @ deviations / len(deviations)
    np.testing.assert_allclose(fitted["latent_mean"], z.mean(0), rtol=1e-6)
    np.testing.assert_allclose(fitted["latent_covariance"], expected, atol=0.03 * expected.max())


def test_a_larger_device_draws_more_pixels_at_once_and_the_same_ones(run, monkeypatch):
    codes, sizes, drawn, map_rows = np.random.default_rng(0).integers(0, 3, (8, *run.field)), [], [], sharding.map_rows
    monkeypatch.setattr(run_module, "PIXELS_AT_ONCE", 12 * 8)
    monkeypatch.setattr(sharding, "map_rows", lambda f, size, *rows: (sizes.append(size), map_rows(f, size, *rows))[1])
    for gib in (0, 16, 80):
        monkeypatch.setattr(memory, "device_bytes", lambda gib=gib: gib * 2**30)
        drawn.append(run.draw(codes, seed=3))
    assert sizes == [1, 2, 4]  # and no more than eval.batch_size
    assert np.ptp(drawn, axis=0).max() <= 1
    assert (np.ptp(drawn, axis=0) > 0).mean() < 0.001
