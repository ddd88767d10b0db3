"""DiT: size, initialisation, patches, conditions, precision. test_parity_dit compares it with a peer."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from diffjax.nn.dit import Block, DiT, grid_embedding, patchify, unpatchify
from diffjax.nn.unet import UNet
from tests import tiny

SMALL = {"width": 16, "layers": 2, "heads": 2}
SHALLOW = {**SMALL, "layers": 1}
RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32), np.array([3.0, 700.0], np.float32)
LABEL = np.array([1, 0], np.int32)
EMBEDDING = RNG.normal(size=(2, 5)).astype(np.float32)
CONTEXT = RNG.normal(size=(2, 3, 6)).astype(np.float32)
AUGMENT = RNG.normal(size=(2, 9)).astype(np.float32)
EVERYTHING = {"label": LABEL, "embedding": EMBEDDING, "context": CONTEXT, "augment_label": AUGMENT}


@pytest.fixture(scope="module")
def dropout_keys():
    return jax.random.split(jax.random.key(3), 2)


def shapes(net, x=X, **inputs):
    return jax.eval_shape(net.init, jax.random.key(0), x, T[: len(x)], **inputs)["params"]


def randomised(net, **inputs):
    """Random parameters, none of them zero."""
    return tiny.randomised(lambda key: net.init(key, X, T, **inputs))["params"]


def changed(params, name, change):
    """Parameters, with `change` applied to those whose path contains `name`."""
    return jax.tree_util.tree_map_with_path(lambda k, p: change(p) if name in jax.tree_util.keystr(k) else p, params)


# Counted on the authors' PyTorch code without weights: 33M, 130M, 458M, 675M (table 1, table 4). There the fixed
# embedding of 16 x 16 positions is a parameter.
SIZES = {"S": (32_963_360, 384, 12, 6), "B": (130_512_416, 768, 12, 12)}
SIZES |= {"L": (458_102_816, 1024, 24, 16), "XL": (675_129_632, 1152, 28, 16)}


@pytest.mark.parametrize("name", ["S", *(pytest.param(name, marks=pytest.mark.slow) for name in ("B", "L", "XL"))])
def test_number_of_parameters(name):
    expected, width, layers, heads = SIZES[name]
    net = DiT(8, 2, width, layers, heads, num_label_embeddings=1001)  # learned sigma; a row for the null label
    leaves = jax.tree.leaves(shapes(net, jnp.zeros((1, 32, 32, 4)), label=LABEL[:1]))
    assert sum(leaf.size for leaf in leaves) + 16 * 16 * width == expected


def test_has_the_signature_of_unet_but_for_a_mask_of_the_context_and_tokens_of_a_block():
    ours, theirs = (inspect.signature(net.__call__).parameters.values() for net in (DiT, UNet))
    ours = [str(p) for p in ours if p.name != "tokens_after"]
    assert ours == [str(p) for p in theirs if p.name != "context_mask"]


def test_initial_output_is_zero():
    net = DiT(4, **SHALLOW, num_label_embeddings=2)
    y = jax.eval_shape(net.init_with_output, jax.random.key(0), X, T, **EVERYTHING)[0]
    assert y.shape == (2, 4, 6, 4) and y.dtype == jnp.float32
    layer = jax.jit(lambda key: net.init(key, X, T, **EVERYTHING)["params"]["out"])(jax.random.key(0))
    assert set(layer) == {"kernel", "bias"} and not any(np.any(leaf) for leaf in layer.values())


def test_initial_block_is_the_identity():
    x, emb = RNG.normal(size=(2, 5, 16)).astype(np.float32), np.ones((2, 16), np.float32)
    (y, _), _ = jax.jit(Block(2).init_with_output)(jax.random.key(0), x, emb, CONTEXT)
    np.testing.assert_array_equal(y, x)


def test_unpatchify_is_the_inverse_of_patchify():
    patches = np.asarray(jax.jit(patchify, static_argnums=1)(X, 2))
    assert patches.shape == (2, 2, 3, 12)
    np.testing.assert_array_equal(patches[1, 0, 2], X[1, :2, 4:].reshape(-1))
    np.testing.assert_array_equal(jax.jit(unpatchify, static_argnums=1)(patches, 2), X)


def test_output_patches_depend_on_input_patches():
    """With blocks that are zero, an output patch depends on the same input patch; with blocks, on all."""
    net = DiT(3, **SHALLOW)
    params = randomised(net)
    quiet = changed(params, "'block_", jnp.zeros_like)
    jacobian = jax.jit(jax.jacrev(lambda x, params: net.apply({"params": params}, x, T[:1])[0].sum(-1)))
    found, with_blocks = (np.abs(jacobian(X[:1], p)).sum((2, -1)) > 1e-6 for p in (quiet, params))  # [H, W, H, W]
    row, column, to_row, to_column = np.indices(found.shape) // 2
    np.testing.assert_array_equal(found, (row == to_row) & (column == to_column))
    assert with_blocks.all()


def test_grid_embedding():
    found = jax.jit(lambda: grid_embedding(3, 5, 16))()
    frequencies = 10000.0 ** (-np.arange(4) / 4)
    for row, column in np.ndindex(3, 5):
        waves = [wave(place * frequencies) for place in (column, row) for wave in (np.sin, np.cos)]
        np.testing.assert_allclose(found[row, column], np.concatenate(waves), atol=1e-6)


def test_parameters_fit_any_size():
    assert shapes(DiT(3, **SMALL)) == shapes(DiT(3, **SMALL), jnp.zeros((1, 8, 2, 3)))


def test_every_parameter_gets_a_gradient():
    net = DiT(3, **SHALLOW, num_label_embeddings=2)
    params = randomised(net, **EVERYTHING)
    gradients = jax.jit(jax.grad(lambda p: jnp.mean(net.apply({"params": p}, X, T, **EVERYTHING) ** 2)))(params)
    silent = [jax.tree_util.keystr(k) for k, g in jax.tree.leaves_with_path(gradients) if not np.abs(g).max() > 1e-9]
    assert not silent


def test_output_depends_on_the_context():
    net = DiT(3, **SHALLOW)
    params, without = randomised(net, context=CONTEXT), shapes(net)["block_0"].keys()
    assert params["block_0"].keys() - without == {"context_q", "context_kv", "context_out"}
    apply = jax.jit(lambda params, **inputs: net.apply({"params": params}, X, T, **inputs))
    conditioned, unconditioned = apply(params, context=CONTEXT), apply(params)
    assert np.abs(conditioned - apply(params, context=CONTEXT[::-1])).max() > 1e-3
    np.testing.assert_allclose(conditioned, apply(params, context=CONTEXT[:, ::-1]), atol=1e-5)  # no positions
    initial = changed(params, "context_out", jnp.zeros_like)
    np.testing.assert_array_equal(apply(initial, context=CONTEXT), unconditioned)
    np.testing.assert_array_equal(apply(changed(params, "context_", lambda p: 2 * p)), unconditioned)


def test_an_example_does_not_depend_on_the_others(dropout_keys):
    net = DiT(3, **SHALLOW, num_label_embeddings=2, dropout=0.5)
    params = randomised(net, **EVERYTHING)
    apply = jax.jit(lambda x, t, keys, inputs: net.apply({"params": params}, x, t, dropout_keys=keys, **inputs))
    both = apply(X, T, dropout_keys, EVERYTHING)
    second = np.array([1, 1])
    inputs = jax.tree.map(lambda leaf: leaf[second], (X, T, dropout_keys, EVERYTHING))
    np.testing.assert_allclose(apply(*inputs), both[second], atol=1e-5)
    assert np.abs(both - apply(X, T, dropout_keys[::-1], EVERYTHING)).max() > 1e-3


def test_bfloat16_is_close_with_float32_parameters():
    nets = [DiT(3, **SHALLOW, num_label_embeddings=2, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16)]
    assert shapes(nets[0], **EVERYTHING) == shapes(nets[1], **EVERYTHING)
    params = randomised(nets[0], **EVERYTHING)
    a, b = (jax.jit(net.apply)({"params": params}, X, T, **EVERYTHING) for net in nets)
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.05 * np.abs(a).max()


MODERN = {
    "norm": "rms",
    "positions": "rope",
    "qk_norm": True,
    "activation": "swiglu",
    "registers": 3,
    "value_residual": True,
    "bottleneck": 5,
}
ADDED = {  # parameters that each option adds, below the network or a block
    "norm": set(),
    "positions": set(),
    "qk_norm": {"block_0/norm_q/scale", "block_0/norm_k/scale", "block_1/norm_q/scale", "block_1/norm_k/scale"},
    "activation": set(),
    "registers": {"registers"},
    "value_residual": {"block_1/value_residual/weights"},
    "bottleneck": {"bottleneck/kernel"},
}


def paths(net, **inputs):
    return set(traverse_util.flatten_dict(shapes(net, **inputs), sep="/"))


def test_parameters_of_a_network_without_options_are_those_of_dits_code():
    layers = ["time_0", "time_1", "patch", "modulation_out", "out"]
    layers += [f"block_{i}/{name}" for i in (0, 1) for name in ("modulation", "qkv", "out", "mlp_in", "mlp_out")]
    assert paths(DiT(3, **SMALL)) == {f"{layer}/{name}" for layer in layers for name in ("kernel", "bias")}


@pytest.mark.parametrize("name", MODERN)
def test_options_add_parameters(name):
    assert paths(DiT(3, **SMALL, **{name: MODERN[name]})) == paths(DiT(3, **SMALL)) | ADDED[name]


JIT = {"registers": 0, "class_tokens": 32, "value_residual": False, "positions": "both"}
# width, layers, heads, bottleneck, first block with class tokens, millions of parameters
JIT_SIZES = {"B": (768, 12, 12, 128, 4, 131), "L": (1024, 24, 16, 128, 8, 459), "H": (1280, 32, 16, 256, 10, 953)}


def jit_parameters(width, layers, heads, bottleneck):
    """Number of parameters of JiT's code with patches of 16 pixels, 1000 classes and 32 in-context tokens."""

    def dense(inputs, outputs):
        return (inputs + 1) * outputs

    hidden, head = int(4 * width * 2 / 3), width // heads
    embedders = 1001 * width + dense(256, width) + dense(width, width)
    patches = 768 * bottleneck + dense(bottleneck, width)
    attention = dense(width, 3 * width) + 2 * head + dense(width, width)
    block = attention + dense(width, 2 * hidden) + dense(hidden, width) + dense(width, 6 * width)
    return embedders + patches + 32 * width + layers * block + dense(width, 768) + dense(width, 2 * width)


@pytest.mark.parametrize("name", ["B", *(pytest.param(name, marks=pytest.mark.slow) for name in ("L", "H"))])
def test_number_of_parameters_of_jit(name):
    """JiT (Li & He 2025); its adaptive norms have scales, which the modulation has too."""
    width, layers, heads, bottleneck, first, millions = JIT_SIZES[name]
    options = MODERN | JIT | {"bottleneck": bottleneck, "class_tokens_from": first}
    net = DiT(3, 16, width, layers, heads, num_label_embeddings=1001, **options)
    leaves = jax.tree.leaves(shapes(net, jnp.zeros((1, 32, 32, 3)), label=LABEL[:1]))
    found = sum(leaf.size for leaf in leaves)
    assert found == jit_parameters(width, layers, heads, bottleneck)
    assert round((found + (2 * layers + 1) * width) / 1e6) == millions


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def rms(x):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)


def silu(x):
    return x / (1 + np.exp(-x))


def numpy_block(p, x, emb, angles, first):
    """Returns the output of a block with two heads, and its values."""
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = np.split(dense(p["modulation"], emb)[:, None], 6, axis=-1)
    q, k, v = np.split(dense(p["qkv"], rms(x) * (1 + scale) + shift), 3, axis=-1)
    if first is not None:
        weights = p["value_residual"]["weights"]
        v = weights[0] * first + weights[1] * v

    def heads(y):
        return y.reshape(*y.shape[:2], 2, -1)

    def rotated(y, scale):
        y = rms(heads(y)) * scale
        pairs = (y[..., ::2] + 1j * y[..., 1::2]) * np.exp(1j * angles)[None, :, None]
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(y.shape)

    q, k = rotated(q, p["norm_q"]["scale"]), rotated(k, p["norm_k"]["scale"])
    weights = np.exp(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]))
    attended = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), heads(v)).reshape(x.shape)
    x = x + gate * dense(p["out"], attended)
    gates, hidden = np.split(dense(p["mlp_in"], rms(x) * (1 + mlp_scale) + mlp_shift), 2, axis=-1)
    return x + mlp_gate * dense(p["mlp_out"], silu(gates) * hidden), v


def test_output_with_all_options_is_that_of_numpy():
    options = MODERN | {"positions": "both", "class_tokens": 2, "num_label_embeddings": 2}
    net = DiT(3, **SMALL, **options)
    params = randomised(net, label=LABEL)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rows, columns = np.repeat([0, 1], 3), np.tile([0, 1, 2], 2)

    times = T[:, None] * 10_000.0 ** -(np.arange(128) / 128)
    label = p["label"]["embedding"][LABEL]
    emb = dense(p["time_0"], np.concatenate([np.cos(times), np.sin(times)], axis=1))
    emb = silu(dense(p["time_1"], silu(emb)) + label)

    patches = X.reshape(2, 2, 2, 3, 2, 3).swapaxes(2, 3).reshape(2, 6, 12)
    waves = [
        wave(np.outer(axis, 10_000.0 ** -(np.arange(4) / 4))) for axis in (columns, rows) for wave in (np.sin, np.cos)
    ]
    patches = dense(p["patch"], patches @ p["bottleneck"]["kernel"]) + np.concatenate(waves, axis=1)
    registers = np.tile(p["registers"], (2, 1, 1))
    h = np.concatenate([label[:, None] + p["class_tokens"], registers, patches], axis=1)
    angles = np.concatenate([np.outer(axis, [1, 1 / 100]) for axis in (rows, columns)], axis=1)
    angles = np.pad(angles, ((5, 0), (0, 0)))
    h, first = numpy_block(p["block_0"], h, emb, angles, None)
    h, _ = numpy_block(p["block_1"], h, emb, angles, first)

    shift, scale = np.split(dense(p["modulation_out"], emb)[:, None], 2, axis=-1)
    y = dense(p["out"], rms(h[:, 5:]) * (1 + scale) + shift)
    expected = y.reshape(2, 2, 3, 2, 2, 3).swapaxes(2, 3).reshape(X.shape)
    found = jax.jit(lambda x: net.apply({"params": params}, x, T, label=LABEL))(X)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_options_together():
    """Finite gradients of every parameter, equal to derivatives in forward mode."""
    net = DiT(3, **SMALL, **MODERN)
    params = randomised(net)

    def loss(params):
        return jnp.mean(net.apply({"params": params}, X, T) ** 2)

    gradients, (_, forward) = jax.jit(lambda p: (jax.grad(loss)(p), jax.jvp(loss, (p,), (p,))))(params)
    silent = [jax.tree_util.keystr(k) for k, g in jax.tree.leaves_with_path(gradients) if not np.abs(g).max() > 1e-9]
    assert not silent and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    reverse = jax.tree.reduce(np.add, jax.tree.map(lambda g, p: np.vdot(g, p), gradients, params))
    np.testing.assert_allclose(forward, reverse, rtol=1e-3)


def test_registers_have_no_order():
    """Their positions are not rotated, so a permutation of the registers changes nothing; one of patches does."""
    net = DiT(3, **SHALLOW, registers=3, positions="rope")
    params = randomised(net)
    apply = jax.jit(lambda params, x: net.apply({"params": params}, x, T))
    plain = apply(params, X)
    np.testing.assert_allclose(apply(changed(params, "registers", lambda p: p[::-1]), X), plain, atol=1e-5)
    assert np.abs(apply(changed(params, "registers", lambda p: -p), X) - plain).max() > 1e-3
    swapped = np.concatenate([X[:, 2:], X[:, :2]], axis=1)  # rows of patches
    found = apply(params, swapped)
    assert np.abs(np.concatenate([found[:, 2:], found[:, :2]], axis=1) - plain).max() > 1e-3


def test_class_tokens_enter_as_registers_with_the_embedding_of_the_label():
    """After a first block that is the identity, they equal registers from the first block on; otherwise not."""
    fields = {**SMALL, "num_label_embeddings": 2, "positions": "rope"}
    nets = DiT(3, **fields, class_tokens=3, class_tokens_from=1), DiT(3, **fields, registers=3)
    label = np.array([1, 1], np.int32)
    params = randomised(nets[0], label=label)
    registers = params["class_tokens"] + params["label"]["embedding"][1:]
    applied = [jax.jit(lambda p, net=net: net.apply({"params": p}, X, T, label=label)) for net in nets]
    for is_identity in (True, False):
        ours = changed(params, "'block_0'", jnp.zeros_like) if is_identity else params
        theirs = {**ours, "registers": registers}
        difference = np.abs(applied[0](ours) - applied[1](theirs)).max()
        assert difference < 1e-5 if is_identity else difference > 1e-3


def test_a_scan_over_blocks_equals_the_loop():
    fields = {**SMALL, "num_label_embeddings": 2, "positions": "both", "qk_norm": True, "registers": 2}
    fields |= {"class_tokens": 2, "remat": "blocks"}
    inputs = {"label": LABEL, "context": CONTEXT}
    loop, scan = (DiT(3, **fields, scan_blocks=scan_blocks) for scan_blocks in (False, True))
    params = randomised(scan, **inputs)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes(loop, **inputs))

    def apply(net, **options):
        return net.apply({"params": params}, X, T, **inputs, **options)

    def loss(params, net):
        return jnp.mean(net.apply({"params": params}, X, T, **inputs) ** 2)

    @functools.partial(jax.jit, static_argnums=0)
    def everything(net):
        value, deep = apply(net, cache_branch=0)
        outputs = value, deep, apply(net, tokens_after=1), apply(net, cache_branch=0, deep=deep)
        return outputs, jax.grad(loss)(params, net), jax.jvp(lambda p: loss(p, net), (params,), (params,))

    chex.assert_trees_all_close(everything(scan), everything(loop), rtol=1e-4, atol=1e-5)
    assert "scan[" in str(jax.make_jaxpr(functools.partial(apply, scan))())


def test_blocks_of_a_scan_have_masks_of_their_own(dropout_keys):
    """The same block before or after one that is the identity differs in its masks of dropout alone."""
    net = DiT(3, **SMALL, dropout=0.5, scan_blocks=True)
    params, apply = randomised(net), jax.jit(lambda p, keys: net.apply({"params": p}, X, T, dropout_keys=keys))
    identity = jax.tree.map(jnp.zeros_like, params["block_0"])
    first, last = {**params, "block_1": identity}, {**params, "block_0": identity, "block_1": params["block_0"]}
    np.testing.assert_allclose(apply(first, None), apply(last, None), atol=1e-5)
    assert np.abs(apply(first, dropout_keys) - apply(last, dropout_keys)).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"scan_blocks": True, "value_residual": True}, {}, "scan_blocks=True: requires equal blocks"),
        ({"patch": 4}, {}, "patch=4: must divide the sides of images of 4x6"),
        ({"heads": 3}, {}, "heads=3: must divide"),
        ({"width": 6}, {}, "width=6: .* a multiple of 4"),
        ({"dropout": 1.0}, {}, "dropout=1.0"),
        ({"attention": "flash"}, {}, "choose from auto, xla, cudnn"),
        ({"norm": "batch"}, {}, "norm='batch': choose from layer, rms"),
        ({"positions": "learned"}, {}, "positions='learned': choose from sincos, rope, both"),
        ({"activation": "relu"}, {}, "activation='relu': choose from gelu"),
        ({"positions": "rope", "width": 12}, {}, "the 6 channels per head must be a multiple of 4"),
        ({"num_label_embeddings": 2}, {}, "num_label_embeddings=2"),
        ({}, {"label": LABEL}, "num_label_embeddings=0"),
        ({"class_tokens": 2}, {}, "class_tokens=2: require a condition on the class label"),
        ({"class_tokens_from": 2}, {}, "class_tokens_from=2: must be a block, from 0 to 1"),
        (
            {"class_tokens": 2, "class_tokens_from": 1, "value_residual": True, "num_label_embeddings": 2},
            {"label": LABEL},
            "class_tokens_from=1: must be 0 with value_residual",
        ),
    ],
)
def test_errors_name_the_option(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        shapes(DiT(3, **{**SMALL, **options}), **inputs)
