"""Vector quantization as pure functions, usable without the rest of the package."""

from vqvae_jax.quantizers.estimators import rotation, straight_through
from vqvae_jax.quantizers.finite_scalar import FiniteScalarQuantizer
from vqvae_jax.quantizers.interface import Quantized, Quantizer
from vqvae_jax.quantizers.lookup_free import LookupFreeQuantizer
from vqvae_jax.quantizers.projected import Projected
from vqvae_jax.quantizers.residual import ResidualQuantizer
from vqvae_jax.quantizers.vector import GradientVectorQuantizer, SimVectorQuantizer, VectorQuantizer

__all__ = [
    "FiniteScalarQuantizer",
    "GradientVectorQuantizer",
    "LookupFreeQuantizer",
    "Projected",
    "Quantized",
    "Quantizer",
    "ResidualQuantizer",
    "SimVectorQuantizer",
    "VectorQuantizer",
    "rotation",
    "straight_through",
]
