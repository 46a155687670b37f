"""Draw codes from a prior one after the other, in the order row, column, g: one compiled scan."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqvae_jax.errors import InputError
from vqvae_jax.priors.interface import Codes, Labels, Prior

BLOCK = 32  # codes whose probabilities are summed at once


class Options(NamedTuple):
    """How to draw: from softmax(logits / `temperature`), of the most probable codes alone."""

    temperature: float = 1.0
    top_k: int = 0  # of so many of the most probable codes; 0: all
    top_p: float = 1.0  # of the fewest of these that have so much of the probability; 1: all


AS_TRAINED = Options()


def check_options(options: Options, codebook_size: int) -> None:
    """Raise InputError if options of sampling are out of range."""
    temperature, top_k, top_p = options
    if not temperature > 0:
        raise InputError(f"the temperature is {temperature}: it must be above 0")
    if not 0 <= top_k <= codebook_size:
        raise InputError(f"top_k is {top_k}: it must be 0 (all) to {codebook_size}, the number of codes")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}: it must be above 0, up to 1 (all)")


def filtered(logits: Float[Array, "b k"], options: Options) -> Float[Array, "b k"]:
    """The logits that are drawn from, at most 0, -inf where a code is left out; the most probable one is always 0."""
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    logits = jnp.where(logits < 0, logits / options.temperature, 0)  # 0 however cold it is
    if options.top_k:
        lowest = jax.lax.top_k(logits, options.top_k)[0][:, -1:]
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    if options.top_p < 1:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), -1)
        probabilities = jax.nn.softmax(ordered, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        lowest = jnp.min(jnp.where(before < options.top_p, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < lowest, -jnp.inf, logits)
    return logits


def draw(logits: Float[Array, "b k"], uniforms: Float[Array, "b"], options: Options) -> Int[Array, "b"]:
    """Draw a code a row with a number in [0, 1) each: the first at which the summed probabilities exceed it."""
    weights = jnp.exp(filtered(logits, options))
    sums, possible = running_sums(weights), weights > 0
    threshold = uniforms[:, None] * jnp.max(jnp.where(possible, sums, 0), axis=-1, keepdims=True)
    numbers = jnp.arange(weights.shape[-1], dtype=jnp.int32)[None]
    return jnp.min(jnp.where(possible & (sums > threshold), numbers, numbers[:, -1:]), axis=-1)


def running_sums(x: Float[Array, "b k"]) -> Float[Array, "b k"]:
    """Sum up to and with every entry, in two small products, several times faster in a scan than `jnp.cumsum`."""
    b, k = x.shape
    blocks = jnp.pad(x, ((0, 0), (0, -k % BLOCK))).reshape(-1, BLOCK)
    exactly = partial(jnp.matmul, precision="highest")  # accelerators would round the probabilities
    inside = exactly(blocks, jnp.triu(jnp.ones((BLOCK, BLOCK), x.dtype))).reshape(b, -1, BLOCK)
    before = exactly(inside[..., -1], jnp.triu(jnp.ones((inside.shape[1],) * 2, x.dtype), 1))
    return (inside + before[..., None]).reshape(b, -1)[:, :k]


def sample(
    prior: Prior,
    variables,
    codes: Codes,
    label: Labels,
    uniforms: Float[Array | np.ndarray, "n b"],
    *,
    options: Options = AS_TRAINED,
    keep: int | Int[Array, ""] = 0,
) -> Int[Array, "b h w g"]:
    """Draw every code but the first `keep`, which stay as they are in `codes`.

    `uniforms` are numbers in [0, 1), a row for every code of the field in its order; `options` are constants.
    """
    shape, flat = codes.shape, jnp.asarray(codes, jnp.int32).reshape(len(codes), -1)

    def one(carry, inputs):
        (cache, flat), (n, u) = carry, inputs
        logits, cache = prior.step(variables, cache, flat.reshape(shape), n)
        new = jnp.where(n < keep, flat[:, n], draw(logits, u, options))
        return (cache, jax.lax.dynamic_update_index_in_dim(flat, new, n, axis=1)), None

    def row(carry, inputs):
        (cache, flat), (i, n, u) = carry, inputs
        cache = prior.row(variables, cache, flat.reshape(shape), i)
        return jax.lax.scan(one, (cache, flat), (n, u))[0], None

    numbers = jnp.arange(flat.shape[1]).reshape(shape[1], -1)
    inputs = jnp.arange(shape[1]), numbers, jnp.asarray(uniforms).reshape(*numbers.shape, len(codes))
    (_, flat), _ = jax.lax.scan(row, (prior.start(variables, len(codes), label), flat), inputs)
    return flat.reshape(shape)
