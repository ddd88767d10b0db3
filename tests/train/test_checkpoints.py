"""Checkpoints: what goes in comes out, what is kept, and what does not fit."""

import chex
import jax
import optax
import pytest
from jax import numpy as jnp
from jax.sharding import SingleDeviceSharding

from diffjax.errors import UserError
from diffjax.train.checkpoints import Checkpoints
from diffjax.train.devices import Devices
from diffjax.train.state import ema_variables, initial_state
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
