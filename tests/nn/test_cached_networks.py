"""UNet, DiT and MMDiT whose deep features are those of another input: DeepCache and Delta-Cache.

The reference is the whole network, with the outputs of single layers replaced.
"""

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp

from diffjax.nn.dit import DiT
from diffjax.nn.mmdit import MMDiT
from diffjax.nn.unet import UNet
from tests import tiny

X, OTHER, CONTEXT = (
    jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
    for shape in ((2, 8, 8, 1), (2, 8, 8, 1), (2, 5, 6))
)
T, OTHER_T = jnp.array([3.0, 8.0]), jnp.array([4.0, 9.0])
UNET = UNet(1, channels=4, multipliers=(1, 2), blocks=1, norm_groups=2, attention_resolutions=(4,))
TOKENS = {"width": 8, "heads": 2}  # and 16 patches
LAYERS = ["up_0_block_0", "up_1_resample", "up_1_attention_0", "middle_block_1"]  # one per skip connection
OPTIONS = {"positions": "both", "registers": 2, "value_residual": True, "num_label_embeddings": 3, "class_tokens": 2}
NETWORKS = {  # network, inputs, and for each branch the layers whose outputs are replaced
    "unet": (UNET, {}, LAYERS),
    "perturbed unet": (UNET.clone(skipped_blocks=(1,), identity_attention=(3,)), {}, LAYERS),
    "dit": (DiT(1, layers=2, **TOKENS, **OPTIONS), {"label": jnp.array([0, 2])}, ["block_0 block_1"]),
    "mmdit": (MMDiT(1, layers=3, **TOKENS), {"context": CONTEXT}, ["block_0 block_2", "block_1 block_2"]),
}


def output_with(deep, layers, network, *args, **inputs):
    """Returns the output of the whole network with `deep` at the output of a layer, or as the change between two."""
    first, *last = layers.split()
    outputs = {}

    def intercept(call, args, kwargs, context):
        name, output = context.module.name, call(*args, **kwargs)
        outputs[name] = output
        if context.method_name != "__call__" or name != (last or [first])[0]:
            return output
        if not last:
            return deep
        h, *others = output
        return h.at[:, -16:].set(outputs[first][0][:, -16:] + deep), *others

    with nn.intercept_methods(intercept):
        return network.apply(*args, **inputs)


def residual_of_first_blocks(branch, network, *args, **inputs):
    """Returns the change of the tokens of the patches by the blocks up to `branch`, in the whole network."""
    tokens = {}

    def intercept(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            tokens[context.module.name] = args[0], output[0]
        return output

    with nn.intercept_methods(intercept):
        network.apply(*args, **inputs)
    return (tokens[f"block_{branch}"][1] - tokens["block_0"][0])[:, -16:]


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "dit" else pytest.mark.slow) for n in NETWORKS])
def test_deep_features_replace_those_of_the_whole_network(name):
    network, inputs, branches = NETWORKS[name]
    assert network.num_cache_branches == len(branches)
    variables = tiny.randomised(lambda key: network.init(key, X, T, **inputs))

    def with_deep(*args, **options):
        output = network.apply(*args, **options)
        return output if isinstance(network, DiT) else (output, None)

    @jax.jit
    def apply_all():
        whole, other = (network.apply(variables, *at, **inputs) for at in ((X, T), (OTHER, OTHER_T)))
        results, residuals = [], []
        for branch, layers in enumerate(branches):
            y, deep = network.apply(variables, X, T, cache_branch=branch, **inputs)
            (same, _), (reused, shallow) = (
                with_deep(variables, *at, cache_branch=branch, deep=deep, **inputs) for at in ((X, T), (OTHER, OTHER_T))
            )
            replaced = output_with(deep, layers, network, variables, OTHER, OTHER_T, **inputs)
            results.append((y, same, reused, replaced))
            if shallow is not None:
                residual = residual_of_first_blocks(branch, network, variables, OTHER, OTHER_T, **inputs)
                residuals.append((shallow, residual))
        return whole, other, results, residuals

    whole, other, results, residuals = apply_all()
    for y, same, reused, replaced in results:
        np.testing.assert_allclose(y, whole, atol=1e-5)
        np.testing.assert_allclose(same, whole, atol=1e-5)
        np.testing.assert_allclose(reused, replaced, atol=1e-5)
        assert np.abs(reused - other).max() > 1e-2 < np.abs(reused - whole).max()
    for shallow, residual in residuals:
        np.testing.assert_allclose(shallow, residual, atol=1e-5)
