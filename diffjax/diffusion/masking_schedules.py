"""Masking schedules of discrete diffusion. A public function of this file is a choice a config can name.

A schedule maps a time t in [0, 1] to the probability 1 - alpha(t) that a token is masked. It rises from 0 at t = 0, the
data, to 1 at t = 1, where all tokens are masked.

Reference: MD4 (Shi et al. 2024, "Simplified and generalized masked diffusion for discrete data"), its code.
"""

import math

from jax import numpy as jnp
from jaxtyping import Array, Float


def linear(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns t."""
    return t


def cosine(t: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns cos(pi/2 (1 - t)): the first steps of sampling unmask few tokens, as few are known.

    Reference: MaskGIT (Chang et al. 2022), whose fraction of masked tokens is cos(pi/2 r) with r = 1 - t.
    """
    return jnp.sin(math.pi / 2 * t)  # equal to the cosine, and exact near 0


def polynomial(t: Float[Array, "..."], *, power: float = 2.0) -> Float[Array, "..."]:
    """Returns t^power, with `power` above 0; 1 is the linear schedule.

    Raises:
      ValueError: `power` is not a finite number above 0.
    """
    if not 0 < power < math.inf:
        raise ValueError(f"power={power:g}: must be a finite number above 0")
    return t**power
