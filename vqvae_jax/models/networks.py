"""The encoder and decoder of van den Oord et al. 2017 (sec. 4.1).

The encoder has strided 4x4 convolutions, then residual blocks (ReLU, 3x3, ReLU, 1x1); the decoder residual blocks,
then transposed 4x4 convolutions. The paper has two of each, and 256 units throughout.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vqvae_jax.models.convolutions import add_bias, convolution, downsample, kernel_init, product, upsample


class Layer(nn.Module):
    """Kernel and bias of a convolution that gives `features` channels."""

    features: int
    size: int
    gain: float = 1.0

    @nn.compact
    def __call__(self, inputs: int):
        kernel = self.param("kernel", kernel_init, (self.size, self.size, inputs, self.features), self.gain)
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def apply(x, kernel, bias):
    """Convolve with stride 1 and a kernel of 1x1 or 3x3, keeping the size of the image."""
    at_once = kernel.shape[:2] == (1, 1)
    return add_bias(product(x, kernel[0, 0]) if at_once else convolution(x, kernel, ((1, 1), (1, 1))), bias)


def residual(x, wide, narrow):
    """What a block adds, given kernel and bias of its convolutions of 3x3 and 1x1."""
    return apply(nn.relu(apply(nn.relu(x), *wide)), *narrow)


class ResidualStack(nn.Module):
    """`blocks` times x + conv1x1(relu(conv3x3(relu(x)))), then a ReLU."""

    hidden: int
    residual_units: int
    blocks: int
    rematerialise: bool = False

    @nn.compact
    def __call__(self, x):
        for n in range(self.blocks):
            wide = Layer(self.residual_units, 3, name=f"conv3x3_{n}")(self.hidden)
            narrow = Layer(self.hidden, 1, name=f"conv1x1_{n}")(self.residual_units)
            x = x + for_gradients(residual, self.rematerialise)(x, wide, narrow)
        return nn.relu(x)


def for_gradients(function: Callable, again: bool) -> Callable:
    """Give the function, which computes what its gradient needs `again` instead of keeping it."""
    return jax.checkpoint(function) if again else function


class Network(nn.Module):
    """The sizes of both networks; each of the `scalings` layers halves or doubles the sides."""

    hidden: int
    residual_units: int
    residual_blocks: int
    scalings: int
    features: int
    rematerialise: bool = False  # keep the inputs of scalings and residual blocks for gradients, and nothing inside

    def residual(self, x):
        sizes = self.hidden, self.residual_units, self.residual_blocks
        return ResidualStack(*sizes, self.rematerialise, name="residual")(x)


class Encoder(Network):
    """Standardised images to `features` channels at 1/2^scalings of the size."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 f"]:
        sizes = [x.shape[-1]] + [self.hidden] * (self.scalings - 1)
        layers = [Layer(self.hidden, 4, name=f"down_{n}")(inputs) for n, inputs in enumerate(sizes)]
        x = self.residual(for_gradients(downsample, self.rematerialise)(x, layers))
        return apply(x, *Layer(self.features, 1, name="out")(self.hidden))


class Decoder(Network):
    """Latent vectors to the `features` channels of a likelihood, 2^scalings times larger."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w d"]) -> Float[Array, "b h2 w2 f"]:
        x = self.residual(apply(x, *Layer(self.hidden, 3, name="in")(x.shape[-1])))
        sizes = [self.hidden] * (self.scalings - 1) + [self.features]
        # Each output of a transposed layer sees 4 of the 16 taps, so its kernel is twice as large.
        layers = [Layer(f, 4, gain=2.0, name=f"up_{n}")(self.hidden) for n, f in enumerate(sizes)]
        return for_gradients(upsample, self.rematerialise)(x, layers)
