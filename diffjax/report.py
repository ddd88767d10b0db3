"""Tables and figures of cells: rows of settings and measures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from diffjax import pictures

matplotlib.use("Agg")

EXAMPLES = 10  # samples a cell shows
_TO_MOST = {"to_most_steps": "to most steps"}  # in grey levels
_HEADINGS = {"name": "sampler", "guidance_rescale": "rescale", "classifier_scale": "classifier", "weak_scale": "weak"}
STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-"), ("P", "--"), ("X", ":"), ("*", "-.")]


def table(rows: Sequence[dict], measures: Mapping[str, str]) -> str:
    """The rows in aligned columns, settings first; `measures` are headings by the names of what was measured."""
    shown = [name for name in (*measures, *_TO_MOST, "seconds") if any(name in row for row in rows)]
    columns = [*_settings(rows, measures), "steps", *shown]
    lines = [[_HEADINGS.get(name, name) for name in columns]]
    lines += [[_text(row, name) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def _curve_label(row: dict, measures: Mapping[str, str]) -> str:
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


def figure(path: Path, rows: Sequence[dict], measures: Mapping[str, str], drawn: Sequence[np.ndarray]) -> None:
    """What was measured against steps, a curve for each other setting, above samples of each cell: steps across."""
    curves: dict[str, list[int]] = {}
    for i, row in sorted(enumerate(rows), key=lambda pair: pair[1]["steps"]):
        curves.setdefault(_curve_label(row, measures), []).append(i)
    shown = {name: title for name, title in (measures | _TO_MOST).items() if any(name in row for row in rows)}
    columns = max(len(shown), len(curves), 1)
    across = max(map(len, curves.values()))
    sheet = Figure(figsize=(max(4.0, 0.55 * across + 0.6) * columns, 3.4 + 0.55 * EXAMPLES), layout="constrained")
    above, below = sheet.subfigures(2, 1, height_ratios=(3.2, 0.55 * EXAMPLES))

    panels = above.subplots(1, len(shown), squeeze=False)[0] if shown else []
    for axes, (measure, title) in zip(panels, shown.items(), strict=True):
        for (label, indices), (marker, line) in zip(curves.items(), STYLES * len(curves), strict=False):
            points = [(rows[i]["steps"], rows[i][measure]) for i in indices if measure in rows[i]]
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, linestyle=line, label=label)
        axes.set(xscale="log", xlabel="steps", title=title)
        axes.grid(alpha=0.3)
        ticks = sorted({row["steps"] for row in rows})
        axes.set_xticks(ticks, list(map(str, ticks)), minor=False)
        axes.minorticks_off()
        axes.legend(fontsize="small")

    for axes, (label, indices) in zip(below.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True):
        examples = np.stack([drawn[i][:EXAMPLES] for i in indices], axis=1)  # [example, steps, H, W, C]
        picture = pictures.grid(examples.reshape(-1, *examples.shape[2:]), columns=len(indices))
        axes.imshow(picture, cmap="gray" if picture.shape[-1] == 1 else None, vmin=0, vmax=255)
        width = picture.shape[1] / len(indices)
        centres = [(j + 0.5) * width for j in range(len(indices))]
        axes.set_xticks(centres, [str(rows[i]["steps"]) for i in indices])
        axes.set(yticks=[], title=label, xlabel="steps")
        axes.spines[:].set_visible(False)
    sheet.savefig(path, dpi=110)


def _settings(rows: Sequence[dict], measures: Mapping[str, str]) -> list[str]:
    """The settings other than the steps that rows have, which tell curves apart."""
    others = {"steps", "seconds", "sigma_hat", *measures, *_TO_MOST}
    return list(dict.fromkeys(name for row in rows for name in row if name not in others))


def _text(row: dict, name: str) -> str:
    value = row.get(name, "")
    if name == "eta" and row.get("sigma_hat"):
        return "hat"
    if name == "recognised" and name in row:
        return f"{value:.1%}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
