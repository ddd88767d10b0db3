"""Samplers on data whose best denoiser is known: they must give the data back."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.choice import choices
from diffjax.diffusion import denoiser as denoisers
from diffjax.diffusion import grids, guidance, parameterizations, samplers, sampling, schedules, variance
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import Noise, posterior_mean, posterior_variance

MEAN, STD = 0.7, 0.3  # of the data, x_0 ~ N(MEAN, STD^2)
SAMPLES = 40_000

SAMPLERS = {
    "ancestral, small": samplers.ancestral(variance=variance.fixed_small),
    "ancestral, large": samplers.ancestral(variance=variance.fixed_large),
    "ddim 0": samplers.ddim(eta=0.0),
    "ddim 0.5": samplers.ddim(eta=0.5),
    "ddim 1": samplers.ddim(eta=1.0),
    "ddim hat": samplers.ddim(eta=1.0, sigma_hat=True),
}


def best(x, noise):
    """E[x_0 | x_t] of the Gaussian, by Bayes' rule."""
    gain = noise.alpha * STD**2 / (noise.alpha**2 * STD**2 + noise.sigma**2)
    return Denoised(MEAN + gain * (x - noise.alpha * MEAN))


def draw(sampler, levels, steps, denoiser=best, count=SAMPLES):
    keys = jax.random.split(jax.random.key(1), count)
    return sampling.sample(keys, denoiser, sampler, levels, jnp.asarray(steps), shape=())


def exact_moments(name, levels, steps):
    """Mean and variance of the sampler's x_0 in float64: on a Gaussian each step is affine in x."""
    mean, var = 0.0, 1.0
    alpha, sigma = np.asarray(levels.alpha, np.float64), np.asarray(levels.sigma, np.float64)
    for i in range(steps):
        a, s, a2, s2 = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        gain = a * STD**2 / (a**2 * STD**2 + s**2)
        forward = s**2 - (a / a2) ** 2 * s2**2
        small = forward * s2**2 / s**2
        eta = {"ddim 0": 0.0, "ddim 0.5": 0.5}.get(name, 1.0)
        # x_0-hat = gain x + (1 - gain a) MEAN, eps-hat = (x - a x_0-hat) / s, x' = a2 x_0-hat + direction eps-hat + ..
        direction = np.sqrt(s2**2 - eta**2 * small)
        slope = a2 * gain + direction * (1 - a * gain) / s
        offset = (1 - gain * a) * MEAN * (a2 - direction * a / s)
        noise = forward if name in ("ancestral, large", "ddim hat") else eta**2 * small
        mean, var = slope * mean + offset, slope**2 * var + (noise if s2 > 0 else 0.0)
    return mean, var


@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_moments_at_few_steps(name, steps):
    """Every sampler's own discretisation error, exactly, to Monte-Carlo error."""
    levels = sampling.lay(schedules.cosine(1000), grids.trailing(steps, 1000))
    x = np.asarray(draw(SAMPLERS[name], levels, steps))
    mean, var = exact_moments(name, levels, steps)
    np.testing.assert_allclose(x.mean(), mean, atol=5 * np.sqrt(max(var, 1e-6) / SAMPLES))
    np.testing.assert_allclose(x.var(), var, rtol=5 * np.sqrt(2 / SAMPLES), atol=1e-6)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_all_steps_give_the_data(name):
    levels = sampling.lay(schedules.linear(1000), grids.trailing(1000, 1000))
    x = np.asarray(draw(SAMPLERS[name], levels, 1000))
    np.testing.assert_allclose(x.mean(), MEAN, atol=5 * STD / np.sqrt(SAMPLES) + 2e-3)
    tolerance = 0.05 if name in ("ancestral, large", "ddim hat") else 0.03  # the larger variance ends too wide
    np.testing.assert_allclose(x.std(), STD, rtol=tolerance)


def test_ddim_with_eta_1_is_ancestral():
    levels = sampling.lay(schedules.linear(1000), grids.leading(20, 1000))
    for one, other in (("ddim 1", "ancestral, small"), ("ddim hat", "ancestral, large")):
        a, b = (draw(SAMPLERS[name], levels, 20, count=100) for name in (one, other))
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_the_ancestral_posterior_is_ddpms():
    """Eq. 7 of Ho et al. 2020 in its own letters, between neighbouring steps."""
    schedule = schedules.linear(1000)
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    x0, x = 0.3, -0.8
    for t in (2, 500, 1000):
        beta, now, before = 1 - bar[t - 1] / bar[t - 2], bar[t - 1], bar[t - 2]
        mean = np.sqrt(before) * beta / (1 - now) * x0 + np.sqrt(1 - beta) * (1 - before) / (1 - now) * x
        levels = schedule(float(t)), schedule(float(t - 1))
        np.testing.assert_allclose(posterior_mean(x0, x, *levels), mean, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(posterior_variance(*levels), (1 - before) / (1 - now) * beta, rtol=1e-3)


def test_the_direction_shrinks_with_eta():
    """Else every level would be too noisy: alpha^2 var(x_0) + sigma^2 must come out at each step, here at the first."""
    schedule = schedules.cosine(1000)
    now, next = schedule(800.0), schedule(600.0)
    x = now.alpha * MEAN + np.sqrt(now.alpha**2 * STD**2 + now.sigma**2) * jax.random.normal(
        jax.random.key(0), (SAMPLES,)
    )

    def sampled(x, noise):  # a draw from q(x_0 | x_t) instead of its mean makes the step exact for any eta
        width = STD * noise.sigma / jnp.sqrt(noise.alpha**2 * STD**2 + noise.sigma**2)
        return Denoised(best(x, noise).x0 + width * jax.random.normal(jax.random.key(5), x.shape))

    for eta in (0.0, 0.3, 1.0):
        y, _ = samplers.ddim(eta=eta).step(jax.random.split(jax.random.key(2), SAMPLES), sampled, (), x, now, next)
        expected = next.alpha**2 * STD**2 + next.sigma**2
        np.testing.assert_allclose(np.var(np.asarray(y)), expected, rtol=5 * np.sqrt(2 / SAMPLES))


def test_a_sweep_compiles_once():
    """Steps, eta, sigma-hat and the guidance scale are inputs of one program, and padding changes nothing."""
    traces = 0
    schedule = schedules.linear(1000)

    @jax.jit
    def program(levels, steps, eta, hat, scale):
        nonlocal traces
        traces += 1
        guided = guidance.classifier_free(best, lambda x, noise: Denoised(best(x, noise).x0 * 0.9), scale)
        return draw(samplers.ddim(eta=eta, sigma_hat=hat), levels, steps, guided, count=64)

    for steps in (5, 10, 20, 50, 100, 1000):
        for eta, hat, scale in ((0.0, False, 1.0), (1.0, False, 2.0), (1.0, True, 1.0)):
            grid = grids.linspace(steps, 1000)
            padded = program(sampling.lay(schedule, grid, 1000), steps, eta, hat, scale)
            if steps <= 20:
                guided = guidance.classifier_free(best, lambda x, noise: Denoised(best(x, noise).x0 * 0.9), scale)
                sampler = samplers.ddim(eta=eta, sigma_hat=hat)
                alone = draw(sampler, sampling.lay(schedule, grid), steps, guided, count=64)
                np.testing.assert_allclose(padded, alone, atol=1e-5)
    assert traces == 1


def test_an_exact_network_gives_the_same_samples_in_any_parameterization():
    schedule = schedules.linear(100)
    levels = sampling.lay(schedule, grids.trailing(20, 100))

    def network(parameterization, x, t):
        noise = schedule(t[0] + 1.0)
        c = parameterization(noise)
        return (best(x, noise).x0 - c.skip * x) / c.out

    drawn = []
    for parameterization in choices(parameterizations).values():
        denoise = denoisers.from_network(functools.partial(network, parameterization), parameterization)
        drawn.append(draw(samplers.ddim(), levels, 20, denoise, count=200))
    for other in drawn[1:]:
        np.testing.assert_allclose(other, drawn[0], atol=1e-4)


def test_samples_depend_on_their_key_alone():
    levels = sampling.lay(schedules.linear(100), grids.trailing(10, 100))
    keys = jax.random.split(jax.random.key(3), 6)

    def run(keys):
        return sampling.sample(keys, best, samplers.ddim(eta=1.0), levels, jnp.asarray(10), shape=(2, 2))

    whole = run(keys)
    np.testing.assert_allclose(jnp.concatenate([run(keys[:1]), run(keys[1:])]), whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(run(keys[::-1])[::-1], whole, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(whole))) == whole.size


def test_clip_bounds_the_estimate_and_nothing_else():
    noise = Noise(*(jnp.asarray(v) for v in (0.0, 1.0, 0.5)))
    x = jnp.array([-3.0, -0.5, 0.2, 4.0])
    clipped = denoisers.clip(lambda x, noise: Denoised(x))(x, noise).x0
    np.testing.assert_array_equal(clipped, np.clip(x, -1, 1))


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 4.0])
def test_classifier_free_guidance_is_linear_in_eps_as_the_paper_has_it(scale):
    """Ho & Salimans 2022, eq. 6, with their w = scale - 1."""
    noise = Noise(*(jnp.asarray(v) for v in (0.0, 0.8, 0.6)))
    x, conditional, unconditional = jnp.array([0.3, -1.2]), jnp.array([0.5, 0.1]), jnp.array([-0.4, 0.2])
    guided = guidance.classifier_free(lambda x, n: Denoised(conditional), lambda x, n: Denoised(unconditional), scale)
    eps = [(x - 0.8 * x0) / 0.6 for x0 in (conditional, unconditional, guided(x, noise).x0)]
    w = scale - 1
    np.testing.assert_allclose(eps[2], (1 + w) * eps[0] - w * eps[1], rtol=1e-5)
