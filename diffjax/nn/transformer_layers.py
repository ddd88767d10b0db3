"""Layers that transformers share: norms, MLP activations, QK-norm, rotary positions, value residuals, registers.

References:
  Su et al. 2021, "RoFormer: Enhanced transformer with rotary position embedding".
  Zhang & Sennrich 2019, "Root mean square layer normalization".
  Shazeer 2020, "GLU variants improve transformer".
  Dehghani et al. 2023, "Scaling vision transformers to 22 billion parameters".
  Zhou et al. 2024, "Value residual learning".
  Darcet et al. 2024, "Vision transformers need registers".
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.layers import LayerNorm, check_choice

ROTARY_BASE = 10_000.0  # frequencies are powers of 1 / base


def _swiglu(x: Float[Array, "... 2*F"]) -> Float[Array, "... F"]:
    gate, value = jnp.split(x, 2, axis=-1)
    return nn.silu(gate) * value


ACTIVATIONS = {
    "gelu": partial(nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # CLIP's
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "swiglu": _swiglu,
}


def mlp_width(width: int, mlp_ratio: float, activation: str) -> int:
    """Returns the outputs of the first layer of an MLP: `mlp_ratio` times `width`, rounded.

    "swiglu" has twice two thirds of that, gates and values, each rounded down as in JiT's code (Li & He 2025). The MLP
    then has about as many parameters as with another activation (Shazeer 2020, section 2).

    Raises:
      ValueError: an unknown activation.
    """
    if check_choice("activation", activation, tuple(ACTIVATIONS)) == "swiglu":
        return 2 * int(mlp_ratio * width * 2 / 3 + 1e-6)  # the summand undoes rounding errors below an integer
    return round(mlp_ratio * width)


def make_norm(
    kind: str, epsilon: float, dtype: DTypeLike, name: str | None = None, *, learned: bool = True
) -> nn.Module:
    """Returns a norm of the last axis with float32 statistics.

    Args:
      kind: "layer" | "rms". An RMS norm does not subtract the mean, and has no bias.
      epsilon: added to the variance, or to the mean square.
      dtype: dtype of the output.
      name: name of the submodule; None: that of the calling module's next one of its class.
      learned: whether it has a learned scale, and bias.

    Raises:
      ValueError: an unknown kind.
    """
    if check_choice("norm", kind, ("layer", "rms")) == "rms":
        return nn.RMSNorm(epsilon, dtype=dtype, use_scale=learned, name=name)
    return LayerNorm(epsilon, dtype=dtype, use_scale=learned, use_bias=learned, name=name)


def normalize_heads(x: Float[Array, "B T C"], heads: int, dtype: DTypeLike, name: str) -> Float[Array, "B T C"]:
    """Returns queries or keys after an RMS norm of each head's channels, with a learned scale that all heads share.

    It bounds the logits of attention, whose growth ends the training of large transformers. SD3 (Esser et al. 2024) and
    JiT (Li & He 2025) have this norm; ViT-22B (Dehghani et al. 2023), which introduced it, has a layer norm without
    biases. The scale is in the submodule `name` of the calling module.
    """
    return nn.RMSNorm(1e-6, dtype=dtype, name=name)(x.reshape(*x.shape[:-1], heads, -1)).reshape(x.shape)


def rotary_angles(positions: Float[Array, "T A"], channels: int) -> Float[Array, "T channels/2"]:
    """Returns the angles of rotary position embeddings, float32: positions times powers of 1 / 10000.

    With two axes, the first half of the channels is rotated by the row, the second by the column: the convention of the
    code of EVA-02 (Fang et al. 2023) and JiT (Li & He 2025).

    Args:
      positions: positions of the tokens [T, A] on A axes, in tokens: 1 in a sequence, 2 in a grid.
      channels: channels that are rotated, a multiple of 2 A; two have one angle.

    Raises:
      ValueError: the number of channels is not a multiple of 2 A.

    Reference: RoFormer (Su et al. 2021), equation 15.
    """
    axes = positions.shape[1]
    if channels % (2 * axes):
        raise ValueError(
            f"rotary position embeddings: the {channels} channels per head must be a multiple of {2 * axes}"
        )
    frequencies = ROTARY_BASE ** (-jnp.arange(0, channels // axes, 2, dtype=jnp.float32) / (channels // axes))
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    return angles.reshape(len(positions), channels // 2)


def grid_positions(height: int, width: int, before: int = 0) -> Float[Array, "before+height*width 2"]:
    """Returns row and column of the positions of a grid, row by row, after `before` tokens without a position, at 0."""
    return jnp.pad(jnp.indices((height, width), jnp.float32).reshape(2, -1).T, ((before, 0), (0, 0)))


def rotate(x: Float[Array, "B T C"], angles: Float[Array, "T D/2"] | None) -> Float[Array, "B T C"]:
    """Returns queries or keys with the pairs of channels (0, 1), (2, 3), ... of each head rotated, in their own dtype.

    Args:
      x: queries or keys [B, T, C] of heads of D consecutive channels.
      angles: an angle per position and pair; None: returns `x`.

    Reference: RoFormer (Su et al. 2021), equation 34.
    """
    if angles is None:
        return x
    pairs = x.astype(jnp.float32).reshape(*x.shape[:2], -1, angles.shape[-1], 2)
    cos, sin = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    first, second = pairs[..., 0], pairs[..., 1]
    rotated = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.reshape(x.shape).astype(x.dtype)


class ValueResidual(nn.Module):
    """Mixes the values of attention with those of the first block: a v_1 + b v, with learned a = b = 1/2 at first.

    Reference: Zhou et al. 2024, "Value residual learning" (the learnable ResFormer).
    """

    @nn.compact
    def __call__(self, v: Float[Array, "B T C"], first: Float[Array, "B T C"]) -> Float[Array, "B T C"]:
        """Returns the mixed values; `first` are the values of the first block."""
        weights = self.param("weights", nn.initializers.constant(0.5), (2,), jnp.float32).astype(v.dtype)
        return weights[0] * first + weights[1] * v


def add_registers(
    module: nn.Module, x: Float[Array, "B T W"], count: int, std: float, before: int = 0
) -> Float[Array, "B T+count W"]:
    """Returns tokens with learned registers among them: the parameter "registers" of a module, if there are any.

    Args:
      module: module that has the parameter.
      x: tokens.
      count: number of registers; 0: the tokens are returned.
      std: standard deviation at initialisation.
      before: number of tokens before the registers.
    """
    if not count:
        return x
    registers = module.param("registers", nn.initializers.normal(std), (count, x.shape[-1]), jnp.float32)
    registers = jnp.broadcast_to(registers.astype(x.dtype), (len(x), *registers.shape))
    return jnp.concatenate([x[:, :before], registers, x[:, before:]], axis=1)
