"""Projection from the tokens of a diffusion transformer to the features of an image encoder (REPA)."""

from flax import linen as nn
from jax import Array
from jaxtyping import Float

from diffjax.nn.layers import Dense


class Projection(nn.Module):
    """MLP of three layers with SiLU. Layers and initialisation are those of the paper's code.

    Reference: Yu et al. 2024, "Representation alignment for generation".
    """

    width: int  # channels of both hidden layers
    dimensions: int  # channels of the features

    @nn.compact
    def __call__(self, tokens: Float[Array, "... W"]) -> Float[Array, "... D"]:
        """Returns the projected tokens, float32."""
        h = nn.silu(Dense(self.width, name="layer_0")(tokens))
        h = nn.silu(Dense(self.width, name="layer_1")(h))
        return Dense(self.dimensions, name="layer_2")(h)
