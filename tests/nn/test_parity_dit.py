"""DiT gives the numbers of diffusers' with the same weights, and its block with a context those of PixArt-alpha's."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.models.attention import BasicTransformerBlock  # noqa: E402

from diffjax.nn.dit import Block, DiT  # noqa: E402

pytestmark = pytest.mark.parity

WIDTH, HEADS, CLASSES = 48, 3, 5
THEIRS = {
    "num_attention_heads": HEADS,
    "attention_head_dim": WIDTH // HEADS,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
}


def array(x):
    return x.detach().numpy()


def dense(*modules):
    """Returns one kernel [I, O] of linear layers with the same input."""
    return {
        "kernel": np.concatenate([array(m.weight).T for m in modules], 1),
        "bias": np.concatenate([array(m.bias) for m in modules]),
    }


def block(m):
    """A BasicTransformerBlock's weights under our names, but for the modulation."""
    return {
        "qkv": dense(m.attn1.to_q, m.attn1.to_k, m.attn1.to_v),
        "out": dense(m.attn1.to_out[0]),
        "mlp_in": dense(m.ff.net[0].proj),
        "mlp_out": dense(m.ff.net[2]),
    }


def randomise(model):
    """Nothing stays at zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p + 0.2 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) / p[0].numel() ** 0.5)
    return model.eval()


def check(found, expected):
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("patch", [2, 4])
def test_dit(patch):
    theirs = THEIRS | {"num_embeds_ada_norm": CLASSES, "num_layers": 2, "sample_size": 16, "patch_size": patch}
    model = randomise(diffusers.DiTTransformer2DModel(**theirs, in_channels=3, out_channels=6))
    shared = model.transformer_blocks[0].norm1.emb  # the paper's network has one for all blocks
    shared.time_proj.downscale_freq_shift = 0  # with the paper's frequencies, which diffusers' are not
    for m in model.transformer_blocks:
        m.norm1.emb = shared
    patches = model.pos_embed.proj  # [O, C, p, p]
    kernel = array(patches.weight).transpose(2, 3, 1, 0).reshape(-1, WIDTH)
    params = {
        "patch": {"kernel": kernel, "bias": array(patches.bias)},
        "time_0": dense(shared.timestep_embedder.linear_1),
        "time_1": dense(shared.timestep_embedder.linear_2),
        "label": {"embedding": array(shared.class_embedder.embedding_table.weight)},
        "modulation_out": dense(model.proj_out_1),
        "out": dense(model.proj_out_2),
    }
    for i, m in enumerate(model.transformer_blocks):
        params[f"block_{i}"] = {"modulation": dense(m.norm1.linear), **block(m)}

    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 16, 16, 3)).astype(np.float32)
    t, label = np.array([3, 777]), np.array([CLASSES, 1])  # the last row is that of no label
    with torch.no_grad():
        expected = model(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), torch.tensor(label)).sample
    net = DiT(6, patch, WIDTH, layers=2, heads=HEADS, num_label_embeddings=CLASSES + 1)
    check(jax.jit(net.apply)({"params": params}, x, t, label=label), expected.permute(0, 2, 3, 1).numpy())


def test_pixart_block():
    """The modulations of all its blocks have one kernel; what each block adds to its output is our bias."""
    theirs = THEIRS | {"cross_attention_dim": 20, "norm_type": "ada_norm_single"}
    model = randomise(BasicTransformerBlock(WIDTH, **theirs))
    rng = np.random.default_rng(0)
    sizes = (2, 9, WIDTH), (2, WIDTH), (2, 7, 20), (WIDTH, 6 * WIDTH)
    x, emb, context, kernel = (rng.normal(size=size).astype(np.float32) for size in sizes)
    kernel /= WIDTH**0.5
    cross = model.attn2
    params = {
        "modulation": {"kernel": kernel, "bias": array(model.scale_shift_table).reshape(-1)},
        "context_q": dense(cross.to_q),
        "context_kv": dense(cross.to_k, cross.to_v),
        "context_out": dense(cross.to_out[0]),
        **block(model),
    }
    with torch.no_grad():
        arguments = {"encoder_hidden_states": torch.tensor(context), "timestep": torch.tensor(emb @ kernel)}
        expected = model(torch.tensor(x), **arguments).numpy()
    check(jax.jit(Block(HEADS).apply)({"params": params}, x, emb, context), expected)
