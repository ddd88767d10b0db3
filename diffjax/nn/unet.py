"""The U-Net of DDPM, Improved DDPM, ADM, GLIDE, unCLIP, latent and Stable Diffusion, and half of it: ADM's classifier.

The papers differ in few details, which are fields; their defaults are DDPM's. `ADM_DETAILS` are those that Improved
DDPM, ADM, GLIDE, unCLIP and latent diffusion share: `UNet(..., **ADM_DETAILS)`.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.attention import AttentionBlock, AttentionPool, SpatialTransformer
from diffjax.nn.layers import (
    Conv,
    Dense,
    Downsample,
    GroupNorm,
    Upsample,
    average_pool,
    check_dropout,
    check_label,
    choose,
    level_widths,
    nearest,
    timestep_embedding,
)
from diffjax.nn.resblock import ResBlock
from diffjax.typing import Images, Labels, PRNGKeys, Times

ADM_DETAILS = {"norm_epsilon": 1e-5, "time_embedding": "adm", "downsample_padding": "symmetric", "initializer": "torch"}


class UNet(nn.Module):
    """Predict a picture, or with `pool` logits, from a noisy picture and its time."""

    out_channels: int
    channels: int = 128
    multipliers: Sequence[float] = (1, 2, 2, 2)  # width of each level, in units of `channels`
    blocks: int | Sequence[int] = 2  # residual blocks a level, or one count each; one more on the way up
    attention_resolutions: Sequence[int] = (16,)  # heights of the feature maps that attend; and the middle
    heads: int = 1
    head_channels: int | None = None  # channels of each head, in place of `heads`
    dropout: float = 0.0
    time_conditioning: str = "add"  # "add" | "scale_shift" (adaptive group norm)
    resample: str = "conv"  # "conv" | "pool" (average, nearest) | "residual" (BigGAN's blocks)
    residual_scale: float = 1.0  # of residual and plain attention blocks; ADM's rescaled residual: 2 ** -0.5
    pool: str | None = None  # "attention" | "mean": no way up, but logits from the middle's features; None: a picture
    label_rows: int = 0  # rows of the label table, 0: no labels
    transformer_depth: int = 0  # layers of latent diffusion's spatial transformer, 0: plain attention
    middle_attention: bool = True  # unCLIP's upsamplers have none
    norm_groups: int = 32
    norm_min_channels: int = 0  # least channels of a group; 0: exactly `norm_groups` groups: see layers.num_groups
    norm_epsilon: float = 1e-6  # DDPM; ADM 1e-5
    time_embedding: str = "ddpm"  # "ddpm" | "adm": see timestep_embedding
    downsample_padding: str = "asymmetric"  # "asymmetric" (DDPM) | "symmetric" (ADM)
    initializer: str = "ddpm"  # "ddpm" | "torch": see layers
    remat: bool = False  # compute each block again in the backward pass instead of keeping it
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # of the computation; parameters, statistics, softmax and output are float32

    @nn.compact
    def __call__(
        self,
        x: Images,
        t: Times,
        *,
        label: Labels | None = None,
        embedding: Float[Array, "B E"] | None = None,
        context: Float[Array, "B L D"] | None = None,
        dropout_keys: PRNGKeys | None = None,
    ) -> Images | Float[Array, "B O"]:
        """Return float32 [B, H, W, out_channels]; `t` is on the scale of the diffusion steps, 0 to T - 1 or between.

        With `pool`, float32 [B, out_channels] from the way down and the middle alone (ADM's classifier, section 4).
        `label` picks a row of the label table, `embedding` goes through a linear layer, both are added to the time's
        embedding (ADM; GLIDE and unCLIP). `context` is a sequence to attend to. `dropout_keys` None: no dropout.
        Raises ValueError for an unknown option, for a picture that cannot be halved as often as needed, for an
        attention resolution that no feature map has, and for labels without a table or a table without labels.
        """
        levels = len(self.multipliers)
        blocks = (self.blocks,) * levels if isinstance(self.blocks, int) else tuple(self.blocks)
        widths = level_widths(self.channels, self.multipliers)
        self._check(x, label, levels, blocks)

        dense = partial(Dense, initializer=self.initializer)
        emb = timestep_embedding(t, self.channels, convention=self.time_embedding)
        emb = dense(4 * self.channels, name="time_0")(emb)
        emb = dense(4 * self.channels, name="time_1")(nn.silu(emb))
        if self.label_rows:
            table = nn.Embed(self.label_rows, emb.shape[-1], embedding_init=nn.initializers.normal(1.0), name="label")
            emb = emb + table(label)
        if embedding is not None:
            emb = emb + dense(emb.shape[-1], name="embedding")(embedding.astype(jnp.float32))
        emb = nn.silu(emb).astype(self.dtype)  # every block begins with it

        wrap = nn.remat if self.remat else lambda module: module
        computed = {"initializer": self.initializer, "dtype": self.dtype}
        normed = {"groups": self.norm_groups, "min_channels": self.norm_min_channels, **computed}
        scaled = {"epsilon": self.norm_epsilon, "residual_scale": self.residual_scale, **normed}

        def block(h, width, name, resample=None):
            res = partial(wrap(ResBlock), width, resample, self.time_conditioning, self.dropout)
            return res(**scaled, name=name)(h, emb, dropout_keys)

        def attend(h, name):
            heads = self._heads(h.shape[-1])
            if self.transformer_depth:
                layer = partial(wrap(SpatialTransformer), self.transformer_depth, heads, **normed)
            else:
                layer = partial(wrap(AttentionBlock), heads, **scaled)
            return layer(attention=self.attention, name=name)(h, context)

        def change(h, way, name):
            if self.resample == "residual":
                return block(h, h.shape[-1], name, way)
            if self.resample == "pool":
                return average_pool(h) if way == "down" else nearest(h)
            layer = partial(Downsample, self.downsample_padding) if way == "down" else Upsample
            return layer(**computed, name=name)(h)

        h = Conv(widths[0], **computed, name="conv_in")(x)
        skips = [h]
        for level in range(levels):
            for i in range(blocks[level]):
                h = block(h, widths[level], f"down_{level}_block_{i}")
                if h.shape[1] in self.attention_resolutions:
                    h = attend(h, f"down_{level}_attention_{i}")
                skips.append(h)
            if level < levels - 1:
                h = change(h, "down", f"down_{level}_resample")
                skips.append(h)

        h = block(h, widths[-1], "middle_block_0")
        if self.middle_attention:
            h = attend(h, "middle_attention")
        h = block(h, widths[-1], "middle_block_1")

        norm_out = GroupNorm(self.norm_groups, self.norm_epsilon, min_channels=self.norm_min_channels, name="norm_out")
        if self.pool is not None:
            h = nn.silu(norm_out(h))
            if self.pool == "attention":
                return AttentionPool(self.out_channels, self._heads(h.shape[-1]), self.initializer, name="pool")(h)
            return Dense(self.out_channels, "zero", name="dense_out")(h.mean((1, 2)))

        for level in reversed(range(levels)):
            for i in range(blocks[level] + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), widths[level], f"up_{level}_block_{i}")
                if h.shape[1] in self.attention_resolutions:
                    h = attend(h, f"up_{level}_attention_{i}")
            if level > 0:
                h = change(h, "up", f"up_{level}_resample")

        return Conv(self.out_channels, initializer="zero", name="conv_out")(nn.silu(norm_out(h)))

    def _heads(self, channels):
        """The number of attention heads at a width."""
        if self.head_channels is None:
            return self.heads
        if self.heads != 1:
            raise ValueError(
                f"head_channels={self.head_channels}: must be unset where heads={self.heads}; set one of the two"
            )
        if channels % self.head_channels:
            raise ValueError(f"{channels} channels are not a multiple of head_channels {self.head_channels}")
        return channels // self.head_channels

    def _check(self, x, label, levels, blocks):
        """Raise ValueError for what would otherwise fail late or be ignored."""
        choose("time_conditioning", self.time_conditioning, ("add", "scale_shift"))
        choose("resample", self.resample, ("conv", "pool", "residual"))
        if self.pool is not None:
            choose("pool", self.pool, ("attention", "mean"))
        check_dropout(self.dropout)
        if len(blocks) != levels:
            raise ValueError(f"blocks has {len(blocks)} counts for {levels} levels")
        if x.shape[1] % 2 ** (levels - 1) or x.shape[2] % 2 ** (levels - 1):
            raise ValueError(f"{levels} levels halve a picture {levels - 1} times, which {x.shape[1:3]} cannot be")
        sides = [x.shape[1] >> level for level in range(levels)]
        if set(self.attention_resolutions) - set(sides):
            raise ValueError(f"attention_resolutions {tuple(self.attention_resolutions)} are not all among {sides}")
        check_label(label, self.label_rows)
