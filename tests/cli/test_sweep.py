"""`launch.py sweep`: cells, columns, results on disk, and interruptions."""

import collections
import errno
import re
import signal
import time

import pytest

from diffjax import io
from diffjax.evaluation import plots
from diffjax.evaluation.samples import Measurer
from diffjax.inference.sampler_runner import SampleRunner
from tests.command_line import launch, results


def cells(workdir) -> list[dict]:
    return results(workdir, "sweep")["cells"]


def sweep(workdir, *flags) -> int:
    return launch("sweep", f"--workdir={workdir}", "--batch_size=8", *flags)


def test_sweep(workdir, capsys):
    flags = ["--steps=2,4", "--eta=0,1,hat", "--guidance=1,2", "--num=16"]
    assert sweep(workdir, *flags) == 0
    result = results(workdir, "sweep")
    assert result["compilations"] == 1 and result["complete"]
    assert len(result["cells"]) == 12
    assert {(c["steps"], c["eta"], c["sigma_hat"], c["guidance"]) for c in result["cells"]} == {
        (s, e, h, g) for s in (2, 4) for e, h in ((0.0, False), (1.0, False), (1.0, True)) for g in (1.0, 2.0)
    }
    for cell in result["cells"]:
        assert 0 <= cell["classifier_accuracy"] <= 1 and cell["fd_pixels"] > 0 and cell["not_finite"] == 0
        is_reference = cell["steps"] == 4
        assert (cell["rms_to_finest_grid"] is None) == is_reference
        errors = cell["standard_errors"]
        assert errors["fd_pixels"] > 0 and errors["classifier_accuracy"] > 0
        assert (errors["rms_to_finest_grid"] is None) == is_reference
    # The program compiles once, in the cell that is sampled first, which has the most steps.
    compiled = [cell for cell in result["cells"] if cell["compile_seconds"] > 0]
    assert [(cell["steps"], cell["eta"]) for cell in compiled] == [(4, 0.0)]
    assert result["compile_seconds"] == compiled[0]["compile_seconds"] > 0
    assert result["git"] is not None and result["command"]
    held_out = result["reference"]["classifier_held_out_accuracy"]
    real = result["baselines"]["classifier_accuracy"]["real"]
    assert real["value"] == held_out > 0.9 and real["standard_error"] > 0
    (warning,) = result["warnings"]
    assert "16 samples of 64 features" in warning
    assert (workdir / "results" / "sweep.png").stat().st_size > 10_000
    captured = capsys.readouterr()
    assert "1 compilation(s) of the sampler" in captured.out
    assert captured.err.count("16 samples of 64 features") == 1


def test_sampling_time_excludes_compilation(workdir, monkeypatch):
    compile_sampler = SampleRunner.compile

    def slowly(runner, *arguments):
        time.sleep(2)
        compile_sampler(runner, *arguments)

    monkeypatch.setattr(SampleRunner, "compile", slowly)
    assert sweep(workdir, "--steps=2,4", "--num=8", "--metrics=fd_pixels") == 0
    first, second = sorted(cells(workdir), key=lambda cell: -cell["steps"])
    assert first["compile_seconds"] > 2 and second["compile_seconds"] == 0
    assert max(first["seconds"], second["seconds"]) < 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_keeps_its_finished_cells(workdir, monkeypatch, capsys, number):
    before = signal.getsignal(signal.SIGTERM)
    measure, calls = Measurer.__call__, iter(range(2))

    def interrupted(measurer, *arguments):
        if next(calls, None) is None:
            signal.raise_signal(number)
        return measure(measurer, *arguments)

    monkeypatch.setattr(Measurer, "__call__", interrupted)
    assert sweep(workdir, "--steps=1,2,4", "--num=8", "--metrics=fd_pixels") == 128 + number
    assert [cell["steps"] for cell in cells(workdir)] == [2, 4]
    assert results(workdir, "sweep")["complete"] is False
    captured = capsys.readouterr()
    assert "stopped after 2 of 3 cells" in captured.err and captured.out.count("fd_pixels") == 2  # both tables
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_does_not_stop_a_sweep(workdir, monkeypatch, capsys):
    """The results are written again after the next cell; the file on disk is always complete."""
    path, write, calls = workdir / "results" / "sweep.json", io.write_json, iter(range(10))
    numbers_of_cells = []

    def full_at_times(target, value, **options):
        numbers_of_cells.append(len(value["cells"]))
        if next(calls) in (1, 2):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        write(target, value, **options)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io, "write_json", full_at_times)
    flags = ["--steps=1,2,3,4", "--num=8", "--metrics=fd_pixels"]
    assert sweep(workdir, *flags) == 0
    assert numbers_of_cells == [1, 2, 3, 4] and len(cells(workdir)) == 4
    error = capsys.readouterr().err
    assert error.count(f"warning: {path}: cannot be written (No space left on device)") == 2

    path.unlink()
    monkeypatch.setattr(io, "write_json", full)
    assert sweep(workdir, *flags) == 2
    captured = capsys.readouterr()
    assert f"error: {path}: cannot be written" in captured.err.splitlines()[-1] and not path.exists()
    assert re.search(r"4 +\d.*±", captured.out)  # a row of the table


def test_a_plot_that_fails_leaves_the_results(workdir, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(plots, "sweep", full)
    assert sweep(workdir, "--steps=1,4", "--num=8", "--metrics=fd_pixels") == 2
    assert "fd_pixels" in capsys.readouterr().out and len(cells(workdir)) == 2


def test_guidance_settings_share_a_compilation(workdir, classifier, capsys):
    """Without --steps, cells have the number of steps of the config."""
    flags = ["--guidance=1,w1", "--guidance_high=1,inf", "--guidance_rescale=0.5", f"--classifier={classifier}"]
    flags += ["--classifier_scale=0,2", f"--weak={workdir}", "--threshold=clip", "--num=8", "--metrics=fd_pixels"]
    assert sweep(workdir, *flags) == 0
    result = results(workdir, "sweep")
    assert result["compilations"] == 1 and len(result["cells"]) == 8
    assert result["guides"] == {"classifier": str(classifier), "weak": str(workdir)}
    assert {(cell["steps"], cell["guidance"]) for cell in result["cells"]} == {(4, 1.0), (4, 2.0)}


@pytest.mark.slow
def test_each_sampler_compiles_once(workdir):
    """Options that a sampler does not take are left out for it, and equal cells are sampled once."""
    flags = ["--sampler=ddim,ancestral,edm(churn=2),edm(churn=0)", "--eta=0,1", "--steps=2,4", "--grid=karras,leading"]
    assert sweep(workdir, *flags, "--num=10") == 0
    assert results(workdir, "sweep")["compilations"] == 3
    counted = collections.Counter(cell["name"] for cell in cells(workdir))
    assert counted == {"ddim": 8, "ancestral": 4, "edm(churn=2)": 4, "edm(churn=0)": 4}
    assert all(("eta" in cell) == (cell["name"] == "ddim") for cell in cells(workdir))


@pytest.mark.slow
def test_time_grids_with_their_own_number_of_steps(workdir):
    assert sweep(workdir, "--grid=sections(3,2),times(20,10,5)", "--num=10") == 0
    assert [cell["steps"] for cell in cells(workdir)] == [5, 3]
