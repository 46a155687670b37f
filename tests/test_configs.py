"""Every config builds, has the same sections in the same order, and refuses a wrong word."""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest

from vqvae_jax import builders
from vqvae_jax.errors import InputError

NAMES = sorted(path.stem for path in (Path(__file__).parent.parent / "configs").glob("*.py") if path.stem != "__init__")
CASES = [(n, v) for n in NAMES for v in importlib.import_module(f"configs.{n}").VARIANTS]
SHAPES = {"imagenet2012": (128, 128, 3), "fashion_mnist": (28, 28, 1)}
SECTIONS = ["seed", "data", "model", "optimizer", "train", "prior", "eval", "logging"]


def get(name, variant):
    return importlib.import_module(f"configs.{name}").get_config(variant).to_dict()


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_config_builds_under_eval_shape(name, variant):
    config = get(name, variant)
    shape = SHAPES.get(config["data"]["name"], (32, 32, 3))
    model = builders.build_model(config["model"], shape)
    optimizer = builders.build_optimizer(config["optimizer"], config["train"]["num_steps"])
    images = jax.ShapeDtypeStruct((config["data"]["batch_size"], *shape), np.uint8)

    def one_step(images):
        variables = model.init(jax.random.key(0), images)
        loss, _ = model.loss(variables, {"image": images}, jax.random.key(1))
        return loss, optimizer.init(variables["params"])

    loss, _ = jax.eval_shape(one_step, images)
    assert loss.shape == ()
    assert loss.dtype == np.float32


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_sections_are_the_same_everywhere(name, variant):
    config, first = importlib.import_module(f"configs.{name}").get_config(variant), get(*CASES[0])
    source = Path(importlib.import_module(f"configs.{name}").__file__).read_text()
    places = [source.index(f"config.{section} = ") for section in SECTIONS]
    assert places == sorted(places)
    assert set(config.keys()) == set(SECTIONS)
    for section in SECTIONS[1:]:
        if section != "model" or config.model.family == first["model"]["family"]:
            assert config[section].to_dict().keys() == first[section].keys()


def test_the_papers_config_is_the_papers():
    config = get("cifar10", "paper")
    model = config["model"]
    assert (model["hidden"], model["residual_units"], model["residual_blocks"], model["downsamplings"]) == (
        256,
        256,
        2,
        2,
    )
    assert (model["num_codebooks"], model["codebook_size"], model["embedding_dim"]) == (10, 128, 32)
    assert (model["likelihood"], model["commitment_cost"], model["codebook_update"]) == ("softmax", 0.25, "gradient")
    assert config["optimizer"]["name"] == "adam"
    assert (config["optimizer"]["learning_rate"], config["optimizer"]["schedule"]) == (2e-4, "constant")
    assert (config["data"]["batch_size"], config["train"]["num_steps"]) == (128, 250_000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "vqvea"}, "unknown family 'vqvea': did you mean 'vqvae'"),
        ({"likelihood": "gauss"}, "unknown likelihood 'gauss': .*known: bernoulli, gaussian_channel"),
        ({"codebook_size": 1}, "at least 2 codes"),
        ({"hiden": 3}, "unknown option model.hiden: did you mean 'hidden'"),
        ({"codebook_update": "emma"}, "unknown model.codebook_update 'emma': did you mean 'ema'"),
        ({"downsamplings": 4}, "images of 8x12 cannot be halved 4 times: sides must be multiples of 16"),
        ({"pixel_mean": (0.5, 0.5)}, "model.pixel_mean has 2 values, the images have 3 channels"),
    ],
)
def test_a_wrong_model_option_is_one_clear_line(config, change, message):
    with pytest.raises(InputError, match=message) as caught:
        builders.build_model(config["model"] | change, (8, 12, 3))
    assert "\n" not in str(caught.value)


def test_a_missing_option_is_named(config):
    del config["model"]["hidden"]
    with pytest.raises(InputError, match=r"the config lacks model\.hidden"):
        builders.build_model(config["model"], (8, 12, 3))


def test_unknown_dataset_optimizer_and_schedule_list_the_known_ones(config):
    known = "cifar10, fashion_mnist, folder, imagenet2012, imagenet_resized/32x32, imagenet_resized/64x64, photos"
    with pytest.raises(InputError, match=rf"unknown dataset 'cifar': did you mean 'cifar10'\? known: {known}"):
        builders.build_source(config["data"] | {"name": "cifar"}, "train")
    with pytest.raises(InputError, match="unknown optimizer 'sgd': known: adam"):
        builders.build_optimizer(config["optimizer"] | {"name": "sgd"}, 10)
    with pytest.raises(InputError, match=r"unknown optimizer.schedule 'cosin': did you mean 'cosine'"):
        builders.build_optimizer(config["optimizer"] | {"schedule": "cosin"}, 10)
