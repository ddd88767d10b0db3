"""Every grid, for every number of steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.choice import choices
from diffjax.diffusion import grids

GRIDS = choices(grids)


def check(grid, n, timesteps):
    times = grid(n, timesteps)
    assert times.dtype == np.int64
    assert len(times) == n + 1
    assert times[-1] == 0
    assert times[0] <= timesteps
    assert (np.diff(times) < 0).all(), times


@pytest.mark.parametrize("timesteps", [1, 2, 7, 64, 250, 1000])
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_every_number_of_steps(name, timesteps):
    for n in range(1, timesteps + 1):
        check(GRIDS[name], n, timesteps)


@given(data=st.data(), timesteps=st.integers(1, 4000), name=st.sampled_from(sorted(GRIDS)))
@settings(max_examples=300, deadline=None)
def test_any_number_of_timesteps(data, timesteps, name):
    check(GRIDS[name], data.draw(st.integers(1, timesteps)), timesteps)


@pytest.mark.parametrize("timesteps", [1, 3, 1000, 4000])
@pytest.mark.parametrize("name", sorted(GRIDS))
def test_all_steps_are_the_unspaced_process(name, timesteps):
    np.testing.assert_array_equal(GRIDS[name](timesteps, timesteps), np.arange(timesteps, -1, -1))


@pytest.mark.parametrize("name", sorted(GRIDS))
@pytest.mark.parametrize("n", [0, -1, 1001])
def test_impossible_numbers_are_refused(name, n):
    with pytest.raises(ValueError, match="1 to 1000"):
        GRIDS[name](n, 1000)


def test_where_the_published_codes_are_defined_the_grids_are_theirs():
    # DDIM's uniform (n divides T) and quadratic, counted from zero there.
    np.testing.assert_array_equal(grids.leading(50, 1000)[:-1][::-1] - 1, np.arange(0, 1000, 20))
    quadratic = (np.linspace(0, np.sqrt(1000 * 0.8), 10) ** 2).astype(int)
    np.testing.assert_array_equal(grids.quadratic(10, 1000)[:-1][::-1] - 1, quadratic)
    # Improved DDPM's spacing: round(i * (T - 1) / (n - 1)).
    stride = 999 / 99
    np.testing.assert_array_equal(grids.linspace(100, 1000)[:-1][::-1] - 1, [round(i * stride) for i in range(100)])
    # Lin et al. 2024: T, T - T / n, ...
    np.testing.assert_array_equal(grids.trailing(10, 1000)[:-1], np.arange(1000, 0, -100))


@pytest.mark.parametrize("n", [1, 2, 10, 64, 75, 80, 128, 999])
def test_ends(n):
    """`trailing` and `linspace` start at T; `leading` and `linspace` visit time 1."""
    assert grids.trailing(n, 1000)[0] == grids.linspace(n, 1000)[0] == 1000
    assert grids.leading(n, 1000)[-2] == 1
    assert n == 1 or grids.linspace(n, 1000)[-2] == 1
