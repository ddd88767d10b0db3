"""Figures of an experiment: curves of its measures, and samples of its cells."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from diffjax.evaluation import panels
from diffjax.inference import image_grids
from diffjax.reproduce.outcome import Outcome
from diffjax.reproduce.spec import SEED
from diffjax.reproduce.store import Store

SHOWN = 8  # samples per cell, in two rows
_GAP = 8  # width between cells, pixels
_MAX_LARGE = 4  # columns up to which small images are enlarged to 64 pixels instead of 32


def curves(path: Path, outcome: Outcome) -> bool:
    """Writes the plot of `curves_figure`. Returns whether there is one."""
    figure = curves_figure(outcome)
    if figure is not None:
        figure.savefig(path)
    return figure is not None


def curves_figure(outcome: Outcome) -> Figure | None:
    """Returns a plot of each measure against the column axis, with a curve per row of the tables.

    The axis is logarithmic if its labels are positive numbers. Error bars are standard deviations over seeds; one seed
    has none. Without two columns that have values there is no plot.
    """
    columns = outcome.columns
    if len(columns) < 2:
        return None
    axis, lines = panels.horizontal_axis(outcome.experiment.column_axis, columns), list(outcome.lines())
    shown, columns_with_values = [], set()
    for measure in outcome.measures:
        of_lines = []
        for name, columns_labels in lines:
            entries = [outcome.entry(measure, labels) for labels in columns_labels]
            several = any(len(entry.known) > 1 for entry in entries)
            errors = [entry.error if len(entry.known) > 1 else 0.0 for entry in entries] if several else None
            of_lines.append(panels.Curve(name, axis.positions, [entry.mean for entry in entries], errors))
            columns_with_values |= {i for i, entry in enumerate(entries) if entry.known}
        shown.append(panels.Panel(measure.title, of_lines))
    if len(columns_with_values) < 2:
        return None
    return panels.plot(shown, axis, legend_title=", ".join(outcome.row_axes))


def samples(path: Path, outcome: Outcome, store: Store) -> bool:
    """Writes the first samples of every cell of the first seed, in the rows and columns of the tables.

    Returns:
      Whether there are any samples.
    """
    seed, lines = outcome.axes[SEED][0], {}
    for line in outcome.lines():
        cells = [outcome.cell({**labels, SEED: seed}) for labels in line.columns]
        images = [store.images(cell.key) if cell else None for cell in cells]
        if any(each is not None for each in images):
            lines[line.name] = images
    if not lines:
        return False
    enlarge_to = 64 if len(outcome.columns) <= _MAX_LARGE else 32
    cells = []
    for images in (images for line in lines.values() for images in line):
        shown = None if images is None else image_grids.to_rgb(images[:SHOWN])
        layout = image_grids.Layout(SHOWN // 2)
        cells.append(None if shown is None else image_grids.grid(shown, layout, enlarge_to=enlarge_to).pixels)
    height, width = np.max([cell.shape[:2] for cell in cells if cell is not None], axis=0)
    missing = np.empty((0, 0, 3), np.uint8)
    blocks = np.stack([image_grids.pad(missing if cell is None else cell, height, width) for cell in cells])
    axis = outcome.experiment.column_axis
    layout = image_grids.Layout(
        len(outcome.columns),
        list(lines) if outcome.row_axes else (),
        [f"{axis} {column}" for column in outcome.columns] if axis else (),
        f"rows: {', '.join(outcome.row_axes)}" if outcome.row_axes else "",
    )
    image_grids.save(path, image_grids.grid(blocks, layout, enlarge_to=1, gap=_GAP).pixels)
    return True
