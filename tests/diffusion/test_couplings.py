"""Couplings of noise and data."""

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from jax import numpy as jnp

from diffjax.diffusion import couplings, noise_schedules

RNG = np.random.default_rng(0)
SCHEDULE = noise_schedules.rectified_flow(1000, continuous=True)


def identity(tree):
    return tree


def minibatch(x0, eps, label, index, gather=identity):
    return couplings.minibatch(couplings.Examples(x0, eps, label, index, gather, None, SCHEDULE))[1]


@pytest.fixture(scope="module")
def couple():
    return jax.jit(lambda x0, eps, label: minibatch(x0, eps, label, jnp.arange(len(x0))))


@pytest.mark.parametrize("classes", [1, 3])
def test_in_one_dimension_the_coupling_is_monotone_within_each_class(classes, couple):
    """In one dimension the optimal coupling sorts both: Peyre & Cuturi 2019, sec. 2.6."""
    x0, eps = (RNG.normal(size=(48, 1)).astype(np.float32) for _ in range(2))
    label = RNG.integers(0, classes, 48)
    coupled = np.asarray(couple(x0, eps, label))
    for k in range(classes):
        chosen, expected = label == k, np.empty((int(np.sum(label == k)), 1), np.float32)
        expected[np.argsort(x0[chosen, 0])] = np.sort(eps[chosen], axis=0)
        np.testing.assert_array_equal(coupled[chosen], expected)


def test_images_have_the_least_total_distance_of_all_permutations(couple):
    """The solver of SciPy has the same assignment, of the squared distances themselves."""
    x0, eps = (RNG.normal(size=(48, 4, 4, 1)).astype(np.float32) for _ in range(2))
    squares = np.sum((x0[:, None] - eps[None]) ** 2, axis=(2, 3, 4))
    rows, columns = scipy.optimize.linear_sum_assignment(squares)
    np.testing.assert_array_equal(couple(x0, eps, np.zeros(48, int)), eps[columns[np.argsort(rows)]])


def test_the_noise_of_a_class_stays_standard_normal(couple):
    """The classes are far apart: if all were coupled together, their noise would be apart too."""
    label = np.arange(48) % 3
    x0 = (10.0 * label + RNG.normal(size=48)).astype(np.float32)[:, None]
    batches = [couple(x0, RNG.normal(size=(48, 1)).astype(np.float32), label) for _ in range(20)]
    for k in range(3):
        noise = np.concatenate([np.asarray(batch)[label == k, 0] for batch in batches])
        assert scipy.stats.kstest(noise, "norm").pvalue > 1e-3


def test_devices_with_shares_of_a_batch_have_the_noise_of_the_batch(couple):
    x0, eps = (RNG.normal(size=(48, 2)).astype(np.float32) for _ in range(2))
    label, index = RNG.integers(0, 3, 48), np.arange(48)
    share = jax.jit(
        jax.vmap(
            lambda *arrays: minibatch(*arrays, lambda tree: jax.lax.all_gather(tree, "data", tiled=True)),
            axis_name="data",
        )
    )
    shares = share(*(array.reshape(4, 12, *array.shape[1:]) for array in (x0, eps, label, index)))
    np.testing.assert_array_equal(np.reshape(shares, eps.shape), couple(x0, eps, label))


def test_reflow_pairs_noise_with_the_end_of_its_trajectory():
    """The exact teacher of data N(m, a^2) maps eps to m + a eps: Liu et al. 2023, the ODE of a Gaussian."""
    m, a, eps = 0.5, 0.25, RNG.normal(size=(6, 4)).astype(np.float32)

    def teacher(x, now):
        return m + now.alpha * a**2 / (now.alpha**2 * a**2 + now.sigma**2) * (x - now.alpha * m)

    zeros = np.zeros(6, int)
    examples = couplings.Examples(jnp.full_like(eps, 9.0), eps, zeros, zeros, identity, teacher, SCHEDULE)
    x0, noise = jax.jit(lambda: couplings.reflow(examples, steps=1000))()
    np.testing.assert_array_equal(noise, eps)
    np.testing.assert_allclose(x0, m + a * eps, atol=0.01)
