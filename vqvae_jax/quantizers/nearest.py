"""Codes and vectors: the nearest code, look-up, counts and sums by code, vectors drawn from a batch.

Shapes: `*b` leading axes, G codebooks a position, K codes each, D dimensions a code. Vectors are [*b,G,D], a codebook
is [G,K,D]. Nothing here knows of devices: with the batch split over a mesh, the sums below are global sums. At any K no
array of positions x K is made but by `squared_distances`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vqvae_jax.quantizers.interface import AnyArray, Indices, Vectors

Split = Float[AnyArray, "*b g d"]  # vectors, a part for each codebook
Codebook = Float[AnyArray, "g k d"]

# Squared length below which a vector has no direction.
NO_LENGTH = 1e-12
# Distances are compared for this many codes at a time, so K never multiplies the memory, on whatever device.
CODES_AT_ONCE = 512


def nearest_code(z_e: Split, codebook: Codebook) -> Int[Array, "*b g"]:
    """Find the index of the Euclidean nearest code; the lowest index wins a tie (eq. 1)."""
    flat, codebook = _centred(z_e.reshape(-1, *z_e.shape[-2:]), codebook)
    indices = [_nearest_of_one(flat[:, g], codebook[g]) for g in range(len(codebook))]
    return jnp.stack(indices, axis=-1).reshape(z_e.shape[:-1])


def _centred(flat, codebook):
    """Subtract the mean code from both. Distances stay; an offset that all share would cost their sums its digits."""
    centre = jax.lax.stop_gradient(jnp.mean(codebook, axis=1, dtype=jnp.float32))
    return flat - centre[None], codebook - centre[:, None]


def _nearest_of_one(z_e: Vectors, codebook: Float[AnyArray, "k d"]) -> Int[Array, "n"]:
    size = min(len(codebook), CODES_AT_ONCE)
    numbers = jnp.arange(size, dtype=jnp.int32)[None]

    def block(number, found):
        best_score, best = found
        start = jnp.minimum(number * size, len(codebook) - size)  # the last block sees some codes once more
        codes = jax.lax.dynamic_slice_in_dim(codebook, start, size)
        # |z - e|² without |z|², which no code can change.
        scores = jnp.sum(codes**2, axis=-1)[None] - 2 * jnp.matmul(z_e, codes.T, precision="highest")
        # Two minima are several times as fast as XLA's argmin on a CPU; of the same numbers, never computed twice.
        scores = jax.lax.optimization_barrier(scores)
        score = jnp.min(scores, axis=-1)
        index = jnp.min(jnp.where(scores == score[:, None], numbers, size - 1), axis=-1)
        return jnp.minimum(score, best_score), jnp.where(score < best_score, start + index, best)

    z_e, codebook = jax.lax.stop_gradient((z_e, codebook))
    found = jnp.full(len(z_e), jnp.inf, jnp.float32), jnp.zeros(len(z_e), jnp.int32)
    if size == len(codebook):
        return block(jnp.int32(0), found)[1]
    # A loop of the program: XLA would hold the scores of all blocks of an unrolled one at once.
    return jax.lax.fori_loop(0, -(-len(codebook) // size), block, found)[1]


def look_up(codebook: Codebook, indices: Indices) -> Float[Array, "*b g d"]:
    """Fetch the codes that `indices` name, each from its own codebook."""
    flat = jnp.asarray(codebook)[jnp.arange(len(codebook))[None], indices.reshape(-1, indices.shape[-1])]
    return flat.reshape(*indices.shape, codebook.shape[-1])


def squared_distances(z_e: Split, codebook: Codebook) -> Float[Array, "*b g k"]:
    """Give the squared distance to every code, all K at once."""
    flat, codebook = _centred(z_e.reshape(-1, *z_e.shape[-2:]), codebook)
    products = jnp.einsum("ngd,gkd->ngk", flat, codebook, precision="highest")
    squares = jnp.sum(flat**2, axis=-1, keepdims=True) + jnp.sum(codebook**2, axis=-1)[None]
    return jnp.maximum(squares - 2 * products, 0).reshape(*z_e.shape[:-1], codebook.shape[1])


def count_codes(indices: Indices, codebook_size: int) -> Float[Array, "g k"]:
    """Count how often each code of each codebook occurs."""
    return sum_by_code(jnp.ones((*indices.shape, 1), jnp.float32), indices, codebook_size)[..., 0]


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
    offset = jax.random.uniform(key, (groups * num,), jnp.float32).reshape(groups, num)
    # Whole numbers, so that no two stretches share a vector; where there are too few, some stretches repeat.
    ends = np.arange(num + 1)[None] * positions // num
    lengths = np.maximum(np.diff(ends), 1)
    chosen = ends[:, :-1] + jnp.minimum((offset * lengths).astype(jnp.int32), lengths - 1)
    return flat[chosen, jnp.arange(groups)[:, None]]


def normalise(vectors: Vectors, least: float = NO_LENGTH) -> Float[Array, "*b d"]:
    """Scale vectors to length 1; one whose squared length is below `least` stays as it is, with a finite gradient."""
    vectors = jnp.asarray(vectors)
    squares = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return vectors * jax.lax.rsqrt(jnp.where(squares > least, squares, 1.0))
