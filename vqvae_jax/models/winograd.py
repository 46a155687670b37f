"""Convolutions of 2x2 or 3x3 taps by 16 products where a plain sum has 36 (Winograd 1980; Lavin & Gray 2016).

Images are cut into overlapping tiles of 4x4, each for 3x3 outputs of 2x2 taps or 2x2 outputs of 3x3 taps. In one
dimension, with polynomials given by their values at 0, 1, -1 and infinity:

    outputs = OUT ((KERNEL taps) * (IN tile))

Weights are 0, 1 and 1/2 but for their signs, so float32 loses no more than in a plain sum. What of a tile lies outside
an output's window cancels up to rounding and is not left out, so this is not for causal convolutions.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

TILE = 4
IN = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]])
# Values at 0, 1, -1 and infinity of polynomials of 2 and of 3 coefficients.
VALUES = {2: np.array([[1, 0], [1, 1], [1, -1], [0, 1]]), 3: np.array([[1, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 1]])}
KERNEL = {taps: values * [[1.0], [0.5], [0.5], [1.0]] for taps, values in VALUES.items()}
OUT = {taps: VALUES[TILE + 1 - taps].T for taps in VALUES}

Padding = tuple[tuple[int, int], ...]  # zeros before and after, of rows and of columns
Parts = list[list[Array]]  # an array for each place in a window


def opposite(shape: tuple[int, ...], padding: Padding) -> Padding:
    """Give the zeros for the way back through a kernel of `shape`."""
    return tuple((n - 1 - before, n - 1 - after) for n, (before, after) in zip(shape[:2], padding, strict=True))


def combine(matrix: np.ndarray, parts) -> list[Array]:
    """Give a weighted sum of arrays for each row of a matrix; XLA fuses these sums, which it would not a product."""
    pairs = [[pair for pair in zip(row.tolist(), parts, strict=True) if pair[0]] for row in matrix]
    return [jnp.asarray(sum(weight * part for weight, part in row)) for row in pairs]


def combine_twice(matrix: np.ndarray, parts) -> Parts:
    """Apply a matrix to rows and to columns of `parts`."""
    columns = [combine(matrix, column) for column in zip(*parts, strict=True)]
    return [combine(matrix, row) for row in zip(*columns, strict=True)]


def cut(x: Float[Array, "b h w c"], size: int, step: int) -> Parts:
    """Cut into windows of `size` at every `step`, arrays [b,windows,windows,c]."""
    rows, columns = (n - size + 1 for n in x.shape[1:3])
    return [[x[:, i : i + rows : step, j : j + columns : step] for j in range(size)] for i in range(size)]


def input_tiles(x: Float[Array, "b h w c"], taps: int, padding: Padding) -> Parts:
    """Cut into transformed tiles, as many as cover all outputs; sums are float32 at least."""
    step, wide = TILE + 1 - taps, x.astype(jnp.promote_types(x.dtype, jnp.float32))
    around = [(m, n + -(size + m + n - taps + 1) % step) for size, (m, n) in zip(x.shape[1:3], padding, strict=True)]
    tiles = combine_twice(IN, cut(jnp.pad(wide, ((0, 0), *around, (0, 0))), TILE, step))
    return jax.tree.map(lambda tile: tile.astype(x.dtype), tiles)


def wide_product(x: Float[Array, "*b c"], matrix: Float[Array, "c o"]) -> Float[Array, "*b o"]:
    """Multiply along channels; of bfloat16, too, the sum is float32."""
    rows = x.reshape(-1, x.shape[-1])
    product = jnp.matmul(rows, matrix, preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
    return product.reshape(*x.shape[:-1], -1)


def pairwise(function: Callable[[Array, Array], Array], parts: Parts, others) -> Parts:
    """Apply a function at each place."""
    return [[function(*pair) for pair in zip(*rows, strict=True)] for rows in zip(parts, others, strict=True)]


def kernel_gradient(tiles: Parts, outputs: Parts, taps: int) -> Float[Array, "n n c o"]:
    """Give the kernel's gradient from tiles and the gradients of their products."""
    if swapped := tiles[0][0].shape[-1] > outputs[0][0].shape[-1]:
        # XLA's CPU products are faster with the fewer rows first.
        tiles, outputs = outputs, tiles

    def product(x, y):
        # Without a barrier, XLA would undo the swap.
        return lax.optimization_barrier(wide_product(x.reshape(-1, x.shape[-1]).T, y.reshape(-1, y.shape[-1])))

    rows = combine_twice(KERNEL[taps].T, pairwise(product, tiles, outputs))
    gradient = jnp.stack([jnp.stack(row) for row in rows])
    return lax.optimization_barrier(gradient).swapaxes(2, 3) if swapped else gradient


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def winograd(
    x: Float[Array, "b h w c"], kernel: Float[Array, "n n c o"], padding: Padding
) -> Float[Array, "b h2 w2 o"]:
    """Convolve at stride 1 with a kernel of 2x2 or 3x3 taps."""
    taps = len(kernel)
    height, width = (n + sum(around) - taps + 1 for n, around in zip(x.shape[1:3], padding, strict=True))
    products = pairwise(wide_product, input_tiles(x, taps, padding), combine_twice(KERNEL[taps], kernel))
    parts = combine_twice(OUT[taps], products)
    y = jnp.stack([jnp.stack(row, axis=3) for row in parts], axis=2).astype(x.dtype)
    b, rows, step, columns, _, o = y.shape
    return y.reshape(b, rows * step, columns * step, o)[:, :height, :width]


def _backward(padding, residuals, gradient):
    x, kernel = residuals
    taps, step = len(kernel), TILE + 1 - len(kernel)
    filled = jnp.pad(gradient, ((0, 0), (0, -gradient.shape[1] % step), (0, -gradient.shape[2] % step), (0, 0)))
    outputs = combine_twice(OUT[taps].T, cut(filled, step, step))
    if x.shape[-1] >= gradient.shape[-1]:
        back = winograd(gradient, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), opposite(kernel.shape, padding))
    else:
        # The transformed gradient, here the wider side, serves the kernel, too.
        products = pairwise(wide_product, outputs, combine_twice(KERNEL[taps], kernel.swapaxes(2, 3)))
        tiles_of = partial(input_tiles, taps=taps, padding=padding)
        (back,) = jax.linear_transpose(tiles_of, x)(jax.tree.map(lambda part: part.astype(x.dtype), products))
    return back, kernel_gradient(input_tiles(x, taps, padding), outputs, taps).astype(kernel.dtype)


winograd.defvjp(lambda x, kernel, padding: (winograd(x, kernel, padding), (x, kernel)), _backward)
