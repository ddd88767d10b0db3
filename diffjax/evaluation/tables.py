"""Tables of results as text: aligned columns, and the rows of a sweep."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diffjax.evaluation.results_store import SAMPLING_FIELDS
from diffjax.numbers import number, with_error

RMS_TITLES = {"rms_to_finest_grid": "RMS difference from the most steps (grey levels)"}
_NOT_SETTINGS = {"steps", "standard_errors", *SAMPLING_FIELDS, *RMS_TITLES}
_WIDTH = 17  # characters of a metric whose values are not known yet
_HEADINGS = {
    "compile_seconds": "compiling",
    "guidance_rescale": "rescale",
    "classifier_scale": "classifier",
    "weak_scale": "weak",
}


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of equally many texts as lines, in columns that are aligned on the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths).rstrip() for row in rows)


def table(rows: Sequence[dict], measures: Iterable[str]) -> str:
    """Returns the rows of a sweep in aligned columns, settings first. Omits metrics without any value."""
    shown = [name for name in (*measures, *RMS_TITLES) if any(row.get(name) is not None for row in rows)]
    columns = [*setting_names(rows, measures), "steps", *shown, "seconds", "compile_seconds"]
    return aligned([[*map(heading, columns)], *([text_of(row, name) for name in columns] for row in rows)])


class TableLines:
    """Formats the lines of a table one by one, before the values of later lines are known.

    Attributes:
      head: line of headings.
    """

    def __init__(self, cells: Sequence[dict], measures: Iterable[str]):
        """Computes the widths of the columns from all settings, `cells`, and the names of the metrics."""
        settings = setting_names(cells, measures)
        self._names = [*settings, "steps", *measures, *RMS_TITLES, "seconds", "compile_seconds"]
        headings = [*map(heading, self._names)]
        widest = {name: max(len(text_of(cell, name)) for cell in cells) for name in settings}
        least = dict.fromkeys((*measures, *RMS_TITLES), _WIDTH) | {"steps": 5} | widest
        self._widths = [max(len(h), least.get(name, 0)) for name, h in zip(self._names, headings, strict=True)]
        self.head = _line(headings, self._widths)

    def line(self, row: dict) -> str:
        """Returns the line of a row."""
        return _line([text_of(row, name) for name in self._names], self._widths)


def setting_names(rows: Sequence[dict], measures: Iterable[str]) -> list[str]:
    """Returns the names of the settings of rows, except the steps; they distinguish curves."""
    others = {*_NOT_SETTINGS, *measures, *(name for row in rows for name in row.get("standard_errors", ()))}
    return list(dict.fromkeys(name for row in rows for name in row if name not in others))


def heading(name: str) -> str:
    """Returns the heading of a column, shorter than its name for some settings."""
    return _HEADINGS.get(name, name)


def label(row: Mapping[str, Any], names: Iterable[str]) -> str:
    """Returns the settings of a row with these names, such as "ddim, eta 0, 50 steps"."""
    words = [_setting(name, text_of(row, name)) for name in sorted(names, key="steps".__eq__) if name in row]
    return ", ".join(words)


def text_of(row: Mapping[str, Any], name: str) -> str:
    """Returns the value of a column as text, with its standard error if it has one."""
    value = row.get(name, "")
    if name in row.get("standard_errors", {}):
        return with_error(value, row["standard_errors"][name])
    if name in ("seconds", "compile_seconds"):
        return number(value or None)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(text.rjust(width) for text, width in zip(texts, widths, strict=True))


def _setting(name: str, text: str) -> str:
    """Returns a setting in words."""
    if name == "steps":
        return f"{text} step{'s' * (text != '1')}"
    return text if name == "sampler" else f"{heading(name)} {text}"
