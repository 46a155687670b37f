"""One network, five families: what `experiments.compare_families` trains on two cores, on equal terms.

    python -m vqvae_jax.main --config=configs/families.py:vae        or autoencoder, gumbel, vimco, vqvae (the default)
    python -m vqvae_jax.main --config=configs/families.py:vae_smoke  a minute on a CPU

The networks, the likelihood, the batch and the optimizer are the same; 8x8x5 latents, of K = 128 codes where there are
codes. Measured: experiments/results/families/.
"""

import ml_collections
from ml_collections import config_dict

FAMILIES = ("autoencoder", "gumbel", "vae", "vimco", "vqvae")
VARIANTS = (*FAMILIES, *(f"{family}_smoke" for family in FAMILIES))


def get_config(variant: str = "vqvae") -> ml_collections.ConfigDict:
    """Give the config of one of VARIANTS."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r} of families: known: {', '.join(VARIANTS)}")
    family, _, smoke = variant.partition("_")
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"
    config.data.data_dir = config_dict.placeholder(str)  # None: TFDS's default, ~/tensorflow_datasets
    config.data.image_size = config_dict.placeholder(int)  # None: as the images are; or the side that crops get, pixels
    config.data.channels = config_dict.placeholder(int)  # None: as the data set has them
    config.data.crop_scale = (0.2, 1.0)  # share of the area that a training crop takes
    config.data.eval_crop = "centre"  # or "random": as in training, but always the same for an image
    config.data.min_side = 1  # pixels; smaller images are left out
    config.data.max_bad_images = 10  # files that can't be decoded, before training stops
    config.data.batch_size = 32  # images, over all devices
    config.data.flip = True  # mirror every second training image
    config.data.num_threads = 2  # that make batches ahead

    config.model = ml_collections.ConfigDict()
    config.model.family = family
    config.model.likelihood = "logistic_mixture"
    config.model.hidden = 128  # channels
    config.model.residual_units = 32  # channels inside a residual block
    config.model.residual_blocks = 2
    config.model.downsamplings = 2  # halvings: 32x32 to 8x8
    config.model.pixel_mean = (0.47,)  # of pixels in 0..1
    config.model.pixel_std = (0.25,)
    _OWN[family](config.model)

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 3e-3
    config.optimizer.schedule = "cosine"  # to 0 at the last step
    config.optimizer.warmup_steps = 200

    config.train = ml_collections.ConfigDict()
    config.train.num_steps = 5000
    config.train.log_every = 20  # steps
    config.train.eval_every = 500  # steps
    config.train.checkpoint_every = 500  # steps

    config.prior = ml_collections.ConfigDict()
    config.prior.name = "none"  # or "transformer"; "none": no second stage (then what follows is not used)
    config.prior.features = 64  # channels
    config.prior.layers = 6
    config.prior.dropout = 0.1
    config.prior.conditional = False  # on the class
    config.prior.label_dropout = 0.0  # share of labels left out in training; above 100 classes it must be above 0
    config.prior.codes = "cached"  # of every training image, made once; or "fresh": of augmented images
    config.prior.batch_size = 32  # fields of codes, over all devices
    config.prior.num_steps = 5000
    config.prior.log_every = 20  # steps
    config.prior.eval_every = 500  # steps; the best is kept
    config.prior.patience = 5  # validations without a better one, before training stops; 0: never
    config.prior.optimizer = ml_collections.ConfigDict()
    config.prior.optimizer.name = "adam"
    config.prior.optimizer.learning_rate = 1e-3
    config.prior.optimizer.schedule = "cosine"
    config.prior.optimizer.warmup_steps = 50

    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 128  # images; changes no figure
    config.eval.validation_images = 512  # 0: all
    config.eval.test_images = 0  # 0: all
    config.eval.fit_images = 1024  # training images that count codes for a validation
    config.eval.final_fit_images = 0  # and at the end; 0: all
    config.eval.samples = 64  # draws of importance-weighted bounds, or codes in a VQ-VAE's sum; 0: none of these
    config.eval.subset_images = 500  # images of the VQ-VAE's sum, and of bounds of
    config.eval.subset_samples = 1000  # draws

    config.logging = ml_collections.ConfigDict()
    config.logging.tensorboard = True

    return _smoke(config) if smoke else config


def _continuous(model):
    model.latent_channels = 20  # a position: as many numbers as the codes of the other families have


def _codes(model):
    model.codebook_size = 128  # K, codes per codebook
    model.num_codebooks = 5  # G, per position
    model.embedding_dim = 4  # D


def _gumbel(model):
    _codes(model)
    model.temperature = 0.5  # of the relaxed draws in training


def _vimco(model):
    _codes(model)
    model.samples = 50  # draws in the bound (the paper's)


def _vqvae(model):
    _codes(model)
    model.commitment_cost = 1.0  # beta of eq. (3)
    model.codebook_update = "ema"  # or "gradient", eq. (3)
    model.ema_decay = 0.99  # gamma, per step
    model.ema_epsilon = 1e-5  # Laplace smoothing of the counts
    model.revival_threshold = 0.05  # share of a uniform use, below which a code is replaced


_OWN = {"autoencoder": _continuous, "gumbel": _gumbel, "vae": _continuous, "vimco": _vimco, "vqvae": _vqvae}


def _smoke(config):
    config.data.batch_size = 8
    config.model.hidden = config.model.residual_units = 16
    config.train.num_steps = 10
    config.train.log_every = 1
    config.train.eval_every = config.train.checkpoint_every = 5
    config.optimizer.warmup_steps = 2
    config.eval.validation_images = config.eval.test_images = 32
    config.eval.fit_images = config.eval.final_fit_images = 32
    config.eval.samples = 4
    config.eval.subset_images = 16
    config.eval.subset_samples = 16
    if config.model.family == "vimco":
        config.model.samples = 5
    return config
