"""The optimiser's parts against their formulas."""

import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.train.optimizers import adam, learning_rate_schedule


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
    w = np.array([1.0, -2.0])
    state, m, v = optimizer.init(jnp.asarray(w)), 0.0, 0.0
    for step, gradient in enumerate(np.array([[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0]]), start=1):
        updates, state = optimizer.update(jnp.asarray(gradient), state, jnp.asarray(w))
        clipped = gradient / max(1.0, np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * clipped, 0.99 * v + 0.01 * clipped**2
        expected = -0.01 * (m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8) + 0.1 * w)
        np.testing.assert_allclose(updates, expected, rtol=1e-4)
        w = w + expected
