"""The encoder and the decoder of a config, and the likelihood between the decoder and an image."""

import dataclasses
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.errors import UserError, checked_whole, unknown
from diffjax.latents import output_distributions
from diffjax.latents.output_distributions import Likelihood, Output
from diffjax.models.networks import check_norms, dtype_of, make
from diffjax.nn.autoencoders import dalle, ldm, vqvae
from diffjax.nn.layers import Dense
from diffjax.nn.pixelcnn import PixelCNN, generate
from diffjax.registry import choose
from diffjax.typing import Images, ImageSpec, Latents, PRNGKey, PRNGKeys

ARCHITECTURES = {"dalle": dalle, "ldm": ldm, "vqvae": vqvae}
# Fields of config.model that are not the architecture's.
_OWN = ("architecture", "latent_channels", "z_channels", "coarser_factors")

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Coder:
    """The encoder and the decoder of a config, and the likelihood between.

    Attributes:
      to_latent, from_latent: 1x1 convolutions between `model.z_channels` and the latent's; None where that is 0.
      pixelcnn: an autoregressive decoder, which sees the pixels so far and what `decoder` makes of the latent.
      shape: of an image.
      grid: height and width of a latent.
    """

    encoder: nn.Module
    decoder: nn.Module
    to_latent: Dense | None
    from_latent: Dense | None
    pixelcnn: PixelCNN | None
    likelihood: Likelihood
    shape: tuple[int, int, int]
    grid: tuple[int, int]

    @classmethod
    def from_config(
        cls, config, spec: ImageSpec, *, encoded: int, moments: int = 1, hidden: int | None = None
    ) -> "Coder":
        """Of `config.model` and `config.loss`. Raises UserError.

        Args:
          encoded: channels of what is said of a latent: all its `moments` together, of which a Gaussian has two.
          hidden: stands for model.z_channels.
        """
        model, dtype = config.model, dtype_of(config)
        if model.architecture not in ARCHITECTURES:
            raise unknown("model.architecture", model.architecture, ARCHITECTURES)
        try:
            likelihood = choose("loss.likelihood", output_distributions, config.loss.likelihood).bind()()
        except ValueError as error:
            raise UserError(f"loss.likelihood={config.loss.likelihood}: {error}") from error
        pixelcnn = None
        decoded = spec.channels * likelihood.parameters
        if config.get("pixelcnn"):
            pixelcnn = make(PixelCNN, config.pixelcnn, "pixelcnn", outputs=decoded, dtype=dtype)
            decoded = pixelcnn.features
        hidden = checked_whole("model.z_channels", model.get("z_channels", 0), low=0) if hidden is None else hidden
        architecture = ARCHITECTURES[model.architecture]
        fields = {name: value for name, value in model.items() if name not in _OWN}
        encoder, decoder = _pair(architecture, fields, moments * hidden or encoded, decoded, dtype)
        if architecture is ldm:
            check_norms("model", model, encoder.channels, encoder.multipliers)
        if spec.size % encoder.factor:
            raise UserError(
                f"data.image_size={spec.size} is not a multiple of {encoder.factor}, by which this "
                f"{model.architecture} encoder divides it: use another size, or fewer halvings (model.factor, "
                "model.multipliers)"
            )
        side = spec.size // encoder.factor
        return cls(
            encoder=encoder,
            decoder=decoder,
            to_latent=Dense(encoded, "torch") if hidden else None,
            from_latent=Dense(hidden, "torch") if hidden else None,
            pixelcnn=pixelcnn,
            likelihood=likelihood,
            shape=(spec.size, spec.size, spec.channels),
            grid=(side, side),
        )

    def init(self, key: PRNGKey, latent: Latents) -> Params:
        """Fresh parameters; `latent` [1, h, w, c] is any that the decoder is to be given."""
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
        """Images in [-1, 1] to what the encoder says of them, [B, h, w, encoded]."""
        h = self.encoder.apply({"params": params["encoder"]}, x, dropout_keys)
        return h if self.to_latent is None else self.to_latent.apply({"params": params["to_latent"]}, h)

    def decode(self, params: Params, z: Latents, x: Images, dropout_keys: PRNGKeys | None = None) -> Output:
        """The parameters of p(x | z); an autoregressive decoder sees x, each pixel those before it."""
        h = self._features(params, z, dropout_keys)
        if self.pixelcnn is not None:
            h = self.pixelcnn.apply({"params": params["pixelcnn"]}, x, h, dropout_keys)
        return self._by_value(h)

    def reconstruct(self, params: Params, z: Latents) -> Images:
        """The mean of p(x | z), where the decoder gives it at once."""
        return self.likelihood.mean(self._by_value(self._features(params, z)))

    def draw(self, params: Params, keys: PRNGKeys, z: Latents) -> Images:
        """Of an autoregressive decoder a draw from p(x | z), pixel after pixel; of another one its mean."""
        if self.pixelcnn is None:
            return self.reconstruct(params, z)

        def pick(keys, output, position):
            pixel = self.likelihood.draw(keys, output.reshape(len(output), 1, 1, self.shape[-1], -1))[:, 0, 0]
            return pixel, pixel

        condition = self._features(params, z)
        height, width, _ = self.shape
        return generate(self.pixelcnn, params["pixelcnn"], pick, keys, condition, height, width)

    def _features(self, params: Params, z: Latents, dropout_keys: PRNGKeys | None = None) -> Array:
        if self.from_latent is not None:
            z = self.from_latent.apply({"params": params["from_latent"]}, z)
        return self.decoder.apply({"params": params["decoder"]}, z, dropout_keys)

    def _by_value(self, h: Float[Array, "B H W CP"]) -> Output:
        return h.reshape(*h.shape[:3], self.shape[-1], self.likelihood.parameters)


def _pair(architecture: ModuleType, fields: Mapping, encoded: int, decoded: int, dtype) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder with the fields of `config.model`; some are of one of them only."""
    known = [{field.name for field in dataclasses.fields(c)} for c in (architecture.Encoder, architecture.Decoder)]
    made = []
    for cls, own, other, outputs in zip(
        (architecture.Encoder, architecture.Decoder), known, reversed(known), (encoded, decoded), strict=True
    ):
        mine = {name: value for name, value in fields.items() if name in own or name not in other}
        made.append(make(cls, mine, "model", outputs=outputs, dtype=dtype))
    return tuple(made)
