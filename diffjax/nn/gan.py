"""The networks of GANs: a residual generator, a discriminator of pictures and of noisy pairs, StyleGAN's mapping."""

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
    """Pictures from latents: residual blocks that double the sides, their norms told the latent and the class.

    SNGAN's (Miyato et al. 2018, table 3) with BigGAN's conditioning (Brock et al. 2019, app. B). Its norms are group
    norms: batch statistics would depend on how examples lie on devices.
    """

    size: int  # height and width of a picture
    outputs: int  # its channels
    classes: int = 0  # 0: no labels
    latent: int = 128  # values of z
    channels: int = 64  # at the full size
    multipliers: Sequence[float] = (1, 2, 4)  # width of each level, the full size first, in units of `channels`
    norm_groups: int = 32
    norm_min_channels: int = 0  # least channels of a group; 0: exactly `norm_groups` groups: see layers.num_groups
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"], label: Labels | None = None) -> Images:
        """Return float32 [B, size, size, outputs] in [-1, 1]; `z` from N(0, I).

        Raises ValueError for a size that cannot be halved as often as there are levels to come up from, and for labels
        without classes or classes without labels.
        """
        side, widths = _smallest(self.size, self.multipliers), level_widths(self.channels, self.multipliers)
        _check_label(label, self.classes)
        if label is not None:  # a class as long as z, so that neither drowns the other
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
        h = nn.silu(GroupNorm(**normed, name="norm_out")(h))
        return jnp.tanh(Conv(self.outputs, name="conv_out")(h))


class Discriminator(nn.Module):
    """Whether a picture is real: residual blocks without norm that halve the sides, a sum over positions, one logit.

    SNGAN's (Miyato et al. 2018, table 3), whose class comes in by projection (Miyato & Koyama 2018, eq. 3). With a time
    it is that of denoising diffusion GANs (Xiao et al. 2022, app. C), which judges x_t-1 beside x_t; their feature
    of the batch's deviation is left out, as it would let an example's loss depend on others.
    """

    classes: int = 0  # 0: no labels
    channels: int = 64  # at the full size
    multipliers: Sequence[float] = (1, 2, 4)  # width of each level, the full size first, in units of `channels`
    residual_scale: float = 1.0  # of the blocks
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Images, label: Labels | None = None, noisier: Images | None = None, t: Times | None = None
    ) -> Float[Array, "B"]:
        """Return float32 logits; `x` in [-1, 1], or where it is x_t-1 with `noisier` x_t and `t` from 0 to T - 1.

        Raises ValueError for a side that cannot be halved often enough, and for labels without classes or classes
        without labels.
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
        # A table as a kernel of one-hot labels: spectral normalisation finds it as it finds the others.
        row = Dense(features.shape[-1], bias=False, name="label")(jax.nn.one_hot(label, self.classes))
        return logit + (row * features).sum(-1)


class Mapping(nn.Module):
    """StyleGAN's mapping (Karras et al. 2019, section 2): a latent of length sqrt(Z), then dense layers.

    Denoising diffusion GANs condition their network on it (Xiao et al. 2022, app. C).
    """

    latent: int = 64  # values of z
    width: int = 128
    layers: int = 3

    @nn.compact
    def __call__(self, z: Float[Array, "B Z"]) -> Float[Array, "B width"]:
        h = z * jax.lax.rsqrt((z**2).mean(-1, keepdims=True) + 1e-8)
        for i in range(self.layers):
            h = _leaky(Dense(self.width, name=f"dense_{i}")(h))
        return h


class _Block(nn.Module):
    """A residual block of the discriminator."""

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
    """The side at the last level. Raises ValueError where halving does not come out even."""
    halvings = len(multipliers) - 1
    if size % 2**halvings:
        raise ValueError(f"{len(multipliers)} multipliers halve a picture {halvings} times, which {size} cannot be")
    return size >> halvings


def _check_label(label: Labels | None, classes: int) -> None:
    if (label is not None) != (classes > 0):
        raise ValueError(f"label is {'missing' if label is None else 'given'} but classes is {classes}")
