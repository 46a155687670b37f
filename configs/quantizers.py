"""The quick start with each of the quantizers, at about as many bits of codes a position.

    python -m vqvae_jax.main --config=configs/quantizers.py:finite_scalar

The variants are the names of the quantizers.
"""

from configs import default, quickstart

# About 28 bits a position, as in configs/quickstart.py, and not above 2^10 values of a code.
VECTORS = {"num_codebooks": 4, "embedding_dim": 4, "commitment_cost": 1.0}
SIZES = {
    "finite_scalar": {"levels": (8,) * 9},  # three codes of 2^9
    "lookup_free": {"bits": 30},  # three codes of 2^10
    "residual": {"codebook_size": 128, "num_codebooks": 4, "embedding_dim": 16, "commitment_cost": 1.0},
    "vector_ema": VECTORS,
    "vector_gradient": VECTORS,
    "vector_simvq": VECTORS,
}
VARIANTS = tuple(SIZES)


def get_config(variant: str = "vector_ema") -> default.Config:
    """Give the config of one of VARIANTS, the name of a quantizer."""
    sizes = default.choose(SIZES, variant, "quantizers")
    return default.set_quantizer(quickstart.get_config(), variant, **sizes)
