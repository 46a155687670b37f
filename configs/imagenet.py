"""ImageNet 128x128 as in van den Oord et al. 2017, sec. 4.2: 32x32 codes of one codebook, squared error.

    python -m vqvae_jax.main --config=configs/imagenet.py --data_dir=DIR        DIR/downloads/manual holds the archives
    python -m vqvae_jax.main --config=configs/imagenet.py:small --data_dir=DIR  128/32 units, mixture: for two cores
    python -m vqvae_jax.main --config=configs/imagenet.py:context --data_dir=DIR  16x16 codes; pixels see earlier ones
    python -m vqvae_jax.main --config=configs/imagenet.py:smoke                 a minute on a CPU, on photographs

Widths, K = 512 and D = 64 are those in wide use; the paper states 128x128x3 to 32x32x1 with K = 512. Bits/dim are those
of a discretised Gaussian whose scale is fitted on training images. No bits/dim of a VQ-VAE on ImageNet at 128x128 have
been published. Measured: not yet, for want of the data and an accelerator. `:small` is another model, of D = 4 and a
mixture of discretised logistics; trained on 540 images for experiments/results/rate_distortion/.
"""

from configs import default


def get_config(variant: str = "") -> default.Config:
    """Give the config of one of VARIANTS."""
    config = default.get_config()
    config.data.update(name="imagenet2012", image_size=128)
    config.model.update(likelihood="squared_error", hidden=128, residual_units=32)
    config.model.quantizer.update(codebook_size=512, num_codebooks=1, embedding_dim=64)
    config.prior.update(features=256, layers=15, dropout=0.1, codes="fresh", num_steps=300_000)
    config.prior.update(eval_every=10_000, patience=0)
    config.eval.update(validation_images=1000, final_fit_images=50_000)
    return default.change(config, VARIANTS, variant, "imagenet")


def _small(config):
    config.data.update(batch_size=8, flip=True)
    config.model.likelihood = "logistic_mixture"
    config.model.quantizer.update(embedding_dim=4, commitment_cost=1.0)
    config.optimizer.update(learning_rate=2e-3, schedule="cosine", warmup_steps=100)
    config.train.update(num_steps=2000, log_every=20, eval_every=500, checkpoint_every=500)
    config.prior.update(features=64, layers=6, batch_size=8, num_steps=2000, log_every=20, eval_every=250)
    config.prior.optimizer.update(learning_rate=1e-3, warmup_steps=100)
    config.eval.update(validation_images=64, fit_images=256, subset_images=20)


def _context(config):
    _small(config)
    # A pixel sees 3 pixels far, so most pixels of a patch of 32 have all their neighbours, and a step costs 1/16.
    config.data.update(patch_size=32, crop_scale=(0.5, 0.8))
    config.model.update(likelihood="context", hidden=64, downsamplings=3)
    config.model.context.units = 192
    config.optimizer.update(name="muon", learning_rate=6e-3, warmup_steps=400)
    config.train.update(num_steps=4500, log_every=100, eval_every=500, checkpoint_every=500)
    config.prior.update(codes="cached", num_steps=1000, patience=4)
    config.eval.samples = 0


def _smoke(config):
    default.smoke(config)
    config.data.update(name="photos", image_size=32, min_side=1)
    config.model.update(pixel_mean=(0.45,), pixel_std=(0.25,))  # for any number of channels
    config.train.update(num_steps=20, log_every=5, eval_every=10, checkpoint_every=10)
    config.eval.final_fit_images = 64


VARIANTS = {"": lambda config: None, "small": _small, "context": _context, "smoke": _smoke}
