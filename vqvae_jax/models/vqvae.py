"""The VQ-VAE (van den Oord et al. 2017) as one object without arrays; its variables are plain trees.

`variables` is {"params", "state", "fitted"}: what the optimizer moves, the EMA codebook (or ()), and what `fit`
counted on training images once the run is done ({} before).
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from vqvae_jax import metrics
from vqvae_jax.models import quantizer
from vqvae_jax.models.likelihoods import Logistic, Softmax, SquaredError, round_to_uint8
from vqvae_jax.models.networks import Decoder, Encoder

Images = UInt8[Array | np.ndarray, "b h w c"]
Codes = Int[Array | np.ndarray, "b y x g"]  # y, x: rows and columns of codes
# Any scale gives a valid bound; below a tenth of a level nothing is gained, and 0 would divide by zero.
MIN_SCALE = 0.1


class Bound(NamedTuple):
    """Nats per image, float32 [B] each: NLL <= rate + distortion, -log p(z) and -log P(x | z)."""

    rate: Array
    distortion: Array


class Losses(NamedTuple):
    """The terms of eq. (3), unweighted scalars: nats per sub-pixel, and means over batch, latents and dimensions."""

    distortion: Array
    codebook: Array
    commitment: Array


@dataclass(frozen=True)
class VQVAE:
    """A VQ-VAE with G codebooks per position, learned by `codebook_update`: "ema" (app. A.1) or "gradient" (eq. 3)."""

    encoder: Encoder
    decoder: Decoder
    likelihood: Softmax | Logistic | SquaredError
    codebook_size: int
    num_codebooks: int
    embedding_dim: int
    commitment_cost: float
    codebook_update: str
    ema_decay: float
    ema_epsilon: float
    revival_threshold: float
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    def init(self, key: Key[Array, ""], images: Images):
        """Draw the networks and start the codebook at encoded vectors of `images`, the first batch."""
        encoder_key, decoder_key, codebook_key = jax.random.split(key, 3)
        params = {"encoder": self.encoder.lazy_init(encoder_key, self._standardise(images))["params"]}
        z_e = self._latents(params, images)
        ema = quantizer.ema_init(codebook_key, z_e, self.codebook_size)
        flat = jax.ShapeDtypeStruct((*z_e.shape[:3], self.num_codebooks * self.embedding_dim), z_e.dtype)
        params["decoder"] = self.decoder.lazy_init(decoder_key, flat)["params"]
        if self.codebook_update == "ema":
            return {"params": params, "state": ema}
        params["codebook"] = quantizer.ema_codebook(ema, epsilon=0.0)
        return {"params": params, "state": ()}

    def loss(self, variables, batch, key: Key[Array, ""]):
        """Give the training loss (eq. 3, nats per sub-pixel) and (the next state, metrics in bits/dim)."""
        images, params = batch["image"], variables["params"]
        z_e = self._latents(params, images)
        z_q, indices = quantizer.quantize(z_e, self.codebook(variables))
        raw = self._raw(params, quantizer.straight_through(z_e, z_q))
        losses = Losses(
            distortion=jnp.mean(self._training_distortion(raw, images)),
            codebook=quantizer.codebook_loss(z_e, z_q),
            commitment=quantizer.commitment_loss(z_e, z_q),
        )
        # Eq. (3). Under EMA the codebook is state, so its term is a constant here and has no gradient.
        total = losses.distortion + losses.codebook + self.commitment_cost * losses.commitment
        state = self._next_state(variables["state"], z_e, indices, key)
        return total, (state, self._training_metrics(losses, total, indices, images.shape[1:]))

    def bound(self, variables, images: Images, key: Key[Array, ""] | None = None) -> Bound:
        """Bound the NLL under the uniform prior: one term of the sum over z, so always valid (sec. 3.2)."""
        codes = self.encode(variables, images)
        rate = jnp.full((images.shape[0],), codes[0].size * jnp.log(float(self.codebook_size)))
        return Bound(rate=rate, distortion=self.distortion(variables, codes, images))

    def distortion(self, variables, codes: Codes, images: Images) -> Float[Array, "b"]:
        """-log P(x | z) in nats per image, in float32."""
        log_prob = self.likelihood.log_prob(self.decode(variables, codes), images)
        return -jnp.sum(log_prob, axis=(1, 2, 3))

    def encode(self, variables, images: Images) -> Codes:
        """Images to code indices."""
        return quantizer.nearest_code(self._latents(variables["params"], images), self.codebook(variables))

    def decode(self, variables, codes: Codes) -> Float[Array, "b h w p"]:
        """Code indices to the parameters of the likelihood; squared error has a scale (else NaN) once fitted."""
        raw = self._raw(variables["params"], quantizer.look_up(self.codebook(variables), jnp.asarray(codes)))
        if isinstance(self.likelihood, SquaredError):
            # Without a fitted scale there is a mean to look at, and no likelihood.
            scale = variables["fitted"].get("scale", jnp.full(raw.shape[-1], jnp.nan))
            return self.likelihood.complete(raw, scale)
        return raw

    def decode_mean(self, variables, codes: Codes) -> Images:
        """Code indices to images, the mean of the likelihood rounded to 8-bit levels."""
        return round_to_uint8(self.likelihood.mean(self.decode(variables, codes)))

    def reconstruct(self, variables, images: Images) -> Images:
        """Images through the codes and back."""
        return self.decode_mean(variables, self.encode(variables, images))

    def codebook(self, variables) -> Float[Array, "g k d"]:
        """The codes in use now."""
        if self.codebook_update == "ema":
            return quantizer.ema_codebook(variables["state"], self.ema_epsilon)
        return variables["params"]["codebook"]

    def fit_sums(self, variables, images: Images, mask):
        """Sum over the images that `mask` keeps what `fit` needs."""
        codes = jnp.asarray(self.encode(variables, images))
        places = jnp.indices(codes.shape[1:], sparse=True)
        counts = jnp.zeros((*codes.shape[1:], self.codebook_size))
        counts = counts.at[(*(p[None] for p in places), codes)].add(mask.astype(jnp.float32).reshape(-1, 1, 1, 1))
        sums = {"num_images": jnp.sum(mask), "code_counts": counts}
        if isinstance(self.likelihood, SquaredError):
            raw = self._raw(variables["params"], quantizer.look_up(self.codebook(variables), codes))
            squares = self.likelihood.squared_levels(raw, images) * mask.reshape(-1, 1, 1, 1)
            sums["squared_levels"] = jnp.sum(jnp.mean(squares, axis=(1, 2)), axis=0)
        return sums

    def fit(self, sums):
        """Turn sums over training images into `fitted`: code counts [h,w,G,K], and a Gaussian's scale [C] in levels."""
        fitted = {"code_counts": sums["code_counts"]}
        if "squared_levels" in sums:
            rms = jnp.sqrt(sums["squared_levels"] / sums["num_images"])
            fitted["scale"] = jnp.maximum(rms, MIN_SCALE)
        return fitted

    def _standardise(self, images):
        mean, std = (jnp.asarray(v, jnp.float32).reshape(1, 1, 1, -1) for v in (self.pixel_mean, self.pixel_std))
        return (images.astype(jnp.float32) / 255 - mean) / std

    def _latents(self, params, images):
        z_e = jnp.asarray(self.encoder.apply({"params": params["encoder"]}, self._standardise(images)))
        return z_e.reshape(*z_e.shape[:3], self.num_codebooks, self.embedding_dim)

    def _raw(self, params, z_q) -> Array:
        return jnp.asarray(self.decoder.apply({"params": params["decoder"]}, z_q.reshape(*z_q.shape[:3], -1)))

    def _training_distortion(self, raw, images):
        if isinstance(self.likelihood, SquaredError):
            return self.likelihood.loss(raw, images)
        return -self.likelihood.log_prob(raw, images)

    def _next_state(self, state, z_e, indices, key):
        if self.codebook_update == "gradient":
            return state
        ema = quantizer.ema_update(state, z_e, indices, self.ema_decay)
        return quantizer.revive(key, ema, z_e, self.revival_threshold)

    def _training_metrics(self, losses, total, indices, image_shape):
        counts = quantizer.count_codes(indices, self.codebook_size)
        log_k = jnp.log(float(self.codebook_size))
        result = {
            "loss_nats": total,
            "rate": metrics.nats_to_bits_per_dim(indices[0].size * log_k, image_shape),
            "codebook_loss": losses.codebook,
            "commitment_loss": losses.commitment,
            "batch_perplexity": jnp.mean(metrics.perplexity(counts)),
            "batch_codebook_usage": jnp.mean(metrics.codebook_usage(counts)),
        }
        if isinstance(self.likelihood, SquaredError):
            return {**result, "half_squared_error": losses.distortion}
        distortion = losses.distortion / jnp.log(2.0)
        return {**result, "distortion": distortion, "bits_per_dim": result["rate"] + distortion}
