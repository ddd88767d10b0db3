"""Residual block of DDPM and ADM."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.layers import Conv, Dense, Dropout, GroupNorm, average_pool, upsample_nearest
from diffjax.nn.space_sums import repeat_over_space
from diffjax.typing import PRNGKeys


class ResBlock(nn.Module):
    """Residual block: norm, SiLU, 3x3 convolution, conditioning, norm, SiLU, dropout, 3x3 convolution.

    The skip connection is a 1x1 convolution where the number of channels changes.

    Reference: DDPM (Ho et al. 2020), appendix B; resampling blocks of BigGAN: ADM (Dhariwal & Nichol 2021), section 3.
    """

    features: int  # output channels
    resample: str | None = None  # "down" | "up": resamples both branches before the first convolution
    time_conditioning: str = "add"  # "add" | "scale_shift" (adaptive group norm)
    dropout: float = 0.0  # rate
    groups: int = 32
    epsilon: float = 1e-6
    residual_scale: float = 1.0
    initializer: str = "ddpm"
    dtype: DTypeLike = jnp.float32
    min_channels: int = 0  # minimum channels per group of the norms (layers.num_groups)

    @nn.compact
    def __call__(
        self, x: Float[Array, "B H W C"], emb: Float[Array, "B E"] | None = None, dropout_keys: PRNGKeys | None = None
    ) -> Float[Array, "B h w F"]:
        """Computes the block's output.

        Args:
          x: features [B, H, W, C].
          emb: conditioning embedding [B, E], after SiLU; None: unconditional, as in autoencoders.
          dropout_keys: one key per example; None: no dropout.

        Returns:
          Features [B, h, w, features]; h and w are those of `x`, halved or doubled by `resample`.
        """
        norm = partial(GroupNorm, self.groups, self.epsilon, self.dtype, self.min_channels)
        dense = partial(Dense, initializer=self.initializer, dtype=self.dtype)

        h = nn.silu(norm(name="norm_0")(x))
        if self.resample:
            change = {"down": average_pool, "up": upsample_nearest}[self.resample]
            h, x = change(h), change(x)
        h = Conv(self.features, initializer=self.initializer, dtype=self.dtype, name="conv_0")(h)
        if emb is None:
            h = norm(name="norm_1")(h)
        elif self.time_conditioning == "scale_shift":
            scale, shift = jnp.split(dense(2 * self.features, name="time")(emb), 2, axis=-1)
            h = norm(name="norm_1")(h, scale, shift)
        else:
            h = norm(name="norm_1")(h + repeat_over_space(dense(self.features, name="time")(emb), h.shape[1:3]))
        h = Dropout(self.dropout, name="dropout")(nn.silu(h), dropout_keys)
        h = Conv(self.features, initializer="zero", dtype=self.dtype, name="conv_1")(h)
        if x.shape[-1] != self.features:
            x = dense(self.features, name="skip")(x)
        return (x + h) * self.residual_scale
