"""Every config of every variant builds, passes the checks of training, and refuses a wrong word."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import default
from vqvae_jax import registry
from vqvae_jax.errors import InputError
from vqvae_jax.training import loop

NAMES = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py") if path.stem != "__init__")
CASES = [(n, v) for n in NAMES for v in importlib.import_module(f"configs.{n}").VARIANTS]
SHAPES = {"imagenet2012": (128, 128, 3), "fashion_mnist": (28, 28, 1)}


def keys(section):
    """The dotted names of all options."""
    return {
        f"{key}{'.' + below if below else ''}"
        for key, value in section.items()
        for below in (keys(value) if isinstance(value, dict) else [""])
    }


def get(name, variant):
    return importlib.import_module(f"configs.{name}").get_config(variant).to_dict()


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_config_builds_under_eval_shape(name, variant):
    config = get(name, variant)
    shape = SHAPES.get(config["data"]["name"], (32, 32, 3))
    model = registry.build_model(config["model"], shape)
    optimizer = registry.build_optimizer(config["optimizer"], config["train"]["num_steps"])
    images = jax.ShapeDtypeStruct((config["data"]["batch_size"], *shape), np.uint8)

    def one_step(images):
        variables = model.init(jax.random.key(0), images)
        loss, _ = model.loss(variables, {"image": images}, jax.random.key(1))
        return loss, optimizer.init(variables["params"])

    loss, _ = jax.eval_shape(one_step, images)
    assert loss.shape == ()
    assert loss.dtype == np.float32


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_the_whole_config_passes_the_checks_of_training(name, variant):
    loop.check_config(get(name, variant))


@pytest.mark.parametrize("section", ["train", "prior", "eval", "logging", "data"])
def test_a_wrong_key_and_a_missing_one_are_found_in_every_section(config, section):
    with pytest.raises(InputError, match=rf"unknown option {section}\.wrong"):
        loop.check_config(config | {section: config[section] | {"wrong": 1}})
    key = next(iter(config[section]))
    with pytest.raises(InputError, match=rf"lacks {section}\.{key}"):
        loop.check_config(config | {section: {k: v for k, v in config[section].items() if k != key}})


def codes_of(model):
    """Where a `model` section says how many codes there are: in its quantizer, or itself."""
    return model.get("quantizer", model)


def takes_prior(config):
    return config["prior"]["name"] != "none" and codes_of(config["model"]).keys() & {"name", "num_codebooks"}


WITH_PRIOR = [case for case in CASES if takes_prior(get(*case))]


@pytest.mark.parametrize(("name", "variant"), WITH_PRIOR)
def test_the_prior_builds_for_the_codes_of_the_model(name, variant):
    config = get(name, variant)
    height, width, _ = SHAPES.get(config["data"]["name"], (32, 32, 3))
    model = registry.build_model(config["model"], (height, width, 3))
    field = (*model.trunk.grid(height, width), len(model.codebook_sizes))
    prior = registry.build_prior(config["prior"], field, model.codebook_sizes, 10)

    def log_prob(codes, label):
        variables = prior.init(jax.random.key(0), {"codes": codes, "label": label})
        return prior.log_prob(variables, codes)

    codes, label = (jax.ShapeDtypeStruct((2, *shape), np.int32) for shape in (field, ()))
    assert jax.eval_shape(log_prob, codes, label).shape == (2,)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_variant_is_one_line_with_the_known_ones(name):
    page = importlib.import_module(f"configs.{name}")
    with pytest.raises(ValueError, match="unknown variant 'tiny' of .*: known: ") as caught:
        page.get_config("tiny")
    for variant in page.VARIANTS:
        assert variant in str(caught.value)


def test_the_pages_have_the_options_of_the_default_and_no_other():
    for name, variant in CASES:
        config = get(name, variant)
        family = config["model"]["family"]
        quantizer = config["model"].get("quantizer", {}).get("name", "vector_ema")
        assert keys(config) == keys(default.get_config(family, quantizer).to_dict())


def test_a_misspelt_option_cannot_be_set():
    with pytest.raises(AttributeError, match="hiden"):
        default.get_config().model.hiden = 3
    with pytest.raises(KeyError, match="hiden"):
        default.get_config().model.update(hiden=3)


def test_the_papers_config_is_the_papers():
    config = get("cifar10", "paper")
    model = config["model"]
    assert {k: model[k] for k in ("hidden", "residual_units", "residual_blocks", "downsamplings", "likelihood")} == {
        "hidden": 256,
        "residual_units": 256,
        "residual_blocks": 2,
        "downsamplings": 2,
        "likelihood": "softmax",
    }
    assert model["quantizer"] == {
        "name": "vector_gradient",
        "codebook_size": 128,
        "num_codebooks": 10,
        "embedding_dim": 32,
        "commitment_cost": 0.25,
        "distance": "euclidean",
        "estimator": "straight_through",
        "start": "data",
    }
    assert config["optimizer"] == {"name": "adam", "learning_rate": 2e-4, "schedule": "constant", "warmup_steps": 0}
    assert (config["data"]["batch_size"], config["train"]["num_steps"]) == (128, 250_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "vqvea"}, "unknown family 'vqvea': did you mean 'vqvae'"),
        ({"likelihood": "gauss"}, "unknown likelihood 'gauss': .*known: bernoulli, context, gaussian_channel"),
        ({"hiden": 3}, "unknown option model.hiden: did you mean 'hidden'"),
        ({"downsamplings": 4}, "images of 8x12 .*sides must be multiples of 16"),
        ({"pixel_std": (0.5, 0.0, 0.5)}, r"model.pixel_std is \(0.5, 0.0, 0.5\): it must be above 0"),
        ({"pixel_mean": (0.5, 0.5)}, "model.pixel_mean has 2 values, the images have 3 channels"),
        ({"quantizer": {"name": "vector_emma"}}, "unknown .*quantizer.* 'vector_emma': did you mean 'vector_ema'"),
    ],
)
def test_a_wrong_model_option_is_one_clear_line(change, message):
    with pytest.raises(InputError, match=message) as caught:
        registry.build_model(get("quickstart", "smoke")["model"] | change, (8, 12, 3))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebook_size": 0}, "at least 1"),
        ({"codebok_size": 3}, "unknown option .*quantizer.codebok_size: did you mean 'codebook_size'"),
        ({"revival_threshold": 2.0}, "revival_threshold is 2.0"),
    ],
)
def test_a_wrong_quantizer_option_is_one_clear_line(change, message):
    section = get("quickstart", "smoke")["model"]
    section["quantizer"] |= change
    with pytest.raises(InputError, match=message) as caught:
        registry.build_model(section, (8, 12, 3))
    assert "\n" not in str(caught.value)


def test_a_quantizer_learned_by_gradient_has_no_options_of_the_moving_average():
    section = get("quickstart", "smoke")["model"]
    section["quantizer"] |= {"name": "vector_gradient"}
    with pytest.raises(InputError, match=r"unknown option .*quantizer\.ema_decay"):
        registry.build_model(section, (8, 12, 3))


def test_a_missing_option_is_named():
    section = get("quickstart", "smoke")["model"]
    del section["hidden"]
    with pytest.raises(InputError, match=r"the config lacks model\.hidden"):
        registry.build_model(section, (8, 12, 3))


def test_unknown_dataset_optimizer_and_schedule_list_the_known_ones(config):
    known = "cifar10, fashion_mnist, folder, imagenet2012, imagenet_resized/32x32, imagenet_resized/64x64, photos"
    with pytest.raises(InputError, match=rf"unknown dataset 'cifar': did you mean 'cifar10'\? known: {known}"):
        registry.build_source(config["data"] | {"name": "cifar"}, "train")
    with pytest.raises(InputError, match="unknown optimizer 'sgd': known: adam, muon"):
        registry.build_optimizer(config["optimizer"] | {"name": "sgd"}, 10)
    with pytest.raises(InputError, match=r"unknown optimizer.schedule 'cosin': did you mean 'cosine'"):
        registry.build_optimizer(config["optimizer"] | {"schedule": "cosin"}, 10)


def test_muon_turns_every_kernel_as_far_in_all_directions_and_adam_moves_the_rest():
    section = {"name": "muon", "learning_rate": 0.1, "schedule": "constant", "warmup_steps": 0}
    optimizer = registry.build_optimizer(section, 10)
    random = np.random.default_rng(0)
    params = {"kernel": random.normal(size=(3, 3, 8, 20)), "narrow": random.normal(size=(30, 6))}
    params |= {"bias": random.normal(size=20), "hidden_bias": random.normal(size=(5, 6))}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    gradients = {name: random.normal(size=value.shape).astype(np.float32) for name, value in params.items()}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for name, size in (("kernel", 72), ("narrow", 30)):
        update, gradient = (np.asarray(of[name]).reshape(-1, of[name].shape[-1]) for of in (updates, gradients))
        left, values, right = np.linalg.svd(gradient, full_matrices=False)
        turned = -(left.T @ update @ right.T) / (0.1 * 0.2 * np.sqrt(size))  # in the gradient's own directions
        assert np.abs(turned - np.diag(np.diag(turned))).max() < 0.02
        # Five steps of the quintic iteration bring all lengths near 1 (Jordan et al. 2024).
        assert 0.6 < np.diag(turned).min() <= np.diag(turned).max() < 1.3
        assert values.max() / values.min() > 1.5
    for name in ("bias", "hidden_bias"):
        moved = np.asarray(updates[name]) * -np.sign(gradients[name])  # Adam's first step is as long for all
        np.testing.assert_allclose(moved, moved.max(), rtol=1e-3)
        assert 0.05 < moved.max() < 0.2


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("cosine", 0.0)])
def test_the_learning_rate_rises_over_the_warm_up_and_then_follows_its_schedule(schedule, last, warmup):
    section = {"name": "adam", "learning_rate": 0.1, "schedule": schedule, "warmup_steps": warmup}
    optimizer = registry.build_optimizer(section, 20)
    one = np.float32(1)  # a constant gradient, for which Adam moves by the learning rate
    state, moved = optimizer.init(one), []
    for _ in range(21):
        update, state = optimizer.update(one, state, one)
        moved.append(-float(update))
    np.testing.assert_allclose(
        moved[: warmup + 1], [0.1 * n / warmup if warmup else 0.1 for n in range(warmup + 1)], atol=1e-6
    )
    assert moved[-1] == pytest.approx(0.1 * last, abs=1e-6)
