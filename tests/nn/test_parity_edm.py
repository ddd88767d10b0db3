"""The U-Net has the outputs of a PyTorch module with the layers and the names of EDM's DhariwalUNet."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from diffjax.errors import UserError  # noqa: E402
from diffjax.nn.unet import ADM_DETAILS, UNet  # noqa: E402
from diffjax.published.tables import edm  # noqa: E402
from tests import parity  # noqa: E402

pytestmark = pytest.mark.parity

SIDE, CHANNELS, MULTIPLIERS, BLOCKS, HEAD, CLASSES = 16, 32, (1, 2, 2), 1, 16, 5
ATTENTION, EMBEDDING = (8, 4), 4 * CHANNELS


class Conv(nn.Module):
    """A convolution after a change of resolution, or the change alone (kernel 0)."""

    def __init__(self, inputs, outputs, kernel, change=None):
        super().__init__()
        self.change = change
        if kernel:
            self.weight = nn.Parameter(torch.zeros(outputs, inputs, kernel, kernel))
            self.bias = nn.Parameter(torch.zeros(outputs))
        if change:
            self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25))

    def forward(self, x):
        if self.change == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        if self.change == "down":
            x = F.avg_pool2d(x, 2)
        weight = getattr(self, "weight", None)
        return x if weight is None else F.conv2d(x, weight, self.bias, padding=weight.shape[-1] // 2)


def norm(channels):
    return nn.GroupNorm(min(32, channels // 4), channels, eps=1e-5)


class UNetBlock(nn.Module):
    def __init__(self, inputs, outputs, change=None, attention=False):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.norm0, self.conv0 = norm(inputs), Conv(inputs, outputs, 3, change)
        self.affine = nn.Linear(EMBEDDING, 2 * outputs)
        self.norm1, self.conv1 = norm(outputs), Conv(outputs, outputs, 3)
        self.skip = Conv(inputs, outputs, int(inputs != outputs), change) if change or inputs != outputs else None
        self.attends = attention
        if attention:
            self.norm2, self.qkv, self.proj = norm(outputs), Conv(outputs, 3 * outputs, 1), Conv(outputs, outputs, 1)

    def forward(self, x, emb):
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, 1)
        h = self.norm1(self.conv0(F.silu(self.norm0(x)))) * (scale + 1) + shift
        x = self.conv1(F.silu(h)) + (x if self.skip is None else self.skip(x))
        if not self.attends:
            return x
        # each channel of each head has a query, a key and a value
        q, k, v = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (-1, HEAD, 3)).unbind(3)
        weights = torch.einsum("nhcq,nhck->nhqk", q, k / HEAD**0.5).softmax(-1)
        return x + self.proj(torch.einsum("nhqk,nhck->nhcq", weights, v).reshape(x.shape))


class DhariwalUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.map_layer0, self.map_layer1 = nn.Linear(CHANNELS, EMBEDDING), nn.Linear(EMBEDDING, EMBEDDING)
        self.map_label = nn.Linear(CLASSES, EMBEDDING, bias=False)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        widths, sides = [CHANNELS * m for m in MULTIPLIERS], [SIDE >> level for level in range(len(MULTIPLIERS))]
        width, skips = 3, []
        for level, (side, wide) in enumerate(zip(sides, widths, strict=True)):
            if level:
                self.enc[f"{side}x{side}_down"] = UNetBlock(width, width, "down")
            else:
                self.enc[f"{side}x{side}_conv"], width = Conv(3, wide, 3), wide
            skips.append(width)
            for i in range(BLOCKS):
                self.enc[f"{side}x{side}_block{i}"] = UNetBlock(width, wide, attention=side in ATTENTION)
                width = wide
                skips.append(width)
        for level, (side, wide) in reversed(list(enumerate(zip(sides, widths, strict=True)))):
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = UNetBlock(width, width, attention=True)
                self.dec[f"{side}x{side}_in1"] = UNetBlock(width, width)
            else:
                self.dec[f"{side}x{side}_up"] = UNetBlock(width, width, "up")
            for i in range(BLOCKS + 1):
                self.dec[f"{side}x{side}_block{i}"] = UNetBlock(width + skips.pop(), wide, attention=side in ATTENTION)
                width = wide
        self.out_norm, self.out_conv = norm(width), Conv(width, 3, 3)

    def forward(self, x, noise, classes):
        angles = noise[:, None] * 10_000 ** -(torch.arange(CHANNELS // 2) / (CHANNELS // 2))
        emb = self.map_layer1(F.silu(self.map_layer0(torch.cat([angles.cos(), angles.sin()], 1))))
        emb, skips = F.silu(emb + self.map_label(classes)), []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for block in self.dec.values():
            x = block(x if x.shape[1] == block.inputs else torch.cat([x, skips.pop()], 1), emb)
        return self.out_conv(F.silu(self.out_norm(x)))


def test_dhariwal_unet():
    peer = parity.randomise(DhariwalUNet())
    net = UNet(
        3,
        CHANNELS,
        MULTIPLIERS,
        BLOCKS,
        ATTENTION,
        **ADM_DETAILS,
        head_channels=HEAD,
        time_conditioning="scale_shift",
        resample="residual",
        norm_min_channels=4,
        num_label_embeddings=CLASSES,
    )
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32), np.array([-1.2, 0.9], np.float32)
    label = np.array([4, 1])
    leaves = parity.shapes(net, x, noise, label=label)
    params = parity.read(edm.dhariwal_unet(side=SIDE, levels=len(MULTIPLIERS)), leaves, parity.tensors(peer))
    with torch.no_grad():
        one_hot = F.one_hot(torch.tensor(label), CLASSES).float()
        expected = peer(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(noise), one_hot)
    found = jax.jit(net.apply)({"params": params}, x, noise, label=label)
    parity.assert_close(found, expected.permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.dec.32x32_aux_conv.weight", "FILE: is a SongUNet"),
        ("input_blocks.0.0.weight", "FILE: has no tensor of a DhariwalUNet"),
    ],
)
def test_other_networks_are_errors(name, message):
    with pytest.raises(UserError, match=message):
        edm.check_dhariwal_unet([name, "model.map_layer0.weight"], network="FILE")
