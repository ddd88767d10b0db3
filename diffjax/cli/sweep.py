"""Sweep sampling settings of a trained run: a table, a plot, and results/sweep.json.

  python launch.py sweep --workdir=runs/digits --steps=5,10,20,50,100,250,1000 --eta=0,1 [--guidance=1,2] [--grid=...]
  python launch.py sweep --workdir=runs/digits --ema_length=0.05,0.1,0.15

Computes every combination of the lists, a cell each. All cells start from the same noise. Each sampler compiles once,
for all numbers of steps, etas and guidance scales. Every finished cell is printed and written at once, so a sweep that
is stopped keeps its finished cells.

The columns are those of --metrics (see launch.py evaluate --help) with their standard errors. The default is
fd_pixels, the Frechet distance to the training images on pixels averaged to at most 8x8 (this is not FID, and is
comparable only at the same --num), and classifier_accuracy: the fraction of samples that a support vector machine,
trained on real images, assigns to their class. Compare that with its accuracy on held-out real images.

rms_to_finest_grid is the root-mean-square difference to the samples of the same seeds and settings with the most steps,
in grey levels of 255; that reference has no value itself. It falls to 0 with more steps if the sampler is
deterministic; samples of stochastic samplers differ at any number of steps. Options that a sampler does not take, such
as --eta, are left out for it. seconds is the sampling time without compilation; compile_seconds is the compilation time
of the cell that compiled.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags as absl_flags
from jaxtyping import UInt8
from tqdm import tqdm

from diffjax import io
from diffjax.cli.flags import (
    MAX_COUNT,
    Arguments,
    Flags,
    check_writable,
    define_sampling,
    define_workdir,
    required,
)
from diffjax.cli.settings import batch_size, define_settings, parse_lengths
from diffjax.errors import MissingData, UserError
from diffjax.evaluation import plots, provenance, samples
from diffjax.evaluation.metrics import NAMES
from diffjax.evaluation.samples import Measurer
from diffjax.inference import prompts
from diffjax.inference.guidance_models import attach_guidance_models
from diffjax.inference.overrides import SettingsFactory, setting_grid
from diffjax.inference.prompts import Prompts
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.metrics import resampling
from diffjax.metrics.resampling import Estimate
from diffjax.models.capabilities import is_diffusion_or_pipeline
from diffjax.numbers import with_error
from diffjax.parsing import texts
from diffjax.runs.datasets import open_dataset
from diffjax.runs.loading import Run, load
from diffjax.typing import Variables


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags, several_lengths=True)
    absl_flags.DEFINE_integer("num", 500, "number of samples per cell", 2, MAX_COUNT, flag_values=flags)
    define_settings(flags, several=True)
    for name, default, text in (
        ("metrics", "fd_pixels,classifier_accuracy", f"of samples: {' | '.join(NAMES)}; several, separated by commas"),
        ("clip", None, "run or folder of a CLIP, for metrics that require one"),
        ("inception", None, "weights file of FID's InceptionV3"),
    ):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)


def run(arguments: Arguments) -> int:
    names = texts(arguments.metrics)
    samples.check_names(names, arguments.inception)
    lengths = parse_lengths("ema_length", arguments.ema_length) if arguments.ema_length else [None]
    path = required(arguments, "workdir")
    runs = {length: load(path, arguments.checkpoint, ema_length=length) for length in lengths}
    trained = runs[lengths[0]]
    grid = setting_grid(arguments.as_dict())
    if not is_diffusion_or_pipeline(trained.system):
        raise UserError(
            f"--workdir={trained.workdir.path}: requires a diffusion model or a pipeline "
            f"(this run: system={trained.config.system})"
        )
    check_writable("workdir", trained.workdir.results / "sweep.json")
    if not arguments.classifier:  # a classifier can add classes
        names = _supported_metrics(arguments, trained, trained.system.classes)
    attached = {length: attach_guidance_models(run, arguments.as_dict()) for length, run in runs.items()}
    model, _ = attached[lengths[0]]
    variables = {length: of_run for length, (_, of_run) in attached.items()}
    names = _supported_metrics(arguments, trained, model.classes)
    # All settings are made first, so that bad ones are refused before anything is sampled.
    make_settings = SettingsFactory(model, trained.config.sampler)
    steps = [make_settings(**cell).num_steps for cell in grid] * len(lengths)
    settings = [make_settings(capacity=max(steps), **cell) for cell in grid] * len(lengths)
    cells = [{**({"ema_length": length} if length else {}), **cell} for length in lengths for cell in grid]
    conditions = prompts.default_prompts(trained, arguments.num, classes=model.classes)
    measure = _measurer(arguments, trained, names, model.classes) if names else None
    runner = SampleRunner(model, batch_size=batch_size(arguments, arguments.num))
    sweep = _Sweep(arguments, trained, runner, variables, conditions, measure, cells, steps, settings)
    return sweep.report(sweep.compute())


@dataclasses.dataclass
class _Sweep:
    """The cells of a sweep, and the rows of those that are finished."""

    arguments: Arguments
    trained: Run
    runner: SampleRunner
    variables: dict[float | None, Variables]  # by ema_length
    prompts: Prompts
    measure: Measurer | None
    cells: list[dict[str, Any]]  # overrides of the sampling settings, and ema_length
    steps: list[int]  # per cell
    settings: list[Any]  # per cell

    def __post_init__(self):
        self.baselines = self.measure.baselines() if self.measure else {}
        self.columns = self.measure.columns if self.measure else {}
        self.rows: list[dict[str, Any] | None] = [None] * len(self.cells)
        self.examples: list[np.ndarray | None] = [None] * len(self.cells)
        self.file = _ResultsFile(self.trained.workdir.results / "sweep.json", self.results)

    @property
    def finished(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row is not None]

    def results(self) -> dict[str, Any]:
        """Returns the content of the results file for the finished cells."""
        guides = {name: getattr(self.arguments, name) for name in ("classifier", "weak")}
        return {
            **{name: value for name, value in provenance.of_run(self.trained).items() if name != "ema_length"},
            "num": self.arguments.num,
            "seed": self.arguments.seed,
            "sampler": self.trained.config.sampler.to_dict(),
            "guides": {name: path for name, path in guides.items() if path},
            "reference": self.measure.provenance if self.measure else {"data": None},
            "baselines": self.baselines,
            "warnings": self.measure.warnings if self.measure else [],
            "compilations": self.runner.compilations,
            "compile_seconds": self.compile_seconds,
            "complete": len(self.finished) == len(self.cells),
            "cells": self.finished,
        }

    @property
    def compile_seconds(self) -> float:
        return sum(row["compile_seconds"] for row in self.finished)

    def compute(self) -> int | None:
        """Computes all cells. Returns the number of the signal that stopped it, or None."""
        lines, printed = plots.TableLines(self.cells, self.columns), 0
        try:
            with tqdm(total=len(self.cells) * self.arguments.num, unit="image") as bar:
                print(lines.head)
                group = reference = None  # samples with the most steps, kept for the group of cells at hand
                for i in _order(self.cells, self.steps):
                    images, times = self._sample(i, bar.update)
                    if group != _without_steps(self.cells[i]):
                        group, reference = _without_steps(self.cells[i]), images
                        distance = Estimate(None, None)  # the reference itself
                    else:
                        distance = _rms_difference(images, reference)
                    self.rows[i] = row = self._row(i, images, distance) | times
                    self.examples[i] = images[: plots.MAX_EXAMPLES].copy()
                    tqdm.write(lines.line(row), file=sys.stdout)
                    self.file.write()
                    printed = self._print_warnings(printed)
        except KeyboardInterrupt as error:
            return error.args[0] if error.args else signal.SIGINT
        return None

    def _print_warnings(self, printed: int) -> int:
        """Prints the metrics' warnings but the first `printed`. Returns their number."""
        warnings = self.measure.warnings if self.measure else []
        for text in warnings[printed:]:
            tqdm.write(f"warning: {text}", file=sys.stderr)
        return len(warnings)

    def _sample(self, i: int, progress: Callable[[int], Any]) -> tuple[UInt8[np.ndarray, "N H W C"], dict[str, float]]:
        """Returns the samples of cell `i`, and its times in seconds."""
        inputs = (
            self.variables[self.cells[i].get("ema_length")],
            self.arguments.seed + np.arange(self.arguments.num),
            self.prompts.conditions,
        )
        compilations, start = self.runner.compilations, time.perf_counter()
        self.runner.compile(*inputs, self.settings[i])
        compile_seconds = time.perf_counter() - start if self.runner.compilations > compilations else 0.0
        start = time.perf_counter()
        images = self.runner(*inputs, self.settings[i], progress=progress)
        seconds = time.perf_counter() - start
        return images, {"seconds": round(seconds, 3), "compile_seconds": round(compile_seconds, 3)}

    def _row(self, i: int, images: UInt8[np.ndarray, "N H W C"], distance: Estimate) -> dict[str, Any]:
        """Returns the settings and metrics of cell `i`."""
        labels, captions = self.prompts.conditions["label"], self.prompts.captions
        estimates: dict[str, Estimate] = dict(self.measure(images, labels, captions)) if self.measure else {}
        estimates["rms_to_finest_grid"] = distance
        return {
            **self.cells[i],
            "steps": self.steps[i],
            **{name: estimate.value for name, estimate in estimates.items()},
            "standard_errors": {name: estimate.standard_error for name, estimate in estimates.items()},
            "not_finite": self.runner.not_finite,
        }

    def report(self, stopped: int | None) -> int:
        """Prints the table and writes the plot. Returns the exit code: 0, 2, or 128 + the signal `stopped`."""
        finished, total = self.finished, len(self.cells)
        if finished:
            print(plots.table(finished, self.columns))
        for name, baseline in self.baselines.items():
            print(f"{self.columns[name].heading.strip()} of real images: {with_error(*baseline['real'].values())}")
        print(
            f"{len(finished)} of {total} cells of {self.arguments.num} samples, {self.runner.compilations} "
            f"compilation(s) of the sampler in {self.compile_seconds:.1f} s"
        )
        if finished and not self.file.is_written:
            self.file.write()
        path = self.file.path
        if finished and not self.file.is_written:
            print(f"error: {path}: cannot be written; free space; the table above has the results", file=sys.stderr)
            return 2
        if stopped is not None:
            where = f"; {path} has them" if finished else ""
            print(f"stopped after {len(finished)} of {total} cells{where}", file=sys.stderr)
            return 128 + stopped
        print(path)
        plot = path.with_suffix(".png")
        real = {name: baseline["real"]["value"] for name, baseline in self.baselines.items()}
        titles = {name: column.title for name, column in self.columns.items()}
        plots.sweep(plot, finished, titles, [images for images in self.examples if images is not None], real)
        print(plot)
        return 0


class _ResultsFile:
    """The results on disk, written again after each cell.

    Attributes:
      path: path of the file.
      is_written: whether the file has the latest results.
    """

    def __init__(self, path: Path, results: Callable[[], dict[str, Any]]):
        """`results` returns the latest results. Raises OSError if the folder cannot be created."""
        path.parent.mkdir(exist_ok=True)
        self.path, self.is_written, self._results = path, False, results

    def write(self) -> None:
        """Writes the results; prints a warning if that fails."""
        try:
            io.write_json(self.path, self._results())
            self.is_written = True
        except OSError as error:
            self.is_written = False
            reason = error.strerror or error
            print(f"warning: {self.path}: cannot be written ({reason}); it is tried again", file=sys.stderr)


def _supported_metrics(arguments: Arguments, trained: Run, classes: int) -> list[str]:
    """Returns the metrics of --metrics; without the flag, those of its default that the run supports.

    Raises:
      UserError: a metric of the command line is not supported.
    """
    names = texts(arguments.metrics)
    check = functools.partial(samples.check, classes=classes, inception=arguments.inception, clip=arguments.clip)
    if "metrics" in arguments.given_flags:
        check(names, trained, arguments.num)
        return names
    try:
        open_dataset(trained.config, trained.config.data.split)
    except MissingData as error:
        print(f"no metrics against real images: {error}")
        return []
    supported = []
    for name in names:
        with contextlib.suppress(UserError):
            check([name], trained, arguments.num)
            supported.append(name)
    return supported


def _measurer(arguments: Arguments, trained: Run, names: list[str], classes: int) -> Measurer:
    return Measurer(
        names,
        trained,
        classes=classes,
        with_errors=True,
        inception=arguments.inception,
        clip=arguments.clip,
        batch_size=arguments.batch_size,
    )


def _without_steps(cell: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Returns the settings of a cell except the numbers of steps, of stages as well."""
    return [(name, value) for name, value in sorted(cell.items()) if name.rpartition(":")[2] != "steps"]


def _order(cells: list[dict[str, Any]], steps: list[int]) -> list[int]:
    """Returns the indices of cells, grouped by all settings except steps, with the most steps first in each group."""
    groups = [_without_steps(cell) for cell in cells]
    return sorted(range(len(cells)), key=lambda i: (groups.index(groups[i]), -steps[i]))


def _rms_difference(images: np.ndarray, reference: np.ndarray | None) -> Estimate:
    """Returns the root-mean-square difference to samples with the most steps, in grey levels.

    Its standard error is that of the mean square over images, by the delta method: d sqrt(m) = dm / (2 sqrt(m)).

    Reference: Song et al. 2021 (DDIM), section 5.2.
    """
    assert reference is not None
    squares = np.asarray(np.mean((images.astype(np.float32) - reference) ** 2, axis=(1, 2, 3), dtype=np.float64))
    square, error = resampling.mean(squares)
    root = math.sqrt(square or 0.0)
    return Estimate(root, error / (2 * root) if root and error is not None else error)
