"""What a prior over codes is: p(codes), or p(codes | label), one code after the other in the order row, column, g.

`variables` are {"params", "state", "fitted"}; `codes` [B,h,w,G] in `row` and `step` are the field so far, of which
nothing from code n on is looked at. `priors.ancestral` draws from any of them.
"""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

Codes = Int[Array | np.ndarray, "b h w g"]
Labels = Int[Array | np.ndarray, "b"] | None


@runtime_checkable
class Prior(Protocol):
    """The contract of every prior, counted or learned; an object is a frozen dataclass without arrays."""

    @property
    def codebook_sizes(self) -> tuple[int, ...]: ...  # K of each code of a position

    @property
    def num_classes(self) -> int: ...  # that labels may name; 0: it knows none

    @property
    def label_dropout(self) -> float: ...  # above 0 the label `num_classes` means none

    def log_prob(self, variables, codes: Codes, label: Labels = None) -> Float[Array, "b"]:
        """Give log p(codes | label) in nats; without a label log p(codes), summed over classes."""
        ...

    def start(self, variables, batch_size: int, label: Labels = None):
        """Give the cache before the first row."""

    def row(self, variables, cache, codes: Codes, i: Int[Array, ""] | int):
        """Give the cache before the first code of row `i`."""

    def step(self, variables, cache, codes: Codes, n: Int[Array, ""] | int) -> tuple[Float[Array, "b k"], Any]:
        """Give the logits of code `n` of the field, from the codes before it, and the cache."""
        ...
