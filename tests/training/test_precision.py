"""Training in bfloat16: what is kept and summed is float32, and the losses are those of float32 up to rounding."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.training.compiled_step import compile_step, make_optimizers, prepared
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec
from tests import tiny

STEPS = 5
SYSTEMS = ("digits", "vqvae", "vae", "gan", "clip_shapes")


def begun(base, dtype):
    text = {"text": tiny.TEXT | {"length": 6}} if base == "clip_shapes" else {}
    config = tiny.config(base, dtype=dtype, parallel__count=1, **text)
    system = models.build(config, ImageSpec(8, 1, 10))
    devices = Devices.create(count=1)
    step, state = compile_step(config, system, make_optimizers(config, system), devices, examples=64)
    if system.objective.prepare:
        state = prepared(system, state, tiny.batch(16))
    return devices, step, state


@pytest.mark.parametrize("base", SYSTEMS)
def test_what_is_kept_is_float32(base):
    devices, step, state = begun(base, "bfloat16")
    new, metrics = jax.eval_shape(step, state, devices.put_batch(tiny.batch(16)), {})
    kinds = {leaf.dtype for leaf in jax.tree.leaves((state, new, metrics))}
    assert kinds <= {jnp.dtype("float32"), jnp.dtype("int32"), jnp.dtype("bool")}
    text = step.lower(state, devices.put_batch(tiny.batch(16)), {}).as_text()
    assert "bf16" in text  # or the test would say nothing


@pytest.mark.parametrize("base", [pytest.param("digits", marks=pytest.mark.slow), "vae"])
def test_losses_are_those_of_float32_up_to_rounding(base):
    def losses(dtype):
        devices, step, state = begun(base, dtype)
        found = []
        for seed in range(STEPS):
            state, metrics = step(state, devices.put_batch(tiny.batch(16, seed)), {})
            found.append(float(metrics["loss"]))
        return np.array(found)

    exact, half = losses("float32"), losses("bfloat16")
    np.testing.assert_allclose(half, exact, rtol=0.02)
    assert (half != exact).any()
