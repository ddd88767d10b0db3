"""U-ViT (Bao et al. 2023): a transformer over patches whose conditions are tokens, with long skip connections.

Reference: Bao et al. 2023, "All are worth words: a ViT backbone for diffusion models". Details and initial values are
those of its code.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.attention import position_embedding
from diffjax.nn.dit import patchify, unpatchify
from diffjax.nn.layers import Conv, Dense, check_choice, check_dropout, check_label, timestep_embedding
from diffjax.nn.partitioning import partition
from diffjax.nn.remat import rematerialize
from diffjax.nn.transformer import Block
from diffjax.nn.transformer_layers import add_registers, grid_positions, make_norm, rotary_angles
from diffjax.typing import Images, Labels, PRNGKeys, Times

EPSILON = 1e-5  # of norms
STD = 0.02  # of initial weights and position embeddings


class UViT(nn.Module):
    """Predicts the denoising target from a noisy image and its time, with the interface of DiT.

    Time, label, embedding and context are tokens besides those of the patches. Each block of the second half has the
    tokens of its counterpart in the first half, concatenated with its own and mapped to `width`.

    The defaults are those of U-ViT-S/2.
    """

    out_channels: int
    patch: int = 2  # patch side in pixels
    width: int = 512  # 768 for U-ViT-M, 1024 for U-ViT-L, 1152 for U-ViT-H
    layers: int = 13  # an odd number: 17 for U-ViT-M, 21 for U-ViT-L, 29 for U-ViT-H
    heads: int = 8  # 12 for U-ViT-M, 16 for U-ViT-L and U-ViT-H
    mlp_ratio: float = 4  # hidden width of the MLP in units of `width`, rounded to an integer
    num_label_embeddings: int = 0  # rows of the label embedding table; 0: unconditional on labels
    dropout: float = 0.0  # rate, on the output of each residual branch
    time_embedding: str = "adm"  # "ddpm" | "adm": see timestep_embedding
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # compute dtype; parameters, norm statistics, softmax and output are float32
    norm: str = "layer"  # "layer" | "rms": norms of the tokens
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    activation: str = "gelu"  # of the MLP: "gelu_tanh" | "gelu" | "quick_gelu" | "swiglu", see `mlp_width`
    value_residual: bool = False  # mix the values of each block with those of the first one
    rope: str | bool = False  # False | "grid": rotate queries and keys of patches by their row and column
    registers: int = 0  # learned tokens before all others, discarded after the last block
    output_conv: bool = True  # 3x3 convolution of the output; U-ViT-H has none

    @nn.compact
    def __call__(
        self,
        x: Images,
        t: Times,
        *,
        label: Labels | None = None,
        embedding: Float[Array, "B E"] | None = None,
        context: Float[Array, "B L D"] | None = None,
        augment_label: Float[Array, "B A"] | None = None,
        dropout_keys: PRNGKeys | None = None,
        return_features: bool = False,
        tokens_after: int = 0,
    ) -> Images | tuple[Images, Float[Array, "B h w W"]]:
        """Computes the network output. The parameters fit images of one size, and a context of one length.

        Args:
          x: noisy images [B, H, W, C].
          t: times [B] on the scale of the diffusion steps, 0 to T - 1.
          label: class labels [B], rows of the label embedding table.
          embedding: vector condition [B, E].
          context: sequence [B, L, D].
          augment_label: parameters [B, A] of the augmentation of an image; a linear map of them, without bias, is added
            to the sinusoidal embedding of the time, as in EDM's networks.
          dropout_keys: one key per example; None: no dropout.
          return_features: return the output of the last block, float32 [B, h, w, width].
          tokens_after: number of blocks whose output, of the same form, is returned too; 0: none.

        Returns:
          float32 [B, H, W, out_channels]; with `tokens_after` and the tokens of the patches.

        Raises:
          ValueError: an unknown option, an even number of layers, `patch` does not divide the sides, `heads` does not
            divide `width`, inputs of another size than the parameters, or `label` does not match
            `num_label_embeddings`.
        """
        self._check(x, label)
        normal = nn.initializers.normal(STD)
        dense = partial(nn.Dense, self.width, dtype=self.dtype, kernel_init=normal)

        time = timestep_embedding(t, self.width, convention=self.time_embedding)
        if augment_label is not None:
            time = time + Dense(self.width, bias=False, name="augment")(augment_label.astype(jnp.float32))
        tokens = []
        if self.num_label_embeddings:
            one = nn.initializers.normal(1.0)
            tokens.append(nn.Embed(self.num_label_embeddings, self.width, embedding_init=one, name="label")(label))
        if embedding is not None:
            tokens.append(dense(name="embedding")(embedding))
        tokens = [token[:, None] for token in (*tokens, time)]
        if context is not None:
            tokens.append(dense(name="context")(context))
        patches = patchify(x, self.patch)
        batch, height, width, _ = patches.shape
        patches = Dense(self.width, "torch", dtype=self.dtype, name="patch")(patches)
        tokens.append(patches.reshape(batch, height * width, self.width))
        h = jnp.concatenate([token.astype(self.dtype) for token in tokens], axis=1)
        h = h + position_embedding(self, h.shape[1], self.width, STD).astype(self.dtype)[None]
        h = add_registers(self, h, self.registers, STD)  # without position embeddings, as in the vision transformer
        angles = None
        if self.rope:
            positions = grid_positions(height, width, h.shape[1] - height * width)
            angles = rotary_angles(positions, self.width // self.heads)

        block = rematerialize(Block, self.remat, static_argnums=(2,))  # 2 is `causal`
        fields = (self.layers, self.heads, self.mlp_ratio, self.activation, self.dropout, self.attention)
        options = ("vit", EPSILON, self.dtype, self.norm, self.qk_norm)
        outputs, half, first_values = [], self.layers // 2, None
        for i in range(self.layers):
            if i > half:
                h = dense(name=f"skip_{i}")(jnp.concatenate([h, outputs[self.layers - 1 - i]], axis=-1))
            h = partition(h, "batch", "tokens", None)
            apply = block(*fields, *options, qkv_bias=False, name=f"block_{i}")
            h, values, _ = apply(h, False, None, dropout_keys, angles, first_values)
            first_values = values if self.value_residual and first_values is None else first_values
            outputs.append(h)

        def patches_after(number: int) -> Float[Array, "B h w W"]:
            return outputs[number - 1][:, -height * width :].reshape(batch, height, width, self.width)

        if return_features:
            return patches_after(self.layers).astype(jnp.float32)
        h = make_norm(self.norm, EPSILON, jnp.float32, "norm_out")(patches_after(self.layers))
        y = nn.Dense(self.patch**2 * self.out_channels, kernel_init=normal, name="out")(h)
        y = unpatchify(y, self.patch)
        if self.output_conv:
            y = Conv(self.out_channels, initializer="torch", name="conv_out")(y)
        return (y, patches_after(tokens_after).astype(jnp.float32)) if tokens_after else y

    def _check(self, x: Array, label: Array | None) -> None:
        """Raises ValueError for settings that would fail later or be ignored."""
        height, width, patch = *x.shape[1:3], self.patch
        if height % patch or width % patch:
            raise ValueError(f"patch={patch}: must divide the sides of images of {height}x{width}")
        if self.layers % 2 == 0:
            raise ValueError(f"layers={self.layers}: must be odd, a block between two halves; add one")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads}: must divide width={self.width}")
        if self.width % 2:
            raise ValueError(f"width={self.width}: must be even, for the embedding of the time")
        check_choice("rope", str(self.rope), ("False", "grid"))
        check_dropout(self.dropout)
        check_label(label, self.num_label_embeddings)
