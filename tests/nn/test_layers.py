"""Layers against float64 NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn import layers


def numpy_group_norm(x, groups, gain, bias, scale=None, shift=None, epsilon=1e-6):
    x = np.asarray(x, np.float64)
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gain + bias
    return y if scale is None else y * (1 + scale[:, None, None, :]) + shift[:, None, None, :]


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (48, 12), (144, 24), (7, 1)])
@pytest.mark.parametrize("adaptive", [False, True])
def test_group_norm_is_numpys(channels, groups, adaptive):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (2, 4, 6, channels)).astype(np.float32)
    gain, bias = rng.normal(size=(2, channels)).astype(np.float32)
    tilt = rng.normal(size=(2, 2, channels)).astype(np.float32) if adaptive else ()
    y = layers.GroupNorm(epsilon=1e-3).apply({"params": {"scale": gain, "bias": bias}}, x, *tilt)
    np.testing.assert_allclose(y, numpy_group_norm(x, groups, gain, bias, *tilt, epsilon=1e-3), atol=3e-5)


def test_group_norm_gradients_are_those_of_the_definition():
    keys = jax.random.split(jax.random.key(0), 6)
    x = jax.random.normal(keys[0], (2, 4, 4, 16)) + 1
    gain, bias = jax.random.normal(keys[1], (2, 16))
    scale, shift = jax.random.normal(keys[2], (2, 2, 16))
    weight = jax.random.normal(keys[3], x.shape)

    def definition(x, gain, bias, scale, shift):
        grouped = x.reshape(2, 16, 4, 4)  # 16 channels make 4 groups
        y = (grouped - grouped.mean((1, 3), keepdims=True)) / jnp.sqrt(grouped.var((1, 3), keepdims=True) + 1e-6)
        y = y.reshape(x.shape) * gain[None, None, None, :] + bias[None, None, None, :]
        return y * (1 + scale[:, None, None, :]) + shift[:, None, None, :]

    def ours(x, gain, bias, scale, shift):
        return layers.GroupNorm().apply({"params": {"scale": gain, "bias": bias}}, x, scale, shift)

    every = tuple(range(5))
    expected = jax.jit(jax.grad(lambda *a: (weight * definition(*a)).sum(), every))(x, gain, bias, scale, shift)
    found = jax.jit(jax.grad(lambda *a: (weight * ours(*a)).sum(), every))(x, gain, bias, scale, shift)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_group_norm_of_half_precision_has_float32_statistics():
    # 4096 values around 30: a sum in bfloat16 would stop growing at 256 times a value
    x = (30 + jax.random.normal(jax.random.key(0), (1, 32, 32, 4))).astype(jnp.bfloat16)
    y, variables = layers.GroupNorm(dtype=jnp.bfloat16).init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16 and variables["params"]["scale"].dtype == jnp.float32
    np.testing.assert_allclose(y.astype(jnp.float32), numpy_group_norm(x, 1, 1, 0), atol=0.02)


def test_dropout_of_an_example_depends_on_its_key_alone():
    x, keys = jnp.ones((4, 8, 8, 3)), jax.random.split(jax.random.key(0), 4)
    layer = layers.Dropout(0.3)
    whole = layer.apply({}, x, keys)
    for i in range(4):
        np.testing.assert_array_equal(layer.apply({}, x[i : i + 1], keys[i : i + 1])[0], whole[i])
    assert not np.array_equal(whole[0], whole[1])


def test_dropout_keeps_the_mean_and_is_nothing_without_keys():
    x, keys = jnp.ones((64, 16, 16, 4)), jax.random.split(jax.random.key(1), 64)
    y = np.asarray(layers.Dropout(0.3).apply({}, x, keys))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    assert abs(y.mean() - 1) < 5 * np.sqrt(0.3 / 0.7 / y.size)
    np.testing.assert_array_equal(layers.Dropout(0.3).apply({}, x, None), x)


def test_dropout_layers_of_one_network_differ():
    class Two(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, x, keys):
            return layers.Dropout(0.5, name="a")(x, keys), layers.Dropout(0.5, name="b")(x, keys)

    a, b = Two().apply({}, jnp.ones((2, 64)), jax.random.split(jax.random.key(0), 2))
    assert 0.3 < np.mean(np.asarray(a) == np.asarray(b)) < 0.7


def test_timestep_embedding_conventions():
    t, half = np.array([0.0, 1.0, 500.5, 999.0]), 16
    ddpm = t[:, None] * np.exp(-np.log(10000) * np.arange(half) / (half - 1))
    adm = t[:, None] * np.exp(-np.log(10000) * np.arange(half) / half)
    for convention, expected in {
        "ddpm": np.concatenate([np.sin(ddpm), np.cos(ddpm)], 1),
        "adm": np.concatenate([np.cos(adm), np.sin(adm)], 1),
    }.items():
        found = layers.timestep_embedding(jnp.asarray(t), 2 * half, convention=convention)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert found.dtype == jnp.float32
    with pytest.raises(ValueError, match="choose from ddpm, adm"):
        layers.timestep_embedding(jnp.asarray(t), 8, convention="fairseq")
    with pytest.raises(ValueError, match="even"):
        layers.timestep_embedding(jnp.asarray(t), 7)


@pytest.mark.parametrize(("padding", "before"), [("asymmetric", 0), ("symmetric", 1)])
def test_downsample_pads_as_published(padding, before):
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    y, variables = layers.Downsample(padding).init_with_output(jax.random.key(0), x)
    kernel, bias = variables["params"]["conv"]["kernel"], variables["params"]["conv"]["bias"]
    padded = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    windows = [[padded[:, i : i + 3, j : j + 3] for j in range(0, 4, 2)] for i in range(0, 6, 2)]
    expected = np.einsum("ijbklc,klco->bijo", np.array(windows), kernel) + np.asarray(bias)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_average_pool_and_nearest():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    corners = sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    np.testing.assert_allclose(layers.average_pool(jnp.asarray(x)), corners / 4, atol=1e-6)
    grown = layers.nearest(jnp.asarray(x))
    for i in (0, 1):
        for j in (0, 1):
            np.testing.assert_array_equal(grown[:, i::2, j::2], x)


def test_initializers_are_as_published():
    def kernel_and_bias(layer, shape):
        params = layer.init(jax.random.key(0), jnp.zeros(shape))["params"]
        return np.asarray(params["kernel"]), np.asarray(params["bias"])

    kernel, bias = kernel_and_bias(layers.Dense(100), (1, 300))
    assert abs(kernel.var() / (2 / 400) - 1) < 0.05 and np.abs(kernel).max() <= np.sqrt(6 / 400) and not bias.any()
    kernel, _ = kernel_and_bias(layers.Dense(600, fused=3), (1, 200))  # three of 200 by 200
    assert abs(kernel.var() / (1 / 200) - 1) < 0.05
    kernel, _ = kernel_and_bias(layers.Conv(64), (1, 4, 4, 32))
    assert abs(kernel.var() / (2 / (9 * 96)) - 1) < 0.05
    kernel, bias = kernel_and_bias(layers.Conv(64, initializer="torch"), (1, 4, 4, 32))
    for values in (kernel, bias):
        assert 0.9 < np.abs(values).max() * np.sqrt(9 * 32) <= 1
    kernel, bias = kernel_and_bias(layers.Conv(64, initializer="zero"), (1, 4, 4, 32))
    assert not kernel.any() and not bias.any()
    with pytest.raises(ValueError, match="choose from ddpm, torch, zero"):
        layers.Dense(2, "xavier").init(jax.random.key(0), jnp.zeros((1, 2)))
