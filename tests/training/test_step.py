"""The training step on a linear model, against NumPy."""

import chex
import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from diffjax.nn.edm2 import normalize_kernels
from diffjax.runs.state import initial_state
from diffjax.training.step import make_step
from diffjax.typing import Aux
from tests import tiny

RATE = 0.1


def batch(size=8, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(size, 3)).astype(np.float32), "index": np.arange(size, dtype=np.int32)}


def linear(variables, batch, keys, moment):
    """Returns (w . x)^2 with noise by the key of each example, and a running mean."""
    noise = jax.vmap(jax.random.normal)(keys)
    output = batch["x"] @ variables["params"]["model"]["w"] + 0.1 * noise
    return output**2, Aux({"output": output}, {"statistics": {"mean": output.mean()}})


def still(variables, batch, keys, moment):
    """Returns w . x, whose gradient is the mean of x."""
    return batch["x"] @ variables["params"]["model"]["w"], Aux({})


class PairModel(tiny.LossModel):
    """A model whose loss compares two consecutive examples."""

    group_size = 2


def in_pairs(variables, batch, keys, moment):
    output, aux = linear(variables, batch, keys, moment)
    return output * jnp.ravel(jnp.reshape(output, (-1, 2))[:, ::-1]), aux


def state_and_step(losses, params, kind=tiny.LossModel, **options):
    optimizers = {group: optax.sgd(RATE) for group in losses}
    variables = {"params": params, "statistics": {"mean": jnp.zeros(())}}
    model = kind(init_function=lambda key: variables, loss_functions=losses)
    defaults = {"key": jax.random.key(0), "ema_decay": 0.9, "examples": 64}
    step = make_step(model, optimizers, **(defaults | options))
    return initial_state(model, optimizers, jax.random.key(1)), jax.jit(step)


PARAMS = {"model": {"w": jnp.array([0.5, -1.0, 2.0])}}


def test_one_step_by_hand():
    state, step = state_and_step({"model": linear}, PARAMS)
    data = batch()
    new, metrics = step(state, data)
    keys = [jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 0), i) for i in range(8)]
    noise = np.array([float(jax.random.normal(key)) for key in keys])
    w = np.array([0.5, -1.0, 2.0])
    output = data["x"] @ w + 0.1 * noise
    gradient = (2 * output[:, None] * data["x"]).mean(0)
    np.testing.assert_allclose(metrics["loss"], (output**2).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["output"], output.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(new.variables["params"]["model"]["w"], w - RATE * gradient, rtol=1e-5)
    np.testing.assert_allclose(new.variables["statistics"]["mean"], output.mean(), rtol=1e-4)
    assert new.step == 1


def test_the_ema_decay_warms_up():
    """Decay min(0.9, (1 + s) / (10 + s)) at step s, followed in float64."""
    state, step = state_and_step({"model": linear}, PARAMS)
    average = np.array([0.5, -1.0, 2.0])
    for s in range(100):
        state, _ = step(state, batch(seed=s))
        decay = min(0.9, (1 + s) / (10 + s))
        average = decay * average + (1 - decay) * np.asarray(state.variables["params"]["model"]["w"], np.float64)
    np.testing.assert_allclose(state.ema["model"]["w"], average, rtol=1e-4)


@pytest.mark.parametrize(
    ("parts", "loss", "kind"),
    [(2, linear, tiny.LossModel), (4, in_pairs, PairModel), (8, linear, tiny.LossModel)],
)
def test_accumulation_equals_the_whole_batch(parts, loss, kind):
    results = []
    for accumulate in (1, parts):
        state, step = state_and_step({"model": loss}, PARAMS, kind, accumulate=accumulate)
        for s in range(3):
            state, metrics = step(state, batch(seed=s))
        results.append((state, metrics))
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-6)


def test_gradients_of_all_groups_are_at_the_old_parameters():
    """Adversarial pairs need this: the gradient of one group must not depend on the update of the other."""
    params = {"a": jnp.array(2.0), "b": jnp.array(3.0)}

    def product(variables, batch, keys, moment):
        return variables["params"]["a"] * variables["params"]["b"] * jnp.ones(len(keys)), Aux({})

    def negative(variables, batch, keys, moment):
        return -product(variables, batch, keys, moment)[0], Aux({})

    state, step = state_and_step({"a": product, "b": negative}, params)
    new, metrics = step(state, batch())
    np.testing.assert_allclose(new.variables["params"]["a"], 2.0 - RATE * 3.0, rtol=1e-6)
    np.testing.assert_allclose(new.variables["params"]["b"], 3.0 + RATE * 2.0, rtol=1e-6)
    assert metrics["a/loss"] == 6.0
    assert metrics["b/loss"] == -6.0
    assert (metrics["a/grad_norm"], metrics["b/grad_norm"]) == (3.0, 2.0)


def test_the_learning_rate_is_that_of_the_update():
    """A skipped step does not advance the schedule, as in the optimiser."""
    schedule = optax.linear_schedule(0.0, 1.0, 4)
    optimizers = {"model": optax.sgd(schedule)}
    model = tiny.LossModel(init_function=lambda key: {"params": PARAMS}, loss_functions={"model": still})
    step = make_step(
        model,
        optimizers,
        learning_rates={"model": schedule},
        key=jax.random.key(0),
        ema_decay=0.9,
        examples=64,
        max_consecutive_skips=1,
    )
    state, step = initial_state(model, optimizers, jax.random.key(1)), jax.jit(step)
    w, updates = np.array(PARAMS["model"]["w"]), 0
    for s in range(6):
        data = batch()
        if s == 2:
            data["x"][0] = np.nan
        state, metrics = step(state, data)
        assert metrics["learning_rate"] == min(updates / 4, 1)
        if s != 2:
            w, updates = w - min(updates / 4, 1) * data["x"].mean(0), updates + 1
        np.testing.assert_allclose(state.variables["params"]["model"]["w"], w, rtol=1e-5)


def test_examples_and_steps_have_different_randomness():
    seen = []

    def record(variables, batch, keys, moment):
        return jax.vmap(jax.random.uniform)(keys) * variables["params"]["model"]["w"][0], Aux({})

    state, step = state_and_step({"model": record}, PARAMS)
    w = 0.5
    for s in range(3):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(jax.random.key(0), s), np.arange(8))
        seen.append(np.asarray(jax.vmap(jax.random.uniform)(keys)))
        state, metrics = step(state, batch())
        np.testing.assert_allclose(metrics["loss"], seen[-1].mean() * w, rtol=1e-5)
        w = float(state.variables["params"]["model"]["w"][0])
    assert len(np.unique(seen)) == 24


class NormalisedModel(tiny.LossModel):
    """A model of magnitude-preserving layers."""

    def constrain(self, params):
        return normalize_kernels(params)


def test_kernels_of_magnitude_preserving_layers_are_normalised_after_the_update():
    """Each column has a root mean square of 1, and the direction of the updated kernel; other weights are free."""

    def loss(variables, batch, keys, moment):
        params = variables["params"]["model"]
        return (batch["x"] @ params["layer"]["unit_kernel"]).sum(-1) + batch["x"] @ params["w"], Aux({})

    kernel, w = np.array([[1.0, 2.0], [-1.0, 0.5], [1.0, -1.0]], np.float32), np.ones(3, np.float32)
    params = {"model": {"layer": {"unit_kernel": kernel}, "w": w}}
    state, step = state_and_step({"model": loss}, params, NormalisedModel)
    data = batch()
    new = step(state, data)[0].variables["params"]["model"]
    mean = data["x"].mean(0)
    updated = kernel - RATE * mean[:, None]
    np.testing.assert_allclose(new["w"], w - RATE * mean, rtol=1e-5)
    expected = updated / np.sqrt((updated**2).mean(0))
    np.testing.assert_allclose(new["layer"]["unit_kernel"], expected, rtol=5e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_step_is_skipped_and_counted(bad):
    state, step = state_and_step({"model": linear}, PARAMS, max_consecutive_skips=1)
    state, _ = step(state, batch(seed=1))
    wild = batch(seed=2)
    wild["x"][3, 1] = bad
    after, metrics = step(state, wild)
    assert after.step == 2 and metrics["skipped"] == metrics["consecutive_skips"] == 1
    same = lambda s: (s.variables, s.ema, s.optimizer, s.health.mean, s.health.variance)  # noqa: E731
    chex.assert_trees_all_equal(same(after), same(state))
    sound, metrics = step(after, batch(seed=3))
    assert metrics["skipped"] == 1 and metrics["consecutive_skips"] == 0
    without, _ = step(state.replace(step=after.step), batch(seed=3))
    chex.assert_trees_all_equal(same(sound), same(without))


def test_steps_after_too_many_skips_are_skipped():
    state, step = state_and_step({"model": linear}, PARAMS, max_consecutive_skips=1)
    wild = batch() | {"x": np.full((8, 3), np.nan, np.float32)}
    for _ in range(2):
        state, metrics = step(state, wild)
    assert metrics["consecutive_skips"] == 2
    after, metrics = step(state, batch())
    assert metrics["consecutive_skips"] == 3
    chex.assert_trees_all_equal(after.variables, state.variables)


def test_a_non_finite_group_skips_the_step_of_both_groups():
    def other(variables, batch, keys, moment):
        return jnp.full(8, jnp.inf) * variables["params"]["other"]["w"].sum(), Aux({}, {})

    state, step = state_and_step({"model": linear, "other": other}, PARAMS | {"other": {"w": jnp.ones(2)}})
    after, metrics = step(state, batch())
    assert metrics["skipped"] == 1 and jnp.isfinite(metrics["model/loss"])
    chex.assert_trees_all_equal(after.variables, state.variables)


def test_a_group_is_updated_every_third_step():
    """Skipped steps do not count. The other group sees the new parameters after each update."""
    params = {"a": jnp.array(1.0), "b": jnp.array(2.0)}

    def loss_of_a(variables, batch, keys, moment):
        loss = variables["params"]["a"] ** 2 * batch["x"][:, 0]
        return loss, Aux({"double": 2 * loss}, {"statistics": {"mean": loss.mean()}})

    def loss_of_b(variables, batch, keys, moment):
        return variables["params"]["a"] * variables["params"]["b"] * batch["x"][:, 0], Aux({})

    options = {"update_every": {"a": 3, "b": 1}, "accumulate": 2, "max_consecutive_skips": 1}
    state, step = state_and_step({"a": loss_of_a, "b": loss_of_b}, params, **options)
    a, b, updates, losses, statistics = 1.0, 2.0, 0, [], 0.0
    for s in range(8):
        data = batch(seed=s)
        if s == 3:
            data["x"][0] = np.nan
        state, metrics = step(state, data)
        if s != 3:
            mean, is_due = data["x"][:, 0].mean(dtype=np.float64), updates % 3 == 0
            assert metrics["a/is_updated"] == is_due and "b/is_updated" not in metrics
            expected = [a**2 * mean, 2 * a**2 * mean, abs(2 * a * mean)] if is_due else [0, 0, 0]
            actual = [metrics[f"a/{name}"] for name in ("loss", "double", "grad_norm")]
            np.testing.assert_allclose(actual, expected, rtol=1e-5)
            np.testing.assert_allclose(metrics["b/loss"], a * b * mean, rtol=1e-5)
            if is_due:
                losses.append(a**2 * mean)
                statistics = losses[-1]
            a, b, updates = a - RATE * 2 * a * mean * is_due, b - RATE * a * mean, updates + 1
        np.testing.assert_allclose([state.variables["params"][name] for name in "ab"], [a, b], rtol=1e-5)
        np.testing.assert_allclose(state.variables["statistics"]["mean"], statistics, rtol=1e-5)
    assert updates == 7 and len(losses) == 3
    moment = 0.0
    for n, loss in zip((0, 3, 6), losses, strict=True):
        moment += (1 - min(0.99, n / (10 + n))) * (loss - moment)
    np.testing.assert_allclose(state.health.mean["a"], moment, rtol=1e-5)
