"""Tables and plots of a sweep: rows of sampler settings and metrics."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from diffjax.inference import image_grids
from diffjax.numbers import number, with_error

MAX_EXAMPLES = 10  # samples shown per setting
_RMS = {"rms_to_finest_grid": "RMS difference from the most steps (grey levels)"}
_NOT_SETTINGS = {"steps", "seconds", "compile_seconds", "not_finite", "standard_errors", "sigma_hat", *_RMS}
_WIDTH = 17  # characters of a metric whose values are not known yet
_HEADINGS = {
    "name": "sampler",
    "compile_seconds": "compiling",
    "guidance_rescale": "rescale",
    "classifier_scale": "classifier",
    "weak_scale": "weak",
}
_MAX_COLUMNS = 3  # of panels
STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-"), ("P", "--"), ("X", ":"), ("*", "-.")]


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


def _curve_label(row: dict, measures: Iterable[str]) -> str:
    """Returns the settings of a row, except the steps, as text."""
    words = [f"{_HEADINGS.get(name, name)} {_text(row, name)}" for name in _settings([row], measures)]
    return ", ".join(words).removeprefix("sampler ") or "samples"


def bound_terms(path: Path, terms: Mapping[str, Sequence[float]], title: str) -> None:
    """Writes a plot of the terms of the variational bound against t, on logarithmic axes: Improved DDPM, fig. 2."""
    canvas = Figure(figsize=(5, 3.5), layout="constrained")
    axes = canvas.subplots()
    axes.plot(terms["t"], np.maximum(terms["bits_per_dim"], 1e-8), ".-", markersize=3, linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="t", ylabel="bits/dim", title=title)
    axes.grid(alpha=0.3)
    canvas.savefig(path, dpi=110)


def sweep(
    path: Path,
    rows: Sequence[dict],
    measures: Mapping[str, str],
    samples: Sequence[UInt8[np.ndarray, "N H W C"]],
    real: Mapping[str, float] = {},
) -> None:
    """Writes a plot of metrics against steps, with a curve per setting, above samples of each row.

    Args:
      path: PNG to write.
      rows: settings, values and "standard_errors" of each measured setting.
      measures: titles by metric.
      samples: samples of each row.
      real: values of real images by metric, shown as horizontal lines.
    """
    curves: dict[str, list[int]] = {}
    for i, row in sorted(enumerate(rows), key=lambda pair: pair[1]["steps"]):
        curves.setdefault(_curve_label(row, measures), []).append(i)
    titles = {**measures, **_RMS}
    shown = {name: title for name, title in titles.items() if any(row.get(name) is not None for row in rows)}
    panel_rows, panel_columns = panel_grid(len(shown))
    columns = max(panel_columns, len(curves))
    across = max(map(len, curves.values()))
    heights = 3.6 * panel_rows, 0.55 * MAX_EXAMPLES
    canvas = Figure(figsize=(max(4.0, 0.55 * across + 0.6) * columns, sum(heights) + 0.2), layout="constrained")
    layout = canvas.add_gridspec(2, 1, height_ratios=heights)
    above, below = (canvas.add_subfigure(layout[row]) for row in range(2))

    measure_panels = panels(above, len(shown))
    for axes, (measure, title) in zip(measure_panels, shown.items(), strict=True):
        for (label, indices), (marker, line) in zip(curves.items(), STYLES * len(curves), strict=False):
            there = [rows[i] for i in indices if rows[i].get(measure) is not None]
            if there:
                errors = [row["standard_errors"].get(measure) or 0.0 for row in there]
                points = [row["steps"] for row in there], [row[measure] for row in there]
                line = line if len(there) > 1 else "none"
                axes.errorbar(*points, yerr=errors, marker=marker, linestyle=line, label=label, capsize=2)
        if real.get(measure) is not None:
            axes.axhline(real[measure], color="0.4", linestyle=(0, (1, 1)), linewidth=1, label="real images")
        axes.set(xscale="log", xlabel="steps")
        axes.set_title(title, fontsize="small")
        axes.grid(alpha=0.3)
        ticks = sorted({row["steps"] for row in rows})
        axes.set_xticks(ticks, list(map(str, ticks)), minor=False)
        axes.minorticks_off()
    legend_below(above, measure_panels)

    for axes, (label, indices) in zip(below.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        examples = np.stack([samples[i][:MAX_EXAMPLES] for i in indices], axis=1)  # [example, steps, H, W, C]
        grid = image_grids.grid(examples.reshape(-1, *examples.shape[2:]), columns=len(indices))
        axes.imshow(grid, cmap="gray" if grid.shape[-1] == 1 else None, vmin=0, vmax=255)
        width = grid.shape[1] / len(indices)
        centres = [(j + 0.5) * width for j in range(len(indices))]
        axes.set_xticks(centres, [str(rows[i]["steps"]) for i in indices])
        axes.set(yticks=[], title=label, xlabel="steps")
        axes.spines[:].set_visible(False)
    canvas.savefig(path, dpi=110)


def panel_grid(count: int) -> tuple[int, int]:
    """Returns rows and columns for `count` panels, with at most three columns."""
    rows = max(1, math.ceil(count / _MAX_COLUMNS))
    return rows, max(1, math.ceil(count / rows))


def panels(canvas: FigureBase, count: int) -> list[Axes]:
    """Adds `count` axes to a figure, arranged as `panel_grid`."""
    axes = list(canvas.subplots(*panel_grid(count), squeeze=False).flat)
    for unused in axes[count:]:
        unused.remove()
    return axes[:count]


def legend_below(canvas: FigureBase, panels: Sequence[Axes], title: str | None = None) -> None:
    """Adds one legend for all panels of a figure below them, so that it covers no curve."""
    handles = {}
    for axes in panels:
        handles |= {handle.get_label(): handle for handle in axes.get_legend_handles_labels()[0]}
    if handles:
        columns = min(len(handles), 4)
        canvas.legend(
            handles=list(handles.values()), loc="outside lower center", ncols=columns, fontsize="small", title=title
        )


def _settings(rows: Sequence[dict], measures: Iterable[str]) -> list[str]:
    """Returns the names of the settings of rows, except the steps; they distinguish curves."""
    others = {*_NOT_SETTINGS, *measures}
    return list(dict.fromkeys(name for row in rows for name in row if name not in others))


def _text(row: dict, name: str) -> str:
    value = row.get(name, "")
    if name == "eta" and row.get("sigma_hat"):
        return "hat"
    if name in row.get("standard_errors", {}):
        return with_error(value, row["standard_errors"][name])
    if name in ("seconds", "compile_seconds"):
        return number(value or None)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
