"""Style of plots: a panel per metric in at most three columns, plain numbers on the axes, and one legend below."""

import math
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DPI = 100
MAX_COLUMNS = 3  # of panels
_PANEL, _MIN_WIDTH = (4.2, 3.4), 5.5  # width and height of a panel, and least width of a figure, inches
_LETTER, _ENTRY, _LINE = 0.075, 0.7, 0.21  # legend: width of a letter, width of a marker, height of a line, inches
_STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-"), ("P", "--"), ("X", ":"), ("*", "-.")]
_MAX_MARKERS = 60  # points of a curve up to which they have markers
_LOG_RATIO = 10.0  # ratio of values above which their axis is logarithmic
_MIN_SPAN = 0.05  # least range of a linear axis, as a fraction of its largest value
_REAL = "real images"
_MARGIN = 0.08  # empty part of an axis on either side of the values


class HorizontalAxis(NamedTuple):
    """Horizontal axis of panels.

    Attributes:
      label: name of the axis.
      positions: positions of the ticks; a range for ticks in order, whose distances mean nothing.
      ticks: text of each tick; (): chosen from the range.
      logarithmic: whether the scale is logarithmic.
      connected: whether a line connects the points of a curve.
    """

    label: str
    positions: Sequence[float]
    ticks: Sequence[str] = ()
    logarithmic: bool = False
    connected: bool = True


class Curve(NamedTuple):
    """Values of one setting. Values that are None or not finite are left out.

    Attributes:
      label: text in the legend; "": no entry.
      x, y: positions and values.
      errors: length of the error bar of each value; None: no error bars.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    errors: Sequence[float] | None = None


class Panel(NamedTuple):
    """Curves of one metric. Curve i has the same style in all panels.

    Attributes:
      title: name of the metric.
      curves: curves.
      real: value of real images, shown as a horizontal line; None: not known.
      axis: horizontal axis of this panel; None: the one of all panels.
    """

    title: str
    curves: Sequence[Curve]
    real: float | None = None
    axis: HorizontalAxis | None = None


def horizontal_axis(label: str, ticks: Sequence[str]) -> HorizontalAxis:
    """Returns the axis of labels: logarithmic for positive numbers, linear for others, and in order for text."""
    try:
        positions = [float(text) for text in ticks]
    except ValueError:
        return HorizontalAxis(label, range(len(ticks)), ticks)
    if not all(map(math.isfinite, positions)):
        return HorizontalAxis(label, range(len(ticks)), ticks)
    return HorizontalAxis(label, positions, ticks, logarithmic=min(positions) > 0)


def plot(panels: Sequence[Panel], axis: HorizontalAxis | None, legend_title: str = "", title: str = "") -> Figure:
    """Returns a figure with a panel per metric, and one legend below them that covers no curve.

    Args:
      panels: at least one.
      axis: horizontal axis of the panels that have none of their own.
      legend_title: text above the legend's entries.
      title: text above all panels.
    """
    columns, rows = panel_grid(len(panels))
    labels = dict.fromkeys(curve.label for panel in panels for curve in panel.curves if curve.label)
    entries = [*labels, *[_REAL] * any(panel.real is not None for panel in panels)]
    width = max(columns * _PANEL[0], _MIN_WIDTH)
    across = max(1, min(len(entries), int(width / (_ENTRY + _LETTER * max(map(len, entries), default=0)))))
    lines = math.ceil(len(entries) / across) + bool(legend_title)
    title = textwrap.fill(title, int(width / 0.1))
    height = rows * _PANEL[1] + lines * _LINE + 0.2 * len(title.splitlines())
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for unused in axes[len(panels) :]:
        unused.remove()
    handles = {}
    for panel_axes, panel in zip(axes, panels, strict=False):
        _fill(panel_axes, panel, panel.axis or axis or HorizontalAxis("", [0]))
        handles = {handle.get_label(): handle for handle in panel_axes.get_legend_handles_labels()[0]} | handles
    if shown := [handles[label] for label in entries if label in handles]:
        options = {"loc": "outside lower center", "ncols": across, "fontsize": "small", "title_fontsize": "small"}
        figure.legend(handles=shown, title=legend_title or None, **options)
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


def panel_grid(count: int) -> tuple[int, int]:
    """Returns columns and rows for `count` panels, with at most three columns."""
    rows = max(1, math.ceil(count / MAX_COLUMNS))
    return max(1, math.ceil(count / rows)), rows


def pixels(figure: Figure) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a figure as an image."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _fill(axes: Axes, panel: Panel, axis: HorizontalAxis) -> None:
    shown: list[float] = []
    for i, curve in enumerate(panel.curves):
        y = np.array([np.nan if value is None else value for value in curve.y], float)
        finite = np.isfinite(y)
        if not finite.any():
            continue
        marker, line = _STYLES[i % len(_STYLES)]
        marker = marker if finite.sum() <= _MAX_MARKERS else ""
        style = {"color": f"C{i % 10}", "marker": marker, "label": curve.label or None, "markersize": 5}
        style["linestyle"] = line if axis.connected and finite.sum() > 1 else "none"
        x, y = np.asarray(curve.x, float)[finite], y[finite]
        if curve.errors is None:
            axes.plot(x, y, **style)
            shown += [*y]
        else:
            errors = np.nan_to_num(np.asarray(curve.errors, float)[finite])
            axes.errorbar(x, y, errors, capsize=3, **style)
            shown += [*(y - errors), *(y + errors)]
    if panel.real is not None:
        axes.axhline(panel.real, color="0.4", linestyle=(0, (1, 1)), linewidth=1, label=_REAL)
        shown.append(panel.real)
    _horizontal(axes, axis)
    _vertical(axes, shown)
    axes.set_title(textwrap.fill(panel.title, 58), fontsize="small")
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.3)


def _horizontal(axes: Axes, axis: HorizontalAxis) -> None:
    axes.set_xlabel(axis.label, fontsize="small")
    low, high = min(axis.positions), max(axis.positions)
    if axis.logarithmic:
        axes.set_xscale("log")
        margin = (high / low) ** _MARGIN if high > low else 1.5
        axes.set_xlim(low / margin, high * margin)
    else:
        margin = _MARGIN * (high - low) or 0.5
        axes.set_xlim(low - margin, high + margin)
    if axis.ticks:
        spaced = axis.positions if isinstance(axis.positions, range) else _apart(axis)
        axes.set_xticks([axis.positions[i] for i in spaced], [axis.ticks[i] for i in spaced])
        if sum(len(axis.ticks[i]) + 2 for i in spaced) > 52:
            axes.tick_params(axis="x", rotation=30)
            for text in axes.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
    else:
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)


def _apart(axis: HorizontalAxis) -> list[int]:
    """Returns the indices of the ticks, from small to large, whose labels do not overlap."""
    scale = math.log if axis.logarithmic else float
    places = [scale(position) for position in axis.positions]
    length = (max(places) - min(places)) or 1.0
    order = sorted(range(len(places)), key=places.__getitem__)
    spaced = order[:1]
    for i in order[1:]:
        needed = 0.02 * (1 + (len(axis.ticks[spaced[-1]]) + len(axis.ticks[i])) / 2) * length
        if places[i] - places[spaced[-1]] >= needed:
            spaced.append(i)
    return spaced


def _vertical(axes: Axes, values: Sequence[float]) -> None:
    """Sets the vertical axis: plain numbers without an offset, and a margin around the values."""
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
    if not values:
        return
    low, high = min(values), max(values)
    if low > 0 and high > _LOG_RATIO * low:
        axes.set_yscale("log")
        decades = math.log10(high / low)
        digits = (1, 2, 3, 5, 7) if decades < 1 else (1, 2, 5) if decades < 2.5 else (1,)
        axes.yaxis.set_major_locator(ticker.LogLocator(subs=digits))
        axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda y, _: f"{y:g}"))
        axes.minorticks_off()
        margin = (high / low) ** _MARGIN
        axes.set_ylim(low / margin, high * margin)
        return
    least = _MIN_SPAN * max(abs(low), abs(high)) or 1.0
    margin = _MARGIN * (high - low) + max(0.0, least - (high - low)) / 2
    axes.set_ylim(low - margin, high + margin)
