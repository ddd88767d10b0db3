"""Rematerialisation: which values are kept for the backward pass; outputs and gradients do not change."""

import functools
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn.dit import DiT
from diffjax.nn.unet import UNet

HEADS, TOKENS = 2, 16
RNG = np.random.default_rng(0)
X, T = RNG.normal(size=(2, 8, 8, 3)).astype(np.float32), np.array([3.0, 700.0], np.float32)
NETWORKS = {
    "unet": partial(
        UNet, 3, channels=8, multipliers=(1,), blocks=0, attention_resolutions=(), norm_groups=4, dropout=0.3
    ),
    "dit": partial(DiT, 3, patch=2, width=8, layers=2, heads=HEADS, dropout=0.3),
}


def loss(params, network):
    keys = jax.random.split(jax.random.key(3), 2)
    return jnp.mean(network.apply({"params": params}, X, T, dropout_keys=keys) ** 2)


def shapes(network):
    return jax.eval_shape(network.init, jax.random.key(0), X, T)["params"]


@functools.cache
def residuals(name, remat):
    """Values that the backward pass of a network gets."""
    network = NETWORKS[name](remat=remat)
    backward = jax.eval_shape(lambda params: jax.vjp(partial(loss, network=network), params)[1], shapes(network))
    return jax.tree.leaves(backward)


def size(leaves):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_each_policy_keeps_less_than_the_one_before(name):
    none, dots, blocks = (size(residuals(name, remat)) for remat in ("none", "dots", "blocks"))
    assert none > dots > blocks > size(jax.tree.leaves(shapes(NETWORKS[name]())))


def test_dots_keeps_outputs_of_linear_layers_and_convolutions_but_no_attention():
    def count(name, remat, *shape):
        return sum(leaf.shape[-len(shape) :] == shape for leaf in residuals(name, remat))

    assert count("dit", "none", TOKENS, TOKENS) and not count("dit", "dots", TOKENS, TOKENS)
    hidden = (2 * TOKENS, 4 * 8)  # of the MLP, one per block; linear layers flatten the batch
    assert count("dit", "dots", *hidden) == 2 and not count("dit", "blocks", *hidden)
    # One per residual block: the gradient does not use the output of its second convolution.
    assert count("unet", "dots", 8, 8, 8) == count("unet", "blocks", 8, 8, 8) + 3


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_policies_do_not_change_loss_and_gradients(name):
    params = jax.tree.map(lambda leaf: RNG.normal(0, 0.2, leaf.shape).astype(np.float32), shapes(NETWORKS[name]()))
    none, *others = (
        jax.jit(jax.value_and_grad(partial(loss, network=NETWORKS[name](remat=remat))))(params)
        for remat in ("none", "dots", "blocks")
    )
    for other in others:
        chex.assert_trees_all_close(other, none, rtol=1e-4, atol=1e-6)


def test_former_values_are_names():
    assert size(residuals("dit", False)) == size(residuals("dit", "none"))
    assert size(residuals("dit", True)) == size(residuals("dit", "blocks"))


def test_an_unknown_policy_is_an_error():
    with pytest.raises(ValueError, match="remat='full': choose from none, blocks, dots"):
        shapes(NETWORKS["dit"](remat="full"))
