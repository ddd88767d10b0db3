"""Plots of a sweep, whose rows have sampler settings and metrics, and of the variational bound."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from diffjax.evaluation import panels, tables
from diffjax.inference import image_grids

MAX_EXAMPLES = 10  # samples shown per setting
_MAX_WIDTH = 1700  # of samples side by side, pixels


def bound_terms(path: Path, terms: Mapping[str, Sequence[float]], title: str) -> None:
    """Writes a plot of the terms of the variational bound against t, on logarithmic axes: Improved DDPM, fig. 2."""
    curve = panels.Curve("", terms["t"], np.maximum(terms["bits_per_dim"], 1e-8).tolist())
    axis = panels.HorizontalAxis("t", terms["t"], logarithmic=True)
    figure = panels.plot([panels.Panel(f"{title} (bits/dim)", [curve])], axis)
    figure.savefig(path)


def rate_distortion(path: Path, entries: Sequence[Mapping[str, Any]], title: str) -> None:
    """Writes a plot of distortion against rate: DDPM, fig. 5."""
    rates, errors = ([entry[name]["mean"] for entry in entries] for name in ("rate", "rmse"))
    axis = panels.HorizontalAxis("rate, bits/dim", rates)
    figure = panels.plot([panels.Panel(f"{title} (RMSE, grey levels)", [panels.Curve("", rates, errors)])], axis)
    figure.savefig(path)


def sweep(
    path: Path,
    rows: Sequence[dict],
    measures: Mapping[str, str],
    samples: Sequence[UInt8[np.ndarray, "N H W C"]],
    real: Mapping[str, float] = {},
) -> None:
    """Writes a plot of metrics above samples of each row.

    The horizontal axis is the number of steps, or another numeric setting if only that differs, and each combination of
    the other settings is a curve. One row has samples only. The plot has no error bars, as there is one seed: the table
    has the standard errors.

    Args:
      path: PNG to write.
      rows: settings, values and "standard_errors" of each measured setting.
      measures: titles by metric.
      samples: samples of each row.
      real: values of real images by metric, shown as horizontal lines.
    """
    figure = sweep_figure(rows, measures, real)
    image = _sweep_samples(rows, measures, samples, with_constants=figure is None)
    if figure is not None:
        above, width = panels.pixels(figure), image.shape[1]
        missing = max(0, width - above.shape[1])
        above = np.pad(above, ((0, 0), (missing // 2, missing - missing // 2), (0, 0)), constant_values=255)
        image = image_grids.pad(image, image.shape[0], above.shape[1])
        image = np.concatenate([above, image])
    image_grids.save(path, image)


def sweep_figure(rows: Sequence[dict], measures: Mapping[str, str], real: Mapping[str, float] = {}) -> Figure | None:
    """Returns the plot of `sweep` without samples; None if there is only one row or no value."""
    titles = {**measures, **tables.RMS_TITLES}
    shown = {name: title for name, title in titles.items() if any(row.get(name) is not None for row in rows)}
    if len(rows) < 2 or not shown:
        return None
    grouping, shown_panels = _Curves(rows, measures), []
    for measure, title in shown.items():
        curves = [
            panels.Curve(label, [grouping.position(i) for i in indices], [rows[i].get(measure) for i in indices])
            for label, indices in grouping.indices.items()
        ]
        shown_panels.append(panels.Panel(title, curves, real.get(measure)))
    return panels.plot(shown_panels, grouping.axis, title=grouping.constants)


class _Curves:
    """The settings that differ between rows: one is the horizontal axis, and the others distinguish curves.

    Attributes:
      name: setting of the horizontal axis; None if no numeric setting differs: the axis has an entry per row.
      indices: indices of the rows of each curve, by its label.
      constants: settings that are equal in all rows, as text.
    """

    def __init__(self, rows: Sequence[dict], measures: Iterable[str]):
        self._rows = rows
        settings = ["steps", *tables.setting_names(rows, measures)]
        distinct = {name: {tables.text_of(row, name) for row in rows} for name in settings}
        differ = [name for name in settings if len(distinct[name]) > 1]
        numeric = [name for name in differ if all(_is_number(row, name) for row in rows)]
        if "steps" in differ or not numeric:
            self.name = "steps" if "steps" in differ else None
        else:
            self.name = max(numeric, key=lambda name: len(distinct[name]))
        # The steps of a pipeline are those of a stage, which has them as a setting too.
        repeated = [name for name in differ if name.endswith(":steps")] if self.name == "steps" else []
        repeated = [name for name in repeated if all(row.get(name) == row["steps"] for row in rows)]
        self._others = [name for name in differ if name not in (self.name, *repeated)]
        same = [name for name in settings if name not in differ]
        self.constants = tables.label(rows[0], same)
        self.indices: dict[str, list[int]] = {}
        for i in range(len(rows)):
            self.indices.setdefault(tables.label(rows[i], self._others) if self.name else "", []).append(i)
        if self.name:
            for indices in self.indices.values():
                indices.sort(key=lambda i: rows[i][self.name])

    @property
    def axis(self) -> panels.HorizontalAxis:
        """The horizontal axis."""
        if self.name is None:
            labels = [tables.label(row, self._others) for row in self._rows]
            return panels.HorizontalAxis("", range(len(labels)), labels, connected=False)
        ticks = sorted({tables.text_of(row, self.name) for row in self._rows}, key=float)
        return panels.horizontal_axis(tables.heading(self.name), ticks)

    def position(self, i: int) -> float:
        """Returns the position of row `i` on the axis."""
        return i if self.name is None else float(tables.text_of(self._rows[i], self.name))

    def label(self, i: int) -> str:
        """Returns the label of row `i` among those of its curve."""
        names = self._others if self.name is None else [self.name]
        return tables.label(self._rows[i], names)


def _sweep_samples(
    rows: Sequence[dict],
    measures: Iterable[str],
    samples: Sequence[UInt8[np.ndarray, "N H W C"]],
    with_constants: bool,
) -> UInt8[np.ndarray, "H W C"]:
    """Returns a grid of the first samples: a block per curve, with a row of images per row of the table.

    Args:
      with_constants: add the settings that are equal in all rows to the title.
    """
    grouping, blocks = _Curves(rows, measures), []
    for label, indices in grouping.indices.items():
        images = np.concatenate([image_grids.to_rgb(samples[i][:MAX_EXAMPLES]) for i in indices])
        columns = len(images) // len(indices)
        layout = image_grids.Layout(columns, [grouping.label(i) for i in indices], title=label)
        blocks.append(image_grids.grid(images, layout).pixels)
    height, width = np.max([block.shape[:2] for block in blocks], axis=0)
    blocks = np.stack([image_grids.pad(block, height, width) for block in blocks])
    columns = int(np.clip(_MAX_WIDTH // width, 1, min(panels.MAX_COLUMNS, len(blocks))))
    title = "Samples, of the same seeds and conditions in each column"
    if with_constants and grouping.constants:
        title = f"{grouping.constants}: samples"
    layout = image_grids.Layout(columns, title=title)
    return image_grids.grid(blocks, layout, enlarge_to=1, gap=12).pixels


def _is_number(row: Mapping[str, Any], name: str) -> bool:
    value = row.get(name)
    if isinstance(value, bool):
        return False
    return isinstance(value, int | float) and math.isfinite(value)
