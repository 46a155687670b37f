"""Symbols to bytes and back under given probabilities: the only home of constriction, and of how it counts.

What codes symbols calls `code` of an `Encoder` with them, or of a `Decoder`, which gives those that were coded.

Probabilities become integer frequencies (of 2^24, none of them 0) in one place, inside constriction's `Categorical`;
the same float32 numbers give the same frequencies on both sides, others give noise.
"""

import constriction
import numpy as np

from vqvae_jax.errors import InputError

_STREAM = constriction.stream  # pyright: ignore - made by its compiled half
_MODEL = _STREAM.model.Categorical(perfect=False)
WORD = 4  # bytes
LEAST = np.float32(2**-24)  # what every symbol gets besides its probability
SLACK = 1.01


def _is_news(probabilities: np.ndarray) -> bool:
    """Tell whether there is anything to code: a symbol that is the only one takes no bits."""
    return len(probabilities) > 0 and probabilities.shape[-1] > 1


class Encoder:
    """Collects symbols; `finish` gives the bytes."""

    knows_symbols = True

    def __init__(self):
        self._coder = _STREAM.queue.RangeEncoder()

    def code(self, probabilities: np.ndarray, symbols: np.ndarray) -> np.ndarray:
        """Add integers [n], each with its probabilities float32 [n,size]; give them back."""
        if _is_news(probabilities):
            rows = np.ascontiguousarray(probabilities, np.float32)
            self._coder.encode(np.ascontiguousarray(symbols, np.int32), _MODEL, rows)
        return symbols

    def finish(self) -> bytes:
        """Give all that was put in."""
        return self._coder.get_compressed().astype("<u4").tobytes()


class Decoder:
    """Gives symbols back in the order in which they were put; other bytes give other symbols, or an InputError."""

    knows_symbols = False

    def __init__(self, data: bytes):
        words = np.frombuffer(data[: len(data) // WORD * WORD], "<u4").astype(np.uint32)
        self._coder = _STREAM.queue.RangeDecoder(words)
        # Beyond its end a stream goes on for ever; what was taken must not cost more than it has.
        self._bits_left = SLACK * 8 * len(data) + 256

    def code(self, probabilities: np.ndarray, symbols: object = None) -> np.ndarray:
        """Give the next integers int32 [n], from the probabilities float32 [n,size] with which they were put."""
        if not _is_news(probabilities):
            return np.zeros(len(probabilities), np.int32)
        rows = np.ascontiguousarray(probabilities, np.float32)
        try:
            found = self._coder.decode(_MODEL, rows)
        except (AssertionError, ValueError) as error:
            raise InputError("this file is damaged: its stream was not made with this run's probabilities") from error
        chosen = np.take_along_axis(rows, found[:, None], axis=1)
        self._bits_left += float(np.sum(np.log2(chosen + LEAST), dtype=np.float64))
        if self._bits_left < 0:
            raise InputError("this file is damaged: its stream is shorter than what it is said to hold")
        return found


Coder = Encoder | Decoder
