"""Figures of an experiment over its seeds, and verdicts on the orderings that it claims."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from diffjax.metrics import resampling
from diffjax.reproduce import verdicts
from diffjax.reproduce.plan import Cell
from diffjax.reproduce.spec import SEED, Experiment, Labels, Measure, Ordering
from diffjax.reproduce.verdicts import Difference, Verdict

# Shares of all samples: where the sampling error was not stored, it follows from the share and the number of samples.
_SHARES = ("recognised", "captions", "caption_count", "caption_colour", "caption_shape")


class Figure(NamedTuple):
    """One entry of a table, over the seeds.

    Attributes:
      values: one per seed; None: the seed failed or is not done.
      errors: the sampling error of each value, of the samples within a seed; None: not known.
      failed: seeds that ended with an error.
      pending: seeds that are not done.
    """

    values: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    failed: int = 0
    pending: int = 0

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float:
        return float(np.mean(self.known)) if self.known else float("nan")

    @property
    def error(self) -> float:
        """Standard deviation over the seeds; of one seed the sampling error; NaN: not known."""
        if len(self.known) > 1:
            return float(np.std(self.known, ddof=1))
        known = [error for error in self.errors if error is not None]
        return known[0] if len(self.known) == len(known) == 1 else float("nan")


class Outcome:
    """The figures of the cells at hand.

    Attributes:
      measures: the columns.
      axes: every axis with the labels that were run, the seeds' last.
    """

    def __init__(
        self,
        experiment: Experiment,
        measures: Sequence[Measure],
        cells: Sequence[Cell],
        results: Mapping[str, Mapping[str, Any] | None],
    ):
        """`results` are what is known of each cell, by its key."""
        self.experiment, self.measures, self._cells, self._results = experiment, measures, cells, results
        self.axes = {axis: list(dict.fromkeys(cell.labels[axis] for cell in cells)) for axis in cells[0].labels}
        self._by_labels = {tuple(cell.labels.values()): cell for cell in cells}

    @property
    def total(self) -> int:
        """Cells, done or not."""
        return len(self._cells)

    @property
    def done(self) -> int:
        return sum(self._results[cell.key] is not None for cell in self._cells)

    @property
    def errors(self) -> dict[str, str]:
        """Of the cells that failed, by their labels in words."""
        found = ((cell, self._results[cell.key] or {}) for cell in self._cells)
        return {in_words(cell.labels): result["error"] for cell, result in found if "error" in result}

    @property
    def provenances(self) -> list[Mapping[str, Any]]:
        found = (self._results[cell.key] or {} for cell in self._cells)
        return [result["provenance"] for result in found if "provenance" in result]

    @property
    def warnings(self) -> list[str]:
        """Warnings of the cells' measurements, each once."""
        return list(dict.fromkeys(text for provenance in self.provenances for text in provenance.get("warnings", ())))

    @property
    def rows(self) -> list[str]:
        """The axes whose labels name the lines of a table."""
        return [axis for axis in self.axes if axis not in (self.experiment.across, SEED)]

    @property
    def columns(self) -> list[str]:
        """The labels of the axis across; one without a name where there is none."""
        return self.axes.get(self.experiment.across, [""])

    def lines(self) -> Iterator[tuple[str, list[Labels]]]:
        """The lines of a table: their names, and the labels of each column without the seed's."""
        across = self.experiment.across
        for settings in self.settings(self.rows):
            yield ", ".join(settings.values()), [{**settings, **({across: c} if across else {})} for c in self.columns]

    def cell(self, labels: Labels) -> Cell:
        """That of all labels, the seed's too."""
        return self._by_labels[tuple(labels[axis] for axis in self.axes)]

    def figure(self, measure: Measure, labels: Labels) -> Figure:
        """Returns the figure of a measure over the seeds."""
        cells = [self.cell({**labels, SEED: seed}) for seed in self.axes[SEED]]
        found = [self._estimate(measure, cell) for cell in cells]
        results = [self._results[cell.key] for cell in cells]
        return Figure(
            values=tuple(value for value, _ in found),
            errors=tuple(error for _, error in found),
            failed=sum("error" in (result or {}) for result in results),
            pending=sum(result is None for result in results),
        )

    def _estimate(self, measure: Measure, cell: Cell) -> tuple[float | None, float | None]:
        """Returns the value of a cell, None where there is none, and its sampling error, None where it is not known."""
        result = self._results[cell.key] or {}
        figure = result.get("figures", {}).get(measure.name, {})
        value, error = figure.get("value"), figure.get("standard_error")
        if value is None or not np.isfinite(value):
            return None, None
        samples = result.get("provenance", {}).get("samples")
        if error is None and measure.name in _SHARES and samples and 0 <= value <= 1:
            error = resampling.share(np.arange(samples) < round(value * samples)).standard_error
        return value, error

    def settings(self, axes: Sequence[str], where: Mapping[str, Sequence[str]] = {}) -> Iterator[Labels]:
        """Every combination of the labels of `axes`, of those that `where` leaves."""
        kept = [[label for label in self.axes[axis] if label in where.get(axis, self.axes[axis])] for axis in axes]
        for labels in itertools.product(*kept):
            yield dict(zip(axes, labels, strict=True))

    def verdict(self, ordering: Ordering) -> Verdict:
        """Returns whether the ordering holds in its column."""
        measure = next((m for m in self.measures if ordering.measure in ("", m.name)), None)
        order = [s for s in ordering.order if all(label in self.axes[axis] for axis, label in s.items())]
        left_out = tuple(in_words(s) for s in ordering.order if s not in order)
        if measure is None or len(order) < 2:
            return Verdict(left_out=left_out)
        named = {axis for settings in ordering.order for axis in settings}
        free = [axis for axis in self.axes if axis not in named and axis != SEED]
        found = [
            [self._difference(measure, {**others, **better}, {**others, **worse}) for better, worse in pairwise(order)]
            for others in self.settings(free, ordering.where)
        ]
        return verdicts.combine([steps for steps in found if None not in steps], left_out)

    def _difference(self, measure: Measure, better: Labels, worse: Labels) -> Difference | None:
        """Returns the difference of two cells over the seeds that have both; None where there is no such seed."""
        sign = -1.0 if measure.direction == "lower" else 1.0
        left, right = self.figure(measure, better), self.figure(measure, worse)
        pairs = zip(left.values, right.values, left.errors, right.errors, strict=True)
        both = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
        if not both:
            return None
        errors = [None if a is None or b is None else (a, b) for _, _, a, b in both]
        return verdicts.difference([sign * pair[0] for pair in both], [sign * pair[1] for pair in both], errors)

    def failures(self, measure: Measure, labels: Labels, above: float) -> Figure:
        """The share of seeds that ended with an error, or whose figure is beyond `above`."""
        figure = self.figure(measure, labels)
        sign = 1.0 if measure.direction == "lower" else -1.0
        shares = [float(sign * value > sign * above) for value in figure.known] + [1.0] * figure.failed
        return Figure(tuple(shares), (None,) * len(shares), pending=figure.pending)


def in_words(labels: Labels) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())
