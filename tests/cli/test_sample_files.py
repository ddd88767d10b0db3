"""Image files of `launch.py sample`: their formats, the settings that they store, and sampling again from them."""

import json

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.inference import image_grids
from tests.command_line import launch, refused

FLAGS = ("--num=3", "--seed=7", "--steps=2", "--eta=0.5", "--guidance=2")


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def folder(workdir, tmp_path_factory):
    """A folder of three samples."""
    folder = tmp_path_factory.mktemp("samples")
    assert launch("sample", f"--workdir={workdir}", f"--out={folder}/", *FLAGS) == 0
    return folder


def test_a_folder_has_one_png_per_sample_with_its_settings(folder, workdir, tmp_path):
    assert sorted(path.name for path in folder.iterdir()) == ["00000.png", "00001.png", "00002.png"]
    assert launch("sample", f"--workdir={workdir}", f"--out={tmp_path}/x.npz", *FLAGS) == 0
    arrays = np.load(tmp_path / "x.npz")
    for i in range(3):
        path = folder / f"{i:05d}.png"
        np.testing.assert_array_equal(pixels(path), arrays["images"][i, :, :, 0])
        settings = json.loads(Image.open(path).text["diffjax"])
        assert (settings["index"], settings["seed"], settings["label"], settings["prompt"]) == (i, 7 + i, i, None)
        assert settings["version"] == diffjax.__version__
        assert str(settings["checkpoint"]) in {step.name for step in (workdir / "checkpoints").iterdir()}
        assert (settings["sampler"]["steps"], settings["sampler"]["eta"]) == (2, 0.5)
        assert {"command", "config", "flags", "devices"} < settings.keys()


def test_an_image_is_sampled_again_from_its_settings(folder, tmp_path):
    assert launch("sample", f"--from={folder}/00001.png", f"--out={tmp_path}/again.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(folder / "00001.png"))
    first, second = (json.loads(Image.open(p).text["diffjax"]) for p in (folder / "00001.png", tmp_path / "again.png"))
    assert second["flags"] == first["flags"] and second["index"] == first["index"]


@pytest.mark.slow
def test_a_grid_in_the_folder_of_the_run_is_sampled_again(workdir, tmp_path):
    before = set((workdir / "samples").glob("*"))
    assert launch("sample", f"--workdir={workdir}", *FLAGS) == 0
    (grid,) = set((workdir / "samples").glob("*")) - before
    assert launch("sample", f"--from={grid}", f"--out={tmp_path}/again.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(grid))
    assert launch("sample", f"--from={grid}", f"--out={tmp_path}/other.webp", "--seed", "8") == 0
    other = Image.open(tmp_path / "other.webp")
    assert other.format == "WEBP" and np.abs(np.asarray(other.convert("L")).astype(int) - pixels(grid)).max() > 5
    assert launch("sample", f"--from={grid}", f"--out={tmp_path}/again.webp", f"--workdir={workdir}") == 0
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.webp").convert("L")), pixels(grid))
    assert launch("sample", f"--from={grid}", f"--out={tmp_path}/again.jpg") == 0
    assert Image.open(tmp_path / "again.jpg").format == "JPEG"


def test_an_image_that_cannot_be_sampled_again_is_refused(folder, workdir, tmp_path, capsys):
    plain = tmp_path / "plain.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(plain)
    assert f"--from={plain}: has no sampling settings" in refused(capsys, "sample", f"--from={plain}")
    (tmp_path / "text.png").write_text("text")
    for name in ("text.png", "missing.png"):
        assert "is not a PNG that can be read" in refused(capsys, "sample", f"--from={tmp_path}/{name}")
    for flags in ({"out": str(tmp_path / "victim.png")}, {"from": str(plain)}, []):
        stored = json.loads(Image.open(folder / "00000.png").text["diffjax"])
        image_grids.save(tmp_path / "made.png", np.zeros((8, 8, 1), np.uint8), stored | {"flags": flags})
        assert "its settings are damaged" in refused(capsys, "sample", f"--from={tmp_path}/made.png")
    assert not (tmp_path / "victim.png").exists()
    image = f"--from={folder}/00000.png"
    error = refused(capsys, "sample", image, f"--workdir={tmp_path}")
    assert error.startswith(f"error: {image}: {tmp_path}: the run of the image is missing")
    changed = json.loads((workdir / "config.json").read_text())
    changed["seed"] += 1
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert "has another config" in refused(capsys, "sample", image, f"--workdir={tmp_path}")


@pytest.mark.slow
def test_images_of_prompts_store_their_prompt(trained_runs, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a small red circle\na gr\u00fcn square\n", encoding="utf-8")
    flags = [f"--workdir={trained_runs('dalle')}", f"--prompts={prompts}", "--num=2"]
    assert launch("sample", *flags, f"--out={tmp_path}/images/") == 0
    stored = [json.loads(Image.open(path).text["diffjax"]) for path in sorted((tmp_path / "images").iterdir())]
    assert [settings["prompt"] for settings in stored] == ["a small red circle"] * 2 + ["a gr\u00fcn square"] * 2
    assert launch("sample", f"--from={tmp_path}/images/00002.png", f"--out={tmp_path}/again.png") == 0
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), pixels(tmp_path / "images/00002.png"))
