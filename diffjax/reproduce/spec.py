"""What an experiment's file says: a grid of configs, what to measure, and what the paper found."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax import evaluation
from diffjax.errors import UserError, unknown
from diffjax.evaluation import metrics

Fields = Mapping[str, Any]  # of a config, by dotted name, or by a pattern: "*train.steps" are those of all parts too
Labels = Mapping[str, str]  # of axes
SEED = "seed"  # the axis that every experiment has
# What makes all networks of a chain small, and their trainings short, to see an experiment run
TINY: Fields = {
    "*train.steps": 20,
    "*train.sample_count": 0,
    "*model.channels": 16,
    "*model.width": 32,
    "*model.layers": 1,
    "*encoder.width": 32,
    "*conditions.caption.width": 32,
    "*conditions.image_embedding.width": 32,
}


@dataclasses.dataclass(frozen=True)
class Axis:
    """One direction of the grid.

    Cells that differ in fields of `sampler` only share a trained model.

    Attributes:
      values: by label the config fields that it sets, or a function to them from the config that the scale and the
        axes before have made. Among them "config" is a file to start from in the place of the scale's.
    """

    name: str
    values: Mapping[str, Fields | Callable[[ConfigDict], Fields]]


def steps(*counts: int) -> Axis:
    """The axis of the sampler's steps."""
    return Axis("steps", {str(count): {"sampler.steps": count} for count in counts})


@dataclasses.dataclass(frozen=True)
class Measure:
    """One column of figures.

    Attributes:
      metric: of `diffjax.measures`; "training": of the last logged step; "to_most_steps": root-mean-square difference
        in grey levels from the same seeds' samples at the most steps, all else equal.
      figure: which of the metric's figures, where it has several: "bound" of nll. Of a run that has no such figure
        it is left out.
      heading: in tables; "" for the metric's own.
      better: "lower" | "higher" | "neither", of what only describes; "" for the metric's own.
      settings: of diffjax.measures.settings.Settings.
    """

    metric: str
    figure: str = ""
    heading: str = ""
    better: str = ""
    settings: Fields = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        known = (*evaluation.NAMES, "training", "to_most_steps")
        if self.metric not in known:
            raise unknown("metric", self.metric, known)

    @property
    def name(self) -> str:
        """That its figures are kept by."""
        if self.metric in metrics.NAMES:
            return self.figure or self.metric
        return f"{self.metric}.{self.figure}" if self.figure else self.metric

    @property
    def direction(self) -> str:
        """Which is better, "lower", "higher" or "neither"."""
        return self.better or (self._column.better if self._column else "lower")

    @property
    def title(self) -> str:
        """The heading, with what is better."""
        own = self._column.heading if self._column else self.name
        own += ", of reconstructions" * (self.metric in evaluation.OF_RECONSTRUCTIONS)
        suffix = "" if self.direction == "neither" else f" ({self.direction} is better)"
        return (self.heading or own) + suffix

    @property
    def _column(self) -> metrics.Column | None:
        return metrics.COLUMNS.get(evaluation.OF_RECONSTRUCTIONS.get(self.metric, self.name))


@dataclasses.dataclass(frozen=True)
class Paper:
    """What a paper reports of the same grid.

    Attributes:
      setting: data, measure and number of samples.
      values: by the labels of the axes, in their order.
      beside: names of the measures that they are printed beside; (): the first one.
    """

    setting: str
    values: Mapping[Sequence[str], float]
    beside: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Ordering:
    """A claim: from the best to the worst of `order`, all else equal.

    Attributes:
      says: the claim in words.
      measure: name of the column; "" for the first one that is measured.
      order: labels of axes, the best first.
      where: the labels of other axes that it is claimed for; every label of an axis that is not named.
    """

    says: str
    order: Sequence[Labels]
    where: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    measure: str = ""


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large an experiment is run.

    Attributes:
      config: the file that the grid starts from.
      takes: how long, where.
      fields: of the config, for all cells.
      axes: the labels that are run, of axes that are not run whole.
      num: samples a cell.
      measures: in the place of the experiment's.
      classifier: file of the config of a classifier that guides every cell, and the fields to change in it.
    """

    config: str
    takes: str
    fields: Fields = dataclasses.field(default_factory=dict)
    axes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    num: int = 1000
    measures: Sequence[Measure] = ()
    classifier: tuple[str, Fields] | None = None


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A published table or figure.

    Attributes:
      source: paper and table.
      claim: what it is cited for, in a sentence.
      axes: of the grid, without the seeds.
      across: the axis whose labels stand beside each other; "" where each label has a line.
      orderings: what should hold here too.
      together: axes, of array-valued fields, whose cells are trained as one program; "seed" may be one.
      fails_above: of the first measure; a run beyond it, or that stopped with an error, counts as failed.
      scales: by name: smoke, small, paper.
    """

    title: str
    source: str
    claim: str
    axes: Sequence[Axis]
    measures: Sequence[Measure]
    scales: Mapping[str, Scale]
    across: str = ""
    papers: Sequence[Paper] = ()
    orderings: Sequence[Ordering] = ()
    together: Sequence[str] = ()
    fails_above: float | None = None

    def __post_init__(self):
        labels = {axis.name: axis.values for axis in self.axes}
        columns = {m.name for s in (self, *self.scales.values()) for m in s.measures}

        def check(axis: str, given: Sequence[str], where: str) -> None:
            if axis not in labels:
                raise unknown(f"axis in {where}", axis, labels)
            for label in given:
                if label not in labels[axis]:
                    raise unknown(f"label of {axis} in {where}", label, labels[axis])

        for ordering in self.orderings:
            if ordering.measure and ordering.measure not in columns:
                raise unknown("measure of an ordering", ordering.measure, columns)
            for settings in ordering.order:
                for axis, label in settings.items():
                    check(axis, [label], "an ordering")
            for axis, given in ordering.where.items():
                check(axis, given, "an ordering")
        for name, scale in self.scales.items():
            for axis, given in scale.axes.items():
                check(axis, given, f"the scale {name}")
        for paper in self.papers:
            for key in paper.values:
                for axis, label in zip(labels, key, strict=True):
                    check(axis, [label], "the paper's values")
        if self.across and self.across not in labels:
            raise unknown("axis to stand across", self.across, labels)
        for axis in self.together:
            if axis not in (*labels, SEED):
                raise unknown("axis to train together", axis, (*labels, SEED))


def load(path: str) -> Experiment:
    """The experiment of a file. Raises UserError where it cannot be read."""
    if not Path(path).is_file():
        near = ", ".join(str(p) for p in sorted(Path("experiments").glob("*.py")))
        raise UserError(f"--experiment={path}: no such file; there are {near}" if near else f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # a file can do anything
        raise UserError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    if not isinstance(getattr(module, "EXPERIMENT", None), Experiment):
        raise UserError(f"{path} has no EXPERIMENT = Experiment(...)")
    return module.EXPERIMENT
