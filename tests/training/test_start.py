"""Initial weights from another run: what is taken, what is fresh, and what is refused."""

import shutil
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models.parameter_paths import check_patterns, flatten, matches, unflatten
from diffjax.runs import exported_weights
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.config_files import load_file
from diffjax.runs.loading import build_model, load
from diffjax.runs.workdir import Workdir
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


@pytest.mark.slow
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


@pytest.mark.parametrize("parameterization", ["consistency", "edm"])
def test_a_start_from_a_consistency_model_is_noted(tmp_path, parameterization):
    diffusion = {"schedule": "edm", "continuous": True, "parameterization": parameterization, "weighting": "edm"}
    changes = {f"diffusion__{name}": value for name, value in diffusion.items()}
    run = Workdir(tmp_path / "run")
    run.create()
    run.write_config(tiny.config(**changes, **PIXEL))
    exported_weights.save(run.weights, tiny.randomised(build_model(run.read_config(), run.path).init), 0)
    config = tiny.config(train__start=str(run.path), **changes, **PIXEL)
    summary = read_start(config, build_model(config)).summary
    assert ("one-step samples become worse" in summary) == (parameterization == "consistency")
    assert f"starts from {run.path}, step 0" in summary.splitlines()[-1]


def test_weights_that_do_not_fit_are_named(trained_runs):
    config = tiny.config(train__start=str(trained_runs("pixel")), **PIXEL | {"model": {**tiny.DIT, "width": 16}})
    model = build_model(config)
    with pytest.raises(
        UserError, match=r"does not fit the model: .*\(\d+(x\d+)* instead of \d+.* and \d+ more; .*start_fresh"
    ):
        read_start(config, model)


@pytest.mark.slow
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


def with_base(base=PIXEL, **changes):
    """Returns the changes to the tiny config of a run that starts from its part `base`."""
    steps = {"train__steps": 2, "train__batch_size": 8}
    part = tiny.config(**base | steps).to_dict()
    return {"train__start": "@base", "parts": {"base": part}} | PIXEL | steps | changes


def test_a_start_from_a_part_is_checked_before_the_part_is_trained_and_then_read(tmp_path):
    config, run = tiny.config(**with_base()), Workdir(tmp_path / "run")
    model = build_model(config, run.path, abstract=True)
    assert read_start(config, model, run) is None
    other = tiny.config(**with_base(base=PIXEL | {"model": {**tiny.DIT, "width": 16}}))
    with pytest.raises(UserError, match=r"train.start=@base: does not fit the model: .* instead of"):
        read_start(other, model, run)

    base = Workdir(run.path / "base")
    base.create()
    base.write_config(config.parts.base)
    params = tiny.randomised(build_model(config.parts.base, base.path).init)
    exported_weights.save(base.weights, params, 0)
    start = read_start(config, model, run)
    for name, leaf in flatten(load(base.path).variables["params"]).items():
        np.testing.assert_array_equal(start.variables[f"params/{name}"], leaf)


@pytest.mark.parametrize("variant", ["easy_consistency", "continuous_consistency"])
def test_consistency_models_fit_the_diffusion_model_that_they_start_from(variant, tmp_path):
    config = load_file(f"{tiny.ROOT / 'configs/few_step_digits.py'}:{variant}")
    run = Workdir(tmp_path / "run")
    assert read_start(config, build_model(config, run.path, abstract=True), run) is None


@pytest.mark.slow
@pytest.mark.parametrize("lora", [0, 1])
def test_one_command_trains_a_part_and_then_a_run_that_starts_from_it(lora, tmp_path, capsys):
    file = tiny.write(
        tmp_path / "config.py", **with_base(train__lora={"rank": lora, "alpha": 8.0, "targets": ("mlp_in",)})
    )
    run = tmp_path / "run"
    assert launch("train", f"--config={file}", f"--workdir={run}") == 0
    printed = capsys.readouterr().out
    assert printed.index("part 1 of 1: base") < printed.index("starts from @base, step 2")
    assert launch("export", f"--workdir={run}", f"--out={tmp_path / 'exported'}") == 0
    assert not (tmp_path / "exported" / "base").exists()  # samples do not need it


def each(pattern, change):
    """Returns a function that changes the files of a run that match a pattern."""

    def change_files(run):
        for file in [*run.glob(pattern)]:
            change(file)

    return change_files


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def change_last_byte(file):
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))


# What is done to a copy of a run, or of an exported run, and the error of a run that starts from it.
DAMAGES = {
    "no manifests": (each("checkpoints/*/manifest.json", Path.unlink), "every checkpoint in"),
    "cut manifests": (each("checkpoints/*/manifest.json", cut), "every checkpoint in"),
    "cut arrays": (each("checkpoints/*/variables/d/*", cut), "every checkpoint in"),
    "no checkpoint": (each("checkpoints", shutil.rmtree), "start has no checkpoint yet"),
    "no config": (each("config.json", Path.unlink), "config.json: is missing"),
    "cut config": (each("config.json", cut), "config.json: is not JSON"),
    "no run": (each("*", lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink()), "is not a run"),
    "cut export": (each("weights.safetensors", cut), "weights.safetensors cannot be read"),
    "changed export": (each("weights.safetensors", change_last_byte), "weights.safetensors is damaged"),
    "empty export": (each("weights.safetensors", lambda file: file.write_bytes(b"")), "weights.safetensors cannot be"),
}


@pytest.fixture(scope="module")
def exported(trained_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("start") / "exported"
    assert launch("export", f"--workdir={trained_runs('pixel')}", f"--out={folder}") == 0
    return folder


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("start") / "config.py", **PIXEL)


def check_refused(capsys, config, tmp_path, message, *flags):
    """Checks that a run is refused with one error, after lines on damage, and that nothing is written."""
    capsys.readouterr()
    assert launch("train", f"--config={config}", f"--workdir={tmp_path / 'run'}", *flags) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert all("is damaged and skipped" in note for note in notes)
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_start_is_refused(damage, trained_runs, exported, config_file, tmp_path, capsys):
    change, message = DAMAGES[damage]
    start = shutil.copytree(exported if "export" in damage else trained_runs("pixel"), tmp_path / "start")
    change(start)
    check_refused(capsys, config_file, tmp_path, message, f"--config.train.start={start}")


# Flags, with START for a run of the same network, and the error.
REFUSED = {
    "no folder": ("--config.train.start=/nowhere", "train.start=/nowhere: /nowhere is not a run"),
    "a file": (f"--config.train.start={__file__}", f"{__file__}: is a file"),
    "a part of another config": ("--config.train.start=@base", "train.start=@base: the config has no part base"),
    "fresh without start": ("--config.train.start_fresh=label", "train.start_fresh=('label',): requires train.start"),
    "fresh nothing": (
        "START --config.train.start_fresh=lable",
        "train.start_fresh=lable: matches no parameter; did you",
    ),
    "fresh everything": ("START --config.train.start_fresh=*", "train.start_fresh=('*',): matches all weights"),
    "other shapes": (
        "START --config.model.width=16",
        "does not fit the model: model/block_0/mlp_in/bias (32 instead of",
    ),
    "freeze nothing": ("--config.train.freeze=qvk,label", "train.freeze=qvk: matches no parameter; did you mean qkv"),
    "freeze everything": ("--config.train.freeze=*", "train.freeze=('*',): matches all parameters"),
    "LoRA of nothing": ("--config.train.lora.rank=2", "train.lora.rank=2: requires train.start"),
    "LoRA of no layer": (
        "START --config.train.lora.rank=2 --config.train.lora.targets=conv",
        "targets=conv: matches no",
    ),
    "LoRA of all rank": ("START --config.train.lora.rank=9999", "train.lora.rank=9999: must be at most"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_initial_weights_that_are_refused(case, trained_runs, config_file, tmp_path, capsys):
    flags, message = REFUSED[case]
    flags = flags.replace("START", f"--config.train.start={trained_runs('pixel')}").split()
    check_refused(capsys, config_file, tmp_path, message, *flags)


def test_a_file_in_the_place_of_the_folder(config_file, tmp_path, capsys):
    (tmp_path / "run").write_text("text")
    error = refused(capsys, "train", f"--config={config_file}", f"--workdir={tmp_path / 'run'}")
    assert error == f"error: --workdir={tmp_path / 'run'}: is not a folder; choose another path\n"


def test_a_start_without_captions_has_no_tokenizer(monkeypatch):
    """A text-conditioned model then trains a new tokenizer."""
    config = tiny.stage("base", model=tiny.DIT, train__start="unconditional", train__start_fresh=("*caption*",))
    model = build_model(config)
    shapes = model.variable_shapes
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    run = types.SimpleNamespace(system=model, variables=variables, step=1, tokenizer=None)
    monkeypatch.setattr("diffjax.training.start.load", lambda *_, **__: run)
    assert read_start(config, model).tokenizer is None


def test_a_flow_map_starts_from_a_denoiser(tmp_path):
    """The interval of a step, which only the flow map has, starts without effect."""
    flow = {"schedule": "rectified_flow", "continuous": True, "parameterization": "flow(time_scale=0.001)"}
    changes = PIXEL | {f"diffusion__{name}": value for name, value in flow.items()}
    run = Workdir(tmp_path / "run")
    run.create()
    run.write_config(tiny.config(**changes))
    exported_weights.save(run.weights, tiny.randomised(build_model(run.read_config(), run.path).init), 0)
    changes |= {"diffusion__loss": "mean_flow", "diffusion__next_times": "second_sample", "train__start": str(run.path)}
    config = tiny.config(**changes)
    start = read_start(config, build_model(config))
    for weights, prefix in ((start.variables, "params/"), (start.ema, "")):
        for name, leaf in flatten(load(run.path).variables["params"]).items():
            np.testing.assert_array_equal(weights[prefix + name], leaf)
        assert weights[f"{prefix}model/embedding/kernel"].shape == (64, 8)
        assert not np.any(weights[f"{prefix}model/embedding/kernel"])
    with config.unlocked():
        config.train.lora = {"rank": 1}
    with pytest.raises(UserError, match=r"model/embedding/kernel \(missing\)"):
        read_start(config, build_model(config))


def test_fresh_weights_require_a_start(tmp_path):
    config = tiny.config(train__start_fresh=("label",), **PIXEL)
    with pytest.raises(UserError, match=r"train.start_fresh=.*requires train.start"):
        read_start(config, build_model(config))
