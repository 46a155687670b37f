"""The second stage of training: a prior over the codes of a finished image model (sec. 3.2 and 4)."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from vqvae_jax import registry
from vqvae_jax.data.image_files import replacing
from vqvae_jax.data.splits import ArraySource, Source
from vqvae_jax.errors import InputError, at_least
from vqvae_jax.evaluation import metrics
from vqvae_jax.priors.trained import TrainedPrior
from vqvae_jax.run import Run
from vqvae_jax.training import checkpoint, processes, sharding
from vqvae_jax.training.feed import on_devices
from vqvae_jax.training.record import MetricWriter
from vqvae_jax.training.sharding import compiled
from vqvae_jax.training.step import Stage, TrainState, check_average_decay

CODES = "codes.npz"


@dataclass(frozen=True)
class PriorOptions:
    """The config's section `prior`: a network, how it is trained, and on which `codes`."""

    name: str
    features: int
    layers: int
    dropout: float
    conditional: bool
    label_dropout: float
    codes: str
    batch_size: int
    num_steps: int
    log_every: int
    eval_every: int
    patience: int
    average_decay: float
    optimizer: dict
    checkpoint_every = property(lambda self: self.eval_every)

    def __post_init__(self):
        positive = ("features", "layers", "batch_size", "num_steps", "log_every", "eval_every")
        at_least("prior", **{key: (getattr(self, key), 1) for key in positive})
        at_least("prior", **{key: (getattr(self, key), 0) for key in ("dropout", "label_dropout", "patience")})
        for key in ("dropout", "label_dropout"):
            if getattr(self, key) >= 1:
                raise InputError(f"prior.{key} is {getattr(self, key)}: it must be below 1")
        check_average_decay("prior", self.average_decay)
        registry.pick({"fresh": bool, "cached": bool}, self.codes, "prior.codes")


def check_prior(config: dict, model, source: Source) -> None:
    """Raise InputError unless a prior can be trained on the codes of a model."""
    options = registry.build(PriorOptions, config["prior"], "prior")
    if not model.takes_prior:
        raise InputError(f"the family {config['model']['family']} takes no learned prior: set prior.name=none")
    if options.codes == "cached" and source.crop_name != "none":
        raise InputError("codes of random crops differ every time, so they can't be kept: set prior.codes=fresh")
    sharding.check_batch_size("prior.batch_size", options.batch_size)
    registry.build_optimizer(options.optimizer, options.num_steps)
    field = 1, 1, len(model.codebook_sizes)
    registry.build_prior(config["prior"], field, model.codebook_sizes, len(source.class_names))


class PriorStage(Stage):
    """The prior over the codes of a finished `run`: bits per code on validation and on training images."""

    name, section, record = checkpoint.PRIOR, "prior", "prior"

    def __init__(self, config: dict, source: Source, validation: Source, run: Run, workdir: Path):
        """Build the prior of a config that `check_prior` has found right."""
        num_classes = len(source.class_names)
        of_model = {"model_fingerprint": run.fingerprint(), "model_step": run.meta["step"]}
        super().__init__(config, source, num_classes=num_classes, **of_model)
        self.run, self.workdir, self.splits = run, workdir, {"eval": validation, "eval_train": source}
        self.options = PriorOptions(**config["prior"])
        self.optimizer = registry.build_optimizer(self.options.optimizer, self.options.num_steps)
        logits = int(np.prod(run.field)) * max(run.model.codebook_sizes)
        sharding.check_batch_fits("prior.batch_size", self.options.batch_size, logits)
        self.model = registry.build_prior(config["prior"], run.field, run.model.codebook_sizes, num_classes)
        # Log frequencies of the classes among training images, smoothed by one.
        counts = np.bincount(source.labels, minlength=num_classes) + 1.0
        self.fitted = {"log_class_frequencies": jnp.asarray(np.log(counts / counts.sum()), jnp.float32)}

    @cached_property
    def known(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Codes and labels of the first images of both splits, as many as are validated on."""
        number, found = self.config["eval"]["validation_images"] or len(self.splits["eval"]), {}
        for name, split in self.splits.items():
            pairs = [
                (self.run.encode(batch["image"][batch["mask"]]), batch["label"][batch["mask"]])
                for batch in sharding.whole_batches(split, number)
            ]
            found[name] = tuple(map(np.concatenate, zip(*pairs, strict=True)))
        return found

    def batches(self, steps: range) -> Iterator[dict]:
        data, fresh = self.config["data"], self.options.codes == "fresh"
        images = self.source if fresh else cached_codes(self.run, self.source, self.workdir, data["flip"])
        what = images, self.options.batch_size, data["flip"] and fresh, steps
        for batch in on_devices(self.name, self.config, *what):
            codes = compiled(self.run.model.encode, self.run.variables, batch["image"]) if fresh else batch["image"]
            yield {"codes": codes, "label": batch["label"]}

    def validate(self, state: TrainState, writer: MetricWriter) -> float:
        variables, values = {"params": state.measured()["params"], "fitted": self.fitted}, {}
        learned = TrainedPrior(self.options.name, self.model, variables, self.config["eval"]["batch_size"])
        kinds = ("", "_given_label") if self.model.num_classes else ("",)  # the second is no part of the bound
        for (name, (codes, labels)), kind in itertools.product(self.known.items(), kinds):
            nats = -np.mean(learned.log_prob(codes, labels if kind else None), dtype=np.float64)
            values[f"{name}/bits_per_code{kind}"] = float(nats / codes[0].size / np.log(2))
            values[f"{name}/rate{kind}"] = float(metrics.nats_to_bits_per_dim(nats, self.source.image_shape))
        writer.scalars(int(state.step), values)
        return -values["eval/bits_per_code"]

    def count(self, state: TrainState) -> dict:
        return self.fitted


def cached_codes(run: Run, source: Source, workdir: Path, flip: bool) -> ArraySource:
    """The codes of all training images, and of their mirror images if `flip`, made once and kept in the run's folder.

    The file appears whole or not at all, and says which model and images it is of.

    Raises:
        InputError: it is of others.
    """
    path = workdir / CODES
    about = f"{run.fingerprint()} {source.fingerprint()} {flip}"
    if not path.is_file():
        dtype, parts = np.min_scalar_type(max(run.model.codebook_sizes) - 1), []
        total = -(-len(source) // sharding.IMAGES_AT_ONCE)
        for batch in tqdm(sharding.whole_batches(source), "codes of the training images", total):
            images, labels = batch["image"][batch["mask"]], batch["label"][batch["mask"]]
            for shown in (images, images[:, :, ::-1]) if flip else (images,):
                parts.append((run.encode(shown).astype(dtype), labels))
        codes, labels = map(np.concatenate, zip(*parts, strict=True))
        if jax.process_index() == 0:
            with replacing(path) as file:
                np.savez(file, codes=codes, labels=labels, about=about, digest=checkpoint.digest([codes, labels]))
        processes.barrier("codes")
    try:
        with np.load(path) as file:
            codes, labels, found = file["codes"], file["labels"], str(file["about"])
            if "digest" in file and str(file["digest"]) != checkpoint.digest([codes, labels]):  # earlier ones have none
                raise ValueError("other codes")
    except Exception as error:  # zipfile and NumPy have many
        raise InputError(f"{path} is damaged: delete it, and it is made again") from error
    if found != about:
        raise InputError(f"{path} has the codes of another model or other images: delete it, and it is made again")
    return ArraySource(source.name, source.split, codes.astype(np.int32), labels, source.class_names)
