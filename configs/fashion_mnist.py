"""Fashion-MNIST, exact and lossless: 28x28x1 to 7x7 codes, so that published bits/dim apply.

    python -m vqvae_jax.main --config=configs/fashion_mnist.py              256 units, 256-way softmax
    python -m vqvae_jax.main --config=configs/fashion_mnist.py:small        128/32 units, 7x7x1 codes, for two cores
    python -m vqvae_jax.main --config=configs/fashion_mnist.py:context      the same with pixels that see earlier ones
    python -m vqvae_jax.main --config=configs/fashion_mnist.py:smoke        a minute on a CPU

Measured: `:small`: experiments/results/fashion_mnist_small/; the others not yet.
"""

from configs import default


def get_config(variant: str = "") -> default.Config:
    """Give the config of one of VARIANTS."""
    config = default.get_config()
    config.data.update(name="fashion_mnist", min_side=28)
    config.model.update(pixel_mean=(0.286,), pixel_std=(0.353,))
    config.model.quantizer.update(num_codebooks=4, embedding_dim=8)
    config.train.num_steps = 100_000
    config.prior.update(features=64, layers=6, dropout=0.1, batch_size=32, num_steps=8000, eval_every=500, patience=5)
    config.prior.optimizer.update(learning_rate=1e-3, warmup_steps=200)
    return default.change(config, VARIANTS, variant, "fashion_mnist")


def _small(config):
    config.data.batch_size = 32
    config.model.update(likelihood="logistic_mixture", hidden=128, residual_units=32)
    # In short runs on validation images, one code a position, few dimensions and a firm commitment learned fastest.
    config.model.quantizer.update(num_codebooks=1, embedding_dim=4, commitment_cost=1.0)
    config.optimizer.update(learning_rate=3e-3, schedule="cosine", warmup_steps=200)
    config.train.update(num_steps=10_000, log_every=50, eval_every=1000, checkpoint_every=1000)
    config.prior.num_steps = 6000
    config.eval.update(validation_images=1024, fit_images=1024)


def _context(config):
    _small(config)
    config.data.batch_size = 16
    config.model.update(likelihood="context", hidden=64)
    config.model.context.units = 192
    config.optimizer.update(name="muon", learning_rate=6e-3, warmup_steps=400)
    config.train.update(num_steps=5000, log_every=200, eval_every=500, checkpoint_every=500)
    config.prior.num_steps = 2000
    config.eval.samples = 0


VARIANTS = {"": lambda config: None, "small": _small, "context": _context, "smoke": default.smoke}
