"""`launch.py sweep`: cells, columns, the results store, and interruptions."""

import collections
import csv
import errno
import os
import re
import signal
import time

import pytest

from diffjax import io
from diffjax.evaluation import plots, provenance
from diffjax.evaluation.samples import Measurer
from diffjax.inference.sampler_runner import SampleRunner
from tests.command_line import entries, launch


@pytest.fixture(autouse=True)
def empty_store(workdir):
    """Starts each test with an empty results store."""
    store(workdir).unlink(missing_ok=True)


def store(workdir):
    return workdir / "results" / "results.jsonl"


def sweep(workdir, *flags) -> int:
    return launch("sweep", f"--workdir={workdir}", "--batch_size=8", *flags)


def values(entry) -> dict:
    return {name: about["value"] for name, about in entry["metrics"].items()}


def by_steps(workdir) -> dict[int, dict]:
    return {entry["settings"]["steps"]: entry for entry in entries(workdir)}


@pytest.fixture
def sampled(monkeypatch):
    """Returns a list that collects the number of steps of each set of samples."""
    steps, sample = [], SampleRunner.__call__

    def recorded(runner, variables, seeds, conditions, settings, **options):
        steps.append(settings.num_steps)
        return sample(runner, variables, seeds, conditions, settings, **options)

    monkeypatch.setattr(SampleRunner, "__call__", recorded)
    return steps


def stop_at(monkeypatch, count: int, number: int = signal.SIGINT) -> None:
    """Raises a signal in the place of measuring another cell, after `count` cells."""
    measure, calls = Measurer.__call__, iter(range(count))

    def interrupted(measurer, *arguments):
        if next(calls, None) is None:
            signal.raise_signal(number)
        return measure(measurer, *arguments)

    monkeypatch.setattr(Measurer, "__call__", interrupted)


def test_sweep(workdir, tmp_path, capsys):
    flags = ["--steps=2,4", "--eta=0,1,hat", "--guidance=1,2", "--num=16", f"--csv={tmp_path}/cells.csv"]
    assert sweep(workdir, *flags) == 0
    cells = entries(workdir)
    assert len(cells) == 12
    assert {tuple(cell["settings"][name] for name in ("steps", "eta", "guidance")) for cell in cells} == {
        (steps, eta, guidance) for steps in (2, 4) for eta in (0.0, 1.0, "hat") for guidance in (1.0, 2.0)
    }
    for cell in cells:
        metrics, is_reference = cell["metrics"], cell["settings"]["steps"] == 4
        assert 0 <= metrics["classifier_accuracy"]["value"] <= 1 and metrics["fd_pixels"]["value"] > 0
        assert all(metrics[name]["standard_error"] > 0 for name in ("fd_pixels", "classifier_accuracy"))
        assert (metrics["rms_to_finest_grid"]["value"] is None) == is_reference
        assert (metrics["rms_to_finest_grid"]["standard_error"] is None) == is_reference
        assert cell["finest"] == {"steps": 4}
        assert cell["sampler"]["sigma_hat"] == (cell["settings"]["eta"] == "hat")
        assert (cell["verb"], cell["num"], cell["seed"], cell["not_finite"]) == ("sweep", 16, 0, 0)
        assert cell["checkpoint"] == 4 and cell["git"] is not None and cell["command"] and cell["device"]
        held_out = cell["reference"]["classifier_held_out_accuracy"]
        real = metrics["classifier_accuracy"]["real"]
        assert real["value"] == held_out > 0.9 and real["standard_error"] > 0
        (warning,) = cell["warnings"]
        assert "16 samples of 64 features" in warning
    # The program compiles once, in the cell that is sampled first, which has the most steps.
    assert [cell["compile_seconds"] > 0 for cell in cells] == [True] + 11 * [False]
    assert (cells[0]["settings"]["steps"], cells[0]["settings"]["eta"]) == (4, 0.0)
    assert (workdir / "results" / "sweep.png").stat().st_size > 10_000
    captured = capsys.readouterr()
    assert "1 compilation(s) of the sampler" in captured.out
    assert captured.err.count("16 samples of 64 features") == 1
    rows = list(csv.DictReader((tmp_path / "cells.csv").open()))
    assert len(rows) == 12
    assert [row["steps"] for row in rows] == 6 * ["2", "4"]  # in the order of the settings
    for row in rows:
        key = [row[name] for name in ("steps", "eta", "guidance")]
        (cell,) = [c for c in cells if [str(c["settings"][name]) for name in ("steps", "eta", "guidance")] == key]
        for name, about in cell["metrics"].items():
            numbers = row[name], row[f"{name}_standard_error"]
            assert numbers == tuple("" if x is None else repr(x) for x in (about["value"], about["standard_error"]))
        assert row["commit"] == cell["git"]["commit"] and row["num"] == "16" and row["date"] == cell["date"]


@pytest.mark.slow
def test_a_stopped_sweep_resumes_to_the_same_results(workdir, monkeypatch, sampled, capsys):
    flags = ["--steps=1,2,4", "--num=8", "--metrics=fd_pixels"]
    assert sweep(workdir, *flags) == 0
    whole, plot = by_steps(workdir), (workdir / "results" / "sweep.png").read_bytes()
    store(workdir).unlink()
    with monkeypatch.context() as patch:
        stop_at(patch, 1)
        assert sweep(workdir, *flags) == 130
    assert by_steps(workdir).keys() == {4}
    with store(workdir).open("a") as file:
        file.write('{"verb": "sweep", "metr')  # torn by a kill
    sampled.clear()
    capsys.readouterr()
    assert sweep(workdir, *flags) == 0
    assert sampled == [4, 2, 1]  # the first again, as the reference of the others
    assert "1 of 3 cells are in" in capsys.readouterr().out
    stored = [io.from_json(line) for line in store(workdir).read_bytes().splitlines() if line.endswith(b"}")]
    assert [(e["settings"]["steps"], values(e)) for e in stored] == [(n, values(whole[n])) for n in (4, 2, 1)]
    assert (workdir / "results" / "sweep.png").read_bytes() == plot


@pytest.mark.slow
def test_only_cells_with_the_same_inputs_are_taken_from_the_store(workdir, monkeypatch, sampled, capsys):
    monkeypatch.setattr(plots, "sweep", lambda *_: None)
    flags = ["--num=8", "--metrics=fd_pixels"]
    expected = [
        ("--steps=2,4", [4, 2]),
        ("--steps=2,4", []),
        ("--steps=1,4", [4, 1]),  # the reference is sampled for the distance of the others
        ("--steps=4", []),
        ("--steps=2", [2]),  # as its own reference
        ("--steps=4 --seed=1", [4]),
        ("--steps=4 --guidance=3", [4]),
        ("--steps=4 --grid=trailing", []),  # the grid of the config, and the row of the table has it
        ("--steps=2,4 --recompute", [4, 2]),
        ("--steps=4 --checkpoint=2", [4]),
    ]
    for text, steps in expected:
        sampled.clear()
        assert sweep(workdir, *flags, *text.split()) == 0
        assert sampled == steps, text
        if "grid" in text:
            assert entries(workdir)[-1]["settings"] == {"grid": "trailing", "steps": 4}
            assert sum(line.split()[:2] == ["trailing", "4"] for line in capsys.readouterr().out.splitlines()) == 1
    sampled.clear()
    assert sweep(workdir, "--steps=4", "--num=8", "--metrics=kd_pixels") == 0 and sampled == [4]
    monkeypatch.setattr(provenance, "code_hash", lambda: "changed")
    capsys.readouterr()
    assert sweep(workdir, *flags, "--steps=4") == 0 and sampled == [4, 4]
    assert "1 of 1 cells were computed by other code" in capsys.readouterr().err
    first = workdir / "results" / entries(workdir)[-1]["files"][0]
    first.unlink()  # the samples for the plot
    assert sweep(workdir, *flags, "--steps=4") == 0 and sampled == [4, 4, 4] and first.exists()


@pytest.mark.slow
def test_sampling_time_excludes_compilation(workdir, monkeypatch):
    compile_sampler = SampleRunner.compile

    def slowly(runner, *arguments):
        time.sleep(2)
        compile_sampler(runner, *arguments)

    monkeypatch.setattr(SampleRunner, "compile", slowly)
    assert sweep(workdir, "--steps=2,4", "--num=8", "--metrics=fd_pixels") == 0
    first, second = entries(workdir)
    assert first["compile_seconds"] > 2 and second["compile_seconds"] == 0
    assert max(first["seconds"], second["seconds"]) < 2


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_sweep_keeps_its_finished_cells(workdir, monkeypatch, capsys, number):
    before = signal.getsignal(signal.SIGTERM)
    stop_at(monkeypatch, 2, number)
    assert sweep(workdir, "--steps=1,2,4", "--num=8", "--metrics=fd_pixels") == 128 + number
    assert by_steps(workdir).keys() == {2, 4}
    captured = capsys.readouterr()
    assert "stopped after 2 of 3 cells" in captured.err and captured.out.count("fd_pixels") == 2  # both tables
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_full_disk_does_not_stop_a_sweep(workdir, monkeypatch, capsys):
    """Entries are written with the next cell; the file on disk is always whole."""
    write, calls, lengths = os.write, iter(range(100)), []

    def full_at_times(descriptor, data):
        lengths.append(len(store(workdir).read_bytes().splitlines()))
        if (call := next(calls)) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        if call == 2:
            return write(descriptor, data[:10])
        if call == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    flags = ["--steps=1,2,3,4", "--num=8", "--metrics=fd_pixels"]
    with monkeypatch.context() as patch:
        patch.setattr(io.os, "write", full_at_times)
        assert sweep(workdir, *flags) == 0
    assert by_steps(workdir).keys() == {1, 2, 3, 4} and lengths == [0, 1, 1, 2, 1, 2, 3]
    error = capsys.readouterr().err
    assert error.count(f"warning: {store(workdir)}: cannot be written (No space left on device)") == 2

    store(workdir).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(io.os, "write", full)
        assert sweep(workdir, *flags) == 2
    captured = capsys.readouterr()
    assert f"error: {store(workdir)}: cannot be written" in captured.err.splitlines()[-1]
    assert store(workdir).read_bytes() == b"" and re.search(r"4 +\d.*±", captured.out)  # a row of the table


def test_a_plot_that_fails_leaves_the_results(workdir, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(plots, "sweep", full)
    assert sweep(workdir, "--steps=1,4", "--num=8", "--metrics=fd_pixels") == 2
    assert "fd_pixels" in capsys.readouterr().out and by_steps(workdir).keys() == {1, 4}


def test_guidance_settings_share_a_compilation(workdir, classifier, capsys):
    """Without --steps, cells have the number of steps of the config."""
    flags = ["--guidance=1,w1", "--guidance_high=1,inf", "--guidance_rescale=0.5", f"--classifier={classifier}"]
    flags += ["--classifier_scale=0,2", f"--weak={workdir}", "--threshold=clip", "--num=8", "--metrics=fd_pixels"]
    assert sweep(workdir, *flags) == 0
    cells = entries(workdir)
    assert "1 compilation(s)" in capsys.readouterr().out and len(cells) == 8
    assert all(cell["guides"] == {"classifier": str(classifier), "weak": str(workdir)} for cell in cells)
    assert {(c["settings"]["steps"], c["settings"]["guidance"]) for c in cells} == {(4, 1.0), (4, 2.0)}
    high = {cell["settings"]["guidance_high"] for cell in cells}
    assert high == {1.0, "Infinity"}  # strict JSON


@pytest.mark.slow
def test_each_sampler_compiles_once(workdir, capsys):
    """Options that a sampler does not take are left out for it, and equal cells are sampled once."""
    flags = ["--sampler=ddim,ancestral,edm(churn=2),edm(churn=0)", "--eta=0,1", "--steps=2,4", "--grid=karras,leading"]
    assert sweep(workdir, *flags, "--num=10") == 0
    assert "3 compilation(s)" in capsys.readouterr().out
    cells = [entry["settings"] for entry in entries(workdir)]
    counted = collections.Counter(cell["sampler"] for cell in cells)
    assert counted == {"ddim": 8, "ancestral": 4, "edm(churn=2)": 4, "edm(churn=0)": 4}
    assert all(("eta" in cell) == (cell["sampler"] == "ddim") for cell in cells)


@pytest.mark.slow
def test_time_grids_with_their_own_number_of_steps(workdir):
    assert sweep(workdir, "--grid=sections(3,2),times(20,10,5)", "--num=10") == 0
    assert [entry["settings"]["steps"] for entry in entries(workdir)] == [5, 3]
