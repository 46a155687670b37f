"""The VQ-VAE (van den Oord et al. 2017), with any quantizer."""

from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.evaluation import metrics
from vqvae_jax.likelihoods.interface import Images
from vqvae_jax.models.interface import Bound, Codes
from vqvae_jax.models.trunk import Family, Vectors
from vqvae_jax.quantizers.interface import Quantizer, QuantizerWithDistances
from vqvae_jax.quantizers.nearest import count_codes


@dataclass(frozen=True)
class VQVAE(Family):
    """A VQ-VAE; `variables["params"]["quantizer"]` and `variables["state"]` are its quantizer's."""

    quantizer: Quantizer

    latents = "codes"
    takes_prior = True
    prior_name = "uniform"

    @property
    def has_distances(self) -> bool:
        return self.quantizer.has_distances

    @property
    def advice(self) -> str:
        return self.quantizer.advice

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self.quantizer.codebook_sizes

    def init(self, key: Key[Array, ""], images: Images) -> dict:
        """Draw the networks, and start the quantizer at encoded vectors of `images`, the first batch."""
        networks_key, quantizer_key = jax.random.split(key)
        params = self.trunk.init(networks_key, images, self.quantizer.dim, self.quantizer.dim)
        own, state = self.quantizer.init(quantizer_key, self._encoded(params, images))
        return {"params": params | ({"quantizer": own} if own else {}), "state": state}

    def loss(self, variables, batch: dict, key: Key[Array, ""]):
        """Give the training loss (eq. 3, nats per sub-pixel) and (the next state, metrics in bits/dim)."""
        images, params, of_quantizer = batch["image"], variables["params"], self._of_quantizer(variables)
        draw_key, state_key = jax.random.split(key)
        z_e = self._encoded(params, images)
        z_q, indices, losses = self.quantizer(of_quantizer, z_e, draw_key)
        distortion, logged = self.trunk.training_distortion(params, z_q, images)
        # Eq. (3): distortion + codebook + beta commitment. Of an EMA codebook the second term is constant.
        total = distortion + sum(weight * losses[name] for name, weight in self.quantizer.loss_weights.items())
        state = self.quantizer.next_state(of_quantizer, z_e, indices, state_key)
        logged |= {"loss_nats": total} | {f"{name}_loss": loss for name, loss in losses.items()}
        rate = metrics.nats_to_bits_per_dim(self._uniform_rate(indices), images.shape[1:])
        logged |= {"rate": rate} | ({"bits_per_dim": rate + logged["distortion"]} if "distortion" in logged else {})
        counts = count_codes(indices, max(self.codebook_sizes))
        logged |= {"batch_perplexity": jnp.mean(metrics.perplexity(counts))}
        logged |= {"batch_codebook_usage": jnp.mean(metrics.codebook_usage(counts, self.codebook_sizes))}
        return total, (state, logged)

    def bound(self, variables, images: Images, keys: Key[Array, "b"] | None = None) -> Bound:
        """Bound the NLL under the uniform prior: one term of the sum over z, so always valid (sec. 3.2)."""
        codes = self.encode(variables, images)
        rate = jnp.full((images.shape[0],), self._uniform_rate(codes))
        return Bound(rate=rate, distortion=self.distortion(variables, codes, images))

    def encode(self, variables, images: Images) -> Codes:
        return self.quantizer(self._of_quantizer(variables), self._encoded(variables["params"], images)).indices

    def vectors(self, variables, latents: Codes) -> Vectors:
        return self.quantizer.look_up(self._of_quantizer(variables), jnp.asarray(latents))

    def distances(self, variables, images: Images) -> Float[Array, "b y x g k"]:
        """Give the squared distances of encoded images to every code."""
        quantizer = cast(QuantizerWithDistances, self.quantizer)
        return quantizer.distances(self._of_quantizer(variables), self._encoded(variables["params"], images))

    def fit_sums(self, variables, images: Images, mask) -> dict:
        """Count codes at every position, [h,w,G,K], beside what all families add up."""
        codes = jnp.asarray(self.encode(variables, images))
        places = jnp.indices(codes.shape[1:], sparse=True)
        counts = jnp.zeros((*codes.shape[1:], max(self.codebook_sizes)))
        counts = counts.at[(*(p[None] for p in places), codes)].add(mask.astype(jnp.float32).reshape(-1, 1, 1, 1))
        return super().fit_sums(variables, images, mask) | {"code_counts": counts}

    def _encoded(self, params, images) -> Vectors:
        return self.trunk.encode(params, images, self.quantizer.dim)

    def _of_quantizer(self, variables) -> dict:
        return {"params": variables["params"].get("quantizer", {}), "state": variables["state"]}

    def _uniform_rate(self, codes):
        return codes.shape[1] * codes.shape[2] * sum(jnp.log(float(size)) for size in self.codebook_sizes)
