"""Learning-rate schedules and Adam against their formulas."""

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.training.optimizers import adam, learning_rate_schedule


def test_warm_up_then_constant():
    rate = learning_rate_schedule("constant", 2e-4, warmup_steps=10, total_steps=100)
    np.testing.assert_allclose([rate(s) for s in (0, 5, 10, 99)], [0, 1e-4, 2e-4, 2e-4])


def test_warm_up_then_cosine():
    rate = learning_rate_schedule("cosine", 1.0, warmup_steps=10, total_steps=110)
    steps = np.array([10, 35, 60, 110])
    np.testing.assert_allclose([rate(s) for s in steps], (1 + np.cos((steps - 10) / 100 * np.pi)) / 2, atol=1e-6)


def test_no_warm_up():
    assert learning_rate_schedule("constant", 0.1, warmup_steps=0, total_steps=10)(0) == 0.1


def test_unknown_schedule():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        learning_rate_schedule("cosin", 0.1, warmup_steps=0, total_steps=10)


def test_clipped_adam_with_decay_by_hand():
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019) on a gradient clipped to norm 1."""
    optimizer = adam(lambda step: 0.01, clip_norm=1.0, weight_decay=0.1, beta1=0.9, beta2=0.99)
    w = np.array([[1.0, -2.0]])
    state, m, v = optimizer.init(jnp.asarray(w)), 0.0, 0.0
    for step, gradient in enumerate(np.array([[[3.0, 4.0]], [[0.3, 0.4]], [[-6.0, 8.0]]]), start=1):
        updates, state = optimizer.update(jnp.asarray(gradient), state, jnp.asarray(w))
        clipped = gradient / max(1.0, np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * clipped, 0.99 * v + 0.01 * clipped**2
        expected = -0.01 * (m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8) + 0.1 * w)
        np.testing.assert_allclose(updates, expected, rtol=1e-4)
        w = w + expected


def test_gains_biases_and_scalars_do_not_decay():
    """CLIP, section 2.5: with zero gradients they stay, and the other weights shrink by (1 - 0.001 * 0.1) per step."""
    shapes = {"kernel": (2, 2), "token": (3, 2), "scale": (2, 2), "bias": (2,), "class": (2,), "log_scale": ()}
    params = {name: jnp.ones(shape) for name, shape in shapes.items()}
    optimizer = adam(lambda step: 1e-3, clip_norm=1.0, weight_decay=0.1, beta1=0.9, beta2=0.99)
    gradients = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=2000)[0][0]

    trained = train(params)
    for name in ("scale", "bias", "class", "log_scale"):
        np.testing.assert_array_equal(trained[name], 1.0)
    for name in ("kernel", "token"):
        np.testing.assert_allclose(trained[name], (1 - 1e-4) ** 2000, rtol=1e-3)


def test_the_state_has_the_structure_of_optax_adamw():
    """Checkpoints of both can then be read."""
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    ours = adam(lambda step: 1e-3, clip_norm=1.0, weight_decay=0.1, beta1=0.9, beta2=0.99)
    theirs = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lambda step: 1e-3, weight_decay=0.1))
    assert jax.tree.structure(ours.init(params)) == jax.tree.structure(theirs.init(params))
