"""VQ-VAE in JAX, measured in bits per dimension (van den Oord et al. 2017): `load`, `load_data` and `show`."""

import importlib

__version__ = "0.1.0"

# Imported when asked for, so that a data worker does not import the whole package.
_HOMES = {"load": "api", "load_data": "data.sources", "show": "plots"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'vqvae_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vqvae_jax.{_HOMES[name]}"), name)
