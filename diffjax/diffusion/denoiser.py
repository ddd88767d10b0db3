"""The denoiser interface: predicts x_0 whatever the parameterization of the network. Guidance wraps denoisers.

A denoiser may be given the level that the sampler goes to. That of a flow map then predicts the x_0 with which a DDIM
step reaches the end of the trajectory there, rather than its tangent; other denoisers ignore it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.noise import Noise, for_examples
from diffjax.diffusion.parameterizations import Coefficients

# (input [B, ...], time [B], **options) -> F [B, ...], or F and features; that of a flow map accepts the interval [B] of
# the time input, too
Network = Callable[..., Any]
Parameterization = Callable[[Noise], Coefficients]
Interval = Callable[[Noise, Noise], Float[Array, "..."]]


class Denoised(NamedTuple):
    """An estimate of x_0 given x_t.

    Attributes:
      x0: the estimate.
      variance_interpolation: of a network that learns its variance: see variance.learned_range.
      guidance_gradient: gradient by x_t of a log-probability that guidance raises: see guidance.py.
      unclipped: the estimate before clipping; None: it is not clipped.
      shift: added to x0 after classifier-free guidance: see guidance.perturbed.
      displacement: added to x after the step of a sampler: see guided_steps.py.
      guidance_average: running average of a guidance rule with momentum: see guided_steps.py.
      features: features that the network returns besides F; None: it returns F alone.
    """

    x0: Float[Array, "B ..."]
    variance_interpolation: Float[Array, "B ..."] | None = None
    guidance_gradient: Float[Array, "B ..."] | None = None
    unclipped: Float[Array, "B ..."] | None = None
    shift: Float[Array, "B ..."] | None = None
    displacement: Float[Array, "B ..."] | None = None
    guidance_average: Float[Array, "B ..."] | None = None
    features: Float[Array, "B ..."] | None = None


# (x [B, ...], now, next or nothing) -> x_0; all examples at one noise level, Noise of scalars, or each at its own, with
# leaves [B, 1, ...] of as many axes as x
Denoiser = Callable[..., Denoised]


class Prediction(NamedTuple):
    """A network's output.

    Attributes:
      output: F.
      coefficients: of the parameterization at the noise level of each example, leaves [B], or of all, scalars.
      variance_interpolation: for variance.learned_range, about in [0, 1]; None: fixed variance.
      features: features that the network returns besides F; None: it returns F alone.
    """

    output: Float[Array, "B ..."]
    coefficients: Coefficients
    variance_interpolation: Float[Array, "B ..."] | None = None
    features: Float[Array, "B ..."] | None = None

    def x0(self, x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """Returns the estimate of x_0 from the noised examples `x`."""
        c = self.coefficients
        return for_examples(c.skip, x) * x + for_examples(c.out, x) * self.output


# (x [B, ...], now, next or nothing) -> prediction; levels with leaves [B], or scalars
Predict = Callable[..., Prediction]


def predictor(
    network: Network,
    parameterization: Parameterization,
    *,
    learned_variance: bool = False,
    interval: Interval | None = None,
) -> Predict:
    """Returns the function that prepares the inputs of a network and splits its output.

    Args:
      network: maps (input [B, ...], time [B]) to F [B, ...], or (input, time, interval [B]).
      parameterization: a choice of parameterizations.py, which defines the meaning of F.
      learned_variance: whether the network returns twice the channels (last axis), the second half for the
        interpolation of the variance, from -1 (small) to 1 (large).
      interval: (now, next) -> the network's input for the interval of a step, such as `time_difference`; None: it has
        none. Without a next level it is that of (now, now), for which F is that of the probability-flow ODE.

    Reference: EDM (Karras et al. 2022), eq. 7; for the learned variance, Improved DDPM's code.
    """

    def predict(x: Array, now: Noise, next: Noise | None = None, **network_options: Any) -> Prediction:
        c = parameterization(now)
        times = [c.time]
        if interval is not None:
            times.append(interval(now, now if next is None else next))
        times = [jnp.broadcast_to(jnp.ravel(time), x.shape[:1]) for time in times]
        output = network(for_examples(c.input, x) * x, *times, **network_options)
        output, features = output if isinstance(output, tuple) else (output, None)
        interpolation = None
        if learned_variance:
            output, interpolation = split_variance(output)
        return Prediction(output, c, interpolation, features)

    return predict


def time_difference(parameterization: Parameterization) -> Interval:
    """Returns the interval of a step as the difference of the time inputs of both levels."""
    return lambda now, next: parameterization(now).time - parameterization(next).time


def from_network(network: Network, parameterization: Parameterization, **options: Any) -> Denoiser:
    """Returns the denoiser of a network, which passes options to it; for the arguments see `predictor`."""
    predict = predictor(network, parameterization, **options)

    def denoise(x: Array, noise: Noise, next: Noise | None = None, **network_options: Any) -> Denoised:
        chex.assert_rank(noise.alpha, {0, x.ndim})
        prediction = predict(x, noise, next, **network_options)
        return Denoised(prediction.x0(x), prediction.variance_interpolation, features=prediction.features)

    return denoise


def split_variance(output: Float[Array, "B ... 2C"]) -> tuple[Float[Array, "B ... C"], Float[Array, "B ... C"]]:
    """Splits the output of a network that learns its variance into F and the interpolation, about in [0, 1]."""
    output, spread = jnp.split(output, 2, axis=-1)
    return output, (spread + 1.0) / 2.0


def with_last_step(denoiser: Denoiser, last: Denoiser, t: Float[Array, ""]) -> Denoiser:
    """Denoises by `last` if all examples are at timestep `t` or below, else by `denoiser`: experts of noise levels.

    Reference: Karlo (Kakao Brain 2022), whose upsampler has another network for its last step.
    """
    return lambda x, noise, *next: lax.cond(jnp.all(noise.t <= t), last, denoiser, x, noise, *next)


def with_clipping(denoiser: Denoiser, clipping: Callable[[Array], Array]) -> Denoiser:
    """Bounds each estimate of x_0 by `clipping`, a choice of clipping.py."""

    def denoise(x, *levels):
        denoised = denoiser(x, *levels)
        return denoised._replace(x0=clipping(denoised.x0), unclipped=denoised.x0)

    return denoise
