"""Tiles of images to bits and back: codes under the prior, pixels under P(x | z), both sides by the same programs.

Every image is cut into tiles of the training size; the encoder network sees its edge repeated where it ends. Pixels
beyond the edge are not coded, and are 0 to a likelihood that looks at earlier pixels. Tiles go through in batches of
one fixed size, so that encoder and decoder run the same programs on the same shapes: a whole pass would round
differently from the steps, and the stream would be noise.
"""

import itertools
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vqvae_jax.codec.entropy import Coder
from vqvae_jax.errors import InputError
from vqvae_jax.run import Run
from vqvae_jax.training.sharding import compiled

BATCH = 32  # tiles, on every machine: another number rounds differently, and would be another format


def _start(variables, label, *, prior):
    return prior.start(variables, len(label), label)


def _step(variables, cache, codes, n, *, prior):
    logits, cache = prior.step(variables, cache, codes, n)
    return jax.nn.softmax(logits.astype(jnp.float32), axis=-1), cache


class Picture(NamedTuple):
    """An image or a tile of one: pixels uint8 [height,width,C], of which a decoder needs the shape alone; its class."""

    pixels: np.ndarray
    label: int


class TileCoder:
    """The programs that encoder and decoder share; `shape` is that of a tile."""

    def __init__(self, run: Run):
        """Refuse a run that has no codes, or isn't finished."""
        if run.model.latents != "codes":
            raise InputError(f"the family {run.family} has no codes to store: choose a run of another family")
        if not run.variables["fitted"]:
            raise InputError("this run isn't finished: train on first")
        self.run, self.shape = run, tuple(run.meta["image_shape"])
        self.prior, self.variables = run.code_prior()
        self.batch_size = max(1, min(BATCH, BATCH * 32 * 32 // (self.shape[0] * self.shape[1])))

    def parts(self, height: int, width: int) -> list[tuple[slice, slice]]:
        """Give the part of an image that each of its tiles shows, row by row."""
        tall, wide, _ = self.shape
        corners = itertools.product(range(0, height, tall), range(0, width, wide))
        return [np.s_[top : top + tall, left : left + wide] for top, left in corners]

    def padded(self, pixels: np.ndarray) -> np.ndarray:
        """Repeat the edge of a part of an image, to the size of a tile."""
        beyond = [(0, size - known) for size, known in zip(self.shape, pixels.shape, strict=True)]
        return np.pad(pixels, beyond, mode="edge")

    def code_labels(self, labels: list[int], coder: Coder) -> list[int]:
        """Code the classes of images, each as if drawn with the class frequencies of training."""
        frequencies = np.exp(np.asarray(self.variables["fitted"]["log_class_frequencies"]))[None]
        return [int(coder.code(frequencies, np.array([label]))[0]) for label in labels]

    def code(
        self, pictures: Iterator[Picture], shapes: list[tuple[int, int]], coder: Coder, *, lossy: bool, title: str
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Code pictures, or codes alone, in either direction: give the CRC-32 (see `container`) and pixels of each.

        `shapes` are height and width of each; `title` stands before a bar.
        """
        tiles, total = self._coded(pictures, coder, lossy), sum(len(self.parts(*shape)) for shape in shapes)
        with tqdm(desc=title, total=total, unit=" tiles") as bar:
            for shape in shapes:
                image, crc = np.zeros((*shape, self.shape[2]), np.uint8), 0
                for part, (codes, pixels) in zip(self.parts(*shape), tiles, strict=False):
                    image[part] = pixels[tuple(map(slice, image[part].shape))]
                    crc = zlib.crc32(codes.astype("<i4").tobytes(), crc)
                    bar.update()
                yield crc if lossy else zlib.crc32(image.data), image

    def cut(self, picture: Picture) -> Iterator[Picture]:
        """Give the tiles of a picture, smaller where it ends."""
        for part in self.parts(*picture.pixels.shape[:2]):
            yield Picture(picture.pixels[part], picture.label)

    def _coded(self, pictures: Iterator[Picture], coder: Coder, lossy: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Code tiles batch by batch; give the codes [h,w,G] and pixels [H,W,C] of each."""
        tiles = itertools.chain.from_iterable(map(self.cut, pictures))
        for batch in iter(lambda: list(itertools.islice(tiles, self.batch_size)), []):
            rows, labels = len(batch), np.zeros(self.batch_size, np.int32)
            labels[:rows] = [tile.label for tile in batch]
            known = np.zeros((self.batch_size, *self.run.field), np.int32)
            if coder.knows_symbols:
                shown = np.zeros((self.batch_size, *self.shape), np.uint8)
                shown[:rows] = [self.padded(tile.pixels) for tile in batch]
                known = self.run.encode(shown)
            codes = self._codes(known[:rows], labels, coder)
            pixels = self.run.decode(codes) if lossy else self._pixels(codes, batch, coder)
            yield from zip(codes[:rows], pixels, strict=False)

    def _codes(self, known: np.ndarray, labels: np.ndarray, coder: Coder) -> np.ndarray:
        """Code the codes [rows,h,w,G] of tiles in their order; give them in a full batch."""
        codes, rows = np.zeros((self.batch_size, *known.shape[1:]), np.int32), len(known)
        cache = compiled(_start, self.variables, labels, prior=self.prior)
        for n, (i, j, g) in enumerate(np.ndindex(codes.shape[1:])):
            if j == g == 0:
                cache = compiled(self.prior.row, self.variables, cache, codes, np.int32(i))
            probabilities, cache = compiled(_step, self.variables, cache, codes, np.int32(n), prior=self.prior)
            codes[:rows, i, j, g] = coder.code(np.asarray(probabilities)[:rows], known[:, i, j, g])
        return codes

    def _pixels(self, codes: np.ndarray, tiles: list[Picture], coder: Coder) -> np.ndarray:
        """Code the pixels of tiles, given a full batch of codes, in the order of the likelihood."""
        height, width, channels = self.shape
        # A row and a column more than a tile has: there lies the padding of a step.
        images = np.zeros((self.batch_size, height + 1, width + 1, channels), np.uint8)
        known, real = np.zeros_like(images), np.zeros(images.shape[:3], bool)
        for n, tile in enumerate(tiles):
            inside = (n, *map(slice, tile.pixels.shape[:2]))
            real[inside], known[inside] = True, tile.pixels
        model, likelihood = self.run.model, self.run.model.likelihood
        features = compiled(model.features, self.run.variables, codes)
        params = model.likelihood_params(self.run.variables)
        for places in likelihood.order(height, width):
            at = (slice(None), *places.T)
            coded, pixels = real[at], images[at]
            q = compiled(likelihood.at, params, features, images[:, :height, :width], places)
            for channel in range(channels):
                probabilities = np.asarray(compiled(likelihood.pmf, q, pixels, channel=channel))
                pixels[coded, channel] = coder.code(probabilities[coded], known[at][coded, channel])
            images[at] = pixels
        return images[:, :height, :width]
