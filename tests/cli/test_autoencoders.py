"""The verbs on autoencoders, priors over their tokens, and GANs."""

import json

import numpy as np
import pytest

import diffjax
from diffjax.inference.image_grids import read_images
from diffjax.inference.sampler_runner import SampleRunner
from tests import tiny
from tests.command_line import launch, refused, result, sample

SLOW_AUTOENCODERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("vqvae2", "dvae", "vqgan", "kl")]
PRIORS = {"prior_pixelcnn": "vqvae", "prior_transformer": "vqvae2", "masked_digits": "vqvae"}


@pytest.fixture(scope="module")
def trained(run_copy, tmp_path_factory):
    """Returns a run of a config: a shared one of tests/trained_runs.py, or one that this module trains."""
    root, paths = tmp_path_factory.mktemp("autoencoders"), {}

    def run(name):
        if name in ("vae", "vqvae"):
            return run_copy(name)
        if name not in paths:
            changes = {"codec": str(run(PRIORS[name]))} if name in PRIORS else {}
            config = tiny.write(root / f"{name}.py", name, train__steps=2, parallel__num_devices=1, **changes)
            assert launch("train", f"--config={config}", f"--workdir={root / name}") == 0
            paths[name] = root / name
        return paths[name]

    return run


@pytest.mark.parametrize("name", ["vae", "vqvae", *SLOW_AUTOENCODERS])
def test_an_autoencoder_is_trained_and_evaluated(name, trained):
    workdir = trained(name)
    if name != "vqvae":  # which is trained without previews
        assert len(read_images(workdir / "samples" / "reconstruction_00000002.png")) == 2 * 10
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert launch("evaluate", f"--workdir={workdir}", "--metrics=reconstruction", "--num=12", "--batch_size=8") == 0
    values = result(workdir, "reconstruction")["details"]
    assert 0 < values["mse"]["mean"] < 1
    assert values["psnr"]["mean"] == pytest.approx(-10 * np.log10(values["mse"]["mean"]), abs=2)
    assert -1 <= values["ssim"]["mean"] <= 1
    assert ("codes" in values) == (name not in ("vae", "kl"))
    for level in values.get("codes", []):
        assert 1 <= level["perplexity"] <= level["vocabulary"] == 8
        assert 0 < level["used"] <= 1
    assert len(read_images(workdir / "results" / "reconstruction.png")) == 2 * 10


def test_missing_weights_are_reported_before_anything_is_computed(trained, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(SampleRunner, "reconstruct", lambda *_: pytest.fail("reconstructed"))
    command, weights = ["evaluate", f"--workdir={trained('vae')}"], f"{tmp_path}/a.pth,{tmp_path}/b.pth"
    assert "a.pth" in refused(capsys, *command, "--metrics=nll,reconstruction", f"--lpips={weights}")
    error = refused(capsys, *command, "--metrics=reconstruction,recon_precision_recall_pixels", "--num=5")
    assert "requires at least 6 images, not 5" in error


def test_reconstructions_are_compared_with_the_originals(trained):
    workdir = trained("vqvae")
    flags = ["--metrics=recon_fd_pixels,recon_precision_recall_pixels", "--num=40", "--batch_size=8"]
    assert launch("evaluate", f"--workdir={workdir}", *flags) == 0
    entry = result(workdir, "recon_fd_pixels")
    assert entry["metrics"]["recon_fd_pixels"]["value"] > 0
    assert entry["num"] == 40 and entry["reference"]["split"] == entry["settings"]["split"] == "test"
    assert 0 <= entry["metrics"]["recon_recall_pixels"]["value"] <= 1


def test_samples_and_likelihoods_of_a_vae(trained, tmp_path):
    arrays = sample(trained("vae"), tmp_path, "--num=4", "--temperature=0.5")
    assert arrays["images"].shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(arrays["labels"], [-1] * 4)
    assert launch("evaluate", f"--workdir={trained('vae')}", "--metrics=nll", "--num=6", "--samples=3") == 0
    values = result(trained("vae"), "nll")["details"]
    assert values["elbo"]["mean"] == pytest.approx(values["nll"]["mean"] + values["kl"]["mean"])
    assert values["importance_weighted"]["mean"] < values["elbo"]["mean"] + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_samples_and_likelihoods_of_priors(name, trained, tmp_path):
    arrays = sample(trained(name), tmp_path, "--num=4", "--temperature=0.5", "--top_k=3", "--top_p=0.9")
    assert arrays["images"].shape == (4, 8, 8, 1)
    np.testing.assert_array_equal(arrays["labels"], range(4))
    assert launch("evaluate", f"--workdir={trained(name)}", "--metrics=nll", "--num=6") == 0
    bits = result(trained(name), "nll")["details"]
    value = bits["bits_per_code_elbo" if name == "masked_digits" else "bits_per_code"]
    assert value["mean"] == pytest.approx(3, abs=0.2)  # of 8 codes


@pytest.mark.slow
def test_a_sweep_over_the_steps_of_a_masked_prior(trained, capsys):
    flags = ["--sampler=confidence,ancestral_unmasking", "--steps=1,4", "--metrics=fd_pixels", "--num=20"]
    assert launch("sweep", f"--workdir={trained('masked_digits')}", *flags) == 0
    assert capsys.readouterr().out.count("ancestral_unmasking") >= 2


@pytest.mark.slow
def test_samples_of_a_denoising_diffusion_gan(trained, tmp_path):
    assert sample(trained("ddgan"), tmp_path, "--num=4", "--label=2")["images"].shape == (4, 8, 8, 1)


@pytest.mark.slow
def test_a_multi_scale_autoencoder_is_a_codec(trained):
    codec = diffjax.load(trained("vqvae2")).codec
    assert codec.grids == ((2, 2, 1), (4, 4, 1))
    assert codec.vocabulary == 8


@pytest.mark.parametrize(
    ("verb", "name", "flags", "message"),
    [
        ("sample", "vqvae", ["--out=x.png"], "train a prior on its tokens"),
        ("sample", "vae", ["--out=x.png", "--steps=5"], "system=vae takes no 'steps'; it takes temperature"),
        ("sample", "vae", ["--out=x.png", "--interpolate=5"], "--interpolate: requires a diffusion model"),
        ("sample", "vae", ["--out=x.png", "--initial_image=test:0"], "--initial_image: requires a prior over codes"),
        ("sweep", "vae", ["--steps=5"], "requires a diffusion model, a pipeline or a masked prior"),
        ("evaluate", "vqvae", ["--metrics=nll"], "--metrics=nll"),
        ("evaluate", "vae", ["--metrics=accuracy"], "--metrics=accuracy"),
    ],
)
def test_unsupported_flags_of_an_autoencoder_are_refused(verb, name, flags, message, trained, capsys):
    assert message in refused(capsys, verb, f"--workdir={trained(name)}", *flags)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--top_k=x"], "must be whole numbers"),
        (["--temperature=0"], "temperature must be above 0"),
    ],
)
def test_settings_of_a_prior(flags, message, trained, capsys):
    assert message in refused(capsys, "sample", f"--workdir={trained('prior_pixelcnn')}", "--out=x.png", *flags)
