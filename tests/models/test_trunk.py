"""Precision and memory of the networks: what `dtype` and `rematerialise` change, and what they leave alone."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from vqvae_jax import registry
from vqvae_jax.errors import InputError
from vqvae_jax.training import sharding
from vqvae_jax.training.step import init_state, make_train_step

SHAPE = (16, 16, 3)


def build(hidden=8, **options):
    section = quickstart.get_config("smoke").to_dict()["model"]
    section |= {"likelihood": "logistic", "hidden": hidden, "residual_units": hidden // 2, "residual_blocks": 3}
    section["quantizer"] |= {"codebook_size": 16, "num_codebooks": 1, "embedding_dim": 8}
    return registry.build_model(section | options, SHAPE)


def build_autoencoder(dtype):
    options = {"family": "autoencoder", "latent_channels": 4, "dtype": dtype}
    section = quickstart.get_config("smoke").to_dict()["model"] | {"likelihood": "logistic", "hidden": 16}
    return registry.build_model({k: v for k, v in (section | options).items() if k != "quantizer"}, SHAPE)


def smooth_images(number, seed=0):
    """Coloured waves with noise, uint8."""
    random = np.random.default_rng(seed)
    rows, columns = np.indices(SHAPE[:2])[:, None, :, :, None] / SHAPE[0]
    slopes, phases = random.uniform(-2, 2, (2, number, 1, 1, 3)), random.uniform(0, 6, (number, 1, 1, 3))
    waves = 127 + 50 * np.sin(slopes[0] * rows + slopes[1] * columns + phases)
    return np.clip(waves + random.normal(0, 25, (number, *SHAPE)), 0, 255).astype(np.uint8)


def loss_of(model, images):
    variables = jax.jit(model.init)(jax.random.key(0), images)

    def loss(params):
        given = {"params": params, "state": variables["state"]}
        return model.loss(given, {"image": images}, jax.random.key(1))[0]

    return loss, variables["params"]


def kept_bytes(loss, params):
    """What is kept for the gradient."""
    kept = jax.eval_shape(lambda params: jax.vjp(loss, params)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))


def test_rematerialisation_keeps_less_and_gives_the_same_loss_and_gradients():
    images = jnp.asarray(smooth_images(4))
    kept, again = loss_of(build(), images), loss_of(build(rematerialise=True), images)
    expected, got = (jax.jit(jax.value_and_grad(loss))(params) for loss, params in (kept, again))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)
    assert kept_bytes(*again) < 0.5 * kept_bytes(*kept)


def test_bfloat16_is_for_activations_alone():
    model, images = build(dtype="bfloat16"), jnp.asarray(smooth_images(4))
    variables = jax.jit(model.init)(jax.random.key(0), images) | {"fitted": {}}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    trunk, params = model.trunk, variables["params"]
    z_e = trunk.encode(params, images, 8)
    assert z_e.dtype == trunk.decode(params, z_e).dtype == model.bound(variables, images).distortion.dtype == np.float32
    # All that multiplies inside the networks has 16 bits.
    program = jax.jit(trunk.decode).lower(params, z_e).as_text()
    products = [line for line in program.splitlines() if re.search(r"stablehlo\.(dot_general|convolution)", line)]
    assert products
    assert all("xbf16>, tensor<" in line for line in products)


def test_another_dtype_is_refused():
    with pytest.raises(InputError, match=r"model\.dtype 'float16'.*bfloat16"):
        build(dtype="float16")


def trained(model, images, steps=200):
    optimizer = {"name": "adam", "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 10}
    optimizer = registry.build_optimizer(optimizer, steps)
    state, step = init_state(model, optimizer, 0, jnp.asarray(images[:32])), make_train_step(model, optimizer, 0)
    for n in range(steps):
        state, _ = step(state, sharding.put_batch({"image": images[n % 16 * 32 :][:32]}))
    return {"params": state.params, "state": state.model_state, "fitted": {}}


def bits_per_dim(model, variables, images):
    """Without the rate, which is the same whatever the codes."""
    distortion = jax.jit(lambda images: model.distortion(variables, model.encode(variables, images), images))(images)
    return float(jnp.mean(distortion)) / np.log(2) / np.prod(SHAPE)


@pytest.mark.slow
def test_bfloat16_trains_to_the_same_bits_per_dim():
    images, held_out = smooth_images(512), jnp.asarray(smooth_images(128, seed=1))
    # Without a codebook: which codes win is chaotic, and another seed changes the figure by more.
    models = [build_autoencoder(dtype) for dtype in ("float32", "bfloat16")]
    exact, coarse = (bits_per_dim(model, trained(model, images), held_out) for model in models)
    assert exact < 7.4  # something was learned
    assert abs(coarse - exact) < 0.01


@pytest.mark.slow
def test_bfloat16_measures_the_same_bits_per_dim_with_the_same_codebook():
    images, held_out = smooth_images(512), jnp.asarray(smooth_images(128, seed=1))
    variables = trained(build(), images)
    exact, coarse = (bits_per_dim(build(dtype=dtype), variables, held_out) for dtype in ("float32", "bfloat16"))
    assert 0 < abs(coarse - exact) < 0.01
