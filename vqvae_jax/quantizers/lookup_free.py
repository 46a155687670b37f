"""Lookup-free quantization (Yu et al. 2023): each dimension is its sign; losses keep codes sure and all in use."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.errors import InputError, at_least
from vqvae_jax.quantizers.estimators import straight_through
from vqvae_jax.quantizers.interface import Indices, Quantized, Vectors, to_float32
from vqvae_jax.quantizers.joint_index import ScalarQuantizer, join_digits, split_indices


def sample_entropy(log_odds: Float[Array, "n d"]) -> Float[Array, ""]:
    """Mean entropy in nats of n positions' independent bits, given log p(1)/p(0) of each: that of their joint code."""
    log_p, log_not_p = jax.nn.log_sigmoid(log_odds), jax.nn.log_sigmoid(-log_odds)
    return -jnp.mean(jnp.sum(jnp.exp(log_p) * log_p + jnp.exp(log_not_p) * log_not_p, axis=-1))


def batch_entropy(log_odds: Float[Array, "n d"]) -> Float[Array, ""]:
    """Entropy in nats of the code of d bits over the batch, all 2^d values of it at once.

    The mean probability of each value is one entry of a product of two matrices, of the first and of the other bits,
    so that no array has n x 2^d entries.
    """
    first, last = (_joint(part) for part in jnp.split(log_odds, [log_odds.shape[1] // 2], axis=1))
    p = jnp.matmul(first.T, last, precision="highest") / len(log_odds)
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0))


def _joint(log_odds):
    """Probabilities [n,2^d] of every value of d independent bits."""
    p = jnp.ones((len(log_odds), 1), jnp.float32)
    for bit in jax.nn.sigmoid(log_odds).T:
        p = jnp.concatenate([p * (1 - bit)[:, None], p * bit[:, None]], axis=1)
    return p


@dataclass(frozen=True)
class LookupFreeQuantizer(ScalarQuantizer):
    """`bits` dimensions of -1 or 1, K = 2^bits; above 2^14 it is several codes a position.

    Its losses: commitment; the mean entropy of p(code | position) ~ exp(-|z - code|²/T), which is to be small; and the
    entropy of its mean over the batch, which is to be large, and is that of each code of a position by itself.
    """

    bits: int = 9
    commitment_cost: float = 0.25
    entropy_weight: float = 0.1
    diversity: float = 1.0  # weight of the batch's entropy relative to that of the positions (gamma)
    temperature: float = 1.0  # T

    advice = "raise diversity or entropy_weight, or give fewer bits"

    def __post_init__(self):
        at_least("quantizer", bits=(self.bits, 1), commitment_cost=(self.commitment_cost, 0))
        at_least("quantizer", entropy_weight=(self.entropy_weight, 0), diversity=(self.diversity, 0))
        if not 0 < self.temperature < math.inf:
            raise InputError(f"quantizer.temperature is {self.temperature}: it must be above 0, and finite")

    @property
    def levels(self) -> tuple[int, ...]:
        return (2,) * self.bits

    @property
    def loss_weights(self) -> dict[str, float]:
        """The entropies are those of a code, not of a position; the second one counts against the loss."""
        weight = self.entropy_weight
        return {
            "commitment": self.commitment_cost,
            "sample_entropy": weight,
            "batch_entropy": -weight * self.diversity,
        }

    def __call__(self, variables, z_e: Vectors, key: Key[Array, ""] | None = None) -> Quantized:
        """Take the sign of each dimension; 0 becomes -1."""
        z_e = to_float32(z_e, self.dim)
        bits = (z_e > 0).astype(jnp.int32)
        z_q = jnp.asarray(2 * bits - 1, jnp.float32)
        losses = {"commitment": jnp.mean((z_e - z_q) ** 2)} | self._entropies(z_e)
        return Quantized(straight_through(z_e, z_q), join_digits(bits, self.parts), losses)

    def look_up(self, variables, indices: Indices) -> Float[Array, "*b d"]:
        """Give the vectors of -1 and 1."""
        return jnp.asarray(2 * split_indices(indices, self.parts) - 1, jnp.float32)

    def _entropies(self, z_e) -> dict[str, Array]:
        # |z - 1|² - |z + 1|² = -4z: given z, the bits of a code are independent of each other.
        log_odds = (4 / self.temperature) * z_e.reshape(-1, self.bits)
        found, start = [], 0
        for part in self.parts:
            own = log_odds[:, start : start + len(part)]
            found.append((sample_entropy(own), batch_entropy(own)))
            start += len(part)
        sample, batch = (sum(entropies) / len(found) for entropies in zip(*found, strict=True))
        return {"sample_entropy": jnp.asarray(sample), "batch_entropy": jnp.asarray(batch)}
