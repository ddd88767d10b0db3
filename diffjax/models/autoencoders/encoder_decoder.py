"""The encoder and decoder of a config, and the distribution of an image given the decoder's output."""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.errors import UserError, unknown, validate_integer
from diffjax.latents import output_distributions
from diffjax.latents.output_distributions import Output, OutputDistribution
from diffjax.models.networks import apply, check_norms, dtype_of, make
from diffjax.nn.autoencoders import dalle, ldm, taesd, vqvae
from diffjax.nn.layers import Dense
from diffjax.nn.pixelcnn import PixelCNN, generate
from diffjax.registry import lookup
from diffjax.typing import Images, ImageSpec, Latents, PRNGKey, PRNGKeys

ARCHITECTURES = {"dalle": dalle, "ldm": ldm, "taesd": taesd, "vqvae": vqvae}
# Fields of config.model that are not the networks'.
_OTHER_FIELDS = ("architecture", "latent_channels", "z_channels", "coarser_factors")

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class EncoderDecoder:
    """The encoder and decoder of a config, and the output distribution p(x | z).

    Attributes:
      to_latent, from_latent: 1x1 convolutions between `model.z_channels` and the latent's channels; None if
        `model.z_channels` is 0.
      pixelcnn: autoregressive decoder, conditioned on the previous pixels and the output of `decoder`; None: the pixels
        are independent given z.
      shape: height, width and channels of an image.
      grid: height and width of a latent.
    """

    encoder: nn.Module
    decoder: nn.Module
    to_latent: Dense | None
    from_latent: Dense | None
    pixelcnn: PixelCNN | None
    distribution: OutputDistribution
    shape: tuple[int, int, int]
    grid: tuple[int, int]

    @classmethod
    def from_config(
        cls,
        config: ConfigDict,
        spec: ImageSpec,
        *,
        latent_channels: int,
        moments: int = 1,
        hidden: int | None = None,
    ) -> "EncoderDecoder":
        """Builds the networks of `config.model` and the distribution of `config.loss`.

        Args:
          latent_channels: channels of a latent, or number of logits of a discrete one.
          moments: parameters per latent channel that the encoder outputs; 2 for a Gaussian.
          hidden: channels of the features around the 1x1 convolutions; None: `model.z_channels`.

        Raises:
          UserError: an unknown choice, or networks that do not fit the images.
        """
        model, dtype = config.model, dtype_of(config)
        if model.architecture not in ARCHITECTURES:
            raise unknown("model.architecture", model.architecture, ARCHITECTURES)
        architecture, distribution = ARCHITECTURES[model.architecture], _distribution(config)
        pixelcnn, decoder_channels = None, spec.channels * distribution.parameters
        if config.get("pixelcnn"):
            pixelcnn = make(PixelCNN, config.pixelcnn, "pixelcnn", outputs=decoder_channels, dtype=dtype)
            decoder_channels = pixelcnn.features
        if hidden is None:
            hidden = validate_integer("model.z_channels", model.get("z_channels", 0), low=0)
        encoder_channels = moments * (hidden or latent_channels)
        encoder, decoder = _encoder_and_decoder(architecture, model, encoder_channels, decoder_channels, dtype)
        if architecture is ldm:
            check_norms("model", model, encoder.channels, encoder.multipliers)
        side = _latent_side(spec.size, encoder.factor, model.architecture)
        return cls(
            encoder=encoder,
            decoder=decoder,
            to_latent=Dense(moments * latent_channels, "torch") if hidden else None,
            from_latent=Dense(hidden, "torch") if hidden else None,
            pixelcnn=pixelcnn,
            distribution=distribution,
            shape=(spec.size, spec.size, spec.channels),
            grid=(side, side),
        )

    def init(self, key: PRNGKey, latent: Latents) -> Params:
        """Returns fresh parameters; `latent` is an example input of the decoder, [1, h, w, c]. Consumes `key`."""
        image, keys = jnp.zeros((1, *self.shape)), jax.random.split(key, 5)
        params, h = {}, image
        for name, module, k in (("encoder", self.encoder, keys[0]), ("to_latent", self.to_latent, keys[1])):
            if module is not None:
                h, variables = module.init_with_output(k, h)
                params[name] = variables.get("params", {})
        h = latent
        for name, module, k in (("from_latent", self.from_latent, keys[2]), ("decoder", self.decoder, keys[3])):
            if module is not None:
                h, variables = module.init_with_output(k, h)
                params[name] = variables["params"]
        if self.pixelcnn is not None:
            params["pixelcnn"] = self.pixelcnn.init(keys[4], image, h)["params"]
        return params

    def encode(self, params: Params, x: Images, dropout_keys: PRNGKeys | None = None) -> Latents:
        """Returns the encoder's output [B, h, w, C] for images [-1, 1]."""
        h = apply(self.encoder, params["encoder"], x, dropout_keys)
        return h if self.to_latent is None else apply(self.to_latent, params["to_latent"], h)

    def decode(self, params: Params, z: Latents, x: Images, dropout_keys: PRNGKeys | None = None) -> Output:
        """Returns the parameters of p(x | z) [B, H, W, C, P]; an autoregressive decoder reads `x`, causally."""
        h = self._features(params, z, dropout_keys)
        if self.pixelcnn is not None:
            h = apply(self.pixelcnn, params["pixelcnn"], x, h, dropout_keys)
        return self._by_value(h)

    def reconstruct(self, params: Params, z: Latents) -> Images:
        """Returns the mean of p(x | z), for a decoder that is not autoregressive."""
        return self.distribution.mean(self._by_value(self._features(params, z)))

    def sample(self, params: Params, keys: PRNGKeys, z: Latents) -> Images:
        """Samples p(x | z) pixel by pixel for an autoregressive decoder; returns its mean for any other."""
        if self.pixelcnn is None:
            return self.reconstruct(params, z)

        def pick(keys, output, position):
            pixel = self.distribution.sample(keys, output.reshape(len(output), 1, 1, self.shape[-1], -1))[:, 0, 0]
            return pixel, pixel

        condition = self._features(params, z)
        height, width, _ = self.shape
        return generate(self.pixelcnn, params["pixelcnn"], pick, keys, condition, height, width)

    def _features(self, params: Params, z: Latents, dropout_keys: PRNGKeys | None = None) -> Array:
        if self.from_latent is not None:
            z = apply(self.from_latent, params["from_latent"], z)
        return apply(self.decoder, params["decoder"], z, dropout_keys)

    def _by_value(self, h: Float[Array, "B H W CP"]) -> Output:
        return h.reshape(*h.shape[:3], self.shape[-1], self.distribution.parameters)


def _distribution(config: ConfigDict) -> OutputDistribution:
    """Returns the output distribution that `config.loss.likelihood` names. Raises UserError."""
    try:
        return lookup("loss.likelihood", output_distributions, config.loss.likelihood).bind()()
    except ValueError as error:
        raise UserError(f"loss.likelihood={config.loss.likelihood}: {error}") from error


def _encoder_and_decoder(
    architecture: ModuleType, model: Mapping[str, Any], encoder_channels: int, decoder_channels: int, dtype: DTypeLike
) -> tuple[Any, Any]:
    """Returns encoder and decoder with the fields of `config.model`, some of which only one of them has."""
    fields = {name: value for name, value in model.items() if name not in _OTHER_FIELDS}
    encoder_class, decoder_class = architecture.Encoder, architecture.Decoder
    encoder_fields, decoder_fields = (
        {field.name for field in dataclasses.fields(c)} for c in (encoder_class, decoder_class)
    )

    def build(module: type[nn.Module], has: set[str], other_has: set[str], outputs: int) -> nn.Module:
        section = {name: value for name, value in fields.items() if name in has or name not in other_has}
        return make(module, section, "model", outputs=outputs, dtype=dtype)

    return (
        build(encoder_class, encoder_fields, decoder_fields, encoder_channels),
        build(decoder_class, decoder_fields, encoder_fields, decoder_channels),
    )


def _latent_side(size: int, factor: int, architecture: str) -> int:
    if size % factor:
        raise UserError(
            f"data.image_size={size}: is not a multiple of {factor}, the downsampling factor of this {architecture} "
            "encoder; use another size, or a smaller factor (model.factor, model.multipliers)"
        )
    return size // factor
