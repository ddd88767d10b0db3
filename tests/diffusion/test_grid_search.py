"""The search for a time grid, on errors with a known least grid."""

import numpy as np
import pytest

from diffjax.diffusion.grid_search import coordinate_search, num_evaluations

TARGET = np.array([1000.0, 800.0, 650.0, 200.0, 30.0, 0.0])
START = np.array([1000.0, 800.0, 600.0, 400.0, 200.0, 0.0])


@pytest.mark.parametrize("whole", [False, True])
def test_times_approach_the_least_error(whole):
    evaluated = []

    def error(times):
        evaluated.append(times)
        return np.abs(times - TARGET).max()

    times, least = coordinate_search(error, START, whole=whole)
    assert (least == error(times) < 0.2 * error(START) and not whole) or (times == np.round(times)).all()
    assert all((np.diff(grid) < 0).all() and grid[0] == 1000 and grid[-1] == 0 for grid in evaluated)
    assert len(evaluated) - 2 <= num_evaluations(5)


def test_a_grid_that_nothing_improves_is_returned():
    """Also where every other grid has no finite error."""
    for error in (lambda times: np.abs(times - START).sum(), lambda times: 0.0 if (times == START).all() else np.nan):
        times, least = coordinate_search(error, START, whole=True)
        np.testing.assert_array_equal(times, START)
        assert least == 0


def test_the_smallest_grid_of_whole_numbers_stays():
    times, _ = coordinate_search(lambda times: times[1], np.array([2.0, 1.0, 0.0]), whole=True)
    np.testing.assert_array_equal(times, [2, 1, 0])
