"""Vector quantization (van den Oord et al. 2017): the nearest code of a codebook, and three ways to learn codebooks.

Shapes are those of `nearest`: `*b` leading axes, G codebooks a position, K codes each, D dimensions a code.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.errors import at_least
from vqvae_jax.quantizers.ema import Ema, check_ema, ema_codebook, ema_init, ema_update, revive
from vqvae_jax.quantizers.estimators import ESTIMATORS
from vqvae_jax.quantizers.interface import Indices, Quantized, Vectors, check_names, to_float32
from vqvae_jax.quantizers.nearest import Codebook, look_up, nearest_code, normalise, squared_distances
from vqvae_jax.quantizers.starts import STARTS

# What becomes of vectors and codes before their Euclidean distance counts. Of unit vectors it is 2 - 2 cos (Yu et al.
# 2021): the nearest code is the one of the least angle.
DISTANCES: dict[str, Callable] = {"euclidean": lambda vectors: vectors, "cosine": normalise}


def codebook_loss(z_e: Vectors, z_q: Vectors) -> Float[Array, ""]:
    """Second term of eq. (3), mean over everything: moves the codes towards the encoder."""
    return jnp.mean((jax.lax.stop_gradient(z_e) - z_q) ** 2)


def commitment_loss(z_e: Vectors, z_q: Vectors) -> Float[Array, ""]:
    """Third term of eq. (3) without its weight beta, mean over everything: moves the encoder towards the codes."""
    return jnp.mean((z_e - jax.lax.stop_gradient(z_q)) ** 2)


@dataclass(frozen=True)
class _VectorQuantizer(abc.ABC):
    """What all ways to learn a codebook share; `num_codebooks` codes a position, each of its own part of z_e.

    With the distance "cosine", z_q are unit vectors, and losses and `distances` are those of normalised vectors.
    """

    codebook_size: int = 512
    num_codebooks: int = 1
    embedding_dim: int = 64
    commitment_cost: float = 0.25
    distance: str = "euclidean"  # DISTANCES
    estimator: str = "straight_through"  # ESTIMATORS
    start: str = "data"  # STARTS

    has_distances = True

    def __post_init__(self):
        at_least("quantizer", codebook_size=(self.codebook_size, 1), num_codebooks=(self.num_codebooks, 1))
        at_least("quantizer", embedding_dim=(self.embedding_dim, 1), commitment_cost=(self.commitment_cost, 0))
        check_names(distance=(self.distance, DISTANCES), start=(self.start, STARTS))
        check_names(estimator=(self.estimator, ESTIMATORS))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.num_codebooks

    @property
    def dim(self) -> int:
        return self.num_codebooks * self.embedding_dim

    @property
    def loss_weights(self) -> dict[str, float]:
        """The weights of eq. (3); beta is that of the commitment."""
        return {"codebook": 1.0, "commitment": self.commitment_cost}

    @abc.abstractmethod
    def learned_codebook(self, variables) -> Codebook:
        """Give the codes as they are learned."""

    def codebook(self, variables) -> Codebook:
        """Give the codes in use now."""
        return DISTANCES[self.distance](self.learned_codebook(variables))

    def __call__(self, variables, z_e: Vectors, key: Key[Array, ""] | None = None) -> Quantized:
        """Replace every vector by its nearest code (eq. 1 and 2); nothing about it is random."""
        split, codebook = self._split(z_e), self.codebook(variables)
        indices = nearest_code(split, codebook)
        z_q = look_up(codebook, indices)
        losses = {"codebook": codebook_loss(split, z_q), "commitment": commitment_loss(split, z_q)}
        return Quantized(ESTIMATORS[self.estimator](split, z_q).reshape(z_e.shape), indices, losses)

    def look_up(self, variables, indices: Indices) -> Float[Array, "*b d"]:
        """Give the codes' vectors, those of a position side by side."""
        return look_up(self.codebook(variables), indices).reshape(*indices.shape[:-1], self.dim)

    def distances(self, variables, z_e: Vectors) -> Float[Array, "*b g k"]:
        """Give the squared distance to every code, all K at once."""
        return squared_distances(self._split(z_e), self.codebook(variables))

    def _split(self, z_e) -> Float[Array, "*b g d"]:
        split = to_float32(z_e, self.dim).reshape(*z_e.shape[:-1], self.num_codebooks, self.embedding_dim)
        return DISTANCES[self.distance](split)


@dataclass(frozen=True)
class VectorQuantizer(_VectorQuantizer):
    """A codebook that is a moving average of the vectors it stands for (app. A.1); codes out of use are revived."""

    ema_decay: float = 0.99
    ema_epsilon: float = 1e-5
    revival_threshold: float = 0.05

    advice = "raise revival_threshold to just below 0.1, try distance=cosine, or lower codebook_size"

    def __post_init__(self):
        super().__post_init__()
        check_ema(self.ema_decay, self.ema_epsilon, self.revival_threshold)

    def init(self, key: Key[Array, ""], z_e: Vectors) -> tuple[dict, Ema]:
        return {}, ema_init(key, self._split(z_e), self.codebook_size, self.start)

    def learned_codebook(self, variables) -> Codebook:
        return ema_codebook(variables["state"], self.ema_epsilon)

    def next_state(self, variables, z_e: Vectors, indices: Indices, key: Key[Array, ""]) -> Ema:
        """Move the averages, and put codes out of use at vectors of the batch."""
        split = self._split(z_e)
        ema = ema_update(variables["state"], split, indices, self.ema_decay)
        return revive(key, ema, split, self.revival_threshold)


@dataclass(frozen=True)
class GradientVectorQuantizer(_VectorQuantizer):
    """A codebook that is learned by gradient, through the second term of eq. (3)."""

    advice = "name vector_ema or vector_simvq instead, try distance=cosine, or lower codebook_size"

    def init(self, key: Key[Array, ""], z_e: Vectors) -> tuple[dict, tuple]:
        return {"codebook": STARTS[self.start](key, self._split(z_e), self.codebook_size)}, ()

    def learned_codebook(self, variables) -> Codebook:
        return variables["params"]["codebook"]

    def next_state(self, variables, z_e: Vectors, indices: Indices, key: Key[Array, ""]):
        """Nothing moves but by gradient."""
        return variables["state"]


@dataclass(frozen=True)
class SimVectorQuantizer(_VectorQuantizer):
    """SimVQ (Zhu et al. 2024): codes that never move, times a matrix that is learned through eq. (3).

    A gradient at one code moves the matrix, and so all codes. The state is the frozen codes [G,K,D], the matrix [G,D,D]
    starts at the identity.
    """

    start: str = "random"

    advice = "try distance=cosine or estimator=rotation, or lower codebook_size"

    def init(self, key: Key[Array, ""], z_e: Vectors) -> tuple[dict, Array]:
        frozen = STARTS[self.start](key, self._split(z_e), self.codebook_size)
        identity = jnp.eye(self.embedding_dim, dtype=jnp.float32)[None]
        return {"map": jnp.repeat(identity, self.num_codebooks, axis=0)}, frozen

    def learned_codebook(self, variables) -> Codebook:
        return jnp.einsum("gkd,gde->gke", variables["state"], variables["params"]["map"], precision="highest")

    def next_state(self, variables, z_e: Vectors, indices: Indices, key: Key[Array, ""]):
        """Nothing moves but by gradient."""
        return variables["state"]
