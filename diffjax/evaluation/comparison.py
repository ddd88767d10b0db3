"""Compares runs: metrics of their results stores and training logs, and the config fields that differ."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax import evaluation
from diffjax.errors import UserError, note, unknown
from diffjax.evaluation import metrics, provenance, results_store
from diffjax.evaluation.results_store import Entry, ResultsStore
from diffjax.evaluation.tables import RMS_TITLES, aligned
from diffjax.metrics.resampling import Estimate
from diffjax.numbers import number, with_error
from diffjax.runs.config_files import different_fields
from diffjax.runs.workdir import Workdir

_COMPARED = ("data", "reference", "device", "git", "versions")  # provenance that comparable results share
_MAX_VALUE = 40  # characters of a config field's value in a table


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """A run that is compared.

    Attributes:
      name: its folder's name; its path if two runs have the same name.
      log: lines of metrics.jsonl, from the first step.
    """

    name: str
    path: Path
    config: ConfigDict
    entries: Sequence[Entry]
    log: Sequence[Mapping[str, Any]]

    def stored(self, metric: str) -> list[Entry]:
        """Returns the entries with a metric: of the newest checkpoint with any, the newest of equal settings."""
        entries = [entry for entry in self.entries if metric in entry["metrics"]]
        newest = max((entry.get("checkpoint") or 0 for entry in entries), default=0)
        return list({_key(entry): entry for entry in entries if (entry.get("checkpoint") or 0) == newest}.values())

    def logged(self, metric: str) -> list[tuple[int, float]]:
        """Returns the logged values of a metric, with their steps; values that are not finite are left out."""
        return [(line["step"], line[metric]) for line in self.log if line.get(metric) is not None]


def open_runs(paths: Sequence[str | os.PathLike]) -> list[ComparedRun]:
    """Reads the configs, results and logs of runs.

    Raises:
      UserError: fewer than two runs, one that is named twice, or a folder that is not a run.
    """
    if len(paths) < 2:
        raise UserError("name at least two runs: launch.py compare RUN RUN --metric=...")
    workdirs = [Workdir(path) for path in paths]
    folders = [workdir.path.resolve() for workdir in workdirs]
    for i, workdir in enumerate(workdirs):
        if folders[i] in folders[:i]:
            raise UserError(f"{workdir.name}: the run is named twice; name it once")
    names = [folder.name for folder in folders]
    return [
        _open_run(workdir.name if names.count(name) > 1 else name, workdir)
        for name, workdir in zip(names, workdirs, strict=True)
    ]


def _open_run(name: str, workdir: Workdir) -> ComparedRun:
    config, entries = workdir.read_config(), ResultsStore(workdir.results).entries
    return ComparedRun(name, workdir.path, config, entries, workdir.read_metrics())


class Comparison:
    """Metrics of runs, side by side.

    Attributes:
      runs: at least two.
      metrics: names, of which at least two runs have each.
      fields: values of the config fields that differ, a value per run, by dotted name.
    """

    def __init__(self, runs: Sequence[ComparedRun], names: Sequence[str]):
        """Selects the results of the metrics `names`.

        Raises:
          UserError: no metric is named, or two runs do not have it.
        """
        self.runs, self.metrics = runs, list(dict.fromkeys(names))
        self.fields = different_fields(*(run.config for run in runs))
        stored = {run.name: {name for entry in run.entries for name in entry["metrics"]} for run in runs}
        logged = {run.name: {name for line in run.log for name in line if name != "step"} for run in runs}
        owned = {run.name: stored[run.name] | logged[run.name] for run in runs}
        common = sorted(name for name in set().union(*owned.values()) if sum(name in o for o in owned.values()) > 1)
        if not names:
            choices = f"choose from {', '.join(common)}" if common else "the runs have no metric in common"
            raise UserError(f"--metric is missing; {choices}")
        for name in self.metrics:
            _check_metric(name, runs, owned, common)
        self._is_logged = {name: not any(name in of_run for of_run in stored.values()) for name in self.metrics}

    def is_logged(self, metric: str) -> bool:
        """Returns whether a metric is of the training logs, rather than of the results stores."""
        return self._is_logged[metric]

    def title(self, metric: str) -> str:
        """Returns the heading of a metric, with the direction that is better."""
        if self.is_logged(metric):
            return f"{metric} in training"
        column = metrics.COLUMNS.get(metric.removeprefix("recon_"))
        if column is None:
            return RMS_TITLES.get(metric, metric)
        return f"reconstructions: {column.title}" if metric.startswith("recon_") else column.title

    def text(self) -> str:
        """Returns a table per metric, and a table of the config fields that differ."""
        blocks = [
            self._logged_table(name) if self.is_logged(name) else self._stored_table(name) for name in self.metrics
        ]
        if self.fields:
            rows = [[name, *map(value_text, values)] for name, values in self.fields.items()]
            blocks.append("config fields that differ\n" + aligned([["", *self._names], *rows]))
        else:
            blocks.append("the configs are equal")
        return "\n\n".join(blocks)

    def rows(self) -> list[dict[str, Any]]:
        """Returns a flat row per run and setting: settings, metrics, and the config fields that differ."""
        rows: dict[tuple[str, str], dict[str, Any]] = {}
        for i, run in enumerate(self.runs):
            fields = {f"config.{name}": values[i] for name, values in self.fields.items()}
            for metric in self.metrics:
                if self.is_logged(metric):
                    step, value = run.logged(metric)[-1] if run.logged(metric) else (None, None)
                    row = rows.setdefault((run.name, ""), {"run": run.name, "checkpoint": step, **fields})
                    row[metric] = value
                    continue
                for entry in run.stored(metric):
                    shared = {"run": run.name, "checkpoint": entry.get("checkpoint"), **settings_of(entry)}
                    row = rows.setdefault((run.name, _key(entry)), {**shared, **fields})
                    estimate = results_store.estimates(entry)[metric]
                    row |= {metric: estimate.value, f"{metric}_standard_error": estimate.standard_error}
        return list(rows.values())

    @property
    def _names(self) -> list[str]:
        return [run.name for run in self.runs]

    def _stored_table(self, metric: str) -> str:
        entries = [{_key(entry): entry for entry in run.stored(metric)} for run in self.runs]
        keys = {key: settings_of(entry) for of_run in entries for key, entry in of_run.items()}
        order = sorted(keys, key=lambda key: keys[key].get("steps") or 0)
        if not any(sum(key in of_run for of_run in entries) > 1 for key in order):
            note(f"{metric}: no two runs have results of the same settings, number of samples and seed")
        settings = results_store.column_names(keys.values())
        rows = []
        for key in order:
            estimates = [results_store.estimates(of_run[key])[metric] if key in of_run else None for of_run in entries]
            rows.append([*(value_text(keys[key].get(name, "")) for name in settings), *map(_estimate_text, estimates)])
        steps = [next((entry.get("checkpoint") for entry in of_run.values()), None) for of_run in entries]
        lines = [self.title(metric), aligned([[*settings, *self._names], *rows])]
        lines.append(
            f"checkpoints: {', '.join(f'{name} {step}' for name, step in zip(self._names, steps, strict=True))}"
        )
        fields = (*_COMPARED, "finest") if metric in RMS_TITLES else _COMPARED
        compared = [{name: entry.get(name) for name in fields} for of_run in entries for entry in of_run.values()]
        if different := provenance.differences(compared, shared=True):
            lines.append(f"the results differ in {', '.join(different)}")
        return "\n".join(lines)

    def _logged_table(self, metric: str) -> str:
        last = [run.logged(metric)[-1] if run.logged(metric) else (None, None) for run in self.runs]
        steps = ["" if step is None else str(step) for step, _ in last]
        rows = [["", *self._names], ["last step", *steps], [metric, *(number(value) for _, value in last)]]
        return f"{self.title(metric)}\n{aligned(rows)}"


def settings_of(entry: Entry) -> dict[str, Any]:
    """Returns what was set for an entry: settings, guides, number of images and seed."""
    return {**entry["settings"], **entry.get("guides", {}), "num": entry["num"], "seed": entry["seed"]}


def _key(entry: Entry) -> str:
    return json.dumps(settings_of(entry), sort_keys=True, default=str)


def _check_metric(name: str, runs: Sequence[ComparedRun], owned: Mapping[str, set[str]], common: Sequence[str]) -> None:
    """Raises UserError for a metric that two runs do not have; notes runs without it."""
    without = [run for run in runs if name not in owned[run.name]]
    advice = "run launch.py sweep or evaluate with --workdir={}"
    is_result = name in metrics.COLUMNS or name.partition(".")[0] in evaluation.NAMES
    if len(without) == len(runs) and (any(run.entries for run in runs) or not is_result):
        raise unknown("metric", name, set().union(*owned.values()))
    if len(without) > len(runs) - 2:
        if empty := [run for run in without if not run.entries]:
            raise UserError(f"{empty[0].path}: has no results; {advice.format(empty[0].path)}")
        choices = f"choose from {', '.join(common)}" if common else advice.format(without[0].path)
        raise UserError(f"--metric={name}: {without[0].path} does not have it; {choices}")
    for run in without:
        note(f"--metric={name}: {run.path} does not have it")


def _estimate_text(estimate: Estimate | None) -> str:
    return "" if estimate is None else with_error(*estimate)


def value_text(value: Any) -> str:
    """Returns a setting or the value of a config field as a short text."""
    text = f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."
