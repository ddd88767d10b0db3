"""Checkpoints: round trips, retention, damage, and errors."""

import contextlib
import itertools
import json
import shutil
import threading

import chex
import jax
import optax
import pytest
from jax import numpy as jnp
from jax.sharding import SingleDeviceSharding

from diffjax.errors import UserError
from diffjax.runs import read_checkpoints
from diffjax.runs.checkpoint_files import FORMAT, find_damage, list_steps
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.read_checkpoints import newest_step, read_variables
from diffjax.runs.state import ema_variables, initial_state
from diffjax.training.sharding import Devices
from tests import tiny

OPTIMIZERS = {"model": optax.adam(1e-3)}


def state(width=8, seed=0, step=0):
    def init(key):
        return {"params": {"model": {"w": jax.random.normal(key, (width, 4))}}, "counts": {"n": jnp.arange(3.0)}}

    fresh = initial_state(tiny.LossModel(init_function=init), OPTIMIZERS, jax.random.key(seed))
    ema = jax.tree.map(lambda x: x + 1, fresh.ema)
    return fresh.replace(step=jnp.asarray(step, jnp.int32), ema=ema)


def shapes(tree, sharding=None):
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def test_round_trip(tmp_path):
    saved = state(step=7)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(7, saved)
    checkpoints.close()
    reopened = Checkpoints(tmp_path / "c")
    assert reopened.latest_step() == 7
    chex.assert_trees_all_equal(reopened.restore(shapes(saved)), saved)
    template = jax.eval_shape(lambda: saved.variables)
    chex.assert_trees_all_equal(reopened.restore_ema(template), ema_variables(saved))


def test_restores_onto_other_devices(tmp_path):
    saved = state()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, saved)
    checkpoints.close()
    devices = Devices.create(num_devices=8, fsdp=4)
    template = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), saved, devices.state_sharding(saved)
    )
    restored = Checkpoints(tmp_path).restore(template)
    assert restored.ema["model"]["w"].addressable_shards[0].data.shape == (2, 4)
    chex.assert_trees_all_equal(restored.variables, saved.variables)


def test_retention(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 10):
        checkpoints.save(step, state(seed=step))
    checkpoints.close()
    remaining = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert remaining == [4, 8, 9]


def test_a_saved_step_is_not_overwritten(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(seed=0))
    checkpoints.save(1, state(seed=1))
    checkpoints.close()
    chex.assert_trees_all_equal(Checkpoints(tmp_path).restore(shapes(state())).ema, state(seed=0).ema)


def test_missing_checkpoints(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        Checkpoints(tmp_path).restore(shapes(state()))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state())
    checkpoints.close()
    with pytest.raises(UserError, match=r"no checkpoint of step 4 .* choose from 3"):
        Checkpoints(tmp_path).restore(shapes(state()), step=4)


def test_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state(width=8))
    checkpoints.close()
    with pytest.raises(UserError, match="does not fit this config's model"):
        Checkpoints(tmp_path).restore(shapes(state(width=16)))


def three(path):
    """Writes checkpoints of steps 1, 2 and 3 with these seeds."""
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(seed=step))
    return path


def files(path):
    """Returns the files of a checkpoint's arrays; the other files are Orbax's own."""
    return sorted(file for file in path.glob("*/**/*") if file.is_file())


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file):
    file.write_bytes(b"")


DAMAGES = {"cut": cut, "flipped": flip, "emptied": empty, "removed": lambda file: file.unlink()}


def test_damaged_files_are_named_and_the_earlier_checkpoint_is_used(tmp_path, capsys):
    """Damages one file per kind, from different items of the checkpoint; the digest finds every change."""
    whole = three(tmp_path / "whole")
    victims = files(whole / "3")
    for number, (kind, damage) in enumerate(DAMAGES.items()):
        copy = shutil.copytree(whole, tmp_path / kind)
        victim = copy / victims[number * len(victims) // len(DAMAGES)].relative_to(whole)
        damage(victim)
        with contextlib.closing(Checkpoints(copy)) as checkpoints:
            assert checkpoints.latest_step() == 2, kind
            chex.assert_trees_all_equal(checkpoints.restore(shapes(state())).ema, state(seed=2).ema)
            error = capsys.readouterr().err
            assert "checkpoint 3 in" in error and victim.relative_to(copy / "3").as_posix() in error
            with pytest.raises(UserError, match=r"checkpoint 3 in .* is damaged"):
                checkpoints.restore(shapes(state()), step=3)


@pytest.mark.slow
def test_damage_of_every_file_is_found(tmp_path):
    whole = three(tmp_path)
    for file in files(whole / "3"):
        content = file.read_bytes()
        for kind, damage in DAMAGES.items():
            damage(file)
            assert file.relative_to(whole / "3").as_posix() in (find_damage(whole / "3") or ""), (file, kind)
            file.write_bytes(content)
    assert find_damage(whole / "3") is None


def test_partly_deleted_checkpoint_is_skipped(tmp_path):
    path = three(tmp_path)
    for name in ("manifest.json", "variables", "health"):
        gone = path / "3" / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        with contextlib.closing(Checkpoints(path)) as checkpoints:
            assert checkpoints.latest_step() == 2


def test_damaged_checkpoint_is_replaced(tmp_path):
    path = three(tmp_path)
    flip(files(path / "3")[0])
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        checkpoints.save(3, state(seed=5))
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        assert checkpoints.latest_step() == 3
        chex.assert_trees_all_equal(checkpoints.restore(shapes(state())).ema, state(seed=5).ema)
    assert (path / "3.damaged").exists()


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    path = three(tmp_path)
    for step in "123":
        flip(files(path / step)[0])
    with contextlib.closing(Checkpoints(path)) as checkpoints, pytest.raises(UserError, match="every checkpoint in"):
        checkpoints.latest_step()


def test_checkpoint_formats(tmp_path):
    """Format 1 had no manifest and no health."""
    path = three(tmp_path)
    (path / "3" / "manifest.json").unlink()
    shutil.rmtree(path / "3" / "health")
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        restored = checkpoints.restore(shapes(state()))
        chex.assert_trees_all_equal(restored.ema, state(seed=3).ema)
        assert restored.health.skipped == 0
    manifest = path / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT + 1}'))
    with (
        contextlib.closing(Checkpoints(path)) as checkpoints,
        pytest.raises(UserError, match="format 3"),
    ):
        checkpoints.restore(shapes(state()), step=2)


MANIFESTS = {
    "a list": [],
    "a number": 3,
    "no fields": {},
    "a text for the format": {"format": "2", "sha256": {}},
    "a boolean for the format": {"format": True, "sha256": {}},
    "a list of digests": {"format": 2, "sha256": ["x"]},
    "numbers for digests": {"format": 2, "sha256": {"variables/_METADATA": 3}},
}


def test_damaged_manifests_are_damage(tmp_path):
    path = three(tmp_path)
    for name, manifest in MANIFESTS.items():
        (path / "3" / "manifest.json").write_text(json.dumps(manifest))
        assert find_damage(path / "3") is not None, name
    assert newest_step(path) == 2
    for text in (b"", b"\xff", b"[" * 100_000, b'{"format": 2'):
        (path / "3" / "manifest.json").write_bytes(text)
        assert "manifest.json cannot be read" in find_damage(path / "3")


LEFTOVERS = [
    "4.orbax-checkpoint-tmp-0",
    "4.orbax-checkpoint-tmp",
    "4.damaged",
    "4",
    "04",
    "-4",
    "step_4",
    "7",
    str(10**20),
]


def test_leftovers_do_not_prevent_saving(tmp_path, capsys):
    whole = three(tmp_path / "whole")
    for kind, names in {"folder": LEFTOVERS[:5], "file": LEFTOVERS[3:]}.items():
        path = shutil.copytree(whole, tmp_path / kind)
        for name in names:
            (path / name).mkdir() if kind == "folder" else (path / name).write_text("left")
        with contextlib.closing(Checkpoints(path, keep_last=1)) as checkpoints:
            assert checkpoints.latest_step() == 3, kind
            for step in (4, 5):
                checkpoints.save(step, state(seed=step))
        assert "could not be saved" not in capsys.readouterr().err, kind
        with contextlib.closing(Checkpoints(path)) as checkpoints:
            assert checkpoints.latest_step() == 5, kind
            chex.assert_trees_all_equal(checkpoints.restore(shapes(state()), 5).ema, state(seed=5).ema)


def test_steps_before_a_damaged_checkpoint_are_kept(tmp_path):
    """The damaged one is renamed, since as the newest it would be remaining in the place of a good one."""
    path = three(tmp_path)
    (path / "3").rename(path / "30")
    flip(files(path / "30")[0])
    with contextlib.closing(Checkpoints(path, keep_last=1)) as checkpoints:
        assert checkpoints.latest_step() == 2
        checkpoints.save(4, state(seed=4))
    assert list_steps(path) == [4]
    assert (path / "30.damaged").exists()


def test_set_aside_checkpoints_have_unique_names(tmp_path):
    path = three(tmp_path)
    (path / "3.damaged").write_text("one from before")
    flip(files(path / "3")[0])
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        checkpoints.save(3, state(seed=5))
    assert (path / "3.damaged").read_text() == "one from before"
    assert (path / "3.damaged.2").is_dir()


def test_on_saved_is_called_after_each_save(tmp_path):
    reported = []
    checkpoints = Checkpoints(tmp_path, on_saved=reported.append)
    checkpoints.save(1, state())
    checkpoints.save(2, state())
    assert reported == [1]
    checkpoints.close()
    assert reported == [1, 2]


def test_a_save_that_ends_training_is_not_reported_as_saved(tmp_path, monkeypatch):
    """The processes of several hosts stop with the error of a save, and close the checkpoints."""
    reported = []
    with (
        pytest.raises(RuntimeError, match="the other process stopped"),
        Checkpoints(tmp_path, on_saved=reported.append) as checkpoints,
    ):
        checkpoints.save(1, state())
        checkpoints.wait()
        monkeypatch.setattr("diffjax.cluster.multihost.is_single_process", lambda: False)
        monkeypatch.setattr("diffjax.cluster.multihost.any_process", bool)

        def save(*_, **__):
            raise RuntimeError("the other process stopped")

        monkeypatch.setattr(checkpoints._manager, "save", save)
        checkpoints.save(2, state())
    assert reported == [1] and list_steps(tmp_path) == [1]


@pytest.fixture
def replaced(tmp_path):
    """Yields a folder in which a thread replaces the only checkpoint repeatedly."""
    whole, path, ended = three(tmp_path / "whole") / "3", tmp_path / "run", threading.Event()
    shutil.copytree(whole, path / "1")

    def write():
        for step in itertools.count(2):
            shutil.copytree(whole, path / f"{step}.orbax-checkpoint-tmp")
            (path / f"{step}.orbax-checkpoint-tmp").rename(path / str(step))
            shutil.rmtree(path / str(step - 1))
            if ended.wait(0.7):  # longer than a read takes on a busy machine
                return

    writer = threading.Thread(target=write)
    writer.start()
    yield path
    ended.set()
    writer.join()


def test_reading_during_training(replaced, monkeypatch, capsys):
    monkeypatch.setattr(read_checkpoints, "_PAUSE", 0.2)
    template = jax.eval_shape(lambda: state().variables)
    for _ in range(10):
        variables, step = read_variables(replaced, template)
        chex.assert_trees_all_equal(variables, ema_variables(state(seed=3)))
        assert newest_step(replaced) >= step
    assert "damaged" not in capsys.readouterr().err


def test_reading_fails_with_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(read_checkpoints, "_PAUSE", 0.01)
    template = jax.eval_shape(lambda: state().variables)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint in"):
        read_variables(tmp_path / "empty", template)
    path = three(tmp_path / "run")

    def vanish(self, *arguments):
        steps = list_steps(path)
        (path / str(steps[-1])).rename(path / str(steps[-1] + 1))
        raise FileNotFoundError("a file\nof Orbax")

    monkeypatch.setattr(Checkpoints, "restore_ema", vanish)
    with pytest.raises(UserError, match=r"cannot be read \(FileNotFoundError: a file\); try again"):
        read_variables(path, template)
    assert list_steps(path)[-1] == 3 + read_checkpoints._MAX_ATTEMPTS
    with pytest.raises(UserError, match="no checkpoint of step 9 "):
        monkeypatch.undo()
        read_variables(path, template, 9)


@pytest.mark.parametrize("small_disk", [2], indirect=True)
def test_full_disk_fails_only_the_save(small_disk, capsys):
    random = lambda seed: state(width=100_000, seed=seed)  # noqa: E731, 3 MB, but for zeros
    checkpoints = Checkpoints(small_disk / "checkpoints")
    checkpoints.save(1, state(seed=1))
    checkpoints.save(2, random(2))
    checkpoints.save(3, state(seed=3))  # there is room reopened for a smaller one
    assert "step 2 could not be saved" in capsys.readouterr().err
    assert checkpoints.latest_step() == 3
    checkpoints.save(4, random(4))
    with pytest.raises(UserError, match=r"step 4 could not be saved .* make room, and run the same command again"):
        checkpoints.close()
    assert sorted(path.name for path in (small_disk / "checkpoints").iterdir()) == ["1", "3"]
    with contextlib.closing(Checkpoints(small_disk / "checkpoints")) as reopened:
        chex.assert_trees_all_equal(reopened.restore(shapes(state())).ema, state(seed=3).ema)
