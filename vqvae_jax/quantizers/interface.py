"""What a quantizer is.

A quantizer is a frozen dataclass of plain arguments: `params` move by gradient, `state` by `next_state`. The leading
axes `*b` are free (images, audio, tokens); whatever dtype comes in, the arithmetic is float32.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vqvae_jax.errors import InputError, suggest

AnyArray = Array | np.ndarray
Vectors = Float[AnyArray, "*b d"]
Indices = Int[AnyArray, "*b g"]


class Quantized(NamedTuple):
    """Quantized vectors `z_q` float32 [*b, d], their `indices` int32 [*b, g], and `losses`: unweighted scalars."""

    z_q: Array
    indices: Array
    losses: dict[str, Array]


@runtime_checkable
class Quantizer(Protocol):
    """The contract of every quantizer; `variables` is {"params": params, "state": state}."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]: ...  # K of each code of a position

    @property
    def dim(self) -> int: ...  # dimensions of a position of z_e

    @property
    def loss_weights(self) -> dict[str, float]: ...  # of `losses`; the training loss adds them up

    @property
    def has_distances(self) -> bool: ...  # whether it is a `QuantizerWithDistances`

    @property
    def advice(self) -> str: ...  # which options to change if few codes are in use

    def init(self, key: Key[Array, ""], z_e: Vectors) -> tuple[Any, Any]: ...  # params and state, from a first batch

    def __call__(self, variables, z_e: Vectors, key: Key[Array, ""] | None = None) -> Quantized:
        """Quantize; `z_q` carries the estimator's gradient. Deterministic without a key."""
        ...

    def look_up(self, variables, indices: Indices) -> Float[Array, "*b d"]: ...  # the vectors that indices stand for

    def next_state(self, variables, z_e: Vectors, indices: Indices, key: Key[Array, ""]) -> Any:
        """Give the state after a training batch; the same state where nothing moves."""


@runtime_checkable
class QuantizerWithDistances(Quantizer, Protocol):
    """A quantizer whose codes have distances to a vector, each by itself, as sums over several codes need."""

    def distances(self, variables, z_e: Vectors) -> Float[Array, "*b g k"]: ...  # squared, to every code


def to_float32(z_e: Vectors, dim: int) -> Float[Array, "*b d"]:
    """Give `z_e` in float32; InputError unless it has `dim` dimensions a position."""
    if z_e.shape[-1] != dim:
        raise InputError(f"z_e has {z_e.shape[-1]} dimensions a position, this quantizer takes {dim}")
    return jnp.asarray(z_e, jnp.float32)


def check_names(**options: tuple) -> None:
    """Raise InputError unless every option of a quantizer, given as (name, table), is in its table."""
    for key, (name, table) in options.items():
        if name not in table:
            raise InputError(f"unknown quantizer.{key} {name!r}: {suggest(str(name), table)}")
