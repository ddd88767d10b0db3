"""Whole runs under faults: a full disk, a damaged checkpoint, two at once, a signal, steps that overflow."""

import shutil
import signal
import time

import numpy as np
import pytest

from diffjax import commands
from tests import running, tiny

STEPS = 12
SETTINGS = {
    "parallel__count": 1,
    "train__steps": STEPS,
    "train__schedule": "constant",  # so that a run of more steps begins alike
    "train__sample_count": 0,
    "train__checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("config") / "tiny.py", **SETTINGS)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "whole"
    assert launch("train", f"--config={config}", f"--workdir={path}") == 0
    return path


@pytest.fixture
def copy(run, tmp_path):
    """Of the run, to be harmed."""
    return shutil.copytree(run, tmp_path / "copy")


def launch(*arguments):
    return commands.main(["launch.py", *arguments])


def losses(path):
    return [(line["step"], line["loss"]) for line in running.steps(path)]


def test_a_damaged_checkpoint_is_made_again_to_the_same_numbers(copy, run, capsys):
    last = copy / "checkpoints" / str(STEPS)
    victim = max((file for file in last.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    assert launch("train", f"--workdir={copy}") == 0
    captured = capsys.readouterr()
    assert f"checkpoint {STEPS} in" in captured.err and victim.name in captured.err
    assert f"continuing at step {STEPS - 1}" in captured.out
    assert losses(copy) == losses(run)


def test_sampling_passes_over_a_damaged_checkpoint_and_leaves_it(copy, tmp_path, capsys):
    last = copy / "checkpoints" / str(STEPS)
    (last / "manifest.json").unlink()
    assert launch("sample", f"--workdir={copy}", f"--out={tmp_path}/samples.npz", "--num=1") == 0
    captured = capsys.readouterr()
    assert "manifest.json is missing" in captured.err
    assert f"1 samples of step {STEPS - 1}" in captured.out
    assert last.exists()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param("--config.parallel.count=2", marks=pytest.mark.slow),
        "--config.parallel.count=4 --config.parallel.fsdp=2",
    ],
)
def test_a_run_goes_on_on_other_devices(config, run, settings, tmp_path):
    path = tmp_path / "run"
    assert launch("train", f"--config={config}", f"--workdir={path}", "--config.train.steps=6") == 0
    assert launch("train", f"--config={config}", f"--workdir={path}", *settings.split()) == 0
    np.testing.assert_allclose(losses(path), losses(run), rtol=1e-5)


def test_exported_weights_draw_the_same_and_are_read_by_safetensors(run, tmp_path, capsys):
    from safetensors.numpy import load_file

    out = tmp_path / "exported"
    assert launch("export", f"--workdir={run}", f"--out={out}") == 0
    for path in (run, out):
        assert launch("sample", f"--workdir={path}", f"--out={tmp_path / path.name}.npz", "--num=2") == 0
    drawn = [np.load(f"{tmp_path / path.name}.npz")["images"] for path in (run, out)]
    np.testing.assert_array_equal(*drawn)
    tensors = load_file(out / "weights.safetensors")
    assert sum(tensor.size for tensor in tensors.values()) == 48_753  # as train says
    assert all(name.startswith("params/model/") for name in tensors)
    assert launch("train", f"--workdir={out}") == 2
    assert "exported run" in capsys.readouterr().err
    assert launch("export", f"--workdir={run}", f"--out={out}") == 2
    assert "is not empty" in capsys.readouterr().err


def test_steps_that_overflow_are_skipped_then_stop_the_run_and_can_be_replayed(tmp_path, capsys):
    config = tiny.write(tmp_path / "wild.py", **SETTINGS, train__learning_rate=1e30, train__warmup_steps=0)
    path = tmp_path / "run"
    limit = "--config.train.skip_limit=2"
    assert launch("train", f"--config={config}", f"--workdir={path}", limit) == 2
    captured = capsys.readouterr()
    assert "is skipped: " in captured.out
    assert "launch.py replay" in captured.err
    assert launch("replay", f"--workdir={path}") == 0
    said = capsys.readouterr().out
    first = min(line["step"] for line in running.steps(path) if line["skipped"])
    assert f"step {first} of" in said
    assert "16 examples" in said and "not finite: 0, 1, 2" in said
    assert "parameters not finite: none" in said


def test_a_run_that_did_not_fail_has_nothing_to_replay(run, capsys):
    assert launch("replay", f"--workdir={run}") == 2
    assert "no step of" in capsys.readouterr().err


def test_two_at_once_and_after_a_kill(config, tmp_path, capsys):
    path = tmp_path / "run"
    first = running.process(config, path, "--config.train.steps=100000")
    running.wait_for_step(path, 1, first)
    assert launch("train", f"--workdir={path}") == 2
    assert f"is being trained by process {first.pid} on" in capsys.readouterr().err
    first.kill()
    first.wait()
    saved = [int(step.name) for step in (path / "checkpoints").iterdir() if step.name.isdigit()]
    assert launch("train", f"--workdir={path}", f"--config.train.steps={max(saved, default=0) + 1}") == 0


@pytest.mark.parametrize("small_disk", [16], indirect=True)
def test_a_disk_that_is_full_for_a_while(config, run, small_disk):
    path = small_disk / "run"
    training = running.process(config, path, "--config.train.steps=100", "--config.train.keep_last=1")
    running.wait_for_step(path, 5, training)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(2**12))
    time.sleep(1)
    ballast.unlink()
    said = training.communicate(timeout=400)[0]
    assert training.returncode == 0, said
    assert "could not be saved" in said
    assert [line["step"] for line in running.steps(path)] == list(range(1, 101))
    np.testing.assert_allclose(losses(path)[:STEPS], losses(run), rtol=1e-5)  # compiled with other flags
    assert (path / "checkpoints" / "100" / "manifest.json").exists()


def test_a_sheet_that_a_kill_prevented_is_drawn(tmp_path):
    config = tiny.write(tmp_path / "tiny.py", **SETTINGS | {"train__sample_count": 4, "train__steps": 2})
    path = tmp_path / "run"
    assert launch("train", f"--config={config}", f"--workdir={path}") == 0
    sheet = path / "samples" / "step_00000002.png"
    drawn = sheet.read_bytes()
    sheet.unlink()
    assert launch("train", f"--workdir={path}") == 0
    assert sheet.read_bytes() == drawn


def test_a_signal_while_it_compiles(config, tmp_path):
    """Nothing is lost, and the exit code is the documented one."""
    training = running.process(config, tmp_path / "run", "--config.model.channels=64")
    for line in training.stdout:
        if "parameters" in line:
            break
    time.sleep(1)  # it compiles for longer
    training.send_signal(signal.SIGTERM)
    said = training.communicate(timeout=200)[0]
    assert training.returncode == 128 + signal.SIGTERM, said
    assert "the same command continues" in said
