"""A trained model on plain arrays: `load(RUN)`, then encode, decode, reconstruct and measure uint8 images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqvae_jax import builders, checkpoint, metrics, sharding
from vqvae_jax.data import batches
from vqvae_jax.errors import InputError
from vqvae_jax.models.vqvae import Bound
from vqvae_jax.priors import uniform, unigram

PRIORS = {"uniform": uniform, "unigram": unigram}

# At the border wrong arrays get an error of their own, so these say less than they require.
Images = np.ndarray  # uint8 [N,H,W,C]
Codes = np.ndarray  # int32 [N,h,w,G]


@partial(jax.jit, static_argnums=0)
def _encode(model, variables, images):
    return model.encode(variables, images)


@partial(jax.jit, static_argnums=0)
def _decode(model, variables, codes):
    return model.decode_mean(variables, codes)


@partial(jax.jit, static_argnums=0)
def _measure(model, variables, images):
    """Everything that is known of each image: nats [B], reconstruction measures [B], codes and reconstruction."""
    bound = model.bound(variables, images)
    codes = model.encode(variables, images)  # XLA sees that `bound` needs the same
    x_recon = model.decode_mean(variables, codes)
    mse = metrics.mean_squared_error(x_recon, images)
    result = {
        "distortion": bound.distortion,
        "rate/uniform": bound.rate,
        "mse": mse,
        "psnr": metrics.psnr(mse),
        "ssim": metrics.ssim(x_recon, images),
        "codes": codes,
        "x_recon": x_recon,
    }
    if "code_counts" in variables["fitted"]:
        for name, prior in PRIORS.items():
            result[f"rate/{name}"] = -prior.log_prob(prior.fit(variables["fitted"]["code_counts"]), codes)
    return result


@partial(jax.jit, static_argnums=0)
def _fit_sums(model, variables, images, mask):
    return model.fit_sums(variables, images, mask)


@dataclass(frozen=True)
class Run:
    """A model with its variables and what its checkpoint says: {"config", "class_names", "image_shape", "step"}."""

    model: Any
    variables: dict
    meta: dict

    @property
    def prior(self) -> str:
        """The name of the headline prior: unigram once the run is done, else uniform."""
        return "unigram" if "code_counts" in self.variables["fitted"] else "uniform"

    def encode(self, images: Images) -> Codes:
        """Images uint8 [N,H,W,C] to code indices int32 [N,h,w,G]."""
        return self._map(partial(_encode, self.model), self._checked(images))

    def decode(self, codes: Codes) -> Images:
        """Code indices [N,h,w,G], 0 to K-1, to images uint8 [N,H,W,C]."""
        codes = np.asarray(codes)
        groups, size = self.model.num_codebooks, self.model.codebook_size
        if codes.ndim != 4 or codes.shape[-1] != groups or not np.issubdtype(codes.dtype, np.integer):
            raise InputError(f"codes must be integers [N,h,w,{groups}], not {codes.dtype} {list(codes.shape)}")
        if codes.size and not 0 <= codes.min() <= codes.max() < size:
            raise InputError(f"codes must lie in 0..{size - 1}, not {codes.min()}..{codes.max()}")
        return self._map(partial(_decode, self.model), codes.astype(np.int32))

    def reconstruct(self, images: Images) -> Images:
        """Images through the codes and back, uint8 [N,H,W,C]."""
        return self.measure(images)["x_recon"]

    def bound(self, images: Images) -> Bound:
        """Rate (under `prior`) and distortion of every image, in nats, float32 [N]."""
        measured = self.measure(images)
        return Bound(jax.numpy.asarray(measured[f"rate/{self.prior}"]), jax.numpy.asarray(measured["distortion"]))

    def bits_per_dim(self, images: Images) -> np.ndarray:
        """Upper bound on every image's negative log-likelihood in bits per sub-pixel, float64 [N].

        Raises:
            InputError: the model was trained with squared error and its run isn't finished.
        """
        bound = self.bound(images)
        if np.isnan(bound.distortion).any():
            raise InputError("no bits/dim yet: the scale of squared error is fitted when the run is finished")
        nats = np.asarray(bound.rate, np.float64) + np.asarray(bound.distortion, np.float64)
        return nats * metrics.nats_to_bits_per_dim(1.0, tuple(np.shape(images)[1:]))

    def measure(self, images: Images) -> dict[str, np.ndarray]:
        """All measures of every image, rows in the order of `images`: see `_measure`."""
        return self._map(partial(_measure, self.model), self._checked(images))

    def fit(self, source, num_images: int = 0) -> dict:
        """Count on training images (0: all) what the model can't learn by gradient; see `model.fit`."""
        total, mesh = None, sharding.make_mesh()
        size = self._batch_size(len(source))
        for batch in batches.eval_batches(source, size, num_images):
            batch = sharding.put_batch(batch, mesh)
            sums = _fit_sums(self.model, self.variables, batch["image"], batch["mask"])
            sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sums)
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        return self.model.fit(jax.tree.map(lambda x: jax.numpy.asarray(x, jax.numpy.float32), total))

    def _checked(self, images):
        images = np.asarray(images)
        channels, factor = self.meta["image_shape"][2], 2**self.model.encoder.downsamplings
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
            raise InputError(f"images must be uint8 [N,H,W,{channels}], not {images.dtype} {list(images.shape)}")
        if 0 in images.shape[1:3] or images.shape[1] % factor or images.shape[2] % factor:
            raise InputError(
                f"images of {images.shape[1]}x{images.shape[2]} do not fit: sides must be multiples of {factor}"
            )
        return images

    def _batch_size(self, num_images: int) -> int:
        """The config's batch, or for few images the next power of two, a multiple of the devices either way."""
        devices = jax.device_count()
        wanted = min(self.meta["config"]["eval"]["batch_size"], 1 << max(0, num_images - 1).bit_length())
        return -(-wanted // devices) * devices

    def _map(self, function: Callable, rows: np.ndarray):
        """Apply a batch function to any number of rows, in batches of one size."""
        size, mesh, results = self._batch_size(len(rows)), sharding.make_mesh(), []
        for start in range(0, max(1, len(rows)), size):
            chunk = rows[start : start + size]
            padded = np.concatenate([chunk, np.zeros((size - len(chunk), *rows.shape[1:]), rows.dtype)])
            result = function(self.variables, sharding.put_batch(padded, mesh))
            length = len(chunk)
            results.append(jax.tree.map(lambda x, n=length: np.asarray(x)[:n], result))
        return jax.tree.map(lambda *parts: np.concatenate(parts), *results)


def load(workdir: str | Path, data_dir: str | None = None) -> Run:
    """Load a run's newest checkpoint, which carries its own config.

    Args:
        workdir: the run's folder, e.g. "runs/cifar10".
        data_dir: where its data set lies now, if it moved.

    Raises:
        InputError: there is no checkpoint.
    """
    if not checkpoint.folder(workdir).is_dir():
        raise InputError(f"no run in {workdir}: train first, or name another folder with --workdir")
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        step = checkpoint.latest_step(manager, workdir)
        meta = checkpoint.read_meta(manager, step)
        if data_dir is not None:
            meta["config"]["data"]["data_dir"] = data_dir
        model = builders.build_model(meta["config"]["model"], tuple(meta["image_shape"]))
        images = jax.ShapeDtypeStruct((1, *meta["image_shape"]), np.uint8)
        abstract = jax.eval_shape(model.init, jax.random.key(0), images)
        everywhere = sharding.replicated(sharding.make_mesh())
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), abstract)
        return Run(model, checkpoint.restore_variables(manager, step, abstract), meta)
