"""Batches over devices: every example once, in order, whatever the size."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.inference.batching import Spread


@pytest.mark.parametrize("count", [1, 8, 21])
@pytest.mark.parametrize("batch_size", [1, 8, 20])
def test_a_function_of_all_examples(count, batch_size):
    x, seen = np.arange(2 * count, dtype=np.float32).reshape(count, 2), []
    traced = []

    def function(shared, batch):
        traced.append(batch["x"].shape)
        return {"sum": shared + batch["x"].sum(-1), "both": (batch["x"], batch["y"])}

    run = Spread(batch_size).compile(function)
    found = run(jnp.float32(3), {"x": x, "y": np.arange(count)}, seen.append)
    np.testing.assert_array_equal(found["sum"], 3 + x.sum(-1))
    np.testing.assert_array_equal(found["both"][0], x)
    np.testing.assert_array_equal(found["both"][1], np.arange(count))
    assert sum(seen) == count
    assert len(set(traced)) == 1 and traced[0][0] % jax.device_count() == 0
