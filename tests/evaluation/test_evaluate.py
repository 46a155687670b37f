"""The yardstick: every image once, whatever the batch; and the same numbers from Python."""

import json
import math

import jax
import numpy as np
import pytest
from PIL import Image

from configs import families
from vqvae_jax import registry
from vqvae_jax.data.sources import ArraySource
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation.evaluate import CODECS, evaluate, file_bits
from vqvae_jax.likelihoods.pixelwise import LogisticMixture
from vqvae_jax.run import Run, load
from vqvae_jax.training import loop, record


@pytest.fixture
def run(model, variables, config, source):
    meta = {"config": config, "class_names": ["many", "single"], "image_shape": [8, 12, 3], "step": 0}
    unfitted = Run(model, variables, meta)
    return Run(model, {**variables, "fitted": unfitted.fit(source)}, meta)


def with_batch_size(run, size):
    config = {**run.meta["config"], "eval": {**run.meta["config"]["eval"], "batch_size": size}}
    return Run(run.model, run.variables, {**run.meta, "config": config})


def test_bits_per_dim_is_worked_out_by_hand(run, source):
    result = evaluate(run, source)
    codes = np.asarray(run.model.encode(run.variables, source.images))
    counts = np.stack([np.bincount(codes[..., g].ravel(), minlength=5) for g in range(2)])
    p = (counts + 1) / (counts + 1).sum(axis=-1, keepdims=True)
    rate = -sum(np.log(p[g][codes[..., g]]).sum(axis=(1, 2)) for g in range(2))
    distortion = np.asarray(run.model.distortion(run.variables, codes, source.images), np.float64)
    dims = 8 * 12 * 3 * math.log(2)
    np.testing.assert_allclose(result["rate"], rate.mean() / dims, rtol=1e-5)
    np.testing.assert_allclose(result["distortion"], distortion.mean() / dims, rtol=1e-5)
    np.testing.assert_allclose(result["bits_per_dim"], (rate + distortion).mean() / dims, rtol=1e-5)
    uniform = codes[0].size * math.log(5) / dims
    np.testing.assert_allclose(result["priors"]["uniform"]["rate"], uniform, rtol=1e-5)
    error = np.std((rate + distortion) / dims, ddof=1) / math.sqrt(10)
    np.testing.assert_allclose(result["standard_errors"]["bits_per_dim"], error, rtol=1e-4)
    assert result["prior"] == "unigram"
    assert result["num_images"] == 10


def test_what_the_pixels_would_cost_alone_stands_beside_the_bound_of_a_context(config):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)
    source = ArraySource("tiny", "test", images, np.zeros(3, np.int32), ("one",))
    config["model"] |= {"likelihood": "context", "context": config["model"]["context"] | {"units": 8}}
    model = registry.build_model(config["model"], (8, 12, 3))
    variables = {**jax.jit(model.init)(jax.random.key(0), images), "fitted": {}}
    run = Run(model, variables, {"config": config, "class_names": ["one"], "image_shape": [8, 12, 3], "step": 0})
    result = evaluate(run, source)
    features = model.features(variables, model.encode(variables, images))
    head = LogisticMixture(3)
    nats = -np.sum(np.asarray(head.log_prob({}, features[..., : head.features(3)], images), np.float64))
    expected = nats / images.size / math.log(2)
    np.testing.assert_allclose(result["distortion_pixelwise"], expected, rtol=1e-5)
    np.testing.assert_allclose(result["bits_per_dim_pixelwise"], expected + result["rate"], rtol=1e-5)
    assert abs(result["distortion"] - expected) > 0.01


@pytest.mark.parametrize("batch_size", [1, 3, 10, 64])
def test_figures_depend_neither_on_batch_size_nor_on_order(run, source, batch_size):
    expected = evaluate(run, source)
    order = np.random.default_rng(1).permutation(10)
    shuffled = ArraySource("tiny", "test", source.images[order], source.labels[order], source.class_names)
    result = evaluate(with_batch_size(run, batch_size), shuffled)
    for key in ("bits_per_dim", "rate", "distortion", "psnr", "mse", "perplexity", "codebook_usage"):
        np.testing.assert_allclose(result[key], expected[key], rtol=1e-5)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_bound_of_drawn_latents_is_one_in_expectation(family):
    images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    source = ArraySource("tiny", "test", images, np.zeros(4, np.int32), ("one",))
    config = families.get_config(f"{family}_smoke").to_dict()
    model = registry.build_model(config["model"], (16, 16, 3))
    variables = {**jax.jit(model.init)(jax.random.key(0), images), "fitted": {}}
    run = Run(model, variables, {"config": config, "class_names": ["one"], "image_shape": [16, 16, 3], "step": 0})
    drawn = evaluate(run, source)["in_expectation"]
    assert drawn is (family in ("vae", "gumbel", "vimco"))
    if model.has_bound:  # what is drawn has another value with another key, and what is proven hasn't
        first, second = (model.bound(variables, images, jax.random.split(jax.random.key(n), 4)) for n in (0, 1))
        assert (np.abs(first.distortion - second.distortion).min() > 0) == drawn


def test_perplexity_is_that_of_the_split_and_not_a_mean_of_batches(run, source):
    # Regression 11: single images use few codes each, the split uses more.
    result = evaluate(with_batch_size(run, 1), source)
    codes = np.asarray(run.model.encode(run.variables, source.images))
    expected = []
    for g in range(2):
        p = np.bincount(codes[..., g].ravel(), minlength=5) / codes[..., g].size
        expected.append(math.exp(-sum(q * math.log(q) for q in p if q)))
    np.testing.assert_allclose(result["perplexity"], np.mean(expected), rtol=1e-5)


def test_classes_are_measured_apart(run, source):
    result = evaluate(run, source)
    alone = run.bits_per_dim(source.images[9:])
    np.testing.assert_allclose(result["per_class"]["single"]["bits_per_dim"], alone[0], rtol=1e-5)
    assert [row["num_images"] for row in result["per_class"].values()] == [9, 1]
    mean = (9 * result["per_class"]["many"]["bits_per_dim"] + alone[0]) / 10
    np.testing.assert_allclose(mean, result["bits_per_dim"], rtol=1e-5)


def test_a_part_of_the_split_says_so(run, source):
    result = evaluate(run, source, num_images=4)
    assert (result["num_images"], result["num_images_in_split"]) == (4, 10)
    np.testing.assert_allclose(result["bits_per_dim"], run.bits_per_dim(source.images[:4]).mean(), rtol=1e-5)


@pytest.mark.parametrize("number", [0, 1, 5, 10])
def test_python_interface_takes_any_batch(run, images, number):
    batch = images[:number]
    codes = run.encode(batch)
    assert codes.shape == (number, 2, 3, 2)
    assert run.reconstruct(batch).shape == batch.shape
    assert run.reconstruct(batch).dtype == np.uint8
    np.testing.assert_array_equal(run.decode(codes), run.reconstruct(batch))
    whole = run.bits_per_dim(images)
    assert run.bits_per_dim(batch).shape == (number,)
    np.testing.assert_allclose(run.bits_per_dim(batch), whole[:number], rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "argument", "message"),
    [
        ("encode", np.zeros((1, 8, 12, 3), np.float32), "uint8"),
        ("encode", np.zeros((1, 8, 12, 1), np.uint8), r"\[N,H,W,3\]"),
        ("encode", np.zeros((8, 12, 3), np.uint8), r"\[N,H,W,3\]"),
        ("bits_per_dim", np.zeros((1, 9, 12, 3), np.uint8), "images of 9x12 do not fit: sides must be multiples of 4"),
        ("decode", np.full((1, 2, 3, 2), 5), r"codes must lie in 0..4, not 5..5"),
        ("decode", np.zeros((1, 2, 3, 1), int), r"integers \[N,h,w,2\]"),
    ],
)
def test_wrong_arrays_are_refused_in_one_line(run, call, argument, message):
    with pytest.raises(InputError, match=message) as caught:
        getattr(run, call)(argument)
    assert "\n" not in str(caught.value)


def test_an_unfinished_run_is_measured_under_the_uniform_prior(model, variables, config, source, images):
    meta = {"config": config, "class_names": [], "image_shape": [8, 12, 3], "step": 0}
    unfitted = Run(model, variables, meta)
    result = evaluate(unfitted, source)
    assert result["prior"] == "uniform"
    assert list(result["priors"]) == ["uniform"]
    rate, distortion = jax.jit(model.bound)(variables, images)
    np.testing.assert_allclose(unfitted.bound(images).rate, rate, rtol=1e-6)
    np.testing.assert_allclose(unfitted.bound(images).distortion, distortion, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["squared_error", "logistic", "softmax"])
def test_a_trained_run_is_loaded_from_its_checkpoint_alone(config, tmp_path, likelihood):
    config["model"]["likelihood"] = likelihood
    config["train"]["num_steps"] = 2
    trained = loop.train(config, tmp_path)
    (tmp_path / "config.json").unlink()
    loaded = load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    assert loaded.prior == "unigram"
    np.testing.assert_array_equal(loaded.bits_per_dim(images), trained.bits_per_dim(images))
    np.testing.assert_array_equal(loaded.encode(images), trained.encode(images))
    assert loaded.meta["class_names"] == ["astronaut", "chelsea", "coffee", "rocket", "motorcycle"]
    assert load(tmp_path, data_dir="/moved").meta["config"]["data"]["data_dir"] == "/moved"


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(InputError, match="no run in .*train first"):
        load(tmp_path)
    (tmp_path / "checkpoints" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match="no checkpoint in .*train first"):
        load(tmp_path)


def test_evaluation_is_json_without_nan(run, source, tmp_path):
    # These images are too small for SSIM's window, so there is no SSIM.
    record.write_json(tmp_path / "evaluation.json", evaluate(run, source))
    text = (tmp_path / "evaluation.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["ssim"] is None


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_other_codecs_are_lossless_and_counted_by_their_files(channels, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 9, 14, channels), dtype=np.uint8)
    images[0] //= 64  # of which codecs make less
    images[0, ..., -1] = 0  # transparent, where there is alpha
    for codec in ("png", "webp"):
        size = 0
        for n, image in enumerate(images):
            path = tmp_path / f"{n}.{codec}"
            Image.fromarray(image.squeeze()).save(path, **CODECS[codec])
            size += path.stat().st_size
            back = Image.open(path).convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
            np.testing.assert_array_equal(np.asarray(back).reshape(image.shape), image)
        assert file_bits(images, codec, **CODECS[codec]) == pytest.approx(8 * size / images.size)


def test_no_images_have_no_bits():
    assert file_bits(np.zeros((0, 8, 8, 3), np.uint8), "png") is None
