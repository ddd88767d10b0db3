"""Runs on a folder of images: from training to sampling, without the data, and changes of the data."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax.data import sources
from diffjax.errors import UserError
from diffjax.runs import datasets
from tests import conditioned, tiny
from tests.command_line import entries, launch, refused, sample

NAMES = ("ant", "bee")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of 30 images in two classes."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(30):
        path = root / NAMES[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """The command that trains on them, and the run's folder."""
    folder = tmp_path_factory.mktemp("run")
    fields = {"data__name": "folder", "data__dir": str(images), "data__split": "train[:80%]"}
    fields |= {"model": tiny.DIT, "parallel__num_devices": 1}
    config = tiny.write(folder / "config.py", **fields)
    command = ["train", f"--config={config}", f"--workdir={folder}/run"]
    assert launch(*command) == 0
    return command, folder / "run"


def test_the_run_knows_its_channels_and_classes(run):
    config = json.loads((run[1] / "config.json").read_text())
    assert (config["data"]["channels"], config["data"]["num_classes"]) == (3, 2)
    assert tuple(config["data"]["class_names"]) == NAMES
    trained = diffjax.load(run[1])
    assert trained.spec == (8, 3, 2) and datasets.dataset_info(trained.config).class_names == NAMES


@pytest.mark.slow
def test_sampling_needs_no_data_and_editing_its_new_folder(run, images, tmp_path, capsys):
    copy = shutil.copytree(run[1], tmp_path / "run")
    config = json.loads((copy / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    assert sample(copy, tmp_path, "--num=2", "--label=1")["images"].shape == (2, 8, 8, 3)
    edit = ["sample", f"--workdir={copy}", "--image=train:5", "--strength=0.5", "--num=1", f"--out={tmp_path}/x.png"]
    assert "gone: is not a folder" in refused(capsys, *edit)
    assert launch(*edit, f"--data_dir={images}") == 0


def test_the_same_command_resumes(run, capsys):
    assert launch(*run[0], "--config.train.steps=4") == 0
    assert "is trained to step 4" in capsys.readouterr().out


def test_another_class_is_refused(run, images, tmp_path, capsys):
    copy = shutil.copytree(images, tmp_path / "images")
    shutil.copytree(copy / "ant", copy / "cow")
    error = refused(capsys, *run[0], f"--config.data.dir={copy}")
    assert "data.num_classes was 2, now 3" in error
    error = refused(capsys, "train", f"--workdir={run[1]}", f"--config.data.dir={copy}")
    assert "the class 'cow' is not among data.class_names" in error


def test_a_set_without_labels_is_refused_by_a_class_conditional_model(run, images, tmp_path, capsys):
    flags = [f"--config.data.dir={images / 'ant'}", f"--workdir={tmp_path}/new"]
    error = refused(capsys, *run[0][:2], *flags)
    assert "diffusion.class_conditional=True: the data set does not have labels; set it to False" in error
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_training_opens_a_set_once(run, tmp_path, monkeypatch):
    queries, opener = [], sources.OPENERS["folder"]
    monkeypatch.setitem(
        sources.OPENERS, "folder", lambda query, options: queries.append(query) or opener(query, options)
    )
    assert launch(*run[0][:2], f"--workdir={tmp_path}/new") == 0
    assert [query.split for query in queries] == ["train[:80%]"]


@pytest.mark.slow
def test_processes_read_the_same_data(run, tmp_path):
    """Training with worker processes ends with the same parameters."""
    assert launch(*run[0][:2], f"--workdir={tmp_path}/new", "--config.data.workers=1") == 0
    states = [diffjax.load(path).variables for path in (run[1], tmp_path / "new")]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_bad_data_writes_nothing(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    error = refused(capsys, *run[0][:2], f"--config.data.dir={tmp_path}/empty", f"--workdir={tmp_path}/new")
    assert "empty: has no images" in error and not (tmp_path / "new").exists()


def test_examples_of_a_set_without_a_test_split(run):
    """Prompts are from the training split; a classifier is tested on the rest of a slice."""
    config = diffjax.load(run[1]).config
    assert (len(datasets.open_prompts(config)), len(datasets.open_held_out_images(config, "train[:80%]"))) == (24, 6)
    assert datasets.test_split(config) == "train[80%:]"
    with pytest.raises(UserError, match=r"no split 'test'.*in training too \(data.split=train\[:90%\]\)"):
        datasets.open_held_out_images(config, "train")


def test_an_image_of_a_slice_is_edited(run, tmp_path, capsys):
    flags = ["--strength=0.5", "--num=1", f"--out={tmp_path}/x.png"]
    assert launch("sample", f"--workdir={run[1]}", "--image=train[80%:]:5", *flags) == 0
    error = refused(capsys, "sample", f"--workdir={run[1]}", "--image=test:5", *flags)
    assert "--image=test:5: " in error and "has no split 'test'; choose from train, or a part" in error


@pytest.mark.slow
def test_a_model_conditioned_on_captions_trains_on_text_files_next_to_images(images, tmp_path, capsys):
    folder = shutil.copytree(images / "ant", tmp_path / "images")
    captioned = {"conditions": {"caption": conditioned.CONDITIONS["caption"]}}
    changes = conditioned.PLAIN | captioned | {"data__name": "folder", "data__dir": str(folder)}
    config = tiny.write(tmp_path / "config.py", "glide_base", **changes, train__steps=2, train__num_preview_samples=0)
    command = ["train", f"--config={config}", f"--workdir={tmp_path}/run"]
    assert "has no captions, but this model is conditioned on them; add captions" in refused(capsys, *command)
    assert not (tmp_path / "run").exists()
    for i, path in enumerate(sorted(folder.iterdir())):
        path.with_suffix(".txt").write_text(f"an ant of {i} spots\n")
    assert launch(*command) == 0
    samples = sample(tmp_path / "run", tmp_path, "--num=2", "--steps=2", "--prompt=an ant of 3 spots")
    assert samples["images"].shape == (2, 8, 8, 3)


@pytest.mark.slow
def test_another_number_of_images_is_noted_when_the_run_is_resumed(run, images, tmp_path, capsys):
    copy, folder = shutil.copytree(run[1], tmp_path / "run"), shutil.copytree(images, tmp_path / "images")
    for i in range(5):
        shutil.copy(folder / "ant" / "0.png", folder / "ant" / f"more_{i}.png")
    flags = f"--config.data.dir={folder}", "--config.train.steps=5", "--allow_config_change"
    assert launch("train", f"--workdir={copy}", *flags) == 0
    assert "note: the data set has 28 examples, before 24: they come in another order" in capsys.readouterr().err


NUMBERS = {"conditions": {"number": {"low": 0.0, "high": 2.0, "width": 8}}, "sampler__number": 1.5}


@pytest.fixture(scope="module")
def number_run(tmp_path_factory):
    """The config and the folder of a run on images with a number each, and the metadata of the images."""
    folder, rng = tmp_path_factory.mktemp("numbers"), np.random.default_rng(0)
    images = folder / "images"
    images.mkdir()
    rows = [{"file_name": f"{i}.png", "brightness": i / 10} for i in range(20)]
    for row in rows:
        grey = np.uint8(np.clip(rng.normal(120 * row["brightness"], 20, (8, 8)), 0, 255))
        Image.fromarray(grey).save(images / row["file_name"])
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fields = {"data__name": "folder", "data__dir": str(images), "data__split": "train[:80%]"}
    fields |= {"model": tiny.DIT, "parallel__num_devices": 1}
    labels = {"diffusion__class_conditional": False, "sampler__guidance": 1.0}
    training = {"train__eval_every": 8, "train__steps": 8, "train__learning_rate": 0.05, "train__ema_decay": 0.0}
    config = tiny.write(folder / "config.py", **fields, **labels, **NUMBERS, **training)
    assert launch("train", f"--config={config}", f"--workdir={folder}/run", "--config.data.number=brightness") == 0
    return config, folder / "run"


@pytest.mark.slow
def test_samples_of_a_run_with_numbers(number_run, tmp_path, capsys):
    _, run = number_run
    default = sample(run, tmp_path, "--num=4")
    one = sample(run, tmp_path, "--num=4", "--number=0.2")
    np.testing.assert_array_equal(sample(run, tmp_path, "--num=4", "--number=1.5")["images"], default["images"])
    assert (one["images"] != default["images"]).any()
    several = sample(run, tmp_path, "--num=4", "--number=0.2,1.5")
    np.testing.assert_allclose(several["numbers"], [0.2, 1.5, 0.2, 1.5], rtol=1e-6)
    expected = np.where(np.arange(4)[:, None, None, None] % 2, default["images"], one["images"])
    np.testing.assert_array_equal(several["images"], expected)
    trained = diffjax.load(run)
    np.testing.assert_array_equal(trained.sample(4, number=[0.2, 1.5]), expected)
    np.testing.assert_array_equal(trained.sample(number=[0.2, 1.5]), expected[:2])
    np.testing.assert_array_equal(trained.sample(4, number=0.2), one["images"])
    for value, message in (("2.1", "from 0 to 2"), ("-1,1", "from 0 to 2"), ("1,9", "from 0 to 2"), ("a,1", "numbers")):
        assert message in refused(capsys, "sample", f"--workdir={run}", f"--number={value}")
    with pytest.raises(UserError, match=r"number=.*: must be a number, or a list of numbers"):
        trained.sample(number=["a", "b"])
    x = np.zeros((1, 8, 8, 1), np.float32)
    dark, bright = (trained.denoiser(number=number)(x, 5.0).x0 for number in (0.0, 2.0))
    assert (np.asarray(dark) != np.asarray(bright)).any()


def test_a_png_of_several_numbers_is_sampled_again(number_run, tmp_path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    assert launch("sample", f"--workdir={number_run[1]}", "--num=4", "--number=0.2,1.5", f"--out={first}") == 0
    assert launch("sample", f"--from={first}", f"--out={second}") == 0
    np.testing.assert_array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(second)))


@pytest.mark.slow
def test_a_sweep_over_numbers(number_run, capsys):
    flags = ("--num=4", "--number=0,2", "--metrics=fd_pixels", "--steps=2")
    assert launch("sweep", f"--workdir={number_run[1]}", *flags) == 0
    assert [entry["settings"]["number"] for entry in entries(number_run[1])] == [0.0, 2.0]
    assert "3" in refused(capsys, "sweep", f"--workdir={number_run[1]}", "--number=0,3", "--num=4")
    rows = diffjax.load(number_run[1]).sweep(number=[0, 1], steps=2, num=4, metrics="fd_pixels", progress=False)
    assert len(rows.rows) == 2


def test_training_without_numbers_raises(number_run, run, tmp_path, capsys):
    config, _ = number_run
    command = ("train", f"--config={config}", f"--workdir={tmp_path}/run")
    assert "data.number='': conditions.number requires a number for each image" in refused(capsys, *command)
    assert "data.number=height: must be a column" in refused(capsys, *command, "--config.data.number=height")
    assert "requires a model with conditions.number" in refused(capsys, "sample", f"--workdir={run[1]}", "--number=0.5")
