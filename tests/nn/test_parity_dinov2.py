"""DINOv2 gives the numbers of Hugging Face's model and of the code of FD-DINOv2 with the same weights."""

import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from diffjax.nn.pretrained import dinov2  # noqa: E402

pytestmark = pytest.mark.parity

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def peer(folder, **options):
    """Returns a random DINOv2 whose layer scales and norms are not one, saved to a folder."""
    shape = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14}
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(**shape | options)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.3 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) / p[0].numel() ** 0.5)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("swiglu", [False, True])
def test_states_of_all_tokens(tmp_path, swiglu):
    """Images of the size of the learned positions, of another size, and of another size that is not square."""
    model = peer(tmp_path, image_size=70, use_swiglu_ffn=swiglu)
    found = dinov2.load(tmp_path)
    network = dataclasses.replace(found.network, position_offset=0.0)
    for shape in ((70, 70), (42, 98), (45, 60)):
        pixels = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
        with torch.no_grad():
            expected = model(torch.tensor(pixels).permute(0, 3, 1, 2)).last_hidden_state.numpy()
        assert expected.std() > 0.5
        states = jax.jit(network.apply)({"params": found.params}, pixels)
        np.testing.assert_allclose(states, expected, atol=1e-4)
        if shape == (70, 70):  # an older format of the same weights
            (tmp_path / "model.safetensors").rename(tmp_path / "aside")
            torch.save(
                {name: value for name, value in read(tmp_path / "aside").items()}, tmp_path / "pytorch_model.bin"
            )
            older = dinov2.load(tmp_path).params
            jax.tree.map(np.testing.assert_array_equal, older, found.params)


def read(path):
    import safetensors.torch

    return safetensors.torch.load(path.read_bytes())


@pytest.mark.parametrize(
    "width,layers,heads,millions", [(384, 12, 6, 22), (768, 12, 12, 87), (1024, 24, 16, 304), (1536, 40, 24, 1136)]
)
def test_published_sizes_have_as_many_parameters(width, layers, heads, millions):
    """ViT-S, B, L and g; the mask token is not read, and layer scales are part of other parameters."""
    giant = width == 1536
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": 518}
    with torch.device("meta"):
        model = transformers.Dinov2Model(transformers.Dinov2Config(use_swiglu_ffn=giant, **shape))
    expected = sum(p.numel() for p in model.parameters())
    assert round(expected / 1e6) == millions
    mlp = {"activation": "swiglu"} if giant else {}
    network = dinov2.DINOv2(patch=14, grid=37, width=width, layers=layers, heads=heads, **mlp)
    params = jax.eval_shape(network.init, jax.random.key(0), np.zeros((1, 224, 224, 3)))["params"]
    found = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert found == expected - width - 2 * layers * width


def test_positions_are_interpolated_as_in_the_network_of_torch_hub():
    """dinov2/models/vision_transformer.py of facebookresearch/dinov2: interpolate_pos_encoding with offset 0.1."""
    table = np.random.default_rng(0).normal(size=(37, 37, 4)).astype(np.float32)
    scale = (16 + 0.1) / 37
    expected = torch.nn.functional.interpolate(
        torch.tensor(table).permute(2, 0, 1)[None], mode="bicubic", scale_factor=(scale, scale)
    )
    matrix = dinov2._bicubic(37, 16, 0.1)
    found = np.einsum("ia,jb,abc->cij", matrix, matrix, table)
    np.testing.assert_allclose(found, expected[0], atol=1e-5)


def test_features_of_images(tmp_path):
    """Resized by Pillow, normalised, and the class token of the network at 224 pixels, as in dgm-eval."""
    from PIL import Image

    model = peer(tmp_path, image_size=224)  # no interpolation
    found = dinov2.load(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (2, 40, 300, 3), np.uint8)
    resized = np.stack([np.asarray(Image.fromarray(x).resize((224, 224), Image.Resampling.BICUBIC)) for x in images])
    pixels = torch.tensor((resized / 255 - MEAN) / STD, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = model(pixels).pooler_output.numpy()
    features = jax.jit(dinov2.features, static_argnums=0)(found.network, found.params, images)
    np.testing.assert_allclose(features, expected, atol=1e-3)  # a few pixels differ by one grey level
