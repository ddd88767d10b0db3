"""Encoder, quantiser and decoder of an autoencoder with one or several scales of codes.

With one scale: encoder, codebook, decoder. With several, each further encoder downsamples the features of the previous
scale. The coarsest scale is quantised first, and each finer scale is conditioned on the coarser codebook entries. The
decoder is conditioned on the entries of all scales. Scales are counted from the finest.

References:
  Razavi et al. 2019, "Generating diverse high-fidelity images with VQ-VAE-2", figure 2.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from diffjax.errors import UserError, validate_integer
from diffjax.latents.quantizers import Quantized, Quantizer
from diffjax.models.autoencoders.encoder_decoder import EncoderDecoder, Params
from diffjax.models.networks import apply, dtype_of
from diffjax.nn.autoencoders import vqvae
from diffjax.nn.layers import Dense
from diffjax.typing import Images, ImageSpec, Latents, PRNGKey, PRNGKeys, Variables


class Encoded(NamedTuple):
    """Latents of images, finest scale first."""

    latents: list[Latents]  # before quantisation, per scale
    quantized: list[Quantized]  # per scale
    latent: Latents  # input of the decoder


@dataclasses.dataclass(frozen=True)
class MultiScaleEncoder:
    """The networks between an image and the codes of each scale, finest scale first.

    Attributes:
      networks: between an image and the features of the finest scale.
      down, up: between the features of a scale and of the next coarser one.
      to_latent: from the features of a scale, joined with the coarser entries, to its latents; None: identity.
      grids: height and width of each scale.
      names: name of each scale in the variables.
    """

    networks: EncoderDecoder
    down: tuple[vqvae.Encoder, ...]
    up: tuple[vqvae.Decoder, ...]
    to_latent: tuple[Dense | None, ...]
    grids: tuple[tuple[int, int], ...]
    quantizer: Quantizer
    names: tuple[str, ...]

    @classmethod
    def from_config(cls, config: ConfigDict, spec: ImageSpec, quantizer: Quantizer) -> "MultiScaleEncoder":
        """Builds the networks of `config.model`.

        Raises:
          UserError: an invalid field, or networks that do not fit the images.
        """
        model, factors = config.model, tuple(config.model.get("coarser_factors", ()))
        if not factors:
            networks = EncoderDecoder.from_config(config, spec, latent_channels=quantizer.channels)
            return cls(networks, (), (), (None,), (networks.grid,), quantizer, ("level_0",))
        for factor in factors:
            validate_integer("model.coarser_factors", factor)
        width = validate_integer("model.z_channels", model.get("z_channels", 0), low=0)
        if not width:
            raise UserError(
                "model.z_channels=0: must be above 0 with model.coarser_factors; set it to the channels of the "
                "features between scales"
            )
        networks = EncoderDecoder.from_config(config, spec, latent_channels=width, hidden=0)
        grids, dtype = _grids(networks.grid, factors), dtype_of(config)
        return cls(
            networks=networks,
            down=tuple(vqvae.Encoder(width, factor=factor, dtype=dtype, channels=width) for factor in factors),
            up=tuple(vqvae.Decoder(width, factor=factor, dtype=dtype, channels=width) for factor in factors),
            to_latent=tuple(Dense(quantizer.channels, "torch") for _ in grids),
            grids=grids,
            quantizer=quantizer,
            names=tuple(f"level_{i}" for i in range(len(grids))),
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the decoder's input; with one scale also of the latents."""
        return (*self.grids[0], self.quantizer.channels + sum(up.outputs for up in self.up[:1]))

    def init(self, key: PRNGKey) -> Params:
        """Returns fresh parameters without the codebooks. Consumes `key`."""
        networks_key, *keys = jax.random.split(key, 1 + len(self.grids))
        params = dict(self.networks.init(networks_key, jnp.zeros((1, *self.latent_shape))))
        for level, level_key in enumerate(keys):
            params |= self._init_level(level, level_key)
        return params

    def _init_level(self, level: int, key: PRNGKey) -> dict[str, Params]:
        params, (down_key, up_key, latent_key) = {}, jax.random.split(key, 3)
        is_coarsest = level == len(self.grids) - 1
        if level:
            features = jnp.zeros((1, *self.grids[level - 1], self.down[0].outputs))
            params[f"down_{level}"] = self.down[level - 1].init(down_key, features)["params"]
            channels = self.quantizer.channels + (0 if is_coarsest else self.up[0].outputs)
            joined = jnp.zeros((1, *self.grids[level], channels))
            params[f"up_{level}"] = self.up[level - 1].init(up_key, joined)["params"]
        if (to_latent := self.to_latent[level]) is not None:
            joined = jnp.zeros((1, 1, 1, self.down[0].outputs + (0 if is_coarsest else self.up[0].outputs)))
            params[f"to_latent_{level}"] = to_latent.init(latent_key, joined)["params"]
        return params

    def encode(self, params: Params, memory: Variables, x: Images, dropout_keys: PRNGKeys | None = None) -> Encoded:
        """Encodes and quantises images [-1, 1]; `memory` is the quantiser's, by scale name."""
        features = [self.networks.encode(params, x, dropout_keys)]
        for level, down in enumerate(self.down, 1):
            features.append(apply(down, params[f"down_{level}"], features[-1]))
        latents, quantized = {}, {}

        def quantize(level: int, coarser: Latents | None) -> Latents:
            h, name = _join(features[level], coarser), self.names[level]
            if (to_latent := self.to_latent[level]) is not None:
                h = apply(to_latent, params[f"to_latent_{level}"], h)
            latents[level] = h
            quantized[level] = self.quantizer.quantize(params["codebook"][name], memory[name], h)
            return quantized[level].vectors

        latent = self._from_coarsest(params, quantize)
        levels = range(len(self.grids))
        return Encoded([latents[level] for level in levels], [quantized[level] for level in levels], latent)

    def join(self, params: Params, vectors: list[Latents]) -> Latents:
        """Returns the decoder's input for the codebook entries of each scale."""
        return self._from_coarsest(params, lambda level, coarser: vectors[level])

    def _from_coarsest(self, params: Params, vectors_of: Callable[[int, Latents | None], Latents]) -> Latents:
        """Joins the vectors of all scales; `vectors_of` maps a scale and the upsampled coarser vectors to its own."""
        coarser = None
        for level in reversed(range(1, len(self.grids))):
            joined = _join(vectors_of(level, coarser), coarser)
            coarser = apply(self.up[level - 1], params[f"up_{level}"], joined)
        return _join(vectors_of(0, coarser), coarser)


def _grids(finest: tuple[int, int], factors: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    grids = [finest]
    for factor in factors:
        if grids[-1][0] % factor:
            raise UserError(
                f"model.coarser_factors={factors}: a grid of {grids[-1][0]}x{grids[-1][0]} codes is not a multiple of "
                f"{factor}; use factors that divide it"
            )
        grids.append((grids[-1][0] // factor, grids[-1][1] // factor))
    return tuple(grids)


def _join(x: Latents, coarser: Array | None) -> Latents:
    return x if coarser is None else jnp.concatenate([x, coarser], axis=-1)
