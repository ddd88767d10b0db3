"""Runs trained together leave what each leaves alone."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import pytest

import diffjax
from diffjax import cli, ensemble
from diffjax.ensemble import can_train_together, differing_fields, train_together
from diffjax.errors import UserError
from diffjax.runs.workdir import Workdir
from diffjax.training.diagnose import replay
from diffjax.training.loop import Record
from diffjax.training.train import train
from tests import running, tiny

DIFFUSION = {"parallel__count": 1, "model__multipliers": (1,), "model__attention_resolutions": ()}
CODES = {"parallel__count": 1, "codes__initial": "data"}  # fitted to each member's own first batch
GROUPS = {  # the config file, and what each member changes in it
    "diffusion": (
        "digits",
        DIFFUSION,
        DIFFUSION | {"seed": 1, "train__learning_rate": 3e-3, "diffusion__schedule": "linear"},
        DIFFUSION | {"seed": 1, "train__learning_rate": 1e30},  # diverges
    ),
    "vae": ("vae", {}, {"loss__beta": 10.0, "train__beta2": 0.999, "train__ema_decay": 0.2}),
    "vqvae": ("vqvae", CODES, CODES | {"seed": 1}),
}


def configs(name: str, **changes):
    base, *members = GROUPS[name]
    return [tiny.config(base, train__sample_count=0, **member, **changes) for member in members]


def workdirs(path, count: int = 2):
    return [Workdir(path / str(member)) for member in range(count)]


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """name -> the folder of a group, and what training it returned."""
    trained = {}

    def get(name):
        if name not in trained:
            path, members = tmp_path_factory.mktemp(name), configs(name)
            trained[name] = path, train_together(members, workdirs(path, len(members)))
        return trained[name]

    return get


def saved(path) -> list[int]:
    return sorted(int(step.name) for step in (path / "checkpoints").iterdir() if step.name.isdigit())


def assert_same_run(found, expected):
    assert json.loads((found / "config.json").read_text()) == json.loads((expected / "config.json").read_text())
    for row, other in zip(running.steps(found), running.steps(expected), strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            np.testing.assert_allclose(row[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)  # noqa: E731
    jax.tree.map(close, diffjax.load(found).variables, diffjax.load(expected).variables)


@pytest.mark.parametrize("name", sorted(GROUPS))
def test_a_member_is_what_training_alone_leaves(group, tmp_path, name):
    """The second one, with all that it differs in from the first, of whose config the program is made."""
    path, errors = group(name)
    train(configs(name)[1], Workdir(tmp_path))
    assert errors[1] is None
    assert saved(path / "1") == saved(tmp_path)
    assert_same_run(path / "1", tmp_path)


def test_a_member_that_diverges_is_dropped(group):
    """The second one is as trained alone: see above."""
    path, errors = group("diffusion")
    assert errors[:2] == [None, None]
    assert errors[2].startswith("step 3: ") and "the last good checkpoint is that of step 2" in errors[2]
    assert [saved(path / str(member)) for member in range(3)] == [[2, 4], [2, 4], [2]]
    assert [row["step"] for row in running.steps(path / "2")] == [1, 2]
    replayed = replay(Workdir(path / "2"))
    assert replayed.step == 3 and (replayed.gradients or not np.isfinite(replayed.losses["model"]).all())


def test_what_is_finished_or_dropped_is_left_alone(group, monkeypatch):
    path, errors = group("diffusion")
    monkeypatch.setattr(ensemble.runs, "_train", None)
    assert train_together(configs("diffusion"), workdirs(path, 3)) == errors


def test_stopped_killed_and_continued(group, tmp_path, monkeypatch):
    """A signal lets the step in hand be saved; then it is as if a kill came before the second member's was written."""
    settle = Record.settle

    def interrupt(self, step, *given, **options):
        if step == 2 and self is first[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        first.append(self)
        return settle(self, step, *given, **options)

    first = []
    with monkeypatch.context() as patched, pytest.raises(ensemble.Stopped, match="stopped by signal 15"):
        patched.setattr(Record, "settle", interrupt)
        train_together(configs("vae"), workdirs(tmp_path))
    assert [saved(tmp_path / member) for member in "01"] == [[2], [2]]
    shutil.rmtree(tmp_path / "1" / "checkpoints" / "2")
    assert train_together(configs("vae"), workdirs(tmp_path)) == [None, None]
    for member in "01":
        assert_same_run(tmp_path / member, group("vae")[0] / member)


def test_one_device_or_eight(group, tmp_path):
    found = configs("vae", parallel__count=1)
    assert train_together(found, workdirs(tmp_path)) == [None, None]
    for member, config in zip(workdirs(tmp_path), configs("vae"), strict=True):
        member.write_config(config)  # else they differ in parallel.count
        assert_same_run(member.path, group("vae")[0] / member.path.name)


REFUSED = {
    "a size": ("model.channels", {"model__channels": 16}),
    "a whole number": ("train.batch_size", {"train__batch_size": 32}),
    "a rate that decides": ("train.clip_norm", {"train__clip_norm": 0.0}),
    "a share that decides": ("diffusion.label_dropout", {"diffusion__label_dropout": 0.2}),
    "a function": ("diffusion.schedule", {"diffusion__schedule": "learned"}),
    "another length": ("diffusion.timesteps", {"diffusion__timesteps": 10}),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_no_number_of_the_program_is_refused_by_name(case, tmp_path):
    name, changes = REFUSED[case]
    members = [tiny.config(), tiny.config(**changes, seed=1)]
    assert differing_fields(members) == sorted([name, "seed"])
    assert not can_train_together(members)
    with pytest.raises(UserError, match=f"differ in {name} are trained one by one"):
        train_together(members, workdirs(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("parallel", [{"parallel__mode": "pmap"}, {"parallel__fsdp": 2}])
def test_other_layouts_are_refused(parallel, tmp_path):
    members = [tiny.config(**parallel), tiny.config(**parallel, seed=1)]
    assert not can_train_together(members)
    with pytest.raises(UserError, match=r"parallel\.mode='jit'"):
        train_together(members, workdirs(tmp_path))


def test_runs_that_stand_on_parts_are_refused(tmp_path):
    members = [tiny.config("dalle_shapes", train__learning_rate=rate) for rate in (1e-3, 2e-3)]
    with pytest.raises(UserError, match="parts are trained one by one"):
        train_together(members, workdirs(tmp_path))


def test_one_folder_for_two_is_refused(tmp_path):
    with pytest.raises(UserError, match="a folder each"):
        train_together(configs("vae"), [Workdir(tmp_path)] * 2)


def test_what_is_wrong_with_one_member_is_said_as_ever(tmp_path):
    members = [tiny.config("vae"), tiny.config("vae", loss__beta=-1.0)]
    assert can_train_together(members)
    with pytest.raises(UserError, match=r"loss\.beta=-1"):
        train_together(members, workdirs(tmp_path))


def test_benchmark(tmp_path):
    config = tiny.write(tmp_path / "tiny.py", "vae")
    flags = ["--members=2", "--steps=1", "--samples=0", f"--out={tmp_path}/b.json"]
    assert cli.main(["launch.py", "benchmark", f"--config={config}", *flags]) == 0
    found = json.loads((tmp_path / "b.json").read_text())
    assert found["speedup"] == found["one_by_one_seconds"] / found["together_seconds"] > 0
