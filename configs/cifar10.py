"""CIFAR-10 as in van den Oord et al. 2017, sec. 4.1: 8x8x10 codes, a codebook per slice, a 256-way softmax.

    python -m vqvae_jax.main --config=configs/cifar10.py               the paper's network, EMA codebook
    python -m vqvae_jax.main --config=configs/cifar10.py:paper         the same with the codebook of eq. (3)
    python -m vqvae_jax.main --config=configs/cifar10.py:small         128/32 units, 8x8x4 codes, for two cores
    python -m vqvae_jax.main --config=configs/cifar10.py:context       4x4x1 codes, and pixels that see earlier ones
    python -m vqvae_jax.main --config=configs/cifar10.py:smoke         a minute on a CPU

The paper does not state K and D; K = 128 and D = 32 are ours. It reports 4.67 bits/dim after 250,000 steps.
Measured: the paper's network and `:context` not yet; `:small`, whose prior had 2,500 of its 6,000 steps: the row
"vqvae" of experiments/results/reproduction/cifar10.json.
"""

from configs import default, families


def get_config(variant: str = "") -> default.Config:
    """Give the config of one of VARIANTS."""
    if variant in {"small", "context"}:
        config = families.get_config("vqvae")
    else:
        config = default.get_config(quantizer="vector_gradient" if variant == "paper" else "vector_ema")
    return default.change(config, VARIANTS, variant, "cifar10")


def _small(config):
    config.train.update(num_steps=18_000, eval_every=1500, checkpoint_every=1500)
    config.prior.name = "pixelcnn"


def _context(config):
    config.data.batch_size = 8  # a step sees 8,192 pixels, each with its neighbours
    config.model.update(likelihood="context", hidden=64, downsamplings=3)
    config.model.context.units = 192
    config.model.quantizer.update(num_codebooks=1, codebook_size=512)
    config.optimizer.update(learning_rate=6e-3, warmup_steps=400)
    config.train.update(num_steps=20_000, log_every=200, eval_every=2000, checkpoint_every=2000)
    config.prior.update(name="pixelcnn", num_steps=3000)
    config.eval.samples = 16


VARIANTS = {"": lambda config: None, "paper": lambda config: None}
VARIANTS |= {"small": _small, "context": _context, "smoke": default.smoke}
