"""Running moments of losses and counts of skipped steps, against NumPy."""

import jax
import numpy as np
from jax import numpy as jnp

from diffjax.runs.state import initial_health
from diffjax.training.nonfinite import deviation, is_finite, record_skip, record_update


def seen(values):
    """The health after losses of two groups, the second's shifted."""
    step = jax.jit(lambda health, loss: record_update(health, {"a": loss, "b": loss + 1}))
    health = initial_health(["a", "b"])
    for value in values:
        health = step(health, jnp.float32(value))
    return health


def test_the_moments_are_exponential_averages():
    values = np.random.default_rng(0).normal(3, 0.5, 400)
    health = seen(values)
    mean, variance = 0.0, 0.0
    for step, value in enumerate(values):
        decay = min(0.99, step / (10 + step))
        # Moments of a mixture: the previous distribution with weight `decay`, else `value`.
        new = decay * mean + (1 - decay) * value
        variance = decay * (variance + (mean - new) ** 2) + (1 - decay) * (value - new) ** 2
        mean = new
    np.testing.assert_allclose(health.mean["a"], mean, rtol=1e-5)
    np.testing.assert_allclose(health.mean["b"], mean + 1, rtol=1e-5)
    np.testing.assert_allclose(health.variance["a"], variance, rtol=1e-3)


def test_a_spike_has_a_large_deviation_after_enough_losses():
    values = np.random.default_rng(1).normal(1, 0.1, 200)
    spike = {"a": jnp.float32(2.0), "b": jnp.float32(2.0)}  # b has no spike
    assert deviation(seen(values[:99]), spike) == 0
    np.testing.assert_allclose(deviation(seen(values), spike), 10, rtol=0.3)
    assert deviation(seen(values), {"a": jnp.float32(1.0), "b": jnp.float32(2.0)}) < 1


def test_skipped_steps_are_counted():
    health = record_skip(record_skip(initial_health(["a"])))
    assert (health.skipped, health.consecutive_skips, health.updates) == (2, 2, 0)
    health = record_skip(record_update(health, {"a": jnp.float32(1)}))
    assert (health.skipped, health.consecutive_skips, health.updates) == (3, 1, 1)


def test_is_finite_checks_every_number():
    tree = {"a": jnp.ones((2, 3)), "b": jnp.arange(3)}
    assert is_finite(tree)
    for bad in (jnp.nan, jnp.inf, -jnp.inf):
        assert not is_finite(tree | {"a": tree["a"].at[1, 2].set(bad)})
