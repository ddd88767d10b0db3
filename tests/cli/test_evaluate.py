"""`launch.py evaluate` on diffusion models, classifiers and GANs."""

import csv
import dataclasses
import errno

import numpy as np
import pytest

from diffjax import evaluation, io
from diffjax.errors import UserError
from diffjax.evaluation.settings import Settings
from diffjax.inference.image_grids import read_images
from diffjax.runs.loading import load
from tests.command_line import launch, refused, result, sample


def evaluate(workdir, *flags) -> int:
    return launch("evaluate", f"--workdir={workdir}", "--batch_size=8", *flags)


def test_evaluate_samples(workdir, capsys):
    assert evaluate(workdir, "--metrics=fd_pixels,classifier_accuracy", "--num=40", "--sampler=ddim(eta=0.5)") == 0
    captured = capsys.readouterr()
    assert "against 1437 images of digits:train" in captured.out
    assert captured.err.count("40 samples of 64 features") == 1
    entry = result(workdir, "fd_pixels")
    assert entry["verb"] == "evaluate" and entry["settings"] == {"sampler": "ddim(eta=0.5)", "steps": 4}
    assert "40 samples of 64 features" in entry["warnings"][0] and entry["not_finite"] == 0 and entry["git"]
    assert entry["metrics"]["fd_pixels"]["value"] > entry["metrics"]["fd_pixels_infinity"]["value"]
    assert entry["metrics"]["fd_pixels"]["standard_error"] > 0
    assert entry["sampler"]["steps"] == 4 and entry["sampler"]["name"] == "ddim(eta=0.5)"
    assert (entry["num"], entry["checkpoint"], entry["seed"], entry["ema_decay"]) == (40, 4, 0, 0.995)
    assert entry["reference"]["images"] == 1437 and entry["versions"]["jax"]
    accuracy = entry["metrics"]["classifier_accuracy"]
    assert accuracy["standard_error"] > 0 and accuracy["real"]["value"] > 0.9 and accuracy["chance"] == 0.1
    assert read_images(workdir / "results" / "samples.png").shape == (40, 8, 8, 1)


def test_evaluate_reconstruction(workdir):
    assert evaluate(workdir, "--metrics=reconstruction", "--num=6", "--steps=5,20") == 0
    entry = result(workdir, "reconstruction")
    rows = entry["details"]["rows"]
    assert entry["settings"] == {"split": "test", "steps": [5, 20]} and entry["num"] == 6
    assert entry["metrics"]["reconstruction.mse"]["value"] == rows[1]["mse"]["mean"]
    assert [row["steps"] for row in rows] == [5, 20]
    assert rows[1]["mse"]["mean"] < rows[0]["mse"]["mean"]
    assert len(read_images(workdir / "results" / "reconstruction.png")) == 3 * 6


@pytest.mark.slow
def test_default_steps_are_at_most_those_of_the_process(workdir):
    """The run has T = 20."""
    assert evaluate(workdir, "--metrics=straightness,reconstruction", "--num=2") == 0
    assert result(workdir, "straightness")["details"]["steps"] == 20
    assert [row["steps"] for row in result(workdir, "reconstruction")["details"]["rows"]] == [10, 20]


def test_the_grid_of_a_metric_is_checked_before_it_is_computed(workdir):
    """With the steps of the metric: 20 by default, not the 4 of the config's sampler, which would fit."""
    run, offset = load(workdir), Settings(grid="leading(offset=4)")
    for name in ("nll", "progressive_coding", "reconstruction", "straightness"):
        with pytest.raises(UserError, match="starts above 20"):
            evaluation.check(name, run, offset)
        evaluation.check(name, run, Settings())
    evaluation.check("reconstruction", run, dataclasses.replace(offset, steps=(4,)))


@pytest.mark.slow
def test_evaluations_are_stored_once_and_written_as_csv(workdir, tmp_path, monkeypatch, capsys):
    flags = ["--metrics=reconstruction,fd_pixels", "--num=5", "--steps=2", "--seed=7", f"--csv={tmp_path}/a.csv"]
    append = io.append_json_line

    def full(path, entry):
        if "fd_pixels" in entry["metrics"]:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        append(path, entry)

    with monkeypatch.context() as patch:
        patch.setattr(io, "append_json_line", full)
        assert evaluate(workdir, *flags) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ") and "FD-pixels" in captured.out
    assert evaluate(workdir, *flags) == 0  # computes fd_pixels only
    out = capsys.readouterr().out
    assert out.count("--recompute computes it again") == 1 and "MSE" in out
    lines = len((workdir / "results" / "results.jsonl").read_bytes().splitlines())
    by_data, by_samples = result(workdir, "reconstruction"), result(workdir, "fd_pixels")
    assert by_data["date"] <= by_samples["date"] and by_samples["seed"] == 7
    with (tmp_path / "a.csv").open() as file:
        first, second = csv.DictReader(file)
    about = by_data["metrics"]["reconstruction.mse"]
    assert float(first["reconstruction.mse"]) == about["value"] and first["fd_pixels"] == ""
    assert float(first["reconstruction.mse_standard_error"]) == about["standard_error"]
    assert first["steps"] == "2" and evaluate(workdir, *flags) == 0
    assert [result(workdir, "reconstruction"), result(workdir, "fd_pixels")] == [by_data, by_samples]
    assert len((workdir / "results" / "results.jsonl").read_bytes().splitlines()) == lines
    assert float(second["fd_pixels"]) == by_samples["metrics"]["fd_pixels"]["value"] and second["steps"] == "2"


@pytest.mark.slow
def test_evaluate_likelihood(workdir, capsys):
    flags = ["--metrics=nll", "--num=12", "--ode_steps=4", "--exact_trace=2"]
    assert evaluate(workdir, *flags) == 0
    exact = result(workdir, "nll")["details"]
    parts = sum(exact[name]["mean"] for name in ("prior", "kl", "decoder"))
    assert exact["bound"]["mean"] == pytest.approx(parts)
    assert exact["terms"]["t"] == list(range(20, 0, -1))
    total = sum(exact["terms"]["bits_per_dim"]) + exact["prior"]["mean"]
    assert total == pytest.approx(exact["bound"]["mean"], rel=1e-4)
    assert all(exact[name]["standard_error"] > 0 for name in ("bound", "ode_hutchinson", "ode_exact_trace"))
    assert (workdir / "results" / "nll.png").stat().st_size > 5_000
    assert "variational bound over 20 steps" in capsys.readouterr().out
    assert exact["decoder_convention"] == "exact"
    # An estimate from some terms always has the largest one, the decoder's.
    assert evaluate(workdir, *flags[:-1], "--terms=5", "--exact_trace=0") == 0
    estimate = result(workdir, "nll")["details"]
    assert estimate["decoder"] == pytest.approx(exact["decoder"])
    assert len(estimate["terms"]["t"]) < 20
    assert evaluate(workdir, *flags[:-1], "--exact_trace=0", "--decoder=ddpm") == 0
    published = result(workdir, "nll")["details"]
    assert published["decoder_convention"] == "ddpm"
    assert published["decoder"] != exact["decoder"]
    assert published["kl"] == pytest.approx(exact["kl"])
    assert evaluate(workdir, "--metrics=progressive_coding", "--num=12") == 0
    coded = result(workdir, "progressive_coding")
    assert coded["details"]["decoder"] == pytest.approx(exact["decoder"])
    assert coded["details"]["rate"]["mean"] == pytest.approx(exact["prior"]["mean"] + exact["kl"]["mean"], rel=1e-5)
    rows = coded["details"]["rows"]
    assert [row["t"] for row in rows] == list(range(20, 0, -1)) and rows[-1]["rmse"] == coded["details"]["rmse"]
    assert rows[0]["rate"]["mean"] == pytest.approx(exact["prior"]["mean"]) and rows[0]["rmse"]["standard_error"] > 0
    assert coded["metrics"]["progressive_coding.rate"]["value"] == coded["details"]["rate"]["mean"]
    assert (workdir / "results" / "progressive_coding.png").stat().st_size > 5_000


def test_the_likelihood_requires_a_grid_that_ends_at_the_clean_image(workdir, capsys):
    flags = ("--metrics=nll", "--num=4", "--steps=4", "--grid=trailing(end=1)")
    assert "remove the option end" in refused(capsys, "evaluate", f"--workdir={workdir}", *flags)


def test_evaluate_inpainting(workdir, capsys):
    flags = ["--metrics=inpainting", "--num=8", "--masks=half", "--steps=3", "--resample_steps=2"]
    assert evaluate(workdir, *flags) == 0
    assert "difference across the border" in capsys.readouterr().out
    entry = result(workdir, "inpainting")
    assert entry["settings"] == {"split": "test", "masks": "half", "steps": 3, "resample_steps": 2}
    values = {name: estimate["value"] for name, estimate in entry["metrics"].items()}
    border, real = values["inpainting.border"], values["inpainting.border_real"]
    assert values["inpainting.border_excess"] == pytest.approx(border - real) and real > 0
    images = read_images(workdir / "results" / "inpainting.png").reshape(3, 8, 8, 8, 1)
    differs = (images[0] != images[2]).reshape(8, -1)
    assert 0 < differs.mean() <= 0.5 and values["inpainting.mse"] > 0


@pytest.mark.slow
def test_evaluate_interpolation(workdir):
    assert evaluate(workdir, "--metrics=interpolation", "--num=40", "--sampler=ancestral", "--steps=20") == 0
    entry = result(workdir, "interpolation")
    assert entry["settings"] == {"split": "test", "sampler": "ancestral", "steps": 20}
    rows = entry["details"]["rows"]
    assert [row["t"] for row in rows] == [2, 5, 10, 15, 20]
    for name in ("reconstruction", "diversity"):
        assert 0 < rows[0][name]["mean"] < rows[2][name]["mean"] < rows[-1][name]["mean"]
    assert len(read_images(workdir / "results" / "interpolation.png")) == 5 * 6


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics=inpainting", "--masks=circle"], "unknown masks 'circle'"),
        (["--metrics=inpainting", "--steps=2,3"], "--steps=2,3: must be one value"),
        (["--metrics=inpainting", "--weak=RUN"], "--weak: is not supported with --metrics=inpainting"),
        (["--metrics=interpolation", "--strength=0.5,2"], "sampler.strength=2: must be"),
        (["--metrics=interpolation", "--strength=half"], "--strength=half: must be numbers"),
        (["--metrics=interpolation", "--num=3"], "--num=3: --metrics=interpolation requires 2 pairs"),
    ],
)
def test_invalid_edits_are_refused(workdir, capsys, flags, message):
    assert message in refused(capsys, "evaluate", f"--workdir={workdir}", *flags)


@pytest.mark.slow
def test_evaluate_a_classifier(classifier, workdir, capsys):
    assert evaluate(classifier, "--metrics=accuracy", "--num=50") == 0
    rows = result(classifier, "accuracy")["details"]["rows"]
    assert rows[0]["t"] == 1
    assert rows[-1]["t"] == 20
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in rows)
    for path, metric in ((classifier, "nll"), (workdir, "accuracy")):
        assert metric in refused(capsys, "evaluate", f"--workdir={path}", f"--metrics={metric}")


@pytest.mark.slow
def test_sample_a_gan(trained_runs, tmp_path):
    arrays = sample(trained_runs("gan"), tmp_path, "--num=4", "--label=2")
    assert arrays["images"].shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(arrays["labels"], [2] * 4)
