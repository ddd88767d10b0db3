"""Tables and figures of cells: rows of settings and measures."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from diffjax.inference import image_grids
from diffjax.numbers import number, with_error

matplotlib.use("Agg")

EXAMPLES = 10  # samples a cell shows
_TO_MOST = {"to_most_steps": "to most steps (grey levels)"}
_NOT_SETTINGS = {"steps", "seconds", "compile_seconds", "not_finite", "standard_errors", "sigma_hat", *_TO_MOST}
_WIDTH = 17  # of a measure whose values are not known yet
_HEADINGS = {
    "name": "sampler",
    "compile_seconds": "compiling",
    "guidance_rescale": "rescale",
    "classifier_scale": "classifier",
    "weak_scale": "weak",
}
STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-"), ("P", "--"), ("X", ":"), ("*", "-.")]


def table(rows: Sequence[dict], measures: Iterable[str]) -> str:
    """Returns the rows in aligned columns, settings first; measures that no row has a value of are left out."""
    shown = [name for name in (*measures, *_TO_MOST) if any(row.get(name) is not None for row in rows)]
    columns = [*_settings(rows, measures), "steps", *shown, "seconds", "compile_seconds"]
    lines = [[_HEADINGS.get(name, name) for name in columns]]
    lines += [[_text(row, name) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(_aligned(line, widths) for line in lines)


class Lines:
    """The lines of a table of cells that are printed one by one, before the values of the others are known.

    Attributes:
      head: the line of headings.
    """

    def __init__(self, cells: Sequence[dict], measures: Iterable[str]):
        """`cells` are all settings; `measures` are the names of what will be measured."""
        settings = _settings(cells, measures)
        self._names = [*settings, "steps", *measures, *_TO_MOST, "seconds", "compile_seconds"]
        headings = [_HEADINGS.get(name, name) for name in self._names]
        widest = {name: max(len(_text(cell, name)) for cell in cells) for name in settings}
        least = dict.fromkeys((*measures, *_TO_MOST), _WIDTH) | {"steps": 5} | widest
        self._widths = [max(len(h), least.get(name, 0)) for name, h in zip(self._names, headings, strict=True)]
        self.head = _aligned(headings, self._widths)

    def line(self, row: dict) -> str:
        return _aligned([_text(row, name) for name in self._names], self._widths)


def _aligned(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.rjust(width) for text, width in zip(texts, widths, strict=True))


def _curve_label(row: dict, measures: Iterable[str]) -> str:
    """A row's settings other than its steps, in words."""
    words = [f"{_HEADINGS.get(name, name)} {_text(row, name)}" for name in _settings([row], measures)]
    return ", ".join(words).removeprefix("sampler ") or "samples"


def terms_figure(path: Path, terms: dict[str, Sequence[float]], title: str) -> None:
    """The terms of the variational bound against t, on logarithmic axes: Improved DDPM, fig. 2."""
    sheet = Figure(figsize=(5, 3.5), layout="constrained")
    axes = sheet.subplots()
    axes.plot(terms["t"], np.maximum(terms["bits_per_dim"], 1e-8), ".-", markersize=3, linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="t", ylabel="bits/dim", title=title)
    axes.grid(alpha=0.3)
    sheet.savefig(path, dpi=110)


def figure(
    path: Path,
    rows: Sequence[dict],
    measures: Mapping[str, str],
    drawn: Sequence[np.ndarray],
    real: Mapping[str, float] = {},
) -> None:
    """Writes a figure of measures against steps, a curve for each other setting, above samples of each cell.

    Args:
      path: PNG to write.
      rows: cells, with the standard errors that are the error bars.
      measures: titles by the names of what was measured.
      drawn: samples of each row, uint8 [N, H, W, C].
      real: values of real images, by the names of what was measured: horizontal lines.
    """
    curves: dict[str, list[int]] = {}
    for i, row in sorted(enumerate(rows), key=lambda pair: pair[1]["steps"]):
        curves.setdefault(_curve_label(row, measures), []).append(i)
    titles = {**measures, **_TO_MOST}
    shown = {name: title for name, title in titles.items() if any(row.get(name) is not None for row in rows)}
    columns = max(len(shown), len(curves), 1)
    across = max(map(len, curves.values()))
    sheet = Figure(figsize=(max(4.0, 0.55 * across + 0.6) * columns, 3.4 + 0.55 * EXAMPLES), layout="constrained")
    above, below = sheet.subfigures(2, 1, height_ratios=(3.2, 0.55 * EXAMPLES))

    panels = above.subplots(1, len(shown), squeeze=False)[0] if shown else []
    for axes, (measure, title) in zip(panels, shown.items(), strict=True):
        for (label, indices), (marker, line) in zip(curves.items(), STYLES * len(curves), strict=False):
            there = [rows[i] for i in indices if rows[i].get(measure) is not None]
            if there:
                errors = [row["standard_errors"].get(measure) or 0.0 for row in there]
                points = [row["steps"] for row in there], [row[measure] for row in there]
                axes.errorbar(*points, yerr=errors, marker=marker, linestyle=line, label=label, capsize=2)
        if real.get(measure) is not None:
            axes.axhline(real[measure], color="0.4", linestyle=(0, (1, 1)), linewidth=1, label="real images")
        axes.set(xscale="log", xlabel="steps", title=title)
        axes.grid(alpha=0.3)
        ticks = sorted({row["steps"] for row in rows})
        axes.set_xticks(ticks, list(map(str, ticks)), minor=False)
        axes.minorticks_off()
        axes.legend(fontsize="small")

    for axes, (label, indices) in zip(below.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        examples = np.stack([drawn[i][:EXAMPLES] for i in indices], axis=1)  # [example, steps, H, W, C]
        picture = image_grids.grid(examples.reshape(-1, *examples.shape[2:]), columns=len(indices))
        axes.imshow(picture, cmap="gray" if picture.shape[-1] == 1 else None, vmin=0, vmax=255)
        width = picture.shape[1] / len(indices)
        centres = [(j + 0.5) * width for j in range(len(indices))]
        axes.set_xticks(centres, [str(rows[i]["steps"]) for i in indices])
        axes.set(yticks=[], title=label, xlabel="steps")
        axes.spines[:].set_visible(False)
    sheet.savefig(path, dpi=110)


def _settings(rows: Sequence[dict], measures: Iterable[str]) -> list[str]:
    """The settings other than the steps that rows have, which tell curves apart."""
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
