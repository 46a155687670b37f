"""A trained model on plain arrays: `load(RUN)`, then encode, decode, reconstruct and measure uint8 images."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vqvae_jax import builders, checkpoint, learned, metrics, sharding
from vqvae_jax.data import batches
from vqvae_jax.errors import InputError
from vqvae_jax.learned import Learned
from vqvae_jax.models import importance
from vqvae_jax.models.trunk import Bound
from vqvae_jax.priors import positionwise, uniform, unigram
from vqvae_jax.priors.ancestral import AS_TRAINED, Options

# Those that need nothing but counts of codes.
PRIORS = {"uniform": uniform, "unigram": unigram, "positionwise": positionwise}

# At the border wrong arrays get an error of their own, so these say less than they require.
Images = np.ndarray  # uint8 [N,H,W,C]
Latents = np.ndarray  # codes int32 [N,h,w,G], or float32 [N,h,w,c]


@partial(jax.jit, static_argnums=0)
def _encode(model, variables, images):
    return model.encode(variables, images)


@partial(jax.jit, static_argnums=0)
def _decode(model, variables, latents):
    return model.decode_mean(variables, latents)


@partial(jax.jit, static_argnums=0)
def _measure(model, variables, images, seeds):
    """Everything that is known of each image: nats [B], reconstruction measures [B], codes and reconstruction."""
    latents = model.encode(variables, images)  # XLA sees that `bound` needs the same
    x_recon = model.decode_mean(variables, latents)
    mse = metrics.mean_squared_error(x_recon, images)
    result = {"mse": mse, "psnr": metrics.psnr(mse), "ssim": metrics.ssim(x_recon, images), "x_recon": x_recon}
    if hasattr(model, "bound"):
        bound = model.bound(variables, images, importance.image_keys(seeds))
        result |= {"distortion": bound.distortion, f"rate/{model.prior_name}": bound.rate}
    else:
        result["distortion"] = model.trunk.distortion(variables, latents, images)
    if hasattr(model, "codebook_size"):
        result["codes"] = latents
    if "code_counts" in variables["fitted"]:
        for name, prior in PRIORS.items():
            result[f"rate/{name}"] = -prior.log_prob(prior.fit(variables["fitted"]["code_counts"]), latents)
    return result


@partial(jax.jit, static_argnums=0)
def _importance_bound(model, k, variables, images, seeds):
    return importance.importance_bound(model, variables, images, importance.image_keys(seeds), k)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _several_codes_bound(model, prior, num, variables, images):
    fitted = prior.fit(variables["fitted"]["code_counts"])
    return model.several_codes_bound(variables, images, partial(prior.log_prob, fitted), num)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _several_codes_learned(model, prior, num, learned, variables, images):
    def log_prior(codes):
        return prior.marginal_log_prob(learned[0], codes, learned[1])

    return model.several_codes_bound(variables, images, log_prior, num)


@partial(jax.jit, static_argnums=0)
def _fit_sums(model, variables, images, mask):
    return model.fit_sums(variables, images, mask)


@partial(jax.jit, static_argnums=(0, 3))
def _sample(model, variables, key, shape):
    return model.decode_mean(variables, model.sample_latents(variables, key, shape))


def _seeds(images: Images) -> np.ndarray:
    """Give every image a number of its own, so that its noise depends neither on its batch nor on its place."""
    return np.array([zlib.crc32(image.tobytes()) for image in images], np.uint32)


@dataclass(frozen=True)
class Run:
    """A model with its variables and what its checkpoint says: {"config", "class_names", "image_shape", "step"}."""

    model: Any
    variables: dict
    meta: dict
    learned: Learned | None = None

    @property
    def family(self) -> str:
        """The name of the model's family."""
        return self.meta["config"]["model"]["family"]

    @property
    def prior(self) -> str | None:
        """The name of the headline prior: a learned one, or unigram once codes are counted; None without a bound."""
        if self.learned is not None:
            return self.learned.name
        return "unigram" if "code_counts" in self.variables["fitted"] else getattr(self.model, "prior_name", None)

    def encode(self, images: Images) -> Latents:
        """Images uint8 [N,H,W,C] to code indices int32 [N,h,w,G], or latents float32 [N,h,w,c] of other families."""
        return self._map(partial(_encode, self.model), self._checked(images))

    def decode(self, latents: Latents) -> Images:
        """Code indices [N,h,w,G], 0 to K-1, or latents float [N,h,w,c], to images uint8 [N,H,W,C]."""
        latents = np.asarray(latents)
        if not hasattr(self.model, "codebook_size"):
            depth = self.model.latent_channels
            if latents.ndim != 4 or latents.shape[-1] != depth or not np.issubdtype(latents.dtype, np.floating):
                raise InputError(f"latents must be floats [N,h,w,{depth}], not {latents.dtype} {list(latents.shape)}")
            return self._map(partial(_decode, self.model), latents.astype(np.float32))
        groups, size = self.model.num_codebooks, self.model.codebook_size
        if latents.ndim != 4 or latents.shape[-1] != groups or not np.issubdtype(latents.dtype, np.integer):
            raise InputError(f"codes must be integers [N,h,w,{groups}], not {latents.dtype} {list(latents.shape)}")
        if latents.size and not 0 <= latents.min() <= latents.max() < size:
            raise InputError(f"codes must lie in 0..{size - 1}, not {latents.min()}..{latents.max()}")
        return self._map(partial(_decode, self.model), latents.astype(np.int32))

    def reconstruct(self, images: Images) -> Images:
        """Images through the latents and back, uint8 [N,H,W,C]."""
        return self.decode(self.encode(images))

    def bound(self, images: Images) -> Bound:
        """Rate (under `prior`) and distortion of every image, in nats, float32 [N]."""
        self._needs("bound", "has no p(z), so it has no bound and no bits/dim")
        measured = self.measure(images)
        return Bound(jax.numpy.asarray(measured[f"rate/{self.prior}"]), jax.numpy.asarray(measured["distortion"]))

    def bits_per_dim(self, images: Images) -> np.ndarray:
        """Upper bound on every image's negative log-likelihood in bits per sub-pixel, float64 [N].

        Raises:
            InputError: the family has no bound, or the model was trained with squared error and isn't finished.
        """
        if self.headline_samples > 1:
            nats = self.importance_bound(images, self.headline_samples)
        else:
            bound = self.bound(images)
            if np.isnan(bound.distortion).any():
                raise InputError("no bits/dim yet: the scale of squared error is fitted when the run is finished")
            nats = np.asarray(bound.rate, np.float64) + np.asarray(bound.distortion, np.float64)
        return nats * metrics.nats_to_bits_per_dim(1.0, tuple(np.shape(images)[1:]))

    @property
    def headline_samples(self) -> int:
        """Draws of the bound that is reported: 1, but for VIMCO, whose bound is one of several."""
        return getattr(self.model, "headline_samples", 1)

    def importance_bound(self, images: Images, k: int) -> np.ndarray:
        """Upper bound on every image's NLL in nats from `k` draws of the posterior, float64 [N] (Burda et al. 2016).

        Raises:
            InputError: the family draws nothing, or k is below 1.
        """
        self._needs("log_weight", "draws no latents, so it has no importance-weighted bound")
        if not isinstance(k, int) or not 1 <= k < 2**31:
            raise InputError(f"k is {k}: an importance-weighted bound needs a whole number of draws, at least 1")
        images = self._checked(images)
        function = partial(_importance_bound, self.model, np.int32(k))
        return self._map(function, images, _seeds(images)).astype(np.float64)

    def several_codes_bound(self, images: Images, num: int) -> np.ndarray:
        """Upper bound on every image's NLL in nats from `num` of the codes that could stand for it, float64 [N].

        Raises:
            InputError: the family has no such bound, the run isn't finished, or num is below 1.
        """
        self._needs("several_codes_bound", "chooses no code, so there are no other ones to count")
        if not isinstance(num, int) or num < 1:
            raise InputError(f"the number of codes is {num}: it must be a whole number, at least 1")
        if "code_counts" not in self.variables["fitted"]:
            raise InputError("the prior of the codes is fitted when the run is finished: train on first")
        if self.learned is None:
            function = partial(_several_codes_bound, self.model, unigram, num)
        else:
            of_prior = self.learned.variables, self.learned.log_class_frequencies
            function = partial(_several_codes_learned, self.model, self.learned.prior, num, of_prior)
        return self._map(function, self._checked(images)).astype(np.float64)

    def with_prior(self, learned: Learned | None) -> "Run":
        """The same run with a learned prior, or without."""
        return replace(self, learned=learned)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latents of images of the training size."""
        height, width, _ = self.meta["image_shape"]
        factor = 2**self.model.trunk.encoder.downsamplings
        return height // factor, width // factor

    @property
    def field(self) -> tuple[int, int, int]:
        """Rows and columns of codes, and codes per position, of images of the training size."""
        return *self.grid, self.model.num_codebooks

    def fingerprint(self) -> str:
        """A digest of all that turns images into codes and back."""
        return checkpoint.digest({"params": self.variables["params"], "state": self.variables["state"]})

    def encode_on_devices(self, images):
        """Encode a batch that lies on the devices already; the codes stay there."""
        return _encode(self.model, self.variables, images)

    def sample(
        self,
        num: int,
        seed: int = 0,
        labels: np.ndarray | None = None,
        options: Options = AS_TRAINED,
    ) -> Images:
        """Images uint8 [num,H,W,C] of codes that the learned prior draws, or of latents drawn from p(z).

        For an autoencoder they come from its ex-post Gaussian. `labels` int [num] are classes, for a prior that knows
        any; without them they are drawn as often as in training.

        Raises:
            InputError: there is nothing to draw from, or an option is out of range.
        """
        if num < 1:
            raise InputError(f"the number of samples is {num}: it must be at least 1")
        if hasattr(self.model, "sample_latents"):
            if labels is not None or options != AS_TRAINED:
                raise InputError(
                    f"the family {self.family} draws latents of no class at no temperature: leave these out"
                )
            if self.prior is None and not self.variables["fitted"]:
                raise InputError("the Gaussian of the latents is fitted when the run is finished: train on first")
            return np.asarray(_sample(self.model, self.variables, jax.random.key(seed), (num, *self.grid)))
        empty = np.zeros((num, *self.field), np.int32)
        return self.decode(self.trained_prior().sample(empty, seed=seed, labels=labels, options=options))

    def complete(
        self,
        images: Images,
        rows: int,
        seed: int = 0,
        labels: np.ndarray | None = None,
        options: Options = AS_TRAINED,
    ) -> Images:
        """Keep the codes of the upper `rows` rows of codes of every image, and draw the others from the learned prior.

        Raises:
            InputError: there is no learned prior, or the images aren't of the training size.
        """
        prior, codes = self.trained_prior(), self.encode(images)
        keep = rows * codes.shape[2] * codes.shape[3]
        return self.decode(prior.sample(codes, keep=keep, seed=seed, labels=labels, options=options))

    def trained_prior(self) -> Learned:
        """Give the learned prior; InputError if there is none."""
        if self.learned is None:
            raise InputError("this run has no learned prior to draw codes from: train one, e.g. prior.name=pixelcnn")
        return self.learned

    def measure(self, images: Images, labels: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """All measures of every image, rows in the order of `images`: see `_measure`, and the learned prior's rates."""
        images = self._checked(images)
        result = self._map(partial(_measure, self.model), images, _seeds(images))
        if self.learned is not None:
            result[f"rate/{self.learned.name}"] = -self.learned.log_prob(result["codes"])
            if labels is not None and self.learned.prior.num_classes:
                result["rate_given_label"] = -self.learned.log_prob(result["codes"], labels)
        return result

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

    def _needs(self, method: str, otherwise: str) -> None:
        if not hasattr(self.model, method):
            raise InputError(f"the family {self.family} {otherwise}")

    def _checked(self, images):
        images = np.asarray(images)
        channels, factor = self.meta["image_shape"][2], 2**self.model.trunk.encoder.downsamplings
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
            raise InputError(f"images must be uint8 [N,H,W,{channels}], not {images.dtype} {list(images.shape)}")
        if 0 in images.shape[1:3] or images.shape[1] % factor or images.shape[2] % factor:
            raise InputError(
                f"images of {images.shape[1]}x{images.shape[2]} do not fit: sides must be multiples of {factor}"
            )
        check_support(self.model, images)
        return images

    def _batch_size(self, num_images: int) -> int:
        return sharding.batch_for(num_images, self.meta["config"]["eval"]["batch_size"])

    def _map(self, function: Callable, *arrays: np.ndarray):
        """Apply a batch function of variables and rows to any number of rows of some arrays."""
        return sharding.map_rows(partial(function, self.variables), self._batch_size(len(arrays[0])), *arrays)


def check_support(model, images: Images) -> None:
    """Raise InputError if the images have levels to which the likelihood gives no probability."""
    support = model.trunk.likelihood.support()
    if len(support) < 256 and not np.isin(images, support).all():
        levels = ", ".join(map(str, support))
        raise InputError(f"this likelihood is for images of the levels {levels} alone: choose another model.likelihood")


def load_model(workdir: str | Path, data_dir: str | None = None) -> Run:
    """Load a run's image model without a learned prior; see `load`."""
    if not checkpoint.folder(workdir).is_dir():
        raise InputError(f"no run in {workdir}: train first, or name another folder with --workdir")
    with checkpoint.open_manager(workdir, read_only=True) as manager:
        step = checkpoint.latest_step(manager, workdir)
        meta = checkpoint.read_meta(manager, step)
        builders.check_config(meta["config"])
        if data_dir is not None:
            meta["config"]["data"]["data_dir"] = data_dir
        model = builders.build_model(meta["config"]["model"], tuple(meta["image_shape"]))
        images = jax.ShapeDtypeStruct((1, *meta["image_shape"]), np.uint8)
        abstract = sharding.everywhere(jax.eval_shape(model.init, jax.random.key(0), images))
        return Run(model, checkpoint.restore_variables(manager, step, abstract), meta)


def load(workdir: str | Path, data_dir: str | None = None) -> Run:
    """Load a run's newest checkpoint, which carries its own config, and its prior if one was trained to its end.

    Args:
        workdir: the run's folder, e.g. "runs/cifar10".
        data_dir: where its data set lies now, if it moved.

    Raises:
        InputError: there is no checkpoint, or the prior is of another image model.
    """
    run = load_model(workdir, data_dir)
    if not hasattr(run.model, "codebook_size"):
        return run
    return run.with_prior(learned.load(workdir, run.fingerprint(), run.field, run.model.codebook_size))
