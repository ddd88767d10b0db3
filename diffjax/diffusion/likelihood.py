"""Likelihoods under a diffusion model: the terms of the variational bound, and the likelihood by the ODE.

In bits per dimension of images quantised to 256 values, at -1, -1 + 2/255, ..., 1 in x_0.
"""

import math
from collections.abc import Callable

import chex
import jax
from jax import Array, lax
from jax import numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Float, Int

from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.noise import Noise, eps_from_x0, initial_std, perturb, posterior_mean, step_variances
from diffjax.diffusion.random import Keys, fold_in_each, normal_each
from diffjax.diffusion.sampling import Examples, at

_BIN = 2.0 / 255.0  # width of a grey level


def prior_term(x0: Float[Array, "..."], last: Noise) -> Float[Array, ""]:
    """Computes L_T = KL(q(x_T | x_0) || p(x_T)) of one example, bits/dim, for the last level.

    Reference: DDPM (Ho et al. 2020), eq. 5.
    """
    std = initial_std(last)
    return _bits(_gaussian_kl(last.alpha * x0, last.sigma**2, jnp.zeros_like(x0), std**2))


def step_term(
    denoised: Denoised,
    x0: Array,
    x: Array,
    now: Noise,
    next: Noise,
    *,
    before: Noise,
    variance: Callable,
    decoder: str = "exact",
) -> Float[Array, ""]:
    """Computes one term of the variational bound, of one example, bits/dim.

    L_t-1 = KL(q(x_next | x_now, x_0) || p(x_next | x_now)), or the discretised decoder L_0 if `next` is clean.

    Args:
      denoised: estimate of the model at `x`.
      x0: clean example.
      x: a sample of q(x_now | x_0).
      now: level of `x`.
      next: level of the target of the step.
      before: level before `now` in the chain, or `now` itself at the start of the chain: see noise.step_variances.
      variance: a choice of variance.py.
      decoder: a name of DECODERS, the convention of L_0.

    Reference: DDPM, eq. 5.
    """
    clean = next.sigma == 0
    small, large = step_variances(before, now, next)
    spread = variance(small, large, denoised.variance_interpolation)
    kl = _gaussian_kl(posterior_mean(x0, x, now, next), small, posterior_mean(denoised.x0, x, now, next), spread)
    if decoder == "ddpm" and denoised.variance_interpolation is None:
        spread = variance(small, small)
    return jnp.where(clean, DECODERS[decoder](x0, denoised.x0, jnp.sqrt(spread)), _bits(kl))


def decoder_term(x0: Float[Array, "..."], mean: Float[Array, "..."], std: Array) -> Float[Array, ""]:
    """Computes -log p(x_0), bits/dim: the mass of a Gaussian in the bin of each grey level.

    The first and the last bin include the tails.

    Args:
      x0: clean example.
      mean: of the Gaussian.
      std: of the Gaussian.

    Reference: DDPM, eq. 13.
    """
    above, below = (x0 - mean + _BIN / 2) / std, (x0 - mean - _BIN / 2) / std
    # log(cdf(above) - cdf(below)), in the tail where both are small and precise.
    flip = below > 0
    high, low = _log_cdf(jnp.where(flip, -below, above)), _log_cdf(jnp.where(flip, -above, below))
    inside = high + jnp.log(jnp.maximum(-jnp.expm1(low - high), 1e-12))
    log_probability = jnp.where(x0 < -0.999, _log_cdf(above), jnp.where(x0 > 0.999, _log_cdf(-below), inside))
    return _bits(-log_probability)


def ddpm_decoder_term(x0: Float[Array, "..."], mean: Float[Array, "..."], std: Array) -> Float[Array, ""]:
    """Computes `decoder_term` as the code of DDPM, Improved DDPM and ADM does.

    Approximates the normal distribution function by a tanh, and bounds each probability by 1e-12 from below.
    """

    def cdf(x):
        return (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))) / 2.0

    above, below = cdf((x0 - mean + _BIN / 2) / std), cdf((x0 - mean - _BIN / 2) / std)
    probability = jnp.where(x0 < -0.999, above, jnp.where(x0 > 0.999, 1.0 - below, above - below))
    return _bits(-jnp.log(jnp.maximum(probability, 1e-12)))


# Conventions of L_0. "exact" is eq. 13 of DDPM with the chosen variance. "ddpm" is the code of DDPM, Improved DDPM and
# ADM: it approximates the distribution function, and the fixed variances, also `fixed_large`, are the small one.
DECODERS = {"exact": decoder_term, "ddpm": ddpm_decoder_term}


def bound_terms(
    keys: Keys,
    denoiser: Denoiser,
    x0: Examples,
    levels: Noise,
    which: Int[Array, " K"],
    *,
    variance: Callable,
    decoder: str = "exact",
) -> Float[Array, "K B"]:
    """Estimates terms of the variational bound, each by one sample of x_t.

    Term i is that of the step from levels[i] to levels[i + 1]. The bound is `prior_term` plus the sum of all terms, on
    any sub-sequence of timesteps.

    Args:
      keys: [B]; term i folds i into them.
      denoiser: the model.
      x0: clean examples [B, ...].
      levels: of the chain, leaves [N + 1], the clean level last.
      which: indices of the terms.
      variance: a choice of variance.py.
      decoder: a name of DECODERS, the convention of L_0.

    Returns:
      The terms [K, B], bits/dim.
    """

    def term(i):
        now, next, before = at(levels, i), at(levels, i + 1), at(levels, jnp.maximum(i - 1, 0))
        eps = normal_each(fold_in_each(keys, i), x0.shape[1:])
        x = perturb(x0, eps, now)

        def one(denoised, x0, x):
            return step_term(denoised, x0, x, now, next, before=before, variance=variance, decoder=decoder)

        return jax.vmap(one)(denoiser(x, now), x0, x)

    return lax.map(term, which)


def distortions(
    keys: Keys, denoiser: Denoiser, x0: Examples, levels: Noise, which: Int[Array, " K"]
) -> Float[Array, "K B"]:
    """Computes the mean squared error of the estimate of x_0 from one sample of x_t.

    Args:
      keys: [B]; level i folds i into them, as `bound_terms` does.
      denoiser: the model.
      x0: clean examples [B, ...].
      levels: of the chain, leaves [N + 1].
      which: indices of the levels.

    Returns:
      The errors [K, B], in squared units of x0.

    Reference: Ho et al. 2020 (DDPM), eq. 15.
    """

    def error(i):
        now = at(levels, i)
        x = perturb(x0, normal_each(fold_in_each(keys, i), x0.shape[1:]), now)
        return jnp.mean((denoiser(x, now).x0 - x0) ** 2, axis=tuple(range(1, x0.ndim)))

    return lax.map(error, which)


def ode_bits(
    keys: Keys, denoiser: Denoiser, x0: Examples, levels: Noise, steps: Int[Array, ""] | int, *, exact: bool = False
) -> Float[Array, " B"]:
    """Computes -log2 p(x_0) / D - log2(2 / 255) by the probability-flow ODE.

    Integrates from the last noisy level, where x_0 is used as x_t / alpha_t (ibid., app. C), up to levels[0], by Heun's
    method. The variable is the angle arctan(sigma / alpha), in which x / sqrt(alpha^2 + sigma^2) has the velocity v
    (Salimans & Ho 2022, app. D): finite at every level.

    Args:
      keys: [B], of the probes if the trace is estimated.
      denoiser: the model.
      x0: [B, ...]; images are dequantised: the mean over dequantisations then bounds the value of the quantised image.
      levels: leaves [N + 1], the clean level last; the first `steps` + 1 are used.
      steps: may be traced.
      exact: whether to compute the trace by D directional derivatives; otherwise Hutchinson's estimate from one
        Rademacher probe (Hutchinson 1990; Grathwohl et al. 2019).

    Returns:
      Bits/dim [B].

    Reference: Song et al. 2021b, eq. 39 and 40.
    """
    chex.assert_equal_shape_prefix((keys, x0), 1)
    dimensions = math.prod(x0.shape[1:])
    probe = jax.vmap(lambda key: jax.random.rademacher(key, x0.shape[1:], x0.dtype))(keys)

    def velocity(y, noise):
        scale = initial_std(noise)
        x = scale * y
        estimate = denoiser(x, noise).x0
        return (noise.alpha * eps_from_x0(x, estimate, noise) - noise.sigma * estimate) / scale

    def with_trace(y, noise):
        def along(direction):
            return jax.jvp(lambda y: velocity(y, noise), (y,), (direction,))

        if not exact:
            v, change = along(probe)
            return v, _sum(change * probe)

        def diagonal(i):
            direction = jnp.zeros((dimensions,), y.dtype).at[i].set(1.0).reshape(y.shape[1:])
            return along(jnp.broadcast_to(direction, y.shape))[1].reshape(len(y), -1)[:, i]

        return velocity(y, noise), jnp.sum(lax.map(diagonal, jnp.arange(dimensions), batch_size=16), axis=0)

    def angle(noise):
        return jnp.arctan2(noise.sigma, noise.alpha)

    def up(j, state):
        y, log_volume = state
        now, next = at(levels, steps - 1 - j), at(levels, steps - 2 - j)
        width = angle(next) - angle(now)
        v, trace = with_trace(y, now)
        next_v, next_trace = with_trace(y + width * v, next)
        return y + width / 2 * (v + next_v), log_volume + width / 2 * (trace + next_trace)

    first = at(levels, steps - 1)
    shrink = first.alpha / initial_std(first)
    y, log_volume = lax.fori_loop(0, steps - 1, up, (shrink * x0, jnp.zeros(x0.shape[0])))
    log_p = _sum(norm.logpdf(y)) + log_volume + dimensions * jnp.log(shrink)
    return -(log_p / dimensions + math.log(_BIN)) / math.log(2.0)


def dequantized(keys: Keys, x0: Examples) -> Examples:
    """Adds noise, uniform over the bin of each value; consumes `keys`.

    Reference: Theis et al. 2016, sec. 3.1.
    """
    return x0 + _BIN * jax.vmap(lambda key: jax.random.uniform(key, x0.shape[1:], minval=-0.5, maxval=0.5))(keys)


def _log_cdf(x: Array) -> Array:
    """Computes the log of the normal distribution function; in the far tail by an expansion with finite gradient."""
    far = jnp.minimum(x, -30.0)
    tail = -(far**2) / 2 - jnp.log(-far) - math.log(2 * math.pi) / 2 - 1 / far**2
    return jnp.where(x < -30.0, tail, norm.logcdf(jnp.maximum(x, -30.0)))


def _gaussian_kl(mean: Array, variance: Array, other_mean: Array, other_variance: Array) -> Array:
    """KL(N(mean, variance) || N(other_mean, other_variance)), elementwise, in nats."""
    ratio = variance / other_variance
    return (ratio - 1.0 - jnp.log(ratio) + (mean - other_mean) ** 2 / other_variance) / 2.0


def _bits(nats: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.mean(nats) / math.log(2.0)


def _sum(x: Float[Array, "B ..."]) -> Float[Array, " B"]:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))
