"""The first stage of training: the image model (sec. 3 of van den Oord et al. 2017)."""

from collections.abc import Iterator

import numpy as np
from jax import Array

from vqvae_jax import registry
from vqvae_jax.data.splits import Source
from vqvae_jax.errors import InputError
from vqvae_jax.evaluation import plots
from vqvae_jax.evaluation.evaluate import evaluate
from vqvae_jax.run import Run
from vqvae_jax.training import checkpoint, sharding
from vqvae_jax.training.feed import on_devices, patches
from vqvae_jax.training.record import MetricWriter
from vqvae_jax.training.step import Stage, TrainOptions, TrainState, step_key

GRID_IMAGES = 8
VALIDATED = ("bits_per_dim", "rate", "distortion", "psnr", "ssim", "perplexity", "codebook_usage")


class ImageStage(Stage):
    """The image model: bits/dim with the unigram prior on validation images."""

    name, section, record = checkpoint.MODEL, "train", ""

    def __init__(self, config: dict, source: Source, validation: Source):
        """Build the model for the images of `source`; InputError if they or the config do not allow it."""
        about = {"class_names": list(source.class_names), "image_shape": list(source.image_shape)}
        super().__init__(config, source, images_removed=source.images_removed, **about)
        self.validation = validation
        self.options = TrainOptions(**config["train"])
        sharding.check_batch_size("data.batch_size", config["data"]["batch_size"])
        self.model = registry.build_model(config["model"], source.image_shape)
        height, width, channels = source.image_shape
        side = config["data"]["patch_size"]
        if side is not None:
            if not 1 <= side <= min(height, width):
                raise InputError(f"data.patch_size is {side}: it must be 1 to {min(height, width)} for these images")
            self.model.trunk.grid(side, side)
            height = width = side
        features = self.model.likelihood.features(channels)
        sharding.check_batch_fits("data.batch_size", config["data"]["batch_size"], height * width * features)
        self.optimizer = registry.build_optimizer(config["optimizer"], self.options.num_steps)

    def batches(self, steps: range) -> Iterator[dict]:
        data = self.config["data"]
        made = on_devices(self.name, self.config, self.source, data["batch_size"], data["flip"], steps)
        if data["patch_size"] is None:
            return made
        keys = (step_key(self.config["seed"], "patches", step) for step in steps)
        return (patches(batch, key, data["patch_size"]) for batch, key in zip(made, keys, strict=True))

    def first(self, batch: dict) -> Array:
        return batch["image"]

    def validate(self, state: TrainState, writer: MetricWriter) -> None:
        source, step = self.source, int(state.step)
        run = self._as_run(state, self._as_run(state, {}).fit(source, self.config["eval"]["fit_images"]))
        result = evaluate(run, self.validation, self.config["eval"]["validation_images"])
        values = {f"eval/{key}": result[key] for key in VALIDATED if result.get(key) is not None}
        # `bad` counts since this process began.
        values |= {"data/images_removed": source.images_removed, "data/bad_images": len(source.bad)}
        writer.scalars(step, values)
        taken = self.validation.take(np.arange(min(GRID_IMAGES, len(self.validation))))
        images = taken["image"][taken["mask"]]
        if len(images):
            writer.image(step, "reconstructions", plots.image_grid([images, run.reconstruct(images)]))

    def count(self, state: TrainState) -> dict:
        print("counting on the training images", flush=True)
        return self._as_run(state, {}).fit(self.source, self.config["eval"]["final_fit_images"])

    def _as_run(self, state: TrainState, fitted: dict) -> Run:
        measured = state.measured()
        variables = {"params": measured["params"], "state": measured["model_state"], "fitted": fitted}
        return Run(self.model, variables, {**self.meta, "step": int(state.step)})
