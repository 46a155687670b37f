"""Vector quantization as pure functions, usable without the rest of the package."""

from vqvae_jax.quantizers.interface import Quantized, Quantizer, straight_through
from vqvae_jax.quantizers.vector import GradientVectorQuantizer, VectorQuantizer

__all__ = ["GradientVectorQuantizer", "Quantized", "Quantizer", "VectorQuantizer", "straight_through"]
