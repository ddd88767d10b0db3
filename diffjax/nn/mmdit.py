"""MMDiT (Esser et al. 2024): a DiT whose blocks transform the tokens of a context along with those of the image.

Reference: Esser et al. 2024, "Scaling rectified flow transformers for high-resolution image synthesis", section 4.
"""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jaxtyping import Float

from diffjax.nn.attention import attend
from diffjax.nn.dit import Block, DiT, adaln_modulate
from diffjax.nn.layers import Dense, Dropout
from diffjax.nn.partitioning import partition
from diffjax.nn.transformer_layers import ACTIVATIONS, ValueResidual, mlp_width, normalize_heads, rotate
from diffjax.typing import PRNGKeys


class JointBlock(Block):
    """Transformer block of two sequences, which have weights of their own and attend to both together.

    Each sequence has the adaLN-zero branches of a DiT's block. The context of the last block is not an output, so it
    has keys and values alone.

    Reference: Esser et al. 2024, section 4 and figure 2.
    """

    last: bool = False  # whether this is the last block

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T W"],
        context: Float[Array, "B L W"],
        emb: Float[Array, "B W"],
        dropout_keys: PRNGKeys | None = None,
        angles: Float[Array, "T+L P"] | None = None,
        first_values: Float[Array, "B T+L W"] | None = None,
    ) -> tuple[Float[Array, "B T W"], Float[Array, "B L W"], Float[Array, "B T+L W"]]:
        """Computes the block's output.

        Args:
          x: tokens of the image [B, T, W].
          context: tokens of the context [B, L, W].
          emb: conditioning embedding [B, W], after SiLU.
          dropout_keys: one key per example; None: no dropout.
          angles: angles of rotary position embeddings of both sequences; None: no rotation.
          first_values: values of the first block, for a value residual; None: none.

        Returns:
          Features of the shapes of `x` and `context`, and the values of the attention.
        """
        width, length = x.shape[-1], x.shape[1]
        dense = partial(Dense, dtype=self.dtype)
        hidden = mlp_width(width, self.mlp_ratio, self.activation)

        def modulation(prefix: str, parts: int) -> list[Float[Array, "B 1 W"]]:
            return jnp.split(dense(parts * width, "zero", name=f"{prefix}modulation")(emb)[:, None, :], parts, axis=-1)

        def attention_inputs(x: Array, shift: Array, scale: Array, prefix: str) -> list[Array]:
            qkv = dense(3 * width, name=f"{prefix}qkv")(adaln_modulate(x, shift, scale, self.norm))
            q, k, v = jnp.split(qkv, 3, axis=-1)
            if self.qk_norm:
                q = normalize_heads(q, self.heads, self.dtype, f"{prefix}norm_q")
                k = normalize_heads(k, self.heads, self.dtype, f"{prefix}norm_k")
            return [q, k, v]

        def drop(h: Array, name: str) -> Array:
            return Dropout(self.dropout, name=f"dropout_{name}")(h, dropout_keys)

        def add_branches(x: Array, attended: Array, parts: list[Array], prefix: str) -> Array:
            gate, mlp_shift, mlp_scale, mlp_gate = parts
            x = x + gate * drop(dense(width, name=f"{prefix}out")(attended), f"{prefix}attention")
            h = dense(hidden, name=f"{prefix}mlp_in")(adaln_modulate(x, mlp_shift, mlp_scale, self.norm))
            h = dense(width, name=f"{prefix}mlp_out")(ACTIVATIONS[self.activation](h))
            return x + mlp_gate * drop(h, f"{prefix}mlp")

        shift, scale, *parts = modulation("", 6)
        context_shift, context_scale, *context_parts = modulation("context_", 2 if self.last else 6)
        both = zip(
            attention_inputs(x, shift, scale, ""),
            attention_inputs(context, context_shift, context_scale, "context_"),
            strict=True,
        )
        q, k, v = (jnp.concatenate(pair, axis=1) for pair in both)
        q, k = rotate(q, angles), rotate(k, angles)
        if first_values is not None:
            v = ValueResidual(name="value_residual")(v, first_values)
        h = v if self.identity_map else attend(q, k, v, self.heads, self.attention)
        x = add_branches(x, h[:, :length], parts, "")
        if not self.last:
            context = add_branches(context, h[:, length:], context_parts, "context_")
        return x, context, v


class MMDiT(DiT):
    """DiT with joint blocks in the place of cross-attention to a context, which is required. Fields as in `DiT`."""

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
        if self.scan_blocks:
            raise ValueError("scan_blocks=True: is only supported for architecture=dit; set it to False")
        if context is None:
            raise ValueError("architecture=mmdit: requires a context, such as conditions.caption; add one, or use dit")
        context = Dense(self.width, dtype=self.dtype, name="context")(context)
        if angles is not None:
            angles = jnp.pad(angles, ((0, context.shape[1]), (0, 0)))  # the context is not rotated
        first_values, outputs = None, []
        for i in range(num_blocks):
            h, angles = self._enter(class_tokens, i, h, angles)
            if i not in self.skipped_blocks:
                block = self._block(JointBlock, i, last=i == self.layers - 1)
                assert context is not None  # only the last block has none
                h, context = (partition(tokens, "batch", "tokens", None) for tokens in (h, context))
                h, context, values = block(h, context, emb, dropout_keys, angles, first_values)
                if self.value_residual and first_values is None:
                    first_values = values
            outputs.append(h)
        return outputs
