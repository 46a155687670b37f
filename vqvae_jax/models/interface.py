"""What a family of models is: frozen dataclasses without arrays, whose variables are plain trees.

`variables` are {"params", "state", "fitted"}: what the optimizer moves, what steps move otherwise, what `fit` counted.
"""

import abc
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int, Key

from vqvae_jax.likelihoods.interface import Images, PixelModel

Codes = Int[Array | np.ndarray, "b y x g"]  # y, x: rows and columns of codes
Latents = Float[Array, "b y x d"] | Codes


class Bound(NamedTuple):
    """Nats per image, float32 [B] each: NLL <= rate + distortion, -log p(z) (or the KL) and -log P(x | z)."""

    rate: Array
    distortion: Array


@runtime_checkable
class ImageModel(Protocol):
    """What every family has; what a family can't do it says in an attribute."""

    latents: str  # "codes", int32 [B,h,w,G] below `codebook_sizes`, or "continuous", float32 [B,h,w,c]
    prior_name: str | None  # of its own p(z)
    has_bound: bool = True  # whether there is a p(z): `bound`
    draws_posterior: bool = False  # whether bounds are expectations over draws of q(z | x): `posterior`, `log_weight`
    samples_latents: bool = False  # whether latents are drawn without a prior of their own stage: `sample_latents`
    takes_prior: bool = False  # whether a prior that is counted or learned may take the place of p(z)
    has_distances: bool = False  # whether sums over other codes can be made: `distances`
    advice: str = ""  # which options of model.quantizer to change if few codes are in use
    headline_samples: int = 1  # draws of the bound that is reported

    @property
    def likelihood(self) -> PixelModel: ...

    @abc.abstractmethod
    def init(self, key: Key[Array, ""], images: Images) -> dict: ...  # params and state, from a first batch

    @abc.abstractmethod
    def loss(self, variables, batch: dict, key: Key[Array, ""]) -> tuple[Array, tuple[Any, dict]]:
        """Give the training loss in nats per sub-pixel, and (the next state, metrics in bits/dim)."""

    def bound(self, variables, images: Images, keys: Key[Array, "b"]) -> Bound: ...  # a key for every image

    @abc.abstractmethod
    def encode(self, variables, images: Images) -> Latents: ...  # the most probable latents

    def decode(self, variables, latents: Latents) -> Images: ...  # the mean of P(x | z), rounded

    def distortion(self, variables, latents: Latents, images: Images) -> Float[Array, "b"]: ...  # -log P(x | z), nats

    def fit_sums(self, variables, images: Images, mask) -> dict: ...  # over images that `mask` keeps; added up

    def fit(self, sums: dict) -> dict: ...  # `fitted`, from float64 sums over training images
