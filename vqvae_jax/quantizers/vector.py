"""Vector quantization (van den Oord et al. 2017): the nearest code, learned by EMA or by gradient.

Shapes: `*b` leading axes, G codebooks a position, K codes each, D dimensions a code. Vectors are [*b,G,D], a codebook
is [G,K,D]. Nothing here knows of devices: with the batch split over a mesh, the sums below are global sums. At any K no
array of positions x K is made but by `distances`.
"""

import abc
import math
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vqvae_jax.errors import InputError, at_least
from vqvae_jax.quantizers.interface import AnyArray, Indices, Quantized, Vectors, straight_through

Split = Float[AnyArray, "*b g d"]  # vectors, a part for each codebook
Codebook = Float[AnyArray, "g k d"]

# Distances are compared for this many codes at a time, so K never multiplies the memory, on whatever device.
CODES_AT_ONCE = 1024
# A new code counts as this share of a uniform use: it follows its first vectors quickly, and is soon replaced if
# there are none.
NEW_CODE_SHARE = 0.1


class Ema(NamedTuple):
    """Running sums behind an EMA codebook: `count` float32 [G,K] and `total` float32 [G,K,D] (app. A.1)."""

    count: Array
    total: Array


def nearest_code(z_e: Split, codebook: Codebook) -> Int[Array, "*b g"]:
    """Find the index of the Euclidean nearest code; the lowest index wins a tie (eq. 1)."""
    flat = z_e.reshape(-1, *z_e.shape[-2:])
    indices = [_nearest_of_one(flat[:, g], codebook[g]) for g in range(len(codebook))]
    return jnp.stack(indices, axis=-1).reshape(z_e.shape[:-1])


def _nearest_of_one(z_e: Vectors, codebook: Float[AnyArray, "k d"]) -> Int[Array, "n"]:
    best_score, best = jnp.full(len(z_e), jnp.inf), jnp.zeros(len(z_e), jnp.int32)
    for start in range(0, len(codebook), CODES_AT_ONCE):
        codes = codebook[start : start + CODES_AT_ONCE]
        # |z - e|² without |z|², which no code can change.
        scores = jnp.sum(codes**2, axis=-1)[None] - 2 * jnp.matmul(z_e, codes.T, precision="highest")
        # Two minima are several times as fast as XLA's argmin on a CPU; of the same numbers, never computed twice.
        scores = jax.lax.optimization_barrier(scores)
        score = jnp.min(scores, axis=-1)
        numbers = jnp.arange(len(codes), dtype=jnp.int32)[None]
        index = jnp.min(jnp.where(scores == score[:, None], numbers, len(codes) - 1), axis=-1)
        best, best_score = jnp.where(score < best_score, start + index, best), jnp.minimum(score, best_score)
    return best


def look_up(codebook: Codebook, indices: Indices) -> Float[Array, "*b g d"]:
    """Fetch the codes that `indices` name, each from its own codebook."""
    flat = jnp.asarray(codebook)[jnp.arange(len(codebook))[None], indices.reshape(-1, indices.shape[-1])]
    return flat.reshape(*indices.shape, codebook.shape[-1])


def codebook_loss(z_e: Vectors, z_q: Vectors) -> Float[Array, ""]:
    """Second term of eq. (3), mean over everything: moves the codes towards the encoder."""
    return jnp.mean((jax.lax.stop_gradient(z_e) - z_q) ** 2)


def commitment_loss(z_e: Vectors, z_q: Vectors) -> Float[Array, ""]:
    """Third term of eq. (3) without its weight beta, mean over everything: moves the encoder towards the codes."""
    return jnp.mean((z_e - jax.lax.stop_gradient(z_q)) ** 2)


def count_codes(indices: Indices, codebook_size: int) -> Float[Array, "g k"]:
    """Count how often each code of each codebook occurs."""
    return sum_by_code(jnp.ones((*indices.shape, 1)), indices, codebook_size)[..., 0]


def sum_by_code(vectors: Split, indices: Indices, codebook_size: int) -> Float[Array, "g k d"]:
    """Sum vectors by their code. On a GPU, equal bits on every run need --xla_gpu_deterministic_ops."""
    num_codebooks, depth = vectors.shape[-2:]
    flat = indices.reshape(-1, num_codebooks) + codebook_size * jnp.arange(num_codebooks)[None]
    sums = jax.ops.segment_sum(vectors.reshape(-1, depth), flat.reshape(-1), num_codebooks * codebook_size)
    return sums.reshape(num_codebooks, codebook_size, depth)


def draw_vectors(key: Key[Array, ""], z_e: Split, num: int) -> Float[Array, "g num d"]:
    """Draw `num` of the batch's vectors per codebook, one from each of `num` nearly equal stretches.

    So none is drawn twice as long as there are enough, and nothing needs sorting.
    """
    flat = jnp.asarray(z_e).reshape(-1, *z_e.shape[-2:])
    positions, groups, _ = flat.shape
    offset = jax.random.uniform(key, (groups * num,)).reshape(groups, num)
    # Whole numbers, so that no two stretches share a vector; where there are too few, some stretches repeat.
    ends = np.arange(num + 1)[None] * positions // num
    lengths = np.maximum(np.diff(ends), 1)
    chosen = ends[:, :-1] + jnp.minimum((offset * lengths).astype(jnp.int32), lengths - 1)
    return flat[chosen, jnp.arange(groups)[:, None]]


def ema_init(key: Key[Array, ""], z_e: Split, codebook_size: int) -> Ema:
    """Start the codebook at vectors of the first batch, with the small count of a new code."""
    vectors = draw_vectors(key, z_e, codebook_size)
    # A dtype, lest the first step's state differ in type from the next ones and the step be traced twice.
    count = jnp.full(vectors.shape[:2], NEW_CODE_SHARE * math.prod(z_e.shape[:-2]) / codebook_size, jnp.float32)
    return Ema(count=count, total=vectors * count[..., None])


def ema_codebook(ema: Ema, epsilon: float) -> Float[Array, "g k d"]:
    """Divide the sums by the counts (app. A.1), these Laplace-smoothed by `epsilon` (the authors' library, Sonnet)."""
    n = jnp.sum(ema.count, axis=-1, keepdims=True)
    smoothed = (ema.count + epsilon) / (n + ema.count.shape[-1] * epsilon) * n
    return ema.total / smoothed[..., None]


def ema_update(ema: Ema, z_e: Split, indices: Indices, decay: float) -> Ema:
    """Move counts and sums towards those of this batch by 1 - `decay` (app. A.1, eq. 6 and 7)."""
    size, z_e = ema.count.shape[-1], jax.lax.stop_gradient(z_e)
    batch = Ema(count=count_codes(indices, size), total=sum_by_code(z_e, indices, size))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, ema, batch)


def revive(key: Key[Array, ""], ema: Ema, z_e: Split, threshold: float) -> Ema:
    """Put codes that are used less than `threshold` of a uniform share at random vectors of the batch.

    A revived code gets the count of a new code *and* the sum that belongs to it, so that the next update
    continues from its new place. `threshold` is a share, 0 (never) to NEW_CODE_SHARE.
    """
    size = ema.count.shape[-1]
    share = math.prod(z_e.shape[:-2]) / size
    fresh = draw_vectors(key, jax.lax.stop_gradient(z_e), size)
    dead = ema.count < threshold * share
    total = jnp.where(dead[..., None], fresh * NEW_CODE_SHARE * share, ema.total)
    return Ema(count=jnp.where(dead, NEW_CODE_SHARE * share, ema.count), total=total)


@dataclass(frozen=True)
class _VectorQuantizer(abc.ABC):
    """What both ways to learn a codebook share; `num_codebooks` codes a position, each of its own part of z_e."""

    codebook_size: int = 512
    num_codebooks: int = 1
    embedding_dim: int = 64
    commitment_cost: float = 0.25

    has_distances = True

    def __post_init__(self):
        at_least("quantizer", codebook_size=(self.codebook_size, 2), num_codebooks=(self.num_codebooks, 1))
        at_least("quantizer", embedding_dim=(self.embedding_dim, 1), commitment_cost=(self.commitment_cost, 0))

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
    def codebook(self, variables) -> Codebook:
        """Give the codes in use now."""

    def __call__(self, variables, z_e: Vectors, key: Key[Array, ""] | None = None) -> Quantized:
        """Replace every vector by its nearest code (eq. 1 and 2); nothing about it is random."""
        split, codebook = self._split(z_e), self.codebook(variables)
        indices = nearest_code(split, codebook)
        z_q = look_up(codebook, indices)
        losses = {"codebook": codebook_loss(split, z_q), "commitment": commitment_loss(split, z_q)}
        return Quantized(straight_through(split, z_q).reshape(z_e.shape), indices, losses)

    def look_up(self, variables, indices: Indices) -> Float[Array, "*b d"]:
        """Give the codes' vectors, those of a position side by side."""
        return look_up(self.codebook(variables), indices).reshape(*indices.shape[:-1], self.dim)

    def distances(self, variables, z_e: Vectors) -> Float[Array, "*b g k"]:
        """Give the squared distance to every code, all K at once."""
        split, codebook = self._split(z_e), self.codebook(variables)
        flat = split.reshape(-1, *split.shape[-2:])
        products = jnp.einsum("ngd,gkd->ngk", flat, codebook, precision="highest")
        squares = jnp.sum(flat**2, axis=-1, keepdims=True) + jnp.sum(codebook**2, axis=-1)[None]
        return jnp.maximum(squares - 2 * products, 0).reshape(*split.shape[:-1], self.codebook_size)

    def _split(self, z_e) -> Float[Array, "*b g d"]:
        if z_e.shape[-1] != self.dim:
            raise InputError(f"z_e has {z_e.shape[-1]} dimensions a position, this quantizer takes {self.dim}")
        return jnp.asarray(z_e, jnp.float32).reshape(*z_e.shape[:-1], self.num_codebooks, self.embedding_dim)


@dataclass(frozen=True)
class VectorQuantizer(_VectorQuantizer):
    """A codebook that is a moving average of the vectors it stands for (app. A.1); codes out of use are revived."""

    ema_decay: float = 0.99
    ema_epsilon: float = 1e-5
    revival_threshold: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        at_least("quantizer", ema_decay=(self.ema_decay, 0), ema_epsilon=(self.ema_epsilon, 0))
        if self.ema_decay >= 1:
            raise InputError(f"quantizer.ema_decay is {self.ema_decay}: it must be below 1")
        if not 0 <= self.revival_threshold < NEW_CODE_SHARE:
            allowed = f"0 (never) to below {NEW_CODE_SHARE}, where a code counts as new"
            raise InputError(f"quantizer.revival_threshold is {self.revival_threshold}: it must be {allowed}")

    def init(self, key: Key[Array, ""], z_e: Vectors) -> tuple[dict, Ema]:
        return {}, ema_init(key, self._split(z_e), self.codebook_size)

    def codebook(self, variables) -> Codebook:
        return ema_codebook(variables["state"], self.ema_epsilon)

    def next_state(self, variables, z_e: Vectors, indices: Indices, key: Key[Array, ""]) -> Ema:
        """Move the averages, and put codes out of use at vectors of the batch."""
        split = self._split(z_e)
        ema = ema_update(variables["state"], split, indices, self.ema_decay)
        return revive(key, ema, split, self.revival_threshold)


@dataclass(frozen=True)
class GradientVectorQuantizer(_VectorQuantizer):
    """A codebook that is learned by gradient, through the second term of eq. (3)."""

    def init(self, key: Key[Array, ""], z_e: Vectors) -> tuple[dict, tuple]:
        return {"codebook": draw_vectors(key, self._split(z_e), self.codebook_size)}, ()

    def codebook(self, variables) -> Codebook:
        return variables["params"]["codebook"]

    def next_state(self, variables, z_e: Vectors, indices: Indices, key: Key[Array, ""]):
        """Nothing moves but by gradient."""
        return variables["state"]
