"""Layers of transformer blocks against closed forms in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffjax.nn.transformer_layers import (
    grid_positions,
    make_norm,
    mlp_width,
    normalize_heads,
    rotary_angles,
    rotate,
)

RNG = np.random.default_rng(0)


def complex_rotation(x, angles):
    """Returns [T, heads, D] rotated by angles [T, D / 2], as complex numbers of the pairs of channels."""
    pairs = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None, :]
    return np.stack([pairs.real, pairs.imag], axis=-1).reshape(x.shape)


def test_rotation_of_a_sequence():
    x, positions = RNG.normal(size=(5, 3, 8)), np.array([0, 1, 4, 7, 100])
    angles = positions[:, None] / 10_000 ** (np.arange(4) / 4)
    found = rotate(jnp.asarray(x.reshape(1, 5, 24), jnp.float32), rotary_angles(jnp.asarray(positions[:, None]), 8))
    np.testing.assert_allclose(found.reshape(5, 3, 8), complex_rotation(x, angles), atol=1e-5)
    assert rotate(jnp.ones((1, 5, 24), jnp.bfloat16), jnp.zeros((5, 4))).dtype == jnp.bfloat16


def test_rotation_of_a_grid():
    """Half of the channels of each head is rotated by the row, half by the column; tokens before the grid are not."""
    angles = rotary_angles(grid_positions(2, 3, before=1), 8)
    rows, columns = np.array([0, 0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 2, 0, 1, 2])
    frequencies = np.array([1, 1 / 100])
    expected = np.concatenate([np.outer(rows, frequencies), np.outer(columns, frequencies)], axis=1)
    np.testing.assert_allclose(angles, expected, rtol=1e-6)


def test_logits_depend_on_relative_positions_alone():
    """Equal queries and equal keys at all positions of a grid."""
    q, k = (jnp.broadcast_to(jnp.asarray(RNG.normal(size=16), jnp.float32), (1, 16, 16)) for _ in range(2))
    angles = rotary_angles(grid_positions(4, 4), 16)
    logits = np.asarray(rotate(q, angles)[0] @ rotate(k, angles)[0].T).reshape(4, 4, 4, 4)
    by_offset = {}
    for place in np.ndindex(logits.shape):
        by_offset.setdefault((place[0] - place[2], place[1] - place[3]), []).append(logits[place])
    assert len(by_offset) == 49 and all(np.ptp(values) < 1e-4 for values in by_offset.values())
    assert np.std([values[0] for values in by_offset.values()]) > 0.1


@pytest.mark.parametrize(("channels", "axes"), [(7, 1), (6, 2)])
def test_channels_that_cannot_be_paired(channels, axes):
    with pytest.raises(ValueError, match=f"the {channels} channels per head must be a multiple of {2 * axes}"):
        rotary_angles(jnp.zeros((3, axes)), channels)


def test_rms_norms_have_float32_statistics():
    x = jnp.asarray(200 * RNG.normal(size=(2, 3, 12)) + 100, jnp.bfloat16)
    exact = np.asarray(x, np.float64)
    norm = make_norm("rms", 1e-6, jnp.float32)
    params = {"scale": RNG.normal(size=12).astype(np.float32)}
    expected = exact / np.sqrt((exact**2).mean(-1, keepdims=True)) * params["scale"]
    np.testing.assert_allclose(norm.apply({"params": params}, x), expected, rtol=1e-5)
    assert not jax.eval_shape(make_norm("rms", 1e-6, jnp.float32, learned=False).init, jax.random.key(0), x)


def test_norms_of_heads():
    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return normalize_heads(x, 3, jnp.float32, "norm_q")

    x, scale = RNG.normal(size=(2, 5, 12)), RNG.normal(size=4)
    heads = x.reshape(2, 5, 3, 4)
    expected = heads / np.sqrt((heads**2).mean(-1, keepdims=True)) * scale
    found = Norm().apply({"params": {"norm_q": {"scale": scale}}}, x.astype(np.float32))
    np.testing.assert_allclose(found, expected.reshape(x.shape), rtol=1e-4)


def test_widths_of_mlps():
    assert mlp_width(768, 4, "gelu") == 3072
    assert mlp_width(768, 4, "swiglu") == 2 * 2048  # JiT-B
    assert mlp_width(1024, 4, "swiglu") == 2 * 2730  # JiT-L
    assert mlp_width(1536, 0.75 * 8192 / 1536, "swiglu") == 8192  # the inverse, as for DINOv2's ViT-g
    with pytest.raises(ValueError, match="activation='relu'"):
        mlp_width(8, 4, "relu")
