"""Plots of a comparison of runs: metrics against sampler steps or runs, and training curves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diffjax.evaluation import store
from diffjax.evaluation.comparison import Comparison, settings_of
from diffjax.evaluation.plots import STYLES, legend_below, panel_grid, panels


def comparison(path: Path, compared: Comparison, names: Sequence[str]) -> None:
    """Writes a plot with a panel per metric in `names`, and a colour per run."""
    rows, columns = panel_grid(len(names))
    canvas = Figure(figsize=(4.5 * columns, 3.6 * rows + 0.5), layout="constrained")
    all_panels = panels(canvas, len(names))
    for axes, name in zip(all_panels, names, strict=True):
        if compared.is_logged(name):
            _training_curves(axes, compared, name)
        else:
            _stored_values(axes, compared, name)
        axes.set_title(compared.title(name), fontsize="small")
        axes.grid(alpha=0.3)
    legend_below(canvas, all_panels)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=110)


def _training_curves(axes: Axes, compared: Comparison, name: str) -> None:
    for i, run in enumerate(compared.runs):
        points = run.logged(name)
        axes.plot(*zip(*points, strict=True), color=f"C{i}", linewidth=1, label=run.name) if points else None
    axes.set(xlabel="training step")


def _stored_values(axes: Axes, compared: Comparison, name: str) -> None:
    """Plots values against steps if the results differ in steps, else against runs."""
    entries = [run.stored(name) for run in compared.runs]
    settings = [settings_of(entry) for of_run in entries for entry in of_run]
    varying = [n for n in store.columns_of(settings) if len({str(s.get(n)) for s in settings}) > 1]
    steps = sorted({s["steps"] for s in settings if isinstance(s.get("steps"), int)})
    groups: list[str] = []
    for i, (run, of_run) in enumerate(zip(compared.runs, entries, strict=True)):
        curves: dict[str, list[tuple[Any, float, float]]] = {}
        for entry in of_run:
            estimate, of_entry = store.estimates(entry)[name], settings_of(entry)
            x = of_entry.get("steps") if len(steps) > 1 else i
            if estimate.value is not None and x is not None:
                label = ", ".join(f"{n} {of_entry[n]}" for n in varying if n != "steps" and n in of_entry)
                curves.setdefault(label, []).append((x, estimate.value, estimate.standard_error or 0.0))
        for label, points in curves.items():
            groups += [label] * (label not in groups)
            marker, line = STYLES[groups.index(label) % len(STYLES)]
            x, y, errors = zip(*sorted(points), strict=True)
            line = line if len(points) > 1 else "none"
            text = f"{run.name}, {label}" if label else run.name
            axes.errorbar(x, y, yerr=errors, marker=marker, linestyle=line, color=f"C{i}", label=text, capsize=2)
    if len(steps) > 1:
        axes.set(xscale="log", xlabel="sampler steps")
        axes.set_xticks(steps, list(map(str, steps)), minor=False)
        axes.minorticks_off()
    else:
        axes.set(xlim=(-0.5, len(compared.runs) - 0.5))
        axes.set_xticks(range(len(compared.runs)), [run.name for run in compared.runs])
