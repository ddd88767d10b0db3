"""Random batches: the arrays that the training step of a model reads."""

import pytest

from diffjax.benchmark.random_inputs import batch_shapes, random_batch
from diffjax.training.compiled_step import lower_step
from diffjax.training.sharding import Devices
from tests import conditioned


@pytest.mark.parametrize(("condition", "fields"), [("number", {"sampler__number": 1.0}), ("caption", {})])
def test_a_random_batch_has_the_inputs_of_a_training_step(condition, fields):
    config, model, _ = conditioned.built(condition, **fields)
    batch = random_batch(config, conditioned.SPEC, model)
    shapes = batch_shapes(config, conditioned.SPEC, model, config.train.batch_size)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {n: (s.shape, s.dtype) for n, s in shapes.items()}
    lower_step(config, model, Devices.create(num_devices=1), shapes, examples=64)
