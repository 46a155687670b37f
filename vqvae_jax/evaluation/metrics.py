"""Units and per-image measures: pure functions, float32, no model in sight."""

import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, UInt8

Images = UInt8[Array | np.ndarray, "b h w c"]

SSIM_WINDOW = np.exp(-0.5 * (np.arange(-5.0, 6.0) / 1.5) ** 2)
SSIM_WEIGHTS = (SSIM_WINDOW / SSIM_WINDOW.sum()).tolist()


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

    NaN where the window does not fit. Variances are sums of squared deviations, of one axis and then of the other:
    E[x^2] - E[x]^2 would lose small ones in float32.
    """
    if min(a.shape[1:3]) < len(SSIM_WEIGHTS):
        return jnp.full((a.shape[0],), jnp.nan)
    mean = jnp.stack([a, b]).astype(jnp.float32) / 255
    covariance = jnp.zeros((2, *mean.shape))
    for axis in (-3, -2):
        ends = [(k, mean.shape[axis] - len(SSIM_WEIGHTS) + 1 + k) for k in range(len(SSIM_WEIGHTS))]
        means, inner = ([lax.slice_in_dim(x, *end, axis=axis) for end in ends] for x in (mean, covariance))
        mean = jnp.asarray(sum(w * part for w, part in zip(SSIM_WEIGHTS, means, strict=True)))
        outer = [(part - mean)[:, None] * (part - mean)[None] for part in means]
        covariance = jnp.asarray(sum(w * (i + o) for w, i, o in zip(SSIM_WEIGHTS, inner, outer, strict=True)))
    luminance = (2 * mean[0] * mean[1] + 0.01**2) / (mean[0] ** 2 + mean[1] ** 2 + 0.01**2)
    structure = (2 * covariance[0, 1] + 0.03**2) / (covariance[0, 0] + covariance[1, 1] + 0.03**2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def perplexity(counts: Float[Array | np.ndarray, "g k"]) -> Float[Array, "g"]:
    """Raise e to the entropy of each codebook's use: 1 if one code does everything, K if all do the same."""
    p = counts / jnp.sum(counts, axis=-1, keepdims=True)
    return jnp.exp(-jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1.0)), 0.0), axis=-1))


def codebook_usage(counts: Float[Array | np.ndarray, "g k"], sizes: tuple[int, ...]) -> Float[Array, "g"]:
    """The share of each codebook's codes that occur at least once, 0 to 1; `sizes` are K of each, at most k."""
    return jnp.sum(counts > 0, axis=-1) / jnp.asarray(sizes)
