"""Folders of published CLIPs: options, parameters, and errors of invalid files."""

import jax
import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.nn.pretrained import clip_checkpoint
from tests.clip_folder import CONFIG, TEXT, VISION, tensors, write


def test_options_and_parameters_are_read(tmp_path):
    found = clip_checkpoint.load(write(tmp_path))
    image, text = found.image_encoder, found.text_encoder
    assert (found.image_size, found.text_length, image.dimensions, text.dimensions) == (8, 5, 6, 6)
    assert (image.patch, image.width, image.layers, image.heads, image.activation) == (4, 12, 1, 3, "gelu")
    assert (text.vocabulary, text.width, text.layers, text.heads, text.activation) == (20, 8, 2, 2, "quick_gelu")
    assert (image.mlp_ratio, text.mlp_ratio) == (4, 2.5)
    assert image.pixel_mean == (0.48145466, 0.4578275, 0.40821073)
    assert image.pixel_std == (0.26862954, 0.26130258, 0.27577711)

    params = found.variables["params"]["model"]
    assert all(isinstance(leaf, np.ndarray) and leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))
    assert params["log_scale"].shape == ()
    inputs = {"image": np.zeros((1, 8, 8, 3)), "text": np.zeros((1, 5), int)}
    for name, encoder in (("image", image), ("text", text)):
        expected = jax.eval_shape(encoder.init, jax.random.key(0), inputs[name])["params"]
        jax.tree.map(lambda leaf, shape: np.testing.assert_equal(leaf.shape, shape.shape), params[name], expected)

    published, block = tensors(), params["text"]["transformer"]["block_1"]
    name = "text_model.encoder.layers.1.self_attn.k_proj"
    np.testing.assert_array_equal(block["qkv"]["kernel"][:, 8:16], published[f"{name}.weight"].T)
    np.testing.assert_array_equal(block["qkv"]["bias"][8:16], published[f"{name}.bias"])
    patch = published["vision_model.embeddings.patch_embedding.weight"]
    np.testing.assert_array_equal(params["image"]["patch"]["kernel"][1, 2, 0, 7], patch[7, 0, 1, 2])


def test_missing_fields_have_the_defaults_of_openai(tmp_path):
    """Those of ViT-B/32, whose shapes the file does not have."""
    sizes = {"num_hidden_layers": 1}
    layers = {"text_config": {"num_hidden_layers": 2}, "vision_config": sizes}
    fault = "class_embedding is 12, and does not fit params/model/image/class, 768"
    with pytest.raises(UserError, match=fault):
        clip_checkpoint.load(write(tmp_path, {"model_type": "clip", **layers}))


def test_the_older_format_with_two_copies_of_the_options_is_read(tmp_path):
    old = CONFIG | {"text_config": TEXT | {"hidden_size": 9}, "text_config_dict": TEXT, "vision_config_dict": None}
    positions = {"text_model.embeddings.position_ids": np.arange(5)[None]}
    found = clip_checkpoint.load(write(tmp_path, old, tensors() | positions))
    assert found.text_encoder.width == 8


def test_pixel_statistics_are_read_from_the_preprocessor_config(tmp_path):
    pixels = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1], "size": 8}
    found = clip_checkpoint.load(write(tmp_path, preprocessor_config=pixels))
    assert found.image_encoder.pixel_mean == (0.5, 0.4, 0.3) and found.image_encoder.pixel_std == (0.2, 0.2, 0.1)


def test_half_precision_is_read_as_float32(tmp_path):
    found = clip_checkpoint.load(write(tmp_path, weights={name: x.astype(np.float16) for name, x in tensors().items()}))
    leaf = found.variables["params"]["model"]["text"]["place"]
    exact = tensors()["text_model.embeddings.position_embedding.weight"]
    assert leaf.dtype == np.float32
    np.testing.assert_array_equal(leaf, exact.astype(np.float16))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x.astype(np.int8), "text_projection.weight is of type int8, and must be floating point"),
        (lambda x: np.where(x == x.max(), np.nan, x), "text_projection.weight has values that are not finite"),
        (lambda x: np.where(x == x.max(), np.inf, x), "text_projection.weight has values that are not finite"),
    ],
)
def test_weights_that_are_not_finite_floats_raise(tmp_path, change, message):
    changed = {"text_projection.weight": change(tensors()["text_projection.weight"])}
    with pytest.raises(UserError, match=message):
        clip_checkpoint.load(write(tmp_path, weights=tensors() | changed))


def test_unprintable_names_of_tensors_raise(tmp_path):
    with pytest.raises(UserError, match="name is not text") as error:
        clip_checkpoint.load(write(tmp_path, weights=tensors() | {"a\x1b[2J\nb": np.zeros(1, np.float32)}))
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "config,message",
    [
        ({"model_type": "siglip"}, 'is not a CLIP: config.json has model_type "siglip"'),
        ({}, "is not a CLIP"),
        ([], "has no fields"),
        (CONFIG | {"text_config": 3}, "text_config has no fields"),
        (
            CONFIG | {"text_config": TEXT | {"hidden_act": "relu"}},
            r'text_config.hidden_act="relu": must be gelu or quick',
        ),
        (CONFIG | {"text_config": TEXT | {"layer_norm_eps": 1e-6}}, "text_config.layer_norm_eps=1e-06"),
        (
            CONFIG | {"vision_config": VISION | {"patch_size": 0}},
            "vision_config.patch_size=0: must be a positive integer",
        ),
        (CONFIG | {"vision_config": VISION | {"num_attention_heads": 5}}, "num_attention_heads=5: must divide"),
        (CONFIG | {"text_config": TEXT | {"num_hidden_layers": 3}}, "layers.2.* are missing"),
        (CONFIG | {"text_config": TEXT | {"num_hidden_layers": 1}}, "layers.1.* are not part of that network"),
        (CONFIG | {"text_config": TEXT | {"num_hidden_layers": 1001}}, "=1001: must be a positive integer up to 1000"),
        (CONFIG | {"text_config": TEXT | {"attention_dropout": 0.1}}, "text_config.attention_dropout=0.1: must be 0.0"),
        (CONFIG | {"vision_config": VISION | {"use_rope": True}}, "vision_config.use_rope=true: is not supported"),
        (CONFIG | {"projection_type": "mlp"}, 'projection_type="mlp": is not supported'),
        ({"model_type": ["clip"] * 9999}, "is not a CLIP"),
        (CONFIG | {"projection_dim": 6.0}, "projection_dim=6.0: must be a positive integer"),
        (CONFIG | {"projection_dim": "6"}, 'projection_dim="6": must be a positive integer'),
        (CONFIG | {"projection_dim": None}, "projection_dim=null: must be a positive integer"),
        (
            CONFIG | {"text_config": TEXT | {"hidden_size": True}},
            "text_config.hidden_size=true: must be a positive integer",
        ),
        (
            CONFIG | {"text_config": TEXT | {"num_hidden_layers": 10**400}},
            "num_hidden_layers=1000.*: must be a positive",
        ),
        (CONFIG | {"text_config": TEXT | {"hidden_act": ["gelu"]}}, "hidden_act=.* must be"),
        (CONFIG | {"text_config": TEXT | {"hidden_act": {"a": "\x1b[2J\n"}}}, "hidden_act=.* must be"),
        (CONFIG | {"text_config": TEXT | {"layer_norm_eps": "x" * 9999}}, "layer_norm_eps=.* must be 1e-05"),
        (CONFIG | {"projection_dim": 7}, "visual_projection.weight is 6x12, and does not fit .*, 12x7"),
        (CONFIG | {"vision_config": VISION | {"image_size": 12}}, "position_embedding.weight is 5x12, .*, 10x12"),
        (CONFIG | {"vision_config": VISION | {"image_size": 6}}, "config.json: patch=4: must divide"),
    ],
)
def test_invalid_configs_raise(tmp_path, config, message):
    with pytest.raises(UserError, match=message) as caught:
        clip_checkpoint.load(write(tmp_path, config))
    assert str(caught.value).isprintable() and str(tmp_path) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "pixels",
    [
        {"image_mean": None},
        {"image_mean": "abc"},
        {"image_mean": {"a": 1, "b": 2, "c": 3}},
        {"image_mean": [0.5, 0.5, True]},
        {"image_mean": [0.5, 0.5, 10**400]},
        {"image_std": [1, 1]},
        {"image_std": [1, 1, "1"]},
        {"image_std": [1, 1, 0]},
        {"image_std": [1, 1, -0.5]},
    ],
)
def test_invalid_pixel_statistics_raise(tmp_path, pixels):
    with pytest.raises(
        UserError, match=r"preprocessor_config.json: image_.* a (positive )?number for each of 3 channels"
    ):
        clip_checkpoint.load(write(tmp_path, preprocessor_config=pixels))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_damaged_files_raise(tmp_path, name):
    file = write(tmp_path) / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=f"{name} is not .*") as caught:
        clip_checkpoint.load(tmp_path)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(UserError, match=f"cannot read .*{name}: No such file|has no weights; it must have"):
        clip_checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"7", b"[]", b'"model_type"', b"null", b"[" * 200_000, b"\xff\xfe", b'{"image_std": [NaN, 1, 1]}']
)
def test_malformed_config_files_are_reported_in_one_line(tmp_path, name, content):
    (write(tmp_path) / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as caught:
        clip_checkpoint.load(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500
    assert clip_checkpoint.is_published(tmp_path) == (name != "config.json")


def test_deeply_nested_config_files_are_reported_in_one_line(tmp_path):
    for depth in range(100, 1100, 50):
        nested = b'{"model_type": ' + b"[" * depth + b"]" * depth + b"}"
        (write(tmp_path) / "config.json").write_bytes(nested)
        with pytest.raises(UserError, match=r"config\.json"):
            clip_checkpoint.load(tmp_path)


def test_huge_config_files_raise(tmp_path):
    with open(write(tmp_path) / "config.json", "r+b") as file:
        file.truncate(2**36)
    with pytest.raises(UserError, match=r"config.json: larger than 16,777,216 bytes"):
        clip_checkpoint.load(tmp_path)
    assert not clip_checkpoint.is_published(tmp_path)
