"""Rules and schedules of classifier-free guidance against NumPy."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import (
    guidance,
    guidance_rules,
    guidance_schedules,
    guided_steps,
    noise_schedules,
    samplers,
    sampling,
    time_grids,
)
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.guidance_rules import Estimates
from diffjax.diffusion.noise import Noise
from diffjax.registry import choices, lookup, options

B, SCALE = 5, 3.5
RNG = np.random.default_rng(4)
X, CONDITIONAL, UNCONDITIONAL = (np.float32(RNG.normal(size=(B, 3, 2))) for _ in range(3))
UNCONDITIONAL[0] = 0.0
SCHEDULE = noise_schedules.rectified_flow(1000, continuous=True)
TIMES = jnp.asarray(time_grids.trailing(4, SCHEDULE), jnp.float32)
ARGUMENTS = {"schedule": SCHEDULE, "steps": 4}


def noise(t, alpha, sigma):
    return Noise(*(jnp.asarray(v, jnp.float32) for v in (t, alpha, sigma)))


def flat(x):
    return np.float64(x).reshape(B, -1)


def guided(rule, t=500.0, alpha=0.5, sigma=0.5):
    x, conditional, unconditional = map(jnp.asarray, (X, CONDITIONAL, UNCONDITIONAL))
    return flat(rule(Estimates(x, noise(t, alpha, sigma), conditional, unconditional), SCALE).x0)


@pytest.mark.parametrize(("eta", "norm"), [(1.0, 0.0), (0.0, 0.0), (0.3, 2.0), (1.0, 0.5), (0.0, 1e6)])
def test_adaptive_projected_equals_the_papers_algorithm(eta, norm):
    """Sadat et al. 2024, algorithm 1, without momentum."""
    with_condition, without = flat(CONDITIONAL), flat(UNCONDITIONAL)
    update = with_condition - without
    if norm:
        update *= np.minimum(1, norm / np.linalg.norm(update, axis=1))[:, None]
    unit = with_condition / np.linalg.norm(with_condition, axis=1)[:, None]
    parallel = np.sum(update * unit, axis=1)[:, None] * unit
    expected = with_condition + (SCALE - 1) * (update - parallel + eta * parallel)
    x0 = guided(functools.partial(guidance_rules.adaptive_projected, eta=eta, norm=norm))
    np.testing.assert_allclose(x0, expected, rtol=1e-4, atol=1e-5)
    if (eta, norm) == (1.0, 0.0):
        np.testing.assert_allclose(x0, guided(guidance_rules.extrapolation), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("alpha", "sigma"), [(0.3, 0.7), (0.6, 0.8), (0.0, 1.0), (1.0, 20.0)])
def test_zero_star_equals_the_papers_velocities(alpha, sigma):
    """Fan et al. 2025, algorithm 1: at levels of other schedules, with x_t on the rectified flow of the same ratio."""
    with_condition, without, y = flat(CONDITIONAL), flat(UNCONDITIONAL), flat(X) / (alpha + sigma)
    share = sigma / (alpha + sigma)  # time of the rectified flow
    v_condition, v_without = (y - with_condition) / share, (y - without) / share
    star = np.sum(v_condition * v_without, axis=1) / np.sum(v_without**2, axis=1)
    v = (1 - SCALE) * star[:, None] * v_without + SCALE * v_condition
    rule = functools.partial(guidance_rules.zero_star, times=TIMES)
    for zero_steps, t, expected in ((0, 1000.0, y - share * v), (1, 750.0, y - share * v), (2, 750.0, y)):
        x0 = guided(functools.partial(rule, zero_steps=zero_steps), t, alpha, sigma)
        np.testing.assert_allclose(x0, expected, rtol=1e-4, atol=2e-4)


def test_zero_init_does_not_move_on_the_rectified_flow():
    levels = SCHEDULE(TIMES)
    denoisers = [lambda x, noise, c=c: Denoised(jnp.full_like(x, c)) for c in (0.7, -0.2)]
    rule = functools.partial(guidance_rules.zero_star, times=TIMES, zero_steps=2)
    denoise = guidance.classifier_free(*denoisers, SCALE, rule=rule)
    keys = jax.random.split(jax.random.key(0), B)
    run = jax.jit(lambda steps: sampling.run(keys, denoise, samplers.ddim(), levels, steps, jnp.asarray(X)))
    np.testing.assert_allclose(run(2), X, atol=1e-6)
    assert np.abs(run(3) - X).max() > 0.1


SCHEDULES = {  # factors at progress 0, 1/4, 1/2, 1
    "constant": [1, 1, 1, 1],
    "linear": [0, 0.5, 1, 2],
    "linear(low=0.75)": [0.75, 0.75, 1, 2],
    "cosine": [0, 1 - np.sqrt(0.5), 1, 2],
    "cosine(low=1.5)": [1.5, 1.5, 1.5, 2],
    "power_cosine(power=1)": [0, (1 - np.sqrt(0.5)) / 2, 0.5, 1],
    "power_cosine(power=2)": [0, (1 - np.cos(np.pi / 16)) / 2, (1 - np.sqrt(0.5)) / 2, 1],
}


@pytest.mark.parametrize("text", SCHEDULES)
def test_schedules_equal_their_formulas(text):
    assert {name.partition("(")[0] for name in SCHEDULES} == choices(guidance_schedules).keys()
    schedule = lookup("schedule", guidance_schedules, text).bind()
    np.testing.assert_allclose(schedule(jnp.array([0, 0.25, 0.5, 1])), SCHEDULES[text], atol=1e-6)
    if text in ("constant", "linear", "cosine"):
        np.testing.assert_allclose(schedule(jnp.linspace(0, 1, 1001)).mean(), 1.0, atol=1e-5)
    with_one, with_three = (guidance.scheduled(scale, schedule, 1000.0)(noise(500.0, 1, 1)) for scale in (1.0, 3.0))
    assert with_one == 1.0
    np.testing.assert_allclose(with_three, 1 + 2 * SCHEDULES[text][2], rtol=1e-5)


def test_guidance_of_the_first_channels_leaves_the_others():
    denoisers = [lambda x, noise, x0=x0: Denoised(jnp.asarray(x0)) for x0 in (CONDITIONAL, UNCONDITIONAL)]
    x0 = guidance.classifier_free(*denoisers, SCALE, channels=1)(jnp.asarray(X), noise(500.0, 0.5, 0.5)).x0
    expected = UNCONDITIONAL + SCALE * (CONDITIONAL - UNCONDITIONAL)
    np.testing.assert_allclose(x0[..., :1], expected[..., :1], rtol=1e-5)
    np.testing.assert_array_equal(x0[..., 1:], CONDITIONAL[..., 1:])


def with_momentum(momentum, *, scale=SCALE, interval=guidance.ALWAYS):
    """Returns the function from the running average to a denoiser."""
    rule = functools.partial(guidance_rules.adaptive_projected, eta=1.0, momentum=momentum)
    estimates = (lambda x, noise, *next: Denoised(0.5 * x), lambda x, noise, *next: Denoised(0.2 * x))

    def denoiser_with(average):
        return guidance.classifier_free(*estimates, scale, rule=rule, interval=interval, average=average)

    return denoiser_with


def test_momentum_adds_the_differences_of_earlier_steps():
    """The update is d_i + beta d_(i-1) + ..., only over the steps in the interval."""
    levels, keys = SCHEDULE(TIMES), jax.random.split(jax.random.key(0), B)
    x, average, beta = flat(X), 0.0, -0.6
    for i in range(4):
        now, next = (np.float64([levels.alpha[j], levels.sigma[j]]) for j in (i, i + 1))
        x0 = 0.5 * x
        if now[1] > 0.4 * now[0]:  # all steps but the last
            average = 0.3 * x + beta * average
            x0 = x0 + (SCALE - 1) * average
        x = next[0] * x0 + next[1] * (x - now[0] * x0) / now[1]
    sampler, denoiser_with = guided_steps.with_memory(samplers.ddim()), with_momentum(beta, interval=(0.4, np.inf))
    run = jax.jit(lambda x: sampling.run(keys, denoiser_with, sampler, levels, 4, x))
    np.testing.assert_allclose(flat(run(jnp.asarray(X))), x, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(choices(samplers)))
def test_every_sampler_has_its_first_evaluation_outside_of_branches(name):
    """Otherwise the memory of the step would leave a branch. The trace is enough."""
    make, levels = choices(samplers)[name], SCHEDULE(TIMES)
    sampler = make(**{option: value for option, value in ARGUMENTS.items() if option in options(make)})
    sampler = guided_steps.with_memory(sampler)
    keys = jax.random.split(jax.random.key(0), B)
    x = jax.eval_shape(lambda x: sampling.run(keys, with_momentum(0.5), sampler, levels, 4, x), jnp.asarray(X))
    assert x.shape == X.shape
