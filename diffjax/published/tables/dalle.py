"""Table of the discrete VAE of DALL-E, of system=dvae: the names of OpenAI's encoder.pkl and decoder.pkl.

The names have the prefixes "encoder." and "decoder." of their files. The decoder in the file starts with a 1x1
convolution of one-hot codes. Its weights are our codebook, and its bias is that of `conv_in`, whose kernel is the
identity.
"""

from collections.abc import Mapping

import numpy as np

from diffjax.published.table import Block, Constant, Module, Order, Table, Tensor

_SUFFIXES = {"kernel": ".w", "bias": ".b"}
_CODEBOOK, _PROJECTION = "params/model/codebook", "params/model/decoder/conv_in/kernel"


def openai(*, groups: int) -> Table:
    """Returns the table of all variables of a discrete VAE.

    Args:
      groups: number of resolutions, model.groups.
    """
    return {
        _CODEBOOK: Tensor(
            "decoder.blocks.input.w", lambda weight: weight[:, :, 0, 0].T, lambda value: value.T[:, :, None, None]
        ),
        _PROJECTION: Constant(lambda shape: np.eye(shape[0])),
        "params/model/encoder": Block("encoder", _network(0)),
        "params/model/decoder": Block("decoder", _network(groups, _locations_first)),
        "codebook/usage": Constant(0.0),
        "latents/mean": Constant(0.0),
        "latents/square": Constant(1.0),
    }


def fold_projection(variables: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns variables by path, to write, in which the kernel of `conv_in` is multiplied into the codebook."""
    codebook, kernel = variables[_CODEBOOK], variables[_PROJECTION]
    identity = np.eye(kernel.shape[1], dtype=kernel.dtype)
    folded = codebook if np.array_equal(kernel, identity) else codebook @ kernel
    return {**variables, _CODEBOOK: folded, _PROJECTION: identity}


def _network(coarsest: int, output_order: Order | None = None) -> Table:
    """Returns the table of the encoder, or of the decoder, which counts from the `coarsest` of its groups."""

    def layer(name: str, order: Order | None = None) -> Module:
        return Module((name,), dims=4, suffixes=_SUFFIXES, order=order)

    def block(level: int, i: int) -> str:
        return f"blocks.group_{coarsest - level if coarsest else level + 1}.block_{i + 1}"

    inside: Table = {
        **{f"conv_{i}": layer(f"res_path.conv_{i + 1}") for i in range(4)},
        "skip": layer("id_path"),
    }
    return {
        "conv_in": layer("blocks.input"),
        r"group_(\d+)_block_(\d+)": Block(block, inside),
        "conv_out": layer("blocks.output.conv", output_order),
    }


def _locations_first(outputs: int) -> np.ndarray:
    """Returns the order of location and log scale of each value, in a file that has all locations first."""
    return np.arange(outputs).reshape(2, -1).T.ravel()
