"""The learned weight of the loss: its optimum, and the loss there."""

import jax
import numpy as np
import optax
from jax import numpy as jnp

from diffjax.diffusion import learned_weighting, noise_schedules


def test_the_optimum_is_the_inverse_of_the_mean_loss_at_each_level():
    noise = noise_schedules.edm(1000, continuous=True)(jnp.linspace(1.0, 1000.0, 200))
    sigma = np.asarray(noise.sigma, np.float64)
    mean = 0.02 + sigma**2 / (1 + sigma**2) * (1 + 0.5 * np.sin(np.log(sigma)))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 2000))

    def update(state, key):
        params, memory = state
        loss = mean * jax.random.exponential(key, (200,))  # of this mean
        gradient = jax.grad(lambda p: learned_weighting.weighted(p, noise, loss).mean())(params)
        updates, memory = optimizer.update(gradient, memory, params)
        return (optax.apply_updates(params, updates), memory), None

    params = learned_weighting.init()
    np.testing.assert_array_equal(learned_weighting.log_weight(params, noise), 0.0)
    keys = jax.random.split(jax.random.key(0), 2000)
    (params, _), _ = jax.jit(lambda state: jax.lax.scan(update, state, keys))((params, optimizer.init(params)))
    w = np.asarray(learned_weighting.log_weight(params, noise))
    error = w + np.log(mean)
    assert np.sqrt(np.mean(error**2)) < 0.1
    np.testing.assert_allclose(learned_weighting.weighted(params, noise, mean), np.exp(error) - w, rtol=1e-4)
