"""EDM2's network: magnitudes, a block against NumPy, published sizes, and forced weight normalisation."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy.signal import correlate2d

from diffjax.nn import edm2
from diffjax.nn.edm2 import Block, EDM2UNet

RNG = np.random.default_rng(0)
NETWORK = EDM2UNet(
    3, channels=32, multipliers=(1, 2), blocks=1, attention_resolutions=(8,), head_channels=16, num_label_embeddings=5
)
INPUTS = RNG.normal(size=(8, 16, 16, 3)).astype(np.float32), RNG.normal(size=8).astype(np.float32) / 4


def magnitude(x, axis=None):
    return np.sqrt(np.mean(np.square(x), axis=axis))


@pytest.fixture(scope="module")
def params():
    return jax.jit(NETWORK.init)(jax.random.key(0), *INPUTS, label=jnp.arange(8) % 5)["params"]


def test_operations_preserve_magnitudes():
    a, b, wide = RNG.normal(size=(20_000, 4)), RNG.normal(size=(20_000, 4)), RNG.normal(size=(20_000, 12))
    for share in (0.3, 0.5):
        assert magnitude(edm2.mp_sum(a, b, share)) == pytest.approx(1.0, abs=0.02)
    assert magnitude(edm2.mp_silu(a)) == pytest.approx(1.0, abs=0.02)
    both = np.asarray(edm2.mp_concatenate(a, wide, 0.3))
    assert magnitude(both) == pytest.approx(1.0, abs=0.02)
    parts = np.sum(both[:, :4] ** 2), np.sum(both[:, 4:] ** 2)
    assert np.sqrt(parts[1] / parts[0]) == pytest.approx(0.3 / 0.7, abs=0.02)


def test_activations_have_magnitude_one_at_initialisation(params):
    """In every block, whatever the level; the output is zero, and not after its gain is set."""

    @jax.jit
    def run(params):
        def is_block(module, _):
            return isinstance(module, Block)

        return NETWORK.apply({"params": params}, *INPUTS, label=jnp.arange(8) % 5, capture_intermediates=is_block)

    output, state = run(params)
    blocks = [value["__call__"][0] for value in state["intermediates"].values()]
    assert len(blocks) == 10
    assert all(0.8 < magnitude(block) < 1.25 for block in blocks)
    assert not np.asarray(output).any()
    output, _ = run({**params, "out_gain": jnp.ones(())})
    assert magnitude(output) == pytest.approx(1.0, abs=0.25)


def normalized(x, axis):
    return x / (magnitude(x, axis)[(..., None) if axis == -1 else (None,) * len(axis)] + 1e-4)


def dense(x, kernel, gain=1.0):
    return x @ normalized(kernel, (0,)) * gain / np.sqrt(len(kernel))


def convolution(x, kernel):
    kernel = normalized(kernel, (0, 1, 2)) / np.sqrt(9 * kernel.shape[2])
    planes = [
        sum(correlate2d(x[..., i], kernel[..., i, o], mode="same") for i in range(x.shape[-1]))
        for o in range(kernel.shape[-1])
    ]
    return np.stack(planes, axis=-1)


def silu(x):
    return x / (1 + np.exp(-x)) / 0.596


@pytest.mark.parametrize("is_encoder", [True, False])
def test_a_block_against_numpy(is_encoder):
    """Figure 21, with kernels of any magnitude."""
    x, emb = RNG.normal(size=(1, 4, 4, 3)).astype(np.float32), RNG.normal(size=(1, 5)).astype(np.float32)
    block = Block(8, is_encoder, "down", 2, 0.0, 0.3, 0.2, 1.5, "xla", jnp.float32)
    shapes = jax.eval_shape(block.init, jax.random.key(0), x, emb)["params"]
    params = jax.tree.map(lambda leaf: (RNG.normal(size=leaf.shape) * 0.7).astype(np.float32), shapes)
    result = block.apply({"params": params}, x, emb)[0]

    kernels = {name: leaf["unit_kernel"] for name, leaf in params.items() if name != "emb_gain"}
    x = x[0].reshape(2, 2, 2, 2, 3).mean((1, 3))
    if is_encoder:
        x = normalized(dense(x, kernels["skip"]), -1)
    h = convolution(silu(x), kernels["conv_0"]) * (1 + dense(emb[0], kernels["emb"], params["emb_gain"]))
    h = convolution(silu(h), kernels["conv_1"])
    x = x if is_encoder else dense(x, kernels["skip"])
    x = (0.7 * x + 0.3 * h) / np.hypot(0.7, 0.3)
    q, k, v = (normalized(part.reshape(4, 2, 4), -1) for part in np.split(dense(x, kernels["qkv"]), 3, axis=-1))
    weights = np.exp(np.einsum("qhc,khc->hqk", q, k) / 2)
    h = np.einsum("hqk,khc->qhc", weights / weights.sum(-1, keepdims=True), v).reshape(2, 2, 8)
    x = (0.8 * x + 0.2 * dense(h, kernels["out"])) / np.hypot(0.8, 0.2)
    np.testing.assert_allclose(result, np.clip(x, -1.5, 1.5), atol=1e-4)


SIZES = {128: 124.7, 192: 280.2, 256: 497.8, 320: 777.5, 384: 1119.3, 448: 1523.2}


@pytest.mark.parametrize(
    ("channels", "millions"),
    [pytest.param(*item, marks=pytest.mark.slow) if item[0] != 192 else item for item in SIZES.items()],
)
def test_published_sizes(channels, millions):
    """EDM2-XS to XXL on the latents of ImageNet at 512x512: table 2."""
    network = EDM2UNet(4, channels=channels, num_label_embeddings=1000)
    inputs = jnp.zeros((1, 64, 64, 4)), jnp.zeros(1)
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs, label=jnp.zeros(1, int))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.06)


def test_kernels_are_normalised_and_nothing_else(params):
    scaled = jax.tree.map(lambda leaf: 3.0 * leaf, params)
    expected = {name: scaled[name] for name in ("fourier", "out_gain")}
    result = edm2.normalize_kernels(scaled)
    jax.tree.map(np.testing.assert_array_equal, {name: result[name] for name in expected}, expected)
    kernel = np.asarray(result["down_0_block_0"]["conv_0"]["unit_kernel"])
    np.testing.assert_allclose(magnitude(kernel, (0, 1, 2)), 1.0, atol=2e-4)
    np.testing.assert_allclose(kernel, params["down_0_block_0"]["conv_0"]["unit_kernel"], atol=2e-3)


def test_settings_that_do_not_fit_raise():
    for fields, message in (
        ({"head_channels": 48}, "head_channels=48: must divide the channels of attention"),
        ({"attention_resolutions": (7,)}, "must be among"),
        ({"multipliers": (1, 1, 1, 1, 1, 1)}, "halvings require sides"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(NETWORK.clone(**fields).init, jax.random.key(0), *INPUTS, label=jnp.zeros(8, int))
    with pytest.raises(ValueError, match="does not support conditions with cross-attention"):
        options = {"label": jnp.zeros(8, int), "context": jnp.zeros((8, 2, 4))}
        jax.eval_shape(NETWORK.init, jax.random.key(0), *INPUTS, **options)
