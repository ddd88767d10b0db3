"""Weights of PyTorch's modules in our networks, through the tables of published weights."""

import re

import jax
import numpy as np
import torch
from flax import traverse_util

from diffjax.published import table
from diffjax.published.lazy import LazyTensor


def randomise(model):
    """Returns a module whose weights are random: nothing stays at zero or one."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.copy_(p + 0.2 * torch.randn_like(p) if p.ndim == 1 else torch.randn_like(p) / p[0].numel() ** 0.5)
    return model.eval()


def tensors(module):
    """Returns the tensors of a module by name."""
    return {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}


def lazy(arrays):
    """Returns arrays as the tensors of a file."""
    return {name: LazyTensor(a.shape, a.dtype, lambda a=a: a.copy()) for name, a in arrays.items()}


def shapes(net, *inputs, **options):
    """Returns the shapes of a network's parameters by path."""
    return flat(jax.eval_shape(net.init, jax.random.key(0), *inputs, **options)["params"])


def flat(tree):
    """Returns the leaves of a tree by path."""
    return traverse_util.flatten_dict(tree, sep="/")


def read(names, leaves, arrays, *, ignored=()):
    """Returns the parameters that a table reads from arrays, and checks that it writes the same arrays, to the bit.

    Args:
      names: the table.
      leaves: shape of every parameter by path.
      arrays: tensors of the file by name.
      ignored: regular expressions of tensors that are no parameters, and are not written.
    """
    params = table.read(names, leaves, lazy(arrays), network="the module is not the network", ignored=ignored)
    written = table.write(names, params)
    assert written.keys() == {name for name in arrays if not any(re.fullmatch(each, name) for each in ignored)}
    for name, value in written.items():
        assert value.dtype == arrays[name].dtype and value.flags.c_contiguous
        np.testing.assert_array_equal(value, arrays[name], err_msg=name)
    return traverse_util.unflatten_dict(params, sep="/")


def assert_close(found, expected):
    """Asserts that outputs are equal within rounding, and not all small."""
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)
