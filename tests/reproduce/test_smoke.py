"""Every experiment at its smallest scale: minutes each, so only with `-m slow`. They share a workdir, as users' may."""

import json
import subprocess
import sys

import pytest

from tests import tiny

FILES = sorted(path.stem for path in (tiny.ROOT / "experiments").glob("*.py"))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", FILES)
def test_an_experiment_runs_and_reports(name, workdir):
    flags = [f"--experiment=experiments/{name}.py", f"--workdir={workdir}", "--scale=smoke"]
    command = [sys.executable, "launch.py", "reproduce", *flags]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = workdir / f"{name}_smoke"
    results = json.loads((folder / "results.json").read_text())
    assert not results["errors"] or name == "gan_stability"  # where failing is what is measured
    assert all(entry["pending"] == 0 for entry in results["entries"])
    assert any(entry["values"] for entry in results["entries"])
    assert (folder / "report.md").exists() and (folder / "report.html").exists()
