"""Noised batches and per-example random numbers."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import next_times, noise_schedules, time_sampling
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.diffusion.random import fold_in_each, normal_each, split_each

KEYS = jax.random.split(jax.random.key(0), 3)
data = jax.random.key_data


def test_keys_are_split_and_folded_per_example():
    parts = split_each(KEYS, 3)
    assert len(parts) == 3 and len(split_each(KEYS)) == 2
    folded, folded_per_key = fold_in_each(KEYS, 7), fold_in_each(KEYS, jnp.array([4, 5, 6]))
    noise = normal_each(KEYS, (2, 5))
    for i, key in enumerate(KEYS):
        np.testing.assert_array_equal([data(part[i]) for part in parts], data(jax.random.split(key, 3)))
        np.testing.assert_array_equal(data(folded[i]), data(jax.random.fold_in(key, 7)))
        np.testing.assert_array_equal(data(folded_per_key[i]), data(jax.random.fold_in(key, 4 + i)))
        np.testing.assert_array_equal(noise[i], jax.random.normal(key, (2, 5)))
    assert normal_each(KEYS, (), jnp.bfloat16).dtype == jnp.bfloat16


def test_groups_have_the_same_timesteps():
    schedule = noise_schedules.cosine(20, continuous=True)
    options = {"schedule": schedule, "time_sampler": time_sampling.uniform(), "state": {}, "group": 2}
    keys = jax.random.split(jax.random.key(0), 4)
    batch = NoisedBatch.sample(
        keys, fold_in_each(keys, 1), jnp.zeros((4, 3)), next_times=next_times.uniform_below, **options
    )
    for times in (batch.noise.t, batch.next.t):
        np.testing.assert_array_equal(times[::2], times[1::2])
        assert times[0] != times[2]
    assert len(np.unique(batch.eps)) == 12
    with pytest.raises(ValueError, match="3 examples are not whole groups of 2"):
        NoisedBatch.sample(KEYS, KEYS, jnp.zeros((3, 3)), **options)


def test_examples_are_noised_at_the_timesteps_of_their_keys():
    schedule, sampler = noise_schedules.cosine(20), time_sampling.importance(horizon=1)
    state = {"squared_losses": jnp.arange(20.0) ** 4, "counts": jnp.ones(20), "age": jnp.ones(())}
    x0 = np.float32(np.random.default_rng(0).normal(size=(3, 4, 4, 1)))
    eps_keys = fold_in_each(KEYS, 1)
    make_batch = functools.partial(NoisedBatch.sample, schedule=schedule, time_sampler=sampler)
    batch = jax.jit(make_batch)(KEYS, eps_keys, x0, state=state)

    @jax.jit
    def one(key, eps_key):
        t, factor = sampler.sample(key, schedule, state)
        return schedule(t), factor, jax.random.normal(eps_key, (4, 4, 1))

    for i in range(3):
        noise, factor, eps = one(KEYS[i], eps_keys[i])
        np.testing.assert_allclose([*(leaf[i] for leaf in batch.noise)], noise, rtol=1e-6)
        np.testing.assert_allclose(batch.loss_factor[i], factor, rtol=1e-6)
        np.testing.assert_allclose(batch.eps[i], eps, rtol=1e-6)
        np.testing.assert_allclose(batch.x[i], noise.alpha * x0[i] + noise.sigma * eps, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(batch.x0, x0)
    assert len(np.unique(batch.noise.t)) > 1


def test_different_numbers_of_keys_and_examples_raise():
    with pytest.raises(AssertionError):
        NoisedBatch.sample(
            KEYS,
            KEYS[:2],
            jnp.zeros((3, 4)),
            schedule=noise_schedules.cosine(20),
            time_sampler=time_sampling.uniform(),
            state={},
        )
