"""`launch.py reproduce`: killed and resumed, and refused arguments."""

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
from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Scale, steps
RATES = {{"low": {{"train.learning_rate": 1e-3}}, "huge": {{"train.learning_rate": 1e30, "train.clip_norm": 0.0}}}}
EXPERIMENT = Experiment(
    title="Tiny", source="nobody", claim="none", column_axis="steps",
    axes=[Axis("rate", RATES), steps(2, 3, 4)],
    measures=[Measure("fd_pixels")],
    orderings=[Ordering(claim="more steps are better", order=[{{"steps": "4"}}, {{"steps": "2"}}])],
    scales={{"smoke": Scale(config={config!r}, duration="seconds", num=12),
            "paper": Scale(config="configs/ddpm_cifar10.py", duration="days", num=12),
            "fid": Scale(config={config!r}, duration="seconds", num=12, measures=[Measure("fid")])}},
)
"""


def launch(*arguments):
    return cli.main(["launch.py", "reproduce", *map(str, arguments)])


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reproduce")
    config = tiny.write(folder / "config.py", train__num_preview_samples=0, sampler__guidance=1.0)
    path = folder / "tiny.py"
    path.write_text(FILE.format(config=str(config)))
    return path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_experiment_resumes_to_the_same_results(experiment, tmp_path):
    """SIGKILL after the first cell leaves no process running, and the same command computes the other cells."""

    def entries(root):
        return json.loads((root / "tiny_smoke" / "results.json").read_text())["entries"]

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
    time.sleep(2)  # its worker notices that it has ended
    before = sorted(killed.glob("cells/*.json"))
    time.sleep(1)
    assert before == sorted(killed.glob("cells/*.json")), "the worker still runs"
    resumed = subprocess.run(command, cwd=tiny.ROOT, env=environment, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert "6 of 6 cells, 3 failed" in resumed.stdout
    fresh = subprocess.run([*command[:-1], f"--workdir={whole}"], cwd=tiny.ROOT, env=environment, check=False)
    assert fresh.returncode == 0
    assert entries(killed) == entries(whole)
    report = (whole / "tiny_smoke" / "report.md").read_text()
    assert "| huge | failed | failed | failed |" in report
    assert "grad_norm" in report or "loss = nan" in report


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_is_recorded_and_the_others_continue(experiment, tmp_path):
    """The worker gets SIGKILL, as from the kernel when memory runs out; the experiment does not."""
    command = [sys.executable, "launch.py", "reproduce", f"--experiment={experiment}", f"--workdir={tmp_path}"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    process = subprocess.Popen(command, cwd=tiny.ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("logs/*.log")):  # the first worker has started
        assert process.poll() is None
        time.sleep(0.02)
    for child in children(process.pid):
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
    output, _ = process.communicate()
    assert process.returncode == 0
    results = json.loads((tmp_path / "tiny_smoke" / "results.json").read_text())
    assert [error for labels, error in results["errors"].items() if "low" in labels] == 3 * [
        "the process was killed, probably out of memory: use a smaller train.batch_size or --batch_size"
    ]
    assert all(
        "nan" in error or "grad_norm" in error for labels, error in results["errors"].items() if "huge" in labels
    )
    assert "6 of 6 cells, 6 failed" in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale=large"], "unknown scale 'large': choose from fid, paper, smoke"),
        (["--executor=cloud"], "choose from local, slurm"),
        (["--executor=slurm", "--slurm=gpu"], "must be NAME=VALUE"),
        (["--slurm=partition=gpu"], "--slurm=partition=gpu: requires --executor=slurm"),
        (["--retry", "--report_only"], "--retry: is not supported with --report_only"),
        (["--results=results.json"], "has no effect with --results"),
        (["--scale=paper"], "data.dir is not set: cifar10 is read from disk"),
        (["--scale=fid"], "pass --inception=FILE"),
        (["--scale=fid", "--inception=/nowhere.pth"], "--inception=/nowhere.pth: no such file"),
        (["--scale=paper", "--data_dir=/nowhere"], "cifar10 is not prepared in /nowhere"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_trained(flags, message, experiment, tmp_path, capsys):
    assert launch(f"--experiment={experiment}", f"--workdir={tmp_path / 'w'}", *flags) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert not (tmp_path / "w" / "runs").exists()


def test_a_missing_file(tmp_path, capsys):
    assert launch("--experiment=experiments/none.py", f"--workdir={tmp_path}") == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_slurm_jobs_run_through_submitit(experiment, tmp_path, monkeypatch):
    """Runs the jobs with submitit's local executor instead of Slurm."""
    import submitit  # noqa: F401  # at its first import it closes pytest's stream, if absl logs to that

    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.chdir(tiny.ROOT)
    flags = ["--executor=slurm", "--slurm=cluster=local,timeout_min=10"]
    assert launch(f"--experiment={experiment}", f"--workdir={tmp_path}", *flags) == 0
    results = json.loads((tmp_path / "tiny_smoke" / "results.json").read_text())
    assert len(results["errors"]) == 3
    values = [value for entry in results["entries"] for value in entry["values"]]
    assert len(values) == 6
    assert values.count(None) == 3
