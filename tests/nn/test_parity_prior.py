"""The prior's transformer gives the numbers of diffusers' with the same random weights."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

from diffjax.nn.prior_transformer import PriorTransformer  # noqa: E402
from tests.nn.test_parity_unet import array, dense, norm, randomise  # noqa: E402

pytestmark = pytest.mark.parity

D, LENGTH, LAYERS, HEADS, HEAD = 6, 5, 2, 2, 8


def parameters(model):
    """A diffusers model's weights under our names."""
    blocks = {
        f"block_{i}": {
            "norm_attention": norm(m.norm1),
            "qkv": dense(m.attn1.to_q, m.attn1.to_k, m.attn1.to_v),
            "out": dense(m.attn1.to_out[0]),
            "norm_mlp": norm(m.norm3),
            "mlp_in": dense(m.ff.net[0].proj),
            "mlp_out": dense(m.ff.net[2]),
        }
        for i, m in enumerate(model.transformer_blocks)
    }
    return {
        "context": dense(model.encoder_hidden_states_proj),
        "embedding": dense(model.embedding_proj),
        "time_0": dense(model.time_embedding.linear_1),
        "time_1": dense(model.time_embedding.linear_2),
        "image": dense(model.proj_in),
        "query": array(model.prd_embedding)[0, 0],
        "place": array(model.positional_embedding)[0],
        "transformer": {**blocks, "norm_out": norm(model.norm_out)},
        "out": dense(model.proj_to_clip_embeddings),
    }


@pytest.mark.parametrize("masked", [False, True])
def test_whole_forward_pass(masked):
    sizes = {"num_attention_heads": HEADS, "attention_head_dim": HEAD, "num_layers": LAYERS}
    model = randomise(diffusers.PriorTransformer(**sizes, embedding_dim=D, num_embeddings=LENGTH))
    rng = np.random.default_rng(0)
    x, embedding = rng.normal(size=(2, 3, D)).astype(np.float32)
    context, t = rng.normal(size=(3, LENGTH, D)).astype(np.float32), np.array([0, 3, 777])
    lengths = np.array([5, 2, 0]) if masked else np.array([5, 5, 5])
    mask = np.arange(LENGTH)[None] < lengths[:, None]  # without one, theirs is not causal
    with torch.no_grad():
        torch_inputs = (torch.tensor(value) for value in (x, t, embedding, context, mask))
        expected = model(*torch_inputs).predicted_image_embedding.numpy()
    ours = PriorTransformer(HEADS * HEAD, LAYERS, HEADS)
    inputs = {"embedding": embedding, "context": context, "context_mask": mask if masked else None}
    found = jax.jit(ours.apply)({"params": parameters(model)}, x, t, **inputs)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)
