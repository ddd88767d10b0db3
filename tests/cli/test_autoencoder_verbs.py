"""Every system of codes and games, from its config through the verbs: train, evaluate, sample."""

import json

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax import cli, evaluation
from diffjax.inference.sampler_runner import Generator
from tests import tiny

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("vqgan", "kl")]
AUTOENCODERS = ["vae", "vqvae", "vqvae2", "dvae", *SLOW]
PRIORS = {"prior_pixelcnn": "vqvae", "prior_transformer": "vqvae2"}


def launch(*arguments: str) -> int:
    return cli.main(["launch.py", *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a tiny run of a config, trained when it is first asked for."""
    root, made = tmp_path_factory.mktemp("autoencoders"), {}

    def run(name):
        if name not in made:
            changes = {"codec": str(run(PRIORS[name]))} if name in PRIORS else {}
            config = tiny.write(root / f"{name}.py", name, train__steps=2, **changes)
            assert launch("train", f"--config={config}", f"--workdir={root / name}") == 0
            made[name] = root / name
        return made[name]

    return run


def result(workdir, metric):
    return json.loads((workdir / "results" / f"{metric}.json").read_text())


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_an_autoencoder(name, trained, capsys):
    workdir = trained(name)
    assert Image.open(workdir / "samples" / "reconstruction_00000002.png").size == (10 * 66 + 2, 2 * 66 + 2)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert launch("evaluate", f"--workdir={workdir}", "--metrics=reconstruction", "--num=12", "--batch_size=8") == 0
    found = result(workdir, "reconstruction")
    assert 0 < found["mse"]["mean"] < 1
    assert found["psnr"]["mean"] == pytest.approx(-10 * np.log10(found["mse"]["mean"]), abs=2)
    assert -1 <= found["ssim"]["mean"] <= 1
    assert ("codes" in found) == (name not in ("vae", "kl"))
    for level in found.get("codes", []):
        assert 1 <= level["perplexity"] <= level["vocabulary"] == 8
        assert 0 < level["used"] <= 1
    assert Image.open(workdir / "results" / "reconstruction.png").size == (10 * 66 + 2, 2 * 66 + 2)
    assert "perceptual loss" in capsys.readouterr().out or name != "vae"


def test_weights_that_are_missing_are_found_before_anything_is_reconstructed(trained, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Generator, "reconstruct", lambda *_: pytest.fail("reconstructed"))
    monkeypatch.setitem(evaluation.OF_DATA, "nll", {"likelihood": lambda *_: pytest.fail("computed")})
    flags = ["--metrics=nll,reconstruction", f"--lpips={tmp_path}/a.pth,{tmp_path}/b.pth"]
    assert launch("evaluate", f"--workdir={trained('vae')}", *flags) == 2
    assert "a.pth" in capsys.readouterr().err
    assert (
        launch("evaluate", f"--workdir={trained('vae')}", "--metrics=reconstruction,rmanifold_pixels", "--num=5") == 2
    )
    assert "requires at least 6 images, not 5" in capsys.readouterr().err


def test_reconstructions_are_compared_with_the_originals(trained):
    workdir = trained("vqvae")
    flags = ["--metrics=rfd_pixels,rmanifold_pixels", "--num=40"]
    assert launch("evaluate", f"--workdir={workdir}", *flags) == 0
    found = result(workdir, "rfd_pixels")
    assert found["figures"]["fd_pixels"]["value"] > 0
    assert found["reconstructions"] == 40 and found["reference"]["split"] == "test"
    assert 0 <= result(workdir, "rmanifold_pixels")["figures"]["recall_pixels"]["value"] <= 1


@pytest.mark.parametrize("name", ["vae", *PRIORS])
def test_samples(name, trained, tmp_path):
    flags = ["--num=4", "--temperature=0.5"] + ["--top_k=3", "--top_p=0.9"] * (name in PRIORS)
    assert launch("sample", f"--workdir={trained(name)}", f"--out={tmp_path}/s.npz", *flags) == 0
    found = np.load(tmp_path / "s.npz")
    assert found["images"].shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(found["labels"], range(4) if name in PRIORS else [-1] * 4)


@pytest.mark.parametrize("name", ["vae", *PRIORS])
def test_likelihoods(name, trained, capsys):
    assert launch("evaluate", f"--workdir={trained(name)}", "--metrics=nll", "--num=6", "--samples=3") == 0
    found = result(trained(name), "nll")
    if name == "vae":
        assert found["elbo"]["mean"] == pytest.approx(found["nll"]["mean"] + found["kl"]["mean"])
        assert found["importance_weighted"]["mean"] < found["elbo"]["mean"] + 0.1
    else:
        assert found["bits_per_code"]["mean"] == pytest.approx(3, abs=0.2)  # hardly trained: of 8 codes


@pytest.mark.parametrize("name", ["gan", pytest.param("ddgan", marks=pytest.mark.slow)])
def test_games(name, trained, tmp_path):
    assert launch("sample", f"--workdir={trained(name)}", f"--out={tmp_path}/s.npz", "--num=4", "--label=2") == 0
    assert np.load(tmp_path / "s.npz")["images"].shape == (4, 8, 8, 1)


def test_a_trained_autoencoder_is_a_codec(trained):
    codec = diffjax.load(trained("vqvae2")).codec
    assert codec.grids == ((2, 2, 1), (4, 4, 1))
    assert codec.vocabulary == 8


@pytest.mark.parametrize(
    ("verb", "name", "flags", "message"),
    [
        ("sample", "vqvae", ["--out=x.png"], "train a prior on its codes"),
        ("sample", "vae", ["--out=x.png", "--steps=5"], "system=vae takes no 'steps'; it takes temperature"),
        ("sample", "vae", ["--out=x.png", "--interpolate=5"], "are of diffusion models"),
        ("sample", "prior_pixelcnn", ["--out=x.png", "--top_k=x"], "expected whole numbers"),
        ("sample", "prior_pixelcnn", ["--out=x.png", "--temperature=0"], "top_k=1 is greedy"),
        ("sweep", "vae", ["--steps=5"], "over the steps of diffusion models"),
        ("evaluate", "vqvae", ["--metrics=nll"], "is a run of system=vqvae, without one"),
        ("evaluate", "prior_pixelcnn", ["--metrics=reconstruction"], "is a run of system=prior, without one"),
    ],
)
def test_what_a_run_cannot_do_is_said(verb, name, flags, message, trained, capsys):
    workdir = trained(name)
    capsys.readouterr()
    assert launch(verb, f"--workdir={workdir}", *flags) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
