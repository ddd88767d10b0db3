"""An experiment's report: Markdown, and the same as one page of HTML with its pictures inside."""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import markdown

from diffjax import io
from diffjax.experiment import figures
from diffjax.experiment.outcome import Figure, Outcome
from diffjax.experiment.spec import SEED, Measure, Paper, Scale
from diffjax.experiment.store import Store
from diffjax.measures import provenance

_CSS = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #bbb;padding:.25rem .6rem;text-align:right}"
    "td:first-child,th:first-child{text-align:left}img{max-width:100%}code{background:#f2f2f2}"
)


def write(
    folder: Path,
    outcome: Outcome,
    scale_name: str,
    scale: Scale,
    store: Store,
    command: str,
) -> Path:
    """Writes report.md, report.html, results.json and the pictures; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    experiment = outcome.experiment
    drawn = {"curves": figures.curves(folder / "curves.png", outcome)}
    drawn["samples"] = figures.samples(folder / "samples.png", outcome, store)
    lines = [
        f"# {experiment.title}",
        f"{experiment.source}. {experiment.claim}",
        f"Scale `{scale_name}`: `{scale.config}`, {_fields(scale)}{len(scale.seeds)} seed(s), {scale.num} samples a "
        f"cell; {scale.takes}. {outcome.done} of {outcome.total} cells done.",
        "\n".join(["    " + command]),
    ]
    if experiment.orderings:
        lines.append("## Does the claimed order hold here?")
        lines.append(_table(["claim", "here"], [[o.says, outcome.verdict(o).text] for o in experiment.orderings]))
    lines.append("## Figures")
    lines.append(_comparability(outcome))
    for measure in outcome.measures:
        lines += [f"### {measure.title}", *_figures_table(outcome, measure)]
    if experiment.fails_above is not None:
        lines += _failures(outcome, experiment.fails_above)
    lines += [f"![{name}]({name}.png)" for name, there in drawn.items() if there]
    if drawn["samples"]:
        back = any("reconstructions" in provenance for provenance in outcome.provenances)
        lines.append(
            (
                "Test images over their reconstructions"
                if back
                else "The first samples of each cell, from the same noise"
            )
            + f"; of the models trained with seed {outcome.axes[SEED][0]}."
        )
    if outcome.errors:
        lines += ["## Cells that failed", _table(["cell", "error"], [list(pair) for pair in outcome.errors.items()])]
    lines += [
        "## What the figures depend on",
        "```json\n" + io.to_json(_shared(outcome.provenances), indent=2) + "\n```",
    ]
    text = "\n\n".join(lines) + "\n"
    io.write_text(folder / "report.md", text)
    io.write_text(folder / "report.html", _html(experiment.title, text, folder))
    io.write_json(folder / "results.json", _results(outcome, scale_name, scale, command))
    return folder / "report.md"


def _fields(scale: Scale) -> str:
    return "".join(f"`{name}={value}`, " for name, value in scale.fields.items())


def _comparability(outcome: Outcome) -> str:
    experiment = outcome.experiment
    words = ["Mean ± standard deviation over the seeds."] if len(outcome.axes[SEED]) > 1 else ["One seed."]
    if experiment.papers:
        words.append("The paper's values are of the setting that stands over them, not of ours: compare orders.")
    if different := provenance.differences(outcome.provenances):
        words.append(f"**Not all of these are comparable**: they differ in {', '.join(different)}.")
    return " ".join(words)


def _figures_table(outcome: Outcome, measure: Measure) -> list[str]:
    """Our figures, beside the paper's where it has any of these cells."""
    experiment = outcome.experiment
    paper = _paper(outcome, measure)
    headings = [", ".join(outcome.rows) or experiment.across, *(column or "ours" for column in outcome.columns)]
    ours, reported = [], []
    for name, cells in outcome.lines():
        ours.append([name or "ours", *(_entry(outcome.figure(measure, labels)) for labels in cells)])
        reported.append([paper.values.get(tuple(labels[axis.name] for axis in experiment.axes)) for labels in cells])
    if all(value is None for line in reported for value in line):
        without = [f"The paper ({paper.setting}) has no figure of these cells."] if paper.values else []
        return [*without, _table(headings, ours)]
    headings += [f"paper: {column}".removesuffix(": ") for column in outcome.columns]
    lines = [[*line, *map(_number, values)] for line, values in zip(ours, reported, strict=True)]
    return [f"The paper's: {paper.setting}.", _table(headings, lines)]


def _paper(outcome: Outcome, measure: Measure) -> Paper:
    """What stands beside a measure."""
    first = outcome.measures[0].name
    found = [p for p in outcome.experiment.papers if measure.name in (p.beside or (first,))]
    return found[0] if found else Paper("", {})


def _failures(outcome: Outcome, above: float) -> list[str]:
    measure = outcome.measures[0]
    shares = [
        [name or "share", *(_share(outcome.failures(measure, labels, above)) for labels in cells)]
        for name, cells in outcome.lines()
    ]
    beyond = "above" if measure.direction == "lower" else "below"
    return [
        f"### Share of runs that fail: with an error, or {measure.title.split(' (')[0]} {beyond} {above:g}",
        _table([", ".join(outcome.rows), *(column or "share" for column in outcome.columns)], shares),
    ]


def _entry(figure: Figure) -> str:
    if not figure.values:
        return "failed" if figure.failed else "–"
    text = _number(figure.mean)
    if len(figure.values) > 1:
        text += f" ± {_number(figure.deviation)}"
    return text + (f" ({figure.failed} failed)" if figure.failed else "")


def _share(figure: Figure) -> str:
    return f"{int(sum(figure.values))} of {len(figure.values)}" if figure.values else "–"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if abs(value) >= 1 or value == 0 else f"{value:.3g}"


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(str(entry).replace("|", "\\|") for entry in row) + " |" for row in rows)


def _shared(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all figures have in common."""
    first = provenances[0] if provenances else {}
    same = {name: value for name, value in first.items() if all(p.get(name) == value for p in provenances)}
    return {name: value for name, value in same.items() if name != "workdir"}


def _results(outcome: Outcome, scale_name: str, scale: Scale, command: str) -> dict[str, Any]:
    """For programs, and for the table of all experiments."""
    experiment = outcome.experiment
    verdicts = [(ordering, outcome.verdict(ordering)) for ordering in experiment.orderings]
    axes = [axis for axis in outcome.axes if axis != SEED]
    return {
        "title": experiment.title,
        "source": experiment.source,
        "claim": experiment.claim,
        "scale": scale_name,
        "config": scale.config,
        "command": command,
        "seeds": len(scale.seeds),
        "orderings": [{"says": o.says, "verdict": v.word, "detail": v._asdict()} for o, v in verdicts],
        "figures": [
            {"labels": labels, "measure": measure.name, **outcome.figure(measure, labels)._asdict()}
            for measure in outcome.measures
            for labels in outcome.settings(axes)
        ],
        "errors": outcome.errors,
        "provenance": _shared(outcome.provenances),
    }


def _html(title: str, text: str, folder: Path) -> str:
    body = markdown.markdown(text, extensions=["tables", "fenced_code"])

    def embed(found: re.Match) -> str:
        data = base64.b64encode((folder / found[1]).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    body = re.sub(r'src="([^":]+\.png)"', embed, body)
    return f"<!doctype html>\n<meta charset=utf-8>\n<title>{title}</title>\n<style>{_CSS}</style>\n{body}\n"
