"""Sweeps sampling settings of a run: samples, metrics and times of every combination of settings, a cell each."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from diffjax.errors import MissingData, UserError, note
from diffjax.evaluation import plots, provenance, results_store, samples, tables
from diffjax.evaluation.metrics import Column, result_entry
from diffjax.evaluation.results_store import SAMPLING_FIELDS, Entry, ResultsStore, make_id
from diffjax.evaluation.samples import Measurer
from diffjax.inference import image_grids, prompts
from diffjax.inference.guidance_models import attach_guidance_models
from diffjax.inference.overrides import SettingsFactory, all_settings, by_flag, setting_grid
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.metrics import resampling, similarity
from diffjax.metrics.features import WeightPaths
from diffjax.metrics.resampling import Estimate
from diffjax.models.capabilities import samples_in_steps
from diffjax.runs.datasets import open_dataset
from diffjax.runs.loading import Run

DEFAULT_METRICS = ("fd_pixels", "classifier_accuracy")
_RMS = "rms_to_finest_grid"
# Counts per sample of samplers: evaluations of one with adaptive step sizes, steps with deep features of a cache.
_EVALUATIONS, _DEEP_STEPS = "evaluations", "deep_steps"


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Options of a sweep, equal for all cells."""

    metrics: Sequence[str] | None = None  # names in metrics.NAMES; None: those of DEFAULT_METRICS that the run supports
    num: int = 500  # samples per cell
    seed: int = 0  # seed of the first sample; sample i has seed + i
    batch_size: int = 100
    clip: str | None = None  # run or folder of a CLIP; None: the one trained with the run
    weights: WeightPaths = dataclasses.field(default_factory=dict)  # of feature networks
    reference: str | None = None  # split of the data set, or .npz file, to compare samples with; None: training split
    recompute: bool = False  # compute cells that are stored too


class Sweep:
    """Cells of a sweep, of which some may be stored.

    Attributes:
      settings: sampling settings of each cell, by name, with its number of steps.
      entries: entry of each cell; None: not computed yet.
      num_stored: number of cells that were stored before.
      columns: columns of the metrics, by name.
      baselines: values of real images and by chance, by metric.
      compilations: number of compilations of the sampler.
      compile_seconds: their time in seconds.
    """

    def __init__(
        self,
        runs: Mapping[float | None, Run],
        flags: Mapping[str, Any],
        options: SweepOptions,
        results: ResultsStore | None = None,
    ):
        """Checks all settings before anything is sampled, and looks up the stored cells.

        Args:
          runs: the run by relative length of the average of its weights; None: that of train.ema_decay.
          flags: texts of sampling settings by name, values separated by commas, and "classifier" and "weak".
          results: store of the run; None: nothing is stored.

        Raises:
          UserError: a setting or a metric that the run does not support.
        """
        self.options, self._results, self._trained = options, results, next(iter(runs.values()))
        grid = setting_grid(flags)
        if not samples_in_steps(self._trained.system):
            raise UserError(
                f"--workdir={self._trained.workdir.name}: requires a diffusion model, a pipeline or a masked prior "
                f"(this run: system={self._trained.config.system})"
            )
        if options.metrics is not None and not flags.get("classifier"):  # a classifier can add classes
            _check_metrics(options, options.metrics, self._trained, self._trained.system.classes)
        attached = {length: attach_guidance_models(run, flags) for length, run in runs.items()}
        model = next(iter(attached.values()))[0]
        names = _supported_metrics(options, self._trained, model.classes)
        # All settings are made first, so that bad ones are refused before anything is sampled.
        make_settings = SettingsFactory(model, self._trained.config.sampler)
        steps = [make_settings(**overrides).num_steps for overrides in grid]
        settings = [make_settings(capacity=max(steps), **overrides) for overrides in grid]
        self._cells = [_Cell(length, *cell) for length in runs for cell in zip(grid, steps, settings, strict=True)]
        self._guides = {name: str(flags[name]) for name in ("classifier", "weak") if flags.get(name)}
        self._variables = {length: variables for length, (_, variables) in attached.items()}
        self._prompts = prompts.default_prompts(self._trained, options.num, classes=model.classes)
        self._measure = self._measurer(names, model.classes) if names else None
        self._runner = SampleRunner(model, batch_size=min(options.batch_size, options.num))
        self.settings = [cell.named_settings for cell in self._cells]
        self.columns = dict(self._measure.columns) if self._measure else {}
        if any(cell.settings.is_adaptive for cell in self._cells):
            self.columns[_EVALUATIONS] = Column("evaluations per sample", "lower")
        if any(cell.settings.caches_by_change for cell in self._cells):
            self.columns[_DEEP_STEPS] = Column("steps with deep features", "lower")
        self.baselines = self._measure.baselines() if self._measure else {}
        self._groups = _groups(self._cells)
        self._ids = self._make_ids(names)
        self.entries: list[Entry | None] = [None] * len(self._cells)
        if results and not options.recompute:
            self.entries = list(map(results.find, self._ids, self.settings))
            if outdated := sum(map(results.is_outdated, self._ids)):
                cells = f"{outdated} of {len(self._ids)} cells"
                note(f"{results.path}: {cells} were computed by other code, and are computed again")
        self.num_stored = len(self.finished)
        self._examples: dict[int, np.ndarray] = {}
        self.compile_seconds = 0.0

    @property
    def finished(self) -> list[Entry]:
        """Entries of the finished cells."""
        return [entry for entry in self.entries if entry is not None]

    @property
    def compilations(self) -> int:
        return self._runner.compilations

    def compute(self) -> Iterator[Entry]:
        """Computes and stores the cells that are not stored, and yields the entry of each.

        Each group of cells that differ in their steps starts with the most steps, the reference of the others. If only
        others are missing, the reference is sampled again and not measured.
        """
        queue = [self._to_sample(group) for group in self._groups]
        with tqdm(total=sum(map(len, queue)) * self.options.num, unit="image", disable=not any(queue)) as bar:
            for group in queue:
                reference = None
                for i in group:
                    images, times = self._sample(self._cells[i], bar.update)
                    is_reference = reference is None
                    reference = images if reference is None else reference
                    if self.entries[i] is None:
                        distance = (
                            Estimate(None, None) if is_reference else similarity.rms_difference(images, reference)
                        )
                        yield self._add(i, images, distance, times)

    def table(self) -> str:
        """Returns a table of the finished cells, in the order of the settings."""
        return tables.table([table_row(entry) for entry in self.finished], self.columns) if self.finished else ""

    def result(self) -> "SweepResult":
        """Returns the finished cells."""
        return SweepResult([results_store.flat_row(entry) for entry in self.finished], self.table())

    def plot(self, path: Path) -> None:
        """Writes a plot of the metrics against the steps, with samples. All cells must be finished."""
        rows = [table_row(entry) for entry in self.finished]
        real = {name: baseline["real"]["value"] for name, baseline in self.baselines.items()}
        titles = {name: column.title for name, column in self.columns.items()}
        plots.sweep(path, rows, titles, [self._example(i) for i in range(len(rows))], real)

    def _measurer(self, names: Sequence[str], classes: int) -> Measurer:
        options = self.options
        return Measurer(
            names,
            self._trained,
            classes=classes,
            with_errors=True,
            real=options.reference,
            weights=options.weights,
            clip=options.clip,
            batch_size=options.batch_size,
        )

    def _make_ids(self, names: Sequence[str]) -> list[str]:
        """Returns the id of each cell, of everything that its metrics depend on."""
        weights = {length: provenance.fingerprint(variables) for length, variables in self._variables.items()}
        finest = {i: self._cells[group[0]].step_settings for group in self._groups for i in group}
        shared = {
            "config": provenance.config_hash(self._trained),
            "prompts": provenance.fingerprint(self._prompts.conditions),
            "captions": self._prompts.captions,
            "num": self.options.num,
            "seed": self.options.seed,
            "metrics": sorted(names),
            "reference": self._reference,
        }
        return [
            make_id(weights=weights[cell.ema_length], sampler=self._sampler(cell), finest=finest[i], **shared)
            for i, cell in enumerate(self._cells)
        ]

    @property
    def _reference(self) -> dict[str, Any]:
        return self._measure.provenance if self._measure else {"data": None}

    def _sampler(self, cell: "_Cell") -> dict[str, Any]:
        """Returns all sampling settings of a cell."""
        return all_settings(self._trained.config.sampler.to_dict(), cell.overrides, cell.settings)

    def _to_sample(self, group: list[int]) -> list[int]:
        """Returns the cells of a group to sample: the missing ones, and first the reference of any."""
        others = [i for i in group[1:] if self.entries[i] is None]
        return [group[0], *others] if others or self.entries[group[0]] is None else []

    def _sample(
        self, cell: "_Cell", progress: Callable[[int], Any]
    ) -> tuple[UInt8[np.ndarray, "N H W C"], dict[str, float]]:
        """Returns the samples of a cell, and its times in seconds."""
        seeds = self.options.seed + np.arange(self.options.num)
        inputs = self._variables[cell.ema_length], seeds, self._prompts.conditions, cell.settings
        compilations, start = self._runner.compilations, time.perf_counter()
        self._runner.compile(*inputs)
        compile_seconds = time.perf_counter() - start if self._runner.compilations > compilations else 0.0
        self.compile_seconds += compile_seconds
        start = time.perf_counter()
        images = self._runner(*inputs, progress=progress)
        seconds = time.perf_counter() - start
        return images, {"seconds": round(seconds, 3), "compile_seconds": round(compile_seconds, 3)}

    def _add(
        self, i: int, images: UInt8[np.ndarray, "N H W C"], distance: Estimate, times: Mapping[str, float]
    ) -> Entry:
        """Measures the samples of cell `i`, and stores its entry with the first samples."""
        measure, cell = self._measure, self._cells[i]
        finest = self._cells[next(group[0] for group in self._groups if i in group)]
        values = dict(measure(images, self._prompts.conditions["label"], self._prompts.captions)) if measure else {}
        entries = {name: result_entry(name, values[name], self.baselines.get(name)) for name in values}
        counts = self._runner.evaluations
        counted = _DEEP_STEPS if cell.settings.caches_by_change else _EVALUATIONS
        counted = {} if counts is None else {counted: resampling.mean(counts)._asdict()}
        file = f"cells/{self._ids[i]}.png"
        fields = {
            "settings": cell.named_settings,
            "num": self.options.num,
            "seed": self.options.seed,
            "metrics": {**entries, _RMS: distance._asdict(), **counted},
            "not_finite": self._runner.not_finite,
            **times,
            "finest": finest.step_settings,
            "sampler": self._sampler(cell),
            "guides": self._guides,
            "reference": self._reference,
            "warnings": list(measure.warnings) if measure else [],
            "files": [file],
        }
        trained = dataclasses.replace(self._trained, ema_length=cell.ema_length)
        self.entries[i] = entry = results_store.make_entry("sweep", trained, self._ids[i], fields)
        self._examples[i] = images[: plots.MAX_EXAMPLES].copy()
        if self._results:
            self._results.add(entry, {file: functools.partial(_save_examples, self._examples[i])})
        return entry

    def _example(self, i: int) -> UInt8[np.ndarray, "N H W C"]:
        """Returns the first samples of a finished cell."""
        if i not in self._examples:
            assert self._results is not None
            self._examples[i] = image_grids.read_images(self._results.file(f"cells/{self._ids[i]}.png"))
        return self._examples[i]


@dataclasses.dataclass(frozen=True, repr=False)
class SweepResult:
    """Results of a sweep; `repr` is a table.

    Attributes:
      rows: a flat row per cell: settings, num, seed, metrics with standard errors, times, provenance.
    """

    rows: list[dict[str, Any]]
    _table: str

    def __repr__(self) -> str:
        return self._table

    def __len__(self) -> int:
        return len(self.rows)

    def to_csv(self, path: str | Path) -> None:
        """Writes the rows as CSV: the file of `launch.py sweep --csv`."""
        results_store.write_csv(path, self.rows)


@dataclasses.dataclass(frozen=True)
class _Cell:
    """A combination of settings."""

    ema_length: float | None
    overrides: Mapping[str, Any]  # overrides of the sampling settings
    steps: int
    settings: Any  # sampling settings

    @functools.cached_property
    def named_settings(self) -> dict[str, Any]:
        """The settings that distinguish the cell, by the names of flags."""
        length = {"ema_length": self.ema_length} if self.ema_length else {}
        return {**length, **by_flag(self.overrides), "steps": self.steps}

    @functools.cached_property
    def step_settings(self) -> dict[str, Any]:
        """The numbers of steps, of stages as well."""
        return {name: value for name, value in self.named_settings.items() if _is_steps(name)}

    @functools.cached_property
    def other_settings(self) -> dict[str, Any]:
        """The settings except the numbers of steps."""
        return {name: value for name, value in self.named_settings.items() if not _is_steps(name)}


def table_row(entry: Entry) -> dict[str, Any]:
    """Returns the row of an entry for a table or plot: settings, values, "standard_errors" and times."""
    estimates = results_store.estimates(entry)
    times = {name: entry[name] for name in SAMPLING_FIELDS}
    values = {name: estimate.value for name, estimate in estimates.items()}
    errors = {name: estimate.standard_error for name, estimate in estimates.items()}
    return {**entry["settings"], **values, "standard_errors": errors, **times}


def _is_steps(name: str) -> bool:
    return name.rpartition(":")[2] == "steps"


def _groups(cells: Sequence[_Cell]) -> list[list[int]]:
    """Returns the indices of cells in groups that differ only in the steps, in each the most steps first."""
    groups: list[list[int]] = []
    for i, cell in enumerate(cells):
        group = next((group for group in groups if cells[group[0]].other_settings == cell.other_settings), None)
        if group is None:
            groups.append(group := [])
        group.append(i)
    return [sorted(group, key=lambda i: -cells[i].steps) for group in groups]


def _supported_metrics(options: SweepOptions, trained: Run, classes: int) -> list[str]:
    """Returns the metrics of the options; without any, the default ones that the run supports.

    Raises:
      UserError: a metric of the options is not supported.
    """
    if options.metrics is not None:
        _check_metrics(options, options.metrics, trained, classes)
        return list(options.metrics)
    try:
        open_dataset(trained.config, trained.config.data.split)
    except MissingData as error:
        note(f"no metrics against real images: {error}")
        return []
    supported = []
    for name in DEFAULT_METRICS:
        with contextlib.suppress(UserError):
            _check_metrics(options, [name], trained, classes)
            supported.append(name)
    return supported


def _check_metrics(options: SweepOptions, names: Sequence[str], trained: Run, classes: int) -> None:
    real, weights, clip = options.reference, options.weights, options.clip
    samples.check(names, trained, options.num, real=real, classes=classes, weights=weights, clip=clip)


def _save_examples(images: UInt8[np.ndarray, "N H W C"], path: Path) -> None:
    image_grids.save(path, image_grids.grid(images, image_grids.Layout(len(images))))
