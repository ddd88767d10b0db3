"""`launch.py sample --codec`: latents decoded with another autoencoder of the same latents."""

import jax
import numpy as np
import pytest

from diffjax.data import open_dataset
from diffjax.errors import UserError
from diffjax.models.images import to_grey_levels
from diffjax.runs import exported_weights, latents
from diffjax.runs.loading import build_model, load, with_codec
from diffjax.runs.workdir import Workdir
from tests import tiny
from tests.command_line import launch, refused

TAESD = {"architecture": "taesd", "channels": 8, "blocks": 1, "factor": 2, "latent_channels": 4}


def write_run(path, config, seed=0):
    """Writes an exported run with random weights."""
    workdir = Workdir(path)
    workdir.create()
    workdir.write_config(config)
    exported_weights.save(workdir.weights, tiny.randomised(build_model(config, path).init, seed), 0)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns the runs by name: a latent diffusion model on 8x8 digits, its autoencoder, and others."""
    folder, loss = (
        tmp_path_factory.mktemp("runs"),
        {"likelihood": "l1", "perceptual_file": "", "perceptual_weight": 1.0},
    )
    loss |= {"beta": 1.0, "free_bits": 0.0}
    configs = {
        "vae": tiny.config("vae", loss=loss, model__architecture="vqvae"),
        "taesd": tiny.config("vae", loss=loss, model=TAESD, data__image_size=16),
        "other": tiny.config("vae", loss=loss, model=TAESD | {"latent_channels": 3}),
        "pixels": tiny.config(),
    }
    paths = {name: write_run(folder / name, config, i) for i, (name, config) in enumerate(configs.items())}
    latent = {"system": "latent", "codec": str(paths["vae"]), "model": tiny.DIT | {"patch": 2}}
    config = tiny.config(**latent, sampler__threshold="none")
    return {**paths, "latent": write_run(folder / "latent", config)}


def test_latents_are_decoded_with_the_other_autoencoder(runs):
    """The tiny autoencoder was trained on larger images, and its latents have another scale."""
    run, codec = with_codec(load(runs["latent"]), runs["taesd"]), load(runs["taesd"]).codec
    z = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    decoded = jax.jit(run.system.data_space.decode)(run.variables, z)
    np.testing.assert_allclose(decoded, np.clip(jax.jit(codec.decode)(z), -1, 1), atol=1e-6)
    x = np.random.default_rng(1).uniform(-1, 1, (2, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(run.system.data_space.encode(run.variables, x), codec.encode(x), atol=1e-5)
    assert np.std(decoded) > 0.1


@pytest.mark.slow
def test_pairs_of_latents_are_samples_before_they_are_decoded(runs, tmp_path):
    store, flags = tmp_path / "store", [f"--workdir={runs['latent']}", "--num=2", "--steps=2"]
    assert launch("pairs", *flags, f"--out={store}") == launch("sample", *flags, f"--out={tmp_path}/x.npz") == 0
    pairs = open_dataset("pairs", directory=store, split="train", image_size=8).read([0, 1])
    decoded = jax.jit(load(runs["vae"]).codec.decode)(np.stack([pair["x0"] for pair in pairs]))
    np.testing.assert_allclose(to_grey_levels(decoded), np.load(tmp_path / "x.npz")["images"], atol=1)
    config = load(runs["latent"]).config.unlock()
    config.data.update(name="pairs", dir=str(store))
    latents.check_model(config, build_model(config, abstract=True))
    config = tiny.config(data__name="pairs", data__dir=str(store))
    with pytest.raises(UserError, match="has latents of 4x4x4, but the run has 8x8x1"):
        latents.check_model(config, build_model(config, abstract=True))


@pytest.mark.slow
def test_sample(runs, tmp_path):
    flags = ["sample", f"--workdir={runs['latent']}", "--num=2", "--steps=2"]
    for name, more in (("own", []), ("tiny", [f"--codec={runs['taesd']}"])):
        assert launch(*flags, f"--out={tmp_path}/{name}.npz", *more) == 0
    with np.load(tmp_path / "own.npz") as one, np.load(tmp_path / "tiny.npz") as other:
        assert one["images"].shape == other["images"].shape == (2, 8, 8, 1)
        assert (one["images"] != other["images"]).any()


def test_errors(runs, capsys):
    with pytest.raises(UserError, match=r"--codec=.*: requires latent diffusion, system=latent \(this run: ddpm\)"):
        with_codec(load(runs["pixels"]), runs["taesd"])
    with pytest.raises(UserError, match=r"--codec=.*: has latents of 4x4x3, but those of the run are 4x4x4; choose"):
        with_codec(load(runs["latent"]), runs["other"])
    with pytest.raises(UserError, match=r"--codec=.*: must be an autoencoder, not a run of system=ddpm"):
        with_codec(load(runs["latent"]), runs["pixels"])
    sample = ["sample", f"--workdir={runs['latent']}", "--num=1", f"--codec={runs['latent']}/none"]
    assert "none" in refused(capsys, *sample)
