"""A trained model on plain arrays: `load(RUN)`, then encode, decode, measure, sample and complete uint8 images."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vqvae_jax import registry
from vqvae_jax.data import batches
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation import bounds, metrics
from vqvae_jax.memory import at_once
from vqvae_jax.models.interface import Bound
from vqvae_jax.priors import trained
from vqvae_jax.priors.ancestral import AS_TRAINED, Options
from vqvae_jax.priors.counted import Counted
from vqvae_jax.priors.trained import TrainedPrior
from vqvae_jax.training import checkpoint, sharding
from vqvae_jax.training.sharding import compiled

# Wrong arrays get an error of their own, so these types say less than is required.
Images = np.ndarray  # uint8 [N,H,W,C]
PIXELS_AT_ONCE = 2**17  # that a CPU draws: the probabilities of all their levels are in memory
Latents = np.ndarray  # codes int32 [N,h,w,G], or float32 [N,h,w,c]
Labels = np.ndarray | None  # classes int [N]


def _draw_images(variables, seed, latents, numbers, *, model):
    return model.draw_images(variables, trained.row_keys(seed, "pixels", numbers), latents)


def _seeds(images: Images) -> np.ndarray:
    """Give every image a number of its own, so that its noise depends neither on its batch nor on its place."""
    return np.array([zlib.crc32(image.tobytes()) for image in images], np.uint32)


@dataclass(frozen=True)
class Run:
    """A model with its variables and what its checkpoint says: {"config", "class_names", "image_shape", "step"}.

    Methods raise InputError where the family or an unfinished run can't do what is asked, or arrays do not fit.
    """

    model: Any
    variables: dict
    meta: dict
    learned: TrainedPrior | None = None

    @property
    def family(self) -> str:
        """The name of the model's family."""
        return self.meta["config"]["model"]["family"]

    @property
    def prior(self) -> str | None:
        """The name of the headline prior: a learned one, or unigram once codes are counted; None without a bound."""
        if self.learned is not None:
            return self.learned.name
        return "unigram" if "code_counts" in self.variables["fitted"] else self.model.prior_name

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of latents of images of the training size."""
        return self.model.trunk.grid(*self.meta["image_shape"][:2])

    @property
    def field(self) -> tuple[int, int, int]:
        """Rows and columns of codes, and codes per position, of images of the training size."""
        return *self.grid, len(self.model.codebook_sizes)

    def encode(self, images: Images) -> Latents:
        """Images uint8 [N,H,W,C] to code indices int32 [N,h,w,G], or latents float32 [N,h,w,c] of other families."""
        return self._map(self.model.encode, (self._checked(images),))

    def decode(self, latents: Latents) -> Images:
        """Code indices [N,h,w,G], 0 to K-1, or latents float [N,h,w,c], to images uint8 [N,H,W,C]."""
        return self._map(self.model.decode, (self._checked_latents(latents),))

    def reconstruct(self, images: Images) -> Images:
        """Images through the latents and back, uint8 [N,H,W,C]."""
        return self.decode(self.encode(images))

    def bound(self, images: Images) -> Bound:
        """Rate (under `prior`) and distortion of every image, in nats, float32 [N]."""
        self._needs(self.model.has_bound, "has no p(z), so it has no bound and no bits/dim")
        measured = self.measure(images)
        return Bound(jnp.asarray(measured[f"rate/{self.prior}"]), jnp.asarray(measured["distortion"]))

    def bits_per_dim(self, images: Images) -> np.ndarray:
        """Upper bound on every image's negative log-likelihood in bits per sub-pixel, float64 [N].

        For a family that draws its latents (VAE, Gumbel-softmax, VIMCO) it is one in expectation. Images may be of any
        size that the network takes; it is an InputError if a learned prior is of another one, if there is no bound, or
        if a model of squared error isn't finished.
        """
        if self.model.headline_samples > 1:
            nats = self.importance_bound(images, self.model.headline_samples)
        else:
            rate, distortion = np.asarray(self.bound(images), np.float64)
            self._needs_scale()
            nats = rate + distortion
        return nats * metrics.nats_to_bits_per_dim(1.0, tuple(np.shape(images)[1:]))

    def importance_bound(self, images: Images, k: int) -> np.ndarray:
        """Bound on every image's NLL in nats from `k` draws of the posterior, in expectation, float64 [N]."""
        self._needs(self.model.draws_posterior, "draws no latents, so it has no importance-weighted bound")
        _check_count(k, "an importance-weighted bound needs a whole number of draws")
        rows = self._checked(images), _seeds(images)
        return self._map(bounds.importance_bound, rows, np.int32(k), model=self.model).astype(np.float64)

    def several_codes_bound(self, images: Images, num: int) -> np.ndarray:
        """Upper bound on every image's NLL in nats from `num` of the codes that could stand for it, float64 [N]."""
        self._needs(self.model.has_distances, "has no distances to other codes, so there are none to count")
        _check_count(num, "a sum over codes needs a whole number of them")
        if "code_counts" not in self.variables["fitted"]:
            raise InputError("the prior of the codes is fitted when the run is finished: train on first")
        images, (prior, of_prior) = self._checked(images), self.code_prior()
        if self.learned is not None:
            self.learned.check_field((*self.model.trunk.grid(*images.shape[1:3]), self.field[2]))
        constants = {"model": self.model, "prior": prior, "num": num}
        return self._map(bounds.several_codes_bound, (images,), of_prior, **constants).astype(np.float64)

    def code_prior(self) -> tuple[Any, Any]:
        """Give the headline prior over codes and its variables: the learned one, unigram, or uniform."""
        if self.learned is not None:
            return self.learned.prior, self.learned.variables
        counts = self.variables["fitted"].get("code_counts")
        prior = Counted("uniform" if counts is None else "unigram", self.model.codebook_sizes)
        return prior, prior.fit(counts)

    def with_prior(self, learned: TrainedPrior | None) -> "Run":
        """The same run with another learned prior, or without."""
        return replace(self, learned=learned)

    def trained_prior(self) -> TrainedPrior:
        """Give the learned prior; InputError if there is none."""
        if self.learned is None:
            raise InputError("this run has no learned prior to draw codes from: train one, e.g. prior.name=pixelcnn")
        return self.learned

    def fingerprint(self) -> str:
        """A digest of all that turns images into codes and back."""
        return checkpoint.digest({"params": self.variables["params"], "state": self.variables["state"]})

    def sample(
        self, num: int, seed: int = 0, labels: Labels = None, options: Options = AS_TRAINED, pixels: str = "mean"
    ) -> Images:
        """Images uint8 [num,H,W,C] of codes that the learned prior draws, or of latents drawn from p(z).

        For an autoencoder they come from its ex-post Gaussian. `labels` int [num] are classes, for a prior that knows
        any; without them they are drawn as often as in training. `pixels` are the "mean" of P(x | z), or a "sample".
        """
        if num < 1:
            raise InputError(f"the number of samples is {num}: it must be at least 1")
        to_images = registry.pick({"mean": self.decode, "sample": partial(self.draw, seed=seed)}, pixels, "pixels")
        if not self.model.samples_latents:
            empty = np.zeros((num, *self.field), np.int32)
            latents = self.trained_prior().sample(empty, seed=seed, labels=labels, options=options)
        elif labels is not None or options != AS_TRAINED:
            raise InputError(f"the family {self.family} draws latents of no class at no temperature: leave these out")
        else:
            key = jax.random.key(seed)
            latents = sharding.whole(compiled(self.model.sample_latents, self.variables, key, shape=(num, *self.grid)))
        return to_images(latents)

    def draw(self, latents: Latents, seed: int = 0) -> Images:
        """Draw images from P(x | z) of latents, uint8 [N,H,W,C]; `decode` gives its mean."""
        self._needs_scale()
        rows = self._checked_latents(latents), np.arange(len(latents), dtype=np.uint32)
        pixels = int(np.prod(rows[0].shape[1:3])) * self.model.trunk.factor**2
        size = sharding.batch_for(max(1, at_once(PIXELS_AT_ONCE) // pixels), self._batch_size(len(latents)))
        function = partial(compiled, _draw_images, self.variables, np.uint32(seed % 2**32), model=self.model)
        return sharding.map_rows(function, size, *rows)

    def complete(
        self, images: Images, rows: int, seed: int = 0, labels: Labels = None, options: Options = AS_TRAINED
    ) -> Images:
        """Keep the codes of the upper `rows` rows of codes of images, and draw the others from the learned prior."""
        prior, codes = self.trained_prior(), self.encode(images)
        if not 0 <= rows <= codes.shape[1]:
            raise InputError(f"{rows} rows of codes can't be kept: these images have {codes.shape[1]}")
        keep = rows * codes.shape[2] * codes.shape[3]
        return self.decode(prior.sample(codes, keep=keep, seed=seed, labels=labels, options=options))

    def measure(self, images: Images, labels: Labels = None) -> dict[str, np.ndarray]:
        """All measures of every image, in the order of `images`: see `bounds.measure`, and the learned prior's rates.

        It is an InputError if that prior is of images of another size.
        """
        result = self._map(bounds.measure, (self._checked(images), _seeds(images)), model=self.model)
        if self.learned is not None:
            result[f"rate/{self.learned.name}"] = -self.learned.log_prob(result["codes"])
            if labels is not None and self.learned.num_classes:
                result["rate_given_label"] = -self.learned.log_prob(result["codes"], labels)
        return result

    def fit(self, source, num_images: int = 0) -> dict:
        """Count on training images (0: all) what the model can't learn by gradient; sums over batches are float64."""
        total = None
        for batch in batches.eval_batches(source, self._batch_size(len(source)), num_images):
            batch = sharding.put_batch(batch)
            sums = compiled(self.model.fit_sums, self.variables, batch["image"], batch["mask"])
            sums = jax.tree.map(lambda x: np.asarray(x, np.float64), sharding.whole(sums))
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), self.model.fit(total))

    def _needs(self, able: bool, otherwise: str) -> None:
        if not able:
            raise InputError(f"the family {self.family} {otherwise}")

    def _needs_scale(self) -> None:
        if self.model.likelihood.objective != "distortion" and "likelihood" not in self.variables["fitted"]:
            raise InputError("no P(x | z) yet: the scale of squared error is fitted when the run is finished")

    def _checked(self, images: Images) -> Images:
        images, channels = np.asarray(images), self.meta["image_shape"][2]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != channels:
            raise InputError(f"images must be uint8 [N,H,W,{channels}], not {images.dtype} {list(images.shape)}")
        self.model.trunk.grid(*images.shape[1:3])
        check_support(self.model, images)
        return images

    def _checked_latents(self, latents: Latents) -> Latents:
        latents = np.asarray(latents)
        if self.model.latents == "codes":
            depth, kind, dtype, what = self.field[2], np.integer, np.int32, "codes must be integers"
        else:
            depth, kind, dtype, what = self.model.latent_channels, np.floating, np.float32, "latents must be floats"
        if latents.ndim != 4 or latents.shape[-1] != depth or not np.issubdtype(latents.dtype, kind):
            raise InputError(f"{what} [N,h,w,{depth}], not {latents.dtype} {list(latents.shape)}")
        if kind is np.integer and not ((latents >= 0) & (latents < self.model.codebook_sizes)).all():
            most = max(self.model.codebook_sizes) - 1
            raise InputError(f"codes must lie in 0..{most}, not {latents.min()}..{latents.max()}")
        return latents.astype(dtype)

    def _batch_size(self, num_images: int) -> int:
        return sharding.batch_for(num_images, self.meta["config"]["eval"]["batch_size"])

    def _map(self, function: Callable, rows: tuple[np.ndarray, ...], *arrays, **constants):
        """Apply a function of variables, other arrays and a batch to any number of rows."""
        function = partial(compiled, function, self.variables, *arrays, **constants)
        return sharding.map_rows(function, self._batch_size(len(rows[0])), *rows)


def _check_count(count: int, what: str) -> None:
    if isinstance(count, bool) or not isinstance(count, Integral) or not 1 <= count < 2**31:
        raise InputError(f"{what}, at least 1, not {count}")


def check_support(model, images: Images) -> None:
    """Raise InputError if the images have levels to which the likelihood gives no probability."""
    levels = model.likelihood.levels
    if len(levels) < 256 and not np.isin(images, levels).all():
        known = ", ".join(map(str, levels))
        raise InputError(f"this likelihood is for images of the levels {known} alone: choose another model.likelihood")


def load_model(workdir: str | Path, data_dir: str | None = None, step: int | None = None) -> Run:
    """Load a run's image model without a learned prior; see `load`."""
    read = partial(_read_model, data_dir=data_dir)
    run = checkpoint.read_newest(read, workdir) if step is None else read(checkpoint.of_step(workdir, step))
    if run is None:
        what = "checkpoint" if checkpoint.folder(workdir).is_dir() else "run"
        raise InputError(f"no {what} in {workdir}: train first, or name another folder with --workdir")
    return run


def _read_model(path: Path, data_dir: str | None) -> Run:
    meta = checkpoint.read_meta(path)
    if data_dir is not None:
        meta["config"]["data"]["data_dir"] = data_dir
    model = registry.build_model(meta["config"]["model"], tuple(meta["image_shape"]))
    images = jax.ShapeDtypeStruct((1, *meta["image_shape"]), np.uint8)
    abstract = sharding.everywhere(jax.eval_shape(model.init, jax.random.key(0), images))
    averaged = meta["config"]["train"]["average_decay"] > 0
    run = Run(model, checkpoint.restore_variables(path, abstract, averaged), meta)
    if not run.variables["fitted"]:
        checkpoint.check_finished(path, "train")
    return run


def load(workdir: str | Path, data_dir: str | None = None, step: int | None = None) -> Run:
    """Load a run's newest checkpoint, which carries its own config, and its prior if one was trained to its end.

    `workdir` is the run's folder, e.g. "runs/cifar10", and `data_dir` where its data set lies now, if it moved. `step`
    names a checkpoint of the image model, which comes without a learned prior. What is damaged is an InputError.
    """
    with checkpoint.offering_others(workdir):
        run = load_model(workdir, data_dir, step)
        if step is not None or not run.model.takes_prior:
            return run
        return run.with_prior(trained.load(workdir, run.fingerprint(), run.field, run.model.codebook_sizes))
