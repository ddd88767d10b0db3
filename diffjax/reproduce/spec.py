"""Declares an experiment: a grid of configs, the metrics of each cell, and the results and claims of the paper."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffjax import evaluation
from diffjax.errors import UserError, unknown
from diffjax.evaluation import metrics
from diffjax.runs import packaged

# Config fields by dotted name, or by a pattern: "*train.steps" matches the run's field and those of its parts.
Fields = Mapping[str, Any]
Change = Fields | Callable[[ConfigDict], Fields]  # fields, or a function from the config so far to fields
Labels = Mapping[str, str]  # label by axis
SEED = "seed"  # axis that every experiment has
SMALL_NETWORKS: Fields = {  # makes every network of a pipeline small
    "*model.channels": 16,
    "*model.width": 32,
    "*model.layers": 1,
    "*encoder.width": 32,
    "*conditions.caption.width": 32,
    "*conditions.image_embedding.width": 32,
}
# Of trainings on digits that take minutes: a small network and batch, without previews and held-out losses.
SMALL_TRAINING: Fields = {
    "*model.channels": 16,
    "*train.batch_size": 32,
    "*train.num_preview_samples": 0,
    "*train.eval_every": 0,
}


class Multiply(NamedTuple):
    """Value of a field: the config's value times `factor`; an integer field is rounded."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Axis:
    """An axis of the grid. Cells that differ only in fields of `sampler` share a trained model.

    Attributes:
      name: heading in tables.
      values: changes to the config, by label. The field "config" names a file that replaces the scale's config;
        "{data}" in it is replaced by the name of the data set. The field "ema_length" evaluates the average of the
        weights of this relative length, of a run with `train.ema_lengths`; such cells share a trained model too.
      by: name of an earlier axis; then `values` maps each label to changes by label of that axis. Labels of that axis
        without a change have no cells.
    """

    name: str
    values: Mapping[str, Any]  # of Change, or of Mapping[str, Change]
    by: str = ""

    def change(self, label: str, labels: Labels) -> Change | None:
        """Returns the change of a label, None if it has no cell; `labels` are those of the earlier axes."""
        change = self.values[label]
        return change.get(labels[self.by]) if self.by else change


def steps(*counts: int) -> Axis:
    """Returns the axis of the number of sampling steps."""
    return Axis("steps", {str(count): {"sampler.steps": count} for count in counts})


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measured column of an experiment.

    Attributes:
      metric: name in `diffjax.evaluation`; or "training": a value logged at the last step; or "rms_to_finest_grid":
        root-mean-square difference, in grey levels, from the samples of the same seeds at the most steps; or
        "seconds_per_image": time of sampling without compilation, of the machine that computes the cell.
      value: which value of the metric, such as "bound" of nll; "": the value named like the metric. A run that does not
        have this value has no entry.
      heading: heading in tables; "": the metric's own.
      better: "lower" | "higher" | "neither", for descriptive metrics; "": the metric's own.
      settings: fields of evaluation.settings.Settings. By default the metric `reconstruction` and the likelihood by the
        ODE, such as nll.ode_hutchinson, have the sampler's number of steps.
    """

    metric: str
    value: str = ""
    heading: str = ""
    better: str = ""
    settings: Fields = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        known = (*evaluation.NAMES, "training", "rms_to_finest_grid", "seconds_per_image")
        if self.metric not in known:
            raise unknown("metric", self.metric, known)

    @property
    def name(self) -> str:
        """Key under which its values are stored."""
        if self.metric in metrics.NAMES:
            return self.value or self.metric
        return f"{self.metric}.{self.value}" if self.value else self.metric

    @property
    def direction(self) -> str:
        """Direction that is better: "lower", "higher" or "neither"."""
        return self.better or (self._column.better if self._column else "lower")

    @property
    def title(self) -> str:
        """Heading with the direction that is better."""
        heading = self.heading or (self._column.heading if self._column else self.name)
        if not self.heading and self.metric in evaluation.OF_RECONSTRUCTIONS:
            heading += ", of reconstructions"
        return heading + ("" if self.direction == "neither" else f" ({self.direction} is better)")

    @property
    def _column(self) -> metrics.Column | None:
        return metrics.COLUMNS.get(evaluation.OF_RECONSTRUCTIONS.get(self.metric, self.name))


@dataclasses.dataclass(frozen=True)
class Paper:
    """Published results on the same grid.

    Attributes:
      setting: data set, metric and number of samples.
      values: published values; keys are labels of the axes, in their order.
      metrics: names of the measures whose tables show these values; (): the first measure.
    """

    setting: str
    values: Mapping[tuple[str, ...], float]
    metrics: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ordering:
    """A claimed order of settings, all else equal.

    Attributes:
      claim: the claim in words.
      order: labels of axes, the best setting first.
      where: labels of other axes for which the order is claimed; all labels of an axis that is absent.
      measure: name of the measure; "": the first one that is measured.
      direction: "lower" or "higher", the direction of the first setting; "": the one that is better, which the measure
        must have.
      best_of: axis, such as the learning rate, of which each setting has its best label; "": no such axis.
    """

    claim: str
    order: Sequence[Labels]
    where: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    measure: str = ""
    direction: str = ""
    best_of: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameBest(Ordering):
    """A claim that the best label of an axis, such as the learning rate, is the same along another, such as the width.

    The label with the best mean at the first label of `along` is compared with the best of the others at each further
    one.

    Attributes:
      axis: axis whose best label is claimed to be the same.
      along: axis along which it is.
    """

    order: Sequence[Labels] = ()
    axis: str
    along: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scale:
    """A size at which an experiment runs.

    Attributes:
      config: config file that the grid starts from.
      duration: running time and hardware, in words.
      fields: config fields of all cells.
      axes: labels that run, by axis; all labels of an axis that is absent.
      seeds: seeds of training, each repeated for the whole grid.
      num: samples per cell.
      measures: replaces the experiment's measures; (): keeps them.
      classifier: config file and changed fields of a classifier that guides every cell.
      weak: changed fields of a weaker version of each run, which guides its cells: autoguidance; None: no such version.
      features: config file and changed fields of a classifier, trained once for all seeds, in whose features metrics
        such as fd_classifier compare samples; None: the one of --features.
    """

    config: str
    duration: str
    fields: Fields = dataclasses.field(default_factory=dict)
    axes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    num: int = 1000
    measures: Sequence[Measure] = ()
    classifier: tuple[str, Fields] | None = None
    weak: Fields | None = None
    features: tuple[str, Fields] | None = None


def smoke(
    config: str,
    *,
    duration: str,
    train_steps: int,
    measures: Sequence[Measure] = (),
    fields: Fields | None = None,
    axes: Mapping[str, Sequence[str]] | None = None,
    num: int = 100,
    classifier: tuple[str, Fields] | None = None,
    weak: Fields | None = None,
    features: tuple[str, Fields] | None = None,
) -> Scale:
    """Returns a scale that shows within minutes that an experiment runs: short trainings without previews, one seed.

    Args:
      train_steps: training steps of the run and of each of its parts.
      config, duration, measures, fields, axes, num, classifier, weak, features: as of `Scale`.
    """
    short = {"*train.steps": train_steps, "*train.num_preview_samples": 0, "*train.eval_every": 0}
    return Scale(
        config=config,
        duration=duration,
        fields={**short, **(fields or {})},
        axes=axes or {},
        num=num,
        measures=measures,
        classifier=classifier,
        weak=weak,
        features=features,
    )


def few_step_scales(
    config: str, smoke_axes: Mapping[str, Sequence[str]], smoke_measures: Sequence[Measure] = (Measure("fd_pixels"),)
) -> dict[str, Scale]:
    """Returns the scales of experiments on samples in few steps, which share trained models in one workdir.

    The data are digits, at the scale "fashion_mnist" 14x14 images of garments.

    Args:
      config: config file that the grid starts from.
      smoke_axes: labels that run at the scale "smoke", by axis.
      smoke_measures: measures of this scale.
    """
    small = Scale(
        config=config,
        duration="two to four minutes per training run on one core of an Intel Xeon",
        fields=SMALL_TRAINING,
        seeds=(0, 1, 2),
        num=1000,
    )
    fashion_mnist = {
        "*data.name": "fashion_mnist",
        "*data.image_size": 14,
        "*model.attention_resolutions": (7,),
        "*train.batch_size": 64,
    }
    return {
        "smoke": smoke(
            config,
            duration="minutes on two CPU cores; not measured",
            train_steps=40,
            fields=SMALL_TRAINING,
            axes=smoke_axes,
            measures=smoke_measures,
        ),
        "small": small,
        "fashion_mnist": dataclasses.replace(
            small,
            duration="four to eight minutes per training run on one core of an Intel Xeon, DMD2 20",
            fields={**SMALL_TRAINING, **fashion_mnist},
            num=2000,
        ),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A published table or figure.

    Attributes:
      source: paper and table.
      claim: the result that the paper is cited for, in one sentence.
      axes: axes of the grid, without the seeds.
      measures: measured columns, the main one first.
      scales: scales by name: smoke, small, and paper or another.
      column_axis: axis whose labels are columns of the tables; "": each label is a row.
      papers: published results.
      orderings: claims to test.
      failure_threshold: value of the first measure beyond which a run counts as failed; runs with an error count too.
    """

    title: str
    source: str
    claim: str
    axes: Sequence[Axis]
    measures: Sequence[Measure]
    scales: Mapping[str, Scale]
    column_axis: str = ""
    papers: Sequence[Paper] = ()
    orderings: Sequence[Ordering] = ()
    failure_threshold: float | None = None

    def __post_init__(self):
        axes = {axis.name: axis for axis in self.axes}
        columns = {m.name: m for s in (*self.scales.values(), self) for m in s.measures}
        if self.column_axis and self.column_axis not in axes:
            raise unknown("column axis", self.column_axis, axes)
        for axis in self.axes:
            if axis.by and axis.by not in axes:
                raise unknown(f"axis in `by` of {axis.name}", axis.by, axes)
            if axis.by:
                self._check_labels({axis.by: [by for changes in axis.values.values() for by in changes]}, axis.name)
        for ordering in self.orderings:
            if ordering.measure and ordering.measure not in columns:
                raise unknown("measure of an ordering", ordering.measure, columns)
            measure = columns[ordering.measure] if ordering.measure else self.measures[0]
            if not ordering.direction and measure.direction == "neither":
                raise UserError(
                    f"ordering {ordering.claim!r}: neither direction of {measure.name} is better; set `direction` to "
                    "lower or higher"
                )
            if isinstance(ordering, SameBest):
                self._check_labels({ordering.axis: (), ordering.along: ()}, "an ordering")
            for setting in ordering.order:
                self._check_labels({axis: [label] for axis, label in setting.items()}, "an ordering")
            self._check_labels({ordering.best_of: ()} if ordering.best_of else {}, "an ordering")
            self._check_labels(ordering.where, "an ordering")
        for name, scale in self.scales.items():
            self._check_labels(scale.axes, f"the scale {name}")
        for paper in self.papers:
            for key in paper.values:
                self._check_labels({a: [label] for a, label in zip(axes, key, strict=True)}, "the paper's values")

    def _check_labels(self, labels: Mapping[str, Sequence[str]], place: str) -> None:
        """Raises UserError for an axis or a label that the experiment does not have."""
        values = {axis.name: axis.values for axis in self.axes}
        for axis, requested in labels.items():
            if axis not in values:
                raise unknown(f"axis in {place}", axis, values)
            for label in requested:
                if label not in values[axis]:
                    raise unknown(f"label of {axis} in {place}", label, values[axis])


def load(path: str) -> Experiment:
    """Returns the experiment of a file, or of the name of a packaged one.

    Raises:
      UserError: the file cannot be read.
    """
    path = packaged.find("experiments", path)
    if not Path(path).is_file():
        raise UserError(f"--experiment={path}: no such file; list packaged ones with `launch.py reproduce --list`")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise UserError(f"--experiment={path}: the file must be Python; name one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # the file may run any code
        raise UserError(f"cannot read {path}: {type(error).__name__}: {error}") from error
    experiment = getattr(module, "EXPERIMENT", None)
    if not isinstance(experiment, Experiment):
        raise UserError(f"--experiment={path}: the file has no EXPERIMENT; define EXPERIMENT = Experiment(...)")
    return experiment
