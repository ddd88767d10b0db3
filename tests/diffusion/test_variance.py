"""The variances of a reverse step, in DDPM's letters."""

import numpy as np
import pytest

from diffjax.diffusion import noise_schedules, variance
from diffjax.diffusion.noise import posterior_variance, transition_variance
from diffjax.registry import choices

BETA = np.linspace(1e-4, 0.02, 1000)
BAR = np.cumprod(1 - BETA)
T = np.array([2, 3, 10, 500, 1000])
LARGE = BETA[T - 1]
SMALL = (1 - BAR[T - 2]) / (1 - BAR[T - 1]) * LARGE

# (interpolation) -> variance, by Ho et al. 2020, sec. 3.2 and Nichol & Dhariwal 2021, eq. 15.
PAPERS = {
    "fixed_small": lambda v: SMALL,
    "fixed_large": lambda v: LARGE,
    "learned_range": lambda v: np.exp(v * np.log(LARGE) + (1 - v) * np.log(SMALL)),
}


def test_the_table_is_complete():
    assert set(PAPERS) == set(choices(variance))


@pytest.mark.parametrize("v", [-0.3, 0.0, 0.25, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("name", sorted(PAPERS))
def test_variance(name, v):
    schedule = noise_schedules.linear(1000)
    levels = schedule(T.astype(float)), schedule(T - 1.0)
    found = choices(variance)[name](posterior_variance(*levels), transition_variance(*levels), np.full(5, v))
    np.testing.assert_allclose(found, PAPERS[name](v), rtol=1e-3)


@pytest.mark.parametrize("name", ["fixed_small", "fixed_large"])
def test_a_fixed_variance_ignores_the_network(name):
    expected_log_ratio = {"fixed_small": 0.25, "fixed_large": 0.5}[name]
    assert choices(variance)[name](0.25, 0.5) == expected_log_ratio


def test_a_learned_variance_is_between_the_two_and_finite_at_the_last_step():
    v = np.linspace(0, 1, 11)
    found = np.asarray(variance.learned_range(np.full(11, 0.1), np.full(11, 0.4), v), np.float64)
    np.testing.assert_allclose(found, 0.1 * 4**v, rtol=1e-6)
    np.testing.assert_allclose(found[5], 0.2, rtol=1e-6)  # the geometric mean
    clean = np.asarray(variance.learned_range(np.zeros(11), np.full(11, 0.4), v))
    assert np.isfinite(clean).all()
    assert (clean >= 0).all()
    np.testing.assert_allclose(clean[-1], 0.4, rtol=1e-6)
