"""What every sampler is given: a denoiser, which after the network speaks x_0 alone. Guidance wraps one."""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.noise import Noise
from diffjax.diffusion.parameterizations import Coefficients

Network = Callable[[Float[Array, "B ..."], Float[Array, "B"]], Float[Array, "B ..."]]  # (input, time) -> F
Parameterization = Callable[[Noise], Coefficients]


class Denoised(NamedTuple):
    """An estimate of x_0 given x_t."""

    x0: Float[Array, "B ..."]
    interpolation: Float[Array, "B ..."] | None = None  # for variance.learned_range, if the network says one
    gradient: Float[Array, "B ..."] | None = None  # of a log-probability to be raised, by x_t: classifier guidance


Denoiser = Callable[[Float[Array, "B ..."], Noise], Denoised]  # the batch stands at one level: Noise of scalars


def from_network(network: Network, parameterization: Parameterization, *, learned_variance: bool = False) -> Denoiser:
    """The denoiser of a batched network whose output means what `parameterization` says.

    With `learned_variance` the network gives twice the channels (the last axis), the second half being the
    interpolation of the variance, -1 for small and 1 for large: Improved DDPM's code.
    """

    def denoise(x, noise):
        c = parameterization(noise)
        output = network(c.input * x, jnp.broadcast_to(c.time, x.shape[:1]))
        output, interpolation = split_variance(output) if learned_variance else (output, None)
        return Denoised(c.skip * x + c.out * output, interpolation)

    return denoise


def split_variance(output: Float[Array, "B ... 2C"]) -> tuple[Float[Array, "B ... C"], Float[Array, "B ... C"]]:
    """(F, interpolation in about [0, 1]) of a network that learns its variance."""
    output, spread = jnp.split(output, 2, axis=-1)
    return output, (spread + 1.0) / 2.0


def thresholded(denoiser: Denoiser, threshold: Callable[[Array], Array]) -> Denoiser:
    """Bounds each estimate of x_0: see thresholds.py."""

    def denoise(x, noise):
        denoised = denoiser(x, noise)
        return denoised._replace(x0=threshold(denoised.x0))

    return denoise
