"""`launch.py compare`: tables, plots and CSV of several runs, and the config fields that differ."""

import csv

import numpy as np
import pytest
from PIL import Image

from diffjax import io
from diffjax.runs.config_files import to_json
from tests import tiny
from tests.command_line import launch, refused

ENTRY = {"verb": "sweep", "id": "1", "code": "2", "num": 8, "seed": 0, "files": [], "data": "digits", "guides": {}}


def entry(steps, checkpoint=4, **metrics):
    estimates = {name: {"value": value, "standard_error": error} for name, (value, error) in metrics.items()}
    settings = {"eta": 0.0, "steps": steps}
    return {**ENTRY, "checkpoint": checkpoint, "settings": settings, "metrics": estimates}


def write_run(folder, entries=(), log=(), **changes):
    (folder / "results").mkdir(parents=True)
    (folder / "config.json").write_text(to_json(tiny.config(**changes)))
    for value in entries:
        io.append_json_line(folder / "results" / "results.jsonl", value)
    for value in log:
        io.append_json_line(folder / "metrics.jsonl", value)
    return folder


@pytest.fixture
def runs(tmp_path):
    a = write_run(
        tmp_path / "a",
        [
            entry(5, checkpoint=2, fd_pixels=(9.0, 0.1)),  # of an older checkpoint
            entry(5, fd_pixels=(8.0, 0.1)),  # replaced below
            entry(5, fd_pixels=(0.5, 0.06), kd_pixels=(0.1, 0.02)),
            entry(10, fd_pixels=(0.25, 0.03)),
        ],
        [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}],
    )
    b = write_run(
        tmp_path / "b",
        [entry(5, checkpoint=6, fd_pixels=(1.5, 0.2)), entry(20, checkpoint=6, fd_pixels=(0.75, None))],
        [{"step": 1, "loss": 2.0}, {"step": 3, "loss": None}],
        train__learning_rate=0.5,
        model__channels=16,
    )
    return a, b


def lines(text):
    return [line.split() for line in text.splitlines()]


def test_runs_are_tabulated_with_the_fields_that_differ(runs, tmp_path, capsys):
    out, table = tmp_path / "compare.png", tmp_path / "compare.csv"
    assert launch("compare", *runs, "--metric=fd_pixels,loss", "--out", out, "--csv", table) == 0
    shown = lines(capsys.readouterr().out)
    assert ["eta", "steps", "num", "seed", "a", "b"] in shown
    assert ["0", "5", "8", "0", "0.50", "±", "0.06", "1.5", "±", "0.2"] in shown
    assert ["0", "10", "8", "0", "0.25", "±", "0.03"] in shown and ["0", "20", "8", "0", "0.750"] in shown
    assert ["checkpoints:", "a", "4,", "b", "6"] in shown
    assert ["last", "step", "2", "1"] in shown and ["loss", "0.500", "2.00"] in shown
    start = next(i for i, words in enumerate(shown) if words[:2] == ["config", "fields"])
    different = {words[0]: words[1:] for words in shown[start + 2 : start + 4]}
    assert different == {"model.channels": ["8", "16"], "train.learning_rate": ["0.001", "0.5"]}
    assert shown[start + 4 :] == [[str(table)], [str(out)]]
    with table.open() as file:
        rows = {(row["run"], row["steps"]): row for row in csv.DictReader(file)}
    assert {key: row["fd_pixels"] for key, row in rows.items() if key[1]} == {
        ("a", "5"): "0.5",
        ("a", "10"): "0.25",
        ("b", "5"): "1.5",
        ("b", "20"): "0.75",
    }
    assert rows["a", "5"]["fd_pixels_standard_error"] == "0.06" and rows["b", "20"]["fd_pixels_standard_error"] == ""
    assert rows["a", ""]["loss"] == "0.5" and rows["a", ""]["config.train.learning_rate"] == "0.001"
    assert np.ptp(np.asarray(Image.open(out).convert("L"))) > 200


def test_a_folder_gets_a_plot_per_metric(runs, tmp_path):
    assert launch("compare", "--metric=fd_pixels,loss", f"--out={tmp_path}/plots/", *runs) == 0
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["fd_pixels.png", "loss.png"]


def test_equal_configs_and_different_data(runs, tmp_path, capsys):
    other = {**entry(5, fd_pixels=(1.0, 0.1)), "data": "shapes", "num": 9}
    c = write_run(tmp_path / "c", [other])
    assert launch("compare", runs[0], c, "--metric=fd_pixels") == 0
    captured = capsys.readouterr()
    assert "the configs are equal" in captured.out and "the results differ in data" in captured.out
    assert "no two runs have results of the same settings" in captured.err


def test_runs_of_one_name_are_distinguished_by_their_paths(runs, tmp_path, capsys):
    twin = write_run(tmp_path / "other" / "a", [entry(5, fd_pixels=(1.0, 0.1))])
    assert launch("compare", runs[0], twin, "--metric=fd_pixels") == 0
    assert ["eta", "steps", "num", "seed", str(runs[0]), str(twin)] in lines(capsys.readouterr().out)


def test_bad_comparisons_are_refused(runs, tmp_path, capsys):
    a, b = runs
    empty = write_run(tmp_path / "empty", log=[{"step": 1, "grad_norm": 1.0, "loss": 2.0}])
    untrained = write_run(tmp_path / "untrained")
    cases = {
        (a, "--metric=loss"): "name at least two runs",
        (a, tmp_path / "a" / ".." / "a", "--metric=loss"): "the run is named twice",
        (a, tmp_path, "--metric=loss"): f"{tmp_path} is not a run",
        (empty, untrained, "--metric=fd_pixels"): f"{empty}: has no results; run launch.py sweep or evaluate",
        (empty, untrained, "--metric=los"): "unknown metric 'los': did you mean 'loss'?",
        (a, empty, "--metric=fd_pixels"): f"{empty}: has no results; run launch.py sweep or evaluate",
        (a, b, "--metric=fd_pixel"): "unknown metric 'fd_pixel': did you mean 'fd_pixels'?",
        (a, b, "--metric=kd_pixels"): f"--metric=kd_pixels: {b} does not have it; choose from fd_pixels, loss",
        (a, b): "--metric is missing; choose from fd_pixels, loss",
        (a, untrained): "the runs have no metric in common",
        (a, b, "--metric=loss", "--out=x.jpg"): "--out=x.jpg: the name must end in .png",
        (a, b, "--runs=x"): "unknown flag 'runs'",
    }
    for arguments, message in cases.items():
        assert message in refused(capsys, "compare", *arguments), arguments


def test_other_verbs_take_no_arguments_without_a_name(capsys):
    assert "unexpected argument 'x'" in refused(capsys, "sample", "x")
    assert launch("compare", "--help") == 0
    assert "usage: python launch.py compare RUN RUN ... --flag=value ..." in capsys.readouterr().out
