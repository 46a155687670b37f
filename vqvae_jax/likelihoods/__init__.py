"""Distributions P(x | z) of images of 8-bit levels."""

from vqvae_jax.likelihoods.context import Context
from vqvae_jax.likelihoods.pixelwise import PIXELWISE

LIKELIHOODS = PIXELWISE | {"context": Context}
