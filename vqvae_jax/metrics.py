"""Units and per-image measures: pure functions, float32, no model in sight."""

import math

import dm_pix
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

Images = UInt8[Array | np.ndarray, "b h w c"]
# A dm-pix window does not fit into smaller images.
SSIM_WINDOW = 11


def nats_to_bits_per_dim(nats, image_shape: tuple[int, int, int]):
    """Convert nats per image to bits per sub-pixel: nats / (H·W·C·ln 2)."""
    return nats / (math.prod(image_shape) * math.log(2))


def mean_squared_error(a: Images, b: Images) -> Float[Array, "b"]:
    """Average the squared difference per image, in squared 8-bit levels."""
    difference = a.astype(jnp.float32) - b.astype(jnp.float32)
    return jnp.mean(difference**2, axis=(1, 2, 3))


def psnr(mse: Float[Array, "b"]) -> Float[Array, "b"]:
    """Peak signal-to-noise ratio in dB of 8-bit images; infinite where they are equal."""
    return 10 * (2 * math.log10(255) - jnp.log10(mse))


def ssim(a: Images, b: Images) -> Float[Array, "b"]:
    """Structural similarity per image, at most 1: Gaussian window 11, sigma 1.5 (Wang et al. 2004).

    NaN for images with a side below 11 pixels, where the window does not fit.
    """
    if min(a.shape[1:3]) < SSIM_WINDOW:
        return jnp.full((a.shape[0],), jnp.nan)
    scaled = [x.astype(jnp.float32) / 255 for x in (a, b)]
    return jnp.asarray(dm_pix.ssim(*scaled, max_val=1.0))


def perplexity(counts: Float[Array | np.ndarray, "g k"]) -> Float[Array, "g"]:
    """Raise e to the entropy of each codebook's use: 1 if one code does everything, K if all do the same."""
    p = counts / jnp.sum(counts, axis=-1, keepdims=True)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0), axis=-1))


def codebook_usage(counts: Float[Array | np.ndarray, "g k"]) -> Float[Array, "g"]:
    """The share of each codebook's codes that occur at least once, 0 to 1."""
    return jnp.mean((counts > 0).astype(jnp.float32), axis=-1)
