"""ImageNet 128x128 as in van den Oord et al. 2017, sec. 4.2: 32x32 latents of one codebook, squared error.

    python -m vqvae_jax.main --config=configs/imagenet.py --data_dir=DIR        DIR/downloads/manual holds the archives
    python -m vqvae_jax.main --config=configs/imagenet.py:small --data_dir=DIR  128/32 units, mixture: for two cores
    python -m vqvae_jax.main --config=configs/imagenet.py:smoke                 a minute on a CPU, on photographs

Widths, K = 512 and D = 64 are those in wide use; the paper states 128x128x3 to 32x32x1 with K = 512. Bits/dim are those
of a discretised Gaussian whose scale is fitted on training images. No bits/dim of a VQ-VAE on ImageNet at 128x128 have
been published. Measured: not yet, for want of the data and an accelerator. `:small` is another model, of D = 4 and a
mixture of discretised logistics; trained on 540 images for experiments/results/rate_distortion/.
"""

import ml_collections
from ml_collections import config_dict

VARIANTS = ("", "small", "smoke")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Give the config of one of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r} of imagenet: known: {', '.join(VARIANTS[1:])}")
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.name = "imagenet2012"
    config.data.data_dir = config_dict.placeholder(str)  # None: TFDS's default, ~/tensorflow_datasets
    config.data.image_size = 128  # pixels, the side that crops get
    config.data.channels = config_dict.placeholder(int)  # None: as the data set has them
    config.data.crop_scale = (0.2, 1.0)  # share of the area that a training crop takes
    config.data.eval_crop = "centre"  # or "random": as in training, but always the same for an image
    config.data.min_side = 32  # pixels; smaller images are left out
    config.data.max_bad_images = 10  # files that can't be decoded, before training stops
    config.data.batch_size = 128  # images, over all devices
    config.data.flip = False  # the report and the paper say nothing of mirroring
    config.data.num_threads = 2  # that make batches ahead

    config.model = ml_collections.ConfigDict()
    config.model.family = "vqvae"
    config.model.likelihood = "squared_error"
    config.model.hidden = 128  # channels
    config.model.residual_units = 32  # channels inside a residual block
    config.model.residual_blocks = 2
    config.model.downsamplings = 2  # halvings: 128x128 to 32x32
    config.model.codebook_size = 512  # K, codes per codebook
    config.model.num_codebooks = 1  # G, per position
    config.model.embedding_dim = 64  # D
    config.model.commitment_cost = 0.25  # beta of eq. (3)
    config.model.codebook_update = "ema"  # or "gradient", eq. (3)
    config.model.ema_decay = 0.99  # gamma, per step
    config.model.ema_epsilon = 1e-5  # Laplace smoothing of the counts
    config.model.revival_threshold = 0.05  # share of a uniform use, below which a code is replaced
    config.model.pixel_mean = (0.485, 0.456, 0.406)  # ImageNet's, of pixels in 0..1
    config.model.pixel_std = (0.229, 0.224, 0.225)

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "constant"  # or "cosine", to 0 at the last step
    config.optimizer.warmup_steps = 0

    config.train = ml_collections.ConfigDict()
    config.train.num_steps = 250_000
    config.train.log_every = 100  # steps
    config.train.eval_every = 5000  # steps
    config.train.checkpoint_every = 5000  # steps

    config.prior = ml_collections.ConfigDict()
    config.prior.name = "pixelcnn"  # or "transformer"; "none": no second stage
    config.prior.features = 256  # channels
    config.prior.layers = 15
    config.prior.dropout = 0.1
    config.prior.conditional = False  # on the class
    config.prior.label_dropout = 0.0  # share of labels left out in training; above 100 classes it must be above 0
    config.prior.codes = "fresh"  # of augmented images; or "cached": of every training image, made once
    config.prior.batch_size = 64  # fields of codes, over all devices
    config.prior.num_steps = 300000
    config.prior.log_every = 100  # steps
    config.prior.eval_every = 10000  # steps; the best is kept
    config.prior.patience = 0  # validations without a better one, before training stops; 0: never
    config.prior.optimizer = ml_collections.ConfigDict()
    config.prior.optimizer.name = "adam"
    config.prior.optimizer.learning_rate = 3e-4
    config.prior.optimizer.schedule = "cosine"
    config.prior.optimizer.warmup_steps = 1000

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 128  # images; changes no figure
    config.eval.validation_images = 1000  # 0: all
    config.eval.test_images = 0  # 0: all
    config.eval.fit_images = 5000  # training images that count codes for a validation
    config.eval.final_fit_images = 50_000  # and at the end; 0: all
    config.eval.samples = 64  # draws of importance-weighted bounds, or codes in a VQ-VAE's sum; 0: none of these
    config.eval.subset_images = 500  # images of the VQ-VAE's sum, and of bounds of
    config.eval.subset_samples = 1000  # draws

    config.logging = ml_collections.ConfigDict()
    config.logging.tensorboard = True

    return _CHANGES[variant](config)


def _small(config):
    config.data.flip = True
    config.data.batch_size = 8
    config.model.likelihood = "logistic_mixture"
    config.model.embedding_dim = 4
    config.model.commitment_cost = 1.0
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 100
    config.train.num_steps = 2000
    config.train.log_every = 20
    config.train.eval_every = config.train.checkpoint_every = 500
    config.prior.features = 64
    config.prior.layers = 6
    config.prior.batch_size = 8
    config.prior.num_steps = 2000
    config.prior.log_every = 20
    config.prior.eval_every = 250
    config.prior.optimizer.learning_rate = 1e-3
    config.prior.optimizer.warmup_steps = 100
    config.eval.validation_images = 64
    config.eval.fit_images = 256
    config.eval.subset_images = 20
    return config


def _smoke(config):
    config.data.name = "photos"
    config.data.image_size = 32
    config.data.min_side = 1
    config.data.batch_size = 16
    config.model.hidden = config.model.residual_units = 16
    config.model.pixel_mean, config.model.pixel_std = (0.45,), (0.25,)  # for any number of channels
    config.train.num_steps = 20
    config.train.log_every = 5
    config.train.eval_every = config.train.checkpoint_every = 10
    config.prior.features = 8
    config.prior.layers = 2
    config.prior.batch_size = 8
    config.prior.num_steps = 10
    config.prior.log_every = config.prior.eval_every = 5
    config.prior.optimizer.warmup_steps = 2
    config.eval.validation_images = config.eval.test_images = 64
    config.eval.fit_images = config.eval.final_fit_images = 64
    config.eval.samples = 4
    config.eval.subset_images = 16
    return config


_CHANGES = {"": lambda config: config, "small": _small, "smoke": _smoke}
