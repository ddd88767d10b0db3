"""The prior's transformer gives the numbers of diffusers' with the same random weights."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.nn.prior_transformer import PriorTransformer  # noqa: E402
from diffjax.published.tables import prior  # noqa: E402
from tests import parity  # noqa: E402

pytestmark = pytest.mark.parity

D, LENGTH, LAYERS, HEADS, HEAD = 6, 5, 2, 2, 8


def build():
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": HEAD, "num_layers": LAYERS}
    model = parity.randomise(diffusers.PriorTransformer(**sizes, embedding_dim=D, num_embeddings=LENGTH))
    return model, PriorTransformer(HEADS * HEAD, LAYERS, HEADS)


@pytest.mark.parametrize("masked", [False, True])
def test_whole_forward_pass(masked):
    model, ours = build()
    rng = np.random.default_rng(0)
    x, embedding = rng.normal(size=(2, 3, D)).astype(np.float32)
    context, t = rng.normal(size=(3, LENGTH, D)).astype(np.float32), np.array([0, 3, 777])
    lengths = np.array([5, 2, 0]) if masked else np.array([5, 5, 5])
    mask = np.arange(LENGTH)[None] < lengths[:, None]  # without one, theirs is not causal
    with torch.no_grad():
        torch_inputs = (torch.tensor(value) for value in (x, t, embedding, context, mask))
        expected = model(*torch_inputs).predicted_image_embedding.numpy()
    inputs = {"embedding": embedding, "context": context, "context_mask": mask if masked else None}
    leaves, statistics = parity.shapes(ours, x, t, **inputs), ("clip_mean", "clip_std")  # which are no parameters
    params = parity.read(prior.diffusers(), leaves, parity.tensors(model), ignored=statistics)
    parity.assert_close(jax.jit(ours.apply)({"params": params}, x, t, **inputs), expected)


def test_karlos_names():
    """As in diffusers' script that converts Karlo, whose queries, keys and values are fused head by head."""
    model, ours = build()
    theirs = parity.tensors(model)
    names = {
        "encoder_hidden_states_proj": "text_enc_proj",
        "embedding_proj": "text_emb_proj",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "proj_in": "clip_img_proj",
        "norm_out": "final_ln",
        "proj_to_clip_embeddings": "out_proj",
    }
    inside = {"attn1.to_out.0": "attn.c_proj", "ff.net.0.proj": "mlp.c_fc", "ff.net.2": "mlp.c_proj"}
    inside |= {"norm1": "ln_1", "norm3": "ln_2"}
    arrays = {"prd_emb": theirs["prd_embedding"], "positional_embedding": theirs["positional_embedding"]}
    for kind in ("weight", "bias"):
        for theirs_name, name in names.items():
            arrays[f"{name}.{kind}"] = theirs[f"{theirs_name}.{kind}"]
        for i in range(LAYERS):
            block, start = f"transformer.resblocks.{i}", f"transformer_blocks.{i}"
            for theirs_name, name in inside.items():
                arrays[f"{block}.{name}.{kind}"] = theirs[f"{start}.{theirs_name}.{kind}"]
            q, k, v = (theirs[f"{start}.attn1.to_{part}.{kind}"] for part in "qkv")
            heads = [part[h * HEAD : (h + 1) * HEAD] for h in range(HEADS) for part in (q, k, v)]
            arrays[f"{block}.attn.c_qkv.{kind}"] = np.concatenate(heads)
    x, t = np.zeros((1, D), np.float32), np.zeros(1)
    inputs = {"embedding": x, "context": np.zeros((1, LENGTH, D), np.float32)}
    leaves = parity.shapes(ours, x, t, **inputs)
    expected = parity.read(prior.diffusers(), leaves, theirs, ignored=("clip_mean", "clip_std"))
    found = parity.read(prior.karlo(heads=HEADS), leaves, arrays)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
