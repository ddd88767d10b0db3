"""Discriminators: of patches (pix2pix, also used by VQGAN and latent diffusion), and of features (DMD2)."""

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.layers import Conv, Dense, GroupNorm, check_choice
from diffjax.typing import Images


class PatchDiscriminator(nn.Module):
    """Convolutional discriminator with one logit per patch; with three layers a patch is 70x70 pixels.

    The published network has batch norm, which couples the examples of a batch. Here it is group norm, or no norm, for
    use with spectral normalisation (nn/spectral.py).

    Reference: Isola et al. 2017, appendix 6.1.2.
    """

    channels: int = 64  # channels of the first layer; doubled per layer, up to 8 times
    layers: int = 3  # number of convolutions of stride 2; two of stride 1 follow
    norm: str = "group"  # "group" | "none"
    norm_groups: int = 32
    norm_min_channels: int = 0  # minimum channels per group; 0: exactly `norm_groups` groups (layers.num_groups)
    initializer: str = "torch"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "B h w 1"]:
        """Computes the logit of each patch, positive for real.

        Args:
          x: images [B, H, W, C] in [-1, 1].

        Returns:
          Logits, float32 [B, h, w, 1] with h = H // 2 ** layers - 2.

        Raises:
          ValueError: an unknown norm, or a side below 3 * 2 ** layers.
        """
        check_choice("norm", self.norm, ("group", "none"))
        smallest = 3 * 2**self.layers
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"layers={self.layers}: requires image sides from {smallest}, not {x.shape[1:3]}; use fewer layers"
            )
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


class FeatureDiscriminator(nn.Module):
    """Discriminates feature maps of another network: convolutions of stride 2 down to one position, and one logit.

    Reference: DMD2 (Yin et al. 2024b), sec. 4.3; kernels, norms and activations are those of its code.
    """

    norm_groups: int = 32
    norm_min_channels: int = 4  # minimum channels per group, so that narrow features have fewer groups

    @nn.compact
    def __call__(self, h: Float[Array, "B h w F"]) -> Float[Array, " B"]:
        """Returns the logit of each example, float32, positive for real; `h` has square feature maps."""
        channels, i = h.shape[-1], 0
        while h.shape[1] > 1:
            h = Conv(channels, 2, ((1, 1), (1, 1)), "torch", kernel=4, name=f"conv_{i}")(h)
            h = GroupNorm(self.norm_groups, min_channels=self.norm_min_channels, name=f"norm_{i}")(h)
            h, i = nn.silu(h), i + 1
        return Dense(1, "torch", name="logit")(h)[:, 0, 0, 0]
