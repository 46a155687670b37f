"""The VQ-VAE (van den Oord et al. 2017) as one object without arrays; its variables are plain trees.

`variables` is {"params", "state", "fitted"}: what the optimizer moves, the EMA codebook (or ()), and what `fit`
counted on training images once the run is done ({} before).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from vqvae_jax import metrics
from vqvae_jax.models import quantizer
from vqvae_jax.models.trunk import Bound, Images, LogSum, Trunk

Codes = Int[Array | np.ndarray, "b y x g"]  # y, x: rows and columns of codes


class Losses(NamedTuple):
    """The terms of eq. (3), unweighted scalars: nats per sub-pixel, and means over batch, latents and dimensions."""

    distortion: Array
    codebook: Array
    commitment: Array


@dataclass(frozen=True)
class VQVAE:
    """A VQ-VAE with G codebooks per position, learned by `codebook_update`: "ema" (app. A.1) or "gradient" (eq. 3)."""

    trunk: Trunk
    codebook_size: int
    num_codebooks: int
    embedding_dim: int
    commitment_cost: float
    codebook_update: str
    ema_decay: float
    ema_epsilon: float
    revival_threshold: float

    prior_name = "uniform"

    def init(self, key: Key[Array, ""], images: Images):
        """Draw the networks and start the codebook at encoded vectors of `images`, the first batch."""
        encoder_key, decoder_key, codebook_key = jax.random.split(key, 3)
        params = self.trunk.init(encoder_key, decoder_key, images, self.num_codebooks * self.embedding_dim)
        ema = quantizer.ema_init(codebook_key, self._latents(params, images), self.codebook_size)
        if self.codebook_update == "ema":
            return {"params": params, "state": ema}
        params["codebook"] = quantizer.ema_codebook(ema, epsilon=0.0)
        return {"params": params, "state": ()}

    def loss(self, variables, batch, key: Key[Array, ""]):
        """Give the training loss (eq. 3, nats per sub-pixel) and (the next state, metrics in bits/dim)."""
        images, params = batch["image"], variables["params"]
        z_e = self._latents(params, images)
        z_q, indices = quantizer.quantize(z_e, self.codebook(variables))
        losses = Losses(
            distortion=self.trunk.training_distortion(params, _flat(quantizer.straight_through(z_e, z_q)), images),
            codebook=quantizer.codebook_loss(z_e, z_q),
            commitment=quantizer.commitment_loss(z_e, z_q),
        )
        # Eq. (3). Under EMA the codebook is state, so its term is a constant here and has no gradient.
        total = losses.distortion + losses.codebook + self.commitment_cost * losses.commitment
        state = self._next_state(variables["state"], z_e, indices, key)
        return total, (state, self._training_metrics(losses, total, indices, images.shape[1:]))

    def bound(self, variables, images: Images, keys: Key[Array, "b"] | None = None) -> Bound:
        """Bound the NLL under the uniform prior: one term of the sum over z, so always valid (sec. 3.2)."""
        codes = self.encode(variables, images)
        rate = jnp.full((images.shape[0],), codes[0].size * jnp.log(float(self.codebook_size)))
        return Bound(rate=rate, distortion=self.distortion(variables, codes, images))

    def several_codes_bound(
        self, variables, images: Images, log_prior: Callable[[Array], Array], num: int
    ) -> Float[Array, "b"]:
        """Bound the NLL by the sum over `num` distinct codes, the chosen one among them: -log sum P(x | z) p(z), nats.

        The codes are the most probable ones under q(z | x) ~ exp(-|z_e - e|^2 / T), the same for every T. A sum over
        some codes is never below one of its terms nor above the sum over all, so this is a bound, and at least as
        good as that of one code.
        """
        several = quantizer.nearest_combinations(
            self._latents(variables["params"], images), self.codebook(variables), num
        )

        def add(n, total):
            codes = several.indices[:, n]
            joint = log_prior(codes) - self.distortion(variables, codes, images)
            return total.add(jnp.where(several.valid[:, n], joint, -jnp.inf))

        return -jax.lax.fori_loop(0, several.valid.shape[1], add, LogSum.of_nothing(images.shape[0])).log()

    def distortion(self, variables, codes: Codes, images: Images) -> Float[Array, "b"]:
        """-log P(x | z) in nats per image, in float32."""
        return self.trunk.distortion(variables, self._vectors(variables, codes), images)

    def encode(self, variables, images: Images) -> Codes:
        """Images to code indices."""
        return quantizer.nearest_code(self._latents(variables["params"], images), self.codebook(variables))

    def decode(self, variables, codes: Codes) -> Float[Array, "b h w p"]:
        """Code indices to the parameters of the likelihood; squared error has a scale (else NaN) once fitted."""
        return self.trunk.decode(variables, self._vectors(variables, codes))

    def decode_mean(self, variables, codes: Codes) -> Images:
        """Code indices to images, the mean of the likelihood rounded to 8-bit levels."""
        return self.trunk.decode_mean(variables, self._vectors(variables, codes))

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
        sums = self.trunk.fit_sums(variables["params"], self._vectors(variables, codes), images, mask)
        return sums | {"code_counts": counts}

    def fit(self, sums):
        """Turn sums over training images into `fitted`: code counts [h,w,G,K], and a Gaussian's scale [C] in levels."""
        return {"code_counts": sums["code_counts"]} | self.trunk.fit(sums)

    def _latents(self, params, images):
        z_e = self.trunk.encode(params, images)
        return z_e.reshape(*z_e.shape[:3], self.num_codebooks, self.embedding_dim)

    def _vectors(self, variables, codes):
        return _flat(quantizer.look_up(self.codebook(variables), jnp.asarray(codes)))

    def _next_state(self, state, z_e, indices, key):
        if self.codebook_update == "gradient":
            return state
        ema = quantizer.ema_update(state, z_e, indices, self.ema_decay)
        return quantizer.revive(key, ema, z_e, self.revival_threshold)

    def _training_metrics(self, losses, total, indices, image_shape):
        counts = quantizer.count_codes(indices, self.codebook_size)
        rate = metrics.nats_to_bits_per_dim(indices[0].size * jnp.log(float(self.codebook_size)), image_shape)
        result = {
            "loss_nats": total,
            "rate": rate,
            "codebook_loss": losses.codebook,
            "commitment_loss": losses.commitment,
            "batch_perplexity": jnp.mean(metrics.perplexity(counts)),
            "batch_codebook_usage": jnp.mean(metrics.codebook_usage(counts)),
        }
        result |= self.trunk.named_distortion(losses.distortion)
        return result | ({"bits_per_dim": rate + result["distortion"]} if "distortion" in result else {})


def _flat(vectors):
    """Codes side by side: [b,h,w,G,D] to [b,h,w,G*D]."""
    return vectors.reshape(*vectors.shape[:3], -1)
