"""The command line, called in this process."""

import importlib
import json
from pathlib import Path

import numpy as np

from diffjax import cli
from diffjax.cli import flags


def launch(*arguments) -> int:
    """Returns the exit code of `launch.py ARGUMENTS`."""
    return cli.main(["launch.py", *map(str, arguments)])


def refused(capsys, *arguments) -> str:
    """Returns the error of a command that must fail with exit code 2 and one line."""
    capsys.readouterr()
    assert launch(*arguments) == 2, arguments
    captured = capsys.readouterr()
    error = captured.err
    assert error.startswith("error: ") and error.count("\n") == 1, (arguments, error)
    return error


def sample(workdir: Path, folder: Path, *arguments) -> dict[str, np.ndarray]:
    """Returns the arrays of `launch.py sample`."""
    path = folder / "sample.npz"
    assert launch("sample", f"--workdir={workdir}", f"--out={path}", "--batch_size=8", *arguments) == 0
    return dict(np.load(path))


def entries(workdir: Path) -> list[dict]:
    """Returns the entries of a run's results store."""
    return [json.loads(line) for line in (workdir / "results" / "results.jsonl").read_text().splitlines()]


def result(workdir: Path, metric: str) -> dict:
    """Returns the newest entry with a metric; the name of a metric of data, such as nll, matches all its values."""
    return next(e for e in reversed(entries(workdir)) if any(f"{n}.".startswith(f"{metric}.") for n in e["metrics"]))


def flags_of(verb: str) -> flags.Flags:
    """Returns the flags that a verb defines."""
    declared = flags.Flags()
    importlib.import_module(f"diffjax.cli.{verb}").define(declared)
    return declared


def parsed(verb: str, *argv: str, positional: bool = False) -> flags.Arguments:
    """Returns the parsed flags of a verb."""
    return flags.parse(flags_of(verb), [verb, *argv], positional=positional)
