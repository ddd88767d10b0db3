"""Statistical test of a claimed order: a difference counts only beyond its uncertainty.

Each pair of neighbours in a claimed order gives one difference of means, with a 95 % confidence interval. No correction
is made for the number of differences tested: of 40 true ties about one is called an order, in either direction.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from diffjax.numbers import with_error

_LEVEL = 0.975  # quantile of a two-sided 95 % interval


class Difference(NamedTuple):
    """A difference of two means over seeds, positive where it is as claimed."""

    value: float
    error: float  # standard error; NaN: not known
    margin: float  # half the width of the 95 % interval; infinite: not known
    seeds: int

    @property
    def holds(self) -> bool:
        return self.value > self.margin

    @property
    def reversed(self) -> bool:
        return self.value < -self.margin


class Verdict(NamedTuple):
    """Whether a claimed order holds.

    Attributes:
      settings: combinations of the free axes' labels in which the order was tested.
      held: settings in which every difference of neighbours holds.
      reversed: settings in which at least one difference is reversed. The remaining settings are undecided.
      seeds: the smallest number of seeds behind a difference.
      weakest: the smallest of all differences; None where there is none.
      left_out: labels of the claimed order that were not run.
    """

    settings: int = 0
    held: int = 0
    reversed: int = 0
    seeds: int = 0
    weakest: Difference | None = None
    left_out: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        if not self.settings:
            return "not measured"
        if self.held == self.settings:
            return "holds"
        if self.held:
            return "holds in part"
        return "does not hold" if self.reversed else "undecided"


def difference(
    better: Sequence[float], worse: Sequence[float], errors: Sequence[tuple[float, float] | None]
) -> Difference:
    """Returns the difference `better - worse` over seeds and its uncertainty.

    With two seeds or more, the seeds are the units: Student's t on the paired differences. A few seeds may agree by
    chance, so the interval is at least the one that the sampling errors within the seeds give by themselves, with the
    normal quantile. With one seed there is only that one. Cells drawn from the same noise are positively correlated, so
    that adding their sampling errors in quadrature overestimates the error of their difference.

    Args:
      better, worse: a figure per seed each, of which higher is better.
      errors: the sampling errors of both figures per seed; None where one is not known.
    """
    steps = np.asarray(better, np.float64) - np.asarray(worse, np.float64)
    count = len(steps)
    squares = [np.nan if pair is None else pair[0] ** 2 + pair[1] ** 2 for pair in errors]
    sampling = np.sqrt(np.sum(squares)) / count
    margin = stats.norm.ppf(_LEVEL) * sampling
    if count == 1:
        return Difference(float(steps[0]), float(sampling), float(margin) if np.isfinite(margin) else np.inf, 1)
    error = steps.std(ddof=1) / np.sqrt(count)
    margin = np.fmax(stats.t.ppf(_LEVEL, count - 1) * error, margin)  # fmax: without sampling errors, the seeds' alone
    return Difference(float(steps.mean()), float(np.fmax(error, sampling)), float(margin), count)


def combine(settings: Sequence[Sequence[Difference]], left_out: Sequence[str] = ()) -> Verdict:
    """Returns the verdict of an order from the differences of its neighbours in each setting."""
    every = [step for steps in settings for step in steps]
    if not every:
        return Verdict(left_out=tuple(left_out))
    return Verdict(
        settings=len(settings),
        held=sum(all(step.holds for step in steps) for steps in settings),
        reversed=sum(any(step.reversed for step in steps) for steps in settings),
        seeds=min(step.seeds for step in every),
        weakest=min(every, key=lambda step: step.value),
        left_out=tuple(left_out),
    )


def describe(verdict: Verdict) -> str:
    """Returns the verdict in words, with the evidence behind it."""
    if not verdict.settings:
        return verdict.word
    undecided = verdict.settings - verdict.held - verdict.reversed
    counts = {"holds": verdict.held, "reversed": verdict.reversed, "undecided": undecided}
    details = [f"without {', '.join(verdict.left_out)}"] if verdict.left_out else []
    if verdict.settings > 1:
        found = ", ".join(f"{word} in {count}" for word, count in counts.items() if count)
        details.append(f"{found} of {verdict.settings} settings")
    weakest, known = verdict.weakest, np.isfinite(verdict.weakest.error)
    if verdict.seeds == 1:
        details.append("1 seed, " + ("the error is of the samples alone" if known else "no error is known"))
    else:
        details.append(f"{verdict.seeds} seeds")
    details.append(f"smallest difference {with_error(weakest.value, weakest.error if known else None)}")
    return f"**{verdict.word}** ({'; '.join(details)})"
