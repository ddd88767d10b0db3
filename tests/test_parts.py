"""A run and the parts that it stands on: trained in order, skipped when done, opened where they lie."""

import json
import shutil
import signal

import numpy as np
import pytest
from ml_collections import ConfigDict

import diffjax
from diffjax import commands, config
from diffjax.errors import UserError
from diffjax.run import blueprint
from tests import tiny
from tests.running import process, steps, wait_for_step

SHAPES = {"data__name": "shapes", "data__image_size": 8}


def train(folder, name, *others, workdir="run"):
    return commands.main(
        ["launch.py", "train", f"--config={folder / name}.py", f"--workdir={folder / workdir}", *others]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Configs of a VQ-VAE, a CLIP and a DALL-E on both, and a run of the last."""
    path = tmp_path_factory.mktemp("parts")
    tiny.write_dalle(path)
    assert train(path, "dalle") == 0
    return path


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


def test_what_is_done_is_skipped_and_the_rest_goes_on(folder, capsys):
    copy = folder / "again"
    shutil.copytree(folder / "run", copy)
    shutil.rmtree(copy / "checkpoints")
    before = (copy / "codec" / "metrics.jsonl").read_text()
    assert train(folder, "dalle", workdir="again") == 0
    said = capsys.readouterr().out
    assert said.count("is trained to step 4") == 2  # the parts
    assert (copy / "codec" / "metrics.jsonl").read_text() == before
    assert diffjax.load(copy).step == 4
    assert train(folder, "dalle", "--config.parts.clip.train.steps=6", workdir="again") == 0
    assert diffjax.load(copy / "clip").step == 6
    assert diffjax.load(copy).step == 4


@pytest.mark.slow
def test_a_signal_in_a_part_ends_all_and_the_same_command_continues(folder):
    run = folder / "stopped"
    running = process(folder / "dalle.py", run, "--config.parts.codec.train.steps=100000")
    wait_for_step(run / "codec", 3, running)
    running.send_signal(signal.SIGTERM)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert "the same command continues" in output
    assert not (run / "config.json").exists()
    stopped = steps(run / "codec")[-1]["step"]
    assert train(folder, "dalle", f"--config.parts.codec.train.steps={stopped + 1}", workdir="stopped") == 0
    assert [line["step"] for line in steps(run / "codec")] == list(range(1, stopped + 2))
    assert diffjax.load(run).step == 4


def test_a_run_may_be_moved(folder):
    moved = folder / "elsewhere" / "run"
    shutil.copytree(folder / "run", moved)
    assert diffjax.load(moved).workdir.path == moved


@pytest.mark.slow
def test_a_part_may_be_a_run_that_there_is(folder):
    """Then it is not trained."""
    codec = folder / "run" / "codec"
    others = [f"--config.codec={codec}", "--config.train.steps=2"]
    assert train(folder, "dalle", *others, workdir="other") == 0
    assert not (folder / "other" / "codec").exists()
    assert (folder / "other" / "clip").exists()


def test_an_error_of_the_run_is_said_before_a_part_is_trained(folder, capsys):
    assert train(folder, "dalle", "--config.model.heads=5", workdir="none") == 2
    assert "heads" in capsys.readouterr().err
    assert not (folder / "none").exists()


def test_a_part_that_changed_is_refused(folder, capsys):
    assert train(folder, "dalle", "--config.parts.codec.codes.size=16") == 2
    assert "was started with another config: codes.size was 8" in capsys.readouterr().err


def made(**parts):
    where = {"data": {"dir": ""}, "parallel": {}}
    return ConfigDict(
        {"codec": "@a", "clip": "", **where, "parts": {name: part | where for name, part in parts.items()}}
    )


def test_parts_come_after_what_they_stand_on_and_only_those_that_are_referred_to():
    parts = {"a": {"codec": "@c"}, "b": {"codec": ""}, "c": {"codec": "@b"}, "clip": {}}
    assert config.part_names(made(**parts)) == ["b", "c", "a"]
    with pytest.raises(UserError, match="stand on one another"):
        config.part_names(made(a={"codec": "@b"}, b={"codec": "@a"}))


def test_a_part_alone_has_what_it_stands_on():
    chain = config.load_file(str(tiny.ROOT / "configs" / "unclip_shapes.py"))
    alone = config.part_alone(chain, "ar_prior")
    assert config.part_names(alone) == ["clip", "pca"]
    assert "parts" not in config.part_alone(chain, "upsampler")
    assert config.part_names(config.part_alone(alone, "pca")) == ["clip"]


def test_a_reference_without_its_part_is_refused(tmp_path):
    with pytest.raises(UserError, match="no part codec"):
        blueprint(tiny.config("dalle_shapes", parts={}, **SHAPES))
    with pytest.raises(UserError, match="codec=@ names no part"):
        blueprint(tiny.config("dalle_shapes", codec="@", **SHAPES), home=tmp_path)


def test_what_a_part_is_trained_to_counts_for_what_the_run_comes_to():
    one, two = (tiny.config("dalle_shapes", train__steps=steps) for steps in (4, 4))
    assert config.training_key(one) == config.training_key(two)
    for change in ({"parts.codec.codes.size": 16}, {"parts.clip.train.steps": 9}, {"parts.clip.seed": 5}):
        changed = ConfigDict(two.to_dict())
        changed.update_from_flattened_dict(change)
        assert config.training_key(changed) != config.training_key(one), change
    for change in ({"parts.clip.train.log_every": 9}, {"rerank.best_of": 9}, {"data.dir": "there"}):
        changed = ConfigDict(two.to_dict())
        changed.update_from_flattened_dict(change)
        assert config.training_key(changed) == config.training_key(one), change
