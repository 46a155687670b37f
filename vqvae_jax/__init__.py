"""VQ-VAE in JAX, measured in bits per dimension (van den Oord et al. 2017)."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors
    from vqvae_jax.data.sources import load_data
    from vqvae_jax.evaluation.plots import show
    from vqvae_jax.run import load
    from vqvae_jax.training.loop import train

__version__ = "0.2.3"
__all__ = ["__version__", "load", "load_data", "show", "train"]

# Imported when asked for, so that a data worker does not import the whole package.
_HOMES = {"load": "run", "load_data": "data.sources", "show": "evaluation.plots", "train": "training.loop"}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'vqvae_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vqvae_jax.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
