"""A prior with its variables on plain arrays: log-probabilities and samples of codes."""

import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from vqvae_jax import registry
from vqvae_jax.data.transforms import random_stream
from vqvae_jax.errors import InputError
from vqvae_jax.priors import ancestral
from vqvae_jax.priors.ancestral import AS_TRAINED, Options
from vqvae_jax.priors.autoregressive import Autoregressive
from vqvae_jax.training import checkpoint, sharding
from vqvae_jax.training.sharding import compiled

Codes = np.ndarray  # int32 [N,h,w,G]
Labels = np.ndarray | None  # int [N]


def row_keys(seed, purpose: str, numbers):
    """Give every row a key of its own, from a seed, what it is for, and the row's number."""
    root = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.vmap(jax.random.fold_in, (None, 0))(root, numbers)


def _draw(variables, seed, keep, batch, *, prior, options):
    codes, label, numbers = batch
    uniforms = jax.vmap(lambda key: jax.random.uniform(key, (codes[0].size,)))(row_keys(seed, "codes", numbers)).T
    return ancestral.sample(prior, variables, codes, label, uniforms, options=options, keep=keep)


@dataclass(frozen=True)
class TrainedPrior:
    """A learned prior, its variables {"params", "fitted": {"log_class_frequencies"}}, and images per batch.

    Methods raise InputError where codes are of images of another size than those of training.
    """

    name: str
    prior: Autoregressive
    variables: dict
    batch_size: int

    @property
    def num_classes(self) -> int:
        """Classes that the prior knows; 0: none."""
        return self.prior.num_classes

    def log_prob(self, codes: Codes, labels: Labels = None) -> np.ndarray:
        """Give log p(codes) in nats, float32 [N]; with labels log p(codes | label)."""
        function = partial(compiled, self.prior.log_prob, self.variables)
        given = () if labels is None else (self._labels(labels, 0, len(codes)),)
        return sharding.map_rows(function, self.batch_size, self._checked(codes), *given)

    def log_prob_of_classes(self, codes: Codes) -> np.ndarray:
        """Give log p(codes | label) in nats under every class, float32 [N,classes]."""
        function = partial(compiled, self.prior.log_prob_of_classes, self.variables)
        return sharding.map_rows(function, sharding.batch_for(len(codes), self.batch_size), self._checked(codes))

    def sample(
        self, codes: Codes, *, keep: int = 0, seed: int = 0, labels: Labels = None, options: Options = AS_TRAINED
    ) -> Codes:
        """Draw all codes of every field but the first `keep` (row, column, g), which stay as they are.

        The random numbers are functions of the seed and of a field's place among the N alone. Without labels
        classes are drawn with the frequencies of training, or left out where the prior can do without.
        """
        ancestral.check_options(options, max(self.prior.codebook_sizes))
        rows = self._checked(codes).astype(np.int32), self._labels(labels, seed, len(codes))

        def draw(*batch):
            known = self.variables, np.uint32(seed % 2**32), np.int32(keep), batch
            return compiled(_draw, *known, prior=self.prior, options=options)

        numbers = np.arange(len(codes), dtype=np.uint32)
        return sharding.map_rows(draw, self.batch_size, *rows, numbers, progress="samples")

    def _checked(self, codes: Codes) -> Codes:
        """Give the codes as an array; a position that was never trained has no probability to speak of."""
        codes = np.asarray(codes)
        self.check_field(codes.shape[1:])
        return codes

    def check_field(self, field: tuple[int, ...]) -> None:
        """Raise InputError unless images have as many codes as those of training."""
        known = tuple(self.prior.network.field)
        if tuple(field) != known:
            ours, theirs = ("x".join(map(str, sides)) for sides in (known, field))
            raise InputError(
                f"the {self.name} prior is of {ours} codes an image, not {theirs}: take images of the size that it was "
                "trained on, or leave it out with run.with_prior(None)"
            )

    def _labels(self, labels: Labels, seed: int, num: int) -> np.ndarray:
        if labels is not None and not self.num_classes:
            raise InputError("this prior knows no classes: leave them out, or train one with prior.conditional=True")
        if labels is None and self.num_classes and not self.prior.label_dropout:
            frequencies = np.exp(np.asarray(self.variables["fitted"]["log_class_frequencies"], np.float64))
            labels = random_stream("labels", seed).choice(len(frequencies), num, p=frequencies / frequencies.sum())
        if labels is None:
            return np.full(num, self.num_classes, np.int32)  # the label that means none, where there are classes
        labels, known = np.asarray(labels, np.int32), self.num_classes + bool(self.prior.label_dropout)
        if labels.shape != (num,) or not np.all((labels >= 0) & (labels < known)):
            raise InputError(f"labels must be {num} numbers of classes, 0 to {self.num_classes - 1}")
        return labels


def load(
    workdir: str | Path, fingerprint: str, field: tuple[int, int, int], codebook_sizes: tuple[int, ...]
) -> TrainedPrior | None:
    """Load the prior of a run, if one was trained to its end; `fingerprint` is that of the run's image model.

    It is an InputError if the prior is of another image model.
    """
    read = partial(_read, fingerprint=fingerprint, field=field, codebook_sizes=codebook_sizes)
    learned = checkpoint.read_newest(read, workdir, checkpoint.PRIOR, "fitted")
    if learned is None and (path := checkpoint.newest(workdir, checkpoint.PRIOR)):
        checkpoint.check_finished(path, "prior")
    return learned


def _read(path: Path, fingerprint: str, field: tuple[int, int, int], codebook_sizes: tuple[int, ...]) -> TrainedPrior:
    meta = checkpoint.read_meta(path)
    if meta["model_fingerprint"] != fingerprint:
        of_step = f", that of step {meta['model_step']}" if "model_step" in meta else ""
        raise InputError(
            f"the prior in {path.parent} is of another image model{of_step}, not of the newest in "
            f"{checkpoint.folder(path.parents[2])}: run the command that trained it again, or bring that model back"
        )
    section = meta["config"]["prior"]
    prior = registry.build_prior(section, field, codebook_sizes, meta["num_classes"])
    batch = {"codes": jax.ShapeDtypeStruct((1, *field), np.int32), "label": jax.ShapeDtypeStruct((1,), np.int32)}
    abstract = sharding.everywhere(jax.eval_shape(prior.init, jax.random.key(0), batch))
    variables = checkpoint.restore_variables(path, abstract, section["average_decay"] > 0)
    return TrainedPrior(section["name"], prior, variables, meta["config"]["eval"]["batch_size"])
