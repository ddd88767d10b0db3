"""Plots of a comparison of runs: metrics against sampler steps or runs, and training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from diffjax.evaluation import panels, results_store
from diffjax.evaluation.comparison import Comparison, settings_of, value_text
from diffjax.evaluation.panels import HorizontalAxis

_Curves = Mapping[str, Sequence[tuple[float, float]]]  # positions and values by label


def comparison(path: Path, compared: Comparison, names: Sequence[str]) -> None:
    """Writes a plot with a panel per metric in `names`, and a curve per run and combination of settings.

    It has no error bars, as they are not of several seeds: the table has the standard errors.
    """
    parts = [_logged(compared, name) if compared.is_logged(name) else _stored(compared, name) for name in names]
    labels = sorted({label for curves, _ in parts for label in curves})
    shown = []
    for name, (curves, axis) in zip(names, parts, strict=True):
        points = [(label, curves.get(label, ())) for label in labels]
        of_labels = [panels.Curve(label, [x for x, _ in p], [y for _, y in p]) for label, p in points]
        shown.append(panels.Panel(compared.title(name), of_labels, axis=axis))
    path.parent.mkdir(parents=True, exist_ok=True)
    panels.plot(shown, None).savefig(path)


def _logged(compared: Comparison, name: str) -> tuple[_Curves, HorizontalAxis]:
    """Returns the values of the training logs by run, against the training step."""
    curves = {run.name: run.logged(name) for run in compared.runs}
    return curves, HorizontalAxis("training step", [step for points in curves.values() for step, _ in points] or [0])


def _stored(compared: Comparison, name: str) -> tuple[_Curves, HorizontalAxis]:
    """Returns stored values by run and settings, against steps if the results differ in steps, else against runs."""
    entries = [run.stored(name) for run in compared.runs]
    settings = [settings_of(entry) for of_run in entries for entry in of_run]
    different = [n for n in results_store.column_names(settings) if len({value_text(s.get(n)) for s in settings}) > 1]
    steps = sorted({s["steps"] for s in settings if isinstance(s.get("steps"), int)})
    points: dict[str, list[tuple[float, float]]] = {}
    for i, (run, of_run) in enumerate(zip(compared.runs, entries, strict=True)):
        for entry in of_run:
            value, of_entry = results_store.estimates(entry)[name].value, settings_of(entry)
            x = of_entry.get("steps") if len(steps) > 1 else i
            if value is not None and x is not None:
                words = [f"{n} {value_text(of_entry[n])}" for n in different if n != "steps" and n in of_entry]
                points.setdefault(", ".join([run.name, *words]), []).append((x, value))
    curves = {label: sorted(of_label) for label, of_label in points.items()}
    if len(steps) > 1:
        return curves, panels.horizontal_axis("sampler steps", list(map(str, steps)))
    names = [run.name for run in compared.runs]
    return curves, HorizontalAxis("", range(len(names)), names, connected=False)
