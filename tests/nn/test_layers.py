"""Layers against float64 NumPy and closed forms."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn import layers, space_sums
from tests.tiny import ROOT


def numpy_group_norm(x, groups, gain, bias, scale=None, shift=None, epsilon=1e-6):
    x = np.asarray(x, np.float64)
    grouped = x.reshape(x.shape[0], -1, groups, x.shape[-1] // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = ((grouped - mean) ** 2).mean((1, 3), keepdims=True)
    y = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gain + bias
    return y if scale is None else y * (1 + scale[:, None, None, :]) + shift[:, None, None, :]


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (48, 12), (144, 24), (7, 1), (6, 6), (64, 32)])
@pytest.mark.parametrize("adaptive", [False, True])
def test_group_norm_matches_numpy(channels, groups, adaptive):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (2, 4, 6, channels)).astype(np.float32)
    gain, bias = rng.normal(size=(2, channels)).astype(np.float32)
    modulation = rng.normal(size=(2, 2, channels)).astype(np.float32) if adaptive else ()
    y = jax.jit(layers.GroupNorm(groups, epsilon=1e-3).apply)({"params": {"scale": gain, "bias": bias}}, x, *modulation)
    np.testing.assert_allclose(y, numpy_group_norm(x, groups, gain, bias, *modulation, epsilon=1e-3), atol=3e-5)


@pytest.mark.parametrize("channels", range(1, 130))
def test_number_of_groups(channels):
    """Without a minimum of channels the number is exact; with one it is the largest that fits (brute force)."""
    for groups in (1, 3, 4, 32):
        if channels % groups:
            with pytest.raises(ValueError, match=f"groups={groups}: must divide the {channels} channels"):
                layers.num_groups(channels, groups)
        else:
            assert layers.num_groups(channels, groups) == groups
        fit = [g for g in range(1, groups + 1) if channels % g == 0 and channels // g >= 4]
        assert layers.num_groups(channels, groups, 4) == max(fit, default=1)


def test_level_widths_must_be_whole_numbers():
    assert layers.level_widths(256, (0.5, 1, 2)) == [128, 256, 512]
    for multiplier in (1.3, 0.001, 0):
        with pytest.raises(ValueError, match="must be a whole number from 1; use multiples of 1/8"):
            layers.level_widths(8, (1, multiplier))


FAR = [(3000.0, 1.0), (255.0, 0.1), (-1e4, 1.0), (0.0, 1e-3)]  # mean and deviation of inputs


def far_inputs(mean, deviation, shape):
    """Inputs that float32 holds exactly, and their float64 values."""
    x = np.random.default_rng(0).normal(mean, deviation, shape).astype(np.float32)
    return x, x.astype(np.float64)


@pytest.mark.parametrize(("mean", "deviation"), FAR)
@pytest.mark.parametrize("adaptive", [False, True])
def test_group_norm_far_from_zero_matches_numpy(mean, deviation, adaptive):
    x, exact = far_inputs(mean, deviation, (2, 16, 16, 8))
    gain, bias = np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)
    modulation = np.random.default_rng(2).normal(size=(2, 2, 8)).astype(np.float32) if adaptive else ()
    y = jax.jit(layers.GroupNorm(2).apply)({"params": {"scale": gain, "bias": bias}}, x, *modulation)
    # float32 rounding of the mean of a group, relative to the deviation
    tolerance = 5e-5 + 16 * np.spacing(np.float32(abs(mean))) / deviation
    np.testing.assert_allclose(y, numpy_group_norm(exact, 2, gain, bias, *modulation), atol=tolerance)


@pytest.mark.parametrize("position", [0, 7])
def test_group_norm_with_one_outlier_matches_numpy(position):
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 4)).astype(np.float32)
    x[:, position, 0] += 1e4
    y, _ = jax.jit(layers.GroupNorm(2).init_with_output)(jax.random.key(0), x)
    np.testing.assert_allclose(y, numpy_group_norm(x, 2, 1, 0), rtol=1e-4, atol=1e-4)


def test_group_norm_of_vectors_matches_numpy():
    x = np.random.default_rng(0).normal(3000, 1, (4, 12)).astype(np.float32)
    y, _ = jax.jit(layers.GroupNorm(3).init_with_output)(jax.random.key(0), x)
    expected = numpy_group_norm(x[:, None, None], 3, 1, 0)[:, 0, 0]
    np.testing.assert_allclose(y, expected, atol=2e-3)


def test_group_norm_gradients_do_not_depend_on_an_offset():
    """Adding a constant to all inputs changes no gradient; 4096 keeps these inputs exact in float32."""
    x = np.round(np.random.default_rng(0).normal(size=(2, 8, 8, 8)) * 256).astype(np.float32) / 256
    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    gain, bias = np.random.default_rng(2).normal(size=(2, 8)).astype(np.float32)
    norm = lambda x: layers.GroupNorm(2).apply({"params": {"scale": gain, "bias": bias}}, x)  # noqa: E731
    gradient = jax.jit(jax.grad(lambda x: (weight * norm(x)).sum()))
    near, far = gradient(x), gradient(x + 4096)
    np.testing.assert_allclose(far, near, atol=2e-4 * np.abs(near).max())


def test_group_norm_has_second_derivatives():
    """Penalties on gradients, as R1 of a discriminator, need them; checked against finite differences."""
    x, v = np.random.default_rng(0).normal(size=(2, 1, 2, 3, 4)).astype(np.float32)
    params = {"params": {"scale": np.arange(1, 5, dtype=np.float32), "bias": np.ones(4, np.float32)}}
    gradient = jax.jit(jax.grad(lambda x: (jnp.sin(jax.jit(layers.GroupNorm(2, 1e-2).apply)(params, x))).sum()))
    found = jax.jit(lambda x, v: jax.jvp(gradient, (x,), (v,))[1])(x, v)
    difference = (gradient(x + 1e-2 * v) - gradient(x - 1e-2 * v)) / 2e-2
    np.testing.assert_allclose(found, difference, atol=5e-3 * np.abs(difference).max())


@pytest.mark.parametrize(("mean", "deviation"), FAR)
@pytest.mark.parametrize("parameters", [True, False])
def test_layer_norm_far_from_zero_matches_numpy(mean, deviation, parameters):
    x, exact = far_inputs(mean, deviation, (6, 5, 64))
    y, _ = jax.jit(layers.LayerNorm(1e-6, use_bias=parameters, use_scale=parameters).init_with_output)(
        jax.random.key(0), x
    )
    variance = exact.var(-1, keepdims=True)
    expected = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6)
    tolerance = 5e-5 + 4 * np.spacing(np.float32(abs(mean))) / deviation
    np.testing.assert_allclose(y, expected, atol=tolerance)


def test_no_network_uses_a_fast_variance():
    """Norms of Flax compute E[x^2] - E[x]^2 by default, which cancels far from zero; RMS norms subtract no mean."""
    for path in (ROOT / "diffjax").rglob("*.py"):
        norms = re.findall(r"nn\.(?!RMSNorm)\w*Norm\b(?!\):).*", path.read_text())
        assert all("use_fast_variance=False" in norm for norm in norms), path


def test_group_norm_gradients_match_the_definition():
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(2, 2, 4, 4, 16)).astype(np.float32)
    x += 1
    gain, bias = rng.normal(size=(2, 16)).astype(np.float32)
    scale, shift = rng.normal(size=(2, 2, 16)).astype(np.float32)

    def definition(x, gain, bias, scale, shift):
        grouped = x.reshape(2, 16, 4, 4)
        y = (grouped - grouped.mean((1, 3), keepdims=True)) / jnp.sqrt(grouped.var((1, 3), keepdims=True) + 1e-6)
        y = y.reshape(x.shape) * gain[None, None, None, :] + bias[None, None, None, :]
        return y * (1 + scale[:, None, None, :]) + shift[:, None, None, :]

    def ours(x, gain, bias, scale, shift):
        return jax.jit(layers.GroupNorm(4).apply)({"params": {"scale": gain, "bias": bias}}, x, scale, shift)

    every = tuple(range(5))
    gradients = lambda f, *a: jax.grad(lambda *a: (weight * f(*a)).sum(), every)(*a)  # noqa: E731
    run = jax.jit(lambda *a: (gradients(ours, *a), gradients(definition, *a)))
    found, expected = run(x, gain, bias, scale, shift)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * float(jnp.abs(b).max()))


def test_derivatives_of_a_group_norm_with_folded_sums_match_float64():
    """Inputs are far from zero; reverse mode, and reverse mode of forward mode, as in losses of flow maps."""
    rng = np.random.default_rng(0)
    x = rng.normal(300, 1, (2, 16, 16, 8)).astype(np.float32)
    v, weight = rng.normal(size=(2, *x.shape)).astype(np.float32)
    gain, bias = rng.normal(size=(2, 8)).astype(np.float32)
    assert space_sums._folds((16, 16), jnp.dtype(np.float32))

    def definition(x, gain, bias):
        grouped = x.reshape(2, 256, 2, 4)
        y = (grouped - grouped.mean((1, 3), keepdims=True)) / jnp.sqrt(grouped.var((1, 3), keepdims=True) + 1e-6)
        return y.reshape(x.shape) * gain[None, None, None, :] + bias[None, None, None, :]

    def derivatives(norm, x, v, weight, gain, bias):
        f = lambda x, gain, bias: (jax.nn.silu(norm(x, gain, bias)) * weight).sum()  # noqa: E731
        tangent = lambda x, gain: jax.jvp(lambda x: f(x, gain, bias), (x,), (v,))[1]  # noqa: E731
        return jax.grad(f, (0, 1, 2))(x, gain, bias), jax.value_and_grad(tangent, (0, 1))(x, gain)

    ours = lambda x, gain, bias: layers.GroupNorm(2).apply({"params": {"scale": gain, "bias": bias}}, x)  # noqa: E731
    arrays = (x, v, weight, gain, bias)
    found = jax.jit(functools.partial(derivatives, ours))(*arrays)
    with jax.enable_x64(True):
        exact = [jnp.asarray(array, jnp.float64) for array in arrays]
        expected = jax.jit(functools.partial(derivatives, definition))(*exact)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(b).max())


def test_group_norm_of_half_precision_has_float32_statistics():
    # 4096 values around 30: a sum in bfloat16 would stop growing at 256 times a value
    x = (30 + jax.random.normal(jax.random.key(0), (1, 32, 32, 4))).astype(jnp.bfloat16)
    y, variables = jax.jit(layers.GroupNorm(1, dtype=jnp.bfloat16).init_with_output)(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16 and variables["params"]["scale"].dtype == jnp.float32
    np.testing.assert_allclose(y.astype(jnp.float32), numpy_group_norm(x, 1, 1, 0), atol=0.02)


def test_dropout_of_an_example_depends_on_its_key_alone():
    x, keys = jnp.ones((4, 8, 8, 3)), jax.random.split(jax.random.key(0), 4)
    dropout = jax.jit(layers.Dropout(0.3).apply)
    whole = dropout({}, x, keys)
    for i in range(4):
        np.testing.assert_array_equal(dropout({}, x[i : i + 1], keys[i : i + 1])[0], whole[i])
    assert not np.array_equal(whole[0], whole[1])


def test_dropout_keeps_the_mean_and_is_the_identity_without_keys():
    x, keys = jnp.ones((64, 16, 16, 4)), jax.random.split(jax.random.key(1), 64)
    y = np.asarray(jax.jit(layers.Dropout(0.3).apply)({}, x, keys))
    np.testing.assert_allclose(np.unique(y), [0, 1 / 0.7], rtol=1e-6)
    assert abs(y.mean() - 1) < 5 * np.sqrt(0.3 / 0.7 / y.size)
    np.testing.assert_array_equal(jax.jit(layers.Dropout(0.3).apply)({}, x, None), x)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_dropout_has_its_rate_and_values_that_are_independent(rate):
    keep = np.asarray(jax.jit(layers.keep_mask, static_argnums=(1, 2))(jax.random.key(0), (4, 1023, 1025), rate))
    std = np.sqrt(rate * (1 - rate))
    assert abs(round(rate * 2**16) / 2**16 - rate) < 1e-4
    assert abs(keep.mean() - (1 - rate)) < 5 * std / np.sqrt(keep.size)
    deviations = keep.reshape(-1) - keep.mean()
    for lag in (1, 1025, (keep.size + 1) // 2):  # the last: halves of a word
        a, b = deviations[lag:], deviations[:-lag]
        assert abs((a * b).mean()) < 5 * std**2 / np.sqrt(len(a))


def test_dropout_layers_of_one_network_differ():
    class Two(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, x, keys):
            return layers.Dropout(0.5, name="a")(x, keys), layers.Dropout(0.5, name="b")(x, keys)

    a, b = jax.jit(Two().apply)({}, jnp.ones((2, 64)), jax.random.split(jax.random.key(0), 2))
    assert 0.3 < np.mean(np.asarray(a) == np.asarray(b)) < 0.7


def test_timestep_embedding_conventions():
    t, half = np.array([0.0, 1.0, 500.5, 999.0]), 16
    ddpm = t[:, None] * np.exp(-np.log(10000) * np.arange(half) / (half - 1))
    adm = t[:, None] * np.exp(-np.log(10000) * np.arange(half) / half)
    for convention, expected in {
        "ddpm": np.concatenate([np.sin(ddpm), np.cos(ddpm)], 1),
        "adm": np.concatenate([np.cos(adm), np.sin(adm)], 1),
    }.items():
        embed = jax.jit(functools.partial(layers.timestep_embedding, convention=convention), static_argnums=1)
        found = embed(np.float32(t), 2 * half)
        np.testing.assert_allclose(found, expected, atol=1e-4)
        assert found.dtype == jnp.float32
    with pytest.raises(ValueError, match="choose from ddpm, adm"):
        layers.timestep_embedding(jnp.asarray(t), 8, convention="fairseq")
    with pytest.raises(ValueError, match="even"):
        layers.timestep_embedding(jnp.asarray(t), 7)


@pytest.mark.parametrize(("padding", "before"), [("asymmetric", 0), ("symmetric", 1)])
def test_downsample_pads_as_published(padding, before):
    x = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    y, variables = jax.jit(layers.Downsample(padding).init_with_output)(jax.random.key(0), x)
    kernel, bias = variables["params"]["conv"]["kernel"], variables["params"]["conv"]["bias"]
    padded = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    windows = [[padded[:, i : i + 3, j : j + 3] for j in range(0, 4, 2)] for i in range(0, 6, 2)]
    expected = np.einsum("ijbklc,klco->bijo", np.array(windows), kernel) + np.asarray(bias)
    np.testing.assert_allclose(y, expected, atol=1e-5)


def test_average_pooling_and_nearest_upsampling():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 3)).astype(np.float32)
    corners = sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1))
    np.testing.assert_allclose(jax.jit(layers.average_pool)(x), corners / 4, atol=1e-6)
    grown = jax.jit(layers.upsample_nearest)(x)
    for i in (0, 1):
        for j in (0, 1):
            np.testing.assert_array_equal(grown[:, i::2, j::2], x)


def test_initializers_match_the_published_ones():
    def kernel_and_bias(layer, shape):
        params = jax.jit(layer.init)(jax.random.key(0), np.zeros(shape, np.float32))["params"]
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
