"""MMDiT: its context, gradients, and the block against diffusers' with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import models
from diffjax.errors import UserError
from diffjax.nn.mmdit import JointBlock, MMDiT
from diffjax.published.table import fused
from diffjax.typing import ImageSpec
from tests import tiny

RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32), np.array([3.0, 700.0], np.float32)
CONTEXT = RNG.normal(size=(2, 3, 6)).astype(np.float32)
FIELDS = {"width": 16, "layers": 2, "heads": 2}
OPTIONS = {"norm": "rms", "positions": "rope", "qk_norm": True, "registers": 2, "value_residual": True}


def test_every_parameter_gets_a_gradient_and_the_context_has_no_order():
    net = MMDiT(3, **FIELDS, **OPTIONS)
    params = tiny.randomised(lambda key: net.init(key, X, T, context=CONTEXT))["params"]
    names = params["block_0"].keys() - params["block_1"].keys()
    assert names == {"context_out", "context_mlp_in", "context_mlp_out"}  # the last block has no output of the context

    @jax.jit
    def outputs(params, context):
        def loss(params):
            y = net.apply({"params": params}, X, T, context=context)
            return jnp.mean(y**2), y

        return jax.grad(loss, has_aux=True)(params)

    gradients, y = outputs(params, CONTEXT)
    silent = [jax.tree_util.keystr(k) for k, g in jax.tree.leaves_with_path(gradients) if not np.abs(g).max() > 1e-9]
    assert silent == ["['block_1']['context_norm_q']['scale']"]  # whose queries of the context have no output
    assert y.shape == X.shape
    np.testing.assert_allclose(outputs(params, CONTEXT[:, ::-1])[1], y, atol=1e-5)
    assert np.abs(outputs(params, CONTEXT[::-1])[1] - y).max() > 1e-3


def test_a_config_without_a_context_is_an_error():
    fields = {"model": {"architecture": "mmdit", "patch": 4, "width": 8, "layers": 1, "heads": 2}}
    with pytest.raises(UserError, match="architecture=mmdit: requires a context"):
        _ = models.build(tiny.config("digits", **fields), ImageSpec(8, 1, 10)).variable_shapes


@pytest.mark.slow
@pytest.mark.parity
@pytest.mark.parametrize(("heads", "qk_norm"), [(24, False), (38, True)])
def test_number_of_parameters_of_the_blocks_of_stable_diffusion_3(heads, qk_norm):
    """The blocks of SD3 medium and of SD3.5 large, in diffusers without weights. There are as many layers as heads."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    width = 64 * heads
    shape = {"num_layers": heads, "num_attention_heads": heads, "attention_head_dim": 64}
    with torch.device("meta"):
        theirs = diffusers.SD3Transformer2DModel(
            **shape, caption_projection_dim=width, qk_norm="rms_norm" if qk_norm else None
        )
    net = MMDiT(16, 2, width, heads, heads, qk_norm=qk_norm)
    shapes = jax.eval_shape(
        net.init, jax.random.key(0), np.zeros((1, 4, 4, 16)), T[:1], context=np.zeros((1, 2, width))
    )
    blocks = [block for name, block in shapes["params"].items() if name.startswith("block_")]
    found = sum(leaf.size for leaf in jax.tree.leaves(blocks))
    assert len(blocks) == heads and found == sum(p.numel() for p in theirs.transformer_blocks.parameters())


@pytest.mark.parity
@pytest.mark.parametrize("last", [False, True])
def test_block_of_diffusers(last):
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.models.attention import JointTransformerBlock

    from tests import parity

    width, heads = 32, 2
    model = parity.randomise(JointTransformerBlock(width, heads, width // heads, last, qk_norm="rms_norm"))
    x, context, emb = (RNG.normal(size=size).astype(np.float32) for size in ((2, 5, width), (2, 3, width), (2, width)))
    names = {
        "modulation": "norm1.linear",
        "context_modulation": "norm1_context.linear",
        "qkv": fused("attn.to_q", "attn.to_k", "attn.to_v"),
        "context_qkv": fused("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "norm_q": "attn.norm_q",
        "norm_k": "attn.norm_k",
        "context_norm_q": "attn.norm_added_q",
        "context_norm_k": "attn.norm_added_k",
        "out": "attn.to_out.0",
        "mlp_in": "ff.net.0.proj",
        "mlp_out": "ff.net.2",
    }
    if not last:
        names |= {"context_out": "attn.to_add_out"}
        names |= {"context_mlp_in": "ff_context.net.0.proj", "context_mlp_out": "ff_context.net.2"}
    block = JointBlock(heads, qk_norm=True, last=last)
    activated = np.asarray(jax.nn.silu(emb))
    params = parity.read(names, parity.shapes(block, x, context, activated), parity.tensors(model))
    if last:  # diffusers has the scale of the last block before the shift
        params["context_modulation"] = {
            name: np.roll(p, width, axis=-1) for name, p in params["context_modulation"].items()
        }
    with torch.no_grad():
        expected_context, expected = model(*map(torch.tensor, (x, context, emb)))
    found, found_context, _ = jax.jit(block.apply)({"params": params}, x, context, activated)
    parity.assert_close(found, expected.numpy())
    if not last:
        parity.assert_close(found_context, expected_context.numpy())
