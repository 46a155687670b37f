"""One network, five families: what `experiments.reproduce` trains on two cores, on equal terms.

    python -m vqvae_jax.main --config=configs/families.py:vae        or autoencoder, gumbel, vimco, vqvae (the default)
    python -m vqvae_jax.main --config=configs/families.py:vqvae_gradient   the codebook of eq. (3) instead of EMA
    python -m vqvae_jax.main --config=configs/families.py:vae_smoke  a minute on a CPU

The networks, the likelihood, the batch and the optimizer are the same; 8x8 latents, each of 4 codes of K = 256 in the
VQ-VAE, of one of K = 64 where codes are drawn, and of 20 numbers where there are none. Measured:
experiments/results/reproduction/.
"""

from configs import default

FAMILIES = ("autoencoder", "gumbel", "vae", "vimco", "vqvae")
VARIANTS = (*FAMILIES, "vqvae_gradient", *(f"{family}_smoke" for family in FAMILIES))


def get_config(variant: str = "vqvae") -> default.Config:
    """Give the config of one of VARIANTS."""
    default.choose(dict.fromkeys(VARIANTS), variant, "families")
    family, _, kind = variant.partition("_")
    config = default.get_config(family, "vector_gradient" if kind == "gradient" else "vector_ema")
    config.data.update(batch_size=32, flip=True, min_side=1)
    config.model.update(likelihood="logistic_mixture", hidden=128, residual_units=32)
    config.model.update(pixel_mean=(0.47,), pixel_std=(0.25,))
    if family == "vqvae":
        config.model.quantizer.update(num_codebooks=4, codebook_size=256, embedding_dim=4, commitment_cost=1.0)
    if family in {"gumbel", "vimco"}:
        config.model.update(num_codebooks=1, codebook_size=64, embedding_dim=16)
    if family == "vimco":
        config.model.training_samples = 5
    config.optimizer.update(name="muon", learning_rate=3e-3, schedule="cosine", warmup_steps=200)
    config.train.update(num_steps=5000, log_every=50, eval_every=500, checkpoint_every=500)
    config.prior.update(name="none", features=64, layers=6, dropout=0.1, batch_size=32, num_steps=6000)
    config.prior.update(log_every=50, eval_every=1000, patience=5)
    config.prior.optimizer.update(learning_rate=1e-3, warmup_steps=50)
    config.eval.update(validation_images=512, fit_images=1024)
    if kind == "smoke":
        _smoke(config)
    return config


def _smoke(config):
    default.smoke_model(config)
    config.data.batch_size = 8
    config.optimizer.warmup_steps = 2
    config.eval.update(validation_images=32, test_images=32, fit_images=32, final_fit_images=32, subset_samples=16)
    if config.model.family == "vimco":
        config.model.update(samples=5, training_samples=5)
