"""`launch.py train`: a complete workdir, resuming, and configs that changed."""

import json
import re
import signal

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.inference.image_grids import GAP, read_images
from diffjax.runs.workdir import Workdir
from tests.command_line import launch, refused
from tests.running import process, steps, wait_for_step


def test_train_writes_a_complete_workdir(workdir):
    stored = json.loads((workdir / "config.json").read_text())
    assert {"seed", "system", "data", "model", "diffusion", "train", "sampler", "parallel", "dtype"} <= stored.keys()
    assert [line["step"] for line in steps(workdir)] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in steps(workdir))
    assert list((workdir / "events").glob("events.out.tfevents.*"))
    assert {path.name for path in (workdir / "checkpoints").iterdir()} == {"2", "4"}
    preview = workdir / "samples" / "step_00000004.png"
    assert Image.open(preview).width == 10 * (64 + GAP) + GAP  # ten classes in a row, enlarged eight times
    assert read_images(preview).shape == (10, 8, 8, 1)
    run = diffjax.load(workdir)
    assert (run.step, run.system.classes, run.spec.size) == (4, 10, 8)
    assert diffjax.load(workdir, checkpoint=2).step == 2


def test_a_finished_run_is_not_trained_again(workdir, config, capsys):
    before = (workdir / "metrics.jsonl").read_text()
    assert launch("train", f"--config={config}", f"--workdir={workdir}") == 0
    output = capsys.readouterr().out
    assert "raise --config.train.steps" in output and (workdir / "metrics.jsonl").read_text() == before
    for command in ("sample", "sweep"):
        assert f"launch.py {command} --workdir={workdir}" in output


NEXT_COMMANDS = {
    "classifier": ["evaluate {run} --metrics=accuracy", "--classifier={path} --classifier_scale=0,1,2"],
    "vae": ["sample {run} --out=samples.png", "evaluate {run} --metrics=reconstruction"],
    "gan": ["sample {run} --out=samples.png"],
    "dalle": ['sample {run} --prompt="..."'],
    "dalle/codec": ["evaluate {run} --metrics=reconstruction", "--config.codec={path}"],
    "dalle/clip": ["evaluate {run} --metrics=retrieval,zero_shot"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NEXT_COMMANDS)
def test_train_prints_commands_that_fit_the_model(name, trained_runs, run_copy, capsys):
    kind, _, part = name.partition("/")
    workdir = run_copy(kind) / part
    capsys.readouterr()
    assert launch("train", f"--workdir={workdir}") == 0
    output = capsys.readouterr().out
    assert output.count(" is trained to step ") == (3 if name == "dalle" else 1)  # also the parts
    commands = output[output.index("try next:") :].splitlines()[1:]
    assert len(commands) == len(NEXT_COMMANDS[name])
    for line, command in zip(commands, NEXT_COMMANDS[name], strict=True):
        assert command.format(run=f"--workdir={workdir}", path=workdir) in line


def test_a_resumed_run_equals_an_uninterrupted_run(workdir, config, tmp_path):
    """The losses are equal to the last bit, and so are the previews."""
    launch("train", f"--config={config}", f"--workdir={tmp_path}", "--config.train.steps=2")
    assert launch("train", f"--workdir={tmp_path}", "--config.train.steps=4") == 0  # the stored config
    assert steps(tmp_path) == steps(workdir)
    preview = "samples/step_00000004.png"
    assert (tmp_path / preview).read_bytes() == (workdir / preview).read_bytes()


def test_a_changed_config_is_refused_unless_allowed(trained_runs, config, tmp_path, capsys):
    workdir = trained_runs.copy("pixel", tmp_path / "run")
    command = ["train", f"--config={config}", f"--workdir={workdir}", "--config.train.learning_rate=0.5"]
    command += ["--config.seed=1", "--config.train.log_every=2"]
    error = refused(capsys, *command, "--config.train.steps=5")
    assert "seed was 0, now 1; train.learning_rate was 0.001, now 0.5" in error
    assert "train.steps" not in error and "log_every" not in error
    assert launch(*command, "--allow_config_change") == 0
    assert Workdir(workdir).read_config().train.learning_rate == 0.5


@pytest.mark.slow
def test_a_diverging_run_keeps_its_last_good_checkpoint(config, tmp_path, capsys):
    flags = ["--config.train.learning_rate=1e30", "--config.train.clip_norm=0", "--config.train.checkpoint_every=1"]
    flags += ["--config.train.num_preview_samples=0"]
    assert launch("train", f"--config={config}", f"--workdir={tmp_path}", *flags) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"error: step \d: .* = (nan|inf).*the last checkpoint is of step \d", error)
    remaining = [int(path.name) for path in (tmp_path / "checkpoints").iterdir()]
    assert max(remaining) < int(re.search(r"step (\d)", error).group(1))
    assert diffjax.load(tmp_path).step == max(remaining)


def test_sigterm_saves_a_checkpoint_and_a_run_in_training_is_locked(config, tmp_path, capsys):
    running = process(config, tmp_path, "--config.train.steps=100000", "--config.train.checkpoint_every=0")
    wait_for_step(tmp_path, 3, running)
    assert f"is being trained by process {running.pid} on" in refused(capsys, "train", f"--workdir={tmp_path}")
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert "the same command resumes" in output
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == [steps(tmp_path)[-1]["step"]]


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_losses(config, tmp_path):
    long = ["--config.train.steps=120", "--config.train.checkpoint_every=20", "--config.train.num_preview_samples=1"]
    running = process(config, tmp_path / "killed", *long)
    wait_for_step(tmp_path / "killed", 50, running)
    running.kill()
    running.wait()
    assert len(steps(tmp_path / "killed")) < 120
    resumed, whole = process(config, tmp_path / "killed", *long), process(config, tmp_path / "whole", *long)
    assert "continuing at step" in resumed.communicate()[0]
    whole.communicate()
    assert steps(tmp_path / "killed") == steps(tmp_path / "whole")
    assert [line["step"] for line in steps(tmp_path / "whole")] == list(range(1, 121))


@pytest.mark.slow
def test_another_data_set_needs_one_override(config, tmp_path):
    flags = ["--config.data.name=shapes", "--config.data.image_size=16"]
    assert launch("train", f"--config={config}", f"--workdir={tmp_path}", "--config.train.steps=1", *flags) == 0
    assert diffjax.load(tmp_path).spec == (16, 3, diffjax.load(tmp_path).system.classes)
