"""Batch norm against NumPy, and on eight devices against one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn.batch_norm import BatchNorm

CHANNELS = 3


def alone(tree):
    return tree


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def variables():
    """None of them at zero or one."""
    mean, var, scale, bias = normal(4, CHANNELS)
    statistics = {"mean": mean, "var": np.exp(var)}
    return {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}


def numpy_norm(variables, x, mean, variance):
    params = variables["params"]
    return (x - mean) / np.sqrt(variance + 1e-5) * params["scale"] + params["bias"]


def test_in_evaluation_it_normalises_by_what_it_remembers(variables):
    x = normal(4, 5, 2, CHANNELS, seed=1)
    found, after = BatchNorm().apply(variables, x, mutable=["batch_stats"])
    remembered = variables["batch_stats"]
    expected = numpy_norm(variables, x.astype(np.float64), remembered["mean"], remembered["var"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, after["batch_stats"], remembered)


@pytest.mark.parametrize("shape", [(4, 5, 2, CHANNELS), (6, CHANNELS)])
def test_in_training_it_normalises_by_the_batch_and_remembers_it(variables, shape):
    x = 2 + 3 * normal(*shape, seed=1)
    found, after = BatchNorm(alone).apply(variables, x, mutable=["batch_stats"])
    flat = x.astype(np.float64).reshape(-1, CHANNELS)
    expected = numpy_norm(variables, x.astype(np.float64), flat.mean(axis=0), flat.var(axis=0))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    remembered, new = variables["batch_stats"], after["batch_stats"]
    np.testing.assert_array_equal(remembered["mean"], normal(4, CHANNELS)[0])  # what was given is as it was
    np.testing.assert_allclose(new["mean"], 0.9 * remembered["mean"] + 0.1 * flat.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(new["var"], 0.9 * remembered["var"] + 0.1 * flat.var(axis=0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize(("mean", "deviation"), [(3000, 1), (255, 0.1), (-1e4, 1)])
def test_far_from_zero_it_is_numpys(variables, mean, deviation):
    """In training by the batch's statistics, in evaluation by those remembered."""
    x = (mean + deviation * np.float64(normal(64, 4, 4, CHANNELS, seed=1))).astype(np.float32)
    flat, tolerance = x.astype(np.float64).reshape(-1, CHANNELS), 8 * np.spacing(np.float32(abs(mean))) / deviation
    found, after = BatchNorm(alone).apply(variables, x, mutable=["batch_stats"])
    expected = numpy_norm(variables, x.astype(np.float64), flat.mean(axis=0), flat.var(axis=0))
    np.testing.assert_allclose(found, expected, atol=1e-4 + tolerance)
    added = (after["batch_stats"]["var"] - 0.9 * variables["batch_stats"]["var"]) / 0.1
    np.testing.assert_allclose(added, flat.var(axis=0, ddof=1), rtol=1e-3, atol=1e-5)

    remembered = {"mean": flat.mean(axis=0).astype(np.float32), "var": flat.var(axis=0).astype(np.float32)}
    found = BatchNorm().apply({**variables, "batch_stats": remembered}, x)
    expected = numpy_norm(variables, x.astype(np.float64), remembered["mean"], remembered["var"])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_it_begins_as_one_that_has_seen_unit_variance():
    variables = BatchNorm(scale_init=jax.nn.initializers.zeros).init(jax.random.key(0), normal(2, CHANNELS))
    assert not np.any(variables["params"]["scale"]) and not np.any(variables["params"]["bias"])
    assert not np.any(variables["batch_stats"]["mean"]) and np.all(variables["batch_stats"]["var"] == 1)


def test_eight_devices_are_one(variables):
    """What comes out, what is remembered, and the gradient, which flows through the statistics of all."""
    x, target = normal(16, 2, 2, CHANNELS, seed=1), normal(16, 2, 2, CHANNELS, seed=2)
    x *= np.linspace(0.2, 3, 16, dtype=np.float32)[:, None, None, None]  # so that the devices' own statistics differ

    def loss(params, x, target, mean):
        whole = {"params": params, "batch_stats": variables["batch_stats"]}
        y, after = BatchNorm(mean, examples=16).apply(whole, x, mutable=["batch_stats"])
        return ((y - target) ** 2 * y).mean(), (y, after)

    gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (value, (y, after)), (by_params, by_x) = jax.jit(lambda *given: gradients(*given, alone))(
        variables["params"], x, target
    )

    mean = partial(jax.lax.pmean, axis_name="data")
    split = [a.reshape(8, 2, *a.shape[1:]) for a in (x, target)]
    (values, (ys, afters)), (of_params, of_x) = jax.pmap(
        lambda *given: gradients(*given, mean), axis_name="data", in_axes=(None, 0, 0)
    )(variables["params"], *split)
    # A channel's outputs depend neither on what is added to all of it nor, but for epsilon, on its scale.
    np.testing.assert_allclose(by_x.sum((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose((by_x * x).sum((0, 1, 2)), 0, atol=1e-4)
    assert np.abs(by_x).max() > 1e-3

    np.testing.assert_allclose(values.mean(), value, rtol=1e-5)
    np.testing.assert_allclose(ys.reshape(y.shape), y, atol=1e-5)
    np.testing.assert_allclose(of_x.reshape(x.shape) / 8, by_x, atol=1e-6)  # of the mean of the devices' losses
    for name, gradient in by_params.items():
        np.testing.assert_allclose(of_params[name].mean(axis=0), gradient, rtol=1e-4)
    for name, value in after["batch_stats"].items():
        np.testing.assert_allclose(afters["batch_stats"][name], np.tile(value, (8, 1)), rtol=1e-5)


def test_a_channel_that_is_constant_has_a_gradient(variables):
    x = jnp.full((4, CHANNELS), 3.0)
    gradient = jax.grad(lambda x: (BatchNorm(alone).apply(variables, x, mutable=["batch_stats"])[0] ** 2).sum())(x)
    assert np.all(np.isfinite(gradient))


def test_half_precision_is_of_what_comes_out_alone(variables):
    x = jnp.asarray(100 + normal(64, CHANNELS, seed=1), jnp.bfloat16)
    found, after = BatchNorm(alone, dtype=jnp.bfloat16).apply(variables, x, mutable=["batch_stats"])
    exact, _ = BatchNorm(alone).apply(variables, x.astype(jnp.float32), mutable=["batch_stats"])
    assert found.dtype == jnp.bfloat16 and after["batch_stats"]["var"].dtype == jnp.float32
    np.testing.assert_allclose(found.astype(jnp.float32), exact, atol=0.02)
