"""How likely data are under a diffusion model: the variational bound term by term, and the exact ODE likelihood.

In bits a dimension of images quantised to 256 values, which stand at -1, -1 + 2/255, ..., 1 in x_0.
"""

import math
from collections.abc import Callable

import jax
from jax import Array, lax
from jax import numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Float, Int

from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.noise import Noise, implied_eps, perturb, posterior_mean, prior_std, step_variances
from diffjax.diffusion.sampling import Examples, Keys, at, fold_in, noise_of

_BIN = 2.0 / 255.0  # width of a grey level


def prior_term(x0: Float[Array, "..."], last: Noise) -> Float[Array, ""]:
    """L_T: KL(q(x_T | x_0) || p(x_T)) of one example, bits/dim: DDPM (Ho et al. 2020), eq. 5."""
    std = prior_std(last)
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
    """One term of the bound, of one example, bits/dim: DDPM, eq. 5.

    L_t-1 = KL(q(x_next | x_now, x_0) || p(x_next | x_now)), or the discretised decoder L_0 where `next` is clean.

    Args:
      denoised: the model's estimate at `x`, a draw from q(x_now | x_0).
      before: the level before `now` in the chain, or `now` itself where it is the chain's first: see
        noise.step_variances.
      variance: a choice of variance.py.
      decoder: one of DECODERS, the convention of L_0.
    """
    clean = next.sigma == 0
    small, large = step_variances(before, now, next)
    spread = variance(small, large, denoised.interpolation)
    kl = _gaussian_kl(posterior_mean(x0, x, now, next), small, posterior_mean(denoised.x0, x, now, next), spread)
    if decoder == "ddpm" and denoised.interpolation is None:
        spread = variance(small, small)
    return jnp.where(clean, DECODERS[decoder](x0, denoised.x0, jnp.sqrt(spread)), _bits(kl))


def decoder_term(x0: Float[Array, "..."], mean: Float[Array, "..."], std: Array) -> Float[Array, ""]:
    """-log p(x_0) of a Gaussian in each grey level's bin, the outer ones endless, bits/dim: DDPM, eq. 13."""
    above, below = (x0 - mean + _BIN / 2) / std, (x0 - mean - _BIN / 2) / std
    # log(cdf(above) - cdf(below)), on the side of the bell where both are small and so precise.
    flip = below > 0
    high, low = _log_cdf(jnp.where(flip, -below, above)), _log_cdf(jnp.where(flip, -above, below))
    inside = high + jnp.log(jnp.maximum(-jnp.expm1(low - high), 1e-12))
    log_probability = jnp.where(x0 < -0.999, _log_cdf(above), jnp.where(x0 > 0.999, _log_cdf(-below), inside))
    return _bits(-log_probability)


def ddpm_decoder_term(x0: Float[Array, "..."], mean: Float[Array, "..."], std: Array) -> Float[Array, ""]:
    """`decoder_term` as DDPM's code computes it, and Improved DDPM's and ADM's, which are ported from that.

    The normal distribution function is approximated by a tanh, and no probability is below 1e-12.
    """

    def cdf(x):
        return (1.0 + jnp.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))) / 2.0

    above, below = cdf((x0 - mean + _BIN / 2) / std), cdf((x0 - mean - _BIN / 2) / std)
    probability = jnp.where(x0 < -0.999, above, jnp.where(x0 > 0.999, 1.0 - below, above - below))
    return _bits(-jnp.log(jnp.maximum(probability, 1e-12)))


# Conventions of L_0. "exact" is eq. 13 of DDPM with the chosen variance. "ddpm" is the code of DDPM, Improved DDPM and
# ADM: it approximates the distribution function, and a fixed variance is that of the step before, `fixed_large` too.
DECODERS = {"exact": decoder_term, "ddpm": ddpm_decoder_term}


def bound_terms(
    keys: Keys,
    denoiser: Denoiser,
    x0: Examples,
    levels: Noise,
    which: Int[Array, "K"],
    *,
    variance: Callable,
    decoder: str = "exact",
) -> Float[Array, "K B"]:
    """The terms `which` of the bound over the chain `levels`, by one draw of x_t each: term i is that of the step from
    levels[i] to levels[i + 1]. The bound is `prior_term` plus the sum of all, on any sub-sequence of steps. `decoder`,
    one of DECODERS, is the convention of L_0.
    """

    def term(i):
        now, next, before = at(levels, i), at(levels, i + 1), at(levels, jnp.maximum(i - 1, 0))
        eps = noise_of(fold_in(keys, i), x0.shape[1:])
        x = perturb(x0, eps, now)
        given = {"before": before, "variance": variance, "decoder": decoder}
        one = lambda denoised, x0, x: step_term(denoised, x0, x, now, next, **given)  # noqa: E731
        return jax.vmap(one)(denoiser(x, now), x0, x)

    return lax.map(term, which)


def ode_bits(
    keys: Keys, denoiser: Denoiser, x0: Examples, levels: Noise, steps: Int[Array, ""] | int, *, exact: bool = False
) -> Float[Array, "B"]:
    """-log2 p(x_0) / D - log2(2 / 255) by the probability-flow ODE: Song et al. 2021b, eq. 39 and 40.

    Integrates from the last noisy level, where x_0 counts as x_t / alpha_t (ibid., app. C), up to levels[0] by Heun's
    method, in the angle arctan(sigma / alpha), along which x / sqrt(alpha^2 + sigma^2) moves with the velocity v of
    Salimans & Ho 2022, app. D: finite at every level.

    Args:
      keys: of the probes, where the trace is estimated.
      x0: [B, ...]; for images, dequantised: the mean over dequantisations is then a bound for the quantised image.
      levels: leaves [N + 1], of which `steps` + 1 are used, the clean one last.
      exact: whether the trace is exact, by D directional derivatives; else Hutchinson's estimate from one Rademacher
        probe (Hutchinson 1990; Grathwohl et al. 2019).
    """
    dimensions = math.prod(x0.shape[1:])
    probe = jax.vmap(lambda key: jax.random.rademacher(key, x0.shape[1:], x0.dtype))(keys)

    def velocity(y, noise):
        scale = prior_std(noise)
        x = scale * y
        estimate = denoiser(x, noise).x0
        return (noise.alpha * implied_eps(x, estimate, noise) - noise.sigma * estimate) / scale

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
    shrink = first.alpha / prior_std(first)
    y, log_volume = lax.fori_loop(0, steps - 1, up, (shrink * x0, jnp.zeros(x0.shape[0])))
    log_p = _sum(norm.logpdf(y)) + log_volume + dimensions * jnp.log(shrink)
    return -(log_p / dimensions + math.log(_BIN)) / math.log(2.0)


def dequantized(keys: Keys, x0: Examples) -> Examples:
    """Adds noise that is uniform over each value's bin: Theis et al. 2016, sec. 3.1."""
    return x0 + _BIN * jax.vmap(lambda key: jax.random.uniform(key, x0.shape[1:], minval=-0.5, maxval=0.5))(keys)


def _log_cdf(x: Array) -> Array:
    """log of the normal distribution function; far in the tail by its expansion, whose gradient is right there too."""
    far = jnp.minimum(x, -30.0)
    tail = -(far**2) / 2 - jnp.log(-far) - math.log(2 * math.pi) / 2 - 1 / far**2
    return jnp.where(x < -30.0, tail, norm.logcdf(jnp.maximum(x, -30.0)))


def _gaussian_kl(mean: Array, variance: Array, other_mean: Array, other_variance: Array) -> Array:
    """KL(N(mean, variance) || N(other_mean, other_variance)), elementwise, in nats."""
    ratio = variance / other_variance
    return (ratio - 1.0 - jnp.log(ratio) + (mean - other_mean) ** 2 / other_variance) / 2.0


def _bits(nats: Float[Array, "..."]) -> Float[Array, ""]:
    return jnp.mean(nats) / math.log(2.0)


def _sum(x: Float[Array, "B ..."]) -> Float[Array, "B"]:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))
