"""Plots of an experiment: curves of its measures, and samples of its cells."""

from pathlib import Path

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from diffjax.evaluation.plots import STYLES, legend_below, panel_grid, panels
from diffjax.inference import image_grids
from diffjax.reproduce.outcome import Outcome
from diffjax.reproduce.spec import SEED
from diffjax.reproduce.store import Store

SHOWN = 8  # samples per cell, in two rows
_LOG_RATIO = 3.0  # ratio of values above which their axis is logarithmic


def curves(path: Path, outcome: Outcome) -> bool:
    """Plots each measure against the column axis, which is logarithmic if its labels are positive numbers.

    Error bars are standard deviations over seeds; one seed has no error bar.

    Returns:
      Whether the plot was written: it needs at least two columns.
    """
    columns = outcome.columns
    if len(columns) < 2:
        return False
    try:
        places = [float(column) for column in columns]
        logarithmic = min(places) > 0
    except ValueError:
        places, logarithmic = list(range(len(columns))), False
    count = len(outcome.measures)
    rows, across = panel_grid(count)
    canvas = Figure(figsize=(4.6 * across, 3.8 * rows + 0.6), layout="constrained")
    measure_panels = panels(canvas, count)
    for axes, measure in zip(measure_panels, outcome.measures, strict=True):
        plotted = []
        for i, (name, columns_labels) in enumerate(outcome.lines()):
            entries = [outcome.entry(measure, labels) for labels in columns_labels]
            means = np.array([entry.mean for entry in entries])
            bars = [entry.error if len(entry.known) > 1 else 0.0 for entry in entries]
            there = np.isfinite(means)
            marker, line = STYLES[i % len(STYLES)]
            line = line if there.sum() > 1 else "none"
            errors = bars if any(bars) else None
            axes.errorbar(places, means, errors, marker=marker, linestyle=line, capsize=3, label=name)
            plotted += list(means[there])
        if logarithmic:
            axes.set_xscale("log")
        if plotted and 0 < _LOG_RATIO * min(plotted) < max(plotted):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 3, 5, 7)))
            axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(ticker.NullFormatter())
        axes.set_xticks(places, columns)
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.set_xlabel(outcome.experiment.column_axis)
        axes.set_title(measure.title, fontsize="medium")
        axes.grid(alpha=0.3)
    if outcome.row_axes:
        legend_below(canvas, measure_panels, ", ".join(outcome.row_axes))
    canvas.savefig(path, dpi=90)
    return True


def samples(path: Path, outcome: Outcome, store: Store) -> bool:
    """Plots the first samples of every cell of the first seed. Returns whether there are any."""
    seed = outcome.axes[SEED][0]
    lines = {
        line.name: [store.images(outcome.cell({**labels, SEED: seed}).key) for labels in line.columns]
        for line in outcome.lines()
    }
    lines = {name: line for name, line in lines.items() if any(images is not None for images in line)}
    if not lines:
        return False
    columns, margin = outcome.columns, 0.2 + 0.075 * max(map(len, lines))  # inches; the margin holds the names
    width = margin + 1.7 * len(columns)
    canvas = Figure(figsize=(width, 0.3 + 0.95 * len(lines)))
    grid = canvas.subplots(len(lines), len(columns), squeeze=False)
    top = 1 - 0.25 / canvas.get_figheight()
    canvas.subplots_adjust(left=margin / width, right=0.99, top=top, bottom=0.01, hspace=0.06, wspace=0.06)
    for i, (name, line) in enumerate(lines.items()):
        for j, images in enumerate(line):
            axes = grid[i, j]
            if images is not None:
                image = image_grids.grid(images[:SHOWN], SHOWN // 2)
                axes.imshow(image, cmap="gray" if image.shape[-1] == 1 else None, vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if i == 0 and columns[j]:
                axes.set_title(
                    f"{outcome.experiment.column_axis} {columns[j]}" if j == 0 else columns[j], fontsize="small"
                )
            if j == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize="small")
    canvas.savefig(path, dpi=90)
    return True
