"""The two stages of training: the image model, and then, with it frozen, a prior over its codes (sec. 3.2 and 4)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from vqvae_jax import __version__, builders, checkpoint, metrics, plots, sharding
from vqvae_jax.api import Run
from vqvae_jax.data import batches
from vqvae_jax.data.images import ArraySource, Source
from vqvae_jax.errors import InputError
from vqvae_jax.evaluate import evaluate
from vqvae_jax.files import replacing
from vqvae_jax.learned import Learned
from vqvae_jax.metric_writer import MetricWriter
from vqvae_jax.train_step import TrainState

GRID_IMAGES = 8
CODED_AT_ONCE = 1024  # images
CODES = "codes.npz"
VALIDATED = ("bits_per_dim", "rate", "distortion", "psnr", "ssim", "perplexity", "codebook_usage")


class Stage(NamedTuple):
    """What the training loop has to know of a stage.

    `model` has `init(key, first)` and `loss(variables, batch, key)`; `options` are `num_steps`, `log_every`,
    `eval_every`, `checkpoint_every` and `patience`; `batches` gives those of a range of steps, on the devices; `first`
    picks of the first one what `init` needs; `validate` measures a state, records it and may give a score.
    """

    name: str
    model: Any
    optimizer: optax.GradientTransformation
    options: dict
    batches: Callable[[range], Iterator[dict]]
    first: Callable[[dict], Any]
    validate: Callable[[TrainState, int, MetricWriter], float | None]
    meta: dict


def _image_batches(config: dict, source: Source, size: int, mesh) -> Callable[[range], Iterator[dict]]:
    data, seed = config["data"], config["seed"]

    def from_source(steps: range):
        arrays = batches.train_batches(source, size, seed, data["flip"], steps, data["num_threads"])
        return (sharding.put_batch(batch, mesh) for batch in arrays)

    return from_source


def as_run(model, state: TrainState, meta: dict, fitted: dict | None = None) -> Run:
    """The image model as it is now, with what `fit` counted."""
    variables = {"params": state.params, "state": state.model_state, "fitted": fitted or {}}
    return Run(model, variables, {**meta, "step": int(state.step)})


def image_stage(config: dict, source: Source, validation: Source) -> Stage:
    """The image model: bits/dim with the unigram prior on validation images."""
    mesh = sharding.make_mesh()
    model = builders.build_model(config["model"], source.image_shape)
    meta = {
        "config": config,
        "class_names": list(source.class_names),
        "image_shape": list(source.image_shape),
        "data_fingerprint": source.fingerprint(),
        "images_removed": source.images_removed,
        "version": __version__,
    }

    def validate(state: TrainState, step: int, writer: MetricWriter) -> None:
        unfitted = as_run(model, state, meta)
        run = as_run(model, state, meta, unfitted.fit(source, config["eval"]["fit_images"]))
        result = evaluate(run, validation, config["eval"]["validation_images"])
        values = {f"eval/{key}": result[key] for key in VALIDATED if result.get(key) is not None}
        # `bad` counts since this process began.
        about = {"data/images_removed": source.images_removed, "data/bad_images": len(source.bad)}
        writer.scalars(step, values | about)
        images = validation.take(np.arange(min(GRID_IMAGES, len(validation))))
        images = images["image"][images["mask"]]
        if len(images):
            writer.image(step, "reconstructions", plots.image_grid([images, run.reconstruct(images)]))

    return Stage(
        name=checkpoint.MODEL,
        model=model,
        optimizer=builders.build_optimizer(config["optimizer"], config["train"]["num_steps"]),
        options={**config["train"], "patience": 0},
        batches=_image_batches(config, source, config["data"]["batch_size"], mesh),
        first=lambda batch: batch["image"],
        validate=validate,
        meta=meta,
    )


def prior_stage(config: dict, source: Source, validation: Source, run: Run, workdir: Path) -> Stage:
    """The prior over the codes of a finished `run`: bits per code on validation and on training images.

    Raises:
        InputError: the family has no codes, or the cache of codes isn't of this model and these images.
    """
    mesh, section = sharding.make_mesh(), config["prior"]
    prior = builders.build_prior(section, run.field, run.model.codebook_size, len(source.class_names))
    meta = {
        "config": config,
        "data_fingerprint": source.fingerprint(),
        "model_fingerprint": run.fingerprint(),
        "num_classes": len(source.class_names),
        "version": __version__,
    }
    counted = config["eval"]["validation_images"] or len(validation)
    known = {"eval": _codes_of(run, validation, counted), "eval_train": _codes_of(run, source, counted)}
    log_frequencies = class_frequencies(source)["log_class_frequencies"]

    def validate(state: TrainState, step: int, writer: MetricWriter) -> float:
        size = config["eval"]["batch_size"]
        learned = Learned(section["name"], prior, {"params": state.params}, log_frequencies, size)
        values = {}
        for name, (codes, labels) in known.items():
            nats = {"": -np.mean(learned.log_prob(codes), dtype=np.float64)}
            if prior.num_classes:  # which is no part of the bound
                nats["_given_label"] = -np.mean(learned.log_prob(codes, labels), dtype=np.float64)
            for suffix, value in nats.items():
                values[f"{name}/bits_per_code{suffix}"] = float(value / codes[0].size / np.log(2))
                values[f"{name}/rate{suffix}"] = float(metrics.nats_to_bits_per_dim(value, source.image_shape))
        writer.scalars(step, values)
        return -values["eval/bits_per_code"]

    def batches_of_codes(steps: range) -> Iterator[dict]:
        if section["codes"] == "fresh":
            images = _image_batches(config, source, section["batch_size"], mesh)(steps)
            return ({"codes": run.encode_on_devices(b["image"]), "label": b["label"]} for b in images)
        codes = cached_codes(run, source, workdir, config["data"]["flip"])
        arrays = batches.train_batches(
            codes, section["batch_size"], config["seed"], False, steps, config["data"]["num_threads"]
        )
        return (sharding.put_batch({"codes": b["image"], "label": b["label"]}, mesh) for b in arrays)

    return Stage(
        name=checkpoint.PRIOR,
        model=prior,
        optimizer=builders.build_optimizer(section["optimizer"], section["num_steps"]),
        options={key: section[key] for key in ("num_steps", "log_every", "eval_every", "patience")}
        | {"checkpoint_every": section["eval_every"]},
        batches=batches_of_codes,
        first=lambda batch: batch,
        validate=validate,
        meta=meta,
    )


def _codes_of(run: Run, source: Source, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and labels of the first images of a split."""
    taken = source.take(np.arange(min(num_images, len(source))))
    return run.encode(taken["image"][taken["mask"]]), taken["label"][taken["mask"]]


def cached_codes(run: Run, source: Source, workdir: Path, flip: bool) -> ArraySource:
    """The codes of all training images, and of their mirror images if `flip`, made once and kept in the run's folder.

    The file appears whole or not at all, and says which model and images it is of.

    Raises:
        InputError: it is of others, or training crops its images at random.
    """
    if source.crop_name != "none":
        raise InputError("codes of random crops differ every time, so they can't be kept: set prior.codes=fresh")
    path = workdir / CODES
    about = f"{run.fingerprint()} {source.fingerprint()} {flip}"
    if path.is_file():
        try:
            with np.load(path) as file:
                codes, labels, found = file["codes"], file["labels"], str(file["about"])
        except Exception as error:  # zipfile and NumPy have many
            raise InputError(f"{path} is damaged: delete it, and it is made again") from error
        if found != about:
            raise InputError(f"{path} has the codes of another model or other images: delete it, and it is made again")
        return _as_source(source, codes, labels)
    parts, labels = [], []
    steps = -(-len(source) // CODED_AT_ONCE)
    for batch in tqdm(batches.eval_batches(source, CODED_AT_ONCE), "codes of the training images", steps):
        images = batch["image"][batch["mask"]]
        for shown in (images, images[:, :, ::-1]) if flip else (images,):
            parts.append(run.encode(shown).astype(np.min_scalar_type(run.model.codebook_size - 1)))
            labels.append(batch["label"][batch["mask"]])
    codes, labels = np.concatenate(parts), np.concatenate(labels)
    with replacing(path) as file:
        np.savez(file, codes=codes, labels=labels, about=about)
    return _as_source(source, codes, labels)


def _as_source(source: Source, codes: np.ndarray, labels: np.ndarray) -> ArraySource:
    return ArraySource(source.name, source.split, codes.astype(np.int32), labels, source.class_names)


def class_frequencies(source: Source) -> dict[str, jax.Array]:
    """What a prior counts when it is done: log frequencies of the classes among training images, smoothed by one."""
    counts = np.bincount(source.labels, minlength=len(source.class_names)) + 1.0
    return {"log_class_frequencies": jnp.asarray(np.log(counts / counts.sum()), jnp.float32)}
