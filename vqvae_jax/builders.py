"""From names and plain dicts to objects. A section's keys must be exactly the builder's keyword arguments."""

import inspect
from collections.abc import Callable, Mapping
from functools import partial

import optax

from vqvae_jax.data import images, sources
from vqvae_jax.errors import InputError, suggest
from vqvae_jax.models.autoencoder import Autoencoder
from vqvae_jax.models.gumbel import Gumbel
from vqvae_jax.models.likelihoods import LIKELIHOODS, SquaredError
from vqvae_jax.models.networks import Decoder, Encoder
from vqvae_jax.models.quantizer import NEW_CODE_SHARE
from vqvae_jax.models.trunk import Trunk
from vqvae_jax.models.vae import VAE
from vqvae_jax.models.vimco import Vimco
from vqvae_jax.models.vqvae import VQVAE
from vqvae_jax.priors import pixelcnn, transformer
from vqvae_jax.priors.autoregressive import Autoregressive


def pick(table: Mapping[str, Callable], name: str, what: str) -> Callable:
    """Look a name up in a table; an unknown one is an InputError that lists the known ones."""
    if name not in table:
        raise InputError(f"unknown {what} {name!r}: {suggest(str(name), table)}")
    return table[name]


def call(function: Callable, section: Mapping, what: str, **given):
    """Call `function` with a config section, whose keys must be its arguments (those in `given` aside)."""
    check_keys(section, set(inspect.signature(function).parameters) - set(given), what)
    return function(**section, **given)


def check_keys(section: Mapping, expected: set[str], what: str) -> None:
    """Raise InputError unless a section has exactly the keys that are expected."""
    for key in section:
        if key not in expected:
            raise InputError(f"unknown option {what}.{key}: {suggest(key, expected)}")
    missing = sorted(expected - set(section))
    if missing:
        raise InputError(f"the config lacks {', '.join(f'{what}.{key}' for key in missing)}")


def check(condition: bool, message: str) -> None:
    """Raise InputError with `message` unless `condition` holds."""
    if not condition:
        raise InputError(message)


# Sections that no builder takes as arguments: every key, and the lowest number it may have (None: no number).
SECTIONS = {
    "data": {"batch_size": 1, "flip": None, "num_threads": 0, "min_side": 1, "max_bad_images": 0},
    "train": {"num_steps": 1, "log_every": 1, "eval_every": 1, "checkpoint_every": 1},
    "prior": {"name": None, "features": 1, "layers": 1, "dropout": 0, "conditional": None, "label_dropout": 0}
    | {"codes": None, "batch_size": 1, "num_steps": 1, "log_every": 1, "eval_every": 1, "patience": 0}
    | {"optimizer": None},
    "eval": {"batch_size": 1, "validation_images": 0, "test_images": 0, "fit_images": 0, "final_fit_images": 0}
    | {"samples": 0, "subset_images": 0, "subset_samples": 0},
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
    check_prior(config["prior"])


def _trunk(
    features: int,
    *,
    image_shape,
    likelihood,
    hidden,
    residual_units,
    residual_blocks,
    downsamplings,
    pixel_mean,
    pixel_std,
) -> Trunk:
    """Build the networks that all families share; `features` is what the encoder gives a position."""
    height, width, channels = image_shape
    check(downsamplings >= 1, f"model.downsamplings is {downsamplings}: it must be at least 1")
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
    chosen = pick(LIKELIHOODS, likelihood, "likelihood")()
    width_arguments = {"hidden": hidden, "residual_units": residual_units, "residual_blocks": residual_blocks}
    return Trunk(
        encoder=Encoder(**width_arguments, downsamplings=downsamplings, features=features),
        decoder=Decoder(**width_arguments, upsamplings=downsamplings, features=chosen.channels(channels)),
        likelihood=chosen,
        pixel_mean=tuple(pixel_mean),
        pixel_std=tuple(pixel_std),
    )


MakeTrunk = Callable[[int], Trunk]


def _check_codes(codebook_size, num_codebooks, embedding_dim):
    check(embedding_dim >= 1, f"model.embedding_dim is {embedding_dim}: it must be at least 1")
    check(codebook_size >= 2, f"model.codebook_size is {codebook_size}: a codebook needs at least 2 codes")
    check(num_codebooks >= 1, f"model.num_codebooks is {num_codebooks}: it must be at least 1")


def _check_likelihood(trunk: Trunk, family: str) -> Trunk:
    """Give `trunk`; InputError if what is trained is squared error, on whose scale a rate would weigh anything."""
    check(
        not isinstance(trunk.likelihood, SquaredError),
        f"the family {family} needs a likelihood to weigh its rate against, and squared_error is none: "
        "choose e.g. model.likelihood=gaussian_channel",
    )
    return trunk


def _vqvae(
    *,
    trunk: MakeTrunk,
    codebook_size,
    num_codebooks,
    embedding_dim,
    commitment_cost,
    codebook_update,
    ema_decay,
    ema_epsilon,
    revival_threshold,
) -> VQVAE:
    _check_codes(codebook_size, num_codebooks, embedding_dim)
    check(
        0 <= revival_threshold < NEW_CODE_SHARE,
        f"model.revival_threshold is {revival_threshold}: it must be 0 (never) to below {NEW_CODE_SHARE}, "
        "where a code counts as new",
    )
    pick({"ema": bool, "gradient": bool}, codebook_update, "model.codebook_update")
    return VQVAE(
        trunk=trunk(num_codebooks * embedding_dim),
        codebook_size=codebook_size,
        num_codebooks=num_codebooks,
        embedding_dim=embedding_dim,
        commitment_cost=commitment_cost,
        codebook_update=codebook_update,
        ema_decay=ema_decay,
        ema_epsilon=ema_epsilon,
        revival_threshold=revival_threshold,
    )


def _autoencoder(*, trunk: MakeTrunk, latent_channels) -> Autoencoder:
    check(latent_channels >= 1, f"model.latent_channels is {latent_channels}: it must be at least 1")
    return Autoencoder(trunk(latent_channels), latent_channels)


def _vae(*, trunk: MakeTrunk, latent_channels) -> VAE:
    check(latent_channels >= 1, f"model.latent_channels is {latent_channels}: it must be at least 1")
    return VAE(_check_likelihood(trunk(2 * latent_channels), "vae"), latent_channels)


def _gumbel(*, trunk: MakeTrunk, codebook_size, num_codebooks, embedding_dim, temperature) -> Gumbel:
    _check_codes(codebook_size, num_codebooks, embedding_dim)
    check(temperature > 0, f"model.temperature is {temperature}: it must be above 0")
    networks = _check_likelihood(trunk(num_codebooks * codebook_size), "gumbel")
    return Gumbel(networks, codebook_size, num_codebooks, embedding_dim, temperature=temperature)


def _vimco(*, trunk: MakeTrunk, codebook_size, num_codebooks, embedding_dim, samples) -> Vimco:
    _check_codes(codebook_size, num_codebooks, embedding_dim)
    check(samples >= 2, f"model.samples is {samples}: VIMCO compares draws, so it needs at least 2")
    networks = _check_likelihood(trunk(num_codebooks * codebook_size), "vimco")
    return Vimco(networks, codebook_size, num_codebooks, embedding_dim, samples=samples)


FAMILIES = {"autoencoder": _autoencoder, "gumbel": _gumbel, "vae": _vae, "vimco": _vimco, "vqvae": _vqvae}


def build_model(section: Mapping, image_shape: tuple[int, int, int]):
    """Build a family from the config's `model` section for images of [H, W, C]."""
    options = dict(section)
    family = pick(FAMILIES, options.pop("family", ""), "family")
    shared = set(inspect.signature(_trunk).parameters) - {"features", "image_shape"}
    own = set(inspect.signature(family).parameters) - {"trunk"}
    check_keys(options, shared | own, "model")
    networks = {key: options.pop(key) for key in shared}
    return family(trunk=partial(_trunk, image_shape=tuple(image_shape), **networks), **options)


# A class-conditional prior is added up over up to this many classes.
MOST_CLASSES = 100


def _pixelcnn(field, codebook_size, num_labels, section) -> pixelcnn.Network:
    return pixelcnn.Network(field, codebook_size, num_labels, *(section[k] for k in ("features", "layers", "dropout")))


def _transformer(field, codebook_size, num_labels, section) -> transformer.Network:
    check(
        section["features"] % transformer.HEAD == 0,
        f"prior.features is {section['features']}: a transformer needs a multiple of {transformer.HEAD}",
    )
    return transformer.Network(
        field, codebook_size, num_labels, *(section[k] for k in ("features", "layers", "dropout"))
    )


PRIORS = {"pixelcnn": _pixelcnn, "transformer": _transformer}


def check_prior(section: Mapping) -> None:
    """Raise InputError unless the config's `prior` section names a known prior, or "none", with values in range."""
    pick({**PRIORS, "none": bool}, section["name"], "prior")
    pick({"fresh": bool, "cached": bool}, section["codes"], "prior.codes")
    for key in ("dropout", "label_dropout"):
        check(section[key] < 1, f"prior.{key} is {section[key]}: it must be at least 0 and below 1")
    build_optimizer(section["optimizer"], section["num_steps"])


def build_prior(section: Mapping, field: tuple[int, int, int], codebook_size: int, num_classes: int) -> Autoregressive:
    """Build a learned prior from the config's `prior` section, for codes [h, w, G] below `codebook_size`."""
    known = num_classes if section["conditional"] else 0
    share = section["label_dropout"] if known else 0.0
    check(
        known <= MOST_CLASSES or share > 0,
        f"a prior on {known} classes needs prior.label_dropout above 0, e.g. 0.1: over more than {MOST_CLASSES} "
        "classes it isn't added up, and the headline is that of no label",
    )
    network = pick(PRIORS, section["name"], "prior")(field, codebook_size, known + (share > 0), section)
    return Autoregressive(network, known, share)


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
