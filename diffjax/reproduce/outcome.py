"""Results of an experiment over its seeds, and verdicts on the orderings that it claims."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from diffjax.metrics import resampling
from diffjax.metrics.resampling import Estimate
from diffjax.reproduce import verdicts
from diffjax.reproduce.plan import Cell
from diffjax.reproduce.spec import SEED, Experiment, Labels, Measure, Ordering, SameBest
from diffjax.reproduce.verdicts import Difference, Verdict

# Proportions of all samples: a sampling error that was not stored follows from the value and the number of samples.
_PROPORTIONS = ("classifier_accuracy", "caption_accuracy", "caption_count", "caption_colour", "caption_shape")
_MISSING = Estimate(None, None)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of a table, over the seeds.

    Attributes:
      estimates: one per seed. Its value is None if the seed failed, is pending, or does not have the value; its
        standard error is that of the samples within the seed, None if it is not known.
      failed: number of seeds that ended with an error.
      pending: number of seeds that are not done.
    """

    estimates: tuple[Estimate, ...]
    failed: int = 0
    pending: int = 0

    @property
    def known(self) -> list[float]:
        """Values that are not None."""
        return [estimate.value for estimate in self.estimates if estimate.value is not None]

    @property
    def mean(self) -> float:
        """Mean over the seeds; NaN without any value."""
        return float(np.mean(self.known)) if self.known else float("nan")

    @property
    def error(self) -> float:
        """Standard deviation over the seeds; for one seed its sampling error; NaN if that is not known."""
        if len(self.known) > 1:
            return statistics.stdev(self.known)  # exactly 0 if they are equal
        errors = [estimate.standard_error for estimate in self.estimates if estimate.standard_error is not None]
        return errors[0] if len(self.known) == len(errors) == 1 else float("nan")


class Line(NamedTuple):
    """A line of a table: its name, and the labels of each column without the seed's."""

    name: str
    columns: list[Labels]


class Outcome:
    """Results of an experiment's cells.

    Attributes:
      measures: measured columns.
      axes: labels that run, by axis, the seeds last.
    """

    def __init__(
        self,
        experiment: Experiment,
        measures: Sequence[Measure],
        cells: Sequence[Cell],
        results: Mapping[str, Mapping[str, Any] | None],
    ):
        """Args as the attributes; `results` are stored results by the key of a cell, None for pending cells."""
        self.experiment, self.measures, self._cells, self._results = experiment, measures, cells, results
        self.axes = {axis: list(dict.fromkeys(cell.labels[axis] for cell in cells)) for axis in cells[0].labels}
        self._by_labels = {tuple(cell.labels.values()): cell for cell in cells}

    @property
    def total(self) -> int:
        """Number of cells."""
        return len(self._cells)

    @property
    def done(self) -> int:
        """Number of cells that have a result or an error."""
        return sum(self._results[cell.key] is not None for cell in self._cells)

    @property
    def errors(self) -> dict[str, str]:
        """Errors of the cells that failed, by their labels in words."""
        results = {in_words(cell.labels): self._results[cell.key] or {} for cell in self._cells}
        return {words: result["error"] for words, result in results.items() if "error" in result}

    @property
    def provenances(self) -> list[Mapping[str, Any]]:
        """Provenance of each measured cell."""
        results = (self._results[cell.key] or {} for cell in self._cells)
        return [result["provenance"] for result in results if "provenance" in result]

    @property
    def warnings(self) -> list[str]:
        """Warnings of the cells' measurements, each once."""
        return list(dict.fromkeys(text for provenance in self.provenances for text in provenance.get("warnings", ())))

    @property
    def row_axes(self) -> list[str]:
        """Axes whose labels name the lines of a table."""
        return [axis for axis in self.axes if axis not in (self.experiment.column_axis, SEED)]

    @property
    def columns(self) -> list[str]:
        """Labels of the column axis; one empty label without such an axis."""
        return self.axes.get(self.experiment.column_axis, [""])

    def lines(self) -> Iterator[Line]:
        """Yields the lines of a table."""
        axis = self.experiment.column_axis
        for row in self.settings(self.row_axes):
            yield Line(", ".join(row.values()), [{**row, **({axis: label} if axis else {})} for label in self.columns])

    def cell(self, labels: Labels) -> Cell | None:
        """Returns the cell of the labels of all axes, the seed included; None if the experiment does not have it."""
        return self._by_labels.get(tuple(labels[axis] for axis in self.axes))

    def entry(self, measure: Measure, labels: Labels) -> Entry:
        """Returns the entry of a measure over the seeds; a cell that the experiment does not have has no value."""
        cells = [self.cell({**labels, SEED: seed}) for seed in self.axes[SEED]]
        results = [self._results[cell.key] if cell else {} for cell in cells]
        return Entry(
            estimates=tuple(_estimate(measure, result or {}) for result in results),
            failed=sum("error" in (result or {}) for result in results),
            pending=sum(result is None for result in results),
        )

    def settings(self, axes: Sequence[str], where: Mapping[str, Sequence[str]] = {}) -> Iterator[Labels]:
        """Yields every combination of the labels of `axes` that has cells, restricted to the labels in `where`."""
        choices = [[label for label in self.axes[axis] if label in where.get(axis, self.axes[axis])] for axis in axes]
        with_cells = {tuple(cell.labels[axis] for axis in axes) for cell in self._cells}
        for labels in itertools.product(*choices):
            if labels in with_cells:
                yield dict(zip(axes, labels, strict=True))

    def verdict(self, ordering: Ordering) -> Verdict:
        """Returns whether the ordering holds for its measure."""
        measure = next((m for m in self.measures if ordering.measure in ("", m.name)), None)
        if isinstance(ordering, SameBest):
            return self._same_best(ordering, measure) if measure else Verdict()
        order = [s for s in ordering.order if all(label in self.axes[axis] for axis, label in s.items())]
        left_out = tuple(in_words(s) for s in ordering.order if s not in order)
        if measure is None or len(order) < 2:
            return Verdict(left_out=left_out)
        ordered = {ordering.best_of, *(axis for setting in ordering.order for axis in setting)}
        free = [axis for axis in self.axes if axis not in ordered and axis != SEED]
        tested = []
        for others in self.settings(free, ordering.where):
            compared = [self._at_best(measure, ordering, {**others, **setting}) for setting in order]
            differences = [self._difference(measure, ordering, *pair) for pair in pairwise(compared)]
            if None not in differences or self._incomplete(measure, compared):
                tested.append(differences)
        return verdicts.combine(tested, left_out)

    def _incomplete(self, measure: Measure, settings: Sequence[Labels]) -> bool:
        """Returns whether cells of the settings failed or are not done; others without a value never have one."""
        entries = [self.entry(measure, labels) for labels in settings]
        return any(entry.failed or entry.pending for entry in entries)

    def _same_best(self, claim: SameBest, measure: Measure) -> Verdict:
        """Returns whether the best label of an axis is the same along another."""
        free = [axis for axis in self.axes if axis not in (claim.axis, claim.along, SEED)]
        along = [setting[claim.along] for setting in self.settings([claim.along], claim.where)]
        tested = []
        for setting in self.settings(free, claim.where):
            at = [{**setting, claim.along: label} for label in along]
            ranked = [self._ranked(measure, claim, claim.axis, labels) for labels in at]
            best = ranked[0][0] if ranked and ranked[0] else None
            for labels, ranking in zip(at[1:], ranked[1:], strict=True):
                rest = [label for label in ranking if label != best]
                if best in ranking and rest:
                    pair = ({**labels, claim.axis: label} for label in (best, rest[0]))
                    tested.append([self._difference(measure, claim, *pair)])
                elif self._incomplete(measure, [{**labels, claim.axis: label} for label in self.axes[claim.axis]]):
                    tested.append([None])
        return verdicts.combine(tested)

    def _at_best(self, measure: Measure, ordering: Ordering, labels: Labels) -> Labels:
        """Returns the labels with the best label of `best_of`: of those with a value, otherwise the first."""
        if not (axis := ordering.best_of):
            return labels
        ranking = self._ranked(measure, ordering, axis, labels)
        return {**labels, axis: (ranking or self.axes[axis])[0]}

    def _ranked(self, measure: Measure, ordering: Ordering, axis: str, labels: Labels) -> list[str]:
        """Returns the labels of an axis that have a value, the best mean first."""
        means = {label: self.entry(measure, {**labels, axis: label}).mean for label in self.axes[axis]}
        sign = -_sign(measure, ordering)
        return sorted((label for label in means if np.isfinite(means[label])), key=lambda label: sign * means[label])

    def _difference(self, measure: Measure, ordering: Ordering, better: Labels, worse: Labels) -> Difference | None:
        """Returns the difference of two entries over the seeds that have both values; None without such a seed."""
        sign = _sign(measure, ordering)
        entries = self.entry(measure, better), self.entry(measure, worse)
        left, right, errors = [], [], []
        for a, b in zip(*(entry.estimates for entry in entries), strict=True):
            if a.value is not None and b.value is not None:
                left.append(sign * a.value)
                right.append(sign * b.value)
                known = a.standard_error is not None and b.standard_error is not None
                errors.append((a.standard_error, b.standard_error) if known else None)
        return verdicts.difference(left, right, errors) if left else None

    def failures(self, measure: Measure, labels: Labels, threshold: float) -> Entry:
        """Returns 1 for each seed that failed or whose value is worse than the threshold, and 0 for the others."""
        entry = self.entry(measure, labels)
        sign = 1.0 if measure.direction == "lower" else -1.0
        shares = [float(sign * value > sign * threshold) for value in entry.known] + [1.0] * entry.failed
        return Entry(tuple(Estimate(share, None) for share in shares), pending=entry.pending)


def _sign(measure: Measure, ordering: Ordering) -> float:
    """Returns 1 if the first setting of an ordering has the higher value, otherwise -1."""
    return -1.0 if (ordering.direction or measure.direction) == "lower" else 1.0


def in_words(labels: Labels) -> str:
    """Returns labels as text, such as "eta 0, steps 10"."""
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())


def _estimate(measure: Measure, result: Mapping[str, Any]) -> Estimate:
    """Returns the value and sampling error in a stored result; each is None if it is missing."""
    stored = result.get("estimates", {}).get(measure.name, {})
    value, error = stored.get("value"), stored.get("standard_error")
    if value is None or not np.isfinite(value):
        return _MISSING
    samples = result.get("provenance", {}).get("samples")
    if error is None and measure.name in _PROPORTIONS and samples and 0 <= value <= 1:
        error = resampling.proportion_with_error(np.arange(samples) < round(value * samples)).standard_error
    return Estimate(value, error)
