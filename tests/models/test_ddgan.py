"""The denoising diffusion GAN: real and fake pairs against the process's closed forms, and its sampling."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.noise import posterior_mean, posterior_variance, transition_variance
from diffjax.models.diffusion.process import make_schedule
from diffjax.models.gan import ddgan
from tests.models.test_gan import SPEC, built, config

N = 40_000
SCHEDULE = make_schedule(config("ddgan").diffusion)
KEYS = jax.random.split(jax.random.key(0), N)
pairs = jax.jit(ddgan.sample_pair, static_argnames="schedule")


def fill(value):
    return jnp.full((N, 1), value, jnp.float32)


def flat(*arrays):
    return (np.asarray(a, np.float64)[:, 0] for a in arrays)


def assert_moments(samples, mean, variance):
    """Compares mean and variance, to five standard errors."""
    std = np.sqrt(variance)
    np.testing.assert_allclose(np.mean(samples), mean, atol=5 * std / np.sqrt(N) + 1e-5)
    np.testing.assert_allclose(np.var(samples), variance, rtol=5 * np.sqrt(2 / N) + 1e-4, atol=1e-9)


def test_the_schedule_matches_the_paper():
    """Xiao et al. 2022, appendix C: the VP SDE with beta from 0.1 to 20, discretised."""
    i = np.arange(1, 5)
    betas = 1 - np.exp(-0.1 / 4 - (20 - 0.1) * (2 * i - 1) / (2 * 4**2))
    levels = SCHEDULE(jnp.arange(1.0, 5.0))
    np.testing.assert_allclose(levels.alpha**2, np.cumprod(1 - betas), rtol=1e-4)
    np.testing.assert_allclose(levels.sigma**2, 1 - np.cumprod(1 - betas), rtol=1e-4)
    before = SCHEDULE(jnp.arange(4.0))
    np.testing.assert_allclose(transition_variance(levels, before), betas, rtol=1e-4)


@pytest.mark.parametrize("t", [1, 2, 4])
def test_real_pairs_follow_the_forward_process(t):
    now, next = SCHEDULE(float(t)), SCHEDULE(t - 1.0)
    before, x = flat(*pairs(KEYS, fill(0.7), jnp.full(N, float(t)), SCHEDULE))
    assert_moments(before, 0.7 * next.alpha, next.sigma**2)
    assert_moments(x, 0.7 * now.alpha, now.sigma**2)
    assert_moments(x - now.alpha / next.alpha * before, 0.0, transition_variance(now, next))


@pytest.mark.parametrize("t", [2, 4])
def test_fake_pairs_follow_the_posterior(t):
    now, next = (jax.tree.map(lambda a: jnp.full(N, a), SCHEDULE(level)) for level in (float(t), t - 1.0))
    draw = jax.jit(ddgan.sample_posterior)
    mean = posterior_mean(-0.4, 0.9, SCHEDULE(float(t)), SCHEDULE(t - 1.0))
    variance = posterior_variance(SCHEDULE(float(t)), SCHEDULE(t - 1.0))
    assert_moments(*flat(draw(KEYS, fill(-0.4), fill(0.9), now, next)), mean, variance)
    # From the true x_0 they have the distribution of real pairs.
    before, x = pairs(KEYS, fill(0.7), jnp.full(N, float(t)), SCHEDULE)
    other = jax.random.split(jax.random.key(1), N)
    before, fake, x = flat(before, draw(other, fill(0.7), x, now, next), x)
    real_moments, moments = np.cov(before, x), np.cov(fake, x)
    np.testing.assert_allclose(moments, real_moments, atol=5 * np.sqrt(4 / N))
    assert_moments(fake, 0.7 * float(next.alpha[0]), float(next.sigma[0]) ** 2)


def test_the_last_step_returns_the_clean_image():
    one, clean = (jax.tree.map(lambda a: jnp.full(3, a), SCHEDULE(t)) for t in (1.0, 0.0))
    x0, x = jax.random.normal(jax.random.key(2), (2, 3, 4, 4, 1))
    samples = jax.jit(ddgan.sample_posterior)(jax.random.split(jax.random.key(0), 3), x0, x, one, clean)
    np.testing.assert_allclose(samples, x0, atol=1e-6)


def test_a_deterministic_sampler_still_has_random_latents():
    """Samples from one x_T differ by z; the output is the last estimate, a tanh."""
    gan_config, model, variables = built("ddgan")
    keys, label = jax.random.split(jax.random.key(0), 6), jnp.zeros(6, jnp.int32)
    draw = jax.jit(lambda keys, latent, plan: model.sample(variables, keys, {"label": label, "latent": latent}, plan))
    latent = jnp.broadcast_to(jax.random.normal(jax.random.key(1), (1, 8, 8, 1)), (6, 8, 8, 1))
    images = draw(keys, latent, model.make_settings(gan_config.sampler, name="ddim"))
    assert np.abs(images).max() <= 1
    assert np.asarray(images).std(axis=0).max() > 1e-3  # by z
    np.testing.assert_array_equal(draw(keys, latent, model.make_settings(gan_config.sampler, name="ddim")), images)


@pytest.mark.slow
def test_every_timestep_has_its_own_latent():
    """A UNet that records its inputs in each step of a sampler."""
    calls = []

    class Recorder:
        def init(self, *args, **arguments):
            return {"params": {}}

        def apply(self, variables, x, t, *, embedding, **arguments):
            jax.debug.callback(lambda t, z: calls.append((float(t[0]), np.asarray(z))), t, embedding)
            return x

    gan_config = config("ddgan", mapping__width=4)
    model = dataclasses.replace(models.build(gan_config, SPEC), unet=Recorder())
    mapping = {"dense_0": {"kernel": jnp.eye(4), "bias": jnp.full(4, 10.0)}}  # the style is z, normalised, plus ten
    variables = {"params": {"generator": {"unet": {}, "mapping": mapping}}}
    keys, label = jax.random.split(jax.random.key(0), 64), jnp.zeros(64, jnp.int32)
    model.sample(variables, keys, {"label": label}, model.make_settings(gan_config.sampler))
    jax.effects_barrier()
    assert sorted(t for t, _ in calls) == [0, 1, 2, 3]
    latents = np.stack([z for _, z in sorted(calls, key=lambda pair: pair[0])])  # [T, B, Z]
    correlations = np.corrcoef(latents.reshape(4, -1)) - np.eye(4)
    assert np.abs(correlations).max() < 5 / np.sqrt(latents[0].size)
    assert len(np.unique(latents)) == latents.size
