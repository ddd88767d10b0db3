"""Batches over devices: each example once and in order, for any number of examples."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.inference.batching import DataParallelMap


@pytest.mark.parametrize(("batch_size", "ahead"), [(1, 0), (20, 0), (1, 1), (20, 2)])
def test_results_do_not_depend_on_batches(batch_size, ahead):
    traced = []

    def function(shared, batch):
        traced.append(batch["x"].shape)
        return {"sum": shared + batch["x"].sum(-1), "both": (batch["x"], batch["y"])}

    plan = DataParallelMap(batch_size)
    run = plan.compile(function, ahead=ahead)
    for count in (1, 8, 21):
        x, progress = np.arange(2 * count, dtype=np.float32).reshape(count, 2), []
        result = run(jnp.float32(3), {"x": x, "y": np.arange(count)}, progress.append)
        np.testing.assert_array_equal(result["sum"], 3 + x.sum(-1))
        np.testing.assert_array_equal(result["both"][0], x)
        np.testing.assert_array_equal(result["both"][1], np.arange(count))
        full, rest = divmod(count, plan.batch_size)
        assert progress == [plan.batch_size] * full + [rest] * (rest > 0)
    assert len(set(traced)) == 1 and traced[0][0] % jax.device_count() == 0
