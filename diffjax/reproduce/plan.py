"""The cells of an experiment at a scale, and which of them share a training."""

import fnmatch
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ml_collections import ConfigDict

from diffjax import io
from diffjax.errors import UserError, unknown
from diffjax.reproduce.spec import SEED, Experiment, Fields, Labels, Measure, Scale
from diffjax.runs.config_files import flatten, load_file, training_key


class Cell(NamedTuple):
    """A point of the grid."""

    labels: Labels  # of every axis, the seed's last
    config: ConfigDict
    training: str  # the key of what it is measured on
    key: str  # of all that determines its figures
    classifier: str = ""  # the key of the one that guides its samples, if one does


class Unit(NamedTuple):
    """Cells that are worked on as one: they share a training, or are trained together."""

    trainings: Mapping[str, ConfigDict]  # by key
    cells: Sequence[Cell]


def scale_of(experiment: Experiment, name: str) -> Scale:
    """Raises UserError for one that the experiment does not have."""
    if name not in experiment.scales:
        raise unknown("scale", name, experiment.scales)
    return experiment.scales[name]


def measures_of(experiment: Experiment, scale: Scale) -> Sequence[Measure]:
    return scale.measures or experiment.measures


def make_units(
    experiment: Experiment, scale: Scale, overrides: Fields, together: Sequence[str] | None = None
) -> list[Unit]:
    """Every cell, in units.

    Args:
      overrides: config fields of the machine, such as data.dir.
      together: axes whose cells are trained as one program; None: as the experiment says.

    Raises:
      UserError: fields that the config does not have, axes that are none.
    """
    together = experiment.together if together is None else together
    for axis in together:
        if axis not in (known := [*(axis.name for axis in experiment.axes), SEED]):
            raise unknown("axis to train together", axis, known)
    axes = [{label: axis.values[label] for label in scale.axes.get(axis.name, axis.values)} for axis in experiment.axes]
    names = [axis.name for axis in experiment.axes]
    asked = [(m.metric, m.figure, dict(m.settings)) for m in measures_of(experiment, scale)]
    measured = json.dumps(asked, sort_keys=True)
    base = functools.cache(load_file)
    cells, trainings, groups = [], {}, {}
    for *chosen, seed in itertools.product(*axes, scale.seeds):
        labels = dict(zip(names, chosen, strict=True)) | {SEED: str(seed)}
        changes = [axis[label] for axis, label in zip(axes, chosen, strict=True)]
        config = _configured(base, scale, changes, {"seed": seed, "parts.*.seed": seed, **overrides})
        training = training_key(config)
        drawn = [config.get(name, ConfigDict()).to_dict() for name in ("sampler", "rerank")]
        sampler = json.dumps(drawn[0], sort_keys=True) + (json.dumps(drawn[1]) if drawn[1] else "")
        classifier = ""
        if scale.classifier:
            file, changed = scale.classifier
            guide = with_fields(base(file), {**changed, "seed": seed, **overrides})
            classifier = training_key(guide)
            trainings[classifier] = guide
        depends = f"{training} {classifier} {sampler} {measured} {scale.num}"
        cell = Cell(labels, config, training, io.short_hash(depends), classifier)
        cells.append(cell)
        trainings[training] = config
        apart = tuple(label for axis, label in labels.items() if axis not in together)
        groups.setdefault(training, apart)
    units: dict = {}
    for cell in cells:  # those of one group are one unit where they are trained together, else those of one training
        units.setdefault(groups[cell.training] if together else cell.training, []).append(cell)
    needed = [{key for cell in unit for key in (cell.classifier, cell.training) if key} for unit in units.values()]
    return [
        Unit({key: trainings[key] for key in trainings if key in keys}, unit)
        for keys, unit in zip(needed, units.values(), strict=True)
    ]


def _configured(
    base: Callable[[str], ConfigDict], scale: Scale, changes: Sequence[Fields | Callable], last: Fields
) -> ConfigDict:
    """The scale's config with what each label changes, and then the fields `last`; `base` loads files."""
    file, fields = scale.config, dict(scale.fields)
    for change in changes:
        own = dict(change(with_fields(base(file), fields)) if callable(change) else change)
        file = own.pop("config", file)
        fields |= own
    return _with_stages(with_fields(base(file), {**fields, **last}))


def with_fields(config: ConfigDict, fields: Fields) -> ConfigDict:
    """A copy with other values. Raises UserError for a field that it does not have, or of another kind."""
    made = ConfigDict(config.copy_and_resolve_references()).unlock()
    known = flatten(made)
    for pattern, value in fields.items():
        for name in fnmatch.filter(known, pattern) if "*" in pattern else [pattern]:
            if name not in known and not name.startswith("sampler."):  # whose settings are checked when it is planned
                raise unknown("config field", name, known)
            try:
                _set(made, name, value)
            except (TypeError, KeyError) as error:
                raise UserError(f"{name}={value!r}: {str(error).splitlines()[0]}") from error
    return made.lock()


def _set(config: ConfigDict, name: str, value) -> None:
    """A field by its dotted name, in sections of a section that are made where there are none."""
    section, _, field = name.rpartition(".")
    if "." in section and config.get(section) is None:
        _set(config, section, ConfigDict())
    (config[section] if section else config)[field] = value


def _with_stages(config: ConfigDict) -> ConfigDict:
    """A chain that says all settings of its stages itself: the runs of stages are shared, and say what others said."""
    if "stages" not in config.get("sampler", {}):
        return config
    made = ConfigDict(config.copy_and_resolve_references()).unlock()
    for field, value in config.items():
        part = config.get("parts", {}).get(value[1:], {}) if isinstance(value, str) and value.startswith("@") else {}
        if "sampler" in part:
            made.sampler.stages[field] = {**part.sampler, **made.sampler.stages.get(field, {})}
    return made.lock()
