"""Released models: names, files that their cards list, places of outputs; slow: samples of each."""

import hashlib
import re

import numpy as np
import pytest

import diffjax
from diffjax.errors import UserError
from diffjax.models.capabilities import is_clip, samples_images
from diffjax.runs import pretrained
from diffjax.runs.config_files import flatten
from diffjax.runs.workdir import Workdir
from tests.command_line import entries, launch, refused

MAX_SIZE = 3_000_000  # bytes of a file of weights


def test_a_name_is_the_folder_of_a_read_only_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    workdir = Workdir("pretrained:digits")
    assert workdir.path == pretrained.FOLDER / "digits" and workdir.weights.exists()
    assert Workdir(workdir.path).name == workdir.name == "pretrained:digits"
    assert str(workdir.results) == "runs/pretrained/digits/results"
    assert Workdir("runs/digits").name == "runs/digits"
    with pytest.raises(UserError, match="is read-only; choose another"), workdir.locked():
        pass
    error = refused(capsys, "train", "--workdir=pretrained:digits", "--config=digits")
    assert "--workdir=pretrained:digits: is an exported run" in error


def test_unknown_names_and_paths_out_of_the_folder_are_refused(capsys):
    for flags in (
        ["sample"],
        ["sweep"],
        ["evaluate", "--metrics=nll"],
        ["export", "--out=x"],
        ["encode", "--out=x"],
        ["ema", "--length=1"],
    ):
        error = refused(capsys, *flags, "--workdir=pretrained:digit")
        assert "unknown released model 'digit': did you mean 'digits'?" in error
        assert all(name in error for name in pretrained.names())
    with pytest.raises(UserError, match="must be pretrained:NAME"):
        Workdir("pretrained:digits/../../runs")
    with pytest.raises(UserError, match="unknown released model"):
        diffjax.load("pretrained:")


@pytest.mark.parametrize("name", pretrained.names())
def test_each_card_lists_its_files_with_sizes_and_hashes(name):
    folder = pretrained.FOLDER / name
    card = (folder / "README.md").read_text()
    rows = re.findall(r"^\| `([\w./]+)` \| ([\d,]+) \| `([0-9a-f]{64})` \|$", card, re.MULTILINE)
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert {file for file, *_ in rows} == files.keys() - {"README.md"}
    for file, size, digest in rows:
        content = files[file].read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (int(size.replace(",", "")), digest), file
        assert len(content) <= MAX_SIZE
    for heading in ("## Data", "## Training", "## Scores", "## Files"):
        assert heading in card
    assert "Licence: " in card and f"pretrained:{name}" in card


@pytest.mark.parametrize("name", pretrained.names())
def test_configs_of_released_models_name_no_folder_of_a_machine(name):
    for field, value in flatten(Workdir(f"pretrained:{name}").read_config()).items():
        assert not (isinstance(value, str) and value.startswith(("/", "~"))), field


@pytest.mark.slow
def test_the_error_without_a_data_set_names_the_flag(capsys):
    error = refused(capsys, "evaluate", "--workdir=pretrained:fashion_mnist", "--metrics=fd_pixels")
    assert "data.dir is not set: fashion_mnist is read from disk" in error and "--data_dir" in error


@pytest.mark.slow
def test_a_released_model_loads_and_computes_in_single_precision():
    run = diffjax.load("pretrained:digits")
    assert "path=pretrained:digits" in repr(run)
    images = run.sample(num=2, labels=[3, 4], steps=2)
    assert images.shape == (2, 8, 8, 1) and images.std() > 10


@pytest.mark.slow
@pytest.mark.parametrize("name", pretrained.names())
def test_samples_of_each_released_model_are_images(name):
    run = diffjax.load(f"pretrained:{name}")
    if is_clip(run.system):
        return
    assert samples_images(run.system)
    prompts = ["a small red circle", "a large blue square"] if run.system.text else None
    images = run.sample(num=None if prompts else 4, prompts=prompts)
    assert images.dtype == np.uint8 and (images.reshape(len(images), -1).std(axis=1) > 10).all()
    assert not np.array_equal(images[0], images[1])


@pytest.mark.slow
def test_released_digits_are_recognised(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert launch("sweep", "--workdir=pretrained:digits", "--steps=50", "--num=100") == 0
    [entry] = entries(tmp_path / "runs" / "pretrained" / "digits")
    assert entry["workdir"] == "pretrained:digits"
    assert entry["metrics"]["classifier_accuracy"]["value"] >= 0.95
