"""Loggers besides metrics.jsonl: what TensorBoard and wandb read equals metrics.jsonl, also after a resume."""

import json
import os
import struct
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from diffjax.errors import UserError
from diffjax.runs.workdir import Workdir
from diffjax.training import loggers
from diffjax.training.logging import MetricsLog
from tests import tiny
from tests.command_line import refused
from tests.running import steps

wandb = pytest.importorskip("wandb")
IMAGE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def events(folder):
    """Yields the values of TensorBoard events: TFRecords of protocol buffers, in the order of the files."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            event = Event.FromString(content[place + 12 : place + 12 + length])
            place += 12 + length + 4  # the length and its checksum, the record, its checksum
            for value in event.summary.value:
                yield event.step, value


def wandb_records(path):
    """Yields the records of a .wandb file: a log of LevelDB, blocks of 32 KiB with records in pieces."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            yield Record.FromString(record)
            record = b""


def history(workdir):
    """Returns the rows of all segments of a run of wandb, as dictionaries."""
    rows = []
    for path in sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb"), key=os.path.getmtime):
        for record in wandb_records(path):
            if record.WhichOneof("record_type") == "history":
                items = ((".".join(item.nested_key) or item.key, item.value_json) for item in record.history.item)
                rows.append({name: json.loads(value) for name, value in items})
    return rows


def log_of(folder, start, name, config=None):
    workdir = Workdir(folder)
    workdir.create()

    def open_logger(last):
        return loggers.open_logger(name, workdir, config or tiny.config(), run_name="tiny", start=start, last=last)

    return MetricsLog(workdir.path, start, open_logger)


def write_two_parts(folder, name):
    """Logs steps 1 to 4, and again from step 3 on, as a run that resumes at its checkpoint of step 2."""
    for start, stop in ((0, 4), (2, 6)):
        with log_of(folder, start, name) as log:
            for step in range(start + 1, stop + 1):
                log.scalars(step, {"loss": 1 / step, "eval/loss": 2 / step, "broken": float("nan")})
            log.image(stop, "samples", IMAGE)
    assert [line["loss"] for line in steps(folder)] == [1 / step for step in range(1, 7)]


def test_tensorboard_events(tmp_path):
    write_two_parts(tmp_path, "tensorboard")
    scalars = [(step, value.tag, value.simple_value) for step, value in events(tmp_path / "events") if value.tag]
    losses = [(step, value) for step, tag, value in scalars if tag == "loss"]
    assert losses == [(step, np.float32(1 / step)) for step in (1, 2, 3, 4, 3, 4, 5, 6)]  # TensorBoard drops 3 and 4
    assert {tag for _, tag, _ in scalars} == {"loss", "eval/loss", "samples"}
    (first, second) = [value.image for _, value in events(tmp_path / "events") if value.tag == "samples"]
    assert (first.height, first.width, first.colorspace) == (6, 9, 3) and first == second


@pytest.mark.slow
def test_wandb_continues_its_run_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "digits")
    loggers.check_logger("wandb")
    write_two_parts(tmp_path, "wandb")
    wandb.teardown()  # its service flushes files after run.finish() has returned
    rows = history(tmp_path)
    assert [row["_step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]  # each once
    for row in rows:
        assert "broken" not in row
        if "loss" in row:
            assert (row["loss"], row["eval/loss"]) == (1 / row["_step"], 2 / row["_step"])
    images = [path for path in (tmp_path / "wandb").rglob("*.png") if "samples" in path.name]
    assert len(images) == 2
    runs = [
        record.run
        for path in (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
        for record in wandb_records(path)
        if record.WhichOneof("record_type") == "run"
    ]
    (run_id,) = {run.run_id for run in runs}
    assert json.loads((tmp_path / "wandb.json").read_text()) == {"id": run_id}
    assert {(run.project, run.display_name) for run in runs} == {("digits", "tiny")}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["train"]["steps"] == 4 and config["sampler"]["guidance_high"] == "Infinity"


def test_without_a_logger_metrics_are_written(tmp_path):
    write_two_parts(tmp_path, "none")
    assert not (tmp_path / "events").exists() and not (tmp_path / "wandb").exists()


def test_unusable_loggers_are_one_line(tmp_path, monkeypatch, capsys):
    config = tiny.write(tmp_path / "config.py")
    command = ("train", f"--config={config}", f"--workdir={tmp_path}/run")
    assert "did you mean 'tensorboard'?" in refused(capsys, *command, "--logger=tensorbord")
    assert "choose from none, tensorboard, wandb" in refused(capsys, *command, "--logger=mlflow")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    assert "run `wandb login`, or set WANDB_MODE=offline" in refused(capsys, *command, "--logger=wandb")

    def unreachable(prompt):
        raise wandb.errors.CommError("Failed to\nauthenticate")

    monkeypatch.setattr(wandb, "login", unreachable)
    assert "Failed to authenticate" in refused(capsys, *command, "--logger=wandb")
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "pip install 'diffjax[wandb]'" in refused(capsys, *command, "--logger=wandb")
    assert not (tmp_path / "run").exists()


def test_a_failure_of_wandb_does_not_end_training(tmp_path, monkeypatch, capsys):
    class Broken:
        dir = "wandb/run/files"

        def log(self, values, step):
            raise BrokenPipeError("the service is gone")

        def finish(self, exit_code):
            raise AssertionError("not called after a failure")

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb, "init", lambda **options: Broken())
    with log_of(tmp_path, 0, "wandb") as log:
        for step in range(1, 4):
            log.scalars(step, {"loss": 1.0})
    assert capsys.readouterr().err == "--logger=wandb: stops (the service is gone); training continues\n"
    assert [line["step"] for line in steps(tmp_path)] == [1, 2, 3]


def test_a_damaged_id_of_wandb_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    (tmp_path / "wandb.json").write_text('{"id": 3}')
    with pytest.raises(UserError, match=r"wandb.json is damaged; restore it, or delete it"):
        log_of(tmp_path, 0, "wandb")
