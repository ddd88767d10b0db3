"""Runs with faults: a full disk, damaged files, a second process, signals, and non-finite steps."""

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

import diffjax
from diffjax import cli
from diffjax.errors import UserError
from diffjax.runs.config_files import flatten
from diffjax.runs.workdir import Workdir
from diffjax.training.resume import changes
from tests import running, tiny

STEPS = 6
SETTINGS = {
    "parallel__num_devices": 1,
    "train__steps": STEPS,
    "train__learning_rate_schedule": "constant",  # so that more steps do not change the first
    "train__num_preview_samples": 0,
    "train__checkpoint_every": 1,
    "train__batch_size": 8,
    "model": tiny.DIT,
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
    """Returns a copy of the run, which a test may damage."""
    return shutil.copytree(run, tmp_path / "copy")


def launch(*arguments):
    return cli.main(["launch.py", *arguments])


def losses(path):
    return [(line["step"], line["loss"]) for line in running.steps(path)]


def test_a_damaged_checkpoint_is_recomputed_with_the_same_losses(copy, run, capsys):
    last = copy / "checkpoints" / str(STEPS)
    victim = max((file for file in last.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    assert launch("train", f"--workdir={copy}") == 0
    captured = capsys.readouterr()
    assert f"checkpoint {STEPS} in" in captured.err and victim.name in captured.err
    assert f"continuing at step {STEPS - 1}" in captured.out
    assert losses(copy) == losses(run)


@pytest.mark.slow
def test_sampling_skips_a_damaged_checkpoint_and_keeps_its_files(copy, tmp_path, capsys):
    last = copy / "checkpoints" / str(STEPS)
    (last / "manifest.json").unlink()
    assert launch("sample", f"--workdir={copy}", f"--out={tmp_path}/samples.npz", "--num=1") == 0
    captured = capsys.readouterr()
    assert "manifest.json is missing" in captured.err
    assert f"1 samples of step {STEPS - 1}" in captured.out
    assert last.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param("--config.parallel.num_devices=2", marks=pytest.mark.slow),
        "--config.parallel.num_devices=8 --config.parallel.fsdp=2 --config.parallel.tensor=2",
    ],
)
def test_a_run_resumes_on_other_devices(config, run, settings, tmp_path):
    path = tmp_path / "run"
    assert launch("train", f"--config={config}", f"--workdir={path}", f"--config.train.steps={STEPS - 2}") == 0
    assert launch("train", f"--config={config}", f"--workdir={path}", *settings.split()) == 0
    np.testing.assert_allclose(losses(path), losses(run), rtol=1e-5)


@pytest.mark.slow
def test_an_exported_run_has_the_same_samples_and_safetensors_reads_it(run, tmp_path, capsys):
    from safetensors.numpy import load_file

    out = tmp_path / "exported"
    assert launch("export", f"--workdir={run}", f"--out={out}") == 0
    for path in (run, out):
        assert launch("sample", f"--workdir={path}", f"--out={tmp_path / path.name}.npz", "--num=2") == 0
    images = [np.load(f"{tmp_path / path.name}.npz")["images"] for path in (run, out)]
    np.testing.assert_array_equal(*images)
    tensors = load_file(out / "weights.safetensors")
    parameters = diffjax.load(run).parameters
    assert sum(tensor.size for tensor in tensors.values()) == parameters
    assert all(name.startswith("params/model/") for name in tensors)
    assert launch("train", f"--workdir={out}") == 2
    assert "exported run" in capsys.readouterr().err
    assert launch("export", f"--workdir={run}", f"--out={out}") == 2
    assert "is not empty" in capsys.readouterr().err


@pytest.mark.slow
def test_non_finite_steps_are_skipped_then_stop_the_run_and_can_be_replayed(tmp_path, capsys):
    config = tiny.write(tmp_path / "wild.py", **SETTINGS, train__learning_rate=1e30, train__warmup_steps=0)
    path = tmp_path / "run"
    limit = "--config.train.max_consecutive_skips=2"
    assert launch("train", f"--config={config}", f"--workdir={path}", limit) == 2
    captured = capsys.readouterr()
    assert "is skipped: " in captured.out
    assert "launch.py replay" in captured.err
    assert launch("replay", f"--workdir={path}") == 0
    printed = capsys.readouterr().out
    first = min(line["step"] for line in running.steps(path) if line["skipped"])
    assert f"step {first} of" in printed
    assert "8 examples" in printed and "not finite: 0, 1, 2" in printed
    assert "parameters not finite: none" in printed


def test_a_run_without_a_failed_step_has_nothing_to_replay(run, capsys):
    assert launch("replay", f"--workdir={run}") == 2
    assert "has failed; nothing to replay" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_in_training_is_locked_and_a_kill_releases_the_lock(config, tmp_path, capsys):
    path = tmp_path / "run"
    first = running.process(config, path, "--config.train.steps=100000")
    running.wait_for_step(path, 1, first)
    assert launch("train", f"--workdir={path}") == 2
    assert f"is being trained by process {first.pid} on" in capsys.readouterr().err
    first.kill()
    first.wait()
    saved = [int(step.name) for step in (path / "checkpoints").iterdir() if step.name.isdigit()]
    assert launch("train", f"--workdir={path}", f"--config.train.steps={max(saved, default=0) + 1}") == 0


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [16], indirect=True)
def test_a_disk_that_is_full_for_a_second_fails_only_some_saves(config, run, small_disk):
    path = small_disk / "run"
    training = running.process(config, path, "--config.train.steps=100", "--config.train.keep_last=1")
    running.wait_for_step(path, 5, training)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(2**12))
    time.sleep(1)
    ballast.unlink()
    printed = training.communicate(timeout=400)[0]
    assert training.returncode == 0, printed
    assert "could not be saved" in printed
    assert [line["step"] for line in running.steps(path)] == list(range(1, 101))
    np.testing.assert_allclose(losses(path)[:STEPS], losses(run), rtol=1e-5)  # compiled with other flags
    assert (path / "checkpoints" / "100" / "manifest.json").exists()


@pytest.mark.slow
def test_missing_previews_of_the_last_step_are_saved_on_resumption(tmp_path):
    config = tiny.write(tmp_path / "tiny.py", **SETTINGS | {"train__num_preview_samples": 4, "train__steps": 2})
    path = tmp_path / "run"
    assert launch("train", f"--config={config}", f"--workdir={path}") == 0
    preview = path / "samples" / "step_00000002.png"
    images = preview.read_bytes()
    preview.unlink()
    assert launch("train", f"--workdir={path}") == 0
    assert preview.read_bytes() == images


@pytest.mark.slow
def test_a_signal_during_compilation_stops_the_run(config, tmp_path):
    """The exit code is the documented one."""
    training = running.process(config, tmp_path / "run", "--config.model.width=256", "--config.model.layers=8")
    for line in training.stdout:
        if "parameters" in line:
            break
    time.sleep(1)  # compilation takes longer
    training.send_signal(signal.SIGTERM)
    printed = training.communicate(timeout=200)[0]
    assert training.returncode == 128 + signal.SIGTERM, printed
    assert "the same command resumes" in printed


def error_of(capsys):
    """Returns the error of the last command, which is one line."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def contents(path):
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"}


FREE = {
    "train.log_every": 2,
    "train.eval_every": 2,
    "train.eval_batches": 2,
    "train.sample_every": 2,
    "train.checkpoint_every": 3,
    "train.keep_last": 1,
    "train.keep_every": 3,
    "train.ema_every": 3,
    "train.max_consecutive_skips": 5,
    "data.dir": "there",
    "data.cache_gib": 1.0,
    "data.workers": 2,
    "sampler.guidance_high": 1.0,
}


def test_every_field_that_changes_the_numbers_is_refused_on_resumption():
    """Fields that change no number are listed in FREE: a new field is refused until it is added."""
    old = tiny.config(train__learning_rate_schedule="constant", train__steps=4)
    for name, value in flatten(old).items():
        free = name in FREE or name.startswith(("sampler.", "parallel.")) or name == "train.steps"
        if isinstance(value, bool):
            other = not value
        elif isinstance(value, tuple):
            other = (*value, 1)
        else:
            other = FREE.get(name, value + 1 if isinstance(value, int | float) else f"{value}x")
        new = old.copy_and_resolve_references()
        with new.ignore_type():
            new.update_from_flattened_dict({name: other})
        assert changes(old, new) == ({name: (value, other)}, [] if free else [name])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("steps", [2, 9])
def test_the_number_of_steps_changes_the_numbers_only_with_a_decaying_schedule(schedule, steps):
    settings = {"train__learning_rate_schedule": schedule, "train__warmup_steps": 1}
    old, new = (tiny.config(train__steps=count, **settings) for count in (5, steps))
    assert changes(old, new)[1] == (["train.steps"] if schedule == "cosine" else [])


@pytest.mark.slow
def test_more_steps_of_a_decaying_schedule_are_refused_or_recorded(tmp_path, capsys):
    """The learning rate would jump, here from zero: peak (1 + cos(pi s / steps)) / 2 without a warm-up."""
    cosine = {"train__learning_rate_schedule": "cosine", "train__warmup_steps": 0, "train__learning_rate": 1e-3}
    config, path = tiny.write(tmp_path / "tiny.py", **SETTINGS | cosine | {"train__steps": 4}), tmp_path / "run"
    assert launch("train", f"--config={config}", f"--workdir={path}") == 0
    capsys.readouterr()
    longer = ["train", f"--workdir={path}", "--config.train.steps=6", "--config.train.log_every=2"]
    assert launch(*longer) == 2
    jump = f"the learning rate at step 4 goes from 0 to {1e-3 * (1 + math.cos(math.pi * 4 / 6)) / 2:.3g}"
    error = error_of(capsys)
    assert "train.steps was 4, now 6" in error and jump in error and "--allow_config_change" in error
    assert not (path / "config_changes.jsonl").exists() and len(running.steps(path)) == 4
    assert launch(*longer, "--allow_config_change") == 0
    assert jump in capsys.readouterr().out
    (change,) = map(json.loads, (path / "config_changes.jsonl").read_text().splitlines())
    assert diffjax.load(path).config_changes == [change]
    assert change.pop("date").endswith("+00:00")
    fields = {"train.log_every": [1, 2], "train.steps": [4, 6]}
    assert change == {"step": 4, "fields": fields, "changes_numbers": ["train.steps"]}
    assert Workdir(path).read_config().train.steps == 6
    assert launch("train", f"--workdir={path}", "--config.train.steps=3") == 2  # fewer steps are refused too
    assert "train.steps was 6, now 3" in error_of(capsys)


def test_fields_that_skip_examples_are_refused(copy, capsys):
    assert launch("train", f"--workdir={copy}", "--config.data.on_corrupt=skip", "--config.train.steps=7") == 2
    assert "data.on_corrupt was 'raise', now 'skip'" in error_of(capsys)


def without_checkpoints(path):
    shutil.rmtree(path / "checkpoints")


def with_an_empty_folder(path):
    without_checkpoints(path)
    (path / "checkpoints").mkdir()


def without_the_newest(path):
    shutil.rmtree(path / "checkpoints" / str(STEPS))


def earlier_version_without_checkpoints(path):
    (path / "last_checkpoint.json").unlink()
    without_checkpoints(path)


def earlier_version_with_an_empty_folder(path):
    (path / "last_checkpoint.json").unlink()
    with_an_empty_folder(path)


def without_its_config(path):
    (path / "config.json").unlink()


MISSING = {
    without_checkpoints: f"the checkpoint of step {STEPS} is missing, there is no checkpoint",
    with_an_empty_folder: f"the checkpoint of step {STEPS} is missing, there is no checkpoint",
    without_the_newest: f"the checkpoint of step {STEPS} is missing, the newest is of step {STEPS - 1}",
    earlier_version_without_checkpoints: f"metrics.jsonl ends at step {STEPS}",
    earlier_version_with_an_empty_folder: f"metrics.jsonl ends at step {STEPS}",
    without_its_config: "config.json: is missing",
}


@pytest.mark.parametrize("damage", MISSING, ids=lambda damage: damage.__name__)
def test_a_missing_file_of_a_run_is_an_error_and_nothing_changes(damage, copy, config, capsys):
    damage(copy)
    before = contents(copy)
    for flags in ([], [f"--config={config}"]):
        assert launch("train", f"--workdir={copy}", *flags) == 2
        error = error_of(capsys)
        assert MISSING[damage] in error and "put a copy back" in error
    assert contents(copy) == before


@pytest.mark.slow
def test_a_run_resumes_at_an_earlier_checkpoint_as_the_error_advises(copy, run):
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    (copy / "last_checkpoint.json").write_text(f'{{"step": {STEPS - 1}}}')
    assert launch("train", f"--workdir={copy}") == 0
    assert losses(copy) == losses(run)
    assert json.loads((copy / "last_checkpoint.json").read_text())["step"] == STEPS


@pytest.mark.parametrize("text", ["[]", '{"step": "4"}', '{"step": -1}', '{"step": true}', "{", ""])
def test_a_damaged_record_of_the_last_checkpoint_is_named(text, copy, capsys):
    (copy / "last_checkpoint.json").write_text(text)
    assert launch("train", f"--workdir={copy}") == 2
    assert "last_checkpoint.json is damaged" in error_of(capsys)


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"step": "x", "changes_numbers": [], "fields": {}}', '{"step": 1}', "\udcff"]
)
def test_a_damaged_record_of_changes_is_named(text, copy):
    (copy / "config_changes.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"config_changes\.jsonl: line 1 is damaged"):
        Workdir(copy).read_config_changes()


STORED = [
    "[]",
    "3",
    '{"train": {"steps": "many"}}',
    '{"seed": 0, "tra',
    "[" * 100_000,
    '{"parts": {"a/b": {}}}',
    "\udcff",
]


@pytest.mark.parametrize("text", STORED, ids=range(len(STORED)))
def test_a_damaged_config_is_named(text, copy, tmp_path, capsys):
    (copy / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    (copy / "failed").mkdir()
    for verb, *flags in (["train"], ["sample", f"--out={tmp_path}/x.png"], ["replay"]):
        assert launch(verb, f"--workdir={copy}", *flags) == 2
        assert f"{copy}/config.json: is" in error_of(capsys)


def test_a_stored_config_that_no_model_can_be_built_from_is_named(copy):
    stored = json.loads((copy / "config.json").read_text())
    stored["model"]["width"] = "wide"
    (copy / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"config\.json: no model can be built from it"):
        diffjax.load(copy)


@pytest.mark.slow
def test_damaged_lines_of_metrics_are_dropped_on_resumption(copy, run, capsys):
    with (copy / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": null}\n{"step": 3, "loss": \xff}\n')
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    (copy / "last_checkpoint.json").write_text(f'{{"step": {STEPS - 1}}}')
    assert launch("train", f"--workdir={copy}") == 0
    assert "2 damaged lines dropped" in capsys.readouterr().err
    assert losses(copy) == losses(run)


DAMAGED = {"cut": b"PK\x03\x04", "text": b"batch", "empty": b"", "an array": None, "other arrays": {"x": np.zeros(3)}}


@pytest.mark.parametrize("damaged", DAMAGED)
def test_a_damaged_batch_of_a_failed_step_is_named(damaged, copy, capsys):
    shutil.copytree(copy / "checkpoints", copy / "failed")
    content, path = DAMAGED[damaged], copy / "failed" / "batch.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        with path.open("wb") as file:
            np.save(file, np.zeros(3)) if content is None else np.savez(file, **content)
    assert launch("replay", f"--workdir={copy}") == 2
    assert f"{path}: is damaged" in error_of(capsys)


FILES = ["metrics.jsonl", "tokenizer.json", "config_changes.jsonl", "last_checkpoint.json", ".lock"]
FOLDERS = ["samples", "checkpoints", "results", "events", "failed", "samples/step_00000006.png"]


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_training_does_not_write_through_links_out_of_the_run(name, copy, tmp_path, capsys):
    target, link = tmp_path / "target", copy / name
    target.write_text('{"step": 6}\n') if name in FILES else target.mkdir()
    if link.is_dir():
        link.rename(target / "moved")
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    if name == "checkpoints":
        (copy / "last_checkpoint.json").write_text('{"step": 0}')
    before = contents(tmp_path)
    assert launch("train", f"--workdir={copy}", "--config.train.steps=7") == 2
    assert f"{link}: is a symbolic link to {target}, outside of the run" in error_of(capsys)
    assert contents(tmp_path) == before


def test_a_lock_that_is_a_link_within_the_run_is_not_followed(copy, capsys):
    (copy / ".lock").unlink()
    (copy / ".lock").symlink_to("metrics.jsonl")
    before = (copy / "metrics.jsonl").read_bytes()
    assert launch("train", f"--workdir={copy}", "--config.train.steps=7") == 2
    assert "must be a regular file" in error_of(capsys)
    assert (copy / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "errors", [pytest.param(subprocess.DEVNULL, marks=pytest.mark.slow), subprocess.STDOUT], ids=["stdout", "both"]
)
def test_a_closed_output_does_not_stop_training(errors, config, tmp_path):
    """Tests the exit of a reader, as in `train | head -1`."""
    path = tmp_path / "run"
    training = running.process(config, path, stderr=errors)
    training.stdout.readline()
    training.stdout.close()
    assert training.wait(timeout=200) == 0
    assert [step for step, _ in losses(path)] == list(range(1, STEPS + 1))
    assert Workdir(path).last_step() == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_repeated_signal_still_saves_a_checkpoint(number, config, tmp_path):
    training = running.process(config, tmp_path, "--config.train.steps=100000", "--config.train.checkpoint_every=0")
    running.wait_for_step(tmp_path, 3, training)
    training.send_signal(number)
    time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        training.send_signal(number)
    printed = training.communicate(timeout=60)[0]
    assert training.returncode == 128 + number, printed
    assert Workdir(tmp_path).last_step() == running.steps(tmp_path)[-1]["step"]


@pytest.mark.slow
def test_a_run_moved_during_training_stops_and_resumes_in_its_new_folder(config, run, tmp_path):
    path, moved = tmp_path / "run", tmp_path / "moved"
    training = running.process(config, path, "--config.train.steps=100000")
    running.wait_for_step(path, 2, training)
    os.rename(path, moved)
    printed = training.communicate(timeout=60)[0]
    assert training.returncode == 2, printed
    errors = [line for line in printed.splitlines() if "error: " in line]
    assert len(errors) == 1 and f"--workdir={path}: the folder was moved or replaced" in errors[0]
    assert [child.name for child in path.glob("*")] in ([], ["checkpoints"])  # from a save in progress
    there = Workdir(moved).last_step() or 0
    assert launch("train", f"--workdir={moved}", f"--config.train.steps={there + 2}") == 0
    assert [step for step, _ in losses(moved)] == list(range(1, there + 3))
    shared = min(there, STEPS)
    np.testing.assert_allclose(losses(moved)[:shared], losses(run)[:shared], rtol=1e-5)  # compiled with other flags
