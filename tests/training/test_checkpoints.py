"""Checkpoints: what goes in comes out, what is kept, and what does not fit."""

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
from diffjax.runs import checkpoints as checkpoints_module
from diffjax.runs.checkpoints import FORMAT, Checkpoints, damage, newest, read, steps_in
from diffjax.runs.state import ema_variables, initial_state
from diffjax.training.sharding import Devices
from diffjax.typing import Objective

OPTIMIZERS = {"model": optax.adam(1e-3)}


def state(width=8, seed=0, step=0):
    def init(key):
        return {"params": {"model": {"w": jax.random.normal(key, (width, 4))}}, "counts": {"n": jnp.arange(3.0)}}

    made = initial_state(Objective(init, {}), OPTIMIZERS, jax.random.key(seed))
    ema = jax.tree.map(lambda x: x + 1, made.ema)
    return made.replace(step=jnp.asarray(step, jnp.int32), ema=ema)


def shapes(of, sharding=None):
    sharding = sharding or SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), of)


def test_round_trip(tmp_path):
    saved = state(step=7)
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(7, saved)
    checkpoints.close()
    again = Checkpoints(tmp_path / "c")
    assert again.latest_step() == 7
    chex.assert_trees_all_equal(again.restore(shapes(saved)), saved)
    template = jax.eval_shape(lambda: saved.variables)
    chex.assert_trees_all_equal(again.restore_ema(template), ema_variables(saved))


def test_restores_onto_other_devices(tmp_path):
    saved = state()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, saved)
    checkpoints.close()
    devices = Devices.create(count=8, fsdp=4)
    template = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), saved, devices.state_sharding(saved)
    )
    restored = Checkpoints(tmp_path).restore(template)
    assert restored.ema["model"]["w"].addressable_shards[0].data.shape == (2, 4)
    chex.assert_trees_all_equal(restored.variables, saved.variables)


def test_keeps_the_last_and_every_so_many(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 10):
        checkpoints.save(step, state(seed=step))
    checkpoints.close()
    kept = sorted(int(path.name) for path in tmp_path.iterdir() if path.name.isdigit())
    assert kept == [4, 8, 9]


def test_a_saved_step_is_left_alone(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(seed=0))
    checkpoints.save(1, state(seed=1))
    checkpoints.close()
    chex.assert_trees_all_equal(Checkpoints(tmp_path).restore(shapes(state())).ema, state(seed=0).ema)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no checkpoint in"):
        Checkpoints(tmp_path).restore(shapes(state()))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state())
    checkpoints.close()
    with pytest.raises(UserError, match=r"no checkpoint of step 4 .* there are 3"):
        Checkpoints(tmp_path).restore(shapes(state()), step=4)


def test_another_model_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, state(width=8))
    checkpoints.close()
    with pytest.raises(UserError, match="does not fit this config's model"):
        Checkpoints(tmp_path).restore(shapes(state(width=16)))


def three(path):
    """Checkpoints of steps 1, 2 and 3, whose seeds they are."""
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(seed=step))
    return path


def files(path):
    """Of what is restored of a checkpoint; those beside them Orbax keeps for itself."""
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


@pytest.mark.parametrize("damaged", DAMAGES)
def test_whatever_file_is_damaged_is_named_and_the_checkpoint_before_is_used(damaged, tmp_path, capsys):
    whole = three(tmp_path / "whole")
    for number, file in enumerate(files(whole / "3")):
        copy = tmp_path / str(number)
        shutil.copytree(whole, copy)
        there = copy / file.relative_to(whole)
        DAMAGES[damaged](there)
        with contextlib.closing(Checkpoints(copy)) as checkpoints:
            assert checkpoints.latest_step() == 2, there
            chex.assert_trees_all_equal(checkpoints.restore(shapes(state())).ema, state(seed=2).ema)
            said = capsys.readouterr().err
            assert "checkpoint 3 in" in said and there.relative_to(copy / "3").as_posix() in said
            with pytest.raises(UserError, match=r"checkpoint 3 in .* is damaged"):
                checkpoints.restore(shapes(state()), step=3)


def test_a_checkpoint_half_deleted(tmp_path):
    path = three(tmp_path)
    for name in ("manifest.json", "variables", "health"):
        gone = path / "3" / name
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        with contextlib.closing(Checkpoints(path)) as checkpoints:
            assert checkpoints.latest_step() == 2


def test_a_damaged_checkpoint_is_made_again(tmp_path):
    path = three(tmp_path)
    flip(files(path / "3")[0])
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        checkpoints.save(3, state(seed=5))
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        assert checkpoints.latest_step() == 3
        chex.assert_trees_all_equal(checkpoints.restore(shapes(state())).ema, state(seed=5).ema)
    assert (path / "3.damaged").exists()


def test_where_all_are_damaged_nothing_is_begun_anew(tmp_path):
    path = three(tmp_path)
    for step in "123":
        flip(files(path / step)[0])
    with contextlib.closing(Checkpoints(path)) as checkpoints, pytest.raises(UserError, match="every checkpoint in"):
        checkpoints.latest_step()


def test_format_1_is_read_and_a_later_one_refused(tmp_path):
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
    with contextlib.closing(Checkpoints(path)) as checkpoints, pytest.raises(UserError, match="of format 3"):
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


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_a_manifest_of_other_types_is_damage(manifest, tmp_path):
    path = three(tmp_path)
    (path / "3" / "manifest.json").write_text(json.dumps(MANIFESTS[manifest]))
    assert damage(path / "3") is not None
    assert newest(path) == 2


@pytest.mark.parametrize("text", [b"", b"\xff", b"[" * 100_000, b'{"format": 2'])
def test_a_manifest_that_is_no_json_is_damage(text, tmp_path):
    path = three(tmp_path)
    (path / "3" / "manifest.json").write_bytes(text)
    assert "manifest.json cannot be read" in damage(path / "3")


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


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_leftovers_do_not_keep_steps_from_being_saved(kind, tmp_path, capsys):
    whole = three(tmp_path / "whole")
    for number, name in enumerate(LEFTOVERS):
        path = shutil.copytree(whole, tmp_path / str(number))
        left = path / name
        left.mkdir() if kind == "folder" else left.write_text("left")
        with contextlib.closing(Checkpoints(path, keep_last=1)) as checkpoints:
            assert checkpoints.latest_step() == 3, name
            for step in (4, 5):
                checkpoints.save(step, state(seed=step))
        assert "could not be saved" not in capsys.readouterr().err, name
        with contextlib.closing(Checkpoints(path)) as checkpoints:
            assert checkpoints.latest_step() == 5, name
            chex.assert_trees_all_equal(checkpoints.restore(shapes(state()), 5).ema, state(seed=5).ema)


def test_steps_before_a_damaged_checkpoint_are_saved_and_kept(tmp_path):
    """It is set aside: as the newest it would be kept in the place of a whole one."""
    path = three(tmp_path)
    (path / "3").rename(path / "30")
    flip(files(path / "30")[0])
    with contextlib.closing(Checkpoints(path, keep_last=1)) as checkpoints:
        assert checkpoints.latest_step() == 2
        checkpoints.save(4, state(seed=4))
    assert steps_in(path) == [4]
    assert (path / "30.damaged").exists()


def test_a_second_damaged_one_is_set_aside_too(tmp_path):
    path = three(tmp_path)
    (path / "3.damaged").write_text("one from before")
    flip(files(path / "3")[0])
    with contextlib.closing(Checkpoints(path)) as checkpoints:
        checkpoints.save(3, state(seed=5))
    assert (path / "3.damaged").read_text() == "one from before"
    assert (path / "3.damaged.2").is_dir()


def test_the_steps_that_are_whole_are_reported(tmp_path):
    reported = []
    checkpoints = Checkpoints(tmp_path, on_saved=reported.append)
    checkpoints.save(1, state())
    checkpoints.save(2, state())
    assert reported == [1]
    checkpoints.close()
    assert reported == [1, 2]


@pytest.fixture
def replaced(tmp_path):
    """A folder in which a thread puts a new checkpoint in the place of the one before, all the time."""
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


def test_a_run_is_read_while_it_saves_and_deletes(replaced, monkeypatch, capsys):
    monkeypatch.setattr(checkpoints_module, "_PAUSE", 0.2)
    template = jax.eval_shape(lambda: state().variables)
    for _ in range(10):
        variables, step = read(replaced, template)
        chex.assert_trees_all_equal(variables, ema_variables(state(seed=3)))
        assert newest(replaced) >= step
    assert "damaged" not in capsys.readouterr().err


def test_a_reader_gives_up_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints_module, "_PAUSE", 0.01)
    template = jax.eval_shape(lambda: state().variables)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no checkpoint in"):
        read(tmp_path / "empty", template)
    path = three(tmp_path / "run")

    def vanish(self, *given):
        steps = steps_in(path)
        (path / str(steps[-1])).rename(path / str(steps[-1] + 1))
        raise FileNotFoundError("a file\nof Orbax")

    monkeypatch.setattr(Checkpoints, "restore_ema", vanish)
    with pytest.raises(UserError, match=r"cannot be read \(FileNotFoundError: a file\); try again"):
        read(path, template)
    assert steps_in(path)[-1] == 3 + checkpoints_module._ATTEMPTS
    with pytest.raises(UserError, match="no checkpoint of step 9 "):
        monkeypatch.undo()
        read(path, template, 9)


@pytest.mark.parametrize("small_disk", [2], indirect=True)
def test_a_full_disk_fails_the_save_and_nothing_else(small_disk, capsys):
    random = lambda seed: state(width=100_000, seed=seed)  # noqa: E731, 3 MB, but for zeros
    checkpoints = Checkpoints(small_disk / "checkpoints")
    checkpoints.save(1, state(seed=1))
    checkpoints.save(2, random(2))
    checkpoints.save(3, state(seed=3))  # there is room again for a smaller one
    assert "step 2 could not be saved" in capsys.readouterr().err
    assert checkpoints.latest_step() == 3
    checkpoints.save(4, random(4))
    with pytest.raises(UserError, match=r"step 4 could not be saved .* make room, and run the same command again"):
        checkpoints.close()
    assert sorted(path.name for path in (small_disk / "checkpoints").iterdir()) == ["1", "3"]
    with contextlib.closing(Checkpoints(small_disk / "checkpoints")) as again:
        chex.assert_trees_all_equal(again.restore(shapes(state())).ema, state(seed=3).ema)
