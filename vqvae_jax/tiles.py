"""Tiles of images to bits and back: codes under the prior, pixels under P(x | z), both sides by the same programs.

Every image is cut into tiles of the training size, its edge repeated where it ends; pixels beyond the edge are not
coded. Tiles go through in batches of one fixed size, so that encoder and decoder run the same programs on the same
shapes: a whole pass would round differently from the steps, and the stream would be noise.
"""

import hashlib
import importlib.metadata
import math
import os
import platform
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vqvae_jax import __version__
from vqvae_jax.api import Run
from vqvae_jax.codec.entropy import Decoder, Encoder
from vqvae_jax.errors import InputError
from vqvae_jax.learned import Learned
from vqvae_jax.priors import unigram

BATCH = 32  # tiles
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "constriction")
SETTINGS = ("XLA_FLAGS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_ENABLE_X64", "JAX_DISABLE_MOST_OPTIMIZATIONS")


def environment() -> bytes:
    """Give 8 bytes that are equal where programs are compiled to the same arithmetic."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    cpu = [
        next((line for line in lines if line.startswith(key)), platform.processor()) for key in ("model name", "flags")
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = [__version__, *(importlib.metadata.version(name) for name in LIBRARIES)]
    devices = jax.devices()[0].device_kind, jax.device_count()
    about = (cpu, cores, platform.machine(), devices, versions, [os.environ.get(name) for name in SETTINGS])
    return hashlib.blake2b(repr(about).encode(), digest_size=8).digest()


def fingerprint(run: Run) -> bytes:
    """Give 8 bytes that say which image model and prior a file needs."""
    digest = hashlib.blake2b(run.fingerprint().encode(), digest_size=8)
    fitted = jax.tree.leaves(run.variables["fitted"])
    learned = jax.tree.leaves(run.learned.variables["params"]) if run.learned else []
    for array in (*fitted, *learned):
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


class Tile(NamedTuple):
    """How much of a piece of an image is real, and its class; `pixels` uint8 [H,W,C] are of the training size."""

    height: int
    width: int
    label: int
    pixels: np.ndarray = np.zeros(0, np.uint8)  # not known when decoding


@partial(jax.jit, static_argnums=0)
def _row(prior, variables, cache, codes, i):
    return prior.row(variables, cache, codes, i)


@partial(jax.jit, static_argnums=0)
def _step(prior, variables, cache, codes, n):
    logits, cache = prior.step(variables, cache, codes, n)
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1), cache


@partial(jax.jit, static_argnums=0)
def _start(prior, variables, label):
    return prior.start(variables, len(label), label if prior.num_classes else None)


@partial(jax.jit, static_argnums=0)
def _decode(model, variables, codes):
    return model.decode(variables, codes)


@partial(jax.jit, static_argnums=(0, 3))
def _pmf(likelihood, params, image, channel):
    return likelihood.pmf(params, image, channel)


Choose = Callable[[int, np.ndarray], np.ndarray]  # number, probabilities [B,...,size] -> symbols [B,...]


def codes_by_table(table: np.ndarray, codes: np.ndarray, choose: Choose) -> None:
    """Fill codes [B,h,w,G] in their order, each with the probabilities float32 [h*w*G,K] that stand in a table."""
    for n, place in enumerate(np.ndindex(codes.shape[1:])):
        codes[(slice(None), *place)] = choose(n, np.broadcast_to(table[n], (len(codes), table.shape[1])))


def codes_by_steps(learned: Learned, labels: np.ndarray, codes: np.ndarray, choose: Choose) -> None:
    """Fill codes [B,h,w,G] in their order, each with the probabilities that the codes before it give."""
    prior, variables = learned.prior, learned.variables
    cache = _start(prior, variables, labels)
    for n, (i, j, g) in enumerate(np.ndindex(codes.shape[1:])):
        if j == g == 0:
            cache = _row(prior, variables, cache, codes, i)
        probabilities, cache = _step(prior, variables, cache, codes, n)
        codes[:, i, j, g] = choose(n, np.asarray(probabilities))


class TileCoder:
    """The programs that encoder and decoder share."""

    def __init__(self, run: Run):
        """Refuse a run that has no codes, or isn't finished."""
        if not hasattr(run.model, "codebook_size"):
            raise InputError(f"the family {run.family} has no codes to store: choose a run of another family")
        if not run.variables["fitted"]:
            raise InputError("this run isn't finished: train on first")
        self.run, self.shape = run, tuple(run.meta["image_shape"])
        self.batch_size = max(1, min(BATCH, BATCH * 32 * 32 // (self.shape[0] * self.shape[1])))

    def codes(self, labels: np.ndarray, choose: Choose) -> np.ndarray:
        """Go through a batch's codes: `choose` gets the number and the probabilities [B,K] of each."""
        codes = np.zeros((self.batch_size, *self.run.field), np.int32)
        if self.run.learned:
            codes_by_steps(self.run.learned, labels, codes, choose)
        else:
            codes_by_table(self._table(), codes, choose)
        return codes

    def _table(self) -> np.ndarray:
        """Probabilities float32 [codes of a tile,K] of a prior that was counted, or is uniform."""
        counts, size = self.run.variables["fitted"].get("code_counts"), self.run.model.codebook_size
        logs = unigram.fit(counts) if counts is not None else jnp.full((1, size), -math.log(size))
        return np.exp(np.broadcast_to(logs, (*self.run.field, size))).reshape(-1, size)

    def pixels(self, codes: np.ndarray, choose: Choose) -> np.ndarray:
        """Go through the channels of a batch: `choose` gets the number and the probabilities [B,H,W,256] of each."""
        likelihood = self.run.model.trunk.likelihood
        params = _decode(self.run.model, self.run.variables, codes)
        images = np.zeros((self.batch_size, *self.shape), np.uint8)
        for channel in range(self.shape[2]):
            images[..., channel] = choose(channel, np.asarray(_pmf(likelihood, params, images, channel)))
        return images


def encode_tiles(coder: TileCoder, tiles: list[Tile], encoder: Encoder, lossy: bool) -> np.ndarray:
    """Code one batch of at most `batch_size` tiles; give them as they will be decoded, uint8 [n,H,W,C]."""
    number, pixels = len(tiles), np.zeros((coder.batch_size, *coder.shape), np.uint8)
    pixels[:number] = np.stack([tile.pixels for tile in tiles])
    known = coder.run.encode(pixels)
    flat = known.reshape(coder.batch_size, -1)

    def put_code(n, probabilities):
        encoder.put(flat[:number, n], probabilities[:number])
        return flat[:, n]

    codes = coder.codes(_labels(coder, tiles), put_code)
    if lossy:
        return coder.run.decode(codes)[:number]
    real = _real(coder, tiles)

    def put_channel(channel, probabilities):
        encoder.put(pixels[..., channel][real], probabilities[real])
        return pixels[..., channel]

    return coder.pixels(codes, put_channel)[:number]


def decode_tiles(coder: TileCoder, tiles: list[Tile], decoder: Decoder, lossy: bool) -> np.ndarray:
    """Undo `encode_tiles`, of whose tiles the sizes and labels are given."""
    number = len(tiles)

    def take_code(n, probabilities):
        symbols = np.zeros(coder.batch_size, np.int32)
        symbols[:number] = decoder.take(probabilities[:number])
        return symbols

    codes = coder.codes(_labels(coder, tiles), take_code)
    if lossy:
        return coder.run.decode(codes)[:number]
    real = _real(coder, tiles)

    def take_channel(channel, probabilities):
        levels = np.zeros(real.shape, np.uint8)
        levels[real] = decoder.take(probabilities[real])
        return levels

    return coder.pixels(codes, take_channel)[:number]


def _labels(coder, tiles):
    labels = np.zeros(coder.batch_size, np.int32)
    labels[: len(tiles)] = [tile.label for tile in tiles]
    return labels


def _real(coder, tiles) -> np.ndarray:
    """Which pixels [B,H,W] are coded: those of tiles, and within these those of the image."""
    real = np.zeros((coder.batch_size, *coder.shape[:2]), bool)
    for row, tile in enumerate(tiles):
        real[row, : tile.height, : tile.width] = True
    return real


def corners(height: int, width: int, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Give where the tiles of an image begin, row by row."""
    return [(top, left) for top in range(0, height, shape[0]) for left in range(0, width, shape[1])]


def cut(image: np.ndarray, shape: tuple[int, ...], label: int) -> Iterator[Tile]:
    """Cut an image uint8 [h,w,C] into tiles, its edge repeated beyond it."""
    for top, left in corners(image.shape[0], image.shape[1], shape):
        piece = image[top : top + shape[0], left : left + shape[1]]
        height, width = piece.shape[:2]
        padded = np.pad(piece, ((0, shape[0] - height), (0, shape[1] - width), (0, 0)), mode="edge")
        yield Tile(height, width, label, padded)


def crc(image: np.ndarray) -> int:
    """Give the CRC-32 of an image's pixels."""
    return zlib.crc32(np.ascontiguousarray(image).data)
