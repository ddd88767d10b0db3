"""`launch.py sample` on a diffusion model of digits, and `launch.py benchmark`."""

import json

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.inference import edits
from diffjax.inference.image_grids import GAP, read_images
from diffjax.inference.prompts import Prompts
from diffjax.inference.sample_flags import SampleFlags
from diffjax.inference.sample_requests import overrides
from diffjax.runs.loading import load
from tests import tiny
from tests.command_line import launch, parsed, refused, sample


def images(workdir, folder, *flags):
    return sample(workdir, folder, *flags)["images"].astype(int)


@pytest.mark.slow
def test_a_grid_has_one_column_per_class(workdir, tmp_path):
    path = tmp_path / "new" / "s.png"
    assert launch("sample", f"--workdir={workdir}", f"--out={path}", "--num=20", "--batch_size=8") == 0
    assert Image.open(path).width == 10 * (64 + GAP) + GAP  # the labels of the classes are above the columns
    np.testing.assert_array_equal(read_images(path), sample(workdir, tmp_path, "--num=20")["images"])


def test_samples_depend_on_their_seeds_only(workdir, tmp_path):
    """Neither on the number of samples nor on the batch size."""
    arrays = sample(workdir, tmp_path, "--num=12", "--seed=5")
    assert arrays["images"].shape == (12, 8, 8, 1) and arrays["images"].dtype == np.uint8
    np.testing.assert_array_equal(arrays["labels"], np.arange(12) % 10)
    np.testing.assert_array_equal(arrays["seeds"], 5 + np.arange(12))
    flags = ["--label=3", "--eta=1", "--guidance=2"]
    path = tmp_path / "one_batch.npz"
    command = ["sample", f"--workdir={workdir}", f"--out={path}", "--batch_size=16", "--num=16", *flags]
    assert launch(*command) == 0
    whole = np.load(path)["images"].astype(int)
    later = images(workdir, tmp_path, "--num=4", "--seed=12", *flags)
    assert np.abs(whole[12:] - later).max() <= 1


@pytest.mark.slow
def test_a_classifier_guides(workdir, classifier, tmp_path):
    flags = ["--label=3", "--num=8", "--guidance=1"]
    unguided = images(workdir, tmp_path, *flags)
    scaled = [
        images(workdir, tmp_path, *flags, f"--classifier={classifier}", f"--classifier_scale={scale}")
        for scale in (0, 30)
    ]
    assert np.abs(unguided - scaled[0]).max() <= 1
    assert np.abs(unguided - scaled[1]).max() > 5


def test_inpainting_keeps_the_known_region(workdir, tmp_path):
    inpainted = images(workdir, tmp_path, "--image=test:7", "--mask=right", "--num=3", "--resample_steps=2")
    source = diffjax.data.open_dataset("digits", directory="", split="test", image_size=8, background="white")
    known = source.__getitems__([7])[0]["image"][:, :4]
    np.testing.assert_array_equal(inpainted[:, :, :4], np.tile(known, (3, 1, 1, 1)))
    assert inpainted[:, :, 4:].std(axis=0).max() > 0


@pytest.mark.slow
def test_a_measurement_is_restored_and_shown(workdir, tmp_path):
    """The grid starts with the image and its measurement. Restorations are closer to it than samples."""
    path = tmp_path / "s.png"
    flags = ["--image=test:7", "--measure=downsample(factor=2)", "--sampler=ancestral", "--steps=20", "--num=4"]
    assert launch("sample", f"--workdir={workdir}", f"--out={path}", *flags) == 0
    image, measurement, *restored = read_images(path).astype(int)
    source = diffjax.data.open_dataset("digits", directory="", split="test", image_size=8, background="white")
    np.testing.assert_array_equal(image, source.__getitems__([7])[0]["image"])
    average = lambda x: x.reshape(4, 2, 4, 2, 1).mean((1, 3))  # noqa: E731
    assert np.abs(measurement - average(image).repeat(2, 0).repeat(2, 1)).max() <= 0.5
    distances = [np.abs(average(x) - average(image)).mean() for x in restored]
    others = [np.abs(average(x) - average(image)).mean() for x in images(workdir, tmp_path, "--num=4", *flags[3:4])]
    assert len(restored) == 4 and 2 * max(distances) < min(others), (distances, others)


def test_a_mask_and_a_matrix_measure(workdir, tmp_path):
    """The mask knows the left half, and the matrix the same values."""
    matrix = np.eye(64)[np.arange(64) % 8 < 4]
    np.save(tmp_path / "m.npy", matrix)
    opened, measured = load(workdir), []
    for flags in (["--measure=mask", "--mask=right"], [f"--measure={tmp_path}/m.npy"]):
        arguments = parsed("sample", "--image=test:7", *flags)
        flags = SampleFlags(arguments.as_dict(), arguments.given_flags)
        settings = opened.system.make_settings(opened.config.sampler, measure=overrides(flags)["measure"])
        prompts = Prompts({"label": np.zeros(2, np.int32)}, None)
        measured.append(edits.measure(flags, opened, settings, prompts))
    for one in measured:
        image = edits.load_image("test:7", opened)
        np.testing.assert_allclose(one.prompts.conditions["measurement"], np.tile(image[:, :4].ravel(), (2, 1)))
        assert np.all(one.shown["measurement"][:, 4:] == 128) and one.settings.arrays["operator"].shape[0] == 32


@pytest.mark.slow
def test_strength_is_the_distance_from_the_image(workdir, tmp_path):
    Image.fromarray(np.tile(np.arange(0, 240, 30, dtype=np.uint8), (8, 1))).save(tmp_path / "i.png")
    flags = [f"--image={tmp_path}/i.png", "--num=4", "--steps=20"]
    near, far = (images(workdir, tmp_path, *flags, f"--strength={strength}") for strength in (0.05, 1.0))
    image = np.asarray(Image.open(tmp_path / "i.png"))[None, ..., None].astype(int)
    assert np.abs(near - image).mean() < 25 < np.abs(far - image).mean()


@pytest.mark.slow
def test_interpolation_starts_and_ends_at_its_end_points(workdir, tmp_path):
    ends = images(workdir, tmp_path, "--num=3", "--label=1")
    rows = images(workdir, tmp_path, "--num=2", "--label=1", "--interpolate=5")
    assert rows.shape == (10, 8, 8, 1)
    for row in range(2):
        assert np.abs(rows[5 * row] - ends[row]).max() <= 1
        assert np.abs(rows[5 * row + 4] - ends[row + 1]).max() <= 1


@pytest.mark.slow
def test_interpolation_between_two_images(workdir, tmp_path):
    flags = ["--image=test:1,test:2", "--interpolate=4", f"--out={tmp_path}/s.png"]
    assert launch("sample", f"--workdir={workdir}", *flags) == 0
    assert read_images(tmp_path / "s.png").shape == (4, 8, 8, 1)
    assert Image.open(tmp_path / "s.png").width > 4 * (64 + GAP) + GAP  # the names of the images are on the left


@pytest.mark.slow
def test_a_classifier_guides_a_model_without_labels(classifier, tmp_path):
    config = tiny.write(tmp_path / "c.py", diffusion__class_conditional=False, sampler__guidance=1.0)
    launch("train", f"--config={config}", f"--workdir={tmp_path}/run", "--config.train.steps=1")
    arrays = sample(tmp_path / "run", tmp_path, "--num=12", f"--classifier={classifier}")
    np.testing.assert_array_equal(arrays["labels"], np.arange(12) % 10)


@pytest.mark.slow
def test_guidance_models_must_fit_the_run(workdir, config, tmp_path, capsys):
    flags = ["--config.train.steps=1", "--config.diffusion.timesteps=9", "--config.train.num_preview_samples=0"]
    launch("train", f"--config={config}", f"--workdir={tmp_path}", *flags)
    error = refused(capsys, "sample", f"--workdir={workdir}", f"--out={tmp_path}/s.png", f"--weak={tmp_path}")
    assert "diffusion.timesteps=9 must be that of the run, 20" in error


@pytest.mark.slow
def test_benchmark(config, tmp_path, capsys):
    flags = ["--steps=3", "--samples=8", "--data", f"--out={tmp_path}/b.json"]
    assert launch("benchmark", f"--config={config}", *flags) == 0
    results = json.loads((tmp_path / "b.json").read_text())
    for name in ("compile_seconds", "step_seconds", "images_per_second", "gflop_per_step", "samples_per_second"):
        assert results[name] > 0
    assert results["data_images_per_second"] > 0 and 0 <= results["data_wait"] < 1
    assert results["images_per_second"] == pytest.approx(16 / results["step_seconds"])
    assert {"command", "git", "date", "device", "versions"} <= set(results)
    assert "step seconds" in capsys.readouterr().out
