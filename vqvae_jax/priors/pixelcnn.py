"""A gated PixelCNN over a field of codes (van den Oord et al. 2016b), all positions at once or one after the other.

Two stacks look at what comes before a position: the vertical one at all rows above, the horizontal one at the row
itself up to the position's left and at the vertical stack, so that nothing above is out of sight. Every layer is

    v <- v + gate(above * v)                     above: 2x3 taps, of the row above and the same row of v
    h <- h + out (gate(left * h + down v))       left: 1x2 taps, of the position to the left and the same one
    gate(a, b) = tanh(a) sigmoid(b)

on v and h that start one row and one column late, so no tap is ever masked and none is computed in vain. The paper
hands the vertical stack to the horizontal one before its gate, this code after it, and adds v to itself, too. Where
a position has several codes, the head sees the earlier ones, too.

The sampler needs of the same network: `start`, `row` (the vertical stack of a whole row, once a row) and `step`
(the horizontal stack of one position, and the head of one code), each computing only what is new.
"""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vqvae_jax.models.convolutions import causal_convolution, kernel_init, product, shifts
from vqvae_jax.priors.interface import Codes, Labels

ABOVE, LEFT = (2, 3), (1, 2)  # taps


class Cache(NamedTuple):
    """What the sampler keeps: features of two rows, and of one position."""

    bias: Array  # [B or 1,layers,2,2F], constant
    kernels: Array  # [layers,F,2F], with which the position to the left is seen; constant
    above: tuple[Array, ...]  # [B,w,F] of each layer, the vertical stack's inputs in the row above
    down: Array  # [w,layers,B,2F], what the horizontal stack gets from the vertical one in this row
    seen: Array  # [layers,B,2F], what it gets at the next position from there and from the left
    context: Array  # [B,F], what the head sees of all earlier positions


def gate(x: Float[Array, "*b f2"]) -> Float[Array, "*b f"]:
    """Multiply tanh of the first half of the channels by the sigmoid of the second."""
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.tanh(a) * jax.nn.sigmoid(b)


class GatedLayer(nn.Module):
    """One layer of both stacks."""

    features: int

    def setup(self):
        f = self.features
        self.above = self.param("above", kernel_init, (*ABOVE, f, 2 * f))
        self.left = self.param("left", kernel_init, (*LEFT, f, 2 * f))
        self.down = self.param("down", kernel_init, (f, 2 * f))
        self.out = self.param("out", kernel_init, (f, f))

    def vertical(self, v, bias):
        """The next v of all positions."""
        return v + gate(causal_convolution(v, self.above, ((1, 0), (1, 1))) + bias[:, None, None])

    def vertical_row(self, before, v, bias):
        """The next v [B,w,F] of one row, given the row above it, `before`."""
        taps = shifts(jnp.stack([before, v], axis=1), ABOVE, ((0, 0), (1, 1)))
        kernel = self.above.reshape(-1, 2 * self.features)
        return v + gate(product(jnp.concatenate(taps, axis=-1)[:, 0], kernel) + bias[:, None])

    def horizontal(self, h, v, bias, drop):
        """The next h of all positions; `drop` is applied to the gates."""
        down = product(v, self.down) + bias[:, None, None]
        gates = gate(causal_convolution(h, self.left, ((0, 0), (1, 0))) + down)
        return h + product(drop(gates), self.out)

    def horizontal_step(self, h, seen):
        """The next h [B,F] of one position, `seen` [B,2F] being what it gets from the left and from v."""
        return h + product(gate(product(h, self.left[0, 1]) + seen), self.out)


class Network(nn.Module):
    """Codes [B,h,w,G] below K to logits [B,h,w,G,K], each from the codes before it; `num_labels` 0: no labels."""

    field: tuple[int, int, int]
    codebook_size: int
    num_labels: int
    features: int
    layers: int
    dropout: float

    def setup(self):
        (h, w, groups), size, f = self.field, self.codebook_size, self.features
        small = nn.initializers.normal(0.05)
        self.embedding = self.param("embedding", nn.initializers.normal(1.0), (groups, size, f))
        self.position = self.param("position", small, (h, w, f))
        self.bias = self.param("bias", nn.initializers.zeros, (self.layers, 2, 2 * f))
        self.label = self.param("label", small, (self.num_labels, self.layers, 2, 2 * f)) if self.num_labels else None
        self.stack = [GatedLayer(f) for _ in range(self.layers)]
        self.depth = self.param("depth", nn.initializers.normal(1.0), (groups - 1, size, f)) if groups > 1 else None
        self.hidden = self.param("hidden", kernel_init, (f, f))
        self.hidden_bias = self.param("hidden_bias", nn.initializers.zeros, (groups, f))
        self.out = self.param("out", nn.initializers.zeros, (groups, f, size))
        self.out_bias = self.param("out_bias", nn.initializers.zeros, (groups, size))
        self.drop = nn.Dropout(self.dropout)

    def __call__(self, codes: Codes, label: Labels, training: bool = False) -> Float[Array, "b h w g k"]:
        """All logits at once."""
        bias, x, drop = self.biases(label), self.embed(codes), partial(self.drop, deterministic=not training)
        v = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1] + self.position[None]
        h = jnp.pad(x, ((0, 0), (0, 0), (1, 0), (0, 0)))[:, :, :-1] + self.position[None]
        for n, layer in enumerate(self.stack):
            v = layer.vertical(v, bias[:, n, 0])
            h = layer.horizontal(h, v, bias[:, n, 1], drop)
        return jnp.stack([self.head(h, self.earlier(codes, g), g) for g in range(self.field[2])], axis=-2)

    def biases(self, label: Labels) -> Float[Array, "b layers 2 f2"]:
        """What is added before the gates: [1,...], or [B,...] with labels."""
        return self.bias[None] + (0 if self.label is None or label is None else self.label[label])

    def embed(self, codes):
        """The sum of the embeddings of a position's codes."""
        return jnp.asarray(sum(self.embedding[g][codes[..., g]] for g in range(self.field[2])))

    def earlier(self, codes, g):
        """The sum of the head's embeddings of the codes before `g` at the same position, or 0."""
        tables = () if self.depth is None else self.depth
        return sum(jnp.where(n < g, table[codes[..., n]], 0) for n, table in enumerate(tables))

    def head(self, context, earlier, g):
        """Logits of code `g` of a position: ReLU, 1x1, ReLU, 1x1."""
        axes = range(context.ndim - 1)
        hidden = product(nn.relu(context + earlier), self.hidden) + jnp.expand_dims(self.hidden_bias[g], axes)
        return product(nn.relu(hidden), self.out[g]) + jnp.expand_dims(self.out_bias[g], axes)

    def start(self, batch_size: int, label: Labels) -> Cache:
        (_, w, _), f, dtype = self.field, self.features, self.bias.dtype
        return Cache(
            bias=self.biases(label),
            kernels=jnp.stack([layer.left[0, 0] for layer in self.stack]),
            above=tuple(jnp.zeros((batch_size, w, f), dtype) for _ in self.stack),
            down=jnp.zeros((w, self.layers, batch_size, 2 * f), dtype),
            seen=jnp.zeros((self.layers, batch_size, 2 * f), dtype),
            context=jnp.zeros((batch_size, f), dtype),
        )

    def row(self, cache: Cache, codes: Codes, i: Int[Array, ""]) -> Cache:
        """The cache at the start of row `i`: the vertical stack sees the row above."""
        before = jax.lax.dynamic_index_in_dim(codes, jnp.maximum(i - 1, 0), axis=1, keepdims=False)
        v = jnp.where(i > 0, self.embed(before), 0) + self.position[i][None]
        above, down = [], []
        for n, layer in enumerate(self.stack):
            above.append(v)
            v = layer.vertical_row(cache.above[n], v, cache.bias[:, n, 0])
            down.append(product(v, layer.down) + cache.bias[:, n, 1][:, None])
        down = jnp.stack(down).transpose(2, 0, 1, 3)
        return cache._replace(above=tuple(above), down=down, seen=down[0])

    def step(self, cache: Cache, codes: Codes, n: Int[Array, ""]) -> tuple[Float[Array, "b k"], Cache]:
        """Logits of code `n` of the field in its order (row, column, g); codes from there on are not looked at."""
        _, w, groups = self.field
        place, g = n // groups, n % groups
        i, j = place // w, place % w
        column = partial(self._column, cache, codes, i, j)
        cache = column() if groups == 1 else jax.lax.cond(g == 0, column, lambda: cache)
        return self.head(cache.context, self.earlier(codes[:, i, j], g), g), cache

    def _column(self, cache, codes, i, j):
        """The cache at the start of a position: the horizontal stack sees the one to its left."""
        h = jnp.where(j > 0, self.embed(codes[:, i, jnp.maximum(j - 1, 0)]), 0) + self.position[i, j][None]
        inputs = []
        for n, layer in enumerate(self.stack):
            inputs.append(h)
            h = layer.horizontal_step(h, cache.seen[n])
        # All layers at once: these products wait for nothing. That `down` is added here, a step ahead, keeps its moving
        # window out of the gates' arithmetic, which on a CPU then runs on vectors.
        left = jnp.einsum("lbf,lfg->lbg", jnp.stack(inputs), cache.kernels)
        return cache._replace(seen=left + cache.down[jnp.minimum(j + 1, len(cache.down) - 1)], context=h)
