"""Store of a run's results: a line of results/results.jsonl per cell of a sweep, and per evaluation.

An entry is a dict of strict JSON:
  verb: "sweep" or "evaluate".
  id: hash of everything that the metrics depend on, except the code.
  code: hash of the code and of the versions of packages.
  settings: what was set for the entry, by name: sampling settings with the number of steps, or settings of a metric.
  num, seed: number of images, and seed of the first.
  metrics: {"value", "standard_error"} by name; for some also "real", the same of real images, and "chance".
  finest: steps of the samples that rms_to_finest_grid compares with, for cells.
  files: names of image files in the folder of results.
Other fields are its provenance: checkpoint, sampler, guides, reference, data, config, command, git, date, device, ...
"""

import csv
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffjax import io
from diffjax.errors import note
from diffjax.evaluation import provenance
from diffjax.metrics.resampling import Estimate
from diffjax.runs.loading import Run

Entry = dict[str, Any]
Writers = Mapping[str, Callable[[Path], None]]  # functions that write an image to a path, by file name

_PROVENANCE = ("checkpoint", "workdir", "date", "device")  # columns of a table's provenance
SAMPLING_FIELDS = ("not_finite", "seconds", "compile_seconds")  # of an entry, about its sampling


class ResultsStore:
    """Entries of a run in the order of their computation. An entry that cannot be written is tried again later.

    Attributes:
      path: file with the entries.
      unwritten: entries that are not on the disk.
      failed: image files that could not be written.
    """

    def __init__(self, folder: Path):
        """Reads the entries in `folder`. Damaged lines are noted and ignored."""
        self._folder, self.path = folder, folder / "results.jsonl"
        values, damaged = io.read_json_lines(self.path)
        self.entries = [value for value in values if _is_entry(value)]
        self.unwritten: list[Entry] = []
        self.failed: list[Path] = []
        if damaged or len(self.entries) < len(values):
            where = f"line {damaged[0]}" if damaged else "an entry that lacks fields"
            count = len(damaged) + len(values) - len(self.entries)
            note(f"{self.path}: damaged lines are ignored: {count}, the first is {where}")

    def find(self, identity: str, settings: Mapping[str, Any]) -> Entry | None:
        """Returns the newest entry with an id, of the present code, whose files exist; None: there is no such entry.

        If the entry has other settings (of flags that repeat a value of the config), it is stored with these too.
        """
        same = [entry for entry in self.entries if entry["id"] == identity and entry["code"] == provenance.code_hash()]
        same = [entry for entry in same if self._has_files(entry)]
        if not same:
            return None
        equal = [entry for entry in same if entry["settings"] == settings]
        if not equal:
            equal = [{**same[-1], "settings": dict(settings)}]
            self.add(equal[0], {})
        return equal[-1]

    def is_outdated(self, identity: str) -> bool:
        """Returns whether all entries with an id are of other code."""
        codes = [entry["code"] for entry in self.entries if entry["id"] == identity]
        return bool(codes) and provenance.code_hash() not in codes

    def add(self, entry: Entry, files: Writers) -> None:
        """Writes an entry and its files; prints a warning if that fails."""
        for name, write in files.items():
            path = self._folder / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path)
            except OSError as error:
                self.failed.append(path)
                _warn(path, error)
        self.entries.append(entry)
        self.unwritten.append(entry)
        self.write()

    def write(self) -> None:
        """Writes the entries that are not on the disk; prints a warning if that fails."""
        try:
            while self.unwritten:
                self._folder.mkdir(parents=True, exist_ok=True)
                io.append_json_line(self.path, self.unwritten[0])
                del self.unwritten[0]
        except OSError as error:
            _warn(self.path, error, "; it is tried again")

    def file(self, name: str) -> Path:
        """Returns the path of a file of an entry."""
        return self._folder / name

    def _has_files(self, entry: Entry) -> bool:
        return all((self._folder / name).is_file() for name in entry["files"])


def make_entry(verb: str, trained: Run, identity: str, fields: Mapping[str, Any]) -> Entry:
    """Returns an entry with the provenance of the run and of this process.

    Args:
      identity: from `make_id`.
      fields: settings, num, seed, metrics, files and what else the metrics depend on.
    """
    named = {"verb": verb, "id": identity, "code": provenance.code_hash()}
    return {**named, **fields, **provenance.run_provenance(trained)}


def make_id(**inputs: Any) -> str:
    """Returns the hash of everything that metrics depend on, as JSON values."""
    return io.short_hash(io.to_json(inputs, sort_keys=True))


def estimates(entry: Entry) -> dict[str, Estimate]:
    """Returns the metrics of an entry."""
    return {name: Estimate(about["value"], about["standard_error"]) for name, about in entry["metrics"].items()}


def flat_row(entry: Entry) -> dict[str, Any]:
    """Returns an entry as a row of a table: settings, num, seed, metrics with standard errors, times, provenance."""
    row = {**entry["settings"], "num": entry["num"], "seed": entry["seed"]}
    for name, estimate in estimates(entry).items():
        row |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
    row |= {name: entry[name] for name in SAMPLING_FIELDS if name in entry}
    row |= {name: entry[name] for name in _PROVENANCE if name in entry}
    return row | {"commit": (entry.get("git") or {}).get("commit")}


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows as CSV with a header, atomically. A column that a row lacks, and None, are empty."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with io.atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, column_names(rows), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def column_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the names in any of the rows, in their order."""
    return list(dict.fromkeys(name for row in rows for name in row))


def _is_entry(value: Mapping[str, Any]) -> bool:
    kinds = {"verb": str, "id": str, "code": str, "settings": dict, "num": int, "seed": int, "metrics": dict}
    if not all(isinstance(value.get(name), kind) for name, kind in kinds.items()):
        return False
    return isinstance(value.get("files"), list) and all(
        isinstance(about, dict) and {"value", "standard_error"} <= about.keys() for about in value["metrics"].values()
    )


def _warn(path: Path, error: OSError, end: str = "") -> None:
    print(f"warning: {path}: cannot be written ({error.strerror or error}){end}", file=sys.stderr)
