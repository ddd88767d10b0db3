"""Options of transformer blocks against those of diffusers and transformers, with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from diffusers.models.embeddings import apply_rotary_emb, get_2d_rotary_pos_embed_from_grid  # noqa: E402
from diffusers.models.normalization import RMSNorm  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from transformers.models.dinov2_with_registers import modeling_dinov2_with_registers as dinov2  # noqa: E402
from transformers.models.qwen3 import modeling_qwen3 as qwen3  # noqa: E402

from diffjax.nn.clip import VisionTransformer  # noqa: E402
from diffjax.nn.dit import Block  # noqa: E402
from diffjax.nn.transformer import Transformer  # noqa: E402
from diffjax.nn.transformer_layers import grid_positions, rotary_angles  # noqa: E402
from tests import parity  # noqa: E402

pytestmark = pytest.mark.parity

WIDTH, HEADS, GRID = 32, 2, (3, 5)
HEAD = WIDTH // HEADS
RNG = np.random.default_rng(0)


def dense(layer):
    weight = layer.weight.detach().numpy().T
    return {"kernel": weight, "bias": np.zeros(weight.shape[1]) if layer.bias is None else layer.bias.detach().numpy()}


class PeerBlock(nn.Module):
    """An adaLN-zero block of diffusers' RMS norms and rotary embeddings."""

    def __init__(self):
        super().__init__()
        hidden = 2 * 4 * WIDTH // 3
        self.norm = RMSNorm(WIDTH, 1e-6, elementwise_affine=False)
        self.norm_q, self.norm_k = RMSNorm(HEAD, 1e-6), RMSNorm(HEAD, 1e-6)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp_in, self.mlp_out = nn.Linear(WIDTH, 2 * hidden), nn.Linear(hidden, WIDTH)
        self.modulation = nn.Linear(WIDTH, 6 * WIDTH)

    def forward(self, x, emb):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(emb)[:, None].chunk(6, -1)
        qkv = self.qkv(self.norm(x) * (1 + scale) + shift).unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        rows, columns = torch.meshgrid(*(torch.arange(side).float() for side in GRID), indexing="ij")
        rotation = get_2d_rotary_pos_embed_from_grid(HEAD, torch.stack([rows, columns]), use_real=True)
        q, k = (apply_rotary_emb(norm(y), rotation) for norm, y in zip((self.norm_q, self.norm_k), qkv, strict=False))
        h = F.scaled_dot_product_attention(q, k, qkv[2]).transpose(1, 2).flatten(2)
        x = x + gate * self.out(h)
        gates, values = self.mlp_in(self.norm(x) * (1 + mlp_scale) + mlp_shift).chunk(2, -1)
        return x + mlp_gate * self.mlp_out(F.silu(gates) * values)


def test_block_of_a_dit():
    model = parity.randomise(PeerBlock())
    x, emb = (RNG.normal(size=size).astype(np.float32) for size in ((2, 15, WIDTH), (2, WIDTH)))
    params = {name: dense(getattr(model, name)) for name in ("qkv", "out", "mlp_in", "mlp_out", "modulation")}
    params |= {name: {"scale": getattr(model, name).weight.detach().numpy()} for name in ("norm_q", "norm_k")}
    block = Block(HEADS, norm="rms", activation="swiglu", qk_norm=True)
    angles = rotary_angles(grid_positions(*GRID), HEAD)
    apply = jax.jit(lambda x, emb: block.apply({"params": params}, x, emb, angles=angles)[0])
    with torch.no_grad():
        parity.assert_close(apply(x, emb), model(torch.tensor(x), torch.tensor(emb)).numpy())


def test_transformer_of_qwen3():
    """Qwen3 pairs channels i and i + D / 2, so the channels of queries and keys have another order."""
    hidden = 2 * 4 * WIDTH // 3
    config = qwen3.Qwen3Config(
        vocab_size=1,
        hidden_size=WIDTH,
        intermediate_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )
    model = parity.randomise(qwen3.Qwen3Model(config))
    order = np.arange(HEAD).reshape(2, -1).T.reshape(-1)  # 0, D / 2, 1, D / 2 + 1, ...
    heads = (np.arange(HEADS)[:, None] * HEAD + order).reshape(-1)

    def scale(norm, order=slice(None)):
        return {"scale": norm.weight.detach().numpy()[order]}

    def concatenated(*layers):
        return {name: np.concatenate([layer[name] for layer in layers], axis=-1) for name in ("kernel", "bias")}

    params = {"norm_out": scale(model.norm)}
    for i, layer in enumerate(model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        q, k = ({name: p[..., heads] for name, p in dense(y).items()} for y in (attention.q_proj, attention.k_proj))
        params[f"block_{i}"] = {
            "norm_attention": scale(layer.input_layernorm),
            "norm_q": scale(attention.q_norm, order),
            "norm_k": scale(attention.k_norm, order),
            "qkv": concatenated(q, k, dense(attention.v_proj)),
            "out": dense(attention.o_proj),
            "norm_mlp": scale(layer.post_attention_layernorm),
            "mlp_in": concatenated(dense(mlp.gate_proj), dense(mlp.up_proj)),
            "mlp_out": dense(mlp.down_proj),
        }
    x = RNG.normal(size=(2, 7, WIDTH)).astype(np.float32)
    ours = Transformer(
        WIDTH, 2, HEADS, activation="swiglu", epsilon=config.rms_norm_eps, norm="rms", rope=True, qk_norm=True
    )
    with torch.no_grad():
        expected = model(inputs_embeds=torch.tensor(x)).last_hidden_state.numpy()
    found = jax.jit(ours.apply)({"params": jax.tree.map(jnp.asarray, params)}, x)
    parity.assert_close(found, expected)


def test_tokens_of_a_vision_transformer_with_registers():
    """The inputs of the first block are those of DINOv2 with registers, after CLIP's norm."""
    config = dinov2.Dinov2WithRegistersConfig(hidden_size=WIDTH, patch_size=4, image_size=12, num_register_tokens=3)
    model = parity.randomise(dinov2.Dinov2WithRegistersEmbeddings(config))
    images = RNG.normal(size=(2, 12, 12, 3)).astype(np.float32)
    convolution = model.patch_embeddings.projection
    with torch.no_grad():
        convolution.bias.zero_()  # CLIP has none
        expected = F.layer_norm(model(torch.tensor(images).permute(0, 3, 1, 2)), (WIDTH,), eps=1e-5).numpy()
    network = VisionTransformer(4, WIDTH, 1, HEADS, 0, registers=3)
    params = {
        "patch": {"kernel": convolution.weight.detach().numpy().transpose(2, 3, 1, 0)},
        "class": model.cls_token.detach().numpy()[0, 0],
        "registers": model.register_tokens.detach().numpy()[0],
        "place": model.position_embeddings.detach().numpy()[0],
        "norm_in": {"scale": np.ones(WIDTH), "bias": np.zeros(WIDTH)},
    }
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    params["transformer"] = jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes["transformer"])
    _, captured = jax.jit(lambda x: network.apply({"params": params}, x, capture_intermediates=True))(images)
    parity.assert_close(captured["intermediates"]["norm_in"]["__call__"][0], expected)
