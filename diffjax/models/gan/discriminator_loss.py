"""A discriminator and what it costs to fool it: shared by GANs and by autoencoders that are trained against one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.errors import checked_number, unknown
from diffjax.nn import spectral
from diffjax.typing import Moment, PRNGKey, Variables

Memory = Mapping[str, Any]  # of spectral normalisation: what is known of each kernel's singular vectors
Inputs = tuple[Array, ...]  # a picture, and what else the discriminator is shown
SETTINGS = ("loss", "spectral_norm", "penalty")  # of its section of a config; the other fields are the network's


@dataclasses.dataclass(frozen=True)
class Critic:
    """A discriminator with its loss.

    Attributes:
      network: (picture [B, H, W, C], ...) -> logits [B, ...], high where the picture looks real.
      loss: "hinge" (Lim & Ye 2017) | "logistic" (Goodfellow et al. 2014, the generator's not saturating).
      spectral_norm: whether every kernel has spectral norm one (Miyato et al. 2018).
      penalty: gamma of R1, gamma / 2 |gradient at real pictures|^2 (Mescheder et al. 2018, eq. 9); 0: none.
    """

    network: nn.Module
    loss: str
    spectral_norm: bool
    penalty: float

    @classmethod
    def from_config(cls, network: nn.Module, config) -> "Critic":
        """Of a section with the fields SETTINGS. Raises UserError."""
        if config.loss not in ("hinge", "logistic"):
            raise unknown("loss of the discriminator", config.loss, ("hinge", "logistic"))
        checked_number("penalty of the discriminator's gradient, penalty", config.penalty, low=0)
        return cls(network, config.loss, config.spectral_norm, config.penalty)

    def init(self, key: PRNGKey, *inputs: Array) -> tuple[Any, Memory]:
        """Fresh parameters and memory."""
        network_key, memory_key = jax.random.split(key)
        params = self.network.init(network_key, *inputs)["params"]
        return params, (spectral.init(memory_key, params) if self.spectral_norm else {})

    def judge(self, params: Any, memory: Memory, *inputs: Array) -> Float[Array, "B ..."]:
        """The logits."""
        return self.network.apply({"params": self._normalized(params, memory)[0]}, *inputs)

    def _normalized(self, params: Any, memory: Memory) -> tuple[Any, Memory]:
        return spectral.normalized(params, memory) if self.spectral_norm else (params, memory)

    def generator_loss(self, params: Any, memory: Memory, *fake: Array) -> Float[Array, "B"]:
        """Falls as the generator's pictures look real."""
        logits = self.judge(params, memory, *fake)
        return _mean(-logits if self.loss == "hinge" else jax.nn.softplus(-logits))

    def train_loss(
        self, params: Any, memory: Memory, real: Inputs, fake: Inputs
    ) -> tuple[Float[Array, "B"], dict[str, Float[Array, "B"]], Memory]:
        """The discriminator's loss, its metrics, and the memory after it. No gradient goes to the generator."""
        normalized, after = self._normalized(params, memory)

        def judge(inputs):
            return self.network.apply({"params": normalized}, *jax.lax.stop_gradient(inputs))

        on_real, on_fake = judge(real), judge(fake)
        if self.loss == "hinge":
            loss = 0.5 * (_mean(nn.relu(1 - on_real)) + _mean(nn.relu(1 + on_fake)))
        else:
            loss = _mean(jax.nn.softplus(-on_real)) + _mean(jax.nn.softplus(on_fake))
        metrics = {"real": _mean(on_real), "fake": _mean(on_fake)}
        if self.penalty:
            picture, *rest = real
            score = lambda x: _mean(self.network.apply({"params": normalized}, x, *rest)).sum()  # noqa: E731
            gradient = jax.grad(score)(picture)
            squares = jnp.sum(gradient.reshape(len(picture), -1) ** 2, axis=-1)
            loss, metrics = loss + self.penalty / 2 * squares, metrics | {"penalty": squares}
        return loss, metrics, after


def own(variables: Variables) -> tuple[Any, Memory]:
    """A discriminator's parameters and memory, among the variables of a system."""
    return variables["params"]["discriminator"], variables.get("spectral", {})


def kept(memory: Memory) -> dict[str, Memory]:
    """A memory as a collection of variables; none where nothing is remembered."""
    return {"spectral": memory} if memory else {}


def started(moment: Moment, start: int) -> Float[Array, ""]:
    """1 from step `start` on, 0 before: a discriminator is let in once there is something to tell apart."""
    return (moment.step >= start).astype(jnp.float32)


def _mean(logits: Float[Array, "B ..."]) -> Float[Array, "B"]:
    return logits.reshape(logits.shape[0], -1).mean(axis=-1)
