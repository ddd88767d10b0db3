"""The networks of an autoencoder with one or several levels of latents: VQ-VAE-2 (Razavi et al. 2019), fig. 2.

With one level: encoder, codebook, decoder. With more, each further encoder shrinks the features of the one below it;
the top is quantised first, and every level below is told what those above have found. The decoder is told all of them.
Levels are counted from the finest.
"""

import dataclasses
from collections.abc import Callable

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array

from diffjax.errors import UserError, checked_whole
from diffjax.latents.quantizers import Quantized, Quantizer
from diffjax.models.autoencoders.encoder_decoder import Coder, Params
from diffjax.models.networks import dtype_of
from diffjax.nn.autoencoders import vqvae
from diffjax.nn.layers import Dense
from diffjax.typing import ImageSpec, Latents, PRNGKey, PRNGKeys, Variables


@dataclasses.dataclass(frozen=True)
class Levels:
    """The networks between an image and its latents, finest level first.

    Attributes:
      coder: between the image and the features of the finest level.
      down, up: between those of a level and of the next coarser one.
      to_latent: from a level's features, and what those above found, to its latents; None where the features are it.
    """

    coder: Coder
    down: tuple[nn.Module, ...]
    up: tuple[nn.Module, ...]
    to_latent: tuple[Dense | None, ...]
    grids: tuple[tuple[int, int], ...]
    quantizer: Quantizer
    names: tuple[str, ...]

    @classmethod
    def from_config(cls, config, spec: ImageSpec, quantizer: Quantizer) -> "Levels":
        """Raises UserError where networks and images do not fit."""
        model, factors = config.model, tuple(config.model.get("coarser_factors", ()))
        if not factors:
            coder = Coder.from_config(config, spec, encoded=quantizer.channels)
            return cls(coder, (), (), (None,), (coder.grid,), quantizer, ("level_0",))
        for factor in factors:
            checked_whole("model.coarser_factors", factor)
        width = checked_whole("model.z_channels", model.get("z_channels", 0), low=0)
        if not width:
            raise UserError("model.coarser_factors needs model.z_channels, the width of the features between levels")
        coder = Coder.from_config(config, spec, encoded=width, hidden=0)
        grids = [coder.grid]
        for factor in factors:
            if grids[-1][0] % factor:
                raise UserError(
                    f"model.coarser_factors={factors}: a grid of {grids[-1][0]}x{grids[-1][0]} codes is not a multiple "
                    f"of {factor}"
                )
            grids.append((grids[-1][0] // factor, grids[-1][1] // factor))
        fields = {"dtype": dtype_of(config), "channels": width}
        return cls(
            coder=coder,
            down=tuple(vqvae.Encoder(width, factor=factor, **fields) for factor in factors),
            up=tuple(vqvae.Decoder(width, factor=factor, **fields) for factor in factors),
            to_latent=tuple(Dense(quantizer.channels, "torch") for _ in grids),
            grids=tuple(grids),
            quantizer=quantizer,
            names=tuple(f"level_{i}" for i in range(len(grids))),
        )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of what the decoder is given; of one level also of what the encoder says."""
        return (*self.grids[0], self.quantizer.channels + sum(up.outputs for up in self.up[:1]))

    def init(self, key: PRNGKey) -> Params:
        """Fresh parameters, without the codebooks."""
        coder_key, *keys = jax.random.split(key, 1 + len(self.grids))
        params, h = dict(self.coder.init(coder_key, jnp.zeros((1, *self.latent_shape)))), None
        for level, k in enumerate(keys):
            down_key, up_key, latent_key = jax.random.split(k, 3)
            top = level == len(self.grids) - 1
            if level:
                h = jnp.zeros((1, *self.grids[level - 1], self.down[0].outputs))
                params[f"down_{level}"] = self.down[level - 1].init(down_key, h)["params"]
                wide = self.quantizer.channels + (0 if top else self.up[0].outputs)
                joined = jnp.zeros((1, *self.grids[level], wide))
                params[f"up_{level}"] = self.up[level - 1].init(up_key, joined)["params"]
            if self.to_latent[level] is not None:
                h = jnp.zeros((1, 1, 1, self.down[0].outputs + (0 if top else self.up[0].outputs)))
                params[f"to_latent_{level}"] = self.to_latent[level].init(latent_key, h)["params"]
        return params

    def encode(
        self, params: Params, memory: Variables, x: Array, dropout_keys: PRNGKeys | None = None
    ) -> tuple[list[Latents], list[Quantized], Latents]:
        """Latents and codes of each level, and what the decoder is given."""
        features = [self.coder.encode(params, x, dropout_keys)]
        for level, down in enumerate(self.down, 1):
            features.append(down.apply({"params": params[f"down_{level}"]}, features[-1]))
        z, found = [None] * len(features), [None] * len(features)

        def quantize(level, context):
            h = _beside(features[level], context)
            if self.to_latent[level] is not None:
                h = self.to_latent[level].apply({"params": params[f"to_latent_{level}"]}, h)
            books = params["codes"][self.names[level]], memory[self.names[level]]
            z[level], found[level] = h, self.quantizer.quantize(*books, h)
            return found[level].vectors

        latent = self._descend(params, quantize)
        return z, found, latent

    def join(self, params: Params, vectors: list[Latents]) -> Latents:
        """What the decoder is given, of the vectors of each level's codes."""
        return self._descend(params, lambda level, context: vectors[level])

    def _descend(self, params: Params, vectors_at: Callable[[int, Array | None], Latents]) -> Latents:
        """From the coarsest level down: each level's vectors, beside what those above it came to."""
        context = None
        for level in reversed(range(len(self.grids))):
            joined = _beside(vectors_at(level, context), context)
            if level:
                context = self.up[level - 1].apply({"params": params[f"up_{level}"]}, joined)
        return joined


def _beside(x: Latents, context: Latents | None) -> Latents:
    return x if context is None else jnp.concatenate([x, context], axis=-1)
