"""TAESD has the latents and the images of diffusers' AutoencoderTiny with the same weights."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from torch import nn  # noqa: E402

from diffjax.models.parameter_paths import flatten  # noqa: E402
from diffjax.published.tables import taesd  # noqa: E402
from diffjax.runs.config_files import load_file  # noqa: E402
from diffjax.runs.loading import build_model  # noqa: E402
from tests import parity  # noqa: E402

pytestmark = pytest.mark.parity

CHANNELS = 8


def build(side=16, channels=CHANNELS, **fields):
    config = load_file("configs/published/taesd.py")
    with config.unlocked():
        del config.adversarial  # the discriminator, which files do not have
    config.data.image_size = side
    config.model.update(channels=channels, **fields)
    model = build_model(config)
    return model, flatten(model.variable_shapes)


def autoencoder_tiny(channels=CHANNELS, factor=8, blocks=3):
    levels = factor.bit_length()
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(channels,) * levels,
        decoder_block_out_channels=(channels,) * levels,
        num_encoder_blocks=(1, *(blocks,) * (levels - 1)),
        num_decoder_blocks=(*(blocks,) * (levels - 1), 1),
    )


@pytest.mark.parametrize(("factor", "blocks"), [(8, 3), (2, 1)])
def test_diffusers(factor, blocks):
    model, leaves = build(factor=factor, blocks=blocks)
    peer = parity.randomise(autoencoder_tiny(factor=factor, blocks=blocks))
    variables = parity.read(taesd.diffusers(factor=factor, blocks=blocks), leaves, parity.tensors(peer))
    x = np.random.default_rng(1).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    with torch.no_grad():
        latents = peer.encode(torch.tensor(x).permute(0, 3, 1, 2)).latents
        images = peer.decode(latents).sample.permute(0, 2, 3, 1).numpy()
    codec = model.codec(variables)
    latents = latents.permute(0, 2, 3, 1).numpy()
    parity.assert_close(jax.jit(codec.encode)(x), latents)
    parity.assert_close(jax.jit(codec.decode)(latents), images)


class Block(nn.Module):
    """A residual block with the names of the author's code."""

    def __init__(self):
        super().__init__()
        convolutions = [nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])


def original():
    """Returns the author's layers; the decoder starts with a layer without weights."""

    def conv(inputs, outputs, **options):
        return nn.Conv2d(inputs, outputs, 3, padding=1, **options)

    def level():
        return [Block(), Block(), Block()]

    encoder, decoder = [conv(3, CHANNELS), Block()], [nn.Identity(), conv(4, CHANNELS), nn.ReLU()]
    for _ in range(3):
        encoder += [conv(CHANNELS, CHANNELS, stride=2, bias=False), *level()]
        decoder += [*level(), nn.Upsample(scale_factor=2), conv(CHANNELS, CHANNELS, bias=False)]
    encoder, decoder = [*encoder, conv(CHANNELS, 4)], [*decoder, Block(), conv(CHANNELS, 3)]
    return parity.randomise(nn.ModuleDict({"encoder": nn.Sequential(*encoder), "decoder": nn.Sequential(*decoder)}))


def test_the_original_names():
    peer, (_, leaves) = original(), build()
    variables = parity.read(taesd.original(), leaves, parity.tensors(peer))
    same = autoencoder_tiny()
    same.encoder.layers.load_state_dict(peer["encoder"].state_dict())
    same.decoder.layers.load_state_dict(nn.Sequential(*peer["decoder"][1:]).state_dict())
    expected = parity.read(taesd.diffusers(), leaves, parity.tensors(same))
    jax.tree.map(np.testing.assert_array_equal, variables, expected)


def test_the_published_size():
    with torch.device("meta"):
        peer = diffusers.AutoencoderTiny()
    _, leaves = build(64, 64)
    network = sum(leaf.size for path, leaf in leaves.items() if path.startswith("params/"))
    log_variances = 4 * (9 * 64 + 1)
    assert network - log_variances == sum(p.numel() for p in peer.parameters())
