"""Finite scalar quantization (Mentzer et al. 2023): each dimension is bounded and rounded; nothing is learned."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from vqvae_jax.errors import InputError, at_least
from vqvae_jax.quantizers.estimators import straight_through
from vqvae_jax.quantizers.interface import Indices, Quantized, Vectors, to_float32
from vqvae_jax.quantizers.joint_index import ScalarQuantizer, join_digits, split_indices, split_levels

# The bound is wider by this share than half the levels, as in the paper's listing.
MARGIN = 1e-3


@dataclass(frozen=True)
class FiniteScalarQuantizer(ScalarQuantizer):
    """`levels[i]` values in dimension i, K = the product of them; above 2^14 it is several codes a position."""

    levels: Sequence[Any] = (8, 8, 8)  # whole numbers; others are refused by name

    advice = "give fewer dimensions, or fewer levels in each"

    def __post_init__(self):
        try:  # a list has no hash, which jit needs
            object.__setattr__(self, "levels", tuple(map(operator.index, self.levels)))
        except TypeError as error:
            raise InputError(f"quantizer.levels is {self.levels}: give whole numbers, e.g. (8, 5, 5)") from error
        if not self.levels:
            raise InputError("quantizer.levels is empty: give the levels of each dimension")
        at_least("quantizer", levels=(min(self.levels), 3))  # two are LookupFreeQuantizer's
        split_levels(self.levels)  # refuses more levels than a code can have

    @property
    def loss_weights(self) -> dict[str, float]:
        return {}

    def __call__(self, variables, z_e: Vectors, key: Key[Array, ""] | None = None) -> Quantized:
        """Round each dimension to its nearest level; there are no losses."""
        bounded = self._bound(to_float32(z_e, self.dim))
        lowest, highest = self._constants(-(self._sizes // 2), (self._sizes - 1) // 2, ndim=bounded.ndim)
        rounded = jnp.clip(jnp.round(bounded), lowest, highest)
        indices = join_digits((rounded - lowest).astype(jnp.int32), self.parts)
        return Quantized(self._scale(straight_through(bounded, rounded)), indices, {})

    def look_up(self, variables, indices: Indices) -> Float[Array, "*b d"]:
        """Give the vectors, each dimension from -1 to 1, or to just below 1 where its levels are even."""
        digits = split_indices(indices, self.parts)
        (lowest,) = self._constants(-(self._sizes // 2), ndim=digits.ndim)
        return self._scale(digits + lowest)

    @property
    def _sizes(self) -> np.ndarray:
        return np.asarray(self.levels)

    def _bound(self, z):
        """Squash each dimension to its levels, whole numbers of which 0 is one, and 0 to 0 (app. A.1).

        An even number of levels reaches one level further down than up. The shift that brings 0 back to 0 is the
        inverse of tanh, for which the paper's listing has tan.
        """
        half, offset = (self._sizes - 1) * (1 + MARGIN) / 2, np.where(self._sizes % 2, 0.0, 0.5)
        half, offset, shift = self._constants(half, offset, np.arctanh(offset / half), ndim=z.ndim)
        return jnp.tanh(z + shift) * half - offset

    def _scale(self, levels):
        (half,) = self._constants(self._sizes // 2, ndim=levels.ndim)
        return levels / half

    def _constants(self, *values, ndim: int):
        return tuple(jnp.expand_dims(jnp.asarray(value, jnp.float32), range(ndim - 1)) for value in values)
