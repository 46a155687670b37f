"""A prior trained over the codes of an image model: log-probabilities and samples of codes, on plain arrays."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from vqvae_jax import builders, checkpoint, sharding
from vqvae_jax.errors import InputError
from vqvae_jax.priors import ancestral
from vqvae_jax.priors.ancestral import AS_TRAINED, Options
from vqvae_jax.priors.autoregressive import Autoregressive

Codes = np.ndarray  # int32 [N,h,w,G]


@partial(jax.jit, static_argnums=(0, 1))
def _log_prob(prior, given, variables, log_frequencies, codes, label):
    if given:
        return prior.log_prob(variables, codes, label)
    return prior.marginal_log_prob(variables, codes, log_frequencies)


@partial(jax.jit, static_argnums=0)
def _log_prob_of_classes(prior, variables, codes):
    return prior.log_prob_of_classes(variables, codes)


@partial(jax.jit, static_argnums=(0, 1))
def _sample(prior, options, variables, keep, batch):
    codes, label, uniforms = batch
    return ancestral.sample(prior, variables, codes, label, uniforms.T, options=options, keep=keep)


@dataclass(frozen=True)
class Learned:
    """A prior with its variables, the log frequencies [classes] of training labels, and images per batch."""

    name: str
    prior: Autoregressive
    variables: dict
    log_class_frequencies: jax.Array
    batch_size: int

    def log_prob(self, codes: Codes, labels: np.ndarray | None = None) -> np.ndarray:
        """Give log p(codes) in nats, float32 [N]; with `labels` int [N] log p(codes | label)."""
        given = labels is not None and self.prior.num_classes > 0
        function = partial(_log_prob, self.prior, given, self.variables, self.log_class_frequencies)
        label = np.zeros(len(codes), np.int32) if labels is None else np.asarray(labels, np.int32)
        return sharding.map_rows(function, self.batch_size, np.asarray(codes), label)

    def log_prob_of_classes(self, codes: Codes) -> np.ndarray:
        """Give log p(codes | label) in nats under every class, float32 [N,classes]."""
        function = partial(_log_prob_of_classes, self.prior, self.variables)
        return sharding.map_rows(function, sharding.batch_for(len(codes), self.batch_size), np.asarray(codes))

    def sample(
        self,
        codes: Codes,
        *,
        keep: int = 0,
        seed: int = 0,
        labels: np.ndarray | None = None,
        options: Options = AS_TRAINED,
    ) -> Codes:
        """Draw all codes of every field but the first `keep` (row, column, g), which stay as they are.

        The random numbers are functions of the seed and of a field's place among the N alone. Without `labels` int [N]
        classes are drawn with the frequencies of training, or left out where the prior can do without.

        Raises:
            InputError: options are out of range, or the prior knows no classes.
        """
        check_options(options, self.prior.network.codebook_size)
        num, field = len(codes), self.prior.network.field
        if tuple(codes.shape[1:]) != field:
            raise InputError(f"the prior is of {field} codes an image, not {tuple(codes.shape[1:])}")
        if labels is not None and not self.prior.num_classes:
            raise InputError("this prior knows no classes: leave them out, or train one with prior.conditional=True")
        uniforms = np.random.default_rng(seed).random((num, int(np.prod(field))), np.float32)
        label = np.asarray(self._drawn_labels(seed, num) if labels is None else labels, np.int32)
        known = self.prior.num_classes + bool(self.prior.label_dropout)  # "none" is the last one
        if labels is not None and (label.shape != (num,) or not np.all((label >= 0) & (label < known))):
            raise InputError(f"labels must be {num} numbers of classes, 0 to {self.prior.num_classes - 1}")

        def draw(*batch):
            return _sample(self.prior, options, self.variables, np.int32(keep), batch)

        return sharding.map_rows(
            draw, self.batch_size, np.asarray(codes, np.int32), label, uniforms, progress="samples"
        )

    def _drawn_labels(self, seed: int, num: int) -> np.ndarray:
        if not self.prior.num_classes:
            return np.zeros(num)
        if self.prior.label_dropout:
            return np.full(num, self.prior.num_classes)
        frequencies = np.exp(np.asarray(self.log_class_frequencies, np.float64))
        random = np.random.default_rng([seed, 1])  # of its own, so that a label doesn't depend on how many there are
        return random.choice(len(frequencies), num, p=frequencies / frequencies.sum())


def check_options(options: Options, codebook_size: int) -> None:
    """Raise InputError if options of sampling are out of range."""
    temperature, top_k, top_p = options
    if not temperature > 0:
        raise InputError(f"the temperature is {temperature}: it must be above 0")
    if not 0 <= top_k <= codebook_size:
        raise InputError(f"top_k is {top_k}: it must be 0 (all) to {codebook_size}, the number of codes")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}: it must be above 0, up to 1 (all)")


def load(workdir: str | Path, fingerprint: str, field: tuple[int, int, int], codebook_size: int) -> Learned | None:
    """Load the prior of a run, if one was trained to its end; `fingerprint` is that of the run's image model.

    Raises:
        InputError: the prior is of another image model.
    """
    folder = checkpoint.folder(workdir, checkpoint.PRIOR)
    step = checkpoint.finished_step(folder)
    if step is None:
        return None
    with checkpoint.open_manager(workdir, checkpoint.PRIOR, read_only=True) as manager:
        meta = checkpoint.read_meta(manager, step)
        if meta["model_fingerprint"] != fingerprint:
            raise InputError(f"the prior in {folder} is of another image model: delete it, and train it again")
        section = meta["config"]["prior"]
        prior = builders.build_prior(section, field, codebook_size, meta["num_classes"])
        shape = jax.ShapeDtypeStruct((1, *field), np.int32)
        batch = {"codes": shape, "label": jax.ShapeDtypeStruct((1,), np.int32)}
        abstract = sharding.everywhere(jax.eval_shape(prior.init, jax.random.key(0), batch))
        variables = checkpoint.restore_variables(manager, step, abstract)
    frequencies = variables.pop("fitted")["log_class_frequencies"]
    return Learned(section["name"], prior, variables, frequencies, meta["config"]["eval"]["batch_size"])
