"""Frozen parameters: no update, no optimiser state, averages equal to the values."""

import chex
import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.models.parameter_paths import flatten
from diffjax.runs.state import initial_state
from diffjax.training.compiled_step import make_optimizers
from diffjax.training.step import make_step
from diffjax.typing import Aux
from tests import tiny

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
BATCH = {"x": X, "index": np.arange(8, dtype=np.int32)}
PARAMS = {"model": {"body": {"w": jnp.array([0.3, -1.1, 2.7])}, "head": {"b": jnp.array([0.7, 0.9])}}}


def squares(variables, batch, keys, context):
    params = variables["params"]["model"]
    return (batch["x"] @ params["body"]["w"]) ** 2 + (params["head"]["b"] ** 2).sum(), Aux({})


def config(*patterns, **changes):
    return tiny.config(train__freeze=patterns, train__clip_norm=0.5, train__weight_decay=0.1, **changes)


def trained(*patterns, steps=5, **options):
    """Returns the state after some steps, and the metrics of the last."""
    model = tiny.LossModel(init_function=lambda key: {"params": PARAMS}, loss_functions={"model": squares})
    c = config(*patterns, train__steps=100, train__warmup_steps=0)
    optimizers = make_optimizers(c, model)
    mask = {"model": {"body": {"w": "body" not in patterns}, "head": {"b": "head" not in patterns}}}
    step = make_step(model, optimizers, key=jax.random.key(0), ema_decay=0.9, examples=8, trained=mask, **options)
    state, step = initial_state(model, optimizers, jax.random.key(1)), jax.jit(step)
    for _ in range(steps):
        state, metrics = step(state, BATCH)
    return state, metrics


def test_frozen_parameters_and_their_averages_are_their_initial_values_to_the_bit():
    state, _ = trained("body")
    start = state.replace(ema=jax.tree.map(jnp.zeros_like, state.ema))
    np.testing.assert_array_equal(start.variables["params"]["model"]["body"]["w"], PARAMS["model"]["body"]["w"])
    np.testing.assert_array_equal(state.ema["model"]["body"]["w"], PARAMS["model"]["body"]["w"])
    assert np.abs(state.variables["params"]["model"]["head"]["b"] - PARAMS["model"]["head"]["b"]).min() > 0


def test_frozen_parameters_have_no_optimizer_state():
    state, _ = trained("body")
    shapes = {leaf.shape for leaf in jax.tree.leaves(state.optimizer)}
    assert shapes == {(), (2,)}


def test_the_others_train_as_if_the_frozen_ones_were_constants():
    """AdamW on the gradient of b alone, clipped by its own norm, in NumPy."""
    state, metrics = trained("body", steps=1)
    b = np.array([0.7, 0.9])
    gradient = 2 * b
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-6)
    rate = 1e-3  # Adam's first step is the sign of the gradient
    np.testing.assert_allclose(state.variables["params"]["model"]["head"]["b"], b - rate, rtol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_parts_of_a_batch_leave_frozen_parameters_alone(accumulate):
    state, _ = trained("head", accumulate=accumulate)
    np.testing.assert_array_equal(state.variables["params"]["model"]["head"]["b"], PARAMS["model"]["head"]["b"])


def test_no_frozen_parameters_give_the_optimizer_of_before():
    model = tiny.LossModel(init_function=lambda key: {"params": PARAMS}, loss_functions={"model": squares})
    states = [make_optimizers(c, model)["model"].init(PARAMS["model"]) for c in (tiny.config(), config())]
    chex.assert_trees_all_equal_structs(*states)
    assert not any(isinstance(leaf, optax.MaskedNode) for leaf in flatten_nodes(states[0]))


def flatten_nodes(tree):
    return jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (("bdoy",), "train.freeze=bdoy: matches no parameter; did you mean body?"),
        (("*",), r"train.freeze=\('\*',\): matches all parameters"),
        ((3,), r"train.freeze=\(3,\): must be a tuple of text"),
    ],
)
def test_patterns_that_cannot_be_are_refused(patterns, message):
    model = tiny.LossModel(init_function=lambda key: {"params": PARAMS}, loss_functions={"model": squares})
    assert flatten(PARAMS).keys() == {"model/body/w", "model/head/b"}
    with pytest.raises(UserError, match=message):
        make_optimizers(config(*patterns), model)
