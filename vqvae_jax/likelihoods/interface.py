"""What P(x | z) is: a distribution over the integers 0..255, given the decoder's `features`.

Pixels are known in steps: those of a step depend on the pixels of earlier steps, and a channel on the earlier channels
of its pixel. `params` are learned and fitted parameters of the likelihood's own, or {}.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

Images = UInt8[Array | np.ndarray, "b h w c"]
Features = Float[Array, "b h w f"]
PerSubPixel = Float[Array, "b h w c"]
Places = Int[Array | np.ndarray, "p 2"]  # row and column of the pixels of a step
StepPixels = UInt8[Array | np.ndarray, "b p c"]


@runtime_checkable
class PixelModel(Protocol):
    """The contract of every likelihood; an implementation is a frozen dataclass without arrays."""

    @property
    def levels(self) -> tuple[int, ...]: ...  # that have a probability

    @property
    def objective(self) -> str: ...  # what training minimises: "distortion" (nats), or "half_squared_error"

    @property
    def head(self) -> "PixelModel | None": ...  # of every pixel given z alone, where this one sees pixels, too

    def features(self, channels: int) -> int: ...  # F, channels that the decoder gives for images of so many

    def init(self, key: Key[Array, ""], channels: int) -> dict: ...  # learned params

    def loss(self, params: dict, features: Features, images: Images) -> PerSubPixel: ...  # trained: mostly -log_prob

    def log_prob(self, params: dict, features: Features, images: Images) -> PerSubPixel: ...  # nats, all at once

    def log_prob_of_head(self, features: Features, images: Images) -> PerSubPixel: ...  # nats under `head`

    def mean(self, params: dict, features: Features) -> PerSubPixel: ...  # levels that are shown; needs no x

    def fit_sums(self, params: dict, features: Features, images: Images, mask) -> dict: ...  # see `fit`

    def fit(self, sums: dict) -> dict: ...  # from sums over training images to fitted params; {} for most

    def order(self, height: int, width: int) -> Int[np.ndarray, "s p 2"]:
        """Row and column of the pixels of every step, padded with (height, width), which is no pixel."""
        ...

    def at(self, params: dict, features: Features, images: Images, places: Places) -> Float[Array, "b p q"]:
        """Give the distributions of the pixels of one step, from the pixels of earlier steps."""
        ...

    def pmf(self, q: Float[Array, "b p q"], pixels: StepPixels, channel: int) -> Float[Array, "b p 256"]:
        """Probabilities of all levels of one channel, given the earlier channels of `pixels`."""
        ...
