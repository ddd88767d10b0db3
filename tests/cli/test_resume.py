"""`launch.py train --workdir=RUN` alone, and changes of `train.steps` when a run is resumed."""

import signal

import pytest

from diffjax.runs.workdir import Workdir
from diffjax.training import train
from tests import tiny
from tests.command_line import launch, refused


@pytest.mark.slow
def test_an_interrupted_pipeline_resumes_from_its_folder_alone(tmp_path, monkeypatch):
    """The config, with the overrides of the first command, is stored before the first part is trained."""
    started = []

    def interrupt(config, *arguments):
        started.append((config.system, config.train.steps))
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "with_tokens", interrupt)
    overrides = ["--config.parts.clip.train.steps", "7"]
    command = ["train", f"--workdir={tmp_path}/run"]
    config = f"--config={tiny.write_pipeline(tmp_path, 'unclip', ('clip', 'prior', 'decoder'))}"
    assert launch(*command, config, *overrides) == 128 + signal.SIGINT
    assert Workdir(tmp_path / "run").read_config().parts.clip.train.steps == 7
    assert launch(*command) == 128 + signal.SIGINT
    assert started == [("clip", 7), ("clip", 7)]


def test_the_steps_of_a_decaying_learning_rate_do_not_change_silently(trained_runs, capsys):
    workdir = trained_runs("classifier")
    before = (workdir / "config.json").read_bytes()
    error = refused(capsys, "train", f"--workdir={workdir}", "--config.train.steps=5")
    assert "train.steps was 2, now 5" in error and "decays to train.steps" in error
    assert "--allow_config_change" in error
    assert (workdir / "config.json").read_bytes() == before


def test_the_steps_of_a_part_of_a_pipeline_do_not_change_silently(trained_runs, capsys):
    workdir = trained_runs("unclip")
    error = refused(capsys, "train", f"--workdir={workdir}", "--config.parts.clip.train.steps=5")
    assert "train.steps was 2, now 5" in error
