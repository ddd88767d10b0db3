"""Tables and plots of a sweep: rows of sampler settings and metrics."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from diffjax.evaluation import panels
from diffjax.inference import image_grids
from diffjax.numbers import number, with_error

MAX_EXAMPLES = 10  # samples shown per setting
_RMS = {"rms_to_finest_grid": "RMS difference from the most steps (grey levels)"}
_NOT_SETTINGS = {"steps", "seconds", "compile_seconds", "not_finite", "standard_errors", *_RMS}
_WIDTH = 17  # characters of a metric whose values are not known yet
_HEADINGS = {
    "compile_seconds": "compiling",
    "guidance_rescale": "rescale",
    "classifier_scale": "classifier",
    "weak_scale": "weak",
}
_MAX_WIDTH = 1700  # of samples side by side, pixels


def table(rows: Sequence[dict], measures: Iterable[str]) -> str:
    """Returns the rows in aligned columns, settings first. Omits metrics without any value."""
    shown = [name for name in (*measures, *_RMS) if any(row.get(name) is not None for row in rows)]
    columns = [*_settings(rows, measures), "steps", *shown, "seconds", "compile_seconds"]
    lines = [[_HEADINGS.get(name, name) for name in columns]]
    lines += [[_text(row, name) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


class TableLines:
    """Formats the lines of a table one by one, before the values of later lines are known.

    Attributes:
      head: line of headings.
    """

    def __init__(self, cells: Sequence[dict], measures: Iterable[str]):
        """Computes the widths of the columns from all settings, `cells`, and the names of the metrics."""
        settings = _settings(cells, measures)
        self._names = [*settings, "steps", *measures, *_RMS, "seconds", "compile_seconds"]
        headings = [_HEADINGS.get(name, name) for name in self._names]
        widest = {name: max(len(_text(cell, name)) for cell in cells) for name in settings}
        least = dict.fromkeys((*measures, *_RMS), _WIDTH) | {"steps": 5} | widest
        self._widths = [max(len(h), least.get(name, 0)) for name, h in zip(self._names, headings, strict=True)]
        self.head = _aligned(headings, self._widths)

    def line(self, row: dict) -> str:
        """Returns the line of a row."""
        return _aligned([_text(row, name) for name in self._names], self._widths)


def _aligned(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.rjust(width) for text, width in zip(texts, widths, strict=True))


def _label(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns the settings of a row with these names, such as "ddim, eta 0, 50 steps"."""
    words = [_setting(name, _text(row, name)) for name in sorted(names, key="steps".__eq__) if name in row]
    return ", ".join(words)


def _setting(name: str, text: str) -> str:
    """Returns a setting in words."""
    if name == "steps":
        return f"{text} step{'s' * (text != '1')}"
    return text if name == "sampler" else f"{_HEADINGS.get(name, name)} {text}"


def bound_terms(path: Path, terms: Mapping[str, Sequence[float]], title: str) -> None:
    """Writes a plot of the terms of the variational bound against t, on logarithmic axes: Improved DDPM, fig. 2."""
    curve = panels.Curve("", terms["t"], np.maximum(terms["bits_per_dim"], 1e-8).tolist())
    axis = panels.HorizontalAxis("t", terms["t"], logarithmic=True)
    figure = panels.plot([panels.Panel(f"{title} (bits/dim)", [curve])], axis)
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
    titles = {**measures, **_RMS}
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
        settings = ["steps", *_settings(rows, measures)]
        distinct = {name: {_text(row, name) for row in rows} for name in settings}
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
        self.constants = _label(rows[0], same)
        self.indices: dict[str, list[int]] = {}
        for i in range(len(rows)):
            self.indices.setdefault(_label(rows[i], self._others) if self.name else "", []).append(i)
        if self.name:
            for indices in self.indices.values():
                indices.sort(key=lambda i: rows[i][self.name])

    @property
    def axis(self) -> panels.HorizontalAxis:
        """The horizontal axis."""
        if self.name is None:
            labels = [_label(row, self._others) for row in self._rows]
            return panels.HorizontalAxis("", range(len(labels)), labels, connected=False)
        ticks = sorted({_text(row, self.name) for row in self._rows}, key=float)
        return panels.horizontal_axis(_HEADINGS.get(self.name, self.name), ticks)

    def position(self, i: int) -> float:
        """Returns the position of row `i` on the axis."""
        return i if self.name is None else float(_text(self._rows[i], self.name))

    def label(self, i: int) -> str:
        """Returns the label of row `i` among those of its curve."""
        names = self._others if self.name is None else [self.name]
        return _label(self._rows[i], names)


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


def _settings(rows: Sequence[dict], measures: Iterable[str]) -> list[str]:
    """Returns the names of the settings of rows, except the steps; they distinguish curves."""
    others = {*_NOT_SETTINGS, *measures, *(name for row in rows for name in row.get("standard_errors", ()))}
    return list(dict.fromkeys(name for row in rows for name in row if name not in others))


def _text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name, "")
    if name in row.get("standard_errors", {}):
        return with_error(value, row["standard_errors"][name])
    if name in ("seconds", "compile_seconds"):
        return number(value or None)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
