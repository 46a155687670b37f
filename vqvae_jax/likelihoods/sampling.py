"""Draw images from P(x | z), the pixels of one step after those of the earlier ones."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from vqvae_jax.likelihoods.interface import Features, Images, PixelModel


def draw_pixels(
    likelihood: PixelModel, params: dict, features: Features, keys: Key[Array, "b"], channels: int
) -> Images:
    """Draw an image [B,H,W,channels] for every row of features, with a key of its own, by inverting its pmf."""
    (b, h, w, _), order = features.shape, likelihood.order(*features.shape[1:3])

    def step(images, inputs):
        n, places = inputs
        q = likelihood.at(params, features, images, places)
        pixels = jnp.zeros((b, len(places), channels), jnp.uint8)
        uniforms = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, n), pixels.shape[1:]))(keys)
        for channel in range(channels):
            sums = jnp.cumsum(likelihood.pmf(q, pixels, channel), axis=-1)
            below = sums <= uniforms[..., channel, None] * sums[..., -1:]
            pixels = pixels.at[..., channel].set(jnp.minimum(jnp.sum(below, axis=-1), 255).astype(jnp.uint8))
        return images.at[:, places[:, 0], places[:, 1]].set(pixels, mode="drop"), None

    first = jnp.zeros((b, h, w, channels), jnp.uint8)
    return jax.lax.scan(step, first, (jnp.arange(len(order)), jnp.asarray(order)))[0]
