"""A small VQ-VAE on 32x32 crops of five photographs: the whole way in under 5 minutes on two CPU cores.

python -m vqvae_jax.main --config=configs/quickstart.py            (:smoke ends in a minute)

Measured: about 4.8 bits/dim on the test crops, experiments/results/quickstart/.
"""

import ml_collections
from ml_collections import config_dict

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """Give the config of one of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r} of quickstart: known: {', '.join(VARIANTS[1:])}")
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.name = "photos"
    config.data.data_dir = config_dict.placeholder(str)  # None: the photographs in scikit-image
    config.data.image_size = config_dict.placeholder(int)  # None: as the images are; or the side that crops get, pixels
    config.data.channels = config_dict.placeholder(int)  # None: as the data set has them
    config.data.crop_scale = (0.2, 1.0)  # share of the area that a training crop takes
    config.data.eval_crop = "centre"  # or "random": as in training, but always the same for an image
    config.data.min_side = 32  # pixels; smaller images are left out
    config.data.max_bad_images = 10  # files that can't be decoded, before training stops
    config.data.batch_size = 32  # images, over all devices
    config.data.flip = True  # mirror every second training image
    config.data.num_threads = 2  # that make batches ahead

    config.model = ml_collections.ConfigDict()
    config.model.family = "vqvae"
    config.model.likelihood = "logistic"
    config.model.hidden = 64  # channels
    config.model.residual_units = 32  # channels inside a residual block
    config.model.residual_blocks = 2
    config.model.downsamplings = 2  # halvings: 32x32 to 8x8
    config.model.codebook_size = 128  # K, codes per codebook
    config.model.num_codebooks = 4  # G, per position
    config.model.embedding_dim = 4  # D
    config.model.commitment_cost = 1.0  # beta of eq. (3)
    config.model.codebook_update = "ema"  # or "gradient", eq. (3)
    config.model.ema_decay = 0.99  # gamma, per step
    config.model.ema_epsilon = 1e-5  # Laplace smoothing of the counts
    config.model.revival_threshold = 0.05  # share of a uniform use, below which a code is replaced
    config.model.pixel_mean = (0.5,)  # of pixels in 0..1, one or one per channel
    config.model.pixel_std = (0.25,)

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"  # to 0 at the last step; or "constant"
    config.optimizer.warmup_steps = 50

    config.train = ml_collections.ConfigDict()
    config.train.num_steps = 1500
    config.train.log_every = 20  # steps
    config.train.eval_every = 250  # steps
    config.train.checkpoint_every = 250  # steps

    config.prior = ml_collections.ConfigDict()
    config.prior.name = "pixelcnn"  # or "transformer"; "none": no second stage
    config.prior.features = 32  # channels
    config.prior.layers = 4
    config.prior.dropout = 0.1
    config.prior.conditional = False  # on the class
    config.prior.label_dropout = 0.0  # share of labels left out in training; above 100 classes it must be above 0
    config.prior.codes = "cached"  # of every training image, made once; or "fresh": of augmented images
    config.prior.batch_size = 32  # fields of codes, over all devices
    config.prior.num_steps = 600
    config.prior.log_every = 20  # steps
    config.prior.eval_every = 100  # steps; the best is kept
    config.prior.patience = 0  # validations without a better one, before training stops; 0: never
    config.prior.optimizer = ml_collections.ConfigDict()
    config.prior.optimizer.name = "adam"
    config.prior.optimizer.learning_rate = 3e-3
    config.prior.optimizer.schedule = "cosine"
    config.prior.optimizer.warmup_steps = 50

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 128  # images; changes no figure
    config.eval.validation_images = 0  # 0: all
    config.eval.test_images = 0  # 0: all
    config.eval.fit_images = 1024  # training images that count codes for a validation
    config.eval.final_fit_images = 0  # and at the end; 0: all
    config.eval.samples = 16  # draws of importance-weighted bounds, or codes in a VQ-VAE's sum; 0: none of these
    config.eval.subset_images = 100  # images of the VQ-VAE's sum, and of bounds of
    config.eval.subset_samples = 1000  # draws

    config.logging = ml_collections.ConfigDict()
    config.logging.tensorboard = True

    if variant == "smoke":
        config.model.hidden = config.model.residual_units = 8
        config.train.num_steps = 20
        config.train.eval_every = config.train.checkpoint_every = 10
        config.train.log_every = 5
        config.prior.features = 8
        config.prior.layers = 2
        config.prior.batch_size = 8
        config.prior.num_steps = 10
        config.prior.log_every = config.prior.eval_every = 5
        config.prior.optimizer.warmup_steps = 2
        config.eval.validation_images = config.eval.test_images = 64
        config.eval.fit_images = 64
        config.eval.samples = 4
        config.eval.subset_images = 16
    return config
