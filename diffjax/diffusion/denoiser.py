"""The denoiser interface: predicts x_0 whatever the parameterization of the network. Guidance wraps denoisers."""

from collections.abc import Callable
from typing import NamedTuple

import chex
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.noise import Noise
from diffjax.diffusion.parameterizations import Coefficients

Network = Callable[[Float[Array, "B ..."], Float[Array, " B"]], Float[Array, "B ..."]]  # (input, time) -> F
Parameterization = Callable[[Noise], Coefficients]


class Denoised(NamedTuple):
    """An estimate of x_0 given x_t.

    Attributes:
      x0: the estimate.
      variance_interpolation: of a network that learns its variance: see variance.learned_range.
      guidance_gradient: gradient by x_t of a log-probability that guidance raises: see guidance.py.
      unclipped: the estimate before clipping; None: it is not clipped.
    """

    x0: Float[Array, "B ..."]
    variance_interpolation: Float[Array, "B ..."] | None = None
    guidance_gradient: Float[Array, "B ..."] | None = (
        None  # of a log-probability to be raised, by x_t: classifier guidance
    )
    unclipped: Float[Array, "B ..."] | None = None


Denoiser = Callable[[Float[Array, "B ..."], Noise], Denoised]  # all examples at one noise level: Noise of scalars


def from_network(network: Network, parameterization: Parameterization, *, learned_variance: bool = False) -> Denoiser:
    """Returns the denoiser of a network.

    Args:
      network: maps (input [B, ...], time [B]) to F [B, ...].
      parameterization: a choice of parameterizations.py, which defines the meaning of F.
      learned_variance: whether the network returns twice the channels (last axis), the second half for the
        interpolation of the variance, from -1 (small) to 1 (large).

    Returns:
      The denoiser.

    Reference: EDM (Karras et al. 2022), eq. 7; for the learned variance, Improved DDPM's code.
    """

    def denoise(x: Array, noise: Noise) -> Denoised:
        chex.assert_rank(noise.alpha, 0)
        c = parameterization(noise)
        output = network(c.input * x, jnp.broadcast_to(c.time, x.shape[:1]))
        output, interpolation = split_variance(output) if learned_variance else (output, None)
        return Denoised(c.skip * x + c.out * output, interpolation)

    return denoise


def split_variance(output: Float[Array, "B ... 2C"]) -> tuple[Float[Array, "B ... C"], Float[Array, "B ... C"]]:
    """Splits the output of a network that learns its variance into F and the interpolation, about in [0, 1]."""
    output, spread = jnp.split(output, 2, axis=-1)
    return output, (spread + 1.0) / 2.0


def with_last_step(denoiser: Denoiser, last: Denoiser, t: Float[Array, ""]) -> Denoiser:
    """Denoises by `last` at timestep `t` and below, by `denoiser` above: experts of noise levels.

    Reference: Karlo (Kakao Brain 2022), whose upsampler has another network for its last step.
    """
    return lambda x, noise: lax.cond(noise.t <= t, last, denoiser, x, noise)


def with_clipping(denoiser: Denoiser, clipping: Callable[[Array], Array]) -> Denoiser:
    """Bounds each estimate of x_0 by `clipping`, a choice of clipping.py."""

    def denoise(x, noise):
        denoised = denoiser(x, noise)
        return denoised._replace(x0=clipping(denoised.x0), unclipped=denoised.x0)

    return denoise
