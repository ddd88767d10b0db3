"""Plots of a comparison of runs: metrics against sampler steps or runs, and training curves."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffjax.evaluation import store
from diffjax.evaluation.comparison import Comparison, settings_of, value_text

_MAX_COLUMNS = 3  # of panels
_STYLES = [("o", "-"), ("s", "--"), ("^", ":"), ("D", "-."), ("v", "-"), ("P", "--"), ("X", ":"), ("*", "-.")]


def comparison(path: Path, compared: Comparison, names: Sequence[str]) -> None:
    """Writes a plot with a panel per metric in `names`: a colour per run, and a marker and line per setting.

    It has no error bars, as they are not of several seeds: the table has the standard errors.
    """
    rows = math.ceil(len(names) / _MAX_COLUMNS)
    columns = math.ceil(len(names) / rows)
    canvas = Figure(figsize=(4.4 * columns, 3.6 * rows + 0.6), layout="constrained")
    panels = list(canvas.subplots(rows, columns, squeeze=False).flat)
    for unused in panels[len(names) :]:
        unused.remove()
    handles = {}
    for axes, name in zip(panels, names, strict=False):
        if compared.is_logged(name):
            _training_curves(axes, compared, name)
        else:
            _stored_values(axes, compared, name)
        axes.set_title(compared.title(name), fontsize="small")
        axes.grid(alpha=0.3)
        handles |= {handle.get_label(): handle for handle in axes.get_legend_handles_labels()[0]}
    canvas.legend(handles=list(handles.values()), loc="outside lower center", ncols=2 * columns, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=110)


def _training_curves(axes: Axes, compared: Comparison, name: str) -> None:
    for i, run in enumerate(compared.runs):
        steps, values = [step for step, _ in run.logged(name)], [value for _, value in run.logged(name)]
        axes.plot(steps, values, color=f"C{i % 10}", linewidth=1, marker="." * (len(steps) == 1), label=run.name)
    axes.set(xlabel="training step")


def _stored_values(axes: Axes, compared: Comparison, name: str) -> None:
    """Plots values against steps if the results differ in steps, else against runs."""
    entries = [run.stored(name) for run in compared.runs]
    settings = [settings_of(entry) for of_run in entries for entry in of_run]
    different = [n for n in store.columns_of(settings) if len({value_text(s.get(n)) for s in settings}) > 1]
    steps = sorted({s["steps"] for s in settings if isinstance(s.get("steps"), int)})
    groups: list[str] = []
    for i, (run, of_run) in enumerate(zip(compared.runs, entries, strict=True)):
        curves: dict[str, list[tuple[Any, float]]] = {}
        for entry in of_run:
            value, of_entry = store.estimates(entry)[name].value, settings_of(entry)
            x = of_entry.get("steps") if len(steps) > 1 else i
            if value is not None and x is not None:
                words = [f"{n} {value_text(of_entry[n])}" for n in different if n != "steps" and n in of_entry]
                curves.setdefault(", ".join(words), []).append((x, value))
        for label, points in curves.items():
            groups += [label] * (label not in groups)
            marker, line = _STYLES[groups.index(label) % len(_STYLES)]
            x, y = ([point[k] for point in sorted(points)] for k in (0, 1))
            text = f"{run.name}, {label}" if label else run.name
            line = line if len(points) > 1 else "none"
            axes.plot(x, y, marker=marker, linestyle=line, color=f"C{i % 10}", label=text)
    if len(steps) > 1:
        axes.set(xscale="log", xlabel="sampler steps")
        axes.set_xticks(steps, list(map(str, steps)), minor=False)
        axes.minorticks_off()
    else:
        axes.set(xlim=(-0.5, len(compared.runs) - 0.5))
        axes.set_xticks(range(len(compared.runs)), [run.name for run in compared.runs])
