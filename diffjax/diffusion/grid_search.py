"""Search for the time grid of a number of steps that minimises the error of a sampler."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Times = Float[np.ndarray, "n+1"]


def coordinate_search(
    error: Callable[[Times], float],
    times: Times,
    *,
    whole: bool,
    on_evaluation: Callable[[], object] = lambda: None,
    shares: tuple[float, ...] = (0.5, 0.25, 0.25, 0.125, 0.125, 0.0625),
) -> tuple[Times, float]:
    """Moves one time after another while the error falls. The first time and the last one stay.

    In each round every time moves by a share of its distance to either neighbour. A move that lowers the error is kept.

    Args:
      error: error of a strictly decreasing grid.
      times: the first grid.
      whole: whether times are whole numbers.
      on_evaluation: called after each evaluation of `error`.
      shares: share of each round.

    Returns:
      The grid and its error, which is at most that of `times`.
    """

    def evaluate(grid: Times) -> float:
        value = float(error(grid))
        on_evaluation()
        return value if np.isfinite(value) else np.inf

    best, least = np.array(times, np.float64), evaluate(times)
    for share in shares:
        for i in range(1, len(best) - 1):
            for neighbour in (i - 1, i + 1):
                grid = best.copy()
                grid[i] += share * (best[neighbour] - best[i])
                grid[i] = np.round(grid[i]) if whole else grid[i]
                if (np.diff(grid) < 0).all() and grid[i] != best[i] and (value := evaluate(grid)) < least:
                    best, least = grid, value
    return best, least


def num_evaluations(steps: int, shares: int = 6) -> int:
    """Returns the largest number of evaluations of `coordinate_search` for a grid of `steps` steps."""
    return 1 + 2 * shares * (steps - 1)
