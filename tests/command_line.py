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


def results(workdir: Path, name: str) -> dict:
    """Returns the content of a results file of a run."""
    return json.loads((workdir / "results" / f"{name}.json").read_text())


def parsed(verb: str, *argv: str) -> flags.Arguments:
    """Returns the parsed flags of a verb."""
    declared = flags.Flags()
    importlib.import_module(f"diffjax.cli.{verb}").define(declared)
    return flags.parse(declared, [verb, *argv])
