"""Attention against an explicit NumPy softmax."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from diffjax.nn import attention


def randomised(module, *inputs):
    """Random parameters, none of them zero or one, from shapes alone: no compilation."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(np.float32), shapes)


def apply(module, params, *inputs):
    return jax.jit(module.apply)({"params": params}, *inputs)


def dense(p, x):
    return x @ np.asarray(p["kernel"], np.float64) + np.asarray(p.get("bias", 0.0), np.float64)


def normalise(p, x, axes, epsilon):
    x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + epsilon)
    return x * p["scale"] + p["bias"]


def group_norm_of_8(p, x, epsilon=1e-6):
    """Group norm of `x` [B, T, 8] with two groups of four channels."""
    sides = [normalise({"scale": 1, "bias": 0}, side, (1, 2), epsilon) for side in np.split(x, 2, -1)]
    return np.concatenate(sides, -1) * p["scale"] + p["bias"]


def numpy_attention(q, k, v, heads):
    outputs = []
    for query, key, value in zip(*(np.split(x, heads, -1) for x in (q, k, v)), strict=True):
        weights = np.exp(np.einsum("btc,bsc->bts", query, key) / np.sqrt(query.shape[-1]))
        outputs.append(np.einsum("bts,bsc->btc", weights / weights.sum(-1, keepdims=True), value))
    return np.concatenate(outputs, -1)


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(2, 2, 3, 8)).astype(np.float32)


@pytest.fixture
def context():
    return np.random.default_rng(2).normal(size=(2, 5, 6)).astype(np.float32)


@pytest.mark.parametrize(("heads", "with_context"), [(1, False), (2, True)])
def test_attention_block(x, context, heads, with_context):
    module = attention.AttentionBlock(heads, groups=2, residual_scale=0.5)
    context = context if with_context else None
    params = randomised(module, x, context)

    flat = x.astype(np.float64).reshape(2, 6, 8)
    q, k, v = np.split(dense(params["qkv"], group_norm_of_8(params["norm"], flat)), 3, -1)
    if with_context:  # GLIDE, section 3.1: keys and values of the text are concatenated with those of the image
        more_k, more_v = np.split(dense(params["context_kv"], context), 2, -1)
        k, v = np.concatenate([more_k, k], 1), np.concatenate([more_v, v], 1)
    expected = 0.5 * (flat + dense(params["out"], numpy_attention(q, k, v, heads))).reshape(x.shape)
    np.testing.assert_allclose(apply(module, params, x, context), expected, atol=2e-5)


@pytest.mark.parametrize("with_context", [False, True])
def test_spatial_transformer(x, context, with_context):
    depth = 2 if with_context else 1
    module = attention.SpatialTransformer(depth=depth, heads=2, groups=2)
    context = context if with_context else None
    params = randomised(module, x, context)

    def cross(p, x, context):
        q, k, v = (dense(p[name], y) for name, y in (("q", x), ("k", context), ("v", context)))
        return dense(p["out"], numpy_attention(q, k, v, 2))

    flat = x.astype(np.float64).reshape(2, 6, 8)
    h = dense(params["in"], group_norm_of_8(params["norm"], flat))
    for p in (params[f"block_{i}"] for i in range(depth)):
        y = normalise(p["norm_self"], h, -1, 1e-5)
        h = h + cross(p["self"], y, y)
        y = normalise(p["norm_cross"], h, -1, 1e-5)
        h = h + cross(p["cross"], y, context if with_context else y)
        y, gate = np.split(dense(p["mlp_in"], normalise(p["norm_mlp"], h, -1, 1e-5)), 2, -1)
        h = h + dense(p["mlp_out"], y * gate * (1 + erf(gate / np.sqrt(2))) / 2)
    expected = (flat + dense(params["out"], h)).reshape(x.shape)
    np.testing.assert_allclose(apply(module, params, x, context), expected, atol=1e-4, rtol=1e-4)
    assert "bias" not in params["block_0"]["self"]["q"] and "bias" in params["block_0"]["self"]["out"]


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_pool(x, heads):
    module = attention.AttentionPool(5, heads)
    params = randomised(module, x)

    flat = x.astype(np.float64).reshape(2, 6, 8)
    tokens = np.concatenate([flat.mean(1, keepdims=True), flat], 1) + params["place"]
    gathered = numpy_attention(*(dense(params[name], tokens) for name in "qkv"), heads)
    found = apply(module, params, x)
    assert found.shape == (2, 5)
    np.testing.assert_allclose(found, dense(params["out"], gathered)[:, 0], atol=2e-5)


def test_attention_pool_is_float32_with_initial_position_embeddings_of_norm_one():
    x, module = jnp.ones((1, 8, 8, 64), jnp.bfloat16), attention.AttentionPool(5)
    assert jax.eval_shape(module.init_with_output, jax.random.key(0), x)[0].dtype == jnp.float32
    place = jax.jit(lambda key: module.init(key, x)["params"]["place"])(jax.random.key(0))
    assert place.shape == (65, 64)
    np.testing.assert_allclose(np.linalg.norm(place, axis=1).mean(), 1, atol=0.05)


@pytest.mark.parametrize("module", [attention.AttentionBlock(groups=2), attention.SpatialTransformer(groups=2)])
def test_initial_block_is_the_identity(x, module):
    np.testing.assert_array_equal(jax.jit(module.init_with_output)(jax.random.key(0), x)[0], x)


def test_softmax_of_half_precision_is_float32():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 6, 8)).astype(jnp.bfloat16)
    text = str(jax.make_jaxpr(lambda q, k, v: attention.attend(q, k, v, 2, "xla"))(q, k, v))
    assert ":f32" in next(line for line in text.splitlines() if " exp " in line)
    expected = numpy_attention(*(np.asarray(y, np.float64) for y in (q, k, v)), 2)
    found = attention.attend(q, k, v, 2, "xla")
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.03)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masks", [0, 1, 2])  # number of masks: none, one for all examples, one per example
def test_attention_and_gradients_equal_those_of_jax(masks, causal):
    keys = jax.random.split(jax.random.key(0), 5)
    q, k, v = (jax.random.normal(key, (2, length, 8)) for key, length in zip(keys, (4, 6, 6), strict=False))
    mask = jax.random.bernoulli(keys[3], 0.5, (masks, 4, 6)) if masks else None
    weights = jax.random.normal(keys[4], q.shape)

    def library(q, k, v):
        split = (x.reshape(2, -1, 2, 4) for x in (q, k, v))
        heads_mask = None if mask is None else mask[:, None]
        return jax.nn.dot_product_attention(*split, mask=heads_mask, is_causal=causal).reshape(q.shape)

    def ours(q, k, v):
        return attention.attend(q, k, v, 2, "xla", mask[0] if masks == 1 else mask, causal=causal)

    def value_and_gradient(function):
        return jax.jit(jax.value_and_grad(lambda *qkv: jnp.sum(weights * function(*qkv)), (0, 1, 2)))(q, k, v)

    chex.assert_trees_all_close(value_and_gradient(ours), value_and_gradient(library), atol=1e-5)


def test_heads_must_divide_the_channels():
    with pytest.raises(ValueError, match="heads=3: must divide"):
        attention.attend(*jnp.zeros((3, 1, 2, 8)), 3, "auto")


@pytest.mark.parametrize(
    ("backend", "name", "dtype", "head_dim", "expected"),
    [
        ("cpu", "auto", jnp.bfloat16, 64, "xla"),
        ("gpu", "auto", jnp.bfloat16, 64, "cudnn"),
        ("gpu", "auto", jnp.float16, 128, "cudnn"),
        ("gpu", "auto", jnp.float32, 64, "xla"),
        ("gpu", "auto", jnp.bfloat16, 160, "xla"),
        ("gpu", "auto", jnp.bfloat16, 20, "xla"),
        ("gpu", "xla", jnp.bfloat16, 64, "xla"),
        ("cpu", "cudnn", jnp.float32, 20, "cudnn"),
    ],
)
def test_implementation(monkeypatch, backend, name, dtype, head_dim, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert attention.implementation(name, dtype, head_dim) == expected


def test_unknown_implementation():
    with pytest.raises(ValueError, match="choose from auto, xla, cudnn"):
        attention.implementation("flash", jnp.float32, 64)
