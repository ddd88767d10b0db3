"""Runs of imports, from the command line and from Python: sampling, and fine-tuning on a folder of images."""

import json

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.errors import UserError
from diffjax.runs.config_files import load_file
from tests.command_line import launch, refused, sample
from tests.conversion import folders

CODEC = {**folders.CODEC, "latent_channels": 3, "scaling_factor": 0.5}
UNET = {**folders.UNET, "sample_size": 16}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Imports of a diffusion model on pixels and of one on latents."""
    root = tmp_path_factory.mktemp("imports")
    folders.write_pipeline(root / "sources" / "pixels")
    latents = root / "sources" / "latents"
    folders.write_component(latents / "vqvae", CODEC)
    folders.write_component(latents / "unet", UNET)
    folders.write_json(latents / "scheduler" / "scheduler_config.json", {**folders.SCHEDULER, "clip_sample": False})
    folders.write_json(latents / "model_index.json", {"_class_name": "LDMPipeline"})
    for name in ("pixels", "latents"):
        assert launch("import", f"--source={root / 'sources' / name}", f"--workdir={root / name}") == 0
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(root / "images" / f"{i}.png")
    return root


def test_an_import_has_no_data_until_a_folder_is_named(runs, tmp_path, capsys):
    config = load_file(f"{runs / 'pixels'}/config.json")
    assert config.data.name == "folder" and not config.data.dir
    train = ("train", f"--config={runs / 'pixels'}/config.json", f"--workdir={tmp_path / 'mine'}")
    assert "set --config.data.dir" in refused(capsys, *train)
    assert launch("import", f"--source={runs / 'sources' / 'pixels'}", f"--workdir={tmp_path / 'run'}") == 0
    printed = capsys.readouterr().out
    assert f"sample --workdir={tmp_path / 'run'}" in printed and f"--config.train.start={tmp_path / 'run'}" in printed


def test_the_commands_to_try_are_those_of_the_model(runs, tmp_path, capsys):
    assert launch("import", f"--source={runs / 'sources' / 'latents' / 'vqvae'}", f"--workdir={tmp_path / 'run'}") == 0
    assert "--metrics=reconstruction" in capsys.readouterr().out


def test_the_config_of_a_run_refers_to_its_trained_parts(runs):
    config = load_file(f"{runs / 'latents'}/config.json")
    assert config.codec == str(runs / "latents" / "codec") and "parts" not in config
    assert json.loads((runs / "latents" / "config.json").read_text())["codec"] == "@codec"


@pytest.mark.parametrize("content", ["{", "[]", '{"data": 3}'])
def test_a_damaged_config_of_a_run_is_one_line(tmp_path, capsys, content):
    (tmp_path / "config.json").write_text(content)
    error = refused(capsys, "train", f"--config={tmp_path}/config.json", f"--workdir={tmp_path / 'run'}")
    assert f"--config={tmp_path}/config.json" in error


def test_python_imports_the_run_of_the_command_line(runs, tmp_path):
    run = diffjax.import_weights(runs / "sources" / "pixels", tmp_path / "run")
    assert run.config.data.name == "folder" and run.step == 0
    expected, actual = (folders.weights(path) for path in (runs / "pixels", tmp_path / "run"))
    assert expected.keys() == actual.keys()
    assert all((expected[name] == actual[name]).all() for name in expected)
    with pytest.raises(UserError, match=r"^workdir=.* is not empty"):
        diffjax.import_weights(runs / "sources" / "pixels", tmp_path / "run")
    with pytest.raises(UserError, match="overrides: require config"):
        diffjax.import_weights(runs / "sources" / "pixels", tmp_path / "other", overrides={"data.flip": False})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixels", "latents"])
def test_fine_tuning_on_a_folder_of_images(runs, tmp_path, name):
    """Training by one step with a learning rate of zero gives the images of the import."""
    flags = ["train.steps=1", "train.batch_size=8", "train.learning_rate=0.0", "train.num_preview_samples=4"]
    flags += [f"train.start={runs / name}", f"data.dir={runs / 'images'}", "sampler.name=ddim", "sampler.steps=2"]
    train = ("train", f"--config={runs / name}/config.json", f"--workdir={tmp_path / 'mine'}", "--logger=none")
    assert launch(*train, *(f"--config.{flag}" for flag in flags)) == 0
    settings = ("--num=4", "--sampler=ddim", "--steps=2")
    before, after = (sample(path, tmp_path, *settings)["images"] for path in (runs / name, tmp_path / "mine"))
    np.testing.assert_allclose(after.astype(int), before.astype(int), atol=1)
