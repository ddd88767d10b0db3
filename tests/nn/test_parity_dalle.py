"""DALL-E's discrete autoencoder computes the codes and images of a PyTorch module with the names of OpenAI's."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from diffjax.models.parameter_paths import flatten  # noqa: E402
from diffjax.published import table  # noqa: E402
from diffjax.published.tables import dalle  # noqa: E402
from diffjax.published.tensors import open_parts  # noqa: E402
from diffjax.runs.config_files import load_file  # noqa: E402
from diffjax.runs.loading import build_model  # noqa: E402
from tests import parity  # noqa: E402

pytestmark = pytest.mark.parity

CHANNELS, CODES, INPUT, SIDE, LEVELS = 8, 12, 128, 16, (1, 2, 4, 8)


class Conv(nn.Module):
    def __init__(self, inputs, outputs, kernel):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class Bottleneck(nn.Module):
    def __init__(self, inputs, outputs, kernels, gain):
        super().__init__()
        widths, self.gain = (inputs, *(outputs // 4,) * 3, outputs), gain
        self.res_path = nn.Sequential()
        for i, kernel in enumerate(kernels):
            self.res_path.add_module(f"relu_{i + 1}", nn.ReLU())
            self.res_path.add_module(f"conv_{i + 1}", Conv(widths[i], widths[i + 1], kernel))
        self.id_path = nn.Identity() if inputs == outputs else Conv(inputs, outputs, 1)

    def forward(self, x):
        return self.id_path(x) + self.gain * self.res_path(x)


class Network(nn.Module):
    """The encoder or the decoder: both have four groups of two blocks."""

    def __init__(self, inputs, first, kernel, widths, kernels, change, outputs):
        super().__init__()
        self.blocks = nn.Sequential()
        self.blocks.add_module("input", Conv(inputs, first, kernel))
        for i, width in enumerate(widths):
            group = nn.Sequential()
            group.add_module("block_1", Bottleneck(widths[i - 1] if i else first, width, kernels, 1 / 64))
            group.add_module("block_2", Bottleneck(width, width, kernels, 1 / 64))
            if i < 3:
                group.add_module("resample", change)
            self.blocks.add_module(f"group_{i + 1}", group)
        self.blocks.add_module("output", nn.Sequential())
        self.blocks.output.add_module("relu", nn.ReLU())
        self.blocks.output.add_module("conv", Conv(widths[-1], outputs, 1))


def network(channels=CHANNELS, codes=CODES):
    widths = [channels * level for level in LEVELS]
    return nn.ModuleDict(
        {
            "encoder": Network(3, channels, 7, widths, (3, 3, 3, 1), nn.MaxPool2d(2), codes),
            "decoder": Network(codes, INPUT, 1, widths[::-1], (1, 3, 3, 3), nn.Upsample(scale_factor=2), 6),
        }
    )


@pytest.fixture(scope="module")
def both():
    config = load_file("configs/published/dalle_dvae.py")
    config.data.image_size, config.model.channels, config.codebook.size = SIDE, CHANNELS, CODES
    model, peer = build_model(config), parity.randomise(network())
    leaves = flatten(model.variable_shapes)
    return model, parity.read(dalle.openai(groups=4), leaves, parity.tensors(peer)), peer


def test_codes_and_images(both):
    model, variables, peer = both
    x = np.random.default_rng(1).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    with torch.no_grad():
        pixels = 0.8 * (torch.tensor(x).permute(0, 3, 1, 2) + 1) / 2 + 0.1
        logits = peer["encoder"].blocks(pixels)
        codes = logits.argmax(1)
        output = peer["decoder"].blocks(F.one_hot(codes, CODES).permute(0, 3, 1, 2).float())
        images = ((output[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    networks, params = model.networks, variables["params"]["model"]
    parity.assert_close(jax.jit(networks.encode)(params, x), logits.permute(0, 2, 3, 1).numpy())
    codec = model.codec(variables)
    np.testing.assert_array_equal(codec.to_codes(x)[0][..., 0], codes)
    assert codec.grids == ((SIDE // 8, SIDE // 8, 1),) and codec.scale == 1
    parity.assert_close(codec.from_codes((codes.numpy()[..., None],)), 2 * images.permute(0, 2, 3, 1).numpy() - 1)
    latent = params["codebook"][codes.numpy()]
    expected = output.permute(0, 2, 3, 1).unflatten(-1, (2, 3)).mT.numpy()  # location and log scale of each value
    parity.assert_close(networks.decode(params, latent, x), expected)


def test_the_published_size_is_that_of_the_config():
    """tests/published/test_published_configs.py has the same numbers."""
    with torch.device("meta"):
        peer = network(256, 8192)
    sizes = [sum(p.numel() for p in peer[name].parameters()) for name in ("encoder", "decoder")]
    assert sizes == [53_786_240, 43_829_766]


def test_pickled_modules_are_read(both, tmp_path):
    """OpenAI's encoder.pkl and decoder.pkl are such files."""
    _, _, peer = both
    for name in ("encoder", "decoder"):
        torch.save(peer[name], tmp_path / f"{name}.pkl")
    found = open_parts({name: tmp_path / f"{name}.pkl" for name in ("encoder", "decoder")})
    expected = parity.tensors(peer)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.read(), expected[name])


def test_a_trained_projection_of_entries_is_written_into_their_convolution(both):
    _, variables, peer = both
    leaves = flatten(variables)
    kernel = np.random.default_rng(2).normal(size=(INPUT, INPUT)).astype(np.float32) / INPUT**0.5
    leaves["params/model/decoder/conv_in/kernel"] = kernel
    written = table.write(dalle.openai(groups=4), dalle.fold_projection(leaves))
    before = peer["decoder"].blocks.input.w[:, :, 0, 0].detach().numpy()
    np.testing.assert_allclose(written["decoder.blocks.input.w"][:, :, 0, 0], kernel.T @ before, atol=1e-5)
    assert written.keys() == parity.tensors(peer).keys()
