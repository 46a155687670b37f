"""Any quantizer in a space of fewer dimensions, between two learned projections (Yu et al. 2021, factorised codes)."""

from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.errors import at_least
from vqvae_jax.quantizers.interface import Indices, Quantized, Quantizer, QuantizerWithDistances, Vectors, to_float32


@dataclass(frozen=True)
class Projected:
    """`quantizer` between matrices [dim, quantizer.dim] and back; losses and distances are those of the small space."""

    quantizer: Quantizer
    dim: int = 64

    def __post_init__(self):
        at_least("quantizer", dim=(self.dim, 1))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.quantizer.codebook_sizes

    @property
    def loss_weights(self) -> dict[str, float]:
        return self.quantizer.loss_weights

    @property
    def has_distances(self) -> bool:
        return self.quantizer.has_distances

    @property
    def advice(self) -> str:
        return self.quantizer.advice

    def init(self, key: Key[Array, ""], z_e: Vectors) -> tuple[dict, Any]:
        """Draw projections that keep the mean square of a normal vector's numbers."""
        key, in_key, out_key = jax.random.split(key, 3)
        small = self.quantizer.dim
        params: dict = {"in": jax.random.normal(in_key, (self.dim, small), jnp.float32) / self.dim**0.5}
        params |= {"out": jax.random.normal(out_key, (small, self.dim), jnp.float32) / small**0.5}
        own, state = self.quantizer.init(key, self._into({"params": params}, z_e))
        return params | {"quantizer": own}, state

    def __call__(self, variables, z_e: Vectors, key: Key[Array, ""] | None = None) -> Quantized:
        quantized = self.quantizer(_inner(variables), self._into(variables, z_e), key)
        return quantized._replace(z_q=_product(quantized.z_q, variables["params"]["out"]))

    def look_up(self, variables, indices: Indices) -> Float[Array, "*b d"]:
        return _product(self.quantizer.look_up(_inner(variables), indices), variables["params"]["out"])

    def distances(self, variables, z_e: Vectors) -> Float[Array, "*b g k"]:
        return cast(QuantizerWithDistances, self.quantizer).distances(_inner(variables), self._into(variables, z_e))

    def next_state(self, variables, z_e: Vectors, indices: Indices, key: Key[Array, ""]) -> Any:
        return self.quantizer.next_state(_inner(variables), self._into(variables, z_e), indices, key)

    def _into(self, variables, z_e) -> Float[Array, "*b d"]:
        return _product(to_float32(z_e, self.dim), variables["params"]["in"])


def _inner(variables) -> dict:
    return {"params": variables["params"]["quantizer"], "state": variables["state"]}


def _product(vectors, matrix):
    return jnp.matmul(vectors, matrix, precision="highest")
