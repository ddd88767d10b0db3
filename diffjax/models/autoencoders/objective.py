"""The training loss of autoencoders: reconstruction, the cost of latents, and optionally an adversarial loss."""

import abc
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import jax
import optax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.errors import UserError, validate_integer, validate_number
from diffjax.latents.output_distributions import Output
from diffjax.models.autoencoders.encoder_decoder import EncoderDecoder
from diffjax.models.base import Model
from diffjax.models.gan.discriminator_loss import (
    SETTINGS,
    DiscriminatorLoss,
    collection,
    discriminator_variables,
    is_active,
)
from diffjax.models.images import to_unit_range
from diffjax.models.networks import check_buildable, check_norms, dtype_of, make
from diffjax.nn import perceptual
from diffjax.nn.discriminator import PatchDiscriminator
from diffjax.nn.pretrained import efficientnet
from diffjax.typing import Aux, Batch, Images, Latents, LossFn, PRNGKey, PRNGKeys, Scalar, StepContext, Variables

_MAX_ADAPTIVE_WEIGHT = 1e4  # as in VQGAN's code
M = TypeVar("M", bound="ReconstructionModel")


class AutoencoderOutput(NamedTuple):
    """Forward pass of an autoencoder in training."""

    latent: Latents  # input of the decoder
    output: Output  # parameters of p(x | z)
    latent_cost: Float[Array, " B"]  # KL or commitment of the latent, in nats per value of the image
    metrics: dict[str, Array]
    variables: dict[str, Any]  # new values of mutable collections


@dataclasses.dataclass(frozen=True)
class AdversarialLoss:
    """A patch discriminator of reconstructions: VQGAN (Esser et al. 2021), equations 5 to 7.

    Attributes:
      weight: weight of the generator's loss.
      start_step: step at which the discriminator is enabled.
      adaptive: whether the weight is multiplied by the ratio of the gradient norms of reconstruction and generator
        loss at the decoder's last layer.
    """

    discriminator: DiscriminatorLoss
    weight: float
    start_step: int
    adaptive: bool

    @classmethod
    def from_config(cls, config: ConfigDict) -> "AdversarialLoss":
        """Builds the loss of a config's section `adversarial`. Raises UserError for an invalid field."""
        section, settings = config.adversarial, ("weight", "start_step", "adaptive", *SETTINGS)
        network = make(PatchDiscriminator, section, "adversarial", but=settings, dtype=dtype_of(config))
        if network.norm == "group":
            multipliers = [2**i for i in range(1, min(network.layers, 3) + 1)]  # of the layers with a norm
            check_norms("adversarial", section, network.channels, multipliers, unit="norm")
        discriminator = DiscriminatorLoss.from_config(network, section)
        validate_number("adversarial.weight", section.weight, low=0)
        validate_integer("adversarial.start_step", section.start_step, low=0)
        return cls(discriminator, section.weight, section.start_step, section.adaptive)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReconstructionModel(Model):
    """An encoder and a decoder, trained to reconstruct images.

    Attributes:
      networks: encoder, decoder and output distribution.
      perceptual_weight: weight of the perceptual distance, computed with the frozen variables "features" if present.
      adversarial: the adversarial loss; None: reconstruction only.
    """

    networks: EncoderDecoder
    perceptual_weight: float = 0.0
    adversarial: AdversarialLoss | None = None
    note: str = ""

    @abc.abstractmethod
    def init_autoencoder(self, key: PRNGKey) -> Variables:
        """Returns fresh variables without the discriminator. Consumes `key`."""

    @abc.abstractmethod
    def forward(
        self, variables: Variables, x: Images, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> AutoencoderOutput:
        """Encodes and decodes images `x` [-1, 1] of a batch in training. Consumes `keys`."""

    def init(self, key: PRNGKey) -> Variables:
        if self.adversarial is None:
            return self.init_autoencoder(key)
        autoencoder_key, discriminator_key = jax.random.split(key)
        variables = self.init_autoencoder(autoencoder_key)
        example = jnp.zeros((1, *self.networks.shape))
        params, power = self.adversarial.discriminator.init(discriminator_key, example)
        return {**variables, **collection(power), "params": {**variables["params"], "discriminator": params}}

    @property
    def losses(self) -> Mapping[str, LossFn]:
        if self.adversarial is None:
            return {"model": self.reconstruction_loss}
        return {"model": self.adversarial_loss, "discriminator": self.discriminator_loss}

    def reconstruction_loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the reconstruction's cost plus the latent's, per example."""
        x, output = self._forward(variables, batch, keys, context)
        value, metrics = self._reconstruction_cost(variables, x, output.output)
        return value + output.latent_cost, Aux(metrics | output.metrics, output.variables)

    def adversarial_loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the reconstruction loss plus the weighted generator loss, per example."""
        adversarial = self._adversarial
        x, output = self._forward(variables, batch, keys, context)
        value, metrics = self._reconstruction_cost(variables, x, output.output)
        generator_loss = self._generator_loss(variables, output.output)
        weight = adversarial.weight * is_active(context, adversarial.start_step)
        if adversarial.adaptive:
            weight = weight * self._adaptive_weight(variables, output, x, context)
        metrics |= {"adversarial": generator_loss, "adversarial_weight": weight}
        return value + output.latent_cost + weight * generator_loss, Aux(metrics | output.metrics, output.variables)

    def discriminator_loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the discriminator's loss per example; 0 before it is enabled."""
        adversarial = self._adversarial
        # The same reconstructions as in the model's loss, so that XLA computes them once.
        x, output = self._forward(variables, batch, keys, context)
        fake = self.networks.distribution.mean(output.output)
        params_and_power = discriminator_variables(variables)
        value, metrics, power = adversarial.discriminator.train_loss(*params_and_power, (x,), (fake,))
        return is_active(context, adversarial.start_step) * value, Aux(metrics, collection(power))

    @property
    def _adversarial(self) -> AdversarialLoss:
        assert self.adversarial is not None
        return self.adversarial

    def _forward(
        self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> tuple[Images, AutoencoderOutput]:
        x = to_unit_range(batch["image"])
        return x, self.forward(variables, x, batch, keys, context)

    def _reconstruction_cost(
        self, variables: Variables, x: Images, output: Output
    ) -> tuple[Float[Array, " B"], dict[str, Array]]:
        value = self.networks.distribution.nll(x, output)
        metrics = {"reconstruction": value}
        if "features" in variables["frozen"]:
            feature_maps = functools.partial(efficientnet.features, variables["frozen"]["features"])
            distance = perceptual.distance(feature_maps, x, self.networks.distribution.mean(output))
            value, metrics = value + self.perceptual_weight * distance, metrics | {"perceptual": distance}
        return value, metrics

    def _generator_loss(self, variables: Variables, output: Output) -> Float[Array, " B"]:
        fake = self.networks.distribution.mean(output)
        return self._adversarial.discriminator.generator_loss(*discriminator_variables(variables), fake)

    def _adaptive_weight(
        self, variables: Variables, output: AutoencoderOutput, x: Images, context: StepContext
    ) -> Scalar:
        """Returns the ratio of both losses' gradient norms at the decoder's last layer: VQGAN, equation 7."""
        params = variables["params"]["model"]
        decoder, latent = params["decoder"], lax.stop_gradient(output.latent)

        def decode(kernel: Array) -> Output:
            last_layer = {**decoder, "conv_out": {**decoder["conv_out"], "kernel": kernel}}
            return self.networks.decode({**params, "decoder": last_layer}, latent, x)

        decoded, pull_back = jax.vjp(decode, decoder["conv_out"]["kernel"])

        def gradient_norm(cost) -> Scalar:
            return optax.global_norm(context.mean(pull_back(jax.grad(cost)(decoded))))

        reconstruction = gradient_norm(lambda decoded: self._reconstruction_cost(variables, x, decoded)[0].mean())
        adversarial = gradient_norm(lambda decoded: self._generator_loss(variables, decoded).mean())
        return lax.stop_gradient(jnp.clip(reconstruction / (adversarial + 1e-4), 0.0, _MAX_ADAPTIVE_WEIGHT))


def loss_fields(config: ConfigDict, networks: EncoderDecoder) -> dict[str, Any]:
    """Returns the fields of a ReconstructionModel that the sections `loss` and `adversarial` determine.

    Raises:
      UserError: an invalid field, or an adversarial loss with an autoregressive decoder.
    """
    if config.get("adversarial") and networks.pixelcnn is not None:
        raise UserError(
            "adversarial: is not supported with section pixelcnn, whose autoregressive decoder has no single "
            "reconstruction; drop adversarial"
        )
    validate_number("loss.perceptual_weight", config.loss.perceptual_weight, low=0)
    if config.loss.perceptual_file:
        note = f"perceptual loss on the features of {config.loss.perceptual_file}"
    else:
        note = f"no perceptual loss, {config.loss.likelihood} only: loss.perceptual_file is empty"
    return {
        "networks": networks,
        "perceptual_weight": config.loss.perceptual_weight,
        "adversarial": AdversarialLoss.from_config(config) if config.get("adversarial") else None,
        "note": note,
    }


def choose_class(
    networks: EncoderDecoder, plain: type[M], with_likelihood: type[M], with_codec: type[M], with_both: type[M]
) -> type[M]:
    """Returns the class of a model with these networks.

    It has a likelihood if the output distribution is a probability of grey levels, and a codec unless the decoder is
    autoregressive.
    """
    exact = networks.distribution.exact
    if networks.pixelcnn is None:
        return with_both if exact else with_codec
    return with_likelihood if exact else plain


def check_autoencoder(model: ReconstructionModel) -> None:
    """Raises UserError for networks that cannot be built."""
    adversarial = ", config.adversarial or config.data.image_size" * (model.adversarial is not None)
    check_buildable(model, f"config.model{adversarial}")
