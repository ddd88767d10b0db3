"""Initial weights from another run: what is taken, what is fresh, and what is refused."""

import shutil

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models.parameter_paths import check_patterns, flatten, matches, unflatten
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.loading import build_model, load
from diffjax.training.compiled_step import compile_step, make_optimizers
from diffjax.training.sharding import Devices
from diffjax.training.start import read_start
from tests import tiny
from tests.command_line import launch, refused

# A run of the same network as the shared run "pixel".
PIXEL = {
    "model": tiny.DIT,
    "train__num_preview_samples": 0,
    "parallel__num_devices": 1,
    "train__learning_rate_schedule": "constant",
}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("label", True),
        ("down_*", False),
        ("model", True),
        ("model/label/embedding", True),
        ("*/embedding", True),
        ("lab", False),
        ("embedding/label", False),
    ],
)
def test_a_pattern_is_consecutive_names_of_a_path(pattern, expected):
    assert matches("model/label/embedding", [pattern]) is expected


def test_a_pattern_without_a_match_names_the_nearest():
    with pytest.raises(UserError, match=r"^train.freeze=dwon_0: matches no parameter; did you mean down_0\b"):
        check_patterns("train.freeze", ("dwon_0",), ["model/down_0/kernel", "model/up_0/kernel"])
    with pytest.raises(
        UserError, match=r"^train.freeze=zzz: matches no parameter; choose from model/down_0, model/up_0$"
    ):
        check_patterns("train.freeze", ("zzz",), ["model/down_0/kernel", "model/up_0/kernel"])


def test_nested_dictionaries_are_their_leaves_by_path():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree


def initial(config):
    """Returns the state before the first step, before and after the weights of the start run are applied."""
    model = build_model(config)
    start = read_start(config, model)
    _, state = compile_step(config, model, make_optimizers(config, model), Devices.create(num_devices=1), examples=64)
    return jax.tree.map(np.array, state), start.apply(state)


def test_the_first_state_has_the_weights_and_averages_of_the_run(trained_runs):
    run = trained_runs("pixel")
    fresh, state = initial(tiny.config(train__start=str(run), seed=1, **PIXEL))
    last, averaged = load(run, averaged=False), load(run)
    jax.tree.map(np.testing.assert_array_equal, state.variables["params"], last.variables["params"])
    jax.tree.map(np.testing.assert_array_equal, state.ema, averaged.variables["params"])
    assert state.step == 0
    jax.tree.map(np.testing.assert_array_equal, state.optimizer, fresh.optimizer)
    differences = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.variables["params"], state.ema)
    assert max(jax.tree.leaves(differences)) > 0  # the averages are not the weights themselves


def test_listed_weights_are_fresh(trained_runs):
    run = trained_runs("pixel")
    fresh, state = initial(tiny.config(train__start=str(run), train__start_fresh=("label", "patch/kernel"), **PIXEL))
    theirs, ours = flatten(load(run, averaged=False).variables["params"]), flatten(state.variables["params"])
    initial_params = flatten(fresh.variables["params"])
    for name, leaf in ours.items():
        is_fresh = "/label/" in name or name.endswith("patch/kernel")
        np.testing.assert_array_equal(leaf, initial_params[name] if is_fresh else theirs[name])


def test_weights_that_do_not_fit_are_named(trained_runs):
    config = tiny.config(train__start=str(trained_runs("pixel")), **PIXEL | {"model": {**tiny.DIT, "width": 16}})
    model = build_model(config)
    with pytest.raises(
        UserError, match=r"does not fit the model: .*\(\d+(x\d+)* instead of \d+.* and \d+ more; .*start_fresh"
    ):
        read_start(config, model)


def test_a_run_starts_from_a_run_or_its_export_and_then_resumes_without_it(trained_runs, tmp_path, capsys):
    source = shutil.copytree(trained_runs("pixel"), tmp_path / "source")
    assert launch("export", f"--workdir={source}", f"--out={tmp_path / 'exported'}") == 0
    config = tiny.write(tmp_path / "config.py", **PIXEL)
    run = ["train", f"--config={config}", f"--config.train.start={tmp_path / 'exported'}"]
    refused(capsys, *run, "--config.train.start_fresh=lable", f"--workdir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
    workdir = f"--workdir={tmp_path / 'run'}"
    assert launch(*run, "--config.train.steps=2", workdir) == 0
    assert f"starts from {tmp_path / 'exported'}, step 4" in capsys.readouterr().out
    assert load(tmp_path / "run").config.train.start == str(tmp_path / "exported")
    shutil.rmtree(tmp_path / "exported")
    assert launch("train", workdir, "--config.train.steps=3") == 0
    assert list_steps(tmp_path / "run" / "checkpoints")[-1] == 3


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ("/nowhere", "train.start=/nowhere: /nowhere is not a run"),
        ("@codec", "train.start=@codec: must be the folder"),
        ("damaged", "train.start=damaged: every checkpoint in"),
    ],
)
def test_an_unreadable_start_is_refused_and_nothing_is_written(
    start, message, trained_runs, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if start == "damaged":
        shutil.copytree(trained_runs("pixel"), tmp_path / start)
        for manifest in (tmp_path / start).glob("checkpoints/*/manifest.json"):
            manifest.unlink()
    config = tiny.write(tmp_path / "config.py", **PIXEL)
    capsys.readouterr()
    assert launch("train", f"--config={config}", f"--workdir={tmp_path / 'run'}", f"--config.train.start={start}") == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_fresh_weights_require_a_start(tmp_path):
    config = tiny.config(train__start_fresh=("label",), **PIXEL)
    with pytest.raises(UserError, match=r"train.start_fresh=.*requires train.start"):
        read_start(config, build_model(config))
