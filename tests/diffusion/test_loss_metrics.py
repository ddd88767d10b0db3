"""Distances of flow-map losses against NumPy, and their gradients."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import loss_metrics
from diffjax.registry import choices

ERROR = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
SQUARE = (ERROR.astype(np.float64) ** 2).sum((1, 2))
CASES = {
    "l2": ({}, SQUARE / 6, lambda s: np.full_like(s, 2 / 6)),
    "pseudo_huber": ({"c": 0.3}, np.sqrt(SQUARE + 6 * 0.09) - 0.3 * 6**0.5, lambda s: 1 / np.sqrt(s + 6 * 0.09)),
    "elementwise_pseudo_huber": (
        {"c": 0.3},
        np.mean(np.sqrt(ERROR.astype(np.float64) ** 2 + 0.09) - 0.3, (1, 2)),
        lambda s: 1 / np.sqrt(ERROR.astype(np.float64) ** 2 + 0.09) / 6,
    ),
    "adaptive": ({"p": 0.5, "c": 0.1}, SQUARE / np.sqrt(SQUARE + 0.1), lambda s: 2 / np.sqrt(s + 0.1)),
}


@pytest.mark.parametrize("name", sorted(choices(loss_metrics)))
def test_values_and_gradients(name):
    options, expected, factor = CASES[name]
    function = choices(loss_metrics)[name]
    np.testing.assert_allclose(function(ERROR, **options), expected, rtol=1e-5)
    gradient = jax.grad(lambda e: function(e, **options).sum())(jnp.asarray(ERROR))
    np.testing.assert_allclose(gradient, factor(SQUARE.reshape(4, 1, 1)) * ERROR, rtol=1e-4)


def test_the_norm_has_a_finite_gradient_at_zero():
    gradient = jax.grad(lambda e: loss_metrics.pseudo_huber(e, c=0.0).sum())(jnp.zeros((2, 3)))
    np.testing.assert_array_equal(gradient, np.zeros((2, 3)))
