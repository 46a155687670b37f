"""Every option once, with its unit. The other pages hold only what they change.

    python -m vqvae_jax.main --config=configs/default.py            the VQ-VAE of van den Oord et al. 2017, sec. 4.1
    python -m vqvae_jax.main --config=configs/default.py:vae        or another family

Any option can be changed on the command line: --config.model.hidden=64 --config.prior.name=none.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from vqvae_jax import registry

Config = Any  # an ml_collections.ConfigDict, whose keys no type checker knows

CODES = {
    "codebook_size": 128,  # K, codes per codebook
    "num_codebooks": 10,  # G, codes per position, each from a codebook of its own
    "embedding_dim": 32,  # D, numbers per code
}

# model.quantizer, which only the family "vqvae" has: those of these that its class takes. What else it takes has the
# default of the class. That is `start`, which is where codes start: at vectors of the first batch ("data"), at "kmeans"
# of it, or at "random" normal ones with its moments.
QUANTIZER = CODES | {
    "commitment_cost": 0.25,  # beta of eq. (3)
    "distance": "euclidean",  # or "cosine": of vectors normalised to length 1
    "estimator": "straight_through",  # or "rotation"
    "ema_decay": 0.99,  # gamma of appendix A.1, per step
    "ema_epsilon": 1e-5,  # Laplace smoothing of the counts
    "revival_threshold": 0.05,  # share of uniform use below which a code is replaced; 0: never
    "shared": False,  # one codebook for all stages of "residual"
    "quantizer_dropout": 0.0,  # share of images in training that have the codes of some first stages only
    "levels": (8, 5, 5, 5),  # of each dimension of "finite_scalar"; K is their product
    "bits": 10,  # of "lookup_free"; K = 2^bits
    "entropy_weight": 0.1,  # of the entropies of a position and of the batch
    "diversity": 1.0,  # weight of the batch's entropy relative to that of a position
    "temperature": 1.0,  # of the code's probabilities given a position
}

# model.context: P(x | z) that also sees earlier pixels.
CONTEXT = {
    "components": 3,  # logistics in the mixture of a pixel
    "reach": 3,  # pixels above and to either side: 24 neighbours
    "units": 96,  # of its hidden layers
    "blocks": 1,  # residual ones
    "conditioning": 32,  # features of z beside those of the head
    "head_weight": 0.05,  # in the loss, of the distribution given z alone, which shows reconstructions
}

# What each family has in `model` beside the shared options. "vqvae" takes a quantizer instead.
FAMILIES = {
    "autoencoder": {"latent_channels": 20},  # numbers per position
    "gumbel": CODES | {"temperature": 0.5},  # of the relaxed draws in training
    "vae": {"latent_channels": 20},
    "vimco": CODES | {"samples": 50, "training_samples": 50},  # draws in the bound that is reported, and trained
    "vqvae": {},
}
VARIANTS = tuple(FAMILIES)


def get_config(family: str = "vqvae", quantizer: str = "vector_ema") -> Config:
    """Give a complete config of a family, and for the VQ-VAE of a quantizer; a key that it lacks cannot be set."""
    own = choose(FAMILIES, family, "default")
    if family == "vqvae":
        own = {"quantizer": quantizer_section(quantizer)}
    config = ml_collections.ConfigDict({"seed": 0, "logging": {"tensorboard": True}})

    config.data = ml_collections.ConfigDict()
    config.data.name = "cifar10"  # or fashion_mnist, imagenet2012, imagenet_resized/32x32, /64x64, folder, photos
    config.data.data_dir = config_dict.placeholder(str)  # None: ~/tensorflow_datasets
    config.data.image_size = config_dict.placeholder(int)  # side of the crops, pixels; None: images as they are
    config.data.channels = config_dict.placeholder(int)  # 1 or 3; None: as the data set has them
    config.data.patch_size = config_dict.placeholder(int)  # side of random squares to train on; None: whole images
    config.data.crop_scale = (0.2, 1.0)  # least and greatest share of the area that a training crop takes
    config.data.eval_crop = "centre"  # or "random": as in training, but the same for an image every time
    config.data.min_side = 32  # pixels; smaller images are left out
    config.data.max_bad_images = 10  # files that cannot be decoded before training stops
    config.data.batch_size = 128  # images, over all devices
    config.data.flip = False  # mirror every second training image
    config.data.num_threads = 2  # that prepare batches; changes no figure
    config.data.num_workers = 0  # processes that do so instead, for images in files, e.g. one per core; 0: threads

    config.model = ml_collections.ConfigDict(own)
    config.model.family = family
    config.model.likelihood = "softmax"  # or softmax_embedding, logistic, logistic_mixture, context, gaussian_global,
    # _channel, _pixel, bernoulli, squared_error (not for vae, gumbel, vimco)
    # What the likelihood "context" is made of; unused with any other.
    config.model.context = ml_collections.ConfigDict(CONTEXT)
    config.model.hidden = 256  # channels
    config.model.residual_units = 256  # channels inside a residual block
    config.model.residual_blocks = 2
    config.model.downsamplings = 2  # halvings of the sides: 32x32 to 8x8
    config.model.dtype = "float32"  # of activations, or bfloat16; parameters, codebook, likelihood stay float32
    config.model.rematerialise = False  # compute activations again for gradients: more time, less memory
    config.model.pixel_mean = (0.485, 0.456, 0.406)  # of pixels in 0..1, one or one per channel; here ImageNet's
    config.model.pixel_std = (0.229, 0.224, 0.225)

    config.optimizer = ml_collections.ConfigDict(_optimizer(2e-4, "constant", 0))
    config.train = ml_collections.ConfigDict()
    config.train.num_steps = 250_000
    config.train.log_every = 100  # steps
    config.train.eval_every = 5000  # steps between validations
    config.train.checkpoint_every = 5000  # steps
    config.train.average_decay = 0.0  # of a moving average of the weights, per step, that is measured; 0: none is kept

    # The second stage, for families with codes; all but name is unused where name is "none".
    config.prior = ml_collections.ConfigDict({"optimizer": _optimizer(3e-4, "cosine", 1000)})
    config.prior.name = "pixelcnn"  # or "transformer" (features a multiple of 32), or "none"
    config.prior.features = 128  # channels
    config.prior.layers = 10
    config.prior.dropout = 0.2
    config.prior.conditional = False  # on the class
    config.prior.label_dropout = 0.0  # share of labels left out in training; above 100 classes it must be above 0
    config.prior.codes = "cached"  # made once for every training image; or "fresh": of augmented images
    config.prior.batch_size = 64  # images' codes, over all devices
    config.prior.num_steps = 100_000
    config.prior.log_every = 100  # steps
    config.prior.eval_every = 2000  # steps between validations, of which the best is kept
    config.prior.average_decay = 0.0  # as in train
    config.prior.patience = 10  # validations without a better one before training stops; 0: never

    # Numbers of images; 0 means all.
    config.eval = ml_collections.ConfigDict()
    config.eval.batch_size = 128  # changes no figure
    config.eval.validation_images = 0
    config.eval.test_images = 0
    config.eval.fit_images = 5000  # training images whose codes are counted for a validation
    config.eval.final_fit_images = 0  # and after the last step
    config.eval.samples = 64  # draws of importance-weighted bounds, or codes in a VQ-VAE's sum; 0: no such bound
    config.eval.subset_images = 500  # test images for the VQ-VAE's sum, and for bounds of
    config.eval.subset_samples = 1000  # draws
    return config.lock()


def _optimizer(learning_rate: float, schedule: str, warmup_steps: int) -> dict:
    """`name` is "adam", or "muon"; `schedule` is "constant", or "cosine" to 0 at the last step; `warmup_steps` rise
    linearly from 0.
    """
    return {"name": "adam", "learning_rate": learning_rate, "schedule": schedule, "warmup_steps": warmup_steps}


def quantizer_section(name: str) -> dict:
    """Give the section of a quantizer in `registry.QUANTIZERS`, with its defaults."""
    parameters = inspect.signature(choose(registry.QUANTIZERS, name, "the quantizers")).parameters
    return {"name": name} | {key: QUANTIZER.get(key, argument.default) for key, argument in parameters.items()}


def set_quantizer(config: Config, name: str, **options) -> Config:
    """Give a VQ-VAE's config another quantizer, with its defaults but for some options."""
    own = ml_collections.ConfigDict(quantizer_section(name))
    own.update(options)
    with config.unlocked():
        config.model.quantizer = own
    return config.lock()


def choose(table: Mapping, variant: str, page: str):
    """Look a variant up; a ValueError names the known ones."""
    if variant not in table:
        raise ValueError(f"unknown variant {variant!r} of {page}: known: {', '.join(filter(None, table))}")
    return table[variant]


def change(config: Config, variants: Mapping[str, Callable], variant: str, page: str) -> Config:
    """Apply what a page's variant changes (a function of the config), and give the config."""
    choose(variants, variant, page)(config)
    return config


def smoke(config: Config) -> None:
    """Make both stages as small as they get: a minute on a CPU."""
    smoke_model(config)
    config.prior.update(features=8, layers=2, batch_size=8, num_steps=10, log_every=5, eval_every=5)
    config.prior.optimizer.warmup_steps = 2


def smoke_model(config: Config) -> None:
    """Make the first stage and the evaluation as small as they get."""
    config.data.batch_size = 16
    config.model.update(hidden=16, residual_units=16)
    config.train.update(num_steps=10, log_every=1, eval_every=5, checkpoint_every=5)
    config.eval.update(validation_images=64, test_images=64, fit_images=64, samples=4, subset_images=16)
