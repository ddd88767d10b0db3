"""Network of the diffusion prior of unCLIP (Ramesh et al. 2022, section 2.2)."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from diffjax.nn.attention import position_embedding
from diffjax.nn.layers import Dense, timestep_embedding
from diffjax.nn.transformer import transformer_from_fields
from diffjax.typing import Embeddings, PRNGKeys, Times


class PriorTransformer(nn.Module):
    """Predicts the CLIP embedding of an image from the noised embedding, its time and the CLIP text outputs.

    The sequence of the causal transformer is: states of the text tokens, text embedding, time, noised image embedding,
    learned query. The output at the query is the prediction. The last layer is initialised to zero.

    Reference: unCLIP (Ramesh et al. 2022), section 2.2.
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4
    activation: str = "gelu"  # "gelu" | "quick_gelu" | "gelu_tanh" | "swiglu"
    dropout: float = 0.0  # rate, on the output of each residual branch
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # compute dtype; parameters, norm statistics, softmax and output are float32
    norm: str = "layer"  # "layer" | "rms"
    rope: bool = False  # rotate queries and keys by their positions, besides the learned position embeddings
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    value_residual: bool = False  # mix the values of each block with those of the first one

    @nn.compact
    def __call__(
        self,
        x: Embeddings,
        t: Times,
        *,
        embedding: Float[Array, "B E"] | None = None,
        context: Float[Array, "B L C"] | None = None,
        context_mask: Bool[Array, "B L"] | None = None,
        dropout_keys: PRNGKeys | None = None,
    ) -> Embeddings:
        """Computes the network output.

        Args:
          x: noised image embeddings [B, D].
          t: times [B] on the scale of the diffusion steps, 0 to T - 1.
          embedding: CLIP text embeddings [B, E]; None: not in the sequence.
          context: states of the CLIP text encoder [B, L, C]; None: not in the sequence.
          context_mask: True [B, L] where the text has a token; other positions are not attended to. None: everywhere.
          dropout_keys: one key per example; None: no dropout.

        Returns:
          float32 [B, D], zero at initialisation.

        Raises:
          ValueError: an unknown option, an odd width or one that `heads` does not divide, a sequence of another length
            than the parameters, or a mask without a context or of another shape.
        """
        if context_mask is not None and (context is None or context_mask.shape != context.shape[:2]):
            shape = "None" if context is None else f"of shape {context.shape}"
            raise ValueError(f"context_mask: has shape {context_mask.shape}, but context is {shape}")

        dense = partial(Dense, self.width, "torch")
        project = partial(dense, dtype=self.dtype)
        time = dense(name="time_0")(timestep_embedding(t, self.width, convention="adm"))
        time = dense(name="time_1")(nn.silu(time))
        query = self.param("query", nn.initializers.normal(0.01), (self.width,), jnp.float32)

        sequence = [] if context is None else [project(name="context")(context)]
        vectors = [] if embedding is None else [project(name="embedding")(embedding)]
        vectors += [time, project(name="image")(x), jnp.broadcast_to(query, time.shape)]
        sequence += [vector[:, None, :].astype(self.dtype) for vector in vectors]
        h = jnp.concatenate(sequence, axis=1)
        h = h + position_embedding(self, h.shape[1], self.width, 0.01).astype(self.dtype)[None]

        h = transformer_from_fields(self)(h, _mask(context_mask, h.shape[1]), dropout_keys)[:, -1]
        return Dense(x.shape[-1], "zero", name="out")(h)


def _mask(present: Bool[Array, "B L"] | None, length: int) -> Bool[Array, "B T T"] | str:
    """Returns the causal mask without context positions that are not `present`; every position attends to itself."""
    if present is None:
        return "causal"
    present = jnp.pad(present, ((0, 0), (0, length - present.shape[1])), constant_values=True)
    causal = jnp.tril(jnp.ones((length, length), bool))
    return (causal[None] & present[:, None, :]) | jnp.eye(length, dtype=bool)[None]
