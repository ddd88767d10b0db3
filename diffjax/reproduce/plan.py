"""Plans an experiment at a scale: its cells, and which of them share a training."""

import fnmatch
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffjax import io
from diffjax.errors import unknown
from diffjax.reproduce.spec import SEED, Change, Experiment, Fields, Labels, Measure, Multiply, Scale
from diffjax.runs.config_files import flatten, load_file, with_fields
from diffjax.runs.dependencies import training_hash


class Cell(NamedTuple):
    """A point of the grid."""

    labels: Labels  # label by axis, the seed last
    config: ConfigDict
    training: str  # key of the training
    key: str  # hash of everything that determines its values
    classifier: str = ""  # key of the classifier that guides its samples; "": none
    weak: str = ""  # key of the weaker run that guides its samples; "": none
    features: str = ""  # key of the classifier in whose features its samples are compared; "": that of --features
    ema_length: float | None = None  # relative length of the average of the weights; None: that of train.ema_decay

    @property
    def sampler(self) -> Any:
        """Sampler section of the config."""
        return _section(self.config, "sampler")


class JobGroup(NamedTuple):
    """Cells that share one training."""

    trainings: Mapping[str, ConfigDict]  # config by key, those of guiding models and of features first
    cells: Sequence[Cell]


def get_scale(experiment: Experiment, name: str) -> Scale:
    """Returns a scale by its name. Raises UserError for a name that the experiment does not have."""
    if name not in experiment.scales:
        raise unknown("scale", name, experiment.scales)
    return experiment.scales[name]


def get_measures(experiment: Experiment, scale: Scale) -> Sequence[Measure]:
    """Returns the measures at a scale."""
    return scale.measures or experiment.measures


def make_groups(experiment: Experiment, scale: Scale, overrides: Fields) -> list[JobGroup]:
    """Returns all cells, grouped by training.

    Args:
      overrides: config fields that depend on the machine, such as data.dir.

    Raises:
      UserError: a field that the config does not have, or a value of another type.
    """
    load_config = functools.cache(load_file)
    names = [axis.name for axis in experiment.axes]
    choices = [scale.axes.get(axis.name, tuple(axis.values)) for axis in experiment.axes]
    measured = json.dumps(
        [(m.metric, m.value, dict(m.settings)) for m in get_measures(experiment, scale)], sort_keys=True
    )
    trainings: dict[str, ConfigDict] = {}
    cells: dict[str, list[Cell]] = {}
    for chosen in itertools.product(*choices):
        labels = dict(zip(names, chosen, strict=True))
        changes = [axis.change(labels[axis.name], labels) for axis in experiment.axes]
        changes = [change for change in changes if change is not None]
        if len(changes) < len(experiment.axes):
            continue
        for seed in scale.seeds:
            last = {"seed": seed, "parts.*.seed": seed, **overrides}
            config, ema_length = _cell_config(load_config, scale, changes, last)
            training, classifier, weak, features = training_hash(config), "", "", ""
            if scale.classifier:
                file, changed = scale.classifier
                classifier_config = with_fields(load_config(file), {**changed, "seed": seed, **overrides})
                classifier = training_hash(classifier_config)
                trainings[classifier] = classifier_config
            if scale.weak is not None:
                weak_config = with_fields(config, _multiplied(config, scale.weak))
                weak = training_hash(weak_config)
                trainings[weak] = weak_config
            if scale.features:
                file, changed = scale.features
                features_config = with_fields(load_config(file), {**changed, **overrides})
                features = training_hash(features_config)
                trainings[features] = features_config
            trainings[training] = config
            weights = f"{training} {classifier}{weak}" + "".join(f" {each}" for each in (features, ema_length) if each)
            sampling = " ".join(json.dumps(each, sort_keys=True) for each in sampling_sections(config).values())
            key = io.short_hash(f"{weights} {sampling} {measured} {scale.num}")
            cell = Cell({**labels, SEED: str(seed)}, config, training, key, classifier, weak, features, ema_length)
            cells.setdefault(training, []).append(cell)
    groups = []
    for group in cells.values():
        keys = {key for cell in group for key in (cell.classifier, cell.weak, cell.features, cell.training)}
        groups.append(JobGroup({key: config for key, config in trainings.items() if key in keys}, group))
    return groups


def sampling_sections(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Returns the sections that change samples and not the training, by name; empty where the config has none."""
    return {name: _section(config, name).to_dict() for name in ("sampler", "rerank")}


def _section(config: ConfigDict, name: str) -> Any:
    """Returns a section of the config, empty if it is missing. Values of a ConfigDict have no static type."""
    return config.get(name, ConfigDict())


def _cell_config(
    load_config: Callable[[str], ConfigDict], scale: Scale, changes: Sequence[Change], last: Fields
) -> tuple[ConfigDict, float | None]:
    """Returns the scale's config with the changes of each label and then the fields `last`, and the EMA length."""
    file, fields, ema_length = scale.config, dict(scale.fields), None
    for change in changes:
        config = with_fields(load_config(file), fields)
        changed = dict(change(config) if callable(change) else change)
        file = changed.pop("config", file).replace("{data}", config.data.name)
        ema_length = changed.pop("ema_length", ema_length)
        fields |= _multiplied(config, changed)
    return _with_stage_settings(with_fields(load_config(file), {**fields, **last})), ema_length


def _multiplied(config: ConfigDict, changed: Fields) -> dict[str, Any]:
    """Returns the changed fields with numbers in place of `Multiply`."""
    known, result = flatten(config), {}
    for pattern, value in changed.items():
        if not isinstance(value, Multiply):
            result[pattern] = value
            continue
        for name in fnmatch.filter(known, pattern):
            result[name] = type(known[name])(round(known[name] * value.factor, 12))
    return result


def _with_stage_settings(config: ConfigDict) -> ConfigDict:
    """Copies the stages' sampler settings into the config of a pipeline.

    The runs of stages are shared, and may hold the settings of another experiment.
    """
    if "stages" not in _section(config, "sampler"):
        return config
    copy = config.copy_and_resolve_references().unlock()
    stages, parts = _section(copy, "sampler").stages, _section(copy, "parts")
    for field, value in config.items():
        if isinstance(value, str) and value.startswith("@") and "sampler" in parts.get(value[1:], {}):
            stages[field] = {**parts[value[1:]].sampler, **stages.get(field, {})}
    return copy.lock()
