"""A network as a prior: it gives each code a distribution from the codes before it, in the order row, column, g.

A network (`pixelcnn`, `transformer`) is called with codes [B,h,w,G] and labels and gives all logits [B,h,w,G,K] at
once; and it gives them one after the other, by `start`, `row` and `step` (see `interface`).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from vqvae_jax.priors.interface import Codes, Labels


@dataclass(frozen=True)
class Autoregressive:
    """p(codes | label) by `network`, or p(codes) if there are no classes: `num_classes` 0.

    With `label_dropout` above 0 that share of labels is left out in training, and the label `num_classes` means none.
    """

    network: Any
    codebook_sizes: tuple[int, ...]
    num_classes: int
    label_dropout: float

    def init(self, key: Key[Array, ""], batch: dict) -> dict:
        """Draw {"params", "state"} for codes of the shape of a batch's."""
        codes = batch["codes"]
        return {"params": self.network.init(key, codes, self._label(batch["label"], len(codes)))["params"], "state": ()}

    def loss(self, variables, batch: dict, key: Key[Array, ""]):
        """Give the training loss, nats per code, and (the next state, metrics)."""
        codes, label = batch["codes"], self._label(batch["label"], len(batch["codes"]))
        drop_key, label_key = jax.random.split(key)
        if label is not None and self.label_dropout:
            left_out = jax.random.bernoulli(label_key, self.label_dropout, label.shape)
            label = jnp.where(left_out, self.num_classes, label)
        logits = self._apply(variables, codes, label, training=True, rngs={"dropout": drop_key})
        loss = -jnp.mean(_log_prob_of_codes(self._of_codes(logits), codes))
        return loss, ((), {"loss_nats": loss, "bits_per_code": loss / jnp.log(2.0)})

    def logits(self, variables, codes: Codes, label: Labels = None) -> Float[Array, "b h w g k"]:
        """All logits at once; without a label those of the label "none", if the prior knows labels."""
        return self._of_codes(self._apply(variables, codes, self._label(label, len(codes))))

    def log_prob(self, variables, codes: Codes, label: Labels = None) -> Float[Array, "b"]:
        """Give log p(codes | label) in nats, all positions at once.

        Without a label log p(codes): that of no label where training left some out, else exactly
        log sum_y p(y) p(codes | y), with the class frequencies of training.
        """
        if label is None and self.num_classes and not self.label_dropout:
            joint = self.log_prob_of_classes(variables, codes) + variables["fitted"]["log_class_frequencies"][None]
            return jax.nn.logsumexp(joint, axis=1)
        return jnp.sum(_log_prob_of_codes(self.logits(variables, codes, label), codes), axis=(1, 2, 3))

    def log_prob_of_classes(self, variables, codes: Codes) -> Float[Array, "b classes"]:
        """Give log p(codes | label) in nats under every class."""
        labels = jnp.arange(self.num_classes)
        found = jax.lax.map(lambda label: self.log_prob(variables, codes, jnp.full(len(codes), label)), labels)
        return found.T

    def start(self, variables, batch_size: int, label: Labels = None):
        return self._apply(variables, batch_size, self._label(label, batch_size), method="start")

    def row(self, variables, cache, codes: Codes, i: Int[Array, ""] | int):
        return self._apply(variables, cache, codes, i, method="row")

    def step(self, variables, cache, codes: Codes, n: Int[Array, ""] | int) -> tuple[Float[Array, "b k"], Any]:
        logits, cache = self._apply(variables, cache, codes, n, method="step")
        return self._of_codes(logits, n % len(self.codebook_sizes)), cache

    def _of_codes(self, logits, g: Any = slice(None)):
        """Leave out numbers that are no codes, where the codebooks of a position differ in size."""
        if len(set(self.codebook_sizes)) == 1:
            return logits
        possible = jnp.arange(logits.shape[-1])[None] < jnp.asarray(self.codebook_sizes)[:, None]
        return jnp.where(jnp.broadcast_to(possible[g], logits.shape), logits, -jnp.inf)

    def _apply(self, variables, *arguments, **options) -> Any:
        return self.network.apply({"params": variables["params"]}, *arguments, **options)

    def _label(self, label: Labels, batch_size: int):
        """What the network gets for a label: None if it knows none, the one that means none if there is one."""
        if not self.num_classes:
            return None
        return jnp.full(batch_size, self.num_classes) if label is None and self.label_dropout else label


def _log_prob_of_codes(logits, codes):
    chosen = jnp.take_along_axis(logits, codes[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
