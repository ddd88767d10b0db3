"""A learned weight of the loss per noise level, which makes the gradients of all levels equally large.

The loss becomes exp(w) loss - w, with w a function of log(sigma / alpha) that is linear in random Fourier features. At
its optimum w = -log E[loss] at each level.

Reference: EDM2 (Karras et al. 2024), eq. 21 and 22, with u = -w; sCM (Lu & Song 2025), algorithm 1.
"""

from collections.abc import Mapping

import jax
import numpy as np
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.noise import Noise, log_snr

Params = Mapping[str, Array]

_FEATURES = 128
_RNG = np.random.default_rng(0)
_FREQUENCIES, _PHASES = _RNG.normal(size=_FEATURES), _RNG.uniform(size=_FEATURES)


def init() -> dict[str, Array]:
    """Returns initial parameters, with which w = 0 at all levels."""
    return {"kernel": jnp.zeros(_FEATURES), "bias": jnp.zeros(())}


def log_weight(params: Params, noise: Noise) -> Float[Array, " B"]:
    """Returns w at the noise levels of examples, leaves [B]."""

    def one(position: Float[Array, ""]) -> Array:
        features = np.sqrt(2.0) * jnp.cos(2.0 * np.pi * (position * _FREQUENCIES + _PHASES))
        return features @ params["kernel"] + params["bias"]

    # log(sigma / alpha) / 4, as of EDM's networks
    return jax.vmap(one)(jnp.clip(-log_snr(noise) / 8.0, -10.0, 10.0))


def weighted(params: Params, noise: Noise, loss: Float[Array, " B"]) -> Float[Array, " B"]:
    """Returns exp(w) loss - w for losses at the noise levels of examples, leaves [B]."""
    w = log_weight(params, noise)
    return jnp.exp(w) * loss - w
