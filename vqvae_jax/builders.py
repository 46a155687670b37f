"""From names and plain dicts to objects. A section's keys must be exactly the builder's keyword arguments."""

import inspect
from collections.abc import Callable, Mapping

import optax

from vqvae_jax.data import images, sources
from vqvae_jax.errors import InputError, suggest
from vqvae_jax.models.likelihoods import LIKELIHOODS
from vqvae_jax.models.networks import Decoder, Encoder
from vqvae_jax.models.quantizer import NEW_CODE_SHARE
from vqvae_jax.models.vqvae import VQVAE


def pick(table: Mapping[str, Callable], name: str, what: str) -> Callable:
    """Look a name up in a table; an unknown one is an InputError that lists the known ones."""
    if name not in table:
        raise InputError(f"unknown {what} {name!r}: {suggest(str(name), table)}")
    return table[name]


def call(function: Callable, section: Mapping, what: str, **given):
    """Call `function` with a config section, whose keys must be its arguments (those in `given` aside)."""
    expected = set(inspect.signature(function).parameters) - set(given)
    for key in section:
        if key not in expected:
            raise InputError(f"unknown option {what}.{key}: {suggest(key, expected)}")
    missing = sorted(expected - set(section))
    if missing:
        raise InputError(f"the config lacks {', '.join(f'{what}.{key}' for key in missing)}")
    return function(**section, **given)


def check(condition: bool, message: str) -> None:
    """Raise InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


# Sections that no builder takes as arguments: every key, and the lowest number it may have (None: no number).
SECTIONS = {
    "data": {"batch_size": 1, "flip": None, "num_threads": 0, "min_side": 1, "max_bad_images": 0},
    "train": {"num_steps": 1, "log_every": 1, "eval_every": 1, "checkpoint_every": 1},
    "eval": {"batch_size": 1, "validation_images": 0, "test_images": 0, "fit_images": 0, "final_fit_images": 0},
    "logging": {"tensorboard": None},
}


def check_config(config: Mapping) -> None:
    """Raise InputError unless the sections that nothing is built from have their keys, and numbers in range."""
    check(config["seed"] >= 0, f"seed is {config['seed']}: it must be at least 0")
    for section, lowest in SECTIONS.items():
        known = {*lowest, *(SOURCE_KEYS if section == "data" else ())}
        for key in config[section]:
            check(key in known, f"unknown option {section}.{key}: {suggest(key, known)}")
        for key, low in lowest.items():
            check(key in config[section], f"the config lacks {section}.{key}")
            value = config[section][key]
            check(low is None or value >= low, f"{section}.{key} is {value}: it must be at least {low}")


def _vqvae(
    *,
    image_shape,
    likelihood,
    hidden,
    residual_units,
    residual_blocks,
    downsamplings,
    codebook_size,
    num_codebooks,
    embedding_dim,
    commitment_cost,
    codebook_update,
    ema_decay,
    ema_epsilon,
    revival_threshold,
    pixel_mean,
    pixel_std,
) -> VQVAE:
    height, width, channels = image_shape
    check(codebook_size >= 2, f"model.codebook_size is {codebook_size}: a codebook needs at least 2 codes")
    check(num_codebooks >= 1, f"model.num_codebooks is {num_codebooks}: it must be at least 1")
    check(downsamplings >= 1, f"model.downsamplings is {downsamplings}: it must be at least 1")
    check(
        0 <= revival_threshold < NEW_CODE_SHARE,
        f"model.revival_threshold is {revival_threshold}: it must be 0 (never) to below {NEW_CODE_SHARE}, "
        "where a code counts as new",
    )
    for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
        check(
            len(values) in (1, channels),
            f"model.{name} has {len(values)} values, the images have {channels} channels: "
            f"give {' or '.join(map(str, sorted({1, channels})))}",
        )
    factor = 2**downsamplings
    check(
        height % factor == 0 and width % factor == 0,
        f"images of {height}x{width} cannot be halved {downsamplings} times: sides must be multiples of {factor}",
    )
    pick({"ema": bool, "gradient": bool}, codebook_update, "model.codebook_update")
    likelihood = pick(LIKELIHOODS, likelihood, "likelihood")()
    width_arguments = {"hidden": hidden, "residual_units": residual_units, "residual_blocks": residual_blocks}
    return VQVAE(
        encoder=Encoder(**width_arguments, downsamplings=downsamplings, features=num_codebooks * embedding_dim),
        decoder=Decoder(**width_arguments, upsamplings=downsamplings, features=likelihood.channels(channels)),
        likelihood=likelihood,
        codebook_size=codebook_size,
        num_codebooks=num_codebooks,
        embedding_dim=embedding_dim,
        commitment_cost=commitment_cost,
        codebook_update=codebook_update,
        ema_decay=ema_decay,
        ema_epsilon=ema_epsilon,
        revival_threshold=revival_threshold,
        pixel_mean=tuple(pixel_mean),
        pixel_std=tuple(pixel_std),
    )


FAMILIES = {"vqvae": _vqvae}


def build_model(section: Mapping, image_shape: tuple[int, int, int]):
    """Build a family from the config's `model` section for images of [H, W, C]."""
    options = dict(section)
    family = pick(FAMILIES, options.pop("family", ""), "family")
    return call(family, options, "model", image_shape=tuple(image_shape))


OPEN_KEYS = ("name", "data_dir")
SIZE_KEYS = ("image_size", "channels", "crop_scale", "eval_crop", "min_side", "max_bad_images")
SOURCE_KEYS = (*OPEN_KEYS, *SIZE_KEYS)


def build_source(section: Mapping, split: str) -> images.Source:
    """Build one split ("train", "validation" or "test") of the data set that the `data` section names."""
    for key in SOURCE_KEYS:
        check(key in section, f"the config lacks data.{key}")
    opened = pick(sources.SOURCES, section["name"], "dataset")(split, section["data_dir"])
    return images.prepare_split(opened, **{key: section[key] for key in SIZE_KEYS})


def _constant(learning_rate, warmup_steps, num_steps):
    return optax.constant_schedule(learning_rate)


def _cosine(learning_rate, warmup_steps, num_steps):
    return optax.cosine_decay_schedule(learning_rate, max(1, num_steps - warmup_steps))


SCHEDULES = {"constant": _constant, "cosine": _cosine}


def _adam(*, learning_rate, schedule, warmup_steps, num_steps):
    rate = pick(SCHEDULES, schedule, "optimizer.schedule")(learning_rate, warmup_steps, num_steps)
    if warmup_steps:
        rate = optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup_steps), rate], [warmup_steps])
    return optax.adam(rate)


OPTIMIZERS = {"adam": _adam}


def build_optimizer(section: Mapping, num_steps: int) -> optax.GradientTransformation:
    """Build the optimizer of the config's `optimizer` section; a schedule ends at `num_steps`."""
    options = dict(section)
    optimizer = pick(OPTIMIZERS, options.pop("name", ""), "optimizer")
    return call(optimizer, options, "optimizer", num_steps=num_steps)
