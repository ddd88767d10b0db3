"""`launch.py evaluate` on diffusion models, classifiers and GANs."""

import numpy as np
import pytest

from diffjax.inference.image_grids import read_images
from tests.command_line import launch, refused, results, sample


def evaluate(workdir, *flags) -> int:
    return launch("evaluate", f"--workdir={workdir}", "--batch_size=8", *flags)


def test_evaluate_samples(workdir, capsys):
    assert evaluate(workdir, "--metrics=fd_pixels,classifier_accuracy", "--num=40", "--sampler=ddim(eta=0.5)") == 0
    captured = capsys.readouterr()
    assert "against 1437 images of digits:train" in captured.out
    assert captured.err.count("40 samples of 64 features") == 1
    result = results(workdir, "fd_pixels")
    assert "40 samples of 64 features" in result["warnings"][0] and result["not_finite"] == 0 and result["git"]
    assert result["figures"]["fd_pixels"]["value"] > result["figures"]["fd_pixels_infinity"]["value"]
    assert result["figures"]["fd_pixels"]["standard_error"] > 0
    assert result["sampler"]["steps"] == 4 and result["sampler"]["name"] == "ddim(eta=0.5)"
    assert (result["samples"], result["checkpoint"], result["seed"], result["ema_decay"]) == (40, 4, 0, 0.995)
    assert result["reference"]["images"] == 1437 and result["versions"]["jax"]
    accuracy = results(workdir, "classifier_accuracy")["figures"]["classifier_accuracy"]
    assert accuracy["standard_error"] > 0 and accuracy["real"]["value"] > 0.9 and accuracy["chance"] == 0.1
    assert read_images(workdir / "results" / "samples.png").shape == (40, 8, 8, 1)


def test_evaluate_reconstruction(workdir):
    assert evaluate(workdir, "--metrics=reconstruction", "--num=6", "--steps=5,20") == 0
    rows = results(workdir, "reconstruction")["rows"]
    assert [row["steps"] for row in rows] == [5, 20]
    assert rows[1]["mse"]["mean"] < rows[0]["mse"]["mean"]
    assert len(read_images(workdir / "results" / "reconstruction.png")) == 3 * 6


@pytest.mark.slow
def test_evaluate_likelihood(workdir, capsys):
    flags = ["--metrics=nll", "--num=12", "--ode_steps=4", "--exact_trace=2"]
    assert evaluate(workdir, *flags) == 0
    result = results(workdir, "nll")
    parts = sum(result[name]["mean"] for name in ("prior", "kl", "decoder"))
    assert result["bound"]["mean"] == pytest.approx(parts)
    assert result["terms"]["t"] == list(range(20, 0, -1))
    total = sum(result["terms"]["bits_per_dim"]) + result["prior"]["mean"]
    assert total == pytest.approx(result["bound"]["mean"], rel=1e-4)
    assert all(result[name]["standard_error"] > 0 for name in ("bound", "ode_hutchinson", "ode_exact_trace"))
    assert (workdir / "results" / "nll.png").stat().st_size > 5_000
    assert "variational bound over 20 steps" in capsys.readouterr().out
    assert result["decoder_convention"] == "exact"
    # An estimate from some terms always has the largest one, the decoder's.
    assert evaluate(workdir, *flags[:-1], "--terms=5", "--exact_trace=0") == 0
    estimate = results(workdir, "nll")
    assert estimate["decoder"] == pytest.approx(result["decoder"])
    assert len(estimate["terms"]["t"]) < 20
    assert evaluate(workdir, *flags[:-1], "--exact_trace=0", "--decoder=ddpm") == 0
    published = results(workdir, "nll")
    assert published["decoder_convention"] == "ddpm"
    assert published["decoder"] != result["decoder"]
    assert published["kl"] == pytest.approx(result["kl"])


def test_evaluate_a_classifier(classifier, workdir, capsys):
    assert evaluate(classifier, "--metrics=accuracy", "--num=50") == 0
    rows = results(classifier, "accuracy")["rows"]
    assert rows[0]["t"] == 1
    assert rows[-1]["t"] == 20
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in rows)
    for path, metric in ((classifier, "nll"), (workdir, "accuracy")):
        assert metric in refused(capsys, "evaluate", f"--workdir={path}", f"--metrics={metric}")


def test_sample_a_gan(trained_runs, tmp_path):
    arrays = sample(trained_runs("gan"), tmp_path, "--num=4", "--label=2")
    assert arrays["images"].shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(arrays["labels"], [2] * 4)
