"""Batch norm against NumPy, and on eight devices against one device."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn.batch_norm import BatchNorm

CHANNELS = 3


def one_device(tree):
    return tree


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def variables():
    """Random variables, none of them zero or one."""
    mean, var, scale, bias = normal(4, CHANNELS)
    statistics = {"mean": mean, "var": np.exp(var)}
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}


def numpy_norm(variables, x, mean, variance):
    params = variables["params"]
    return (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]


def test_evaluation_uses_running_averages(variables):
    x = normal(4, 5, 2, CHANNELS, seed=1)
    found, after = BatchNorm().apply(variables, x, mutable=["batch_stats"])
    averages = variables["batch_stats"]
    expected = numpy_norm(variables, x.astype(np.float64), averages["mean"], averages["var"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], averages)


@pytest.mark.parametrize("shape", [(4, 5, 2, CHANNELS), (6, CHANNELS)])
def test_training_uses_batch_statistics_and_updates_running_averages(variables, shape):
    x = 2 + 3 * normal(*shape, seed=1)
    found, after = BatchNorm(one_device).apply(variables, x, mutable=["batch_stats"])
    flat = x.astype(np.float64).reshape(-1, CHANNELS)
    expected = numpy_norm(variables, x.astype(np.float64), flat.mean(axis=0), flat.var(axis=0))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    averages, new = variables["batch_stats"], after["batch_stats"]
    np.testing.assert_array_equal(averages["mean"], normal(4, CHANNELS)[0])  # the input is unchanged
    np.testing.assert_allclose(new["mean"], 0.9 * averages["mean"] + 0.1 * flat.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * averages["var"] + 0.1 * flat.var(axis=0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize(("mean", "deviation"), [(3000, 1), (255, 0.1), (-1e4, 1)])
def test_statistics_far_from_zero(variables, mean, deviation):
    """In training and in evaluation, against NumPy."""
    x = (mean + deviation * np.float64(normal(64, 4, 4, CHANNELS, seed=1))).astype(np.float32)
    flat, tolerance = x.astype(np.float64).reshape(-1, CHANNELS), 8 * np.spacing(np.float32(abs(mean))) / deviation
    found, after = BatchNorm(one_device).apply(variables, x, mutable=["batch_stats"])
    expected = numpy_norm(variables, x.astype(np.float64), flat.mean(axis=0), flat.var(axis=0))
    np.testing.assert_allclose(found, expected, atol=1e-4 + tolerance)
    added = (after["batch_stats"]["var"] - 0.9 * variables["batch_stats"]["var"]) / 0.1
    np.testing.assert_allclose(added, flat.var(axis=0, ddof=1), rtol=1e-3, atol=1e-5)

    averages = {"mean": flat.mean(axis=0).astype(np.float32), "var": flat.var(axis=0).astype(np.float32)}
    found = BatchNorm().apply({**variables, "batch_stats": averages}, x)
    expected = numpy_norm(variables, x.astype(np.float64), averages["mean"], averages["var"])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_initial_running_averages_are_mean_zero_and_variance_one():
    module = BatchNorm(scale_init=jax.nn.initializers.zeros)
    variables = jax.jit(module.init)(jax.random.key(0), normal(2, CHANNELS))
    assert not np.any(variables["params"]["scale"]) and not np.any(variables["params"]["bias"])
    assert not np.any(variables["batch_stats"]["mean"]) and np.all(variables["batch_stats"]["var"] == 1)


def test_eight_devices_are_one_device(variables):
    """In outputs, running averages and gradients, which flow through the statistics of all devices."""
    x, target = normal(16, 2, 2, CHANNELS, seed=1), normal(16, 2, 2, CHANNELS, seed=2)
    x *= np.linspace(0.2, 3, 16, dtype=np.float32)[:, None, None, None]  # the statistics of the devices differ

    def loss(params, x, target, mean):
        whole = {"params": params, "batch_stats": variables["batch_stats"]}
        y, after = BatchNorm(mean, examples=16).apply(whole, x, mutable=["batch_stats"])
        return ((y - target) ** 2 * y).mean(), (y, after)

    gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, (y, after)), (by_params, by_x) = jax.jit(lambda *inputs: gradients(*inputs, one_device))(
        variables["params"], x, target
    )

    mean = partial(jax.lax.pmean, axis_name="data")
    split = [a.reshape(8, 2, *a.shape[1:]) for a in (x, target)]
    (values, (ys, afters)), (of_params, of_x) = jax.pmap(
        lambda *inputs: gradients(*inputs, mean), axis_name="data", in_axes=(None, 0, 0)
    )(variables["params"], *split)
    # Outputs do not depend on the mean of a channel nor, except for epsilon, on its scale.
    np.testing.assert_allclose(by_x.sum((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose((by_x * x).sum((0, 1, 2)), 0, atol=1e-4)
    assert np.abs(by_x).max() > 1e-3

    np.testing.assert_allclose(values.mean(), value, rtol=1e-5)
    np.testing.assert_allclose(ys.reshape(y.shape), y, atol=1e-5)
    np.testing.assert_allclose(of_x.reshape(x.shape) / 8, by_x, atol=1e-6)  # the loss is the mean over devices
    for name, gradient in by_params.items():
        np.testing.assert_allclose(of_params[name].mean(axis=0), gradient, rtol=1e-4)
    for name, value in after["batch_stats"].items():
        np.testing.assert_allclose(afters["batch_stats"][name], np.tile(value, (8, 1)), rtol=1e-5)


def test_a_constant_channel_has_a_finite_gradient(variables):
    x = jnp.full((4, CHANNELS), 3.0)
    gradient = jax.jit(
        jax.grad(lambda x: (BatchNorm(one_device).apply(variables, x, mutable=["batch_stats"])[0] ** 2).sum())
    )(x)
    assert np.all(np.isfinite(gradient))


def test_half_precision_outputs_have_float32_statistics(variables):
    x = jnp.asarray(100 + normal(64, CHANNELS, seed=1), jnp.bfloat16)
    found, after = BatchNorm(one_device, dtype=jnp.bfloat16).apply(variables, x, mutable=["batch_stats"])
    exact, _ = BatchNorm(one_device).apply(variables, x.astype(jnp.float32), mutable=["batch_stats"])
    assert found.dtype == jnp.bfloat16 and after["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)
