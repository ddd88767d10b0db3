"""Distribution matching against the scores of Gaussians in NumPy, and on a generator of a mixture."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp
from scipy import stats

from diffjax.diffusion import loss_weighting, noise_schedules, parameterizations, time_sampling
from diffjax.diffusion.denoiser import Prediction, predictor
from diffjax.diffusion.distribution_matching import distribution_matching
from diffjax.diffusion.noise import for_examples, initial_std
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.diffusion.parameterizations import Coefficients
from tests import tiny
from tests.diffusion.test_flow_map_losses import BATCH, MIXTURE, SMALL_EDM, SPREAD, T, fresh_params, perceptron

SCHEDULES = {"edm": noise_schedules.edm(T, continuous=True), "cosine": noise_schedules.cosine(T)}
DATA, GENERATOR = (0.4, 0.5), (-0.1, 0.8)  # mean and standard deviation
EXPECTED_SAMPLES = 40_000


def matching(schedule, **options):
    return distribution_matching(schedule=schedule, weighting=loss_weighting.x0, **options)


def gaussian_mean(mean, std):
    """E[x_0 | x_t] of Gaussian data."""

    def estimate(x, noise):
        alpha, sigma = (for_examples(v, x) for v in noise[1:])
        return mean + alpha * std**2 / ((alpha * std) ** 2 + sigma**2) * (x - alpha * mean)

    return estimate


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_gradient_is_the_difference_of_the_scores_of_gaussians(name):
    """By the scores of N(alpha m, alpha^2 s^2 + sigma^2), times sigma^2 / alpha, over mean |x_0 - mu_real|."""
    losses = matching(SCHEDULES[name])
    x0 = GENERATOR[0] + GENERATOR[1] * np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)

    @jax.jit
    def gradients(x0):
        both = gaussian_mean(*DATA), gaussian_mean(*GENERATOR)
        of = lambda real, fake: jax.grad(lambda x0: losses.matching_loss(keys(64), x0, real, fake).sum())(x0)  # noqa: E731
        return of(*both), of(both[1], both[1]), *losses.noise(keys(64), x0, losses.low, losses.high)

    actual, at_equality, x, now = gradients(x0)
    alpha, sigma = (np.float64(v)[:, None] for v in now[1:])
    x = np.float64(x)

    def score(mean, std):
        return -(x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)

    real = (x + sigma**2 * score(*DATA)) / alpha  # Tweedie's formula
    expected = sigma**2 / alpha * (score(*GENERATOR) - score(*DATA)) / np.abs(x0 - real).mean(1, keepdims=True)
    np.testing.assert_allclose(actual, expected / 3, rtol=2e-2, atol=2e-3)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_array_equal(at_equality, 0.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_noised_examples_have_levels_in_the_range(name):
    schedule = SCHEDULES[name]
    ranges = ((0.02, 0.98), (0.0, 1.0))
    noise = jax.jit(lambda x0: [matching(schedule).noise(keys(2000), x0, *ends) for ends in ranges])
    for (low, high), (x, now) in zip(ranges, noise(jnp.zeros((2000, 1))), strict=True):
        first = max(low * T, schedule.first)
        assert first <= now.t.min() < first + 0.01 * T and high * T - 0.01 * T < now.t.max() <= high * T
        assert stats.kstest(np.asarray((now.t - first) / (high * T - first)), "uniform").statistic < 0.05
        assert stats.kstest(np.asarray(x[:, 0] / now.sigma), "norm").statistic < 0.05


def test_the_loss_of_the_fake_score_at_its_optimum():
    """The variance of x_0 given x_t, with zero gradient by a gain and a shift of the estimate."""
    schedule, (mean, std) = SCHEDULES["cosine"], GENERATOR
    losses = matching(schedule)

    @jax.jit
    def values(gain, shift):
        x0 = mean + std * jax.random.normal(jax.random.key(2), (EXPECTED_SAMPLES, 1))
        batch = NoisedBatch.sample(
            keys(EXPECTED_SAMPLES),
            keys(EXPECTED_SAMPLES, 1),
            x0,
            schedule=schedule,
            time_sampler=time_sampling.uniform(),
            state={},
        )
        ones = jnp.ones(EXPECTED_SAMPLES)
        estimate = (1 + gain) * gaussian_mean(mean, std)(batch.x, batch.noise) + shift
        prediction = Prediction(estimate, Coefficients(0 * ones, ones, ones, ones))
        return losses.denoising_loss(batch, prediction).mean(), batch.noise

    (value, now), slopes = jax.value_and_grad(values, (0, 1), has_aux=True)(0.0, 0.0)
    alpha, sigma = (np.float64(v) for v in now[1:])
    np.testing.assert_allclose(value, ((std * sigma) ** 2 / ((alpha * std) ** 2 + sigma**2)).mean(), rtol=0.02)
    np.testing.assert_allclose(slopes, 0.0, atol=0.01)


@pytest.mark.slow
def test_one_step_of_a_trained_generator_has_the_distribution_of_the_data():
    """By the distance of Kolmogorov and Smirnov. All networks start as a denoiser; the teacher is the exact one."""
    losses = distribution_matching(schedule=SMALL_EDM, weighting=loss_weighting.edm)
    last = SMALL_EDM(float(T))

    def predict_with(params):
        return predictor(
            functools.partial(perceptron, params), functools.partial(parameterizations.edm, sigma_data=SPREAD)
        )

    def sample(params, key, count):
        x = initial_std(last) * jax.random.normal(key, (count, 1))
        return predict_with(params)(x, last).x0(x)

    def denoising_loss(params, key, x0):
        batch = NoisedBatch.sample(
            *(jax.random.split(k, BATCH) for k in jax.random.split(key)),
            x0,
            schedule=SMALL_EDM,
            time_sampler=time_sampling.uniform(),
            state={},
        )
        return losses.denoising_loss(batch, predict_with(params)(batch.x, batch.noise)).mean()

    def generator_loss(params, fake, key):
        sample_key, key = jax.random.split(key)
        x0 = sample(params, sample_key, BATCH)
        predict = predict_with(fake)
        return losses.matching_loss(
            jax.random.split(key, BATCH), x0, MIXTURE.mean, lambda x, now: predict(x, now).x0(x)
        ).mean()

    pretraining, training, every = 1500, 6000, 5
    optimizers = [
        optax.adam(optax.cosine_decay_schedule(1e-3, steps)) for steps in (pretraining, training, training // every)
    ]

    def move(optimizer, gradient, params, memory):
        updates, memory = optimizer.update(gradient, memory, params)
        return optax.apply_updates(params, updates), memory

    def pretrain(state, step):
        kind_key, data_key, key = jax.random.split(jax.random.fold_in(jax.random.key(1), step), 3)
        kinds = jax.random.bernoulli(kind_key, MIXTURE.shares[1], (BATCH,)).astype(int)
        centres, widths = (jnp.asarray(v, jnp.float32)[kinds] for v in MIXTURE[:2])
        x0 = (centres + widths * jax.random.normal(data_key, (BATCH,)))[:, None]
        return move(optimizers[0], jax.grad(denoising_loss)(state[0], key, x0), *state), None

    def train(state, step):
        generator, fake = state
        sample_key, key = jax.random.split(jax.random.fold_in(jax.random.key(2), step))
        x0 = sample(generator[0], sample_key, BATCH)
        new_generator = jax.lax.cond(
            step % every == 0,
            lambda: move(optimizers[2], jax.grad(generator_loss)(generator[0], fake[0], sample_key), *generator),
            lambda: generator,
        )
        return (new_generator, move(optimizers[1], jax.grad(denoising_loss)(fake[0], key, x0), *fake)), None

    @functools.partial(jax.jit, compiler_options=tiny.OPTIMIZED)
    def trained(params):
        (params, _), _ = jax.lax.scan(pretrain, (params, optimizers[0].init(params)), jnp.arange(pretraining))
        state = tuple((params, optimizer.init(params)) for optimizer in (optimizers[2], optimizers[1]))
        return params, jax.lax.scan(train, state, jnp.arange(training))[0][0][0]

    def distance(params):
        samples = np.asarray(sample(params, jax.random.key(3), 20_000))[:, 0]
        return stats.kstest(samples, cumulative).statistic

    def cumulative(x):
        return sum(share * stats.norm.cdf(x, c, w) for c, w, share in zip(*MIXTURE, strict=True))

    before, after = map(distance, trained(fresh_params(jax.random.key(0))))
    assert after < 0.1 < 0.3 < before
