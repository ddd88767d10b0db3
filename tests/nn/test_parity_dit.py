"""DiT gives the numbers of diffusers' with the same weights, and its block with a context those of PixArt-alpha's."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffusers.models.attention import BasicTransformerBlock  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from diffjax.errors import UserError  # noqa: E402
from diffjax.nn.dit import Block, DiT  # noqa: E402
from diffjax.published import table  # noqa: E402
from diffjax.published.table import fused  # noqa: E402
from diffjax.published.tables import dit  # noqa: E402
from tests import parity  # noqa: E402

pytestmark = pytest.mark.parity

WIDTH, HEADS, CLASSES, LAYERS, SIDE = 48, 3, 5, 2, 16
SHARED = {
    "num_attention_heads": HEADS,
    "attention_head_dim": WIDTH // HEADS,
    "attention_bias": True,
    "activation_fn": "gelu-approximate",
    "norm_elementwise_affine": False,
}
X = np.random.default_rng(0).normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
T, LABEL = np.array([3, 777]), np.array([CLASSES, 1])  # the last row is that of no label
INPUTS = (torch.tensor(X).permute(0, 3, 1, 2), torch.tensor(T), torch.tensor(LABEL))


def network(patch, **options):
    return DiT(6, patch, WIDTH, layers=LAYERS, heads=HEADS, num_label_embeddings=CLASSES + 1, **options)


def outputs(net, names, arrays):
    """Returns the outputs of a network with the weights of a file."""
    params = parity.read(names, parity.shapes(net, X, T, label=LABEL), arrays)
    return jax.jit(net.apply)({"params": params}, X, T, label=LABEL)


def diffusers_model(patch):
    """Returns a DiT of diffusers, in whose blocks the embeddings of time and label are equal, as in published files."""
    options = {"num_embeds_ada_norm": CLASSES, "num_layers": LAYERS, "sample_size": SIDE, "patch_size": patch}
    model = parity.randomise(diffusers.DiTTransformer2DModel(**SHARED, **options, in_channels=3, out_channels=6))
    first, *others = (block.norm1.emb for block in model.transformer_blocks)
    for other in others:
        other.load_state_dict(first.state_dict())
    return model


@pytest.mark.parametrize("patch", [2, 4])
def test_diffusers(patch):
    """With diffusers' own frequencies of times, which differ from those of DiT's code."""
    model = diffusers_model(patch)
    names = dit.diffusers(patch=patch, layers=LAYERS)
    found = outputs(network(patch, time_embedding="ddpm"), names, parity.tensors(model))
    with torch.no_grad():
        expected = model(*INPUTS).sample.permute(0, 2, 3, 1).numpy()
    parity.assert_close(found, expected)


def test_diffusers_with_the_frequencies_of_dits_code():
    model = diffusers_model(2)
    names = dit.diffusers(patch=2, layers=LAYERS, time_embedding="adm")
    found = outputs(network(2), names, parity.tensors(model))
    with torch.no_grad():
        other = model(*INPUTS).sample.permute(0, 2, 3, 1).numpy()
        for block in model.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
        expected = model(*INPUTS).sample.permute(0, 2, 3, 1).numpy()
    parity.assert_close(found, expected)
    assert np.abs(other - expected).max() > 0.01


def test_blocks_with_other_embeddings_are_an_error():
    arrays = parity.tensors(diffusers_model(2))
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    arrays[name] = arrays[name] + 1
    leaves, names = parity.shapes(network(2), X, T, label=LABEL), dit.diffusers(patch=2, layers=LAYERS)
    with pytest.raises(UserError, match=f"FILE: {name} must be equal to transformer_blocks.0.*, and has other values"):
        table.read(names, leaves, parity.lazy(arrays), network="FILE")


# DiT's own code: names of the modules as in its files.


class MetaBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn, self.mlp = nn.Module(), nn.Module()
        self.attn.qkv, self.attn.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x, emb):
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(emb)[:, None].chunk(6, -1)
        h = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale) + shift
        qkv = self.attn.qkv(h).unflatten(-1, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        x = x + gate * self.attn.proj(h)
        h = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + mlp_scale) + mlp_shift
        return x + mlp_gate * self.mlp.fc2(F.gelu(self.mlp.fc1(h), approximate="tanh"))


class MetaDiT(nn.Module):
    def __init__(self, patch, side=SIDE, channels=3):
        super().__init__()
        self.patch, self.grid, self.side, self.outputs = patch, side // patch, side, 2 * channels
        self.x_embedder, self.t_embedder, self.y_embedder = nn.Module(), nn.Module(), nn.Module()
        self.x_embedder.proj = nn.Conv2d(channels, WIDTH, patch, patch)
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.y_embedder.embedding_table = nn.Embedding(CLASSES + 1, WIDTH)
        places = [[place % self.grid, place // self.grid] for place in range(self.grid**2)]
        angles = np.array(places)[:, :, None] / 10_000 ** (np.arange(WIDTH // 4) / (WIDTH / 4))
        waves = np.stack([np.sin(angles), np.cos(angles)], 2).reshape(1, -1, WIDTH)
        self.pos_embed = nn.Parameter(torch.tensor(waves).float(), requires_grad=False)
        self.blocks = nn.ModuleList([MetaBlock() for _ in range(LAYERS)])
        self.final_layer = nn.Module()
        self.final_layer.linear = nn.Linear(WIDTH, patch**2 * self.outputs)
        self.final_layer.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 2 * WIDTH))

    def forward(self, x, t, label):
        angles = t[:, None] * torch.exp(-np.log(10_000) * torch.arange(128) / 128)
        emb = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], 1)) + self.y_embedder.embedding_table(label)
        h = self.x_embedder.proj(x).flatten(2).mT + self.pos_embed
        for block in self.blocks:
            h = block(h, emb)
        shift, scale = self.final_layer.adaLN_modulation(emb)[:, None].chunk(2, -1)
        h = self.final_layer.linear(F.layer_norm(h, (WIDTH,), eps=1e-6) * (1 + scale) + shift)
        h = h.unflatten(-1, (self.patch, self.patch, self.outputs)).unflatten(1, (self.grid, self.grid))
        return torch.einsum("nhwpqc->nhpwqc", h).reshape(len(x), self.side, self.side, -1)


@pytest.mark.parametrize("patch", [2, 4])
def test_meta(patch):
    model = parity.randomise(MetaDiT(patch))
    names = dit.meta(patch=patch, grid=SIDE // patch, width=WIDTH)
    found = outputs(network(patch), names, parity.tensors(model))
    with torch.no_grad():
        parity.assert_close(found, model(*INPUTS).numpy())


def test_other_position_embeddings_are_an_error():
    arrays, leaves = parity.tensors(MetaDiT(4)), parity.shapes(network(4), X, T, label=LABEL)
    names = dit.meta(patch=4, grid=SIDE // 4, width=WIDTH)
    arrays["pos_embed"] = arrays["pos_embed"][:, ::-1].copy()
    with pytest.raises(UserError, match="FILE: pos_embed has other values than that network's"):
        table.read(names, leaves, parity.lazy(arrays), network="FILE")


def test_pixart_block():
    """The modulations of all its blocks have one kernel; what each block adds to its output is our bias."""
    options = SHARED | {"cross_attention_dim": 20, "norm_type": "ada_norm_single", "norm_eps": 1e-6}
    model = parity.randomise(BasicTransformerBlock(WIDTH, **options))
    rng = np.random.default_rng(0)
    sizes = (2, 9, WIDTH), (2, WIDTH), (2, 7, 20), (WIDTH, 6 * WIDTH)
    x, emb, context, kernel = (rng.normal(size=size).astype(np.float32) for size in sizes)
    kernel /= WIDTH**0.5
    arrays = parity.tensors(model)
    bias = arrays.pop("scale_shift_table").reshape(-1)
    names = {
        "qkv": fused("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "out": "attn1.to_out.0",
        "context_q": "attn2.to_q",
        "context_kv": fused("attn2.to_k", "attn2.to_v"),
        "context_out": "attn2.to_out.0",
        "mlp_in": "ff.net.0.proj",
        "mlp_out": "ff.net.2",
    }
    leaves = parity.shapes(Block(HEADS), x, emb, context)
    leaves = {path: leaf for path, leaf in leaves.items() if not path.startswith("modulation")}
    params = parity.read(names, leaves, arrays) | {"modulation": {"kernel": kernel, "bias": bias}}
    with torch.no_grad():
        arguments = {"encoder_hidden_states": torch.tensor(context), "timestep": torch.tensor(emb @ kernel)}
        expected = model(torch.tensor(x), **arguments).numpy()
    parity.assert_close(jax.jit(Block(HEADS).apply)({"params": params}, x, emb, context)[0], expected)
