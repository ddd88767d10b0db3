"""A run and its parts: trained in order, skipped when complete, and opened from the folders of the run."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
from ml_collections import ConfigDict

import diffjax
from diffjax import cli
from diffjax.errors import UserError
from diffjax.runs import config_files, dependencies
from diffjax.runs.loading import build_model
from diffjax.runs.workdir import Workdir
from diffjax.training import loop, resume
from tests import tiny
from tests.running import process, steps, wait_for_step

SHAPES = {"data__name": "shapes", "data__image_size": 8}


def train(folder, name, *others, workdir="run"):
    return cli.main(["launch.py", "train", f"--config={folder / name}.py", f"--workdir={folder / workdir}", *others])


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Returns a folder with configs of a VQ-VAE, a CLIP, and a DALL-E that has both as parts."""
    path = tmp_path_factory.mktemp("parts")
    tiny.write_dalle(path, train__num_preview_samples=2)
    return path


@pytest.fixture(scope="module")
def folder(configs):
    """Returns the folder of configs, with a trained DALL-E in `run`."""
    assert train(configs, "dalle") == 0
    return configs


@pytest.mark.slow
def test_parts_are_trained_into_folders_of_the_workdir(folder, capsys):
    for name in ("codec", "clip", "."):
        assert diffjax.load(folder / "run" / name).step == 4
    stored = json.loads((folder / "run" / "config.json").read_text())
    assert stored["parts"]["codec"]["system"] == "vqvae"
    assert (folder / "run" / "samples" / "step_00000004.png").exists()
    run, codec = diffjax.load(folder / "run"), diffjax.load(folder / "run" / "codec")
    np.testing.assert_array_equal(
        run.variables["frozen"]["codec"]["params"]["model"]["encoder"]["conv_out"]["kernel"],
        codec.variables["params"]["model"]["encoder"]["conv_out"]["kernel"],
    )


@pytest.mark.slow
def test_trained_parts_are_skipped_on_resumption(folder, capsys):
    copy = folder / "again"
    shutil.copytree(folder / "run", copy)
    for name in ("checkpoints", "samples", "events"):
        shutil.rmtree(copy / name)  # as if its own training had not begun
    (copy / "metrics.jsonl").unlink()
    (copy / "last_checkpoint.json").write_text('{"step": 0}')
    before = (copy / "codec" / "metrics.jsonl").read_text()
    assert train(folder, "dalle", workdir="again") == 0
    printed = capsys.readouterr().out
    assert printed.count("is trained to step 4") == 2  # the parts
    assert (copy / "codec" / "metrics.jsonl").read_text() == before
    assert diffjax.load(copy).step == 4
    longer = "--config.parts.clip.train.steps=6"
    assert train(folder, "dalle", longer, workdir="again") == 2  # the run was trained with the part as it is
    assert "parts.clip.train.steps was 4, now 6" in capsys.readouterr().err
    assert diffjax.load(copy / "clip").step == 4
    assert train(folder, "dalle", longer, "--allow_config_change", workdir="again") == 0
    assert diffjax.load(copy / "clip").step == 6
    run = diffjax.load(copy)
    assert run.step == 4
    assert [change["changes_numbers"] for change in run.config_changes] == [["parts.clip.train.steps"]]
    assert run.config.parts.clip.train.steps == 6 and run.config.train.steps == 4


@pytest.mark.slow
def test_a_signal_during_a_part_stops_the_run_and_the_same_command_resumes(folder):
    run = folder / "stopped"
    running = process(folder / "dalle.py", run, "--config.parts.codec.train.steps=100000")
    wait_for_step(run / "codec", 3, running)
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert "the same command resumes" in output
    assert json.loads((run / "config.json").read_text())["parts"]["codec"]["train"]["steps"] == 100000
    stopped = steps(run / "codec")[-1]["step"]
    fewer = f"--config.parts.codec.train.steps={stopped + 1}"
    assert train(folder, "dalle", fewer, "--allow_config_change", workdir="stopped") == 0
    assert [line["step"] for line in steps(run / "codec")] == list(range(1, stopped + 2))
    assert diffjax.load(run).step == 4


@pytest.mark.slow
@pytest.mark.parametrize("part", ["clip", "codec"])  # the first part, and the last
def test_the_folder_alone_resumes_a_pipeline_that_was_stopped_in_a_part(part, folder, tmp_path, monkeypatch):
    log_step = loop.Recorder.log_step

    def interrupt(self, step, *arguments, **options):
        if step == 2 and self.checkpoints._directory.parent.name == part:
            os.kill(os.getpid(), signal.SIGTERM)
        return log_step(self, step, *arguments, **options)

    run = tmp_path / "run"
    overrides = ["--config.train.steps=3", "--config.parts.codec.train.num_preview_samples=3"]
    with monkeypatch.context() as patched:
        patched.setattr(loop.Recorder, "log_step", interrupt)
        command = ["launch.py", "train", f"--config={folder / 'dalle.py'}", f"--workdir={run}", *overrides]
        assert cli.main(command) == 128 + signal.SIGTERM
    assert not (run / "checkpoints").exists()
    assert cli.main(["launch.py", "train", f"--workdir={run}"]) == 0
    assert diffjax.load(run).step == 3
    assert diffjax.load(run / "codec").config.train.num_preview_samples == 3
    assert [line["step"] for line in steps(run / part)] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["deleted", "emptied", "a broken link"])
def test_a_missing_part_is_an_error_of_one_line(damage, folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    shutil.rmtree(run / "codec")
    if damage == "emptied":
        (run / "codec").mkdir()
    elif damage == "a broken link":
        (run / "codec").symlink_to("../elsewhere")
    for verb, *flags in (("sample", f"--out={tmp_path}/x.png"), ("train",)):
        assert cli.main(["launch.py", verb, f"--workdir={run}", *flags]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and str(run / "codec") in error
    assert not (run / "codec" / "metrics.jsonl").exists()  # it is not trained again


@pytest.mark.slow
def test_a_missing_tokenizer_is_an_error(folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    (run / "tokenizer.json").unlink()
    assert cli.main(["launch.py", "train", f"--workdir={run}"]) == 2
    assert f"{run}/tokenizer.json: is missing, and the run was trained with it" in capsys.readouterr().err
    assert not (run / "tokenizer.json").exists()


def test_a_part_cannot_change_after_another_part_was_trained_with_it(tmp_path):
    pipeline = config_files.load_file(str(tiny.write_pipeline(tmp_path, "unclip", ["clip", "prior", "decoder"])))
    workdir = Workdir(tmp_path / "run")
    workdir.create()
    workdir.write_config(pipeline)
    changed = ConfigDict(pipeline.to_dict())
    changed.parts.clip.train.steps += 1
    resume.check_config(changed, workdir)  # nothing has trained
    (workdir.path / "decoder" / "checkpoints" / "4").mkdir(parents=True)
    resume.check_config(pipeline, workdir)
    with pytest.raises(UserError, match=r"decoder was trained with .* parts\.clip\.train\.steps was 2, now 3"):
        resume.check_config(changed, workdir)


@pytest.mark.slow
def test_a_run_may_be_moved(folder):
    moved = folder / "elsewhere" / "run"
    shutil.copytree(folder / "run", moved)
    assert diffjax.load(moved).workdir.path == moved


@pytest.mark.slow
def test_a_part_may_be_an_existing_run(folder):
    """An existing run is not trained."""
    codec = folder / "run" / "codec"
    others = [f"--config.codec={codec}", "--config.train.steps=2"]
    assert train(folder, "dalle", *others, workdir="other") == 0
    assert not (folder / "other" / "codec").exists()
    assert (folder / "other" / "clip").exists()


def test_errors_of_the_run_are_reported_before_a_part_is_trained(configs, capsys):
    assert train(configs, "dalle", "--config.model.heads=5", workdir="none") == 2
    assert "heads" in capsys.readouterr().err
    assert not (configs / "none").exists()


@pytest.mark.slow
def test_a_part_that_changed_is_refused(folder, capsys):
    assert train(folder, "dalle", "--config.parts.codec.codebook.size=16") == 2
    assert "was started with another config: parts.codec.codebook.size was 8, now 16" in capsys.readouterr().err


def parent_config(**parts):
    where = {"data": {"dir": ""}, "parallel": {}}
    return ConfigDict(
        {"codec": "@a", "clip": "", **where, "parts": {name: part | where for name, part in parts.items()}}
    )


def test_referenced_parts_are_listed_after_their_dependencies():
    parts = {"a": {"codec": "@c"}, "b": {"codec": ""}, "c": {"codec": "@b"}, "clip": {}}
    assert dependencies.part_names(parent_config(**parts)) == ["b", "c", "a"]
    with pytest.raises(UserError, match="refer to one another"):
        dependencies.part_names(parent_config(a={"codec": "@b"}, b={"codec": "@a"}))


def test_teachers_are_no_parts_of_an_export():
    config = parent_config(a={"teacher": "@b", "codec": "@d"}, b={"teacher": "@c"}, c={}, d={})
    with config.unlocked():
        config.teacher = "@c"
    assert dependencies.part_names(config) == ["c", "d", "b", "a"]
    assert dependencies.part_names(config, for_sampling=True) == ["d", "a"]


def test_a_standalone_part_includes_its_dependencies():
    pipeline = config_files.load_file(str(tiny.ROOT / "configs" / "unclip_shapes.py"))
    alone = dependencies.standalone_part(pipeline, "ar_prior")
    assert dependencies.part_names(alone) == ["clip", "pca"]
    assert "parts" not in dependencies.standalone_part(pipeline, "upsampler")
    assert dependencies.part_names(dependencies.standalone_part(alone, "pca")) == ["clip"]


def test_a_reference_without_its_part_is_refused(tmp_path):
    with pytest.raises(UserError, match="no part codec"):
        build_model(tiny.config("dalle_shapes", parts={}, **SHAPES), abstract=True)
    with pytest.raises(UserError, match="codec=@: must name a part"):
        build_model(tiny.config("dalle_shapes", codec="@", **SHAPES), workdir=tmp_path, abstract=True)


def test_the_hash_of_a_config_covers_its_parts():
    one, two = (tiny.config("dalle_shapes", train__steps=steps) for steps in (4, 4))
    assert dependencies.training_hash(one) == dependencies.training_hash(two)
    for change in ({"parts.codec.codebook.size": 16}, {"parts.clip.train.steps": 9}, {"parts.clip.seed": 5}):
        changed = ConfigDict(two.to_dict())
        changed.update_from_flattened_dict(change)
        assert dependencies.training_hash(changed) != dependencies.training_hash(one), change
    for change in ({"parts.clip.train.log_every": 9}, {"rerank.best_of": 9}, {"data.dir": "there"}):
        changed = ConfigDict(two.to_dict())
        changed.update_from_flattened_dict(change)
        assert dependencies.training_hash(changed) == dependencies.training_hash(one), change
