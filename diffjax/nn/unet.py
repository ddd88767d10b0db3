"""U-Net of DDPM, Improved DDPM, ADM, GLIDE, unCLIP, latent and Stable Diffusion; its encoder is ADM's classifier.

The papers differ in a few details, which are fields with the values of DDPM as defaults. `UNet(..., **ADM_DETAILS)` has
the values that Improved DDPM, ADM, GLIDE, unCLIP and latent diffusion share.
"""

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from diffjax.nn.attention import AttentionBlock, AttentionPool, SpatialTransformer
from diffjax.nn.layers import (
    Conv,
    Dense,
    Downsample,
    GroupNorm,
    Upsample,
    average_pool,
    check_choice,
    check_dropout,
    check_label,
    level_widths,
    timestep_embedding,
    upsample_nearest,
)
from diffjax.nn.remat import rematerialize
from diffjax.nn.resblock import ResBlock
from diffjax.typing import Images, Labels, PRNGKeys, Times

ADM_DETAILS = {"norm_epsilon": 1e-5, "time_embedding": "adm", "downsample_padding": "symmetric", "initializer": "torch"}


class UNet(nn.Module):
    """Predicts the denoising target, or with `pool` logits, from a noisy image and its time.

    Reference: DDPM (Ho et al. 2020), appendix B; ADM (Dhariwal & Nichol 2021), section 3; latent diffusion (Rombach et
    al. 2022), section 3.3.
    """

    out_channels: int  # channels of the output, or classes with `pool`
    channels: int = 128  # base width
    multipliers: Sequence[float] = (1, 2, 2, 2)  # width of each level, in units of `channels`
    blocks: int | Sequence[int] = 2  # residual blocks per level, or one count for each; the decoder has one more
    attention_resolutions: Sequence[int] = (16,)  # heights of the feature maps with attention, besides the middle
    heads: int = 1  # attention heads
    head_channels: int | None = None  # channels per head, instead of `heads`
    dropout: float = 0.0  # rate, in residual blocks
    time_conditioning: str = "add"  # "add" | "scale_shift" (adaptive group norm)
    resample: str = "conv"  # "conv" | "pool" (average, nearest) | "residual" (BigGAN's blocks)
    residual_scale: float = 1.0  # factor on residual and attention block outputs; ADM's rescaled residual: 2 ** -0.5
    pool: str | None = None  # "attention" | "mean": no decoder, logits from the middle's features; None: image output
    num_label_embeddings: int = 0  # rows of the label embedding table; 0: unconditional on labels
    transformer_depth: int = 0  # blocks per spatial transformer (latent diffusion); 0: attention blocks
    middle_attention: bool = True  # False in unCLIP's upsamplers
    norm_groups: int = 32  # groups per group norm
    norm_min_channels: int = 0  # minimum channels per group; 0: exactly `norm_groups` groups (layers.num_groups)
    norm_epsilon: float = 1e-6  # DDPM; ADM 1e-5
    time_embedding: str = "ddpm"  # "ddpm" | "adm": see timestep_embedding
    downsample_padding: str = "asymmetric"  # "asymmetric" (DDPM) | "symmetric" (ADM)
    initializer: str = "ddpm"  # "ddpm" | "torch": see layers
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # compute dtype; parameters, norm statistics, softmax and output are float32
    identity_attention: Sequence[int] = ()  # attention blocks whose positions attend to themselves alone
    skipped_blocks: Sequence[int] = ()  # attention blocks that are left out; both count from the first one, 0

    @nn.compact
    def __call__(
        self,
        x: Images,
        t: Times,
        *,
        label: Labels | None = None,
        embedding: Float[Array, "B E"] | None = None,
        context: Float[Array, "B L D"] | None = None,
        context_mask: Bool[Array, "B L"] | None = None,
        augment_label: Float[Array, "B A"] | None = None,
        dropout_keys: PRNGKeys | None = None,
        return_features: bool = False,
        cache_branch: int | None = None,
        deep: Float[Array, "B ..."] | None = None,
    ) -> Images | Float[Array, "B O"] | tuple[Images, Float[Array, "B h w F"]]:
        """Computes the network output.

        Args:
          x: noisy images [B, H, W, C].
          t: times [B] on the scale of the diffusion steps, 0 to T - 1.
          label: class labels [B], rows of the label embedding table (ADM).
          embedding: vector condition [B, E]; a linear map of it is added to the time embedding (GLIDE, unCLIP), as the
            label's is.
          context: sequence [B, L, D] to attend to.
          context_mask: True [B, L] where the context has a token; others are not attended to. None: everywhere.
          augment_label: parameters [B, A] of the augmentation of an image; a linear map of them, without bias, is added
            to the sinusoidal embedding of the time (EDM).
          dropout_keys: one key per example; None: no dropout.
          return_features: return the features of the middle, float32 [B, h, w, F], without the decoder.
          cache_branch: skip connection, from 0, at which the decoder's features are returned too, or replaced by
            `deep`: DeepCache. None: no caching.
          deep: features of the decoder before skip connection `cache_branch`, from another step. The layers before
            them are not evaluated.

        Returns:
          float32 [B, H, W, out_channels], zero at initialisation; with `cache_branch` and without `deep` the deep
          features too; with `pool`, logits [B, out_channels] from the encoder and the middle (ADM's classifier, section
          4).

        Raises:
          ValueError: an unknown option, sides that cannot be halved once per level after the first, an attention
            resolution that no feature map has, `label` does not match `num_label_embeddings`, or a mask with
            `transformer_depth`.
        """
        levels, blocks = len(self.multipliers), self._blocks_per_level
        widths = level_widths(self.channels, self.multipliers)
        self._check(x, label, levels, blocks)
        if context_mask is not None and self.transformer_depth:
            raise ValueError(f"transformer_depth={self.transformer_depth}: must be 0 with a context_mask")

        dense = partial(Dense, initializer=self.initializer)
        emb = timestep_embedding(t, self.channels, convention=self.time_embedding)
        if augment_label is not None:
            emb = emb + dense(emb.shape[-1], bias=False, name="augment")(augment_label.astype(jnp.float32))
        emb = dense(4 * self.channels, name="time_0")(emb)
        emb = dense(4 * self.channels, name="time_1")(nn.silu(emb))
        if self.num_label_embeddings:
            table = nn.Embed(
                self.num_label_embeddings, emb.shape[-1], embedding_init=nn.initializers.normal(1.0), name="label"
            )
            emb = emb + table(label)
        if embedding is not None:
            emb = emb + dense(emb.shape[-1], name="embedding")(embedding.astype(jnp.float32))
        emb = nn.silu(emb).astype(self.dtype)  # common to all blocks

        wrap = partial(rematerialize, remat=self.remat)
        computed = {"initializer": self.initializer, "dtype": self.dtype}
        normed = {"groups": self.norm_groups, "min_channels": self.norm_min_channels, **computed}
        scaled = {"epsilon": self.norm_epsilon, "residual_scale": self.residual_scale, **normed}

        def block(h, width, name, resample=None):
            res = partial(wrap(ResBlock), width, resample, self.time_conditioning, self.dropout)
            return res(**scaled, name=name)(h, emb, dropout_keys)

        attention_names = self._attention_names(x.shape[1])

        def attend(h, name):
            index, heads = attention_names.index(name), self._heads(h.shape[-1])
            if index in self.skipped_blocks:
                return h
            options = {"attention": self.attention, "identity_map": index in self.identity_attention, "name": name}
            if self.transformer_depth:
                transformer = partial(wrap(SpatialTransformer), self.transformer_depth, heads, **normed)
                return transformer(**options)(h, context)
            return partial(wrap(AttentionBlock), heads, **scaled)(**options)(h, context, context_mask)

        def change(h, way, name):
            if self.resample == "residual":
                return block(h, h.shape[-1], name, way)
            if self.resample == "pool":
                return average_pool(h) if way == "down" else upsample_nearest(h)
            layer = partial(Downsample, self.downsample_padding) if way == "down" else Upsample
            return layer(**computed, name=name)(h)

        h = Conv(widths[0], **computed, name="conv_in")(x)
        skips = [h]
        down = [(level, i) for level in range(levels) for i in range(blocks[level] + (level < levels - 1))]
        for level, i in down if deep is None else down[:cache_branch]:
            if i == blocks[level]:
                h = change(h, "down", f"down_{level}_resample")
            else:
                h = block(h, widths[level], f"down_{level}_block_{i}")
                if h.shape[1] in self.attention_resolutions:
                    h = attend(h, f"down_{level}_attention_{i}")
            skips.append(h)

        if deep is None:
            h = block(h, widths[-1], "middle_block_0")
            if self.middle_attention:
                h = attend(h, "middle_attention")
            h = block(h, widths[-1], "middle_block_1")
        else:
            h = deep
        if return_features:
            return h.astype(jnp.float32)

        norm_out = GroupNorm(self.norm_groups, self.norm_epsilon, min_channels=self.norm_min_channels, name="norm_out")
        if self.pool is not None:
            h = nn.silu(norm_out(h))
            if self.pool == "attention":
                return AttentionPool(self.out_channels, self._heads(h.shape[-1]), self.initializer, name="pool")(h)
            return Dense(self.out_channels, "zero", name="dense_out")(h.mean((1, 2)))

        up = [(level, i) for level in reversed(range(levels)) for i in range(blocks[level] + 1)]  # one per skip
        features = h
        for level, i in up[-len(skips) :]:
            if len(skips) - 1 == cache_branch:
                features = h
            h = block(jnp.concatenate([h, skips.pop()], axis=-1), widths[level], f"up_{level}_block_{i}")
            if h.shape[1] in self.attention_resolutions:
                h = attend(h, f"up_{level}_attention_{i}")
            if i == blocks[level] and level > 0:
                h = change(h, "up", f"up_{level}_resample")

        y = Conv(self.out_channels, initializer="zero", name="conv_out")(nn.silu(norm_out(h)))
        return y if cache_branch is None or deep is not None else (y, features)

    def num_attention_blocks(self, side: int) -> int:
        """Returns the number of attention blocks, for inputs of a height."""
        return len(self._attention_names(side))

    @property
    def num_cache_branches(self) -> int:
        """Number of skip connections."""
        return sum(self._blocks_per_level) + len(self.multipliers)

    @property
    def _blocks_per_level(self) -> tuple[int, ...]:
        return (self.blocks,) * len(self.multipliers) if isinstance(self.blocks, int) else tuple(self.blocks)

    def _attention_names(self, side: int) -> list[str]:
        """Returns the names of the attention blocks in the order of evaluation, for inputs of a height."""
        blocks = self._blocks_per_level
        attended = [level for level in range(len(blocks)) if side >> level in self.attention_resolutions]
        down = [f"down_{level}_attention_{i}" for level in attended for i in range(blocks[level])]
        up = [f"up_{level}_attention_{i}" for level in reversed(attended) for i in range(blocks[level] + 1)]
        return [*down, *["middle_attention"] * self.middle_attention, *up]

    def _heads(self, channels: int) -> int:
        """Returns the number of attention heads for a number of channels."""
        if self.head_channels is None:
            return self.heads
        if self.heads != 1:
            raise ValueError(
                f"head_channels={self.head_channels}: must be unset where heads={self.heads}; set one of the two"
            )
        if channels % self.head_channels:
            raise ValueError(f"head_channels={self.head_channels}: must divide the {channels} channels of attention")
        return channels // self.head_channels

    def _check(self, x: Array, label: Array | None, levels: int, blocks: tuple[int, ...]) -> None:
        """Raises ValueError for settings that would fail later or be ignored."""
        check_choice("time_conditioning", self.time_conditioning, ("add", "scale_shift"))
        check_choice("resample", self.resample, ("conv", "pool", "residual"))
        if self.pool is not None:
            check_choice("pool", self.pool, ("attention", "mean"))
        check_dropout(self.dropout)
        if len(blocks) != levels:
            raise ValueError(f"blocks={blocks}: must have one count per level, {levels}")
        if x.shape[1] % 2 ** (levels - 1) or x.shape[2] % 2 ** (levels - 1):
            raise ValueError(
                f"multipliers={tuple(self.multipliers)}: {levels - 1} halvings require sides that are multiples of "
                f"{2 ** (levels - 1)}, not {x.shape[1:3]}; use fewer levels"
            )
        sides = [x.shape[1] >> level for level in range(levels)]
        if set(self.attention_resolutions) - set(sides):
            raise ValueError(f"attention_resolutions={tuple(self.attention_resolutions)}: must be among {sides}")
        check_label(label, self.num_label_embeddings)
