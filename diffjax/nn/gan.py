"""Networks of GANs: a residual generator, a discriminator of images or of noisy pairs, StyleGAN's mapping network."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.layers import Conv, Dense, GroupNorm, average_pool, level_widths, timestep_embedding
from diffjax.nn.resblock import ResBlock
from diffjax.typing import Images, Labels, Times


class Generator(nn.Module):
    """Generates images from latents by residual blocks that double the sides.

    The latent and the class condition the norms of every block. The norms are group norms, because batch norm couples
    the examples of a batch.

    Reference: SNGAN (Miyato et al. 2018), table 3; conditioning of BigGAN (Brock et al. 2019), appendix B.
    """

    size: int  # height and width of an image
    outputs: int  # channels of an image
    classes: int = 0  # number of classes; 0: no labels
    latent: int = 128  # values of z
    channels: int = 64  # channels at the full size
    multipliers: Sequence[float] = (1, 2, 4)  # width of each level in units of `channels`, the full size first
    norm_groups: int = 32
    norm_min_channels: int = 0  # minimum channels per group; 0: exactly `norm_groups` groups (layers.num_groups)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], label: Labels | None = None) -> Images:
        """Computes images.

        Args:
          z: latents [B, latent] from N(0, I).
          label: class labels [B]; None without classes.

        Returns:
          Images, float32 [B, size, size, outputs] in [-1, 1].

        Raises:
          ValueError: `size` cannot be halved once per level after the first, or `label` does not match `classes`.
        """
        side, widths = _smallest(self.size, self.multipliers), level_widths(self.channels, self.multipliers)
        _check_label(label, self.classes)
        if label is not None:  # as many values as z, so that both contribute equally
            embed = nn.Embed(self.classes, self.latent, embedding_init=nn.initializers.normal(1.0), name="label")
            z = jnp.concatenate([z, embed(label)], axis=-1)
        dense = partial(Dense, dtype=self.dtype)
        normed = {"groups": self.norm_groups, "min_channels": self.norm_min_channels}
        block = partial(ResBlock, time_conditioning="scale_shift", dtype=self.dtype, **normed)
        emb = nn.silu(dense(4 * self.channels, name="embedding")(z))
        h = dense(side * side * widths[-1], name="dense_in")(z).reshape(-1, side, side, widths[-1])
        for level in reversed(range(len(widths))):
            resample = None if level == len(widths) - 1 else "up"
            h = block(widths[level], resample, name=f"block_{level}")(h, emb)
        norm = GroupNorm(self.norm_groups, min_channels=self.norm_min_channels, name="norm_out")
        h = nn.silu(norm(h))
        return jnp.tanh(Conv(self.outputs, name="conv_out")(h))


class Discriminator(nn.Module):
    """Discriminates images with residual blocks without norm, a sum over positions and one logit.

    Labels condition the logit by projection. With a time, it is the discriminator of denoising diffusion GANs, for
    pairs of x_t-1 and x_t, without their minibatch standard deviation, which couples the examples of a batch.

    Reference: SNGAN (Miyato et al. 2018), table 3; projection: Miyato & Koyama 2018, eq. 3; denoising diffusion GANs
    (Xiao et al. 2022), appendix C.
    """

    classes: int = 0  # number of classes; 0: no labels
    channels: int = 64  # channels at the full size
    multipliers: Sequence[float] = (1, 2, 4)  # width of each level in units of `channels`, the full size first
    residual_scale: float = 1.0  # factor on the output of every residual block
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Images, label: Labels | None = None, noisier: Images | None = None, t: Times | None = None
    ) -> Float[Array, " B"]:
        """Computes logits, positive for real.

        Args:
          x: images [B, H, W, C] in [-1, 1], or x_t-1.
          label: class labels [B]; None without classes.
          noisier: x_t for pairs; None for images.
          t: times [B] of the pairs, from 0 to T - 1; None for images.

        Returns:
          Logits, float32 [B].

        Raises:
          ValueError: a side cannot be halved once per level after the first, or `label` does not match `classes`.
        """
        _smallest(x.shape[1], self.multipliers)
        _check_label(label, self.classes)
        widths, emb = level_widths(self.channels, self.multipliers), None
        if t is not None:
            emb = timestep_embedding(t, self.channels)
            for i in range(2):
                emb = nn.silu(Dense(4 * self.channels, dtype=self.dtype, name=f"time_{i}")(emb))
        h = x if noisier is None else jnp.concatenate([x, noisier], axis=-1)
        h = Conv(widths[0], dtype=self.dtype, name="conv_in")(h)
        for level, width in enumerate(widths):
            down = level < len(widths) - 1
            h = _Block(width, down, self.residual_scale, self.dtype, name=f"block_{level}")(h, emb)
        features = _leaky(h).astype(jnp.float32).sum((1, 2))
        logit = Dense(1, name="dense_out")(features)[:, 0]
        if label is None:
            return logit
        # The label table is a kernel on one-hot labels, so that spectral normalisation includes it.
        row = Dense(features.shape[-1], bias=False, name="label")(jax.nn.one_hot(label, self.classes))
        return logit + (row * features).sum(-1)


class MappingNetwork(nn.Module):
    """Maps a latent, normalised to length sqrt(Z), through dense layers.

    Reference: StyleGAN (Karras et al. 2019), section 2; in denoising diffusion GANs Xiao et al. 2022, appendix C.
    """

    latent: int = 64  # values of z
    width: int = 128  # values of the output and of every layer
    layers: int = 3  # number of dense layers

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"]) -> Float[Array, "B width"]:
        """Returns the style of each latent, float32 [B, width]; `z` from N(0, I)."""
        h = z * jax.lax.rsqrt((z**2).mean(-1, keepdims=True) + 1e-8)
        for i in range(self.layers):
            h = _leaky(Dense(self.width, name=f"dense_{i}")(h))
        return h


class _Block(nn.Module):
    """Residual block of the discriminator."""

    features: int
    down: bool
    residual_scale: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], emb: Float[Array, "B E"] | None) -> Float[Array, "B h w F"]:
        h = Conv(self.features, dtype=self.dtype, name="conv_0")(_leaky(x))
        if emb is not None:
            h = h + Dense(self.features, dtype=self.dtype, name="time")(emb)[:, None, None, :]
        h = Conv(self.features, dtype=self.dtype, name="conv_1")(_leaky(h))
        if x.shape[-1] != self.features:
            x = Dense(self.features, dtype=self.dtype, name="skip")(x)
        x = (x + h) * self.residual_scale
        return average_pool(x) if self.down else x


_leaky = partial(nn.leaky_relu, negative_slope=0.2)


def _smallest(size: int, multipliers: Sequence[float]) -> int:
    """Returns the side at the last level. Raises ValueError where a side cannot be halved."""
    halvings = len(multipliers) - 1
    if size % 2**halvings:
        raise ValueError(
            f"multipliers={tuple(multipliers)}: {halvings} halvings require sides that are multiples of {2**halvings}, "
            f"not {size}; use fewer levels"
        )
    return size >> halvings


def _check_label(label: Labels | None, classes: int) -> None:
    if (label is not None) != (classes > 0):
        raise ValueError(f"classes={classes}: requires label to be {'set' if classes else 'None'}")
