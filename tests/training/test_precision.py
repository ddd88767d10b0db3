"""Training in bfloat16: the state and sums are float32, and the losses those of float32 up to rounding."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.training.compiled_step import compile_step, fit_to_first_batch, make_optimizers
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec
from tests import tiny

pytestmark = pytest.mark.slow
STEPS = 5


def prepare(base, dtype):
    text = {"text": tiny.TEXT | {"length": 6}} if base == "clip_shapes" else {}
    config = tiny.config(base, dtype=dtype, parallel__num_devices=1, **text)
    model = models.build(config, ImageSpec(8, 1, 10))
    devices = Devices.create(num_devices=1)
    step, state = compile_step(config, model, make_optimizers(config, model), devices, examples=64)
    return devices, step, fit_to_first_batch(model, state, tiny.batch(16))


@pytest.mark.parametrize("base", ["digits", "vqvae", "gan", "clip_shapes"])
def test_state_and_metrics_are_float32(base):
    devices, step, state = prepare(base, "bfloat16")
    new, metrics = jax.eval_shape(step, state, devices.put_batch(tiny.batch(16)), {})
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((state, new, metrics))}
    assert dtypes <= {jnp.dtype("float32"), jnp.dtype("int32"), jnp.dtype("bool")}
    assert "bf16" in step.lower(state, devices.put_batch(tiny.batch(16)), {}).as_text()


def test_losses_equal_those_of_float32_up_to_rounding():
    def losses(dtype):
        devices, step, state = prepare("vae", dtype)
        values = []
        for seed in range(STEPS):
            state, metrics = step(state, devices.put_batch(tiny.batch(16, seed)), {})
            values.append(float(metrics["loss"]))
        return np.array(values)

    exact, half = losses("float32"), losses("bfloat16")
    np.testing.assert_allclose(half, exact, rtol=0.02)
    assert (half != exact).any()
