"""DiT, a transformer over the patches of a picture (Peebles & Xie 2023), in the place of a U-Net.

It may attend to a context, as PixArt-alpha does (Chen et al. 2023, section 2.3). Initialisation is that of DiT's code:
Xavier's uniform, which is the layers' "ddpm", but for tables and the time's layers.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.attention import attend
from diffjax.nn.layers import Dense, Dropout, LayerNorm, check_dropout, check_label, timestep_embedding
from diffjax.typing import Images, Labels, PRNGKeys, Times

FREQUENCIES = 256  # of the time's embedding: sines and cosines together
NORMAL = nn.initializers.normal(0.02)


def patchify(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B h w patch*patch*C"]:
    """Each square of `patch` x `patch` pixels as one vector: rows of it first, then columns, then channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels).swapaxes(2, 3)
    return x.reshape(batch, height // patch, width // patch, patch * patch * channels)


def unpatchify(x: Float[Array, "B h w patch*patch*C"], patch: int) -> Float[Array, "B H W C"]:
    """The inverse of `patchify`."""
    batch, height, width, values = x.shape
    x = x.reshape(batch, height, width, patch, patch, values // patch**2).swapaxes(2, 3)
    return x.reshape(batch, height * patch, width * patch, values // patch**2)


def grid_embedding(height: int, width: int, dim: int) -> Float[Array, "h w dim"]:
    """Fixed embeddings of the places of a grid, float32: its columns in the first half of the channels, then its rows.

    Each half has sines, then cosines, of 0, 1, 2, ... at frequencies from 1 down to where the next is 1/10000. `dim` is
    a multiple of 4, at least 8.
    """

    def line(length):  # "adm" has these frequencies, the cosines first
        return jnp.roll(timestep_embedding(jnp.arange(length), dim // 2, convention="adm"), dim // 4, axis=-1)

    columns, rows, shape = line(width)[None, :, :], line(height)[:, None, :], (height, width, dim // 2)
    return jnp.concatenate([jnp.broadcast_to(columns, shape), jnp.broadcast_to(rows, shape)], axis=-1)


def modulated(
    x: Float[Array, "B T W"], shift: Float[Array, "B 1 W"], scale: Float[Array, "B 1 W"]
) -> Float[Array, "B T W"]:
    """`norm(x) * (1 + scale) + shift` in float32, of a layer norm without parameters (DiT, section 3.2)."""
    x = LayerNorm(1e-6, use_bias=False, use_scale=False, dtype=jnp.float32)(x)
    return x * (1 + scale.astype(jnp.float32)) + shift


class Block(nn.Module):
    """Self-attention, attention to the context if there is one, MLP; each on a residual; the identity at first.

    The first and the last are behind adaptive layer norms and before gates (adaLN-zero), which a linear layer makes of
    the embedding; the context's has neither, as PixArt-alpha's.
    """

    heads: int
    mlp_ratio: float = 4  # width of the MLP's hidden layer, in units of `width`, rounded to whole channels
    dropout: float = 0.0
    attention: str = "auto"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T W"],
        emb: Float[Array, "B W"],
        context: Float[Array, "B L D"] | None = None,
        dropout_keys: PRNGKeys | None = None,
    ) -> Float[Array, "B T W"]:
        """`emb` is the embedding of time, label and all after its SiLU."""
        width = x.shape[-1]
        dense = partial(Dense, dtype=self.dtype)

        def drop(h, name):
            return Dropout(self.dropout, name=f"dropout_{name}")(h, dropout_keys)

        modulation = dense(6 * width, "zero", name="modulation")(emb)[:, None, :]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(modulation, 6, axis=-1)

        q, k, v = jnp.split(dense(3 * width, name="qkv")(modulated(x, shift, scale)), 3, axis=-1)
        h = dense(width, name="out")(attend(q, k, v, self.heads, self.attention))
        x = x + gate * drop(h, "attention")

        if context is not None:
            q = dense(width, name="context_q")(x)
            k, v = jnp.split(dense(2 * width, name="context_kv")(context), 2, axis=-1)
            h = dense(width, "zero", name="context_out")(attend(q, k, v, self.heads, self.attention))
            x = x + drop(h, "context")

        h = dense(round(self.mlp_ratio * width), name="mlp_in")(modulated(x, mlp_shift, mlp_scale))
        h = dense(width, name="mlp_out")(nn.gelu(h))
        return x + mlp_gate * drop(h, "mlp")


class DiT(nn.Module):
    """Predict a picture from a noisy picture and its time; called as a UNet. The defaults are DiT-S/2's."""

    out_channels: int
    patch: int = 2  # side of the square of pixels that a token is made of
    width: int = 384  # 768 of DiT-B, 1024 of DiT-L, 1152 of DiT-XL
    layers: int = 12  # 12, 24, 28
    heads: int = 6  # 12, 16, 16
    mlp_ratio: float = 4  # width of the MLP's hidden layer, in units of `width`, rounded to whole channels
    label_rows: int = 0  # rows of the label table, 0: no labels
    dropout: float = 0.0  # of what each branch adds
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
    ) -> Images:
        """Return float32 [B, H, W, out_channels], zeros at first; `t` is on the scale of the diffusion steps.

        `label` picks a row of the label table, `embedding` goes through a linear layer, both are added to the time's
        embedding. `context` is a sequence that every block attends to, if there was one at initialisation; without it
        they do not. `dropout_keys` None: no dropout. Parameters fit pictures of any size, square or not.
        Raises ValueError for an unknown option, for a picture that the patch does not divide, for a width that 4 or the
        heads do not, and for labels without a table or a table without labels.
        """
        self._check(x, label)
        emb = timestep_embedding(t, FREQUENCIES, convention="adm")
        emb = nn.Dense(self.width, kernel_init=NORMAL, name="time_0")(emb)
        emb = nn.Dense(self.width, kernel_init=NORMAL, name="time_1")(nn.silu(emb))
        if self.label_rows:
            emb = emb + nn.Embed(self.label_rows, self.width, embedding_init=NORMAL, name="label")(label)
        if embedding is not None:
            emb = emb + Dense(self.width, name="embedding")(embedding.astype(jnp.float32))
        emb = nn.silu(emb)  # every modulation begins with it

        h = Dense(self.width, dtype=self.dtype, name="patch")(patchify(x, self.patch))
        batch, height, width, _ = h.shape
        h = h + grid_embedding(height, width, self.width).astype(self.dtype)[None]
        h = h.reshape(batch, height * width, self.width)
        block = partial(nn.remat(Block) if self.remat else Block, self.heads, self.mlp_ratio, self.dropout)
        for i in range(self.layers):
            h = block(self.attention, self.dtype, name=f"block_{i}")(h, emb, context, dropout_keys)

        modulation = Dense(2 * self.width, "zero", name="modulation_out")(emb)[:, None, :]
        h = modulated(h, *jnp.split(modulation, 2, axis=-1))
        h = Dense(self.patch**2 * self.out_channels, "zero", name="out")(h)
        return unpatchify(h.reshape(batch, height, width, -1), self.patch)

    def _check(self, x, label):
        """Raise ValueError for what would otherwise fail late or be ignored."""
        height, width, patch = *x.shape[1:3], self.patch
        if height % patch or width % patch:
            raise ValueError(f"pictures of {height}x{width} cannot be cut into patches of {patch}x{patch}")
        if self.width % self.heads:
            raise ValueError(f"{self.width} channels cannot be split among {self.heads} attention heads")
        if self.width % 4 or self.width < 8:
            raise ValueError(f"width is {self.width}: sines and cosines of two places need a multiple of 4, at least 8")
        check_dropout(self.dropout)
        check_label(label, self.label_rows)
