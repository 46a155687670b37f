"""Strict flags for every test, and small shared fixtures. Nothing here needs a network or data from outside."""

import gc
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and compute little.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Compiled once, used by every test and by every program that a test starts.
CACHE = Path(__file__).parent.parent / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
sys.path.insert(0, str(Path(__file__).parent.parent))

try:  # requirements-dev.txt has beartype, with which every annotated shape is checked
    import beartype  # noqa: F401
    from jaxtyping import install_import_hook

    install_import_hook("vqvae_jax", "beartype.beartype")
except ImportError:
    pass

import jax
import numpy as np
from PIL import Image

jax.config.update("jax_numpy_rank_promotion", "raise")

from configs import default, quickstart
from vqvae_jax import registry
from vqvae_jax.data.sources import ArraySource

IMAGE_SHAPE = (8, 12, 3)


def pytest_sessionfinish():
    """Leave out a report of jax's garbage collection, which pytest-xdist interrupts when it ends a process."""
    gc.callbacks.clear()


@pytest.fixture(scope="module", autouse=True)
def forget_compiled():
    """Let go of compiled programs: each has memory maps, of which Linux gives a process 65,530."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def photo_dir(tmp_path_factory) -> str:
    """A folder with five small photographs of noise, in place of scikit-image's."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"):
        coarse = Image.fromarray(random.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        coarse.resize((160, 120), Image.Resampling.BICUBIC).save(folder / name)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_quantizers() -> dict[str, dict]:
    """The section `model.quantizer` of each quantizer in small; the codes of `finite_scalar` differ in size."""
    codes = {"codebook_size": 5, "num_codebooks": 2, "embedding_dim": 3}
    small = {"finite_scalar": {"levels": (128, 3, 3, 64)}, "lookup_free": {"bits": 4}}
    return {name: default.quantizer_section(name) | small.get(name, codes) for name in registry.QUANTIZERS}


@pytest.fixture
def config(photo_dir) -> dict:
    """A complete config of a tiny model on those photographs, as plain dicts."""
    config = quickstart.get_config("smoke").to_dict()
    config["model"] |= {"hidden": 6, "residual_units": 4, "likelihood": "logistic"}
    config["model"]["quantizer"] |= {"codebook_size": 5, "num_codebooks": 2, "embedding_dim": 3}
    config["optimizer"] |= {"name": "adam", "learning_rate": 3e-3, "warmup_steps": 50}
    config["data"] |= {"batch_size": 4, "num_threads": 0, "data_dir": photo_dir}
    config["train"] |= {"num_steps": 6, "log_every": 1, "eval_every": 3, "checkpoint_every": 2}
    config["prior"]["name"] = "none"
    config["logging"]["tensorboard"] = False
    return config


@pytest.fixture(scope="session")
def of_both_stages(photo_dir) -> dict:
    """A complete config of a tiny model and a tiny prior, as plain dicts."""
    config = quickstart.get_config("smoke").to_dict()
    config["model"] |= {"hidden": 6, "residual_units": 4, "likelihood": "logistic"}
    config["model"]["quantizer"] |= {"codebook_size": 5, "num_codebooks": 2, "embedding_dim": 3}
    config["optimizer"] |= {"name": "adam", "learning_rate": 3e-3, "warmup_steps": 50}
    config["data"] |= {"batch_size": 4, "num_threads": 0, "data_dir": photo_dir}
    config["train"] |= {"num_steps": 3, "log_every": 1, "eval_every": 3, "checkpoint_every": 3}
    config["prior"] |= {"batch_size": 4, "num_steps": 6, "log_every": 1, "eval_every": 2, "features": 4}
    config["eval"] |= {"final_fit_images": 64}
    config["logging"]["tensorboard"] = False
    return config


@pytest.fixture
def images() -> np.ndarray:
    """Ten random images, uint8 [10,8,12,3]."""
    return np.random.default_rng(0).integers(0, 256, (10, *IMAGE_SHAPE), dtype=np.uint8)


@pytest.fixture
def source(images) -> ArraySource:
    """The ten images as a data set of two classes, one of them with a single image."""
    labels = np.array([0] * 9 + [1], np.int32)
    return ArraySource("tiny", "test", images, labels, ("many", "single"))


@pytest.fixture
def model(config):
    """The tiny model of `config`."""
    return registry.build_model(config["model"], IMAGE_SHAPE)


@pytest.fixture
def variables(model, images):
    """The tiny model's first variables, with an empty `fitted`."""
    return {**jax.jit(model.init)(jax.random.key(0), images), "fitted": {}}
