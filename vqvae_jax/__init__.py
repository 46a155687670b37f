"""VQ-VAE in JAX, measured in bits per dimension (van den Oord et al. 2017)."""

__version__ = "0.1.0"


def load(workdir, data_dir=None):
    """Load a trained run for use on plain arrays; see `vqvae_jax.api.load`."""
    from vqvae_jax import api  # here, so that a data worker does not import the whole package

    return api.load(workdir, data_dir=data_dir)
