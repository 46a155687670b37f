"""The encoder and decoder with `nn.Conv` and `nn.ConvTranspose`: the same functions, written down simply."""

from dataclasses import fields, replace

import flax.linen as nn
import jax.numpy as jnp

from vqvae_jax.models.trunk import Family, Trunk


class PlainResidualStack(nn.Module):
    """`ResidualStack` in plain `nn.Conv`."""

    hidden: int
    residual_units: int
    blocks: int

    @nn.compact
    def __call__(self, x):
        for n in range(self.blocks):
            y = nn.relu(nn.Conv(self.residual_units, (3, 3), name=f"conv3x3_{n}")(nn.relu(x)))
            x = x + nn.Conv(self.hidden, (1, 1), name=f"conv1x1_{n}")(y)
        return nn.relu(x)


class PlainEncoder(nn.Module):
    """`Encoder` with strided convolutions."""

    hidden: int
    residual_units: int
    residual_blocks: int
    downsamplings: int
    features: int

    @nn.compact
    def __call__(self, x):
        for n in range(self.downsamplings):
            x = nn.Conv(self.hidden, (4, 4), (2, 2), padding=((1, 1), (1, 1)), name=f"down_{n}")(x)
            x = nn.relu(x) if n + 1 < self.downsamplings else x
        x = PlainResidualStack(self.hidden, self.residual_units, self.residual_blocks, name="residual")(x)
        return nn.Conv(self.features, (1, 1), name="out")(x)


class PlainDecoder(nn.Module):
    """`Decoder` with transposed convolutions."""

    hidden: int
    residual_units: int
    residual_blocks: int
    upsamplings: int
    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(self.hidden, (3, 3), name="in")(x)
        x = PlainResidualStack(self.hidden, self.residual_units, self.residual_blocks, name="residual")(x)
        for n in range(self.upsamplings):
            last = n + 1 == self.upsamplings
            features = self.features if last else self.hidden
            x = nn.ConvTranspose(features, (4, 4), (2, 2), padding=((2, 2), (2, 2)), name=f"up_{n}")(x)
            x = x if last else nn.relu(x)
        return x


class PlainTrunk(Trunk):
    """`Trunk` with plain networks."""

    def encoder(self, features):
        """Give the plain encoder."""
        return PlainEncoder(self.hidden, self.residual_units, self.residual_blocks, self.downsamplings, features)

    def decoder(self):
        """Give the plain decoder."""
        features = self.likelihood.features(self.channels)
        return PlainDecoder(self.hidden, self.residual_units, self.residual_blocks, self.downsamplings, features)


def plain(model: Family) -> Family:
    """Give the same model with plain networks."""
    trunk = PlainTrunk(**{field.name: getattr(model.trunk, field.name) for field in fields(model.trunk)})
    return replace(model, trunk=trunk)


def flip_transposed(params):
    """Exchange our kernels of transposed convolutions and those of `nn.ConvTranspose`, which runs them backwards."""
    decoder = dict(params["decoder"])
    for name in (name for name in decoder if name.startswith("up_")):
        decoder[name] = {**decoder[name], "kernel": jnp.flip(decoder[name]["kernel"], (0, 1))}
    return {**params, "decoder": decoder}
