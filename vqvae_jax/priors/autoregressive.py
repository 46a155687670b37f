"""Priors that give each code a distribution from the codes before it, in the order row, column, g.

A network (`pixelcnn`, `transformer`) is called with codes [B,h,w,G] and labels and gives all logits [B,h,w,G,K] at
once; and it gives them one after the other, as the sampler and the entropy coder need them, by

    start(batch_size, label) -> cache        before the first row
    row(cache, codes, i) -> cache            before the first code of every row i
    step(cache, codes, n) -> logits, cache   of code n, from the codes before it

where `codes` is the field so far, of which nothing from code n on is looked at.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

Codes = Int[Array | np.ndarray, "b h w g"]
Labels = Int[Array | np.ndarray, "b"] | None


@dataclass(frozen=True)
class Autoregressive:
    """p(codes | label) by `network`, or p(codes) if there are no classes: `num_classes` 0.

    With `label_dropout` above 0 that share of labels is left out in training, and the label `num_classes` means none.
    """

    network: Any
    num_classes: int
    label_dropout: float

    def init(self, key: Key[Array, ""], batch: dict) -> dict:
        """Draw {"params", "state"} for codes of the shape of a batch's."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (batch["codes"], batch["label"]))
        return {"params": self.network.lazy_init(key, shapes[0], self._known(shapes[1]))["params"], "state": ()}

    def loss(self, variables, batch: dict, key: Key[Array, ""]):
        """Give the training loss, nats per code, and (the next state, metrics)."""
        codes, label = batch["codes"], self._known(batch["label"])
        drop_key, label_key = jax.random.split(key)
        if label is not None and self.label_dropout:
            left_out = jax.random.bernoulli(label_key, self.label_dropout, label.shape)
            label = jnp.where(left_out, self.num_classes, label)
        logits = self.network.apply(
            {"params": variables["params"]}, codes, label, training=True, rngs={"dropout": drop_key}
        )
        loss = -jnp.mean(_log_prob_of_codes(logits, codes))
        return loss, ((), {"loss_nats": loss, "bits_per_code": loss / jnp.log(2.0)})

    def logits(self, variables, codes: Codes, label: Labels = None) -> Float[Array, "b h w g k"]:
        """All logits at once; without a label those of the label "none", if the prior knows labels."""
        return jnp.asarray(self.network.apply({"params": variables["params"]}, codes, self._or_none(label, len(codes))))

    def log_prob(self, variables, codes: Codes, label: Labels = None) -> Float[Array, "b"]:
        """Give log p(codes | label) in nats, all positions at once."""
        return jnp.sum(_log_prob_of_codes(self.logits(variables, codes, label), codes), axis=(1, 2, 3))

    def log_prob_of_classes(self, variables, codes: Codes) -> Float[Array, "b classes"]:
        """Give log p(codes | label) in nats under every class."""
        labels = jnp.arange(self.num_classes)
        found = jax.lax.map(lambda label: self.log_prob(variables, codes, jnp.full(len(codes), label)), labels)
        return found.T

    def marginal_log_prob(self, variables, codes: Codes, log_frequencies: Float[Array, "classes"]) -> Float[Array, "b"]:
        """Give log p(codes) in nats: of no label where training left some out, else log sum_y p(y) p(codes | y)."""
        if not self.num_classes or self.label_dropout:
            return self.log_prob(variables, codes)
        joint = self.log_prob_of_classes(variables, codes) + log_frequencies[None]
        return jax.nn.logsumexp(joint, axis=1)

    def start(self, variables, batch_size: int, label: Labels = None):
        """The cache before the first row."""
        return self._call("start", variables, batch_size, self._or_none(label, batch_size))

    def row(self, variables, cache, codes: Codes, i: Int[Array, ""]):
        """The cache before the first code of row `i`."""
        return self._call("row", variables, cache, codes, i)

    def step(self, variables, cache, codes: Codes, n: Int[Array, ""]):
        """The logits [B,K] of code `n`, and the cache."""
        return self._call("step", variables, cache, codes, n)

    def _call(self, method, variables, *arguments):
        return self.network.apply({"params": variables["params"]}, *arguments, method=method)

    def _known(self, label):
        return label if self.num_classes else None

    def _or_none(self, label, batch_size):
        if not self.num_classes or (label is None and not self.label_dropout):
            return None
        return jnp.full(batch_size, self.num_classes) if label is None else jnp.asarray(label)


def _log_prob_of_codes(logits, codes):
    chosen = jnp.take_along_axis(logits, jnp.asarray(codes)[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)
