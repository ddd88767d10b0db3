"""`launch.py pairs`, and training on pairs of noise and samples (reflow)."""

import json

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.data import ImageOptions, open_dataset
from diffjax.inference.noise_pairs import is_deterministic
from diffjax.models.images import to_grey_levels
from diffjax.runs.loading import load
from tests import tiny
from tests.command_line import launch, refused, result, sample
from tests.running import steps

SAMPLING = ("--seed=3", "--steps=3", "--guidance=2")


@pytest.fixture(scope="module")
def run(trained_runs):
    """A run of 8x8 digits, conditioned on labels."""
    return trained_runs("pixel")


@pytest.fixture(scope="module")
def store(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("stores") / "store"
    assert launch("pairs", f"--workdir={run}", f"--out={out}", "--num=12", "--batch_size=8", *SAMPLING) == 0
    return out


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The config of a rectified flow, which logs the held-out loss."""
    return tiny.write(
        tmp_path_factory.mktemp("config") / "config.py",
        "few_step_digits",
        model=tiny.DIT,
        diffusion__loss="mse",
        diffusion__next_times="clean",
        diffusion__metric="l2",
        train__num_preview_samples=0,
        parallel__num_devices=1,
    )


def on_pairs(config, store, workdir) -> list[str]:
    """Returns the command that trains on pairs."""
    data = ["--config.data.name=pairs", f"--config.data.dir={store}"]
    return ["train", f"--config={config}", *data, f"--workdir={workdir}"]


def read(store, length=12):
    source = open_dataset("pairs", directory=store, split="train", options=ImageOptions(8))
    assert len(source) == length
    return source.__getitems__(range(length))


def test_pairs_are_samples_with_their_noise(run, store, tmp_path):
    pairs, samples = read(store), sample(run, tmp_path, "--num=12", *SAMPLING)
    np.testing.assert_array_equal([pair["label"] for pair in pairs], samples["labels"])
    x0 = np.stack([pair["x0"] for pair in pairs])
    np.testing.assert_allclose(to_grey_levels(jnp.asarray(x0)), samples["images"], atol=1)  # grey levels
    for i, pair in enumerate(pairs):
        first_key, _ = jax.random.split(jax.random.key(3 + i))
        np.testing.assert_allclose(pair["noise"], jax.random.normal(first_key, (8, 8, 1)), rtol=1e-5, atol=1e-6)
    index = json.loads((store / "index.json").read_text())
    assert index["data"]["name"] == "digits" and index["sampling"]["guidance"] == 2.0


@pytest.mark.slow
def test_a_run_on_pairs_trains_resumes_and_is_compared_with_images(config, store, tmp_path, capsys):
    command = on_pairs(config, store, tmp_path / "run")
    assert launch(*command, "--config.train.eval_every=2") == 0
    assert "no held-out loss: data.name=pairs" in capsys.readouterr().out
    assert len(steps(tmp_path / "run")) == 4
    assert launch(*command) == 0
    assert "is trained to step 4" in capsys.readouterr().out
    flags = ["--metrics=fd_pixels,straightness", "--num=8", "--batch_size=8", "--steps=4"]
    assert launch("evaluate", f"--workdir={tmp_path}/run", *flags) == 0
    assert result(tmp_path / "run", "fd_pixels")["reference"]["data"] == "digits"
    assert result(tmp_path / "run", "straightness")["metrics"]["straightness.relative"]["value"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "options", "expected"),
    [
        ("ddim", {}, True),
        ("ddim", {"eta": 0.5}, False),
        ("edm", {"churn": 5.0}, False),
        ("consistency", {}, False),
        ("consistency", {"steps": 1}, True),
    ],
)
def test_samplers_with_noise_are_recognised(sampler, options, expected, run):
    trained = load(run)
    settings = trained.system.make_settings(trained.config.sampler, name=sampler, **options)
    assert is_deterministic(trained.system.process, settings) == expected


@pytest.mark.slow
def test_pairs_refuses(run, trained_runs, store, tmp_path, capsys):
    command = ["pairs", f"--workdir={run}", f"--out={tmp_path}/out", "--num=4"]
    assert "--sampler=ancestral: adds noise" in refused(capsys, *command, "--sampler=ancestral")
    assert "is not empty" in refused(capsys, *command[:2], f"--out={store}")
    command[1] = f"--workdir={trained_runs('vae')}"
    assert "must be a diffusion model" in refused(capsys, *command)
    command[1] = f"--workdir={trained_runs('glide')}/base"
    assert "has conditions.caption" in refused(capsys, *command)
    assert not list(tmp_path.iterdir())


TRAINING = {
    "diffusion.coupling=minibatch: pairs have noise of their own": ["--config.diffusion.coupling=minibatch"],
    "diffusion.loss=vlb: is the bound with independent noise": ["--config.diffusion.loss=vlb"],
    "data.flip=True: the noise of a mirrored sample is not known": ["--config.data.flip=True"],
    "data.augment.prob: pairs are not augmented": ["--config.data.augment.prob=0.1"],
    "data.name=latents: ": ["--config.data.name=latents"],
    "data.split=test: ": ["--config.data.split=test"],
    "data.image_size=16: ": ["--config.data.image_size=16"],
}


@pytest.mark.parametrize("message", TRAINING)
def test_training_on_pairs_refuses(message, trained_runs, store, tmp_path, capsys):
    flags = {"--config.data.name": "pairs", "--config.data.dir": str(store)}
    flags |= dict(flag.split("=", 1) for flag in TRAINING[message])
    command = ["train", f"--config={trained_runs.config('pixel')}", f"--workdir={tmp_path}/run"]
    assert message in refused(capsys, *command, *map("=".join, flags.items()))
    assert not (tmp_path / "run").exists()


def test_pairs_of_another_shape_are_refused(store, tmp_path, capsys):
    config = tiny.write(tmp_path / "config.py", model=tiny.DIT, diffusion__downsample=2)
    error = refused(capsys, *on_pairs(config, store, tmp_path / "run"))
    assert "has pixels of 8x8x1, but the run has 4x4x1" in error


def test_models_without_diffusion_are_refused(trained_runs, store, tmp_path, capsys):
    flags = ["--config.data.name=pairs", f"--config.data.dir={store}", f"--workdir={tmp_path}/run"]
    error = refused(capsys, "train", f"--config={trained_runs.config('vae')}", *flags)
    assert "data.name=pairs: requires a diffusion model, not system=vae" in error
