"""From names and plain dicts to objects. A section's keys must be exactly the arguments of what it builds."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from vqvae_jax.data import sources
from vqvae_jax.data.batches import train_batches
from vqvae_jax.data.splits import Source, prepare_split
from vqvae_jax.errors import InputError, at_least, suggest
from vqvae_jax.likelihoods import LIKELIHOODS
from vqvae_jax.memory import check_fits
from vqvae_jax.models.autoencoder import Autoencoder
from vqvae_jax.models.gumbel import Gumbel
from vqvae_jax.models.trunk import Family, Trunk
from vqvae_jax.models.vae import VAE
from vqvae_jax.models.vimco import Vimco
from vqvae_jax.models.vqvae import VQVAE
from vqvae_jax.priors import pixelcnn, transformer
from vqvae_jax.priors.autoregressive import Autoregressive
from vqvae_jax.quantizers import (
    FiniteScalarQuantizer,
    GradientVectorQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
    SimVectorQuantizer,
    VectorQuantizer,
)

QUANTIZERS = {
    "finite_scalar": FiniteScalarQuantizer,
    "lookup_free": LookupFreeQuantizer,
    "residual": ResidualQuantizer,
    "vector_ema": VectorQuantizer,
    "vector_gradient": GradientVectorQuantizer,
    "vector_simvq": SimVectorQuantizer,
}
FAMILIES = {"autoencoder": Autoencoder, "gumbel": Gumbel, "vae": VAE, "vimco": Vimco, "vqvae": VQVAE}
PRIORS = {"pixelcnn": pixelcnn.Network, "transformer": transformer.Network}
# A class-conditional prior is added up over up to this many classes.
MOST_CLASSES = 100


def pick(table: Mapping[str, Any], name: str, what: str) -> Any:
    """Look a name up in a table; an unknown one is an InputError that lists the known ones."""
    if name not in table:
        raise InputError(f"unknown {what} {name!r}: {suggest(str(name), table)}")
    return table[name]


def arguments(function: Callable, *without: str) -> set[str]:
    """Give the names of what a class or function takes, but for some."""
    return {*inspect.signature(function).parameters}.difference(without)


def build(function: Callable, section: Mapping, what: str, **given) -> Any:
    """Call `function` with a config section; InputError unless its keys are the arguments that aren't `given`."""
    check_keys(section, arguments(function, *given), what)
    return function(**_hashable(section), **given)


def build_named(table: Mapping[str, Callable], section: Mapping, what: str, **given) -> Any:
    """Build what a section's `name` stands for in a table, from its other keys."""
    options = dict(section)
    return build(pick(table, options.pop("name", ""), what), options, what, **given)


def check_keys(section: Mapping, expected: set[str], what: str) -> None:
    """Raise InputError unless a section has exactly the keys that are expected."""
    for key in section:
        if key not in expected:
            raise InputError(f"unknown option {what}.{key}: {suggest(key, expected)}")
    missing = sorted(expected - set(section))
    if missing:
        raise InputError(f"the config lacks {', '.join(f'{what}.{key}' for key in missing)}")


def _hashable(section: Mapping) -> dict:
    """JSON turns tuples into lists, which no jitted function takes as constants."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in section.items()}


def build_model(section: Mapping, image_shape: tuple[int, ...]) -> Family:
    """Build a family from the config's `model` section for images of [H, W, C]."""
    options = _hashable(section)
    family, of_context = pick(FAMILIES, options.pop("family", ""), "family"), options.pop("context", {})
    of_trunk = arguments(Trunk, "channels")
    check_keys(options, of_trunk | arguments(family, "trunk"), "model")
    likelihood = pick(LIKELIHOODS, options["likelihood"], "likelihood")
    is_context = options["likelihood"] == "context"
    options["likelihood"] = build(likelihood, of_context, "model.context") if is_context else likelihood()
    if "quantizer" in options:
        options["quantizer"] = build_named(QUANTIZERS, options["quantizer"], "model.quantizer")
    trunk = Trunk(channels=image_shape[2], **{key: options.pop(key) for key in of_trunk})
    model = family(trunk=trunk, **options)
    # Four arrays of the codebook are in training, whichever way it learns; and each position's codes are counted.
    depth = 4 * section.get("quantizer", section).get("embedding_dim", 0) + math.prod(trunk.grid(*image_shape[:2]))
    if model.latents == "codes":
        check_fits("the codebooks of the config", 4 * depth * sum(model.codebook_sizes))
    return model


def build_prior(
    section: Mapping, field: tuple[int, int, int], codebook_sizes: tuple[int, ...], num_classes: int
) -> Autoregressive:
    """Build a learned prior from the config's `prior` section, for codes [h, w, G] below `codebook_sizes`."""
    known = num_classes if section["conditional"] else 0
    share = section["label_dropout"] if known else 0.0
    if known > MOST_CLASSES and not share:
        raise InputError(
            f"a prior on {known} classes needs prior.label_dropout above 0, e.g. 0.1: over more than {MOST_CLASSES} "
            "classes it isn't added up, and the headline is that of no label"
        )
    network = pick(PRIORS, section["name"], "prior")
    shape = {"field": field, "codebook_size": max(codebook_sizes), "num_labels": known + (share > 0)}
    network = network(**shape, **{key: section[key] for key in ("features", "layers", "dropout")})
    return Autoregressive(network, tuple(codebook_sizes), known, share)


def check_data(section: Mapping) -> set[str]:
    """Raise InputError unless the config's `data` section has its keys; give those of `prepare_split`."""
    of_split = arguments(prepare_split, "source")
    of_batches = arguments(train_batches, "source", "seed", "steps", "stage")
    check_keys(section, {"name", "data_dir", "patch_size"} | of_split | of_batches, "data")
    return of_split


def build_source(section: Mapping, split: str) -> Source:
    """Build one split ("train", "validation" or "test") of the data set that the `data` section names."""
    of_split = check_data(section)
    opened = pick(sources.SOURCES, section["name"], "dataset")(split, section["data_dir"])
    return prepare_split(opened, **{key: section[key] for key in of_split})


SCHEDULES = {
    # Without a warm-up optax would stay at its first rate for ever.
    "constant": lambda rate, warmup, steps: optax.warmup_constant_schedule(0.0 if warmup else rate, rate, warmup),
    "cosine": lambda rate, warmup, steps: optax.warmup_cosine_decay_schedule(0.0, rate, warmup, max(steps, warmup + 1)),
}


def _matrices(params):
    """Give Muon's axes of every array: a kernel is a matrix of its last axis by all others; None: left to Adam."""

    def of_one(path, array):
        is_kernel = array.ndim in (2, 4) and "bias" not in jax.tree_util.keystr(path[-1:])
        axes = tuple(range(array.ndim - 1))
        return optax.contrib.MuonDimensionNumbers(axes, array.ndim - 1) if is_kernel else None

    return jax.tree_util.tree_map_with_path(of_one, params)


def _muon(learning_rate) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels and Adam for the rest, updates scaled to Adam's (Liu et al. 2025)."""
    return optax.contrib.muon(learning_rate, consistent_rms=0.2, muon_weight_dimension_numbers=_matrices)


OPTIMIZERS = {"adam": optax.adam, "muon": _muon}


def _optimizer(*, name, learning_rate, schedule, warmup_steps, num_steps) -> optax.GradientTransformation:
    at_least("optimizer", learning_rate=(learning_rate, 0), warmup_steps=(warmup_steps, 0))
    if not learning_rate:
        raise InputError("optimizer.learning_rate is 0: it must be above 0, or nothing is learned")
    rate = pick(SCHEDULES, schedule, "optimizer.schedule")(learning_rate, warmup_steps, num_steps)
    return pick(OPTIMIZERS, name, "optimizer")(rate)


def build_optimizer(section: Mapping, num_steps: int) -> optax.GradientTransformation:
    """Build the optimizer of the config's `optimizer` section; a schedule ends at `num_steps`."""
    return build(_optimizer, section, "optimizer", num_steps=num_steps)
