"""Residual vector quantization (Zeghidour et al. 2021, SoundStream): each code corrects what the ones before leave.

Shapes: `*b` leading axes, G stages, K codes each, D dimensions.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vqvae_jax.errors import InputError, at_least
from vqvae_jax.quantizers.ema import Ema, check_ema, ema_codebook, ema_init, ema_update, revive
from vqvae_jax.quantizers.estimators import ESTIMATORS
from vqvae_jax.quantizers.interface import Indices, Quantized, Vectors, check_names, to_float32
from vqvae_jax.quantizers.nearest import Codebook, look_up, nearest_code
from vqvae_jax.quantizers.starts import STARTS
from vqvae_jax.quantizers.vector import commitment_loss


@dataclass(frozen=True)
class ResidualQuantizer:
    """`num_codebooks` stages, the codes of a position, whose vectors are added; learned by moving averages.

    With `shared`, all stages use the same codebook. `quantizer_dropout` is the share of examples (of the first axis of
    z_e) that in training are left with the first n codes only, n uniform on 1..G: 0 is none, 1 SoundStream's. Their
    other codes are found and learn all the same, and only z_q is without them.
    """

    codebook_size: int = 512
    num_codebooks: int = 4
    embedding_dim: int = 64
    commitment_cost: float = 0.25
    shared: bool = False
    quantizer_dropout: float = 0.0
    estimator: str = "straight_through"  # ESTIMATORS
    start: str = "data"  # STARTS
    ema_decay: float = 0.99
    ema_epsilon: float = 1e-5
    revival_threshold: float = 0.05

    has_distances = False  # those of a stage depend on the codes before it
    advice = "raise revival_threshold to just below 0.1, or lower codebook_size"

    def __post_init__(self):
        at_least("quantizer", codebook_size=(self.codebook_size, 1), num_codebooks=(self.num_codebooks, 1))
        at_least("quantizer", embedding_dim=(self.embedding_dim, 1), commitment_cost=(self.commitment_cost, 0))
        if not 0 <= self.quantizer_dropout <= 1:
            raise InputError(f"quantizer.quantizer_dropout is {self.quantizer_dropout}: it must be 0 to 1")
        check_names(estimator=(self.estimator, ESTIMATORS), start=(self.start, STARTS))
        check_ema(self.ema_decay, self.ema_epsilon, self.revival_threshold)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.num_codebooks

    @property
    def dim(self) -> int:
        return self.embedding_dim

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"commitment": self.commitment_cost}

    def init(self, key: Key[Array, ""], z_e: Vectors) -> tuple[dict, Ema]:
        """Start each stage at what the stages before it leave of the first batch; a shared codebook at the batch."""
        residual, found = to_float32(z_e, self.dim)[..., None, :], []
        for stage_key in jax.random.split(key, 1 if self.shared else self.num_codebooks):
            ema = ema_init(stage_key, residual, self.codebook_size, self.start)
            codebook = ema_codebook(ema, self.ema_epsilon)
            residual = residual - look_up(codebook, nearest_code(residual, codebook))
            found.append(ema)
        return {}, jax.tree.map(lambda *stages: jnp.concatenate(stages), *found)

    def codebook(self, variables) -> Codebook:
        """Give the codes of every stage in use now."""
        codebook = ema_codebook(variables["state"], self.ema_epsilon)
        return jnp.repeat(codebook, self.num_codebooks, axis=0) if self.shared else codebook

    def __call__(self, variables, z_e: Vectors, key: Key[Array, ""] | None = None) -> Quantized:
        """Quantize what each stage leaves by the next one. The loss is the mean over the stages."""
        z_e, codebook = to_float32(z_e, self.dim), self.codebook(variables)
        residual, residuals, indices, codes = z_e, [], [], []
        for g in range(self.num_codebooks):
            found = nearest_code(residual[..., None, :], codebook[g : g + 1])
            code = look_up(codebook[g : g + 1], found)[..., 0, :]
            residuals.append(residual)
            indices.append(found)
            codes.append(code)
            residual = residual - jax.lax.stop_gradient(code)
        codes = jnp.stack(codes, axis=-2)
        losses = {"commitment": commitment_loss(jnp.stack(residuals, axis=-2), codes)}
        z_q = jnp.sum(self._drop(key, codes) if self.quantizer_dropout and key is not None else codes, axis=-2)
        return Quantized(ESTIMATORS[self.estimator](z_e, z_q), jnp.concatenate(indices, axis=-1), losses)

    def look_up(self, variables, indices: Indices) -> Float[Array, "*b d"]:
        """Add the vectors of a position's codes, or of the first few of them."""
        return jnp.sum(look_up(self.codebook(variables)[: indices.shape[-1]], indices), axis=-2)

    def next_state(self, variables, z_e: Vectors, indices: Indices, key: Key[Array, ""]) -> Ema:
        """Move the averages of every stage, and put codes out of use at what the stages before leave of the batch."""
        residual, residuals = to_float32(z_e, self.dim), []
        codes = look_up(self.codebook(variables), indices)
        for g in range(self.num_codebooks):
            residuals.append(residual)
            residual = residual - codes[..., g, :]
        vectors = jnp.stack(residuals, axis=-2)
        if self.shared:
            vectors, indices = vectors.reshape(-1, 1, self.dim), indices.reshape(-1, 1)
        ema = ema_update(variables["state"], vectors, indices, self.ema_decay)
        return revive(key, ema, vectors, self.revival_threshold)

    def _drop(self, key, codes):
        """Set codes [*b,G,D] to 0 from a random stage on, in a random share of the examples."""
        shape = (*codes.shape[:1], *(1,) * (codes.ndim - 1)) if codes.ndim > 2 else (1, 1)
        share_key, stage_key = jax.random.split(key)
        kept = jax.random.randint(stage_key, shape, 1, self.num_codebooks + 1)
        dropped = jax.random.bernoulli(share_key, self.quantizer_dropout, shape)
        stage = jnp.arange(self.num_codebooks).reshape(*(1,) * (codes.ndim - 2), -1, 1)
        return jnp.where(jnp.logical_and(dropped, stage >= kept), 0.0, codes)
