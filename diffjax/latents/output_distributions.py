"""How well an image is reconstructed. A public function of this file is a choice a config can name.

Images are [B, H, W, C] in [-1, 1], a decoder's output [B, H, W, C, P]: P numbers a value.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.typing import Images, PRNGKeys

Output = Float[Array, "B H W C P"]
_HALF_LEVEL = 1.0 / 255.0  # half of what lies between two of 256 levels in [-1, 1]


class Likelihood(NamedTuple):
    """p(x | output)."""

    parameters: int  # P
    nll: Callable[[Images, Output], Float[Array, "B"]]  # -log p in nats a value, or an error in its place
    mean: Callable[[Output], Images]
    draw: Callable[[PRNGKeys, Output], Images]
    exact: bool = False  # whether `nll` is that of 8-bit levels


def l1() -> Likelihood:
    """|x - mean|: latent diffusion's first stages (Rombach et al. 2022). No probability."""
    return _error(jnp.abs)


def l2(*, variance: float = 1.0) -> Likelihood:
    """(x - mean)^2 / variance. VQ-VAE's code divides by the variance of the data. No probability.

    Raises ValueError unless `variance` is finite and above 0.
    """
    if not 0 < variance < float("inf"):
        raise ValueError(f"variance is {variance:g}: a finite number above 0")
    return _error(lambda difference: difference**2 / variance)


def logistic() -> Likelihood:
    """A logistic distribution over the 256 levels, mean and scale of each value learned: Salimans et al. 2017, eq. 2.

    The first and the last level have the tails.
    """

    def parameters(output):
        return output[..., 0], jnp.clip(output[..., 1], -7.0, 7.0)

    def nll(x, output):
        mean, log_scale = parameters(output)
        above, below = ((x + half - mean) * jnp.exp(-log_scale) for half in (_HALF_LEVEL, -_HALF_LEVEL))
        # log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))
        width = 2 * _HALF_LEVEL * jnp.exp(-log_scale)
        inside = jax.nn.log_sigmoid(above) + jax.nn.log_sigmoid(-below) + jnp.log(-jnp.expm1(-width))
        first, last = jax.nn.log_sigmoid(above), jax.nn.log_sigmoid(-below)
        log_p = jnp.where(x < -1 + _HALF_LEVEL, first, jnp.where(x > 1 - _HALF_LEVEL, last, inside))
        return -_mean(log_p)

    def draw(keys, output):
        mean, log_scale = parameters(output)
        noise = jax.vmap(lambda key: jax.random.logistic(key, mean.shape[1:]))(keys)
        level = jnp.round((mean + jnp.exp(log_scale) * noise + 1) / (2 * _HALF_LEVEL))
        return jnp.clip(level, 0, 255) * 2 * _HALF_LEVEL - 1

    return Likelihood(2, nll, lambda output: jnp.clip(output[..., 0], -1, 1), draw, exact=True)


def logit_laplace(*, epsilon: float = 0.1, least_scale: float = 0.0) -> Likelihood:
    """A Laplace distribution of the logit of (1 - 2 epsilon) x + epsilon, x in [0, 1]: Ramesh et al. 2021, app. A.3.

    A density over (0, 1), of values that lie in (epsilon, 1 - epsilon), where logits are finite. Where pictures have
    areas of one colour it has no bound; a `least_scale` gives it one. Raises ValueError unless 0 < epsilon < 1/2 and
    the least scale is 0 or more.
    """
    if not (0 < epsilon < 0.5 and 0 <= least_scale < float("inf")):
        raise ValueError(
            f"epsilon is {epsilon:g}, least_scale {least_scale:g}: above 0 and below 0.5, and a finite number from 0"
        )

    def nll(x, output):
        location, scale = output[..., 0], jnp.exp(output[..., 1]) + least_scale
        y = (1 - 2 * epsilon) * (x + 1) / 2 + epsilon
        logit = jnp.log(y) - jnp.log1p(-y)
        log_p = -jnp.log(2 * scale * y * (1 - y)) - jnp.abs(logit - location) / scale
        return -_mean(log_p)

    def mean(output):
        y = (jax.nn.sigmoid(output[..., 0]) - epsilon) / (1 - 2 * epsilon)
        return 2 * jnp.clip(y, 0, 1) - 1

    return Likelihood(2, nll, mean, lambda keys, output: mean(output))


def _error(of: Callable) -> Likelihood:
    def nll(x, output):
        return _mean(of(x - output[..., 0]))

    def mean(output):
        return output[..., 0]

    return Likelihood(1, nll, mean, lambda keys, output: mean(output))


def _mean(values: Images) -> Float[Array, "B"]:
    return values.reshape(values.shape[0], -1).mean(axis=-1)
