"""Every command of the documentation is valid; with `-m slow`, every one is executed at tiny size.

The exceptions, with their reasons, are `NOT_RUN` of doc_commands.py and the marked blocks of pages.
"""

import collections
import importlib

import pytest

from diffjax import cli, evaluation
from diffjax.cli.flags import read_config
from diffjax.diffusion import (
    clipping,
    guidance_rules,
    guidance_schedules,
    masking_schedules,
    samplers,
    time_grids,
    unmasking,
)
from diffjax.inference.overrides import SETTINGS
from diffjax.models.diffusion import perturbations
from diffjax.models.diffusion.diffusion_settings import OPTIMIZED
from diffjax.models.diffusion.process import INJECTED_ARGUMENTS
from diffjax.parsing import entries
from diffjax.registry import lookup
from diffjax.reproduce import spec
from tests import tiny
from tests.command_line import parsed
from tests.doc_commands import Runner, commands

COMMANDS = commands()
RUN = collections.defaultdict(list)
for command in COMMANDS:
    if command.argv and not command.reason:
        RUN[command.page].append(command)
AXES = {
    "sampler": (samplers, unmasking),
    "schedule": masking_schedules,
    "grid": time_grids,
    "threshold": clipping,
    "guidance_rule": guidance_rules,
    "guidance_schedule": guidance_schedules,
    "perturbation": perturbations,
}
PLACEHOLDER = "--experiment=experiments/NAME.py"


def test_commands_are_found_on_all_kinds_of_pages():
    pages = {command.page for command in COMMANDS}
    assert {"README.md", "docs/data.md", "docs/tutorials/sweep.md", "configs/digits.py"} <= pages
    assert sum(page.startswith("experiments/") for page in pages) == len(list((tiny.ROOT / "experiments").glob("*.py")))


def test_every_command_is_run_or_has_a_reason():
    unexplained = [
        f"{command.page}: {command.text}"
        for command in COMMANDS
        if not (command.reason or command.argv or command.text.startswith("printf "))
    ]
    assert not unexplained, "execute these, or mark their blocks as not run:\n" + "\n".join(unexplained)
    assert all(command.reason is None or len(command.reason.split()) > 1 for command in COMMANDS)


def test_every_command_is_valid(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    faults = []
    for command in COMMANDS:
        if command.argv:
            try:
                check(command.argv)
            except (Exception, SystemExit) as error:
                faults.append(f"{command.page}:{command.line}: {command.text}\n    {type(error).__name__}: {error}")
    assert not faults, "\n".join(faults)


def check(argv: list[str]) -> None:
    """Raises an error if a verb, flag, config, override, experiment, metric or setting does not exist."""
    assert argv[0] in cli.VERBS, argv[0]
    words = [word for word in argv if word != PLACEHOLDER]
    arguments = parsed(*words, positional=hasattr(importlib.import_module(f"diffjax.cli.{argv[0]}"), "POSITIONAL"))
    config = getattr(arguments, "config", None) if "config" in arguments.values else None
    if config and config.startswith("configs/"):
        read_config(arguments)
    if "experiment" in arguments.values and arguments.experiment:
        assert arguments.scale in ("smoke|small|paper", *spec.load(arguments.experiment).scales)
    if "metrics" in arguments.values and arguments.metrics:
        unknown = {*arguments.metrics.split(",")} - {*evaluation.NAMES}
        assert not unknown, unknown
    for name in SETTINGS:
        for text in entries(name, getattr(arguments, name, None) or "") if name in arguments.given_flags else ():
            value = text.rpartition(":")[2] if "(" not in text else text
            SETTINGS[name].parse(value)
            if name in AXES and (name, value) != ("grid", OPTIMIZED):
                lookup(name, AXES[name], value, injected=INJECTED_ARGUMENTS)


@pytest.fixture(scope="module")
def runner(tmp_path_factory):
    return Runner(tmp_path_factory.mktemp("pages"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", RUN)
def test_every_command_runs(page, runner, monkeypatch, capsys):
    monkeypatch.chdir(runner.start(page))
    for command in RUN[page]:
        assert runner.run(command) == 0, f"{command.text}\n{capsys.readouterr().err}"
