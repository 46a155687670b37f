"""The encoder and decoder of van den Oord et al. 2017 (sec. 4.1) as Linen modules.

The networks are the paper's: strided 4x4 convolutions, residual blocks (ReLU, 3x3, ReLU, 1x1), and 4x4
transposed convolutions. Their parameters have the shapes of `nn.Conv`. What differs is the arithmetic, which is
arranged so that a CPU spends its time in matrix products (an accelerator loses nothing by it):

* A 4x4 convolution of stride 2 looks at every pixel as one of a 2x2 block, so it is a dense 2x2 convolution
  over blocks. Two strided layers in a row keep their activations in blocks, so that nothing large is transposed.
* The gradient of a kernel is one matrix product over shifted copies of whichever side has fewer channels.

`experiments/benchmarks/train_step.py` holds the plain form, checks that both are equal, and times them.
"""

import math
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Below this many output channels, a transposed convolution is one product and a sum of small overlapping patches.
FOLD_BELOW = 33


def kernel_init(key, shape):
    """LeCun's truncated normal (standard deviation 1/sqrt(fan-in)), drawn flat: XLA compiles that 10 times faster."""
    flat = nn.initializers.truncated_normal(stddev=1.0)(key, (math.prod(shape),))
    # A normal cut at two standard deviations keeps 0.8796 of its own.
    return flat.reshape(shape) / (math.sqrt(math.prod(shape[:-1])) * 0.87962566103423978)


def transposed_kernel_init(key, shape):
    """The same for a transposed 4x4 layer of stride 2, each of whose outputs sees 4 of the 16 taps."""
    return 2 * kernel_init(key, shape)


def product(x: Float[Array, "*b c"], matrix: Float[Array, "c o"]) -> Float[Array, "*b o"]:
    """Multiply along channels; XLA's CPU products, and above all their gradients, are fastest on two axes."""
    return (x.reshape(-1, x.shape[-1]) @ matrix).reshape(*x.shape[:-1], matrix.shape[-1])


# Zeros before and after, of rows and of columns.
Padding = tuple[tuple[int, int], tuple[int, int]]


def same(size: int) -> Padding:
    """Give the zeros around an image that a kernel of an odd `size` needs to keep its sides."""
    return (size // 2, size // 2), (size // 2, size // 2)


def opposite(shape: tuple[int, ...], padding: Padding) -> Padding:
    """Give the zeros for the way back through a kernel of `shape`."""
    (top, bottom), (left, right) = padding
    rows, columns = shape[0] - 1, shape[1] - 1
    return (rows - top, rows - bottom), (columns - left, columns - right)


def shifts(x, shape: tuple[int, ...], padding: Padding):
    """The shifted copies of `x` that a convolution of a kernel of `shape` sees, in row-major order."""
    x = jnp.pad(x, ((0, 0), *padding) + ((0, 0),) * (x.ndim - 3))
    height, width = x.shape[1] - shape[0] + 1, x.shape[2] - shape[1] + 1
    return [x[:, i : i + height, j : j + width] for i in range(shape[0]) for j in range(shape[1])]


def native_convolution(x, kernel, padding):
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolution_by_product(x, kernel, padding):
    """All taps in one product, then a sum of shifted results: faster where the output has fewer channels."""
    rows, columns, c, o = kernel.shape
    taps = product(x, kernel.transpose(2, 0, 1, 3).reshape(c, rows * columns * o))
    taps = shifts(taps.reshape(*x.shape[:3], rows * columns, o), kernel.shape, padding)
    return jnp.asarray(sum(taps[n][..., n, :] for n in range(rows * columns)))


def dense_convolution(x, kernel, padding):
    cpu = native_convolution if kernel.shape[2] <= kernel.shape[3] else convolution_by_product
    return lax.platform_dependent(
        x, kernel, cpu=partial(cpu, padding=padding), default=partial(native_convolution, padding=padding)
    )


def native_kernel_gradient(x, gradient, shape, padding):
    zeros = jnp.zeros(shape, x.dtype)
    return jax.vjp(lambda kernel: native_convolution(x, kernel, padding), zeros)[1](gradient)[0]


def kernel_gradient_by_product(x, gradient, shape, padding):
    """One matrix product; the shifts fall on the side with fewer channels."""
    rows, columns, c, o = shape
    if c <= o:
        copies = jnp.concatenate(shifts(x, shape, padding), axis=-1)
        return (copies.reshape(-1, rows * columns * c).T @ gradient.reshape(-1, o)).reshape(shape)
    copies = jnp.concatenate(shifts(gradient, shape, opposite(shape, padding)), axis=-1)
    taps = (x.reshape(-1, c).T @ copies.reshape(-1, rows * columns * o)).reshape(c, rows, columns, o)
    return jnp.flip(taps, (1, 2)).transpose(1, 2, 0, 3)


def convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "n m c o"], padding: Padding
) -> Float[Array, "b h2 w2 o"]:
    """Convolve at stride 1, with `padding` zeros around."""
    return jnp.asarray(_convolution(x, kernel, padding))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolution(x, kernel, padding):
    return dense_convolution(x, kernel, padding)


def _forward(x, kernel, padding):
    return dense_convolution(x, kernel, padding), (x, kernel)


def _backward(padding, residuals, gradient):
    x, kernel = residuals
    backwards = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    input_gradient = dense_convolution(gradient, backwards, opposite(kernel.shape, padding))
    kernel_gradient = lax.platform_dependent(
        x, gradient,
        cpu=partial(kernel_gradient_by_product, shape=kernel.shape, padding=padding),
        default=partial(native_kernel_gradient, shape=kernel.shape, padding=padding),
    )  # fmt: skip
    return input_gradient, kernel_gradient


_convolution.defvjp(_forward, _backward)


def to_blocks(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 4 c"]:
    """Pad by one pixel and cut into 2x2 blocks, so that a 4x4 window of stride 2 covers 2x2 whole blocks."""
    b, h, w, c = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = x.reshape(b, h // 2 + 1, 2, w // 2 + 1, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2 + 1, w // 2 + 1, 4, c)


def from_blocks(x: Float[Array, "b h2 w2 4 c"]) -> Float[Array, "b h w c"]:
    """Undo `to_blocks`: put the blocks side by side and drop the border of one pixel."""
    b, h, w, _, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c)
    return x[:, 1:-1, 1:-1]


def block_kernel(kernel: Float[Array, "4 4 c o"]) -> Float[Array, "2 2 4*c o"]:
    """Rearrange the kernel of a 4x4 convolution of stride 2 for blocks: tap 2p + a is block p, pixel a."""
    c, o = kernel.shape[2:]
    return kernel.reshape(2, 2, 2, 2, c, o).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * c, o)


def transposed_block_kernel(kernel: Float[Array, "4 4 c o"]) -> Float[Array, "2 2 c 4*o"]:
    """The same for a transposed convolution, whose output comes in blocks: a later block holds earlier taps."""
    c, o = kernel.shape[2:]
    blocks = kernel.reshape(2, 2, 2, 2, c, o)[::-1, :, ::-1]
    return blocks.transpose(0, 2, 4, 1, 3, 5).reshape(2, 2, c, 4 * o)


def image_patches(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 p"]:
    """Every 4x4 window of stride 2 (one pixel of padding) as a row of 16c values, and a 1 that carries the bias."""
    height, width = x.shape[1], x.shape[2]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = [x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for i in range(4) for j in range(4)]
    return jnp.concatenate([*windows, jnp.ones_like(windows[0][..., :1])], axis=-1)


def overlap_add(patches: Float[Array, "b h w p"]) -> Float[Array, "b h2 w2 o"]:
    """Add up 4x4 patches at stride 2 and drop one border pixel: the end of a transposed convolution."""
    b, h, w, p = patches.shape
    o = p // 16
    patches = patches.reshape(b, h, w, 2, 2, 2, 2, o)  # tap 2p + a of a row goes to block row + p, pixel a
    total = jnp.zeros((b, h + 1, w + 1, 4, o), patches.dtype)
    for i in range(2):
        for j in range(2):
            blocks = patches[:, :, :, i, :, j].reshape(b, h, w, 4, o)
            total += jnp.pad(blocks, ((0, 0), (i, 1 - i), (j, 1 - j), (0, 0), (0, 0)))
    return from_blocks(total)


class Conv(nn.Module):
    """A convolution of stride 1 that keeps the size (`size` odd); 1x1 is a matrix product."""

    features: int
    size: int = 3

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", kernel_init, (self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.size == 1:
            return product(x, kernel[0, 0]) + bias.reshape(1, 1, 1, -1)
        return convolution(x, kernel, same(self.size)) + bias.reshape(1, 1, 1, -1)


class StridedParameters(nn.Module):
    """Kernel and bias of a 4x4 layer of stride 2, in the shapes of `nn.Conv`; the caller chooses the arithmetic."""

    inputs: int
    features: int
    init_kernel: Callable = kernel_init

    @nn.compact
    def __call__(self):
        kernel = self.param("kernel", self.init_kernel, (4, 4, self.inputs, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


class ResidualStack(nn.Module):
    """`blocks` times x + conv1x1(relu(conv3x3(relu(x)))), then a ReLU."""

    hidden: int
    residual_units: int
    blocks: int

    @nn.compact
    def __call__(self, x):
        for n in range(self.blocks):
            y = nn.relu(Conv(self.residual_units, name=f"conv3x3_{n}")(nn.relu(x)))
            x = x + Conv(self.hidden, size=1, name=f"conv1x1_{n}")(y)
        return nn.relu(x)


class Encoder(nn.Module):
    """Standardised images to `features` channels at 1/2^downsamplings of the size."""

    hidden: int
    residual_units: int
    residual_blocks: int
    downsamplings: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        kernel, bias = StridedParameters(x.shape[-1], self.hidden, name="down_0")()
        kernel = jnp.concatenate([kernel.reshape(-1, self.hidden), bias.reshape(1, -1)])
        x = image_patches(x)
        for n in range(1, self.downsamplings):
            x = to_blocks(x)
            if n == 1:  # rearranging the patches is cheaper than rearranging what is made of them
                x = nn.relu(product(x, kernel))
            kernel_n, bias_n = StridedParameters(self.hidden, self.hidden, name=f"down_{n}")()
            x = x.reshape(*x.shape[:3], 4 * self.hidden)
            x = convolution(x, block_kernel(kernel_n), ((0, 0), (0, 0))) + bias_n.reshape(1, 1, 1, -1)
            if n + 1 < self.downsamplings:
                x = nn.relu(x)
        if self.downsamplings == 1:
            x = product(x, kernel)
        x = ResidualStack(self.hidden, self.residual_units, self.residual_blocks, name="residual")(x)
        return Conv(self.features, size=1, name="out")(x)


class Decoder(nn.Module):
    """Latent vectors to the `features` channels of a likelihood's parameters, 2^upsamplings times larger."""

    hidden: int
    residual_units: int
    residual_blocks: int
    upsamplings: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 f"]:
        x = Conv(self.hidden, name="in")(x)
        x = ResidualStack(self.hidden, self.residual_units, self.residual_blocks, name="residual")(x)
        blocked = False
        for n in range(self.upsamplings):
            last = n + 1 == self.upsamplings
            features = self.features if last else self.hidden
            kernel, bias = StridedParameters(self.hidden, features, transposed_kernel_init, name=f"up_{n}")()
            if last and features < FOLD_BELOW:
                x = product(x, kernel.transpose(2, 0, 1, 3).reshape(self.hidden, 16 * features))
                return overlap_add(from_blocks(x) if blocked else x) + bias.reshape(1, 1, 1, -1)
            x = convolution(from_blocks(x) if blocked else x, transposed_block_kernel(kernel), ((1, 1), (1, 1)))
            x = x.reshape(*x.shape[:3], 4, features) + bias.reshape(1, 1, 1, 1, -1)
            if not last:
                x = nn.relu(x)
            blocked = True
        return from_blocks(x)
