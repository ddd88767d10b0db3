"""Encoders, decoders and the discriminator give the numbers of diffusers' models, or of PyTorch's functions."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

import torch.nn.functional as F  # noqa: E402

from diffjax.nn.autoencoders import dalle, ldm, vqvae  # noqa: E402
from diffjax.nn.discriminator import PatchDiscriminator  # noqa: E402
from diffjax.published.tables import autoencoder  # noqa: E402
from tests import parity  # noqa: E402

pytestmark = pytest.mark.parity


def pictures(*shape):
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


def assert_same(net, params, x, theirs):
    """`theirs` is a function of NCHW tensors."""
    with torch.no_grad():
        expected = theirs(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    found = jax.jit(net.apply)({"params": params}, x)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("model", "outputs", "latent", "fields"),
    [
        ("AutoencoderKL", 8, 4, {"channels": 32, "multipliers": (1, 2), "blocks": 1, "norm_groups": 8}),
        pytest.param(
            *("VQModel", 3, 3, {"channels": 128, "multipliers": (1, 2, 2), "blocks": 2, "norm_groups": 32}),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_latent_diffusion(model, outputs, latent, fields):
    widths = [fields["channels"] * m for m in fields["multipliers"]]
    coarser = len(widths) - 1  # the coarsest level alone attends, and the middle
    model = getattr(diffusers, model)(
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * coarser + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * coarser,
        layers_per_block=fields["blocks"],
        latent_channels=latent,
        norm_num_groups=fields["norm_groups"],
    )
    parity.randomise(model)
    height, width = 4 * 2**coarser, 8 * 2**coarser
    fields["attention_resolutions"] = (4,)
    networks = {
        "encoder": (ldm.Encoder(outputs, **fields), pictures(2, height, width, 3)),
        "decoder": (ldm.Decoder(3, **fields), pictures(2, 4, 8, latent)),
    }
    leaves = {
        f"{name}/{path}": leaf for name, (net, x) in networks.items() for path, leaf in parity.shapes(net, x).items()
    }
    for name, width in (("to_latent", outputs), ("from_latent", latent)):  # 1x1 convolutions outside the networks
        leaves[f"{name}/kernel"] = jax.ShapeDtypeStruct((width, width), np.float32)
        leaves[f"{name}/bias"] = jax.ShapeDtypeStruct((width,), np.float32)
    codebook = ("quantize.embedding.weight",)
    params = parity.read(autoencoder.diffusers(levels=len(widths)), leaves, parity.tensors(model), ignored=codebook)
    for name, (net, x) in networks.items():
        assert_same(net, params[name], x, getattr(model, name))


def random_parameters(net, x):
    """Returns random parameters of unit gain through ReLUs, with biases."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)["params"]
    return jax.tree.map(
        lambda leaf: (
            rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)
            if len(leaf.shape) > 1
            else rng.normal(0.5, 0.2, leaf.shape).astype(np.float32)
        ),
        shapes,
    )


def convolve(x, params, **options):
    """A convolution of an odd kernel, padded to keep the side, unless `options` say otherwise."""
    kernel, bias = torch.tensor(params["kernel"]), torch.tensor(params["bias"])
    kernel = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T[:, :, None, None]
    return F.conv2d(x, kernel, bias, **({"padding": kernel.shape[-1] // 2} | options))


def check(net, theirs, *shape):
    x = pictures(*shape)
    params = random_parameters(net, x)
    assert_same(net, params, x, lambda x: theirs(x, params))


def vqvae_stack(h, params, blocks):
    for i in range(blocks):
        r = convolve(F.relu(h), params[f"block_{i}_conv_0"])
        h = h + convolve(F.relu(r), params[f"block_{i}_conv_1"])
    return F.relu(h)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_vqvae(factor):
    halvings = {1: 0, 2: 1, 8: 3}[factor]

    def encode(h, params):
        for i in range(halvings):
            h = F.relu(convolve(h, params[f"down_{i}"], stride=2, padding=1))
        return convolve(vqvae_stack(convolve(h, params["conv"]), params, 2), params["conv_out"])

    def grow(h, params):
        kernel = torch.tensor(params["kernel"][::-1, ::-1].copy()).permute(2, 3, 0, 1)
        return F.conv_transpose2d(h, kernel, torch.tensor(params["bias"]), stride=2, padding=1)

    def decode(h, params):
        h = vqvae_stack(convolve(h, params["conv"]), params, 2)
        for i in reversed(range(1, halvings)):
            h = F.relu(grow(h, params[f"up_{i}"]))
        return (grow if halvings else convolve)(h, params["conv_out"])

    fields = {"channels": 16, "factor": factor, "residual_channels": 8}
    check(vqvae.Encoder(5, **fields), encode, 2, 16, 24, 4)
    check(vqvae.Decoder(3, **fields), decode, 2, 2, 3, 5)


@pytest.mark.parametrize(("groups", "blocks"), [(3, 1)])  # test_parity_dalle.py has the published depth
def test_dalle(groups, blocks):
    gain = 1 / (groups * blocks) ** 2

    def group(h, params, level):
        for i in range(blocks):
            block = params[f"group_{level}_block_{i}"]
            r = h
            for j in range(4):
                r = convolve(F.relu(r), block[f"conv_{j}"])
            h = (convolve(h, block["skip"]) if "skip" in block else h) + gain * r
        return h

    def encode(h, params):
        h = convolve(h, params["conv_in"])
        for level in range(groups):
            h = group(h, params, level)
            if level < groups - 1:
                h = F.max_pool2d(h, 2)
        return convolve(F.relu(h), params["conv_out"])

    def decode(h, params):
        h = convolve(h, params["conv_in"])
        for level in reversed(range(groups)):
            h = group(h, params, level)
            if level > 0:
                h = F.interpolate(h, scale_factor=2, mode="nearest")
        return convolve(F.relu(h), params["conv_out"])

    fields = {"channels": 16, "groups": groups, "blocks": blocks}
    check(dalle.Encoder(10, **fields), encode, 2, 8, 16, 3)
    check(dalle.Decoder(6, **fields, input_channels=12), decode, 2, 2, 3, 10)


@pytest.mark.parametrize("group_norm", [True, False])
def test_discriminator(group_norm):
    def discriminate(h, params):
        for i, stride in enumerate((2, 2, 1)):
            h = convolve(h, params[f"conv_{i}"], stride=stride, padding=1)
            if group_norm and i > 0:
                scale = {"weight": torch.tensor(params[f"norm_{i}"]["scale"])}
                h = F.group_norm(h, 32, **scale, bias=torch.tensor(params[f"norm_{i}"]["bias"]), eps=1e-6)
            h = F.leaky_relu(h, 0.2)
        return convolve(h, params["conv_out"], padding=1)

    check(PatchDiscriminator(64, 2, "group" if group_norm else "none"), discriminate, 2, 20, 24, 3)
