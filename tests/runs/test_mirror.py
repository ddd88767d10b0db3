"""Runs and data at URLs, on fsspec's file system in memory and on a local server of S3."""

import collections
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import fsspec
import jax
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from ml_collections import ConfigDict
from PIL import Image

import diffjax
from diffjax import cli, remote
from diffjax.cluster import multihost
from diffjax.data.sources import open_dataset
from diffjax.errors import UserError
from diffjax.remote import RemoteError
from diffjax.runs import mirror
from diffjax.runs.checkpoint_files import find_damage, list_steps, write_manifest
from diffjax.runs.config_files import load_file
from diffjax.runs.run_copy import RunCopy
from diffjax.runs.workdir import Workdir
from diffjax.training.resume import check_complete
from diffjax.training.train import train as train_config
from tests import running, tiny

URL = "memory://bucket/exp/run"
WRITES = ("put_file", "pipe_file", "rm_file")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Returns a function that replaces the local disk, as on another machine; the files at URLs stay."""

    def use(name: str):
        monkeypatch.setenv("DIFFJAX_CACHE", str(tmp_path / name))
        mirror._opened.clear()
        return tmp_path / name

    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(mirror, "_POLL_INTERVAL", 0.01)
    use("first")
    return use


def remote_files() -> dict[str, bytes]:
    files = fsspec.filesystem("memory")
    start = "/bucket/exp/run/"
    return {path.removeprefix(start): files.cat_file(path) for path in files.find(start)}


def write_checkpoint(folder, step: int, *, part: str = "") -> None:
    """Writes the files of a run at a checkpoint of small arrays; checkpoints before the last two are deleted."""
    folder = folder / part
    checkpoint = folder / "checkpoints" / str(step)
    for name in ("variables", "ema"):
        (checkpoint / name / "d").mkdir(parents=True)
        (checkpoint / name / "d" / f"array{step}").write_bytes(f"{name} of {step} {part}".encode() * 10)
        (checkpoint / name / "_METADATA").write_text("{}")
    write_manifest(checkpoint)
    for old in list_steps(folder / "checkpoints")[:-2]:
        shutil.rmtree(folder / "checkpoints" / str(old))
    (folder / "config.json").write_text(json.dumps({"train": {"keep_last": 2, "keep_every": 0}}))
    (folder / "last_checkpoint.json").write_text(json.dumps({"step": step}))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step}) + "\n")


def train(*steps: int, part: str = ""):
    """Trains a run of small files to each step; uploads once at the end."""
    folder = Workdir(URL).path
    with mirror.mirror_of(folder).training():
        for step in steps:
            write_checkpoint(folder, step, part=part)


def check_run(steps: set[int]) -> int:
    """Checks that the run at the URL, downloaded to this machine, is consistent. Returns its newest step."""
    folder = Workdir(URL).path
    found = list_steps(folder / "checkpoints")
    assert found and {*found} <= steps
    for step in found:
        assert find_damage(folder / "checkpoints" / str(step)) is None
    assert json.loads((folder / "last_checkpoint.json").read_text())["step"] <= found[-1]
    assert (folder / "config.json").exists()
    return found[-1]


def test_url_of():
    assert remote.url_of("gs://bucket/run/") == "gs://bucket/run"
    assert remote.url_of("s3:/bucket/run") == "s3://bucket/run"  # as pathlib writes it
    assert remote.url_of("runs/digits") is remote.url_of("pretrained:digits") is remote.url_of("/a:/b") is None


def test_resume(machine, trained_runs):
    """A run that was copied to a URL is resumed there, and then loaded on another machine."""
    local, files = trained_runs("pixel"), fsspec.filesystem("memory")
    files.put(str(local), "/bucket/exp/run", recursive=True)
    files.rm("/bucket/exp/run/checkpoints/4", recursive=True)
    files.pipe_file("/bucket/exp/run/last_checkpoint.json", b'{"step": 2}')
    assert cli.main(["launch.py", "train", f"--workdir={URL}"]) == 0
    assert not any("tmp" in path for path in remote_files())
    machine("second")
    run, expected = diffjax.load(URL), diffjax.load(local)
    assert run.step == 4 and repr(run) == repr(expected).replace(str(local), URL)
    jax.tree.map(np.testing.assert_array_equal, run.variables, expected.variables)
    assert running.steps(run.workdir.path) == running.steps(local)
    assert list_steps(run.workdir.checkpoints) == [4]


@pytest.mark.slow
def test_train_resume_and_sample(machine, trained_runs, tmp_path, capsys):
    """A run is trained, resumed and sampled on three machines; all numbers are those of a run on one disk."""
    config, local = f"--config={trained_runs.config('pixel')}", trained_runs("pixel")
    assert cli.main(["launch.py", "train", config, f"--workdir={URL}", "--config.train.steps=2"]) == 0
    assert f"sample --workdir={URL}" in capsys.readouterr().out
    machine("second")
    assert cli.main(["launch.py", "train", config, f"--workdir={URL}"]) == 0
    copy = Workdir(URL).path
    assert running.steps(copy) == running.steps(local)
    assert running.state_arrays(copy, 4) == running.state_arrays(local, 4)
    machine("third")
    images = []
    for run in (URL, local):
        assert cli.main(["launch.py", "sample", f"--workdir={run}", "--num=4", f"--out={tmp_path}/samples.npz"]) == 0
        with np.load(tmp_path / "samples.npz") as stored:
            images.append(stored["images"])
    assert np.array_equal(*images)
    command = ["launch.py", "sample", f"--workdir={URL}"]
    assert cli.main([*command, "--num=4", "--checkpoint=2"]) == 0
    assert "samples/sample_0001.png" in remote_files()
    assert cli.main([*command, "--checkpoint=3"]) == 2
    assert f"no checkpoint of step 3 in {URL}/checkpoints; choose from 2, 4" in capsys.readouterr().err
    sweep = ["launch.py", "sweep", f"--workdir={URL}", "--num=4", "--steps=2,4", "--metrics=fd_pixels"]
    assert cli.main(sweep) == 0
    machine("fourth")
    assert cli.main(sweep) == 0
    assert "2 of 2 cells are in" in capsys.readouterr().out  # those of the other machine


def test_old_checkpoints_are_deleted_as_in_the_copy(machine):
    for i, step in enumerate((1, 2, 3, 4)):
        machine(f"machine {i}")
        train(step)
    machine("reader")
    assert check_run({3, 4}) == 4
    assert {path.split("/")[1] for path in remote_files() if path.startswith("checkpoints/")} == {"3", "4"}


def test_parts(machine):
    train(5, part="codec")
    train(7)
    machine("second")
    check_run({7})
    part = Workdir(Workdir(URL).path / "codec")
    assert list_steps(part.checkpoints) == [5] and part.name == f"{URL}/codec"
    assert Workdir(Path(URL)).path == part.path.parent  # as config fields that name a run are read
    assert mirror.resolve(part.path) == part.path  # a path that messages show
    mirror.forget()
    assert Workdir(part.path).name == f"{URL}/codec"


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_new_machine", [True, False])
def test_interrupted_upload(machine, monkeypatch, is_new_machine, every):
    """The process or its machine is lost at each write of an upload in turn: the run is at one of its checkpoints."""
    train(1, 2)
    before = dict(MemoryFileSystem.store)
    steps = []
    for count in range(0, 1000, every):
        MemoryFileSystem.store.clear()
        MemoryFileSystem.store.update(before)
        machine(f"first {count}")
        done = killed_after(count, monkeypatch, lambda: train(3))
        machine(f"{'second' if is_new_machine else 'first'} {count}")
        steps.append(check_run({1, 2, 3}))
        train(3 if steps[-1] == 2 else 4)
        machine(f"reader {count}")
        assert check_run({2, 3, 4}) == max(3, steps[-1] + 1)
        files = {path.split("/")[1] for path in remote_files() if path.startswith("checkpoints/")}
        assert len(files) == 2, (count, files)
        if done:
            break
    assert steps[0] == (2 if is_new_machine else steps[0]) and steps[-1] == 3 and len(steps) > 10 / every


def test_interrupted_first_upload(machine, monkeypatch):
    """The machine is lost at each write of the first upload in turn: another one may begin or resume the run."""
    for count in range(100):
        MemoryFileSystem.store.clear()
        machine(f"first {count}")
        done = killed_after(count, monkeypatch, lambda: train(1))
        machine(f"second {count}")
        workdir = Workdir(URL)
        check_complete(ConfigDict({"train": {}}), workdir)
        if done:
            break
    assert count > 8 and list_steps(workdir.checkpoints) == [1]


def test_training_continues_during_an_upload(machine, monkeypatch):
    """The record of the newest checkpoint at the URL is never ahead of its checkpoints."""
    monkeypatch.setattr(mirror, "_POLL_INTERVAL", 1e6)
    folder = Workdir(URL).path
    put_file, copy = MemoryFileSystem.put_file, mirror.mirror_of(folder)

    def put_and_save(self, source, path, **options):
        put_file(self, source, path, **options)
        if path.endswith("checkpoints/1/manifest.json"):
            write_checkpoint(folder, 2)

    with copy.training():
        write_checkpoint(folder, 1)
        with monkeypatch.context() as patch:
            patch.setattr(MemoryFileSystem, "put_file", put_and_save)
            copy._upload_run()
        assert json.loads(remote_files()["last_checkpoint.json"]) == {"step": 1}
        assert "checkpoints/2/manifest.json" not in remote_files()
    assert json.loads(remote_files()["last_checkpoint.json"]) == {"step": 2}


class Killed(BaseException):
    pass


def killed_after(count: int, monkeypatch, act) -> bool:
    """Calls `act`, in which all writes after the first `count` raise. Returns whether it ended before."""
    lock, writes = threading.Lock(), 0

    def limited(write, counts):
        def act(*arguments, **options):
            nonlocal writes
            with lock:
                writes += counts
                if writes > count:
                    raise Killed
            return write(*arguments, **options)

        return act

    with monkeypatch.context() as patch:
        patch.setattr(RunCopy, "write_record", limited(RunCopy.write_record, 0))
        for name in WRITES:
            patch.setattr(MemoryFileSystem, name, limited(getattr(MemoryFileSystem, name), 1))
        try:
            act()
        except Killed:
            return False
    return True


def failing(monkeypatch, fails):
    """Makes each write to the file system in memory raise if `fails()` of its arguments."""

    def limited(write):
        def act(files, *arguments, **options):
            if fails(*arguments):
                raise ConnectionError("the network is down")
            return write(files, *arguments, **options)

        return act

    for name in WRITES:
        monkeypatch.setattr(MemoryFileSystem, name, limited(getattr(MemoryFileSystem, name)))


def test_every_second_write_of_a_file_fails(machine, monkeypatch, capsys):
    writes, lock = collections.Counter(), threading.Lock()

    def fails(*paths) -> bool:
        with lock:
            writes[paths] += 1
            return writes[paths] % 2 == 1

    failing(monkeypatch, fails)
    train(1, 2)
    machine("second")
    assert check_run({1, 2}) == 2
    assert writes.total() > 20 and not capsys.readouterr().err


def test_training_continues_without_network(machine, monkeypatch, capsys):
    """A failed upload is a note; the next checkpoint is uploaded; at the end it is an error, and can be repeated."""
    down = threading.Event()
    failing(monkeypatch, lambda *_: down.is_set())
    folder = Workdir(URL).path
    with mirror.mirror_of(folder).training():
        down.set()
        write_checkpoint(folder, 1)
        wait_until(lambda: "training continues" in capsys.readouterr().err)
        down.clear()
        write_checkpoint(folder, 2)
        wait_until(lambda: {f"checkpoints/{step}/manifest.json" for step in (1, 2)} <= remote_files().keys())
    down.set()
    mirror.forget()
    with pytest.raises(RemoteError, match="cannot be written"):
        train(3)
    down.clear()
    mirror.forget()
    copy, message = mirror.mirror_of(Workdir(URL).path), rf"{URL}.*network is down.*{folder} has the whole run"
    with pytest.raises(RemoteError, match=message), copy.training():
        write_checkpoint(folder, 3)
        down.set()
    down.clear()
    mirror.forget()
    with mirror.mirror_of(Workdir(URL).path).training():  # the same machine uploads what it has
        pass
    machine("second")
    assert check_run({2, 3}) == 3


def wait_until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise TimeoutError


def test_the_training_that_began_last_owns_the_run(machine, capsys):
    folder = Workdir(URL).path
    first = mirror.mirror_of(folder)
    message = rf"process {os.getpid()} on .* has begun to train"
    with pytest.raises(UserError, match=message), Workdir(URL).locked() as check_place:
        write_checkpoint(folder, 1)
        wait_until(lambda: "checkpoints/1/manifest.json" in remote_files())
        machine("second")
        train(2)
        check_place()
        write_checkpoint(folder, 5)
        wait_until(lambda: first._lost)
        check_place()
    assert "checkpoints/5/manifest.json" not in remote_files()
    machine("third")
    assert check_run({1, 2}) == 2
    machine("first")
    capsys.readouterr()
    assert check_run({1, 2}) == 2
    assert "checkpoints/5 of the copy, not uploaded, is deleted" in capsys.readouterr().err


def test_results_of_two_machines_are_merged(machine):
    train(1)
    folders = []
    for name in ("a", "b"):
        machine(name)
        folders.append(Workdir(URL).path)
    for name, folder in zip(("a", "b"), folders, strict=True):
        machine(name)
        (folder / "results").mkdir()
        (folder / "results/results.jsonl").write_text(f'{{"machine": "{name}"}}\n')
        (folder / "metrics.jsonl").write_text("changed by a verb that does not own the run")
        mirror._opened[URL] = mirror.Mirror(URL)
        mirror.upload_results()
    assert remote_files()["results/results.jsonl"] == b'{"machine": "a"}\n{"machine": "b"}\n'
    assert remote_files()["metrics.jsonl"] == b'{"step": 1}\n'


def test_damage_at_the_url(machine, capsys):
    train(1, 2)
    fsspec.filesystem("memory").pipe_file("/bucket/exp/run/checkpoints/2/ema/d/array2", b"other")
    machine("second")
    assert list_steps(Workdir(URL).checkpoints) == [1]
    assert "checkpoints/2: ema/d/array2 has changed since it was written: the checkpoint is skipped" in (
        capsys.readouterr().err
    )


def test_a_deleted_copy_is_not_a_deleted_run(machine):
    train(1)
    before = remote_files()
    copy = mirror.mirror_of(Workdir(URL).path)
    with pytest.raises(RemoteError, match="was deleted during the command"), copy.training():
        shutil.rmtree(copy.folder)
    assert {**remote_files(), ".owner.json": None} == {**before, ".owner.json": None}
    assert check_run({1}) == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"sample --workdir={URL}", f"{URL} is not a run"),
        ("train --workdir=unknown://bucket/run", "Protocol not known: unknown.*name a local folder"),
        ("train --workdir=file:///runs/x", "name it without file://"),
        (f"reproduce --workdir={URL}", "must be a local path for reproduce"),
        (f"demo --workdir=runs/x,{URL}", "must be a local path for demo"),
        (f"sample --workdir=runs/x --out={URL}/x.png", "--out=.*must be a local path"),
        (f"evaluate --workdir=runs/x --reference={URL}/x.npz", "--reference=.*must be a local path"),
    ],
)
def test_refused_in_one_line(machine, capsys, command, message):
    assert cli.main(["launch.py", *command.split()]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_several_processes_are_refused(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(multihost, "is_single_process", lambda: False)
    with pytest.raises(UserError, match=rf"--workdir={URL}: is only supported with one process; choose a folder"):
        train_config(load_file(str(tiny.write(tmp_path / "config.py"))), Workdir(URL))


def test_paths_that_lead_out_of_the_copy_are_ignored(machine):
    train(1)
    files = fsspec.filesystem("memory")
    files.pipe_file("/bucket/exp/run/../../outside", b"x")
    machine("second")
    assert check_run({1}) == 1 and not list(mirror._opened[URL].folder.parent.rglob("outside"))


def test_missing_package(machine, monkeypatch):
    def import_s3fs(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", import_s3fs)
    with pytest.raises(UserError, match=r"Install s3fs to access S3.*pip install 'diffjax\[remote\]'"):
        Workdir("s3://bucket/run")


def test_image_folder(machine, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(6):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    files = fsspec.filesystem("memory")
    files.put(str(tmp_path / "images"), "/bucket/images", recursive=True)
    options = {"split": "train", "image_size": 8}
    expected = open_dataset("folder", directory=str(tmp_path / "images"), **options)
    source = open_dataset("folder", directory="memory://bucket/images", **options)
    assert "6 files" in capsys.readouterr().err
    for i in range(6):
        assert np.array_equal(source[i]["image"], expected[i]["image"])
        assert source[i]["label"] == expected[i]["label"]
    files.rm("/bucket/images", recursive=True)  # later uses read the copy
    assert len(open_dataset("folder", directory="memory://bucket/images", **options)) == 6
    with pytest.raises(UserError, match=r"data\.dir=memory://bucket/other: has no files"):
        open_dataset("folder", directory="memory://bucket/other", **options)


def test_only_the_set_of_tensorflow_datasets_is_copied(machine):
    files = fsspec.filesystem("memory")
    for name in ("mnist/1.0.0/a", "mnist/1.0.0/b", "imagenet/1.0.0/c"):
        files.pipe_file(f"/bucket/sets/{name}", b"x")
    folder = remote.local_data("memory://bucket/sets", "mnist")
    assert sorted(path.name for path in Path(folder).rglob("*") if path.is_file()) == ["a", "b"]


@pytest.fixture
def s3(monkeypatch):
    """Serves S3 on this machine; returns the URL of a bucket."""
    pytest.importorskip("s3fs", reason="needs s3fs: pip install -e '.[remote]'")
    pytest.importorskip("flask", reason="needs pip install 'moto[server]'")
    server = pytest.importorskip("moto.server", reason="needs pip install 'moto[server]'")
    running_server = server.ThreadedMotoServer(port=0)
    running_server.start()
    host, port = running_server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    running_server.stop()


@pytest.mark.slow
def test_killed_on_s3(s3, machine, tmp_path):
    """A process that trains with a URL of S3 is killed, and another machine resumes it to the same bits."""
    config = tiny.write(
        tmp_path / "config.py",
        model=tiny.DIT,
        parallel__num_devices=1,
        train__steps=12,
        train__checkpoint_every=1,
        train__num_preview_samples=0,
    )
    expected = tmp_path / "local"
    running.process(config, expected).communicate()
    process = running.process(config, f"{s3}/run")
    files = fsspec.filesystem("s3")
    for _ in range(3000):
        files.invalidate_cache()
        if files.exists("bucket/run/checkpoints") or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    machine("second")
    stopped = list_steps(Workdir(f"{s3}/run").checkpoints)
    assert not stopped or stopped[-1] < 12
    resumed = running.process(config, f"{s3}/run")
    assert "trained to step 12" in resumed.communicate()[0]
    machine("third")
    copy = Workdir(f"{s3}/run").path
    assert running.steps(copy) == running.steps(expected)
    assert running.state_arrays(copy, 12) == running.state_arrays(expected, 12)
