"""The arithmetic of the networks: XLA's own convolutions, or on a CPU what makes it spend its time in matrix products.

Kernels have the shapes of `nn.Conv` and `nn.ConvTranspose`, results are theirs. On a CPU:

* A 4x4 convolution of stride 2 looks at every pixel as one of a 2x2 block, so it is a dense 2x2 convolution
  over blocks. Layers in a row keep their activations in blocks, so that nothing large is transposed.
* Wide convolutions are those of `winograd.py`. Others have one product over all taps where that is faster.

`experiments/benchmarks/train_step.py` holds the plain form, checks that both are equal, and times them.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vqvae_jax.models.winograd import Padding, opposite, wide_product, winograd

# Below this many output channels, a transposed convolution is one product and a sum of small overlapping patches.
FOLD_BELOW = 33
# Below this many channels on either side, tiles cost more than they save.
WINOGRAD_FROM = 32


def kernel_init(key, shape, gain=1.0):
    """LeCun's truncated normal (deviation gain/sqrt(fan-in)), drawn flat: XLA compiles that 10 times faster."""
    flat = jax.nn.initializers.truncated_normal(stddev=1.0)(key, (math.prod(shape),))
    # A normal cut at two standard deviations keeps 0.8796 of its own.
    return gain * flat.reshape(shape) / (math.sqrt(math.prod(shape[:-1])) * 0.87962566103423978)


def product(x: Float[Array, "*b c"], matrix: Float[Array, "c o"]) -> Float[Array, "*b o"]:
    """Multiply along channels; XLA's CPU products, and above all their gradients, are fastest on two axes."""
    return wide_product(x, matrix).astype(x.dtype)


def shifts(x, shape: tuple[int, ...], padding: Padding):
    """The shifted copies of `x` that a convolution of a kernel of `shape` sees, in row-major order."""
    x = jnp.pad(x, ((0, 0), *padding) + ((0, 0),) * (x.ndim - 3))
    height, width = x.shape[1] - shape[0] + 1, x.shape[2] - shape[1] + 1
    return [x[:, i : i + height, j : j + width] for i in range(shape[0]) for j in range(shape[1])]


def native_convolution(x, kernel, padding, stride=1, dilation=1):
    strides, dilations, names = (stride, stride), (dilation, dilation), ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, lhs_dilation=dilations, dimension_numbers=names)


def convolution_by_product(x, kernel, padding):
    """All taps in one product, then a sum of shifted results: faster where the output has fewer channels."""
    rows, columns, c, o = kernel.shape
    taps = product(x, kernel.transpose(2, 0, 1, 3).reshape(c, rows * columns * o))
    taps = shifts(taps.reshape(*x.shape[:3], rows * columns, o), kernel.shape, padding)
    return jnp.asarray(sum(taps[n][..., n, :] for n in range(rows * columns)))


def kernel_gradient_by_product(x, gradient, shape, padding):
    """One matrix product; the shifts fall on the side with fewer channels."""
    rows, columns, c, o = shape
    if c <= o:
        copies = jnp.concatenate(shifts(x, shape, padding), axis=-1)
        return (copies.reshape(-1, rows * columns * c).T @ gradient.reshape(-1, o)).reshape(shape)
    copies = jnp.concatenate(shifts(gradient, shape, opposite(shape, padding)), axis=-1)
    taps = (x.reshape(-1, c).T @ copies.reshape(-1, rows * columns * o)).reshape(c, rows, columns, o)
    return jnp.flip(taps, (1, 2)).transpose(1, 2, 0, 3)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def direct_convolution(x, kernel, padding):
    by_product = kernel.shape[2] > kernel.shape[3]
    return (convolution_by_product if by_product else native_convolution)(x, kernel, padding)


def _backward(padding, residuals, gradient):
    x, kernel = residuals
    backwards = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    input_gradient = direct_convolution(gradient, backwards, opposite(kernel.shape, padding))
    return input_gradient, kernel_gradient_by_product(x, gradient, kernel.shape, padding)


direct_convolution.defvjp(lambda x, kernel, pad: (direct_convolution(x, kernel, pad), (x, kernel)), _backward)


def cpu_convolution(x, kernel, padding):
    return (winograd if min(kernel.shape[2:]) >= WINOGRAD_FROM else direct_convolution)(x, kernel, padding)


def by_platform(cpu: Callable, default: Callable, *arrays, **constants) -> Any:
    """Call the function for the platform that the program is compiled for: the one place where it decides."""
    ways = {"cpu": partial(cpu, **constants), "default": partial(default, **constants)}
    return lax.platform_dependent(*arrays, **ways)


def convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "n n c o"], padding: Padding
) -> Float[Array, "b h2 w2 o"]:
    """Convolve at stride 1 with a kernel of 2x2 or 3x3 taps, with `padding` zeros around."""
    return by_platform(cpu_convolution, native_convolution, x, kernel, padding=padding)


def causal_convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "n m c o"], padding: Padding
) -> Float[Array, "b h2 w2 o"]:
    """Convolve at stride 1 such that nothing outside an output's window enters it, not even by rounding."""
    return by_platform(direct_convolution, native_convolution, x, kernel, padding=padding)


def to_blocks(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 4 c"]:
    """Pad by one pixel and cut into 2x2 blocks, so that a 4x4 window of stride 2 covers 2x2 whole blocks."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).reshape(b, h // 2 + 1, 2, w // 2 + 1, 2, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2 + 1, w // 2 + 1, 4, c)


def from_blocks(x: Float[Array, "b h2 w2 4 c"]) -> Float[Array, "b h w c"]:
    """Undo `to_blocks`: put the blocks side by side and drop the border of one pixel."""
    b, h, w, _, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)
    return x[:, 1:-1, 1:-1]


def block_kernel(kernel: Float[Array, "4 4 c o"]) -> Float[Array, "2 2 4*c o"]:
    """Rearrange the kernel of a 4x4 convolution of stride 2 for blocks: tap 2p + a is block p, pixel a."""
    c, o = kernel.shape[2:]
    return kernel.reshape(2, 2, 2, 2, c, o).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c, o)


def image_patches(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 p"]:
    """Every 4x4 window of stride 2 (one pixel of padding) as a row of 16c values, and a 1 that carries the bias."""
    height, width = x.shape[1], x.shape[2]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for i in range(4) for j in range(4)]
    return jnp.concatenate([*windows, jnp.ones_like(windows[0][..., :1])], axis=-1)


def overlap_add(patches: Float[Array, "b h w p"]) -> Float[Array, "b h2 w2 o"]:
    """Add up 4x4 patches at stride 2 and drop one border pixel: the end of a transposed convolution."""
    b, h, w, _ = patches.shape
    patches = patches.reshape(b, h, w, 2, 2, 2, 2, -1)  # tap 2p + a of a row goes to block row + p, pixel a
    total = 0
    for i, j in np.ndindex(2, 2):
        blocks = patches[:, :, :, i, :, j].reshape(b, h, w, 4, -1)
        total += jnp.pad(blocks, ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0), (0, 0)))
    return from_blocks(jnp.asarray(total))


Layers = Sequence[tuple[Array, Array]]  # kernel [4,4,c,o] and bias [o] of each


def add_bias(x, bias):
    """Add a bias to the last axis."""
    return x + bias.reshape(*(1,) * (x.ndim - 1), -1)


def downsample(x: Float[Array, "b h w c"], layers: Layers) -> Float[Array, "b h2 w2 o"]:
    """Apply 4x4 convolutions of stride 2 (one pixel of padding), each halving the sides, with a ReLU between two."""
    return by_platform(downsample_in_blocks, downsample_natively, x, layers)


def upsample(x: Float[Array, "b h w c"], layers: Layers) -> Float[Array, "b h2 w2 o"]:
    """Apply transposed 4x4 convolutions of stride 2, each doubling the sides, with a ReLU between two."""
    return by_platform(upsample_in_blocks, upsample_natively, x, layers)


def downsample_natively(x, layers: Layers):
    for n, (kernel, bias) in enumerate(layers):
        x = add_bias(native_convolution(jax.nn.relu(x) if n else x, kernel, ((1, 1), (1, 1)), stride=2), bias)
    return x


def upsample_natively(x, layers: Layers):
    for n, (kernel, bias) in enumerate(layers):
        x = jax.nn.relu(x) if n else x
        x = add_bias(native_convolution(x, jnp.flip(kernel, (0, 1)), ((2, 2), (2, 2)), dilation=2), bias)
    return x


def downsample_in_blocks(x: Array, layers: Layers):
    kernel, bias = layers[0]
    kernel = jnp.concatenate([kernel.reshape(-1, kernel.shape[-1]), bias.reshape(1, -1)])
    # Rearranging the patches is cheaper than rearranging what is made of them.
    x = product(image_patches(x) if len(layers) == 1 else to_blocks(image_patches(x)), kernel)
    for n, (kernel, bias) in enumerate(layers[1:]):
        x = jax.nn.relu(x if n == 0 else to_blocks(x))
        x = add_bias(cpu_convolution(x.reshape(*x.shape[:3], -1), block_kernel(kernel), ((0, 0), (0, 0))), bias)
    return x


def upsample_in_blocks(x: Array, layers: Layers):
    for n, (kernel, bias) in enumerate(layers):
        features = kernel.shape[-1]
        if n + 1 == len(layers) and features < FOLD_BELOW:
            x = product(x, kernel.transpose(2, 0, 1, 3).reshape(x.shape[-1], 16 * features))
            return add_bias(overlap_add(x), bias)
        # The transpose of a convolution over blocks, whose output comes in blocks.
        backwards = jnp.flip(block_kernel(kernel.swapaxes(2, 3)), (0, 1)).swapaxes(2, 3)
        x = cpu_convolution(x, backwards, ((1, 1), (1, 1)))
        x = add_bias(x.reshape(*x.shape[:3], 4, features), bias)
        x = from_blocks(x if n + 1 == len(layers) else jax.nn.relu(x))
    return x
