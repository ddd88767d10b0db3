"""`launch.py reproduce` from the command line: killed and continued, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diffjax import cli
from tests import tiny

FILE = """
from diffjax.experiment import Axis, Experiment, Measure, Ordering, Scale, steps
RATES = {{"low": {{"train.learning_rate": 1e-3}}, "huge": {{"train.learning_rate": 1e30, "train.clip_norm": 0.0}}}}
EXPERIMENT = Experiment(
    title="Tiny", source="nobody", claim="none", across="steps",
    axes=[Axis("rate", RATES), steps(2, 3, 4)],
    measures=[Measure("fd_pixels")],
    orderings=[Ordering("more steps are better", [{{"steps": "4"}}, {{"steps": "2"}}])],
    scales={{"smoke": Scale({config!r}, "seconds", num=12),
            "paper": Scale("configs/ddpm_cifar10.py", "days", num=12),
            "fid": Scale({config!r}, "seconds", num=12, measures=[Measure("fid")])}},
)
"""


def launch(*arguments):
    return cli.main(["launch.py", "reproduce", *map(str, arguments)])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    config = tiny.write(folder / "config.py", train__sample_count=0, sampler__guidance=1.0)
    path = folder / "tiny.py"
    path.write_text(FILE.format(config=str(config)))
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_experiment_continues_to_the_same_table(experiment, tmp_path):
    """SIGKILL as soon as the first cell is there; nothing is left running, and the rest is done by the same command."""

    def figures(root):
        return json.loads((root / "tiny_smoke" / "results.json").read_text())["figures"]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "launch.py", "reproduce", f"--experiment={experiment}", f"--workdir={killed}"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.Popen(
        command, cwd=tiny.ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(killed.glob("cells/*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)  # for its worker to see that it is gone
    before = sorted(killed.glob("cells/*.json"))
    time.sleep(1)
    assert before == sorted(killed.glob("cells/*.json")), "the worker goes on"
    again = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "6 of 6 cells, 3 failed" in again.stdout
    fresh = subprocess.run([*command[:-1], f"--workdir={whole}"], cwd=tiny.ROOT, env=environment, check=False)
    assert fresh.returncode == 0
    assert figures(killed) == figures(whole)
    report = (whole / "tiny_smoke" / "report.md").read_text()
    assert "| huge | failed | failed | failed |" in report
    assert "grad_norm" in report or "loss = nan" in report


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


@pytest.mark.timeout(900)
def test_a_process_that_is_killed_is_recorded_and_the_others_go_on(experiment, tmp_path):
    """As the kernel does where memory runs out: SIGKILL for the worker, not for the experiment."""
    command = [sys.executable, "launch.py", "reproduce", f"--experiment={experiment}", f"--workdir={tmp_path}"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.Popen(command, cwd=tiny.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("logs/*.log")):  # the first unit has begun
        assert process.poll() is None
        time.sleep(0.02)
    for child in children(process.pid):
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
    said, _ = process.communicate()
    assert process.returncode == 0
    results = json.loads((tmp_path / "tiny_smoke" / "results.json").read_text())
    assert [error for labels, error in results["errors"].items() if "low" in labels] == 3 * [
        "the process was killed, most likely for want of memory: use a smaller train.batch_size or --batch_size"
    ]
    assert all(
        "nan" in error or "grad_norm" in error for labels, error in results["errors"].items() if "huge" in labels
    )
    assert "6 of 6 cells, 6 failed" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale=large"], "unknown scale 'large': choose from fid, paper, smoke"),
        (["--executor=cloud"], "choose from local, slurm"),
        (["--executor=slurm", "--slurm=gpu"], "write NAME=VALUE"),
        (["--slurm=partition=gpu"], "--slurm=partition=gpu: requires --executor=slurm"),
        (["--retry", "--report_only"], "--retry: is not supported with --report_only"),
        (["--results=results.json"], "has no effect with --results"),
        (["--scale=paper"], "cifar10 is read from disk and no directory is set"),
        (["--scale=fid"], "give --inception=FILE"),
        (["--scale=fid", "--inception=/nowhere.pth"], "--inception=/nowhere.pth: no such file"),
        (["--scale=paper", "--data_dir=/nowhere"], "cifar10 is not prepared in /nowhere"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_trained(flags, message, experiment, tmp_path, capsys):
    assert launch(f"--experiment={experiment}", f"--workdir={tmp_path / 'w'}", *flags) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "w" / "runs").exists()


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert launch("--experiment=experiments/none.py", f"--workdir={tmp_path}") == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_slurm_is_submitit(experiment, tmp_path, monkeypatch):
    """Runs the jobs by submitit's local executor in the place of Slurm."""
    import submitit  # noqa: F401  # at its first import it closes pytest's stream, if absl logs to that

    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.chdir(tiny.ROOT)
    flags = ["--executor=slurm", "--slurm=cluster=local,timeout_min=10"]
    assert launch(f"--experiment={experiment}", f"--workdir={tmp_path}", *flags) == 0
    results = json.loads((tmp_path / "tiny_smoke" / "results.json").read_text())
    assert len(results["errors"]) == 3
    values = [value for figure in results["figures"] for value in figure["values"]]
    assert len(values) == 6
    assert values.count(None) == 3
