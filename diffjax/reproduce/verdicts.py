"""Statistical test of a claimed order: a difference counts only beyond its uncertainty.

Each pair of neighbours in a claimed order gives one difference of means, with a 95 % confidence interval. No correction
is made for the number of differences tested: of 40 true ties about one is called an order, in either direction.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from diffjax.numbers import with_error

_LEVEL = 0.975  # quantile of a two-sided 95 % interval
_ROUNDING = 1e-9  # relative spread below which differences count as equal


class Difference(NamedTuple):
    """A difference of two means over seeds, positive if it has the claimed sign."""

    value: float
    error: float  # standard error; NaN: not known
    margin: float  # half the width of the 95 % interval; infinite: not known
    seeds: int  # number of seeds

    @property
    def holds(self) -> bool:
        """True if the whole interval is above zero."""
        return self.value > self.margin

    @property
    def reversed(self) -> bool:
        """True if the whole interval is below zero."""
        return self.value < -self.margin


class Verdict(NamedTuple):
    """Result of the test of a claimed order.

    Attributes:
      settings: number of combinations of the free axes' labels for which the order is claimed.
      held: number of settings in which every difference of neighbours holds.
      reversed: number of settings in which at least one difference is reversed. The remaining settings are undecided.
      missing: number of undecided settings without some difference, because of cells that failed or are not done.
      seeds: smallest number of seeds of a difference.
      weakest: smallest of all differences; None if nothing was tested.
      left_out: labels of the claimed order that were not run.
    """

    settings: int = 0
    held: int = 0
    reversed: int = 0
    missing: int = 0
    seeds: int = 0
    weakest: Difference | None = None
    left_out: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """The verdict: "holds", "holds in part", "does not hold", "undecided" or "not measured"."""
        if self.weakest is None:
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
    chance, so the interval is at least as wide as the one from the sampling errors within the seeds, with the normal
    quantile. With one seed only the sampling errors are available. Samples of two cells with the same noise are
    positively correlated, so adding their sampling errors in quadrature overestimates the error of their difference.
    So are values of two models on the same images of the data set, which are also the same for each seed.
    Without sampling errors, differences that are equal for all seeds have no known uncertainty.

    Args:
      better, worse: one value per seed each; higher is better.
      errors: sampling errors of both values per seed; None if one is not known.
    """
    differences = np.asarray(better, np.float64) - np.asarray(worse, np.float64)
    count, mean = len(differences), float(differences.mean())
    squares = [np.nan if pair is None else pair[0] ** 2 + pair[1] ** 2 for pair in errors]
    error = float(np.sqrt(np.sum(squares)) / count)
    margin = float(stats.norm.ppf(_LEVEL) * error)
    if count > 1 and np.ptp(differences) > _ROUNDING * np.abs(differences).max():
        spread = differences.std(ddof=1) / np.sqrt(count)
        error = float(np.fmax(spread, error))  # fmax ignores an unknown sampling error
        margin = float(np.fmax(stats.t.ppf(_LEVEL, count - 1) * spread, margin))
    return Difference(mean, error, margin if np.isfinite(margin) else np.inf, count)


def combine(settings: Sequence[Sequence[Difference | None]], left_out: Sequence[str] = ()) -> Verdict:
    """Returns the verdict of an order from the differences of its neighbours in each setting; None: not measured."""
    known = [[each for each in setting if each is not None] for setting in settings]
    differences = list(itertools.chain.from_iterable(known))
    if not differences:
        return Verdict(settings=len(settings), missing=len(settings), left_out=tuple(left_out))
    is_reversed = [any(each.reversed for each in setting) for setting in known]
    is_whole = [None not in setting for setting in settings]
    return Verdict(
        settings=len(settings),
        held=sum(whole and all(each.holds for each in setting) for setting, whole in zip(known, is_whole, strict=True)),
        reversed=sum(is_reversed),
        missing=sum(not whole and not turned for whole, turned in zip(is_whole, is_reversed, strict=True)),
        seeds=min(each.seeds for each in differences),
        weakest=min(differences, key=lambda each: each.value),
        left_out=tuple(left_out),
    )


def describe(verdict: Verdict) -> str:
    """Returns the verdict in words, with its evidence."""
    weakest = verdict.weakest
    if weakest is None:
        return verdict.word
    undecided = verdict.settings - verdict.held - verdict.reversed - verdict.missing
    counts = {
        "holds": verdict.held,
        "reversed": verdict.reversed,
        "undecided": undecided,
        "not measured": verdict.missing,
    }
    details = [f"without {', '.join(verdict.left_out)}"] if verdict.left_out else []
    if verdict.settings > 1:
        words = ", ".join(f"{word} in {count}" for word, count in counts.items() if count)
        details.append(f"{words} of {verdict.settings} settings")
    known = np.isfinite(weakest.margin)
    if verdict.seeds == 1:
        details.append("1 seed, " + ("the interval covers the samples only" if known else "no error is known"))
    else:
        details.append(f"{verdict.seeds} seeds")
    details.append(f"smallest difference {with_error(weakest.value, weakest.margin if known else None)}")
    return f"**{verdict.word}** ({'; '.join(details)})"
