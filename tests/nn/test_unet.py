"""The U-Net's structure, gradients and precision; test_parity_unet compares its outputs with a peer's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffjax.nn.attention import AttentionPool
from diffjax.nn.resblock import ResBlock
from diffjax.nn.unet import ADM_DETAILS, UNet

GROUPS = {"norm_groups": 4}
SMALL = {"channels": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (4,), **GROUPS}
# The smallest network: no block on the way down, one on the way up.
TINY = {"channels": 8, "multipliers": (1,), "blocks": 0, "attention_resolutions": (), **GROUPS}
RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32), np.array([3.0, 700.0], np.float32)
LABEL = np.array([1, 0], np.int32)
EMBEDDING = RNG.normal(size=(2, 5)).astype(np.float32)
CONTEXT = RNG.normal(size=(2, 3, 6)).astype(np.float32)
AUGMENT = RNG.normal(size=(2, 9)).astype(np.float32)
EVERYTHING = {"label": LABEL, "embedding": EMBEDDING, "context": CONTEXT, "augment_label": AUGMENT}


@pytest.fixture(scope="module")
def dropout_keys():
    return jax.random.split(jax.random.key(3), 2)


def parameters(net, **inputs):
    """Random parameters, none of them zero, from shapes alone: no compilation."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, T, **inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.2, s.shape).astype(np.float32), shapes)


def loss_and_gradients(net, params, **inputs):
    return jax.jit(jax.value_and_grad(lambda p: jnp.mean(net.apply({"params": p}, X, T, **inputs) ** 2)))(params)


def modules(net, **inputs):
    return set(jax.eval_shape(net.init, jax.random.key(0), X, T, **inputs)["params"])


@pytest.mark.parametrize(("pool", "shape", "last"), [(None, (2, 8, 8, 4), "conv_out"), ("mean", (2, 4), "dense_out")])
def test_initial_output_is_zero(pool, shape, last):
    net = UNet(4, **TINY, pool=pool)
    y = jax.eval_shape(net.init_with_output, jax.random.key(0), X, T)[0]
    assert y.shape == shape and y.dtype == jnp.float32
    layer = jax.jit(lambda key: net.init(key, X, T)["params"][last])(jax.random.key(0))
    assert set(layer) == {"kernel", "bias"} and not any(np.any(leaf) for leaf in layer.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"multipliers": (1, 1), "time_conditioning": "scale_shift", "resample": "residual", **ADM_DETAILS},
        {"multipliers": (1, 1), "resample": "conv", "transformer_depth": 1, "heads": 4, "residual_scale": 0.5},
        {"time_conditioning": "scale_shift", "head_channels": 8, "pool": "attention"},
    ],
)
def test_every_parameter_gets_a_gradient(options):
    net = UNet(3, **{**TINY, **options}, num_label_embeddings=2)
    _, gradients = loss_and_gradients(net, parameters(net, **EVERYTHING), **EVERYTHING)
    silent = [jax.tree_util.keystr(k) for k, g in jax.tree.leaves_with_path(gradients) if not np.abs(g).max() > 1e-9]
    assert set(silent) <= {"['pool']['k']['bias']"}  # adds the same to all logits of a softmax


def test_a_zero_augment_label_is_no_label():
    """EDM's networks map the label without bias, and add it before the layers of the time embedding."""
    net = UNet(3, **TINY)
    params = parameters(net, augment_label=AUGMENT)
    assert {name: leaf.shape for name, leaf in params["augment"].items()} == {"kernel": (9, 8)}
    apply = jax.jit(lambda params, label: net.apply({"params": params}, X, T, augment_label=label))
    none = apply({name: leaf for name, leaf in params.items() if name != "augment"}, None)
    np.testing.assert_allclose(apply(params, jnp.zeros((2, 9))), none, atol=1e-5)
    assert np.abs(apply(params, AUGMENT) - none).max() > 1e-3


def test_bfloat16_is_close_with_float32_parameters():
    options = {**TINY, "attention_resolutions": (8,), "time_conditioning": "scale_shift"}
    params = parameters(UNet(3, **options), context=CONTEXT)
    half = UNet(3, **options, dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), X, T, context=CONTEXT)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    a, b = (
        jax.jit(lambda p, net=net: net.apply({"params": p}, X, T, context=CONTEXT))(params)
        for net in (UNet(3, **options), half)
    )
    assert b.dtype == jnp.float32
    assert np.abs(a - b).max() < 0.05 * np.abs(a).max()


def test_an_example_does_not_depend_on_the_others(dropout_keys):
    net = UNet(3, **TINY, dropout=0.5)
    params = parameters(net)
    apply = jax.jit(lambda params, x, t, keys: net.apply({"params": params}, x, t, dropout_keys=keys))
    both = apply(params, X, T, dropout_keys)
    second = np.array([1, 1])
    np.testing.assert_allclose(apply(params, X[second], T[second], dropout_keys[second]), both[second], atol=1e-5)
    assert np.abs(both - apply(params, X, T, dropout_keys[::-1])).max() > 1e-3


def test_attention_blocks_are_where_ddpm_has_them():
    net = UNet(3, 8, (1, 2, 2), blocks=2, attention_resolutions=(4,), **GROUPS)
    found = {name for name in modules(net) if "attention" in name}
    down = {f"down_1_attention_{i}" for i in range(2)}
    assert found == down | {f"up_1_attention_{i}" for i in range(3)} | {"middle_attention"}


def test_blocks_may_differ_by_level():
    net = UNet(3, 8, (1, 2), blocks=(1, 3), attention_resolutions=(), **GROUPS)
    found = {name for name in modules(net) if "block" in name}
    expected = {"down_0_block_0", "up_0_block_0", "up_0_block_1", "middle_block_0", "middle_block_1"}
    assert found == expected | {f"down_1_block_{i}" for i in range(3)} | {f"up_1_block_{i}" for i in range(4)}


@pytest.mark.parametrize(("pool", "head"), [("attention", "pool"), ("mean", "dense_out")])
def test_pooled_network_is_the_encoder_and_the_middle(pool, head):
    options = {**SMALL, "multipliers": (1, 1), "resample": "residual", "num_label_embeddings": 2}
    whole, half = (
        jax.eval_shape(UNet(7, **options, pool=pool).init, jax.random.key(0), X, T, label=LABEL)["params"]
        for pool in (None, pool)
    )
    half.pop(head)
    assert half == {name: s for name, s in whole.items() if not name.startswith("up_") and name != "conv_out"}


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_pooled_features_are_normalised_and_activated(pool):
    net = UNet(7, **TINY, heads=2, pool=pool)
    params = parameters(net)
    capture = {"capture_intermediates": lambda module, _: module.name == "norm_out"}
    found, state = jax.jit(lambda p: net.apply({"params": p}, X, T, **capture))(params)
    h = nn.silu(state["intermediates"]["norm_out"]["__call__"][0])
    if pool == "attention":
        expected = jax.jit(AttentionPool(7, heads=2).apply)({"params": params["pool"]}, h)
    else:
        expected = h.mean((1, 2)) @ params["dense_out"]["kernel"] + params["dense_out"]["bias"][None]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_pooled_logits_of_half_precision_are_float32(pool):
    net = UNet(7, **SMALL, pool=pool, dtype=jnp.bfloat16)
    x = jnp.zeros((2, 8, 12, 3))
    logits, variables = jax.eval_shape(net.init_with_output, jax.random.key(0), x, T)
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_initial_residual_block_is_its_scaled_skip_connection():
    emb = jnp.ones((2, 4))
    blocks = {"scaled": ResBlock(3, residual_scale=0.5, groups=1)}
    blocks |= {way: ResBlock(3, way, groups=1) for way in ("up", "down")}
    found = jax.jit(lambda key: {name: net.init_with_output(key, X, emb)[0] for name, net in blocks.items()})(
        jax.random.key(0)
    )
    np.testing.assert_allclose(found["scaled"], X / 2, rtol=1e-6)
    np.testing.assert_array_equal(found["up"][:, 1::2, ::2], X)
    np.testing.assert_allclose(found["down"][:, 0, 0], X[:, :2, :2].mean((1, 2)), rtol=1e-5)


def test_images_need_not_be_square():
    net = UNet(3, **SMALL)
    x = jnp.zeros((2, 8, 12, 3))
    assert jax.eval_shape(net.init_with_output, jax.random.key(0), x, T)[0].shape == (2, 8, 12, 3)


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"time_conditioning": "film"}, {}, "choose from add, scale_shift"),
        ({"resample": "stride"}, {}, "choose from conv, pool, residual"),
        ({"pool": "adaptive"}, {}, "pool='adaptive': choose from attention, mean"),
        ({"pool": "attention", "heads": 3}, {}, "heads=3: must divide"),
        ({"time_embedding": "sin"}, {}, "choose from ddpm, adm"),
        ({"downsample_padding": "valid"}, {}, "choose from asymmetric, symmetric"),
        ({"initializer": "he"}, {}, "choose from ddpm, torch"),
        ({"attention": "flash"}, {}, "choose from auto, xla, cudnn"),
        ({"dropout": 1.0}, {}, "dropout=1.0"),
        ({"blocks": (1, 1, 1)}, {}, r"blocks=\(1, 1, 1\): must have one count per level, 2"),
        ({"multipliers": (1, 1, 1, 1, 1)}, {}, "multiples of 16, not .8, 8."),
        ({"attention_resolutions": (16,)}, {}, r"\(16,\): must be among \[8, 4\]"),
        ({"head_channels": 5}, {}, "head_channels=5: must divide the 16 channels"),
        ({"head_channels": 8, "heads": 2}, {}, "head_channels=8: must be unset where heads=2"),
        ({"multipliers": (1, 1.3)}, {}, "multipliers=.1, 1.3.: 8 channels x 1.3 must be a whole number from 1"),
        ({"norm_groups": 32}, {}, "groups=32: must divide the 8 channels of a group norm; use 8"),
        ({"channels": 24, "norm_groups": 16}, {}, "groups=16: must divide the 24 channels of a group norm; use 8"),
        ({"heads": 3}, {}, "heads=3: must divide"),
        ({"num_label_embeddings": 2}, {}, "num_label_embeddings=2"),
        ({}, {"label": LABEL}, "num_label_embeddings=0"),
    ],
)
def test_errors_name_the_option(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        modules(UNet(3, **{**SMALL, **options}), **inputs)
