"""One index for the digits of several dimensions, of which dimension i has `levels[i]`, and the digits of an index.

Priors and counts have an array of all K of a code. So a product of levels above `LARGEST` is several codes a position,
each of neighbouring dimensions, as equal in number as can be.
"""

import abc
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from vqvae_jax.errors import InputError
from vqvae_jax.quantizers.interface import AnyArray, Indices, Vectors, to_float32

LARGEST = 2**14

Digits = Int[AnyArray, "*b d"]
Parts = tuple[tuple[int, ...], ...]  # the levels of each code of a position


def split_levels(levels: Sequence[int]) -> Parts:
    """Split the dimensions into as few codes as have at most `LARGEST` values each."""
    for count in range(1, len(levels) + 1):
        parts = tuple(tuple(part.tolist()) for part in np.array_split(np.asarray(levels, int), count))
        if max(map(math.prod, parts)) <= LARGEST:
            return parts
    raise InputError(f"quantizer.levels has {max(levels)} levels in a dimension: there can be at most {LARGEST}")


def join_digits(digits: Digits, parts: Parts) -> Int[Array, "*b g"]:
    """Give the index of each code: the first of its dimensions counts least."""
    place, indices = 0, []
    for part in parts:
        weights = jnp.asarray(np.cumprod((1, *part[:-1])), jnp.int32)
        own = digits[..., place : place + len(part)]
        indices.append(jnp.sum(own * jnp.expand_dims(weights, range(own.ndim - 1)), axis=-1))
        place += len(part)
    return jnp.stack(indices, axis=-1).astype(jnp.int32)


def split_indices(indices: Indices, parts: Parts) -> Int[Array, "*b d"]:
    """Give the digits of every dimension: the inverse of `join_digits`."""
    digits = []
    for g, part in enumerate(parts):
        rest = jnp.asarray(indices)[..., g]
        for levels in part:
            digits.append(rest % levels)
            rest = rest // levels
    return jnp.stack(digits, axis=-1).astype(jnp.int32)


class ScalarQuantizer(abc.ABC):
    """What quantizers share whose dimensions are digits of joint indices, and of which nothing is learned."""

    has_distances = False

    @property
    @abc.abstractmethod
    def levels(self) -> Sequence[Any]:
        """The number of values of each dimension."""

    @property
    def parts(self) -> Parts:
        """The levels of each code of a position."""
        return split_levels(self.levels)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return tuple(map(math.prod, self.parts))

    @property
    def dim(self) -> int:
        return len(self.levels)

    def init(self, key: Key[Array, ""], z_e: Vectors) -> tuple[dict, tuple]:
        to_float32(z_e, self.dim)
        return {}, ()

    def next_state(self, variables, z_e: Vectors, indices: Indices, key: Key[Array, ""]):
        """Nothing moves."""
        return variables["state"]
