"""A decoder-only transformer over the codes in their order (row, column, g), with a cache of keys and values.

Blocks are those of Radford et al. 2019 (layer norm before attention and before the MLP), without biases; positions are
learned. The first code is predicted from the position and the label alone. Cost and cache grow with the number of
codes, and the attention with its square: for small fields.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vqvae_jax.errors import InputError
from vqvae_jax.models.convolutions import kernel_init, product
from vqvae_jax.priors.interface import Codes, Labels

HEAD = 32  # channels of an attention head


class Cache(NamedTuple):
    """Keys and values [B,n,heads,channels] of every layer, and the labels' embedding [B or 1,F]."""

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
        """Queries, keys and values [B,n,heads,channels]."""
        parts = product(self.norms[0](x), self.attention_in)
        return jnp.unstack(parts.reshape(*x.shape[:2], 3, self.features // HEAD, HEAD), axis=2)

    def attend(self, x, heads, visible: Bool[Array, "q k"], training=False):
        """Mix into x the values of the places that are `visible` to each query; then the MLP."""
        mixed = jax.nn.dot_product_attention(*heads, mask=visible[None, None]).reshape(x.shape)
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

    def __post_init__(self):
        if self.features % HEAD:
            raise InputError(f"prior.features is {self.features}: a transformer needs a multiple of {HEAD}")
        super().__post_init__()

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
        groups, num = range(self.field[2]), len(self.position)
        embedded = jnp.stack([self.embedding[g][codes[..., g]] for g in groups], axis=-2)
        before = jnp.pad(embedded.reshape(-1, num, self.features), ((0, 0), (1, 0), (0, 0)))[:, :-1]
        x = before + self.position[None] + self.of_label(label)[:, None]
        for block in self.blocks:
            x = block.attend(x, block.heads(x), jnp.tri(num, dtype=bool), training)
        x = self.norm(x).reshape(*codes.shape, self.features)
        return jnp.stack([self.head(x[..., g, :], g) for g in groups], axis=-2)

    def of_label(self, label: Labels) -> Float[Array, "b f"]:
        """The labels' embedding; zeros [1,F] without."""
        return jnp.zeros((1, self.features)) if self.label is None or label is None else self.label[label]

    def head(self, x, g):
        """Logits of code `g` of a position."""
        return product(x, self.out[g]) + jnp.expand_dims(self.out_bias[g], range(x.ndim - 1))

    def start(self, batch_size: int, label: Labels) -> Cache:
        empty = jnp.zeros((batch_size, len(self.position), self.features // HEAD, HEAD), self.position.dtype)
        return Cache((empty,) * self.layers, (empty,) * self.layers, self.of_label(label))

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
            keys.append(jax.lax.dynamic_update_slice_in_dim(old_keys, key, n, axis=1))
            values.append(jax.lax.dynamic_update_slice_in_dim(old_values, value, n, axis=1))
            x = block.attend(x, (query, keys[-1], values[-1]), visible)
        return self.head(self.norm(x)[:, 0], n % groups), Cache(tuple(keys), tuple(values), cache.label)
