"""Writes an experiment's report: results.json, Markdown, and one HTML page with embedded images."""

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markdown

from diffjax import io, numbers
from diffjax.errors import UserError, one_line
from diffjax.evaluation import provenance
from diffjax.reproduce import figures, verdicts
from diffjax.reproduce.outcome import Entry, Outcome, in_words
from diffjax.reproduce.plan import Cell
from diffjax.reproduce.spec import SEED, Experiment, Labels, Measure, Paper, Scale
from diffjax.reproduce.store import Store
from diffjax.reproduce.verdicts import Verdict

_IMAGES = ("curves.png", "samples.png")
_TEST = (
    "A claim holds if the 95 % confidence interval of each difference between neighbours is above zero. It is reversed "
    "if that of one difference is below zero, and undecided otherwise. With several seeds the interval is Student's t "
    "over the seeds, and at least as wide as that of the samples if their errors are known; with one seed it covers "
    "the samples only, not another training. The smallest difference is given with half the width of its interval. "
    "There is no correction for the number of claims."
)
_CSS = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #bbb;padding:.25rem .6rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}code{background:#f2f2f2}"
)


def write(folder: Path, outcome: Outcome, scale_name: str, scale: Scale, store: Store | None, command: str) -> Path:
    """Writes results.json, the plots, report.md and report.html.

    results.json is first: `read` needs nothing else to write the report again.

    Args:
      store: samples of the cells; None: samples.png is not changed.
      command: command that runs the experiment.

    Returns:
      The path of report.md.
    """
    folder.mkdir(parents=True, exist_ok=True)
    io.write_json(folder / "results.json", _results(outcome, scale_name, scale, command))
    (folder / "curves.png").unlink(missing_ok=True)
    figures.curves(folder / "curves.png", outcome)
    if store:
        (folder / "samples.png").unlink(missing_ok=True)
        figures.samples(folder / "samples.png", outcome, store)
    text = _markdown(outcome, scale_name, scale, command, [name for name in _IMAGES if (folder / name).exists()])
    io.write_text(folder / "report.md", text)
    io.write_text(folder / "report.html", _html(outcome.experiment.title, text, folder))
    return folder / "report.md"


def read(
    path: Path, experiment: Experiment, scale_name: str, cells: Sequence[Cell], measures: Sequence[Measure]
) -> tuple[Outcome, str]:
    """Returns the outcome stored in a results.json, and the command that wrote it.

    Args:
      path: a results.json written by `write`.
      experiment, scale_name, cells, measures: the experiment of these results, planned at the same scale.

    Raises:
      UserError: the file is missing, damaged, or belongs to another grid or scale.
    """
    advice = "write it again with `launch.py reproduce`"
    try:
        stored = io.read_json(path, advice)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: {advice}") from error
    results: dict[str, Any] = {cell.key: None for cell in cells}
    try:
        if stored["scale"] != scale_name:
            raise UserError(f"--scale={scale_name}: {path} has results of scale {stored['scale']}; pass that one")
        depends = {**stored["provenance"], "warnings": [str(text) for text in stored["warnings"]]}
        seeds = [str(seed) for seed in stored["seeds"]]
        by_labels = {tuple(sorted(cell.labels.items())): cell.key for cell in cells}
        for entry in stored["entries"]:
            for seed, value, error in zip(seeds, entry["values"], entry["standard_errors"], strict=True):
                if value is None and entry["pending"]:
                    continue
                key = by_labels[tuple(sorted({**entry["labels"], SEED: seed}.items()))]
                results[key] = results[key] or {"estimates": {}, "provenance": depends}
                results[key]["estimates"][entry["measure"]] = {"value": value, "standard_error": error}
        by_words = {in_words(cell.labels): cell.key for cell in cells}
        for words, error in stored["errors"].items():
            results[by_words[words]] = {"error": str(error)}
        return Outcome(experiment, measures, cells, results), str(stored["command"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} has no results of {experiment.title!r} at this scale ({type(error).__name__}: {error}): {advice}"
        ) from error


def _markdown(outcome: Outcome, scale_name: str, scale: Scale, command: str, images: Sequence[str]) -> str:
    experiment, shared = outcome.experiment, _shared(outcome.provenances)
    lines = [
        f"# {_escape(experiment.title)}",
        f"{_escape(experiment.source)}. {_escape(experiment.claim)}",
        f"Scale `{scale_name}`: `{scale.config}`, {_fields(scale)}{_count(len(scale.seeds), 'seed')}, {scale.num} "
        f"samples per cell; {scale.duration}. {outcome.done} of {outcome.total} cells are done.",
        "    " + " ".join(command.split()),
    ]
    if experiment.orderings:
        rows = [[_escape(o.claim), verdicts.describe(outcome.verdict(o))] for o in experiment.orderings]
        lines += ["## Verdicts", _table(["claim", "verdict"], rows), _TEST]
    lines += ["## Results", _comparability(outcome)]
    lines += [f"Warning: {_escape(text)}." for text in outcome.warnings]
    for measure in outcome.measures:
        lines += [f"### {_escape(measure.title)}", *_real_accuracy(outcome, measure), *_measure_table(outcome, measure)]
    if experiment.failure_threshold is not None:
        lines += _failures(outcome, experiment.failure_threshold)
    if "curves.png" in images:
        lines += ["## Curves", _about_curves(outcome), "![curves](curves.png)"]
    if "samples.png" in images:
        lines += ["## Samples", _about_samples(outcome), "![samples](samples.png)"]
    if outcome.errors:
        rows = [[_escape(text) for text in pair] for pair in outcome.errors.items()]
        lines += ["## Cells that failed", _table(["cell", "error"], rows)]
    lines += [
        "## Provenance",
        *(["The commit, date and device of these results were not recorded."] if "date" not in shared else []),
        "```json\n" + io.to_json({n: v for n, v in shared.items() if n != "captions"}, indent=2) + "\n```",
    ]
    return "\n\n".join(lines) + "\n"


def _about_curves(outcome: Outcome) -> str:
    """Returns what the axes, curves and error bars of curves.png are."""
    seeds = len(outcome.axes[SEED])
    words = [f"Panels: measures. Horizontal axis: {_escape(outcome.experiment.column_axis)}."]
    if outcome.row_axes:
        words.append(f"Curves: {_escape(', '.join(outcome.row_axes))}.")
    over = f"{seeds} seeds" if outcome.done == outcome.total else "the seeds so far"
    words.append(f"Error bars: standard deviation over {over}." if seeds > 1 else "One seed, so no error bars.")
    return " ".join(words)


def _about_samples(outcome: Outcome) -> str:
    """Returns what the rows, columns and cells of samples.png are, and the captions of the samples."""
    row_axes, column_axis = ", ".join(outcome.row_axes), outcome.experiment.column_axis
    words = [f"{name}: {_escape(axis)}." for name, axis in (("Columns", column_axis), ("Rows", row_axes)) if axis]
    if text := _shared(outcome.provenances).get("shown"):
        words.append(f"Each cell: {text}.")
    elif any("reconstructions" in provenance for provenance in outcome.provenances):
        words.append(f"Each cell: {figures.SHOWN // 2} test images above their reconstructions.")
    else:
        words.append(f"Each cell: the first {figures.SHOWN} samples, from the same noise in all cells.")
    words.append(f"Training seed {outcome.axes[SEED][0]}.")
    captions = _shared(outcome.provenances).get("captions") or []
    if captions:
        words.append("Captions, in reading order:")
    return "\n\n".join(
        [" ".join(words), *["\n".join(f"{i}. {_escape(text)}" for i, text in enumerate(captions, 1))] * bool(captions)]
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _fields(scale: Scale) -> str:
    return "".join(f"`{name}={value}`, " for name, value in scale.fields.items())


def _comparability(outcome: Outcome) -> str:
    experiment = outcome.experiment
    several = len(outcome.axes[SEED]) > 1
    words = [
        "Mean ± standard deviation over the seeds."
        if several
        else "One seed; ± is the standard error over its samples, if it is known."
    ]
    if experiment.papers:
        words.append("The paper's values are for the setting above each table, not for ours: compare orders.")
    if different := provenance.differences(outcome.provenances):
        words.append(f"**Not all results are comparable**: they differ in {', '.join(map(_escape, different))}.")
    return " ".join(words)


def _measure_table(outcome: Outcome, measure: Measure) -> list[str]:
    """Returns our results, with the paper's if it has any of these cells."""
    experiment = outcome.experiment
    paper = _paper(outcome, measure)
    headings = [_corner(outcome), *(column or "ours" for column in outcome.columns)]
    ours, reported = [], []
    for name, columns in outcome.lines():
        ours.append([name or "ours", *(_entry_text(outcome.entry(measure, labels)) for labels in columns)])
        reported.append([paper.values.get(tuple(labels[axis.name] for axis in experiment.axes)) for labels in columns])
    if all(value is None for line in reported for value in line):
        without = [f"The paper ({paper.setting}) has no values for these cells."] if paper.values else []
        return [*without, _table(headings, ours)]
    headings += [f"paper: {column}".removesuffix(": ") for column in outcome.columns]
    lines = [[*line, *map(numbers.number, values)] for line, values in zip(ours, reported, strict=True)]
    return [f"The paper's setting: {paper.setting}.", _table(headings, lines)]


def _real_accuracy(outcome: Outcome, measure: Measure) -> list[str]:
    """Returns the accuracy on real images of the classifier of `classifier_accuracy`, if it is recorded."""
    key, references = "classifier_held_out_accuracy", [each.get("reference", {}) for each in outcome.provenances]
    accuracies = sorted({reference[key] for reference in references if key in reference})
    if measure.name != "classifier_accuracy" or not accuracies:
        return []
    return [f"The classifier's accuracy on held-out real images: {', '.join(map(numbers.number, accuracies))}."]


def _corner(outcome: Outcome) -> str:
    """Returns the names of the rows and columns of a table, for its first heading."""
    rows, column_axis = ", ".join(outcome.row_axes), outcome.experiment.column_axis
    return " ".join(filter(None, [f"{rows} ↓" * bool(rows), f"{column_axis} →" * bool(column_axis)]))


def _paper(outcome: Outcome, measure: Measure) -> Paper:
    """Returns the published results that the table of a measure shows."""
    first = outcome.measures[0].name
    papers = (paper for paper in outcome.experiment.papers if measure.name in (paper.metrics or (first,)))
    return next(papers, Paper("", {}))


def _failures(outcome: Outcome, threshold: float) -> list[str]:
    measure = outcome.measures[0]
    shares = [
        [name or "share", *(_share(outcome.failures(measure, labels, threshold)) for labels in columns)]
        for name, columns in outcome.lines()
    ]
    beyond = "above" if measure.direction == "lower" else "below"
    return [
        f"### Failed runs: an error, or {measure.title.split(' (')[0]} {beyond} {threshold:g}",
        _table([_corner(outcome), *(column or "share" for column in outcome.columns)], shares),
    ]


def _entry_text(entry: Entry) -> str:
    if not entry.known:
        return "failed" if entry.failed else "–"
    text = numbers.with_error(entry.mean, entry.error)
    return text + (f" ({entry.failed} failed)" if entry.failed else "")


def _share(entry: Entry) -> str:
    return f"{int(sum(entry.known))} of {len(entry.known)}" if entry.known else "–"


def _escape(text: str) -> str:
    """Returns text from results as one line without markup."""
    line = one_line(str(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]])", r"\\\1", line)


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(str(entry).replace("|", "\\|") for entry in row) + " |" for row in rows)


def _shared(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the fields that all provenances share, and all values of fields that may differ over time."""
    first = provenances[0] if provenances else {}
    shared = {name: value for name, value in first.items() if all(p.get(name) == value for p in provenances)}
    for name in ("git", "device", "versions", "date"):
        values = [one[name] for one in provenances if one.get(name) is not None]
        if name not in shared and values:
            distinct = [value for i, value in enumerate(values) if value not in values[:i]]
            shared[name] = [min(values), max(values)] if name == "date" else distinct
    return {name: value for name, value in shared.items() if name not in ("workdir", "command", "warnings")}


def _results(outcome: Outcome, scale_name: str, scale: Scale, command: str) -> dict[str, Any]:
    """Returns the contents of results.json."""
    experiment = outcome.experiment
    tested = [(ordering, outcome.verdict(ordering)) for ordering in experiment.orderings]
    axes = [axis for axis in outcome.axes if axis != SEED]
    return {
        "title": experiment.title,
        "source": experiment.source,
        "claim": experiment.claim,
        "scale": scale_name,
        "config": scale.config,
        "command": command,
        "seeds": [int(seed) for seed in outcome.axes[SEED]],
        "samples": scale.num,
        "orderings": [{"claim": o.claim, "verdict": v.word, "detail": _detail(v)} for o, v in tested],
        "warnings": outcome.warnings,
        "entries": [
            _stored(outcome.entry(measure, labels), measure, labels)
            for measure in outcome.measures
            for labels in outcome.settings(axes)
        ],
        "errors": outcome.errors,
        "provenance": _shared(outcome.provenances),
    }


def _detail(verdict: Verdict) -> dict[str, Any]:
    weakest = verdict.weakest._asdict() if verdict.weakest else None
    return {**verdict._asdict(), "weakest": weakest, "left_out": list(verdict.left_out)}


def _stored(entry: Entry, measure: Measure, labels: Labels) -> dict[str, Any]:
    return {
        "labels": labels,
        "measure": measure.name,
        "values": [estimate.value for estimate in entry.estimates],
        "standard_errors": [estimate.standard_error for estimate in entry.estimates],
        "failed": entry.failed,
        "pending": entry.pending,
    }


def _html(title: str, text: str, folder: Path) -> str:
    """Returns the report as one page. Embeds only the report's own images."""
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])
    for name in _IMAGES:
        if (folder / name).exists():
            data = base64.b64encode((folder / name).read_bytes()).decode()
            body = body.replace(f'src="{name}"', f'src="data:image/png;base64,{data}"')
    title = html.escape(one_line(title))
    return f"<!doctype html>\n<meta charset=utf-8>\n<title>{title}</title>\n<style>{_CSS}</style>\n{body}\n"
