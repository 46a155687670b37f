"""Vector quantization as pure functions: nearest code, straight-through gradient, and the two ways to learn codes.

Shapes, here and everywhere: b images, h x w positions, G codebooks per position, K codes each, D dimensions.
`z_e` is [b,h,w,G,D], a codebook [G,K,D], indices are int32 [b,h,w,G]. Nothing here knows of devices: with the
batch split over a mesh, the sums below are global sums.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

# Distances are compared for this many codes at a time, so K never multiplies the memory.
CODES_AT_ONCE = 1024
# A new code counts as this share of a uniform use: it follows its first vectors quickly, and is soon replaced if
# there are none.
NEW_CODE_SHARE = 0.1


class Quantized(NamedTuple):
    """The nearest code of every latent vector: `z_q` float [b,h,w,G,D] and its `indices` int32 [b,h,w,G]."""

    z_q: Array
    indices: Array


class Ema(NamedTuple):
    """Running sums behind an EMA codebook: `count` float32 [G,K] and `total` float32 [G,K,D] (app. A.1)."""

    count: Array
    total: Array


def nearest_code(z_e: Float[Array, "b h w g d"], codebook: Float[Array, "g k d"]) -> Int[Array, "b h w g"]:
    """Find the index of the Euclidean nearest code; the lowest index wins a tie.

    One codebook at a time, `CODES_AT_ONCE` codes at a time: never more than b·h·w·CODES_AT_ONCE scores in memory.
    """
    flat = z_e.reshape(-1, *z_e.shape[-2:])
    indices = [_nearest_of_one(flat[:, g], codebook[g]) for g in range(codebook.shape[0])]
    return jnp.stack(indices, axis=-1).reshape(z_e.shape[:-1])


def _nearest_of_one(z_e: Float[Array, "n d"], codebook: Float[Array, "k d"]) -> Int[Array, "n"]:
    best_score, best = jnp.full(len(z_e), jnp.inf), jnp.zeros(len(z_e), jnp.int32)
    for start in range(0, len(codebook), CODES_AT_ONCE):
        codes = codebook[start : start + CODES_AT_ONCE]
        # |z - e|² without |z|², which no code can change.
        scores = jnp.sum(codes**2, axis=-1)[None] - 2 * jnp.matmul(z_e, codes.T, precision="highest")
        index, score = jnp.argmin(scores, axis=-1).astype(jnp.int32), jnp.min(scores, axis=-1)
        best, best_score = jnp.where(score < best_score, start + index, best), jnp.minimum(score, best_score)
    return best


def look_up(codebook: Float[Array, "g k d"], indices: Int[Array, "b h w g"]) -> Float[Array, "b h w g d"]:
    """Fetch the codes that `indices` name, each from its own codebook."""
    return jnp.asarray(_look_up(codebook, indices))


@jax.custom_vjp
def _look_up(codebook, indices):
    return codebook[jnp.arange(codebook.shape[0]).reshape(1, 1, 1, -1), indices]


def _look_up_backward(residuals, gradient):
    # XLA's own gradient adds in any order on a GPU: other bits on every run.
    indices, codebook_size = residuals
    return _sum_by_code(gradient, indices, codebook_size), None


_look_up.defvjp(
    lambda codebook, indices: (_look_up(codebook, indices), (indices, codebook.shape[1])), _look_up_backward
)


def quantize(z_e: Float[Array, "b h w g d"], codebook: Float[Array, "g k d"]) -> Quantized:
    """Replace every latent vector by its nearest code (van den Oord et al. 2017, eq. 1 and 2)."""
    indices = nearest_code(z_e, codebook)
    return Quantized(z_q=look_up(codebook, indices), indices=indices)


def straight_through(z_e: Float[Array, "*s"], z_q: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Give exactly `z_q`, with a gradient that goes unchanged to `z_e` and not at all to `z_q` (sec. 3.2)."""
    return jax.lax.stop_gradient(z_q) + (z_e - jax.lax.stop_gradient(z_e))


def codebook_loss(z_e: Float[Array, "*s"], z_q: Float[Array, "*s"]) -> Float[Array, ""]:
    """Second term of eq. (3), mean over everything: moves the codes towards the encoder."""
    return jnp.mean((jax.lax.stop_gradient(z_e) - z_q) ** 2)


def commitment_loss(z_e: Float[Array, "*s"], z_q: Float[Array, "*s"]) -> Float[Array, ""]:
    """Third term of eq. (3) without its weight beta, mean over everything: moves the encoder towards the codes."""
    return jnp.mean((z_e - jax.lax.stop_gradient(z_q)) ** 2)


def count_codes(indices: Int[Array, "b h w g"], codebook_size: int) -> Float[Array, "g k"]:
    """Count how often each code of each codebook occurs."""
    return _sum_by_code(jnp.ones((*indices.shape, 1)), indices, codebook_size)[..., 0]


def _sum_by_code(vectors, indices, codebook_size):
    """Sum [b,h,w,G,D] by code to [G,K,D]: scattered on a CPU; a product elsewhere, the same bits on every run."""
    num_codebooks, depth = vectors.shape[-2:]

    def scattered(vectors, indices):
        flat = indices + codebook_size * jnp.arange(num_codebooks).reshape(1, 1, 1, -1)
        sums = jax.ops.segment_sum(vectors.reshape(-1, depth), flat.reshape(-1), num_codebooks * codebook_size)
        return sums.reshape(num_codebooks, codebook_size, depth)

    def by_product(vectors, indices):
        one_hot = jax.nn.one_hot(indices, codebook_size, dtype=vectors.dtype)
        return jnp.einsum("bhwgk,bhwgd->gkd", one_hot, vectors, precision="highest")

    return jax.lax.platform_dependent(vectors, indices, cpu=scattered, default=by_product)


def _positions(z_e):
    return math.prod(z_e.shape[:3])


def draw_vectors(key: Key[Array, ""], z_e: Float[Array, "b h w g d"], num: int) -> Float[Array, "g num d"]:
    """Draw `num` of the batch's vectors per codebook, one from each of `num` nearly equal stretches.

    So none is drawn twice as long as there are enough, and nothing needs sorting.
    """
    positions, (num_codebooks, depth) = _positions(z_e), z_e.shape[-2:]
    offset = jax.random.uniform(key, (num_codebooks * num,)).reshape(num_codebooks, num)
    # Whole numbers, so that no two stretches share a vector; where there are too few, some stretches repeat.
    starts, ends = np.arange(num) * positions // num, (np.arange(num) + 1) * positions // num
    lengths = np.maximum(ends - starts, 1).reshape(1, -1)
    chosen = starts.reshape(1, -1) + jnp.minimum((offset * lengths).astype(jnp.int32), lengths - 1)
    flat = z_e.reshape(positions, num_codebooks, depth)
    return flat[chosen, jnp.arange(num_codebooks).reshape(-1, 1)]


def ema_init(key: Key[Array, ""], z_e: Float[Array, "b h w g d"], codebook_size: int) -> Ema:
    """Start the codebook at vectors of the first batch, with the small count of a new code."""
    vectors = draw_vectors(key, z_e, codebook_size)
    # A dtype, lest the first step's state differ in type from the next ones and the step be traced twice.
    count = jnp.full(vectors.shape[:2], NEW_CODE_SHARE * _positions(z_e) / codebook_size, jnp.float32)
    return Ema(count=count, total=vectors * count[..., None])


def ema_codebook(ema: Ema, epsilon: float) -> Float[Array, "g k d"]:
    """Divide the sums by the counts (app. A.1), these Laplace-smoothed by `epsilon` (the authors' library, Sonnet)."""
    n = jnp.sum(ema.count, axis=-1, keepdims=True)
    smoothed = (ema.count + epsilon) / (n + ema.count.shape[-1] * epsilon) * n
    return ema.total / smoothed[..., None]


def ema_update(ema: Ema, z_e: Float[Array, "b h w g d"], indices: Int[Array, "b h w g"], decay: float) -> Ema:
    """Move counts and sums towards those of this batch by 1 - `decay` (app. A.1, eq. 6 and 7)."""
    size = ema.count.shape[-1]
    z_e = jax.lax.stop_gradient(z_e)
    return Ema(
        count=decay * ema.count + (1 - decay) * count_codes(indices, size),
        total=decay * ema.total + (1 - decay) * _sum_by_code(z_e, indices, size),
    )


def revive(key: Key[Array, ""], ema: Ema, z_e: Float[Array, "b h w g d"], threshold: float) -> Ema:
    """Put codes that are used less than `threshold` of a uniform share at random vectors of the batch.

    A revived code gets the count of a new code *and* the sum that belongs to it, so that the next update
    continues from its new place. `threshold` is a share, 0 (never) to NEW_CODE_SHARE.
    """
    size = ema.count.shape[-1]
    share = _positions(z_e) / size
    fresh = draw_vectors(key, jax.lax.stop_gradient(z_e), size)
    dead = ema.count < threshold * share
    return Ema(
        count=jnp.where(dead, NEW_CODE_SHARE * share, ema.count),
        total=jnp.where(dead[..., None], fresh * NEW_CODE_SHARE * share, ema.total),
    )


class Combinations(NamedTuple):
    """Several distinct choices of codes per image: `indices` int32 [b,n,h,w,G], and `valid` bool [b,n]."""

    indices: Array
    valid: Array


def nearest_combinations(z_e: Float[Array, "b h w g d"], codebook: Float[Array, "g k d"], num: int) -> Combinations:
    """Find the `num` choices of codes of an image with the least total squared distance, the nearest codes first.

    Those are the most probable ones under q(z | x) ~ exp(-distance / T), whatever T is. Exact: a choice that uses
    something else than the num - 1 cheapest changes of one latent each has at least `num` cheaper ones before it.
    `valid` is False where fewer exist.
    """
    squares = jnp.sum(codebook**2, axis=-1).reshape(1, 1, 1, *codebook.shape[:2])
    distances = squares - 2 * jnp.einsum("bhwgd,gkd->bhwgk", z_e, codebook, precision="highest")
    return Combinations(*jax.vmap(lambda one: _combinations_of_one(one, num))(distances))


def _combinations_of_one(distances, num):
    field, size = distances.shape[:-1], distances.shape[-1]
    distances = distances.reshape(-1, size)
    nearest = jnp.argmin(distances, axis=-1).astype(jnp.int32)
    extra = distances - jnp.min(distances, axis=-1, keepdims=True)
    extra = jnp.where(jnp.arange(size).reshape(1, -1) == nearest[:, None], jnp.inf, extra)
    steps = min(max(num - 1, 1), extra.size)
    cost, change = jax.lax.top_k(-extra.reshape(-1), steps)
    cost, place, code = -cost, change // size, (change % size).astype(jnp.int32)

    def consider(n, beam):
        """Try change n on top of every choice so far, and keep the cheapest."""
        costs, used = beam
        taken = jnp.any(used & (place == place[n]).reshape(1, -1), axis=1)
        new_costs = jnp.concatenate([costs, jnp.where(taken, jnp.inf, costs + cost[n])])
        new_used = jnp.concatenate([used, used.at[:, n].set(True)])
        best = jax.lax.top_k(-new_costs, num)[1]
        return new_costs[best], new_used[best]

    costs = jnp.full(num, jnp.inf, jnp.float32).at[0].set(0.0)
    costs, used = jax.lax.fori_loop(0, steps, consider, (costs, jnp.zeros((num, steps), bool)))
    # A change that isn't used is written nowhere.
    rows = jnp.where(used, place.reshape(1, -1), len(nearest))
    indices = jax.vmap(lambda where: nearest.at[where].set(code, mode="drop"))(rows)
    return indices.reshape(num, *field), jnp.isfinite(costs)
