"""What an experiment comes to: figures over seeds, and whether the claimed orderings hold."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffjax.experiment.plan import Cell
from diffjax.experiment.spec import SEED, Experiment, Labels, Measure, Ordering


class Figure(NamedTuple):
    """One entry of a table, over the seeds."""

    values: tuple[float, ...]  # of the seeds that gave one
    failed: int  # seeds that ended with an error
    pending: int  # and that are not done

    @property
    def mean(self) -> float:
        return float(np.mean(self.values)) if self.values else float("nan")

    @property
    def deviation(self) -> float:
        """Standard deviation over the seeds; NaN of fewer than two."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else float("nan")


class Verdict(NamedTuple):
    """Whether an ordering holds here.

    Attributes:
      settings: of the axes that the ordering leaves free, in which it was tested.
      held: of those, in which the means over seeds are in its order.
      chains: seeds of all settings; `agreed`: those in its order, each by itself.
      weakest: the least difference of neighbouring means, and its standard error over the seeds (NaN of one seed).
      left_out: labels of its order that were not run.
    """

    settings: int
    held: int
    chains: int
    agreed: int
    weakest: tuple[float, float]
    left_out: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        if not self.settings:
            return "not measured"
        if self.held < self.settings:
            return "holds in part" if self.held else "does not hold"
        return "holds"

    @property
    def text(self) -> str:
        """The verdict, and how sure it is."""
        if not self.settings:
            return self.word
        difference, error = self.weakest
        details = [f"without {', '.join(self.left_out)}"] if self.left_out else []
        if self.settings > 1:
            details.append(f"in order in {self.held} of {self.settings} settings")
        details.append(f"{self.agreed} of {self.chains} seeds agree")
        details.append(f"smallest step {difference:.3g} ± {error:.2g}" if np.isfinite(error) else "one seed, no error")
        return f"**{self.word}** ({'; '.join(details)})"


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
        """The figure of a measure over the seeds."""
        cells = [self.cell({**labels, SEED: seed}) for seed in self.axes[SEED]]
        found = [self._value(measure, cell) for cell in cells]
        results = [self._results[cell.key] for cell in cells]
        failed = sum("error" in (result or {}) for result in results)
        return Figure(tuple(v for v in found if v is not None), failed, sum(result is None for result in results))

    def _value(self, measure: Measure, cell: Cell) -> float | None:
        figures = (self._results[cell.key] or {}).get("figures", {})
        return figures[measure.name]["value"] if measure.name in figures else None

    def settings(self, axes: Sequence[str], where: Mapping[str, Sequence[str]] = {}) -> Iterator[Labels]:
        """Every combination of the labels of `axes`, of those that `where` leaves."""
        kept = [[label for label in self.axes[axis] if label in where.get(axis, self.axes[axis])] for axis in axes]
        for labels in itertools.product(*kept):
            yield dict(zip(axes, labels, strict=True))

    def verdict(self, ordering: Ordering) -> Verdict:
        """Whether the ordering holds in its column."""
        measure = next((m for m in self.measures if ordering.measure in ("", m.name)), None)
        if measure is None:
            return Verdict(0, 0, 0, 0, (float("inf"), float("nan")))
        named = {axis for settings in ordering.order for axis in settings}
        free = [axis for axis in self.axes if axis not in named and axis != SEED]
        sign = 1.0 if measure.direction == "lower" else -1.0
        order = [s for s in ordering.order if all(label in self.axes[axis] for axis, label in s.items())]
        left_out = tuple(in_words(s) for s in ordering.order if s not in order)
        settings = held = chains = agreed = 0
        weakest = (float("inf"), float("nan"))
        if len(order) < 2:
            return Verdict(0, 0, 0, 0, weakest, left_out)
        for others in self.settings(free, ordering.where):
            table = [
                [self._value(measure, self.cell({**others, **s, SEED: seed})) for seed in self.axes[SEED]]
                for s in order
            ]
            whole = [column for column in zip(*table, strict=True) if None not in column]  # of each seed
            if not whole:
                continue
            steps = sign * np.diff(np.asarray(whole, np.float64), axis=1)  # [seed, step], positive as claimed
            means = steps.mean(axis=0)
            least = int(np.argmin(means))
            error = steps[:, least].std(ddof=1) / np.sqrt(len(steps)) if len(steps) > 1 else float("nan")
            weakest = min(weakest, (float(means[least]), float(error)), key=lambda pair: pair[0])
            settings, held = settings + 1, held + bool(np.all(means > 0))
            chains, agreed = chains + len(steps), agreed + int(np.all(steps > 0, axis=1).sum())
        return Verdict(settings, held, chains, agreed, weakest, left_out)

    def failures(self, measure: Measure, labels: Labels, above: float) -> Figure:
        """The share of seeds that ended with an error, or whose figure is beyond `above`."""
        figure = self.figure(measure, labels)
        sign = 1.0 if measure.direction == "lower" else -1.0
        beyond = [float(sign * value > sign * above) for value in figure.values]
        return Figure((*beyond, *[1.0] * figure.failed), 0, figure.pending)


def in_words(labels: Labels) -> str:
    return ", ".join(f"{axis} {label}" for axis, label in labels.items())
