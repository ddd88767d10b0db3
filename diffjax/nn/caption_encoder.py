"""The text transformer of GLIDE and latent diffusion, which is trained with the denoiser that reads it."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Float

from diffjax.nn.attention import places
from diffjax.nn.transformer import of_fields
from diffjax.typing import NO_TOKEN, Tokens


class CaptionEncoder(nn.Module):
    """A transformer over a caption, all of whose tokens see one another (GLIDE: Nichol et al. 2021, section 3.1).

    Where there is no token a learned vector stands, one for each place, as in GLIDE's code: a caption of no tokens at
    all says nothing.

    Tokens, places and padding begin with unit variance, as tokens do in GLIDE's code: beside them what the first blocks
    add is small, and states tell tokens and places apart from the first step on. With CLIP's 0.02 and 0.01 they are
    lost among it, and which object stands on which side takes much longer to learn.
    """

    vocabulary: int  # tokens are below it
    width: int
    layers: int
    heads: int
    mlp_ratio: float = 4
    activation: str = "gelu"  # "gelu" | "quick_gelu"
    remat: bool = False  # compute each block again in the backward pass instead of keeping it
    attention: str = "auto"  # "auto" | "xla" | "cudnn"
    dtype: DTypeLike = jnp.float32  # of the transformer's computation

    @nn.compact
    def __call__(self, tokens: Tokens) -> Float[jnp.ndarray, "B L W"]:
        """Return float32 states of all places, behind the last norm.

        Raises ValueError for captions of another length than the parameters'.
        """
        length, normal = tokens.shape[1], nn.initializers.normal(1.0)
        embed = nn.Embed(self.vocabulary, self.width, embedding_init=normal, name="token")
        x = embed(jnp.maximum(tokens, 0)) + places(self, length, self.width, 1.0)[None]
        padding = self.param("padding", normal, (length, self.width), jnp.float32)
        x = jnp.where((tokens == NO_TOKEN)[..., None], padding[None], x)
        return of_fields(self)(x, "all")
