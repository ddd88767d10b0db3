"""The U-Net has the outputs of diffusers' models with the same random weights."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.nn.unet import ADM_DETAILS, UNet  # noqa: E402

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


def array(x):
    return x.detach().numpy()


def norm(m):
    return {"scale": array(m.weight), "bias": array(m.bias)}


def dense(*modules):
    """Returns one kernel [I, O] of linear layers or 1x1 convolutions with the same input."""
    params = {"kernel": np.concatenate([array(m.weight).reshape(len(m.weight), -1).T for m in modules], 1)}
    if modules[0].bias is not None:
        params["bias"] = np.concatenate([array(m.bias) for m in modules])
    return params


def conv(m):
    return {"kernel": array(m.weight).transpose(2, 3, 1, 0), "bias": array(m.bias)}


def residual(m):
    params = {"norm_0": norm(m.norm1), "conv_0": conv(m.conv1), "time": dense(m.time_emb_proj)}
    params |= {"norm_1": norm(m.norm2), "conv_1": conv(m.conv2)}
    return params | ({"skip": dense(m.conv_shortcut)} if m.conv_shortcut is not None else {})


def cross(m):
    return {"q": dense(m.to_q), "k": dense(m.to_k), "v": dense(m.to_v), "out": dense(m.to_out[0])}


def attention(m):
    if not hasattr(m, "transformer_blocks"):
        params = {"norm": norm(m.group_norm), "qkv": dense(m.to_q, m.to_k, m.to_v), "out": dense(m.to_out[0])}
        return params | ({"context_kv": dense(m.add_k_proj, m.add_v_proj)} if m.added_kv_proj_dim else {})
    blocks = {
        f"block_{i}": {
            "norm_self": norm(b.norm1),
            "self": cross(b.attn1),
            "norm_cross": norm(b.norm2),
            "cross": cross(b.attn2),
            "norm_mlp": norm(b.norm3),
            "mlp_in": dense(b.ff.net[0].proj),
            "mlp_out": dense(b.ff.net[2]),
        }
        for i, b in enumerate(m.transformer_blocks)
    }
    return {"norm": norm(m.norm), "in": dense(m.proj_in), "out": dense(m.proj_out), **blocks}


def parameters(model):
    """A diffusers model's weights under our names."""
    params = {
        "time_0": dense(model.time_embedding.linear_1),
        "time_1": dense(model.time_embedding.linear_2),
        "conv_in": conv(model.conv_in),
        "norm_out": norm(model.conv_norm_out),
        "conv_out": conv(model.conv_out),
    }
    if isinstance(model.class_embedding, torch.nn.Embedding):
        params["label"] = {"embedding": array(model.class_embedding.weight)}
    elif model.class_embedding is not None:
        params["embedding"] = dense(model.class_embedding)
    levels = {f"down_{i}": block for i, block in enumerate(model.down_blocks)} | {"middle": model.mid_block}
    levels |= {f"up_{i}": block for i, block in enumerate(reversed(model.up_blocks))}
    for level, block in levels.items():
        for i, m in enumerate(block.resnets):
            params[f"{level}_block_{i}"] = residual(m)
        for i, m in enumerate(getattr(block, "attentions", ())):
            params["middle_attention" if level == "middle" else f"{level}_attention_{i}"] = attention(m)
        for m in getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ():
            params[f"{level}_resample"] = residual(m) if hasattr(m, "norm1") else {"conv": conv(m.conv)}
    return params


def randomise(model):
    """Nothing stays at zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.2 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) / p[0].numel() ** 0.5)
    return model.eval()


def check(net, model, ours=None, theirs=None):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2, 16, 16, 3)).astype(np.float32), np.array([3, 777])
    with torch.no_grad():
        expected = model(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), **(theirs or {})).sample
    found = jax.jit(net.apply)({"params": parameters(model)}, x, t, **(ours or {}))
    expected = expected.permute(0, 2, 3, 1).numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_ddpm():
    blocks = {"down_block_types": (DOWN[0], DOWN[1], DOWN[0]), "up_block_types": (UP[0], UP[1], UP[0])}
    model = diffusers.UNet2DModel(**THEIRS, **DDPM, **blocks, attention_head_dim=None)
    check(UNet(3, **OURS, attention_resolutions=(8,)), randomise(model))


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
    check(net, randomise(model), {"label": label}, {"class_labels": torch.tensor(label)})


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
    theirs = {"encoder_hidden_states": torch.tensor(context), "class_labels": torch.tensor(embedding)}
    check(net, randomise(model), {"context": context, "embedding": embedding}, theirs)


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
    check(net, randomise(model), {"context": context}, {"encoder_hidden_states": torch.tensor(context)})
