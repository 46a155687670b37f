"""The networks against the plain form, written with nn.Conv and nn.ConvTranspose on the same parameters."""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vqvae_jax.models import convolutions
from vqvae_jax.models.convolutions import FOLD_BELOW
from vqvae_jax.models.networks import Decoder, Encoder, Layer, ResidualStack
from vqvae_jax.models.winograd import winograd

HIDDEN, UNITS = 6, 4
# Each program here runs once, so that compiling is all that takes time.
UNOPTIMISED = {"xla_backend_optimization_level": 0}


def conv(parameters, x, stride=1):
    size, _, _, features = parameters["kernel"].shape
    # 4x4 and stride 2 with one pixel of padding halves the size; 3x3 and 1x1 keep it.
    pad = (size - 1) // 2
    layer = nn.Conv(features, (size, size), (stride, stride), padding=((pad, pad), (pad, pad)))
    return layer.apply({"params": parameters}, x)


def conv_transpose(parameters, x):
    # PyTorch's ConvTranspose2d(4, 2, 1), of which this is the flipped form.
    layer = nn.ConvTranspose(parameters["kernel"].shape[-1], (4, 4), (2, 2), padding=((2, 2), (2, 2)))
    return layer.apply({"params": {**parameters, "kernel": jnp.flip(parameters["kernel"], (0, 1))}}, x)


def plain_residual(params, x):
    for n in range(len(params) // 2):
        x = x + conv(params[f"conv1x1_{n}"], nn.relu(conv(params[f"conv3x3_{n}"], nn.relu(x))))
    return nn.relu(x)


def plain_encoder(params, x, downsamplings):
    for n in range(downsamplings):
        x = conv(params[f"down_{n}"], x, stride=2)
        x = nn.relu(x) if n + 1 < downsamplings else x
    return conv(params["out"], plain_residual(params["residual"], x))


def plain_decoder(params, x, upsamplings):
    x = plain_residual(params["residual"], conv(params["in"], x))
    for n in range(upsamplings):
        x = conv_transpose(params[f"up_{n}"], x)
        x = nn.relu(x) if n + 1 < upsamplings else x
    return x


def random(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_like(module, x):
    """Random parameters with the names and shapes of the module's own, biases included."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    leaves, structure = jax.tree.flatten(shapes)
    drawn = [random(s.shape, n) / np.float32(math.sqrt(math.prod(s.shape[:-1]))) for n, s in enumerate(leaves)]
    return jax.tree.unflatten(structure, drawn)


def outputs_and_gradients(function, upstream, *arguments):
    """The function's output, and what `upstream`, a gradient of the output's shape, becomes at each argument."""

    def both(upstream, *arguments):
        output, pull = jax.vjp(function, *arguments)
        return output, pull(upstream)

    return jax.jit(both, compiler_options=UNOPTIMISED)(upstream, *arguments)


def assert_same(module, plain, x, shape):
    """Equal outputs, and equal gradients with respect to parameters and input, of two forms of a network."""
    params, upstream = random_like(module, x), random(shape, 99)

    forms = [lambda params, x: module.apply({"params": params}, x), plain]
    got, expected = (outputs_and_gradients(form, upstream, params, x) for form in forms)
    assert got[0].shape == shape

    def compare(path, a, b):
        tolerance = 2e-5 * max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a, b, atol=tolerance, rtol=1e-4, err_msg=jax.tree_util.keystr(path))

    jax.tree_util.tree_map_with_path(compare, got, expected)


@pytest.fixture(params=["cpu", "wide", "default"])
def arithmetic(request, monkeypatch):
    """All ways to compute: a CPU's for few and for many channels, and that of other devices."""
    device = "default" if request.param == "default" else "cpu"
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, **ways: ways[device](*arguments))
    monkeypatch.setattr(convolutions, "WINOGRAD_FROM", 4 if request.param == "wide" else 100)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(
    ("downsamplings", "image_shape", "features"),
    [(1, (8, 12, 3), 5), (2, (8, 12, 3), 5), (3, (8, 16, 3), 5), (2, (28, 28, 1), 8)],
)
def test_encoder_equals_the_plain_form_and_so_do_its_gradients(downsamplings, image_shape, features):
    encoder = Encoder(HIDDEN, UNITS, 1, downsamplings, features)
    h, w = (n // 2**downsamplings for n in image_shape[:2])
    assert_same(
        encoder,
        lambda params, x: plain_encoder(params, x, downsamplings),
        random((2, *image_shape)),
        (2, h, w, features),
    )


# Few output channels are folded from patches; from FOLD_BELOW on, the last layer is like the others.
@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(
    ("upsamplings", "latent_shape", "features"),
    [
        (1, (4, 6, 3), 3),
        (1, (4, 6, 3), FOLD_BELOW),
        (2, (2, 3, 3), FOLD_BELOW),
        (2, (7, 7, 8), 1),
        (3, (1, 2, 4), FOLD_BELOW - 1),
        (3, (1, 2, 4), FOLD_BELOW + 7),
    ],
)
def test_decoder_equals_the_plain_form_and_so_do_its_gradients(upsamplings, latent_shape, features):
    decoder = Decoder(HIDDEN, UNITS, 1, upsamplings, features)
    h, w = (n * 2**upsamplings for n in latent_shape[:2])
    assert_same(
        decoder,
        lambda params, z: plain_decoder(params, z, upsamplings),
        random((2, *latent_shape)),
        (2, h, w, features),
    )


@pytest.mark.usefixtures("arithmetic")
def test_residual_stack_equals_the_plain_form_and_so_do_its_gradients():
    assert_same(ResidualStack(HIDDEN, UNITS, 3), plain_residual, random((2, 3, 5, HIDDEN)), (2, 3, 5, HIDDEN))


def plain_convolution(x, kernel, padding):
    names = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=names, precision="highest")


def assert_convolves(convolution, channels, shape, padding, dtype=np.float32, tolerance=1e-4):
    x, kernel = random((2, 5, 4, channels[0])).astype(dtype), random((*shape, *channels), 1).astype(dtype)
    size = (6 + sum(padding[0]) - shape[0], 5 + sum(padding[1]) - shape[1])
    upstream = random((2, *size, channels[1]), 2).astype(dtype)
    functions = (partial(function, padding=padding) for function in (convolution, plain_convolution))
    got, expected = (outputs_and_gradients(function, upstream, x, kernel) for function in functions)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, expected)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(
    ("c", "o", "shape", "padding"),
    [(2, 5, (3, 3), ((1, 1), (1, 1))), (5, 2, (3, 3), ((1, 1), (1, 1))), (5, 2, (3, 3), ((2, 0), (0, 1))),
     (3, 6, (2, 2), ((0, 0), (0, 0))), (6, 3, (2, 2), ((1, 1), (1, 1))), (2, 5, (2, 3), ((1, 0), (1, 1))),
     (5, 2, (2, 3), ((1, 0), (1, 1))), (2, 5, (1, 2), ((0, 0), (1, 0))), (5, 2, (1, 2), ((0, 0), (1, 0)))],
)  # fmt: skip
def test_causal_convolution_and_its_gradients_equal_jaxs_own(c, o, shape, padding):
    assert_convolves(convolutions.causal_convolution, (c, o), shape, padding)


@pytest.mark.usefixtures("arithmetic")
@pytest.mark.parametrize(("c", "o"), [(4, 7), (7, 4)])
def test_convolution_and_its_gradients_equal_jaxs_own(c, o):
    assert_convolves(convolutions.convolution, (c, o), (3, 3), ((1, 1), (1, 1)))


@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (1, 1)), ((1, 0), (0, 1))])
@pytest.mark.parametrize("taps", [2, 3])
@pytest.mark.parametrize(("c", "o"), [(2, 5), (5, 2)])
def test_winograds_algorithm_is_exact(c, o, taps, padding):
    with jax.enable_x64(True):
        assert_convolves(
            lambda x, k, padding: winograd(x, k, padding), (c, o), (taps, taps), padding, np.float64, 1e-11
        )


@pytest.mark.parametrize("taps", [2, 3])
def test_winograds_algorithm_loses_few_digits_of_float32(taps):
    x, kernel, padding = random((4, 8, 8, 128)), random((taps, taps, 128, 32), 1) / 32, ((1, 1), (1, 1))
    got = np.asarray(jax.jit(winograd, static_argnums=2)(x, kernel, padding))
    with jax.enable_x64(True):
        exact = np.asarray(plain_convolution(x.astype(np.float64), kernel.astype(np.float64), padding))
    # Rounding of a sum of that many terms alone gives 4e-7.
    assert np.abs(got - exact).max() < 2e-6 * np.abs(exact).max()


@pytest.mark.usefixtures("arithmetic")
def test_nothing_outside_its_window_enters_a_causal_convolution():
    x, kernel = random((1, 6, 6, 8)), jnp.asarray(random((2, 3, 8, 8), 1))
    changed = x.copy()
    changed[:, 3, 3:] = 1e8  # in order of rows and columns, (3, 3) comes after (3, 2)
    one, other = (
        jax.jit(lambda x: convolutions.causal_convolution(x, kernel, ((1, 0), (2, 0))))(x) for x in (x, changed)
    )
    np.testing.assert_array_equal(one[:, :3], other[:, :3])
    np.testing.assert_array_equal(one[:, 3, :3], other[:, 3, :3])
    assert np.abs(one[:, 3, 3] - other[:, 3, 3]).max() > 1e6


def test_blocks_are_undone_exactly():
    x = random((2, 6, 8, 3))
    blocks = jax.jit(convolutions.to_blocks)(x)
    assert blocks.shape == (2, 4, 5, 4, 3)
    np.testing.assert_array_equal(jax.jit(convolutions.from_blocks)(blocks), x)
    # Block (1, 1) is the pixels (1, 1), (1, 2), (2, 1), (2, 2) of the image.
    np.testing.assert_array_equal(blocks[:, 1, 1], x[:, 1:3, 1:3].reshape(2, 4, 3))


@pytest.mark.parametrize("shape", [(4, 4, 32, 64), (3, 3, 64, 64), (1, 1, 256, 256)])
def test_kernel_init_has_lecuns_statistics(shape):
    kernel = np.asarray(jax.jit(lambda key: convolutions.kernel_init(key, shape))(jax.random.key(0)))
    fan_in = math.prod(shape[:-1])
    std = 1 / math.sqrt(fan_in)
    lecun = np.asarray(nn.initializers.lecun_normal()(jax.random.key(1), (fan_in, shape[-1])))
    assert kernel.shape == shape
    assert kernel.dtype == np.float32
    assert abs(kernel.mean()) < 0.02 * std
    np.testing.assert_allclose([kernel.std(), lecun.std()], std, rtol=0.02)
    # Cut at two standard deviations of the normal before the cut.
    np.testing.assert_allclose([kernel.max(), -kernel.min()], 2 * std / 0.87962566, rtol=0.01)
    quantiles = np.linspace(0.05, 0.95, 19)
    np.testing.assert_allclose(np.quantile(kernel, quantiles), np.quantile(lecun, quantiles), atol=0.04 * std)


def test_a_transposed_layer_keeps_the_variance_of_its_input():
    # Each output of a 4x4 layer of stride 2 sees 4 taps of 64 channels.
    (kernel, _), _ = Layer(64, 4, gain=2.0).init_with_output(jax.random.key(0), 64)
    x = jax.random.normal(jax.random.key(1), (4, 16, 16, 64))
    out = jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(out[:, 4:-4, 4:-4].std(), 1.0, rtol=0.05)
    # So does the decoder use it: its kernels are twice those of the other kind.
    params = Decoder(64, 4, 1, 1, 64).init(jax.random.key(0), jnp.zeros((1, 2, 2, 64)))["params"]
    np.testing.assert_allclose(params["up_0"]["kernel"].std(), kernel.std(), rtol=0.05)


RESIDUAL = {"conv3x3_0": (3, 3, HIDDEN, UNITS), "conv1x1_0": (1, 1, UNITS, HIDDEN)}
NAMES = [  # module, its input's shape, names and kernel shapes of its layers
    (
        Encoder(HIDDEN, UNITS, 1, 2, 5),
        (1, 8, 8, 3),
        {"down_0": (4, 4, 3, HIDDEN), "down_1": (4, 4, HIDDEN, HIDDEN), "residual": RESIDUAL, "out": (1, 1, HIDDEN, 5)},
    ),
    (
        Decoder(HIDDEN, UNITS, 1, 2, 3),
        (1, 2, 2, 5),
        {"in": (3, 3, 5, HIDDEN), "residual": RESIDUAL, "up_0": (4, 4, HIDDEN, HIDDEN), "up_1": (4, 4, HIDDEN, 3)},
    ),
]


@pytest.mark.parametrize(("module", "shape", "layers"), NAMES)
def test_parameters_have_the_names_and_shapes_of_the_plain_form_and_biases_start_at_0(module, shape, layers):
    params = jax.eval_shape(module.init, jax.random.key(0), random(shape))["params"]
    kernels = jax.tree.map(lambda layer: layer["kernel"].shape, params, is_leaf=lambda node: "kernel" in node)
    assert kernels == layers

    def biases(key):  # the kernels are never drawn, which would take long to compile
        tree = jax.tree_util.tree_leaves_with_path(module.init(key, jnp.zeros(shape)))
        return [leaf for path, leaf in tree if path[-1].key == "bias"]

    for bias in jax.jit(biases)(jax.random.key(0)):
        np.testing.assert_array_equal(bias, 0)
