"""The patch discriminator of pix2pix (Isola et al. 2017, appendix 6.1.2), which VQGAN and latent diffusion use."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.layers import Conv, GroupNorm, choose
from diffjax.typing import Images


class PatchDiscriminator(nn.Module):
    """Whether each patch of a picture is real: one logit a patch; three layers see patches of 70x70.

    The published norm is batch norm. Its statistics would depend on how examples lie on devices, so there is none:
    norm "group" takes its place, or "none", for spectral normalisation (nn/spectral.py).
    """

    channels: int = 64  # of the first layer; they double with every layer, up to 8 times
    layers: int = 3  # of stride 2; two of stride 1 follow
    norm: str = "group"
    norm_groups: int = 32
    norm_min_channels: int = 0  # least channels of a group; 0: exactly `norm_groups` groups: see layers.num_groups
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "B h w 1"]:
        """Return float32 logits, h = H // 2 ** layers - 2; `x` in [-1, 1].

        Raises ValueError for an unknown norm and for a picture smaller than 3 * 2 ** layers.
        """
        choose("norm", self.norm, ("group", "none"))
        smallest = 3 * 2**self.layers
        if min(x.shape[1:3]) < smallest:
            raise ValueError(f"{self.layers} layers of a discriminator need sides of {smallest}, not {x.shape[1:3]}")
        h = x
        for i in range(self.layers + 1):
            stride = 2 if i < self.layers else 1
            width = self.channels * min(2**i, 8)
            h = Conv(width, stride, ((1, 1), (1, 1)), self.initializer, self.dtype, 4, name=f"conv_{i}")(h)
            if i > 0 and self.norm == "group":
                normed = {"min_channels": self.norm_min_channels, "dtype": self.dtype}
                h = GroupNorm(self.norm_groups, **normed, name=f"norm_{i}")(h)
            h = nn.leaky_relu(h, 0.2)
        return Conv(1, 1, ((1, 1), (1, 1)), self.initializer, kernel=4, name="conv_out")(h)
