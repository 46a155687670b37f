"""Draw codes from a prior one after the other, in the order row, column, g: one compiled scan."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqvae_jax.priors.autoregressive import Autoregressive, Codes, Labels

BLOCK = 32  # codes whose probabilities are summed at once


class Options(NamedTuple):
    """How to draw: from softmax(logits / `temperature`), of the `top_k` (0: all) most probable codes, and of the
    fewest of these that have `top_p` (1: all) of the probability.
    """  # fmt: skip

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


AS_TRAINED = Options()


def filtered(logits: Float[Array, "b k"], options: Options) -> Float[Array, "b k"]:
    """The logits that are drawn from, -inf where a code is left out; the most probable code is always kept."""
    logits = logits / options.temperature
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
    logits = filtered(logits, options)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    sums, possible = running_sums(weights), weights > 0
    threshold = uniforms[:, None] * jnp.max(jnp.where(possible, sums, 0), axis=-1, keepdims=True)
    numbers = jnp.arange(logits.shape[-1], dtype=jnp.int32)[None]
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
    prior: Autoregressive,
    variables,
    codes: Codes,
    label: Labels,
    uniforms: Float[Array | np.ndarray, "n b"],
    *,
    options: Options = AS_TRAINED,
    keep: int | Int[Array, ""] = 0,
) -> Int[Array, "b h w g"]:
    """Draw every code but the first `keep`, which stay as they are in `codes` [B,h,w,G].

    Args:
        prior: the prior; its step is called once for every code.
        variables: its parameters.
        codes: where to begin; whatever is drawn is written over it.
        label: class numbers, or None.
        uniforms: numbers in [0, 1), a row for every code of the field in its order.
        options: see `Options`; constants when compiled.
        keep: how many codes are given.
    """
    b, h, w, groups = codes.shape
    numbers = jnp.arange(h * w * groups).reshape(h, w * groups)

    def one(carry, inputs):
        (cache, codes), (n, u) = carry, inputs
        logits, cache = prior.step(variables, cache, codes, n)
        place, g = n // groups, n % groups
        at = (0, place // w, place % w, g)
        given = jax.lax.dynamic_slice(codes, at, (b, 1, 1, 1))
        new = jnp.where(n < keep, given, draw(logits, u, options).reshape(b, 1, 1, 1))
        return (cache, jax.lax.dynamic_update_slice(codes, new, at)), None

    def line(carry, inputs):
        (cache, codes), (i, n, u) = carry, inputs
        cache = prior.row(variables, cache, codes, i)
        return jax.lax.scan(one, (cache, codes), (n, u))[0], None

    carry = prior.start(variables, b, label), jnp.asarray(codes, jnp.int32)
    rows = jnp.arange(h), numbers, jnp.asarray(uniforms).reshape(h, w * groups, b)
    (_, codes), _ = jax.lax.scan(line, carry, rows)
    return codes
