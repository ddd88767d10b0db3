"""How a token is drawn from logits: temperature, top-k (Fan et al. 2018), top-p (Holtzman et al. 2020).

All three may be traced scalars, so that one compilation sweeps them.
"""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float, Int

from diffjax.typing import PRNGKey

Number = Float[Array, ""] | float
Count = Int[Array, ""] | int


def filtered(
    logits: Float[Array, "... K"], *, temperature: Number = 1.0, top_k: Count = 0, top_p: Number = 1.0
) -> Float[Array, "... K"]:
    """Logits of the distribution to draw from, float32; tokens that are out have -inf.

    Args:
      temperature: > 0; the logits are divided by it.
      top_k: keep this many of the most probable tokens; 0, or K and above: all.
      top_p: of those, keep the fewest whose probability together reaches it, the most probable first (nucleus, section
        3.1); 1: all. One is always kept.

    Of equal logits the first counts as the greater, as for argmax.
    """
    logits = logits.astype(jnp.float32) / temperature
    rank = lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    order = jnp.argsort(-logits, axis=-1, stable=True)
    descending = jnp.take_along_axis(logits, order, -1)

    kept = (rank < top_k) | jnp.less_equal(top_k, 0)
    p = jax.nn.softmax(jnp.where(kept, descending, -jnp.inf), -1)
    before = jnp.cumsum(p, -1) - p
    # Rounded, the sum before the last tokens may be 1: comparing alone would lose them where nothing is to be lost.
    kept &= (before < top_p) | jnp.greater_equal(top_p, 1.0) | (rank == 0)

    kept = jnp.take_along_axis(kept, jnp.argsort(order, -1), -1)
    return jnp.where(kept, logits, -jnp.inf)


def draw(
    key: PRNGKey,
    logits: Float[Array, "... K"],
    *,
    temperature: Number = 1.0,
    top_k: Count = 0,
    top_p: Number = 1.0,
) -> Int[Array, "..."]:
    """Tokens of one example, all from its key: what `filtered` leaves, in proportion to its probability."""
    return jax.random.categorical(key, filtered(logits, temperature=temperature, top_k=top_k, top_p=top_p))
