"""What every sampler is given: a denoiser, which after the network speaks x_0 alone. Guidance wraps one."""

from collections.abc import Callable
from typing import NamedTuple

from jax import Array
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.noise import Noise
from diffjax.diffusion.parameterizations import Coefficients

Network = Callable[[Float[Array, "B ..."], Float[Array, "B"]], Float[Array, "B ..."]]  # (x, t) -> F
Parameterization = Callable[[Noise], Coefficients]


class Denoised(NamedTuple):
    """An estimate of x_0 given x_t."""

    x0: Float[Array, "B ..."]
    variance: Float[Array, "B ..."] | None = None  # learned interpolation between the fixed log-variances, if any


Denoiser = Callable[[Float[Array, "B ..."], Noise], Denoised]  # the batch stands at one level: Noise of scalars


def from_network(network: Network, parameterization: Parameterization) -> Denoiser:
    """The denoiser of a batched network whose output means what `parameterization` says."""

    def denoise(x, noise):
        c = parameterization(noise)
        output = network(c.input * x, jnp.broadcast_to(noise.t, x.shape[:1]))
        return Denoised(c.skip * x + c.out * output)

    return denoise


def clip(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Keeps x_0 within the range of the data: DDPM's sampler does so at each step (Ho et al. 2020, code)."""

    def denoise(x, noise):
        denoised = denoiser(x, noise)
        return denoised._replace(x0=jnp.clip(denoised.x0, low, high))

    return denoise
