"""A discriminator and its losses, shared by GANs and by autoencoders with an adversarial loss."""

import dataclasses
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.errors import unknown, validate_number
from diffjax.models.networks import apply
from diffjax.nn import spectral
from diffjax.typing import PRNGKey, StepContext, Variables

Params = dict[str, Any]
PowerIteration = dict[str, Any]  # estimates of each kernel's first singular vector, for spectral normalisation
DiscriminatorInputs = tuple[Array, *tuple[Array | None, ...]]  # images [B, H, W, C], then conditions
SETTINGS = ("loss", "spectral_norm", "r1_gamma")  # fields of a config section that are not the network's


@dataclasses.dataclass(frozen=True)
class DiscriminatorLoss:
    """A discriminator with its loss and that of the generator.

    Attributes:
      network: (images [B, H, W, C], ...) -> logits [B, ...], high where an image looks real.
      loss: "hinge" (Lim & Ye 2017) | "logistic" (Goodfellow et al. 2014, with the non-saturating generator loss).
      spectral_norm: whether every kernel is normalised to spectral norm one (Miyato et al. 2018).
      r1_gamma: gamma of the R1 penalty, gamma / 2 |gradient at real images|^2 (Mescheder et al. 2018, equation 9);
        0: off.
    """

    network: nn.Module
    loss: str
    spectral_norm: bool
    r1_gamma: float

    @classmethod
    def from_config(cls, network: nn.Module, section: ConfigDict) -> "DiscriminatorLoss":
        """Builds the losses of `network` from a config section with the fields SETTINGS.

        Raises:
          UserError: an unknown loss, or a negative weight.
        """
        if section.loss not in ("hinge", "logistic"):
            raise unknown("loss of the discriminator", section.loss, ("hinge", "logistic"))
        validate_number("r1_gamma", section.r1_gamma, low=0)
        return cls(network, section.loss, section.spectral_norm, section.r1_gamma)

    def init(self, key: PRNGKey, *inputs: Array | None) -> tuple[Params, PowerIteration]:
        """Returns fresh parameters and power iteration. Consumes `key`."""
        network_key, power_key = jax.random.split(key)
        params = dict(self.network.init(network_key, *inputs)["params"])
        return params, (spectral.init(power_key, params) if self.spectral_norm else {})

    def logits(self, params: Params, power: PowerIteration, *inputs: Array | None) -> Float[Array, "B ..."]:
        """Returns the logits of images, per example or patch."""
        return apply(self.network, self._normalized(params, power)[0], *inputs)

    def _normalized(self, params: Params, power: PowerIteration) -> tuple[Params, PowerIteration]:
        return spectral.normalized(params, power) if self.spectral_norm else (params, power)

    def generator_loss(self, params: Params, power: PowerIteration, *fake: Array | None) -> Float[Array, " B"]:
        """Returns the generator's loss per example, which falls as its images look real."""
        logits = self.logits(params, power, *fake)
        return _mean(-logits if self.loss == "hinge" else jax.nn.softplus(-logits))

    def train_loss(
        self, params: Params, power: PowerIteration, real: DiscriminatorInputs, fake: DiscriminatorInputs
    ) -> tuple[Float[Array, " B"], dict[str, Float[Array, " B"]], PowerIteration]:
        """Returns the discriminator's loss and metrics per example, and the power iteration after the step.

        No gradient reaches the generator.
        """
        normalized, updated = self._normalized(params, power)

        def logits(inputs: DiscriminatorInputs) -> Array:
            return apply(self.network, normalized, *jax.lax.stop_gradient(inputs))

        on_real, on_fake = logits(real), logits(fake)
        if self.loss == "hinge":
            loss = 0.5 * (_mean(nn.relu(1 - on_real)) + _mean(nn.relu(1 + on_fake)))
        else:
            loss = _mean(jax.nn.softplus(-on_real)) + _mean(jax.nn.softplus(on_fake))
        metrics = {"real": _mean(on_real), "fake": _mean(on_fake)}
        if self.r1_gamma:
            squares = self._squared_gradient(normalized, *real)
            loss, metrics = loss + self.r1_gamma / 2 * squares, metrics | {"penalty": squares}
        return loss, metrics, updated

    def _squared_gradient(self, params: Params, images: Array, *conditions: Array | None) -> Float[Array, " B"]:
        def score(images: Array) -> Array:
            return _mean(apply(self.network, params, images, *conditions)).sum()

        gradient = jax.grad(score)(images)
        return jnp.sum(gradient.reshape(len(images), -1) ** 2, axis=-1)


def discriminator_variables(variables: Variables) -> tuple[Params, PowerIteration]:
    """Returns the discriminator's parameters and power iteration from a model's variables."""
    return variables["params"]["discriminator"], variables.get("spectral", {})


def collection(power: PowerIteration) -> dict[str, PowerIteration]:
    """Returns a power iteration as a collection of variables; empty without spectral normalisation."""
    return {"spectral": power} if power else {}


def is_active(context: StepContext, start_step: int) -> Float[Array, ""]:
    """Returns 1 from step `start_step` on, 0 before."""
    return (context.step >= start_step).astype(jnp.float32)


def _mean(logits: Float[Array, "B ..."]) -> Float[Array, " B"]:
    return logits.reshape(logits.shape[0], -1).mean(axis=-1)
