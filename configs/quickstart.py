"""A small VQ-VAE on 32x32 crops of five photographs: the whole way in about 5 minutes on two CPU cores.

    python -m vqvae_jax.main --config=configs/quickstart.py
    python -m vqvae_jax.main --config=configs/quickstart.py:smoke      a minute

Measured: experiments/results/quickstart/.
"""

from configs import default


def get_config(variant: str = "") -> default.Config:
    """Give the config of one of VARIANTS."""
    config = default.get_config()
    config.data.update(name="photos", batch_size=8, flip=True)  # in scikit-image, so data_dir is not needed
    config.model.update(likelihood="context", hidden=64, residual_units=32, pixel_mean=(0.5,), pixel_std=(0.25,))
    config.model.context.head_weight = 1.0  # so that the codes say how the image looks
    config.model.quantizer.update(num_codebooks=4, embedding_dim=4, commitment_cost=1.0)
    config.optimizer.update(name="muon", learning_rate=6e-3, schedule="cosine", warmup_steps=200)
    config.train.update(num_steps=1200, log_every=20, eval_every=300, checkpoint_every=300)
    config.prior.update(features=32, layers=4, dropout=0.1, batch_size=32, num_steps=600, log_every=20)
    config.prior.update(eval_every=100, patience=0)
    config.prior.optimizer.update(learning_rate=3e-3, warmup_steps=50)
    config.eval.update(fit_images=1024, samples=16, subset_images=100)
    return default.change(config, VARIANTS, variant, "quickstart")


def _smoke(config):
    default.smoke(config)
    config.data.batch_size = 32
    config.model.update(hidden=8, residual_units=8)
    config.model.context.units = 8
    config.train.update(num_steps=20, log_every=5, eval_every=10, checkpoint_every=10)


VARIANTS = {"": lambda config: None, "smoke": _smoke}
