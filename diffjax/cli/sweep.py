"""Sweep the sampler's settings on a trained run: a table, a figure, and results/sweep.json.

  python launch.py sweep --workdir=runs/digits --steps=5,10,20,50,100,250,1000 --eta=0,1 [--guidance=1,2] [--grid=...]

Every combination of the lists is a cell. All cells start from the same noise. One sampler compiles once, however many
steps, etas and guidance scales there are. A cell is printed and written when it is done: a sweep that is stopped leaves
those that are done.

Columns are those of --metrics (launch.py evaluate --help explains them) with their standard errors: by default
fd_pixels, the Frechet distance to the training images on pixels averaged to 8x8 or less (not FID, and comparable only
at one --num), and recognised, the share of samples that a support vector machine trained on real images takes for their
class, which should be compared with its accuracy on held-out real images. to_most_steps is the root-mean-square
difference from the same seeds' samples at the most steps of the same settings, in grey levels of 255. Those samples are
the reference and have no value. It falls towards 0 where a sampler adds no noise; two samples of a sampler that adds
noise differ at any number of steps. An option that a sampler does not take, as --eta, is left out for it. seconds is
the time of sampling without compilation, which is compile_seconds in the cell that compiled.
"""

import contextlib
import functools
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import flags as absl_flags
from tqdm import tqdm

from diffjax import io
from diffjax.cli.flags import MOST, Arguments, Flags, check_writable, define_sampling, define_workdir, required
from diffjax.cli.settings import batch_size, cells, define_settings, texts, with_guides
from diffjax.errors import MissingData, UserError
from diffjax.evaluation import figures, provenance, samples
from diffjax.evaluation.metrics import NAMES
from diffjax.evaluation.samples import Measurer
from diffjax.inference import prompts
from diffjax.inference.sampler_runner import Generator
from diffjax.metrics import resampling
from diffjax.metrics.resampling import Estimate
from diffjax.numbers import with_error
from diffjax.runs.loading import Run, load, open_source


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    absl_flags.DEFINE_integer("num", 500, "samples a cell", 2, MOST, flag_values=flags)
    define_settings(flags, several=True)
    for name, default, text in (
        ("metrics", "fd_pixels,recognised", f"of samples: {' | '.join(NAMES)}; several, separated by commas"),
        ("clip", None, "run or folder of a CLIP, for the metrics that need one"),
        ("inception", None, "file of the weights of FID's InceptionV3"),
    ):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)


def run(arguments: Arguments) -> int:
    names = texts(arguments.metrics)
    samples.check_names(names, arguments.inception)
    trained = load(required(arguments, "workdir"), arguments.checkpoint)
    swept = cells(arguments)
    if trained.system.model is None and not trained.system.stages:
        raise UserError(f"sweep is over the steps of diffusion models, and this is a run of {trained.config.system}")
    check_writable("workdir", trained.workdir.results / "sweep.json")
    if not arguments.classifier:  # which may bring classes
        names = _suitable(arguments, trained, trained.system.classes)
    system, variables = with_guides(arguments, trained)
    names = _suitable(arguments, trained, system.classes)
    # Every plan first: what does not fit is refused before anything is drawn.
    plan = functools.partial(system.plan, trained.config.sampler)
    steps = [int(plan(**cell).steps) for cell in swept]
    plans = [plan(capacity=max(steps), **cell) for cell in swept]
    asked = prompts.of_run(trained, arguments.num, classes=system.classes)
    measure = _measurer(arguments, trained, names, system.classes) if names else None
    baselines = measure.baselines() if measure else {}
    seeds = arguments.seed + np.arange(arguments.num)
    generator = Generator(system, batch_size=batch_size(arguments, arguments.num))
    columns = measure.columns if measure else {}

    rows: list[dict | None] = [None] * len(swept)
    shown: list[np.ndarray | None] = [None] * len(swept)

    def results() -> dict:
        done = [row for row in rows if row is not None]
        return {
            **provenance.of_run(trained),
            "num": arguments.num,
            "seed": arguments.seed,
            "sampler": trained.config.sampler.to_dict(),
            "guides": {name: getattr(arguments, name) for name in ("classifier", "weak") if getattr(arguments, name)},
            "reference": measure.provenance if measure else {"data": None},
            "baselines": baselines,
            "warnings": measure.warnings if measure else [],
            "compilations": generator.compilations,
            "compile_seconds": sum(row["compile_seconds"] for row in done),
            "complete": len(done) == len(rows),
            "cells": done,
        }

    file = _File(trained.workdir.results / "sweep.json", results)
    lines = figures.Lines(swept, columns)
    stopped = None
    try:
        with tqdm(total=len(swept) * arguments.num, unit="image") as bar:
            print(lines.head)
            settings = reference = None  # of the cell with the most steps, whose samples alone are kept
            for i in _by_settings(swept, steps):
                compiled, began = generator.compilations, time.perf_counter()
                generator.compile(variables, seeds, asked.condition, plans[i])
                compiling = time.perf_counter() - began if generator.compilations > compiled else 0.0
                began = time.perf_counter()
                images = generator(variables, seeds, asked.condition, plans[i], progress=bar.update)
                seconds = time.perf_counter() - began
                found = measure(images, asked.condition["label"], asked.captions) if measure else {}
                if settings != _but_steps(swept[i]):
                    settings, reference = _but_steps(swept[i]), images
                    found["to_most_steps"] = Estimate(None, None)  # the reference itself
                else:
                    found["to_most_steps"] = _distance(images, reference)
                row = {
                    **swept[i],
                    "steps": steps[i],
                    **{name: estimate.value for name, estimate in found.items()},
                    "standard_errors": {name: estimate.standard_error for name, estimate in found.items()},
                    "not_finite": generator.not_finite,
                    "seconds": round(seconds, 3),
                    "compile_seconds": round(compiling, 3),
                }
                shown[i], rows[i] = images[: figures.EXAMPLES].copy(), row
                tqdm.write(lines.line(row), file=sys.stdout)
                file.write()
    except KeyboardInterrupt as error:
        stopped = error.args[0] if error.args else signal.SIGINT

    done = [i for i, row in enumerate(rows) if row is not None]
    finished = [rows[i] for i in done]
    if finished:
        print(figures.table(finished, columns))
    for name, baseline in baselines.items():
        print(f"{columns[name].heading.strip()} of real images: {with_error(*baseline['real'].values())}")
    print(
        f"{len(done)} of {len(swept)} cells of {arguments.num} samples, {generator.compilations} compilation(s) of the "
        f"sampler in {sum(row['compile_seconds'] for row in finished):.1f} s"
    )
    if finished and not file.written:
        file.write()
    if finished and not file.written:
        print(f"error: {file.path} cannot be written: free some space; the table has its figures", file=sys.stderr)
        return 2
    if stopped is not None:
        where = f"; {file.path} has them" if finished else ""
        print(f"stopped after {len(done)} of {len(swept)} cells{where}", file=sys.stderr)
        return 128 + stopped
    print(file.path)
    figure = file.path.with_suffix(".png")
    real = {name: baseline["real"]["value"] for name, baseline in baselines.items()}
    titles = {name: column.title for name, column in columns.items()}
    figures.figure(figure, finished, titles, [shown[i] for i in done], real)
    print(figure)
    return 0


class _File:
    """The results on disk, written again after each cell.

    Attributes:
      path: of the file.
      written: whether the last results are on disk.
    """

    def __init__(self, path: Path, results: Callable[[], dict]):
        """`results` returns the results so far. Raises OSError where the folder cannot be made."""
        path.parent.mkdir(exist_ok=True)
        self.path, self.written, self._results = path, False, results

    def write(self) -> None:
        """Writes the results, or prints why they are not written."""
        try:
            io.write_json(self.path, self._results())
            self.written = True
        except OSError as error:
            self.written = False
            print(f"warning: {self.path} cannot be written ({error.strerror or error}); tried again", file=sys.stderr)


def _suitable(arguments: Arguments, trained: Run, classes: int) -> list[str]:
    """Returns the metrics of --metrics; of its default those that suit the run.

    Raises:
      UserError: a metric that is named cannot be computed.
    """
    names = texts(arguments.metrics)
    needed = {"classes": classes, "inception": arguments.inception, "clip": arguments.clip}
    if not arguments.values["metrics"].using_default_value:
        samples.check(names, trained, arguments.num, **needed)
        return names
    try:
        open_source(trained.config, trained.config.data.split)
    except MissingData as error:
        print(f"no measure against real images: {error}")
        return []
    found = []
    for name in names:
        with contextlib.suppress(UserError):
            samples.check([name], trained, arguments.num, **needed)
            found.append(name)
    return found


def _measurer(arguments: Arguments, trained: Run, names: list[str], classes: int) -> Measurer:
    given = {"inception": arguments.inception, "clip": arguments.clip, "batch_size": arguments.batch_size}
    return Measurer(names, trained, classes=classes, errors=True, **given)


def _but_steps(cell: dict) -> list[tuple]:
    """A cell's settings but for its steps, those of stages too."""
    return [(name, value) for name, value in sorted(cell.items()) if name.rpartition(":")[2] != "steps"]


def _by_settings(swept: list[dict], steps: list[int]) -> list[int]:
    """The places of cells, those that differ in steps alone together, the most steps first."""
    groups = [_but_steps(cell) for cell in swept]
    return sorted(range(len(swept)), key=lambda i: (groups.index(groups[i]), -steps[i]))


def _distance(images: np.ndarray, reference: np.ndarray) -> Estimate:
    """Returns the root-mean-square difference from the samples of the most steps (DDIM, sec. 5.2), in grey levels.

    Its standard error is that of the mean square over images, by the delta method: d sqrt(m) = dm / (2 sqrt(m)).
    """
    squares = np.mean((images.astype(np.float32) - reference) ** 2, axis=(1, 2, 3), dtype=np.float64)
    square, error = resampling.mean(squares)
    root = float(np.sqrt(square))
    return Estimate(root, error / (2 * root) if root and error is not None else error)
