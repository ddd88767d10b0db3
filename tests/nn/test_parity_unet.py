"""The U-Net has the outputs of diffusers' models with the same random weights."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.nn.unet import ADM_DETAILS, UNet  # noqa: E402
from diffjax.published.tables import unet  # noqa: E402
from tests import parity  # noqa: E402

pytestmark = pytest.mark.parity

BLOCKS, GROUPS = 1, 8
OURS = {"channels": 32, "multipliers": (1, 2, 2), "blocks": BLOCKS, "norm_groups": GROUPS}
THEIRS = {
    "sample_size": 16,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": BLOCKS,
    "norm_num_groups": GROUPS,
}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
DDPM = {"flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "norm_eps": 1e-6}
ADM = {"flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "norm_eps": 1e-5}


def check(net, model, ours=None, theirs=None, **options):
    """Compares outputs, with the model's weights through the table of diffusers' names with `options`."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2, 16, 16, 3)).astype(np.float32), np.array([3, 777])
    with torch.no_grad():
        expected = model(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), **(theirs or {})).sample
    leaves = parity.shapes(net, x, t, **(ours or {}))
    params = parity.read(unet.diffusers(levels=3, **options), leaves, parity.tensors(model))
    found = jax.jit(net.apply)({"params": params}, x, t, **(ours or {}))
    parity.assert_close(found, expected.permute(0, 2, 3, 1).numpy())


def test_ddpm():
    blocks = {"down_block_types": (DOWN[0], DOWN[1], DOWN[0]), "up_block_types": (UP[0], UP[1], UP[0])}
    model = diffusers.UNet2DModel(**THEIRS, **DDPM, **blocks, attention_head_dim=None)
    check(UNet(3, **OURS, attention_resolutions=(8,)), parity.randomise(model))


def test_adm():
    model = diffusers.UNet2DModel(
        **THEIRS,
        **ADM,
        down_block_types=("ResnetDownsampleBlock2D", DOWN[1], DOWN[1]),
        up_block_types=(UP[1], UP[1], "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=16,
        attn_norm_num_groups=GROUPS,  # else the middle attention has no norm
        num_class_embeds=5,
    )
    net = UNet(
        3,
        **OURS,
        **ADM_DETAILS,
        attention_resolutions=(8, 4),
        head_channels=16,
        time_conditioning="scale_shift",
        resample="residual",
        num_label_embeddings=5,
    )
    label = np.array([4, 1])
    check(net, parity.randomise(model), {"label": label}, {"class_labels": torch.tensor(label)}, residual=True)


def test_unclip():
    """Karlo's decoder: attention to a context and to all positions at once, and an embedding that joins the time's."""
    model = diffusers.UNet2DConditionModel(
        **THEIRS,
        **ADM,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=16,
        cross_attention_dim=24,
        class_embed_type="simple_projection",  # Karlo's linear layer is outside, its type "identity"
        projection_class_embeddings_input_dim=12,
    )
    net = UNet(
        3,
        **OURS,
        **ADM_DETAILS,
        attention_resolutions=(8, 4),
        head_channels=16,
        time_conditioning="scale_shift",
        resample="residual",
    )
    rng = np.random.default_rng(1)
    context, embedding = rng.normal(size=(2, 7, 24)).astype(np.float32), rng.normal(size=(2, 12)).astype(np.float32)
    mask = np.array([[True] * 7, [True] * 3 + [False] * 4])
    theirs = {"encoder_hidden_states": torch.tensor(context), "class_labels": torch.tensor(embedding)}
    theirs["attention_mask"] = torch.tensor(mask)
    ours = {"context": context, "context_mask": mask, "embedding": embedding}
    check(net, parity.randomise(model), ours, theirs, residual=True)


@pytest.mark.parametrize("linear", [False, pytest.param(True, marks=pytest.mark.slow)])  # Stable Diffusion 1 and 2
def test_stable_diffusion(linear):
    model = diffusers.UNet2DConditionModel(
        **THEIRS,
        **ADM,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4, 4) if linear else 4,  # which diffusers reads as the number of heads
        use_linear_projection=linear,
        transformer_layers_per_block=2 if linear else 1,
        cross_attention_dim=24,
    )
    heads = {"head_channels": 16, "transformer_depth": 2} if linear else {"heads": 4, "transformer_depth": 1}
    net = UNet(3, **OURS, **ADM_DETAILS, **heads, attention_resolutions=(16, 8))
    context = np.random.default_rng(1).normal(size=(2, 7, 24)).astype(np.float32)
    theirs = {"encoder_hidden_states": torch.tensor(context)}
    check(net, parity.randomise(model), {"context": context}, theirs, transformer=True, linear=linear)
