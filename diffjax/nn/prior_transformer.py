"""The network of unCLIP's diffusion prior (Ramesh et al. 2022, section 2.2)."""

from functools import partial

import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Bool, Float

from diffjax.nn.attention import places
from diffjax.nn.layers import Dense, timestep_embedding
from diffjax.nn.transformer import of_fields
from diffjax.typing import Embeddings, PRNGKeys, Times


class PriorTransformer(nn.Module):
    """Predict CLIP's embedding of an image from a noised one, its time and what CLIP makes of the caption.

    A causal transformer reads, in this order, the caption's tokens, its embedding, the time, the noised embedding and
    a learned query, whose output predicts. The last layer is zero at first.
    """

    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4
    activation: str = "gelu"  # "gelu" | "quick_gelu"
    dropout: float = 0.0  # of what each branch adds
    remat: bool = False  # compute each block again in the backward pass instead of keeping it
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # of the computation; parameters, statistics, softmax and output are float32

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
        """Return float32 [B, D]; `t` is on the scale of the diffusion steps, 0 to T - 1 or between.

        `embedding` is CLIP's of the caption, `context` the states of its text encoder for every token, `context_mask`
        True where there is one: no other is attended to. What is None is not in the sequence. `dropout_keys` None: no
        dropout. Raises ValueError for an unknown option, for a width that is odd or that the heads do not divide, for a
        sequence of another length than the parameters', and for a mask without a context or of another shape.
        """
        if context_mask is not None and (context is None or context_mask.shape != context.shape[:2]):
            found = "no context" if context is None else f"a context of {context.shape[:2]}"
            raise ValueError(f"context_mask is of {context_mask.shape}, for {found}")

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
        h = h + places(self, h.shape[1], self.width, 0.01).astype(self.dtype)[None]

        h = of_fields(self)(h, _mask(context_mask, h.shape[1]), dropout_keys)[:, -1]
        return Dense(x.shape[-1], "zero", name="out")(h)


def _mask(present: Bool[Array, "B L"] | None, length: int) -> Bool[Array, "B T T"] | str:
    """Causal, without the first tokens that are not `present`; but each position sees itself, so that all see one."""
    if present is None:
        return "causal"
    present = jnp.pad(present, ((0, 0), (0, length - present.shape[1])), constant_values=True)
    causal = jnp.tril(jnp.ones((length, length), bool))
    return (causal[None] & present[:, None, :]) | jnp.eye(length, dtype=bool)[None]
