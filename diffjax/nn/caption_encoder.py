"""Text transformer of GLIDE and latent diffusion, trained jointly with the denoiser."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.attention import position_embedding
from diffjax.nn.transformer import transformer_from_fields
from diffjax.typing import NO_TOKEN, Tokens


class CaptionEncoder(nn.Module):
    """Transformer over the tokens of a caption, without a causal mask.

    Positions without a token have a learned padding embedding, one per position, as in GLIDE's code. A caption without
    tokens is the null condition.

    Token, position and padding embeddings are initialised with unit variance, as tokens are in GLIDE's code. So the
    initial states distinguish tokens and positions. With the standard deviations of CLIP, 0.02 and 0.01, the outputs of
    the first blocks dominate, and spatial relations are learned much later.

    Reference: GLIDE (Nichol et al. 2021), section 4.1.
    """

    vocabulary: int  # number of token ids
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4
    activation: str = "gelu"  # "gelu" | "quick_gelu" | "gelu_tanh" | "swiglu"
    remat: str | bool = "none"  # "none" | "dots" | "blocks": values kept for the backward pass, see `rematerialize`
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # compute dtype of the transformer; parameters are float32
    norm: str = "layer"  # "layer" | "rms"
    rope: bool = False  # rotate queries and keys by their positions, besides the learned position embeddings
    qk_norm: bool = False  # RMS norm of queries and keys, per head
    value_residual: bool = False  # mix the values of each block with those of the first one

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[jnp.ndarray, "B L W"]:
        """Computes the state of every position.

        Args:
          tokens: token ids [B, L], with NO_TOKEN at positions without a token.

        Returns:
          Outputs of the final layer norm, float32 [B, L, width].

        Raises:
          ValueError: L differs from that of the parameters.
        """
        length, normal = tokens.shape[1], nn.initializers.normal(1.0)
        embed = nn.Embed(self.vocabulary, self.width, embedding_init=normal, name="token")
        x = embed(jnp.maximum(tokens, 0)) + position_embedding(self, length, self.width, 1.0)[None]
        padding = self.param("padding", normal, (length, self.width), jnp.float32)
        x = jnp.where((tokens == NO_TOKEN)[..., None], padding[None], x)
        return transformer_from_fields(self)(x, "all")
