"""U-ViT: size, and output against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from diffjax import models
from diffjax.errors import UserError
from diffjax.nn.uvit import UViT
from diffjax.typing import ImageSpec
from tests import tiny

RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32), np.array([3.0, 700.0], np.float32)
INPUTS = {
    "label": np.array([1, 0], np.int32),
    "embedding": RNG.normal(size=(2, 5)).astype(np.float32),
    "context": RNG.normal(size=(2, 3, 6)).astype(np.float32),
    "augment_label": RNG.normal(size=(2, 9)).astype(np.float32),
}
SMALL = {"width": 8, "layers": 3, "heads": 2}

# Counted on the authors' PyTorch code without weights, with the shapes of its configs: 44M, 131M, 287M and 501M.
SIZES = {  # parameters, width, layers, heads, patch, height, channels, classes
    "small": (44_255_328, 512, 13, 8, 2, 32, 3, 0),
    "mid": (130_940_292, 768, 17, 12, 4, 64, 3, 1000),
    "large": (286_763_172, 1024, 21, 16, 2, 32, 4, 1001),
    "huge": (500_832_016, 1152, 29, 16, 2, 32, 4, 1001),
}


def shapes(net, x=X, **inputs):
    return jax.eval_shape(net.init, jax.random.key(0), x, T[: len(x)], **inputs)["params"]


@pytest.mark.parametrize(
    "name", ["small", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mid", "large", "huge"))]
)
def test_number_of_parameters(name):
    expected, width, layers, heads, patch, height, channels, classes = SIZES[name]
    net = UViT(channels, patch, width, layers, heads, num_label_embeddings=classes, output_conv=name != "huge")
    label = {"label": np.zeros(1, np.int32)} if classes else {}
    leaves = jax.tree.leaves(shapes(net, jnp.zeros((1, height, height, channels)), **label))
    assert sum(leaf.size for leaf in leaves) == expected


def dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0)


def norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def rotate(x):
    """Rotates queries or keys [B, T, 2, 4] of the last six tokens, two rows of three: a pair by each axis."""
    rows, columns = (np.pad(axis, (x.shape[1] - 6, 0)) for axis in ([0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]))
    pairs = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * np.stack([rows, columns], -1))[None, :, None]
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


def block(p, x, heads, first=None, rope=False):
    """Returns the output of a block, and its values."""
    batch, length, width = x.shape
    split = dense(p["qkv"], norm(p["norm_attention"], x)).reshape(batch, length, 3, heads, -1)
    q, k, v = np.moveaxis(split, 2, 0)
    q, k = (rotate(q), rotate(k)) if rope else (q, k)
    if first is not None:
        v = p["value_residual"]["weights"][0] * first + p["value_residual"]["weights"][1] * v
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(width / heads)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    attended = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v).reshape(x.shape)
    x = x + dense(p["out"], attended)
    h = dense(p["mlp_in"], norm(p["norm_mlp"], x))
    return x + dense(p["mlp_out"], h * (1 + erf(h / np.sqrt(2))) / 2), v


def by_numpy(p, x, t, label, embedding, context, augment_label, modern=False):
    """Returns the output of SMALL with all inputs, and the tokens of the patches after two blocks.

    `modern` adds registers, value residuals and rotary positions.
    """
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    angles = t[:, None] * 10_000.0 ** -(np.arange(4) / 4)
    time = np.concatenate([np.cos(angles), np.sin(angles)], 1) + dense(p["augment"], augment_label)
    patches = x.reshape(2, 2, 2, 3, 2, 3).swapaxes(2, 3).reshape(2, 6, 12)  # two rows of three patches
    tokens = [np.stack([p["label"]["embedding"][label], dense(p["embedding"], embedding), time], axis=1)]
    tokens += [dense(p["context"], context), dense(p["patch"], patches)]
    h = np.concatenate(tokens, axis=1) + p["place"]
    h = np.concatenate([np.tile(p["registers"], (2, 1, 1)), h], axis=1) if modern else h
    first, values = block(p["block_0"], h, 2, None, modern)
    values = values if modern else None
    middle, _ = block(p["block_1"], first, 2, values, modern)
    last, _ = block(p["block_2"], dense(p["skip_2"], np.concatenate([middle, first], axis=2)), 2, values, modern)
    y = dense(p["out"], norm(p["norm_out"], last[:, -6:]))
    y = np.pad(y.reshape(2, 2, 3, 2, 2, 3).swapaxes(2, 3).reshape(2, 4, 6, 3), [(0, 0), (1, 1), (1, 1), (0, 0)])
    conv = p["conv_out"]
    return (
        sum(y[:, i : i + 4, j : j + 6] @ conv["kernel"][i, j] for i in range(3) for j in range(3)) + conv["bias"],
        middle[:, -6:].reshape(2, 2, 3, 8),
    )


@pytest.mark.parametrize("modern", [False, True])
def test_output_is_that_of_numpy_and_every_parameter_gets_a_gradient(modern):
    options = {"registers": 2, "value_residual": True, "rope": "grid"} if modern else {}
    net = UViT(3, **SMALL, **options, num_label_embeddings=2)
    params = tiny.randomised(lambda key: net.init(key, X, T, **INPUTS))["params"]

    @jax.jit
    def compute(params):
        def loss(params):
            y, tokens = net.apply({"params": params}, X, T, **INPUTS, tokens_after=2)
            return jnp.mean(y**2), (y, tokens)

        return jax.grad(loss, has_aux=True)(params)

    gradients, found = compute(params)
    for ours, theirs in zip(found, by_numpy(params, X, T, **INPUTS, modern=modern), strict=True):
        assert np.abs(theirs).max() > 0.1
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    silent = [jax.tree_util.keystr(k) for k, g in jax.tree.leaves_with_path(gradients) if not np.abs(g).max() > 1e-9]
    assert not silent


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"patch": 4}, {}, "patch=4: must divide the sides of images of 4x6"),
        ({"layers": 4}, {}, "layers=4: must be odd"),
        ({"heads": 3}, {}, "heads=3: must divide"),
        ({"dropout": 1.0}, {}, "dropout=1.0"),
        ({"norm": "batch"}, {}, "norm='batch': choose from layer, rms"),
        ({"activation": "relu"}, {}, "activation='relu': choose from gelu"),
        ({"rope": True}, {}, "rope='True': choose from False, grid"),
        ({}, {"label": INPUTS["label"]}, "num_label_embeddings=0"),
    ],
)
def test_errors_name_the_option(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        shapes(UViT(3, **{**SMALL, **options}), **inputs)


def test_a_config_chooses_the_network():
    fields = {"architecture": "uvit", "patch": 4, "width": 8, "layers": 3, "heads": 2, "remat": True}
    model = models.build(tiny.config(model=fields), ImageSpec(8, 1, 10))
    assert isinstance(model.network, UViT) and model.network.num_label_embeddings == 11
    with pytest.raises(UserError, match=r"sampler.perturbation=skip_blocks\(0\): requires a UNet or a DiT"):
        model.make_settings(tiny.config().sampler, perturbation="skip_blocks(0)")
    with pytest.raises(UserError, match=r"model.patch=3: must divide the 8x8"):
        models.build(tiny.config(model={**fields, "patch": 3}), ImageSpec(8, 1, 10))
