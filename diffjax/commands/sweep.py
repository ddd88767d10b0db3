"""Sweep the sampler's settings on a trained run: a table, a figure, and results/sweep.json.

  python launch.py sweep --workdir=runs/digits --steps=5,10,20,50,100,250,1000 --eta=0,1 [--guidance=1,2] [--grid=...]

Every combination of the lists is a cell. All cells start from the same noise. One sampler compiles once, however many
steps, etas and guidance scales there are.

Columns are those of --metrics (launch.py evaluate --help explains them): by default fd_pixels, the Frechet distance to
the training images on pixels averaged to 8x8 or less (not FID, and comparable only at one --num), and recognised, the
share of samples that a support vector machine trained on real images takes for their class. to_most_steps is the
root-mean-square difference from the same seeds' samples at the most steps, in grey levels of 255: it falls to zero
where a sampler has no noise of its own. An option that a sampler does not take, as --eta, is left out for it. The first
cell of a sampler includes its compilation.
"""

import functools
import time

import numpy as np
from absl import flags as absl_flags
from tqdm import tqdm

from diffjax import io, prompts, report
from diffjax.commands.flags import MOST, Arguments, Flags, check_writable, define_sampling, define_workdir, required
from diffjax.commands.settings import batch_size, cells, define_settings, texts, with_guides
from diffjax.errors import MissingData, UserError
from diffjax.generate import Generator
from diffjax.measures import provenance
from diffjax.measures.metrics import NAMES
from diffjax.measures.samples import Measurer
from diffjax.run import Run, load


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
    trained = load(required(arguments, "workdir"), arguments.checkpoint)
    system, variables = with_guides(arguments, trained)
    swept = cells(arguments)
    if trained.system.model is None and not trained.system.stages:
        raise UserError(f"sweep is over the steps of diffusion models, and this is a run of {trained.config.system}")
    check_writable("workdir", trained.workdir.results / "sweep.json")
    # Every plan first: what does not fit is refused before anything is drawn.
    plan = functools.partial(system.plan, trained.config.sampler)
    steps = [int(plan(**cell).steps) for cell in swept]
    plans = [plan(capacity=max(steps), **cell) for cell in swept]
    measure = _measurer(arguments, trained, system.classes)
    asked = prompts.of_run(trained, arguments.num, classes=system.classes)
    seeds = arguments.seed + np.arange(arguments.num)
    generator = Generator(system, batch_size=batch_size(arguments, arguments.num))

    rows, shown = [None] * len(swept), [None] * len(swept)
    settings = longest = None  # of the cell with the most steps, whose samples alone are kept
    with tqdm(total=len(swept) * arguments.num, unit="image") as bar:
        for i in _by_settings(swept, steps):
            began = time.perf_counter()
            images = generator(variables, seeds, asked.condition, plans[i], progress=bar.update)
            seconds = round(time.perf_counter() - began, 3)
            found = measure(images, asked.condition["label"], asked.captions) if measure else {}
            values = {name: estimate.value for name, estimate in found.items()}
            if settings != _but_steps(swept[i]):
                settings, longest = _but_steps(swept[i]), images
            rows[i] = {**swept[i], "steps": steps[i], **values, "seconds": seconds}
            rows[i]["to_most_steps"] = _distance(images, longest)
            shown[i] = images[: report.EXAMPLES].copy()

    results = {
        **provenance.of_run(trained),
        "num": arguments.num,
        "seed": arguments.seed,
        "sampler": trained.config.sampler.to_dict(),
        "guides": {name: getattr(arguments, name) for name in ("classifier", "weak") if getattr(arguments, name)},
        "reference": measure.provenance if measure else {"data": None},
        "compilations": generator.compilations,
        "cells": rows,
    }
    columns = {name: column.title for name, column in measure.columns.items()} if measure else {}
    path = trained.workdir.results / "sweep.json"
    path.parent.mkdir(exist_ok=True)
    io.write_json(path, results)
    figure = path.with_suffix(".png")
    report.figure(figure, rows, columns, shown)
    print(report.table(rows, columns))
    print(f"{len(swept)} cells of {arguments.num} samples, {generator.compilations} compilation(s) of the sampler")
    print(f"{path}\n{figure}")
    return 0


def _measurer(arguments: Arguments, trained: Run, classes: int) -> Measurer | None:
    """None, and a line that says why, where the data set is not at hand."""
    try:
        return Measurer(
            texts(arguments.metrics), trained, classes=classes, inception=arguments.inception, clip=arguments.clip
        )
    except MissingData as error:
        print(f"no measure against real images: {error}")
        return None


def _but_steps(cell: dict) -> list[tuple]:
    """A cell's settings but for its steps, those of stages too."""
    return [(name, value) for name, value in sorted(cell.items()) if name.rpartition(":")[2] != "steps"]


def _by_settings(swept: list[dict], steps: list[int]) -> list[int]:
    """The places of cells, those that differ in steps alone together, the most steps first."""
    groups = [_but_steps(cell) for cell in swept]
    return sorted(range(len(swept)), key=lambda i: (groups.index(groups[i]), -steps[i]))


def _distance(images: np.ndarray, longest: np.ndarray) -> float:
    """How far samples are from those of the same settings at the most steps (DDIM, sec. 5.2)."""
    return float(np.sqrt(np.mean((images.astype(np.float32) - longest) ** 2)))
