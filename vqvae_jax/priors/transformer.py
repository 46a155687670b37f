"""A decoder-only transformer over the codes in their order (row, column, g), with a cache of keys and values.

Blocks are those of Radford et al. 2019 (layer norm before attention and before the MLP), without biases; positions are
learned. The first code is predicted from the position and the label alone. Cost and cache grow with the number of
codes, and the attention with its square: for small fields.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vqvae_jax.models.networks import kernel_init, product

Codes = Int[Array | np.ndarray, "b h w g"]
Labels = Int[Array | np.ndarray, "b"] | None
HEAD = 32  # channels of an attention head


class Cache(NamedTuple):
    """Keys and values [B,heads,n,channels] of every layer, and the labels' embedding [B or 1,F]."""

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    label: Array


class Block(nn.Module):
    """Attention and MLP, each added to what comes in."""

    features: int
    dropout: float

    def setup(self):
        f = self.features
        self.norms = [nn.LayerNorm(use_bias=False), nn.LayerNorm(use_bias=False)]
        self.attention_in = self.param("attention_in", kernel_init, (f, 3 * f))
        self.attention_out = self.param("attention_out", kernel_init, (f, f))
        self.mlp_in = self.param("mlp_in", kernel_init, (f, 4 * f))
        self.mlp_out = self.param("mlp_out", kernel_init, (4 * f, f))
        self.drop = nn.Dropout(self.dropout)

    def heads(self, x: Float[Array, "b n f"]):
        """Queries, keys and values [B,heads,n,channels]."""
        b, n, f = x.shape
        parts = product(self.norms[0](x), self.attention_in).reshape(b, n, 3, f // HEAD, HEAD)
        return tuple(parts.transpose(2, 0, 3, 1, 4))

    def attend(self, queries, keys, values, visible):
        """Mix the values of the places that are `visible` [queries,keys] to each query: [B,n,F]."""
        scores = jnp.einsum("bhqc,bhkc->bhqk", queries, keys) / math.sqrt(HEAD)
        weights = jax.nn.softmax(jnp.where(visible[None, None], scores, -jnp.inf), axis=-1)
        mixed = jnp.einsum("bhqk,bhkc->bhqc", weights, values)
        b, heads, n, channels = mixed.shape
        return mixed.transpose(0, 2, 1, 3).reshape(b, n, heads * channels)

    def rest(self, x, mixed, training=False):
        """What follows the attention."""
        x = x + self.drop(product(mixed, self.attention_out), deterministic=not training)
        hidden = nn.gelu(product(self.norms[1](x), self.mlp_in))
        return x + self.drop(product(hidden, self.mlp_out), deterministic=not training)


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
        self.embedding = self.param("embedding", small, (groups, size, f))
        self.position = self.param("position", small, (h * w * groups, f))
        self.label = self.param("label", small, (self.num_labels, f)) if self.num_labels else None
        self.blocks = [Block(f, self.dropout) for _ in range(self.layers)]
        self.norm = nn.LayerNorm(use_bias=False)
        self.out = self.param("out", nn.initializers.zeros, (groups, f, size))
        self.out_bias = self.param("out_bias", nn.initializers.zeros, (groups, size))

    def __call__(self, codes: Codes, label: Labels, training: bool = False) -> Float[Array, "b h w g k"]:
        """All logits at once."""
        codes = jnp.asarray(codes)
        groups, batch_size = self.field[2], codes.shape[0]
        embedded = jnp.stack([self.embedding[g][codes[..., g]] for g in range(groups)], axis=-2)
        before = jnp.pad(embedded.reshape(batch_size, -1, self.features), ((0, 0), (1, 0), (0, 0)))[:, :-1]
        x = before + self.position[None] + self.of_label(label)[:, None]
        places = jnp.arange(x.shape[1])
        for block in self.blocks:
            queries, keys, values = block.heads(x)
            mixed = block.attend(queries, keys, values, places[:, None] >= places[None])
            x = block.rest(x, mixed, training)
        x = self.norm(x).reshape(*codes.shape, self.features)
        return jnp.stack([self.head(x[..., g, :], g) for g in range(groups)], axis=-2)

    def of_label(self, label: Labels) -> Float[Array, "b f"]:
        """The labels' embedding; zeros [1,F] without."""
        if self.label is None or label is None:
            return jnp.zeros((1, self.features))
        return self.label[label]

    def head(self, x, g):
        """Logits of code `g` of a position."""
        return product(x, self.out[g]) + self.out_bias[g].reshape(*(1,) * (x.ndim - 1), -1)

    def start(self, batch_size: int, label: Labels) -> Cache:
        """The cache before the first code."""
        shape = (batch_size, self.features // HEAD, len(self.position), HEAD)
        empty = tuple(jnp.zeros(shape, self.position.dtype) for _ in self.blocks)
        return Cache(empty, empty, self.of_label(label))

    def row(self, cache: Cache, codes: Codes, i: Int[Array, ""]) -> Cache:
        """Nothing is known earlier of a row than of its codes."""
        return cache

    def step(self, cache: Cache, codes: Codes, n: Int[Array, ""]) -> tuple[Float[Array, "b k"], Cache]:
        """Logits of code `n` of the field in its order (row, column, g); codes from there on are not looked at."""
        _, w, groups = self.field
        last = jnp.maximum(n - 1, 0)
        place, g = last // groups, last % groups
        before = self.embedding[g][codes[:, place // w, place % w, g]]
        x = (jnp.where(n > 0, before, 0) + self.position[n][None] + cache.label)[:, None]
        visible = (jnp.arange(len(self.position)) <= n)[None]
        keys, values = [], []
        for block, old_keys, old_values in zip(self.blocks, cache.keys, cache.values, strict=True):
            query, key, value = block.heads(x)
            keys.append(jax.lax.dynamic_update_slice_in_dim(old_keys, key, n, axis=2))
            values.append(jax.lax.dynamic_update_slice_in_dim(old_values, value, n, axis=2))
            x = block.rest(x, block.attend(query, keys[-1], values[-1], visible))
        logits = self.head(self.norm(x)[:, 0], n % groups)
        return logits, Cache(tuple(keys), tuple(values), cache.label)
