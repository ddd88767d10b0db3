"""Encoders and decoders of autoencoders: published sizes, NumPy, dtypes, errors."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn.autoencoders import dalle, ldm, taesd, vqvae

slow = partial(pytest.param, marks=pytest.mark.slow)
SMALL_LDM = {"channels": 16, "blocks": 1, "norm_groups": 4}
# architecture, fields that give each factor
FACTORS = [
    (ldm, 1, {**SMALL_LDM, "multipliers": (1,)}),
    (ldm, 4, {**SMALL_LDM, "multipliers": (1, 1, 2), "attention_resolutions": (8,)}),
    (vqvae, 1, {"channels": 8, "factor": 1}),
    (vqvae, 2, {"channels": 8, "factor": 2}),
    (vqvae, 8, {"channels": 8, "factor": 8}),
    (dalle, 1, {"channels": 4, "groups": 1}),
    (dalle, 4, {"channels": 4, "groups": 3, "blocks": 1}),
    (taesd, 1, {"channels": 4, "factor": 1}),
    (taesd, 4, {"channels": 4, "factor": 4, "blocks": 2}),
]


def random_parameters(net, x):
    """Random parameters with the initial scale, none of them zero, from shapes alone: no compilation."""
    rng = np.random.default_rng(0)

    def sample(leaf):
        return rng.normal(0, 1 / np.sqrt(np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)

    return jax.tree.map(sample, jax.eval_shape(net.init, jax.random.key(0), x))


def size(net, *shape):
    params = jax.eval_shape(net.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("multipliers", "attention", "channels", "encoder", "decoder"),
    [  # counted on the authors' code, CompVis/latent-diffusion, with its configs, without the quant convolutions
        ((1, 2, 4), (), (3, 3), 22_337_411, 32_960_771),  # VQ-f4
        slow((1, 2, 2, 4), (32,), (4, 4), 27_397_764, 40_253_955),  # VQ-f8
        slow((1, 1, 2, 2, 4), (16,), (8, 8), 28_155_144, 41_307_011),  # VQ-f16
        slow((1, 2, 4), (), (6, 3), 22_351_238, 32_960_771),  # KL-f4
        ((1, 2, 4, 4), (), (8, 4), 34_163_592, 49_490_179),  # KL-f8: with quant convolutions diffusers' 83,653,863
        slow((1, 1, 2, 2, 4), (16,), (32, 16), 28_265_760, 41_343_875),  # KL-f16
        slow((1, 1, 2, 2, 4, 4), (16, 8), (128, 64), 42_614_656, 61_244_803),  # KL-f32
    ],
)
def test_number_of_parameters_of_latent_diffusion(multipliers, attention, channels, encoder, decoder):
    fields = {"multipliers": multipliers, "attention_resolutions": attention}
    outputs, latent = channels
    assert size(net := ldm.Encoder(outputs, **fields), 1, 256, 256, 3) == encoder
    assert size(ldm.Decoder(3, **fields), 1, 256 // net.factor, 256 // net.factor, latent) == decoder


def test_number_of_parameters_without_attention():
    assert size(ldm.Encoder(3, middle_attention=False), 1, 256, 256, 3) == 21_285_763
    assert size(ldm.Decoder(3, middle_attention=False), 1, 64, 64, 3) == 31_909_123


def test_number_of_parameters_of_dalle():
    assert size(dalle.Encoder(8192), 1, 256, 256, 3) == 53_786_240
    assert size(dalle.Decoder(6), 1, 32, 32, 8192) == 43_829_766


def test_number_of_parameters_of_taesd():
    """Counted on diffusers' AutoencoderTiny()."""
    assert size(taesd.Encoder(4), 1, 64, 64, 3) == 1_222_532
    assert size(taesd.Decoder(3), 1, 8, 8, 4) == 1_222_531


def test_number_of_parameters_of_the_vqvae_example():
    def conv(kernel, inputs, outputs):
        return kernel**2 * inputs * outputs + outputs

    stack = 2 * (conv(3, 128, 32) + conv(1, 32, 128))
    encoder = conv(4, 3, 64) + conv(4, 64, 128) + conv(3, 128, 128) + stack + conv(1, 128, 64)
    assert size(vqvae.Encoder(64), 1, 32, 32, 3) == encoder
    assert size(vqvae.Decoder(3), 1, 8, 8, 64) == conv(3, 64, 128) + stack + conv(4, 128, 64) + conv(4, 64, 3)


@pytest.mark.parametrize(("architecture", "factor", "fields"), FACTORS)
def test_shapes_dtypes_and_factor(architecture, factor, fields):
    dtype = jnp.bfloat16 if factor == 4 else jnp.float32
    encoder = architecture.Encoder(5, **fields, dtype=dtype)
    decoder = architecture.Decoder(7, **fields, dtype=dtype)
    assert encoder.factor == decoder.factor == factor

    def both(x):
        z, at_encoder = encoder.init_with_output(jax.random.key(0), x)
        y, at_decoder = decoder.init_with_output(jax.random.key(0), z)
        return z, y, at_encoder, at_decoder

    z, y, *variables = jax.eval_shape(both, jnp.zeros((2, 32, 16, 4)))  # four channels: a feature map
    assert z.shape == (2, 32 // factor, 16 // factor, 5) and y.shape == (2, 32, 16, 7)
    assert {leaf.dtype for leaf in jax.tree.leaves((z, y, variables))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("architecture", "fields"),
    [
        (ldm, {**SMALL_LDM, "multipliers": (1,)}),
        (vqvae, {"channels": 8, "factor": 2, "blocks": 1}),
        (dalle, {"channels": 8, "groups": 1, "blocks": 1}),
    ],
)
def test_half_precision_is_used_and_close(architecture, fields):
    z = np.random.default_rng(1).normal(size=(1, 4, 4, 4)).astype(np.float32)
    exact, half = (architecture.Decoder(3, **fields, dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    params = random_parameters(exact, z)
    y = np.asarray(jax.jit(exact.apply)(params, z))
    error = np.abs(np.asarray(jax.jit(half.apply)(params, z)) - y).max() / np.abs(y).max()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
    ("net", "last"),
    [
        (ldm.Encoder(3, **SMALL_LDM, dtype=jnp.bfloat16), "f32"),
        (ldm.Decoder(3, **SMALL_LDM, dtype=jnp.bfloat16), "f32"),
        (vqvae.Encoder(3, dtype=jnp.bfloat16), "bf16"),  # the last layer is dense
        (vqvae.Decoder(3, dtype=jnp.bfloat16), "f32"),
        (dalle.Encoder(3, channels=8, dtype=jnp.bfloat16), "bf16"),
        (dalle.Decoder(3, channels=8, dtype=jnp.bfloat16), "bf16"),
        (taesd.Encoder(3, channels=8, dtype=jnp.bfloat16), "bf16"),
        (taesd.Decoder(3, channels=8, dtype=jnp.bfloat16), "bf16"),
    ],
)
def test_convolutions_before_the_last_have_half_precision(net, last):
    program = jax.make_jaxpr(lambda x: net.init_with_output(jax.random.key(0), x)[0])(jnp.zeros((1, 16, 16, 3)))
    *types, last_type = re.findall(r":(\w+)\[[\d,]*\] = conv_general_dilated", str(program))
    assert types and set(types) == {"bf16"} and last_type == last


def test_transposed_convolution_scatters_its_kernel():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)
    y, variables = jax.jit(vqvae.TransposedConv(6).init_with_output)(jax.random.key(0), x)
    kernel = np.asarray(variables["params"]["kernel"])[::-1, ::-1]  # rotated to the kernel of a convolution
    padded = np.zeros((2, 8, 12, 6)) + np.asarray(variables["params"]["bias"])
    for i in range(3):
        for j in range(5):
            padded[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("bc,klcd->bkld", x[:, i, j], kernel)
    np.testing.assert_allclose(y, padded[:, 1:-1, 1:-1], atol=1e-5)
    assert 0.9 < np.abs(kernel).max() * np.sqrt(4 * 4) <= 1


def test_bottlenecks_scale_their_residual_branch():
    """With the last biases only, every block adds `gain` times its bias."""
    net = dalle.Encoder(1, channels=4, groups=2, blocks=3)
    x = np.zeros((1, 4, 4, 1), np.float32)
    params = jax.tree.map(np.zeros_like, random_parameters(net, x)["params"])
    blocks = [name for name in params if name.startswith("group")]
    for name in blocks:
        params[name]["conv_3"]["bias"] += 5.0
        if "skip" in params[name]:
            params[name]["skip"]["kernel"] += 1.0
    params["conv_out"]["kernel"] += 1.0
    # the skip connection sums four channels of the first group into each of eight, which the last layer sums
    expected = 8 * (4 * 3 + 3) * 5.0 / 6**2
    assert sorted(blocks) == [f"group_{level}_block_{i}" for level in (0, 1) for i in range(3)]
    np.testing.assert_allclose(jax.jit(net.apply)({"params": params}, x), np.full((1, 2, 2, 1), expected), rtol=1e-6)


@pytest.mark.parametrize("part", ["Encoder", "Decoder"])
def test_dropout_depends_on_the_key_of_the_example(part):
    net = getattr(ldm, part)(3, **SMALL_LDM, multipliers=(1,), middle_attention=False, dropout=0.5)
    x, keys = np.ones((2, 4, 4, 4), np.float32), jax.random.split(jax.random.key(0), 2)
    params = random_parameters(net, x)
    apply = jax.jit(net.apply)
    whole = apply(params, x, keys)
    np.testing.assert_allclose(apply(params, x, keys[::-1]), whole[::-1], atol=1e-5)
    assert np.abs(np.asarray(whole[0] - whole[1])).max() > 1e-2


@pytest.mark.parametrize(
    ("net", "shape", "message"),
    [
        (ldm.Encoder(3), (1, 30, 32, 3), "multiples"),
        (vqvae.Encoder(3), (1, 32, 30, 3), "multiples"),
        (dalle.Encoder(3), (1, 36, 32, 3), "multiples"),
        (vqvae.Encoder(3, factor=6), (1, 36, 36, 3), "power of two"),
        (vqvae.Decoder(3, factor=0), (1, 8, 8, 3), "power of two"),
        (taesd.Decoder(3, factor=3), (1, 8, 8, 3), "power of two"),
        (taesd.Encoder(3), (1, 36, 32, 3), "multiples"),
        (vqvae.Encoder(3, channels=129), (1, 32, 32, 3), "channels=129: must be even"),
        (dalle.Decoder(3, channels=6), (1, 8, 8, 3), "multiple of 4"),
        (ldm.Encoder(3, attention_resolutions=(7,)), (1, 32, 32, 3), "must be among"),
        (ldm.Decoder(3, attention_resolutions=(7,)), (1, 8, 8, 3), r"must be among \[32, 16, 8\]"),
        (ldm.Decoder(3, dropout=1.0), (1, 8, 8, 3), "dropout"),
        (ldm.Decoder(3, initializer="xavier"), (1, 8, 8, 3), "initializer"),
    ],
)
def test_bad_options_are_one_line(net, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
