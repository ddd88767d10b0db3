"""UNet and DiT with blocks left out, or with attention of each position to itself alone."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.nn.attention import AttentionBlock, SpatialTransformer
from diffjax.nn.dit import Block, DiT
from diffjax.nn.unet import UNet

RNG = np.random.default_rng(7)
T = jnp.array([3.0, 8.0])


def random_params(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape) * 0.3, leaf.dtype), shapes)


def outputs(params, x, *networks):
    """Returns the outputs of networks with the same parameters, from one program."""
    return jax.jit(lambda x: [network.apply({"params": params}, x, T) for network in networks])(x)


def test_a_dit_without_its_last_block_is_that_of_fewer_layers():
    options = {"norm": "rms", "positions": "rope", "qk_norm": True, "registers": 2, "value_residual": True}
    x, whole = jnp.asarray(RNG.normal(size=(2, 4, 4, 1)), jnp.float32), DiT(1, width=8, heads=2, layers=2, **options)
    networks = whole, whole.clone(skipped_blocks=(1,)), whole.clone(layers=1)
    full, skipped, shallow = outputs(random_params(whole, x, T), x, *networks)
    np.testing.assert_allclose(skipped, shallow, atol=1e-5)
    assert np.abs(skipped - full).max() > 1e-2


@pytest.mark.slow
def test_a_unet_without_its_attention_blocks_is_one_without_attention():
    fields = {"channels": 4, "multipliers": (1, 2), "blocks": 1, "norm_groups": 2}
    whole = UNet(1, attention_resolutions=(4,), **fields)
    x = jnp.asarray(RNG.normal(size=(2, 8, 8, 1)), jnp.float32)
    params = random_params(whole, x, T)
    names = [name for name in params if "attention" in name]
    assert whole.num_attention_blocks(8) == len(names) == 4  # one on the way down, the middle, two on the way up
    without = UNet(1, attention_resolutions=(), middle_attention=False, **fields)
    skipping = (whole.clone(skipped_blocks=blocks) for blocks in (range(4), (1,)))
    full, unattended, skipped, one = outputs(params, x, whole, without, *skipping)
    np.testing.assert_allclose(skipped, unattended, atol=1e-5)
    assert np.abs(one - skipped).max() > 1e-3 < np.abs(one - full).max()


X, TOKENS = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((2, 3, 3, 8), (2, 9, 8)))
BLOCKS = {  # a block, and its inputs
    "attention block": (AttentionBlock(heads=2, groups=2), (X,)),
    "attention block with a context": (AttentionBlock(heads=2, groups=2), (X, jnp.ones((2, 5, 8)))),
    "spatial transformer": (SpatialTransformer(heads=2, groups=2), (X, jnp.ones((2, 5, 8)))),
    "transformer block of a DiT": (
        Block(heads=2, norm="rms", qk_norm=True, activation="swiglu"),
        (TOKENS, jnp.ones((2, 8))),
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_an_identity_map_is_attention_of_one_position(name):
    """Equals attention where all positions are equal, and differs elsewhere; a DiT's norms are per position."""
    block, (x, *others) = BLOCKS[name]
    params = random_params(block, x, *others)
    perturbed = block.clone(identity_map=True)
    apply = jax.jit(lambda one, x: jax.tree.leaves(one.apply({"params": params}, x, *others))[0], static_argnums=0)
    if name == "transformer block of a DiT":
        np.testing.assert_allclose(apply(perturbed, x)[:, 4:5], apply(perturbed, x[:, 4:5]), atol=1e-5)
    constant = jnp.broadcast_to(jnp.mean(x, axis=tuple(range(1, x.ndim - 1)), keepdims=True), x.shape)
    is_same = np.abs(apply(block, constant) - apply(perturbed, constant)).max() < 1e-4
    assert is_same == (name != "attention block with a context")  # whose map has the context, too
    assert np.abs(apply(block, x) - apply(perturbed, x)).max() > 1e-2
