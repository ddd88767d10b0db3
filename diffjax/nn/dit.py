"""DiT (Peebles & Xie 2023): a transformer over image patches, as the denoiser.

With a context, its blocks have cross-attention, as in PixArt-alpha (Chen et al. 2023, section 2.3). Initialisation is
that of DiT's code: Xavier uniform (the layers' "ddpm"), except label tables and time layers.

Options of later transformers: RMS norms, rotary position embeddings, QK-norm, SwiGLU, a bottleneck of the patch
embedding and in-context class tokens are those of JiT (Li & He 2025, "Back to basics: Let denoising generative models
denoise"), registers those of Darcet et al. 2023, "Vision transformers need registers", value residuals those of Zhou et
al. 2024.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.attention import attend
from diffjax.nn.layers import Dense, Dropout, check_choice, check_dropout, check_label, timestep_embedding
from diffjax.nn.partitioning import partition
from diffjax.nn.remat import rematerialize
from diffjax.nn.transformer_layers import (
    ACTIVATIONS,
    ValueResidual,
    add_registers,
    grid_positions,
    make_norm,
    mlp_width,
    normalize_heads,
    rotary_angles,
    rotate,
)
from diffjax.typing import Images, Labels, PRNGKeys, Times

FREQUENCIES = 256  # values of the timestep embedding, sines and cosines together
STD = 0.02  # of initial weights
NORMAL = nn.initializers.normal(STD)


def patchify(x: Float[Array, "B H W C"], patch: int) -> Float[Array, "B h w patch*patch*C"]:
    """Returns each `patch` x `patch` square of pixels as one vector, in the order rows, columns, channels."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels).swapaxes(2, 3)
    return x.reshape(batch, height // patch, width // patch, patch * patch * channels)


def unpatchify(x: Float[Array, "B h w patch*patch*C"], patch: int) -> Float[Array, "B H W C"]:
    """Returns the image whose patches are given: the inverse of `patchify`."""
    batch, height, width, values = x.shape
    x = x.reshape(batch, height, width, patch, patch, values // patch**2).swapaxes(2, 3)
    return x.reshape(batch, height * patch, width * patch, values // patch**2)


def grid_embedding(height: int, width: int, dim: int) -> Float[Array, "h w dim"]:
    """Returns fixed sinusoidal position embeddings of a grid, float32.

    The first half of the values embeds the column, the second half the row. Each half has sines, then cosines, of 0, 1,
    2, ... at dim / 4 frequencies from 1 towards 1/10000, which is excluded.

    Args:
      height: rows of the grid.
      width: columns of the grid.
      dim: values per position, a multiple of 4 and at least 8.
    """

    def line(length):  # "adm" has the same frequencies, with the cosines first
        return jnp.roll(timestep_embedding(jnp.arange(length), dim // 2, convention="adm"), dim // 4, axis=-1)

    columns, rows, shape = line(width)[None, :, :], line(height)[:, None, :], (height, width, dim // 2)
    return jnp.concatenate([jnp.broadcast_to(columns, shape), jnp.broadcast_to(rows, shape)], axis=-1)


def adaln_modulate(
    x: Float[Array, "B T W"], shift: Float[Array, "B 1 W"], scale: Float[Array, "B 1 W"], norm: str = "layer"
) -> Float[Array, "B T W"]:
    """Returns `norm(x) * (1 + scale) + shift` in float32, with a norm without parameters (DiT, section 3.2)."""
    x = make_norm(norm, 1e-6, jnp.float32, learned=False)(x)
    return x * (1 + scale.astype(jnp.float32)) + shift


class Block(nn.Module):
    """Transformer block with residual branches: self-attention, cross-attention to a context if present, MLP.

    Self-attention and MLP have adaptive layer norms and gates, computed from the conditioning embedding by a linear
    layer initialised to zero (adaLN-zero). Cross-attention has neither, as in PixArt-alpha. The block is the identity
    at initialisation.

    Reference: DiT (Peebles & Xie 2023), section 3.2; PixArt-alpha (Chen et al. 2023), section 2.3.
    """

    heads: int
    mlp_ratio: float = 4  # hidden width of the MLP in units of `width`, rounded to an integer
    dropout: float = 0.0
    attention: str = "auto"
    dtype: DTypeLike = jnp.float32
    identity_map: bool = False  # each token attends to itself alone: perturbed-attention guidance
    norm: str = "layer"  # "layer" | "rms"
    activation: str = "gelu_tanh"  # of ACTIVATIONS
    qk_norm: bool = False  # RMS norm of queries and keys, per head

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T W"],
        emb: Float[Array, "B W"],
        context: Float[Array, "B L D"] | None = None,
        dropout_keys: PRNGKeys | None = None,
        angles: Float[Array, "T P"] | None = None,
        first_values: Float[Array, "B T W"] | None = None,
    ) -> tuple[Float[Array, "B T W"], Float[Array, "B T W"]]:
        """Computes the block's output.

        Args:
          x: tokens [B, T, W].
          emb: conditioning embedding [B, W], after SiLU.
          context: sequence [B, L, D] to attend to; None: no cross-attention.
          dropout_keys: one key per example; None: no dropout.
          angles: angles of rotary position embeddings, one per pair of a head's channels; None: no rotation.
          first_values: values of the first block's self-attention, for a value residual; None: none.

        Returns:
          Features of the shape of `x`, and the values of the self-attention.
        """
        width = x.shape[-1]
        dense = partial(Dense, dtype=self.dtype)
        modulate = partial(adaln_modulate, norm=self.norm)

        def head_norm(x, name):
            return normalize_heads(x, self.heads, self.dtype, name) if self.qk_norm else x

        def drop(h, name):
            return Dropout(self.dropout, name=f"dropout_{name}")(h, dropout_keys)

        modulation = dense(6 * width, "zero", name="modulation")(emb)[:, None, :]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(modulation, 6, axis=-1)

        q, k, v = jnp.split(dense(3 * width, name="qkv")(modulate(x, shift, scale)), 3, axis=-1)
        q, k = rotate(head_norm(q, "norm_q"), angles), rotate(head_norm(k, "norm_k"), angles)
        if first_values is not None:
            v = ValueResidual(name="value_residual")(v, first_values)
        h = dense(width, name="out")(v if self.identity_map else attend(q, k, v, self.heads, self.attention))
        x = x + gate * drop(h, "attention")

        if context is not None:
            q = head_norm(dense(width, name="context_q")(x), "context_norm_q")
            k, context_v = jnp.split(dense(2 * width, name="context_kv")(context), 2, axis=-1)
            k = head_norm(k, "context_norm_k")
            h = dense(width, "zero", name="context_out")(attend(q, k, context_v, self.heads, self.attention))
            x = x + drop(h, "context")

        hidden = mlp_width(width, self.mlp_ratio, self.activation)
        h = dense(hidden, name="mlp_in")(modulate(x, mlp_shift, mlp_scale))
        h = dense(width, name="mlp_out")(ACTIVATIONS[self.activation](h))
        return x + mlp_gate * drop(h, "mlp"), v


class DiT(nn.Module):
    """Predicts the denoising target from a noisy image and its time, with the interface of UNet.

    The defaults are those of DiT-S/2.
    """

    out_channels: int
    patch: int = 2  # patch side in pixels
    width: int = 384  # 768 for DiT-B, 1024 for DiT-L, 1152 for DiT-XL
    layers: int = 12  # 12 for DiT-B, 24 for DiT-L, 28 for DiT-XL
    heads: int = 6  # 12 for DiT-B, 16 for DiT-L, 16 for DiT-XL
    mlp_ratio: float = 4  # hidden width of the MLP in units of `width`, rounded to an integer
    num_label_embeddings: int = 0  # rows of the label embedding table; 0: unconditional on labels
    dropout: float = 0.0  # rate, on the output of each residual branch
    time_embedding: str = "adm"  # "ddpm" | "adm": see timestep_embedding
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    scan_blocks: bool = False  # compile one block and loop over all
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # compute dtype; parameters, norm statistics, softmax and output are float32
    identity_attention: Sequence[int] = ()  # blocks whose tokens attend to themselves alone
    skipped_blocks: Sequence[int] = ()  # blocks that are left out; both count from the first one, 0
    norm: str = "layer"  # "layer" | "rms": norms of the tokens
    positions: str = "sincos"  # "sincos" (added to the patches) | "rope" (queries and keys are rotated) | "both"
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    activation: str = "gelu_tanh"  # of the MLP: "gelu_tanh" | "gelu" | "quick_gelu" | "swiglu", see `mlp_width`
    registers: int = 0  # learned tokens before those of the patches, discarded after the last block
    value_residual: bool = False  # mix the values of self-attention with those of the first block
    bottleneck: int = 0  # channels that patches are mapped to before `width`; 0: mapped to `width` at once
    class_tokens: int = 0  # copies of the label's embedding, each with a learned summand, as tokens; 0: none
    class_tokens_from: int = 0  # first block that has these tokens, from 0

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
        cache_branch: int | None = None,
        deep: Float[Array, "B ..."] | None = None,
    ) -> Images | tuple[Images, Array]:
        """Computes the network output. The parameters fit images of any size.

        Args:
          x: noisy images [B, H, W, C].
          t: times [B] on the scale of the diffusion steps, 0 to T - 1.
          label: class labels [B], rows of the label embedding table.
          embedding: vector condition [B, E]; a linear map of it is added to the time embedding, as the label's is.
          context: sequence [B, L, D] that every block attends to. Parameters exist if it was set at initialisation.
          augment_label: parameters [B, A] of the augmentation of an image; a linear map of them, without bias, is added
            to the sinusoidal embedding of the time, as in EDM's networks.
          dropout_keys: one key per example; None: no dropout.
          return_features: return the output of the last block, float32 [B, h, w, width].
          tokens_after: number of blocks whose output, of the same form, is returned too; 0: none.
          cache_branch: block, from 0, after which the sum of the residuals of the other blocks is returned too, or
            replaced by `deep`: Delta-Cache of Delta-DiT (Chen et al. 2024). None: no caching.
          deep: sum of the residuals of the blocks after `cache_branch`, [B, T, W] for the T tokens of the patches, from
            another step, or a scalar. These blocks are not evaluated.

        Returns:
          float32 [B, H, W, out_channels], zero at initialisation. With `tokens_after` also the tokens of the patches,
          with `cache_branch` also the sum of the residuals after this block, or with `deep` of those up to it.

        Raises:
          ValueError: an unknown option, `patch` does not divide the sides, 4 or `heads` do not divide `width`, `label`
            does not match `num_label_embeddings`, class tokens without labels, or `scan_blocks` with unequal blocks.
        """
        self._check(x, label)
        emb = timestep_embedding(t, FREQUENCIES, convention=self.time_embedding)
        if augment_label is not None:
            emb = emb + Dense(FREQUENCIES, bias=False, name="augment")(augment_label.astype(jnp.float32))
        emb = nn.Dense(self.width, kernel_init=NORMAL, name="time_0")(emb)
        emb = nn.Dense(self.width, kernel_init=NORMAL, name="time_1")(nn.silu(emb))
        class_tokens = None
        if self.num_label_embeddings:
            label_emb = nn.Embed(self.num_label_embeddings, self.width, embedding_init=NORMAL, name="label")(label)
            emb, class_tokens = emb + label_emb, self._make_class_tokens(label_emb)
        if embedding is not None:
            emb = emb + Dense(self.width, name="embedding")(embedding.astype(jnp.float32))
        emb = nn.silu(emb)  # common to all modulations

        h = patchify(x, self.patch)
        if self.bottleneck:
            h = Dense(self.bottleneck, bias=False, dtype=self.dtype, name="bottleneck")(h)
        h = Dense(self.width, dtype=self.dtype, name="patch")(h)
        batch, height, width, _ = h.shape
        if self.positions != "rope":
            h = h + grid_embedding(height, width, self.width).astype(self.dtype)[None]
        h, angles = add_registers(self, h.reshape(batch, height * width, self.width), self.registers, STD), None
        if self.positions != "sincos":
            angles = rotary_angles(grid_positions(height, width, self.registers), self.width // self.heads)
        first = h[:, -height * width :]
        num_blocks = self.layers if cache_branch is None or deep is None else cache_branch + 1
        outputs = self._apply_blocks(h, emb, context, dropout_keys, angles, class_tokens, num_blocks)
        outputs = [output[:, -height * width :] for output in outputs]  # without registers and class tokens
        last = outputs[-1] if deep is None else outputs[-1] + deep

        def tokens(number: int) -> Float[Array, "B h w W"]:
            return outputs[number - 1].reshape(batch, height, width, self.width)

        if return_features:
            return tokens(self.layers).astype(jnp.float32)

        modulation = Dense(2 * self.width, "zero", name="modulation_out")(emb)[:, None, :]
        shift, scale = jnp.split(modulation, 2, axis=-1)
        h = adaln_modulate(last, shift, scale, self.norm)
        h = Dense(self.patch**2 * self.out_channels, "zero", name="out")(h)
        y = unpatchify(h.reshape(batch, height, width, -1), self.patch)
        if cache_branch is not None:
            return y, last - outputs[cache_branch] if deep is None else outputs[cache_branch] - first
        return (y, tokens(tokens_after).astype(jnp.float32)) if tokens_after else y

    @property
    def num_cache_branches(self) -> int:
        """Number of blocks that others follow."""
        return self.layers - 1

    def _apply_blocks(
        self,
        h: Float[Array, "B T W"],
        emb: Float[Array, "B W"],
        context: Float[Array, "B L D"] | None,
        dropout_keys: PRNGKeys | None,
        angles: Float[Array, "T P"] | None,
        class_tokens: Float[Array, "B N W"] | None,
        num_blocks: int,
    ) -> list[Float[Array, "B T W"]]:
        """Returns the tokens after each of the first blocks; for the arguments see `Block` and `_enter`."""
        has_equal_blocks = not self.skipped_blocks and not self.identity_attention
        if self.scan_blocks and has_equal_blocks and not self.is_initializing():
            h, angles = self._enter(class_tokens, 0, h, angles)
            return self._scan(h, emb, context, dropout_keys, angles, num_blocks)
        first_values, outputs = None, []
        for i in range(num_blocks):
            h, angles = self._enter(class_tokens, i, h, angles)
            if i not in self.skipped_blocks:
                h = partition(h, "batch", "tokens", None)
                h, values = self._block(Block, i)(h, emb, context, dropout_keys, angles, first_values)
                if self.value_residual and first_values is None:
                    first_values = values
            outputs.append(h)
        return outputs

    def _scan(
        self,
        h: Float[Array, "B T W"],
        emb: Float[Array, "B W"],
        context: Float[Array, "B L D"] | None,
        dropout_keys: PRNGKeys | None,
        angles: Float[Array, "T P"] | None,
        num_blocks: int,
    ) -> list[Float[Array, "B T W"]]:
        """Returns what `_apply_blocks` does, by a scan over stacked parameters. Dropout has other masks."""
        params = self.variables["params"]
        blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(params[f"block_{i}"] for i in range(num_blocks)))
        block = self._block(Block, 0, parent=None)

        def apply(h, inputs):
            values, i = inputs
            # All blocks have the path of the first, which the masks of dropout depend on.
            keys = None if dropout_keys is None else jax.vmap(jax.random.fold_in, (0, None))(dropout_keys, i)
            h, _ = block.apply({"params": values}, partition(h, "batch", "tokens", None), emb, context, keys, angles)
            return h, h

        last, outputs = lax.scan(apply, h, (blocks, jnp.arange(num_blocks)))
        return [*(outputs[i] for i in range(num_blocks - 1)), last]

    def _make_class_tokens(self, label_emb: Float[Array, "B W"]) -> Float[Array, "B N W"] | None:
        """Returns copies of the label's embedding, each with a learned summand; None without `class_tokens`."""
        if not self.class_tokens:
            return None
        places = self.param("class_tokens", NORMAL, (self.class_tokens, self.width), jnp.float32)
        return (label_emb[:, None] + places[None]).astype(self.dtype)

    def _enter(
        self,
        class_tokens: Float[Array, "B N W"] | None,
        i: int,
        h: Float[Array, "B T W"],
        angles: Float[Array, "T P"] | None,
    ) -> tuple[Float[Array, "B T W"], Float[Array, "T P"] | None]:
        """Returns the inputs of block `i`, with class tokens from `class_tokens_from` on, which are not rotated."""
        if class_tokens is None or i != self.class_tokens_from:
            return h, angles
        if angles is not None:
            angles = jnp.pad(angles, ((self.class_tokens, 0), (0, 0)))
        return jnp.concatenate([class_tokens, h], axis=1), angles

    def _block(self, kind: type[nn.Module], i: int, **fields: Any) -> Any:
        """Returns block `i`, a Block or another kind with its fields."""
        block: Any = rematerialize(kind, self.remat)
        return block(
            self.heads,
            self.mlp_ratio,
            self.dropout,
            self.attention,
            self.dtype,
            identity_map=i in self.identity_attention,
            norm=self.norm,
            activation=self.activation,
            qk_norm=self.qk_norm,
            **fields,
            name=f"block_{i}",
        )

    def _check(self, x: Array, label: Array | None) -> None:
        """Raises ValueError for settings that would fail later or be ignored."""
        height, width, patch = *x.shape[1:3], self.patch
        if height % patch or width % patch:
            raise ValueError(f"patch={patch}: must divide the sides of images of {height}x{width}")
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads}: must divide width={self.width}")
        if self.width % 4 or self.width < 8:
            raise ValueError(f"width={self.width}: must be a multiple of 4, at least 8, for the position embeddings")
        if self.class_tokens and not self.num_label_embeddings:
            raise ValueError(f"class_tokens={self.class_tokens}: require a condition on the class label")
        if not 0 <= self.class_tokens_from < self.layers:
            raise ValueError(
                f"class_tokens_from={self.class_tokens_from}: must be a block, from 0 to {self.layers - 1}"
            )
        if self.class_tokens and self.class_tokens_from and self.value_residual:
            raise ValueError(
                f"class_tokens_from={self.class_tokens_from}: must be 0 with value_residual, which mixes the values of "
                "the same tokens"
            )
        if self.scan_blocks and (self.value_residual or self.class_tokens_from):
            raise ValueError("scan_blocks=True: requires equal blocks, so value_residual=False and class_tokens_from=0")
        check_choice("positions", self.positions, ("sincos", "rope", "both"))
        check_dropout(self.dropout)
        check_label(label, self.num_label_embeddings)
