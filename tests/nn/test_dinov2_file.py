"""Folders of published DINOv2s: options, parameters, resizing, and errors of invalid files."""

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax.errors import UserError
from diffjax.nn.pretrained import dinov2
from tests.published_dinov2 import CONFIG, tensors, write


@pytest.mark.parametrize("swiglu", [False, True])
def test_options_and_parameters_are_read(tmp_path, swiglu):
    found = dinov2.load(write(tmp_path, CONFIG | {"use_swiglu_ffn": swiglu}, tensors(swiglu)))
    network = found.network
    assert (network.patch, network.grid, network.width, network.layers, network.heads) == (56, 2, 16, 2, 2)
    assert (network.activation, network.epsilon) == ("swiglu" if swiglu else "gelu", 1e-6)
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in jax.tree.leaves(found.params))
    expected = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 112, 112, 3)))["params"]
    jax.tree.map(lambda leaf, shape: np.testing.assert_equal(leaf.shape, shape.shape), found.params, expected)
    published, block = tensors(swiglu), found.params["transformer"]["block_1"]
    scale = published["encoder.layer.1.layer_scale1.lambda1"]
    kernel = published["encoder.layer.1.attention.output.dense.weight"].T
    np.testing.assert_allclose(block["out"]["kernel"], kernel * scale, rtol=1e-6)
    key = published["encoder.layer.1.attention.attention.key.weight"]
    np.testing.assert_array_equal(block["qkv"]["kernel"][:, 16:32], key.T)


def test_sides_may_be_pairs(tmp_path):
    assert dinov2.load(write(tmp_path, CONFIG | {"image_size": [112, 112], "patch_size": [56, 56]})).network.grid == 2


def test_missing_fields_have_the_defaults_of_the_library(tmp_path):
    """The file does not have the shapes of ViT-B/14, which are the defaults."""
    with pytest.raises(UserError, match=r"projection.weight is of shape \(16, 3, 56, 56\), not \(768, 3, 14, 14\)"):
        dinov2.load(write(tmp_path, {"model_type": "dinov2"}))


@pytest.mark.parametrize("shape", [(2, 8, 8, 1), (1, 120, 300, 3), (1, 224, 30, 3), (1, 512, 512, 1)])
def test_images_are_resized_as_by_pillow(shape):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for image, found in zip(images, np.asarray(dinov2.resize(images)), strict=True):
        channels = np.moveaxis(image, -1, 0)
        pillow = [Image.fromarray(c).resize((224, 224), Image.Resampling.BICUBIC) for c in channels]
        difference = np.abs(np.stack(pillow, -1) - found)
        assert difference.max() <= 1 and (difference > 0).mean() < 2e-3


@pytest.mark.slow
def test_features_are_of_grey_and_rgb_images_of_any_size(tmp_path):
    found = dinov2.load(write(tmp_path))
    grey = np.random.default_rng(0).integers(0, 256, (2, 9, 12, 1), np.uint8)
    features = dinov2.features(found.network, found.params, grey)
    assert features.shape == (2, 16) and features.dtype == np.float32
    same = dinov2.features(found.network, found.params, grey.repeat(3, axis=-1))
    np.testing.assert_allclose(features, same, atol=1e-5)
    with pytest.raises(ValueError, match="must be uint8"):
        dinov2.features(found.network, found.params, grey.astype(np.float32))


@pytest.mark.parametrize(
    "change,message",
    [
        (
            {"model_type": "dinov2_with_registers"},
            'is not a DINOv2: config.json has model_type "dinov2_with_registers"',
        ),
        ({"model_type": None}, "is not a DINOv2: config.json has model_type null"),
        ({"hidden_act": "relu"}, 'hidden_act="relu": must be "gelu"'),
        ({"qkv_bias": False}, "qkv_bias=false: must be true"),
        ({"num_channels": 1}, "num_channels=1: must be 3"),
        ({"use_swiglu_ffn": "yes"}, 'use_swiglu_ffn="yes": must be false or true'),
        ({"image_size": [112, 56]}, r"image_size=\[112, 56\]: must be a positive integer"),
        ({"patch_size": 50}, "patch_size=50: must divide image_size=112"),
        ({"image_size": 448, "patch_size": 448}, "patch_size=448: must be at most 224"),
        ({"num_attention_heads": 3}, "num_attention_heads=3: must divide hidden_size=16"),
        ({"layer_norm_eps": "1e-6"}, 'layer_norm_eps="1e-6": must be a positive number'),
        ({"mlp_ratio": 0}, "mlp_ratio=0: must be a positive number"),
        ({"mlp_ratio": 3}, r"fc2.weight is of shape \(16, 64\), not \(16, 48\)"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.* is missing"),
        ({"num_hidden_layers": 1}, "has no encoder.layer.1"),
        ({"num_hidden_layers": 10**400}, "num_hidden_layers=1000.*: must be a positive integer"),
        ({"use_swiglu_ffn": True}, "weights_out.weight is missing"),
        ({"hidden_act": {"a": "\x1b[2J\n"}}, "hidden_act=.*must be"),
    ],
)
def test_options_that_are_not_supported_raise(tmp_path, change, message):
    with pytest.raises(UserError, match=message) as caught:
        dinov2.load(write(tmp_path, CONFIG | change))
    assert str(caught.value).isprintable() and str(tmp_path) in str(caught.value) and len(str(caught.value)) < 500


def test_weights_of_another_type_or_not_finite_raise(tmp_path):
    for value, message in ((np.zeros(16, np.int8), "is of type int8"), (np.full(16, np.nan, "f4"), "not finite")):
        with pytest.raises(UserError, match=f"layernorm.bias.*{message}"):
            dinov2.load(write(tmp_path, weights=tensors() | {"layernorm.bias": value}))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_raise(tmp_path, name):
    file = write(tmp_path) / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=f"{name} is not .*") as caught:
        dinov2.load(tmp_path)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match=r"cannot read .*config\.json: No such file|has no weights"):
        dinov2.load(tmp_path)
