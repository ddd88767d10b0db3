"""Output distributions of decoders. A public function of this file is a choice a config can name.

Images are [B, H, W, C] in [-1, 1]. The output of a decoder is [B, H, W, C, P], with P parameters per value.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.typing import Images, PRNGKeys

Output = Float[Array, "B H W C P"]
_HALF_LEVEL = 1.0 / 255.0  # half the distance between two of the 256 levels in [-1, 1]


class OutputDistribution(NamedTuple):
    """The distribution p(x | output) of an image, given the output of a decoder.

    Attributes:
      parameters: P, parameters per value.
      nll: maps (images, output) to -log p in nats per value, or to an error for choices that define no distribution.
      mean: maps the output to its mean image.
      sample: maps (keys [B], output) to a sample of each image.
      exact: whether `nll` is that of the 256 discrete levels.
    """

    parameters: int
    nll: Callable[[Images, Output], Float[Array, " B"]]
    mean: Callable[[Output], Images]
    sample: Callable[[PRNGKeys, Output], Images]
    exact: bool = False


def l1() -> OutputDistribution:
    """|x - mean|; defines no distribution.

    Reference: first stages of latent diffusion (Rombach et al. 2022).
    """
    return _error(jnp.abs)


def l2(*, variance: float = 1.0) -> OutputDistribution:
    """(x - mean)^2 / variance; defines no distribution.

    Args:
      variance: > 0. VQ-VAE's code uses the variance of the data.

    Raises:
      ValueError: `variance` is not a finite number > 0.
    """
    if not 0 < variance < float("inf"):
        raise ValueError(f"variance={variance:g}: must be a finite number above 0")
    return _error(lambda difference: difference**2 / variance)


def logistic() -> OutputDistribution:
    """A logistic distribution over the 256 levels, with mean and scale of each value from the decoder.

    The first and the last level include the tails.

    Reference: Salimans et al. 2017, eq. 2.
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

    def sample(keys, output):
        mean, log_scale = parameters(output)
        noise = jax.vmap(lambda key: jax.random.logistic(key, mean.shape[1:]))(keys)
        level = jnp.round((mean + jnp.exp(log_scale) * noise + 1) / (2 * _HALF_LEVEL))
        return jnp.clip(level, 0, 255) * 2 * _HALF_LEVEL - 1

    return OutputDistribution(2, nll, lambda output: jnp.clip(output[..., 0], -1, 1), sample, exact=True)


def logit_laplace(*, epsilon: float = 0.1, min_scale: float = 0.0) -> OutputDistribution:
    """A Laplace distribution of the logit of (1 - 2 epsilon) x + epsilon, for x in [0, 1].

    A density over (0, 1); the values of images are in (epsilon, 1 - epsilon), where logits are finite. Without
    `min_scale` the density has no bound on images with areas of one colour.

    Args:
      epsilon: 0 < epsilon < 1/2.
      min_scale: >= 0, added to the scale of each value.

    Raises:
      ValueError: an option is outside its range.

    Reference: DALL-E (Ramesh et al. 2021), app. A.3.
    """
    if not 0 < epsilon < 0.5:
        raise ValueError(f"epsilon={epsilon:g}: must be above 0 and below 0.5")
    if not 0 <= min_scale < float("inf"):
        raise ValueError(f"min_scale={min_scale:g}: must be a finite number, at least 0")

    def nll(x, output):
        location, scale = output[..., 0], jnp.exp(output[..., 1]) + min_scale
        y = (1 - 2 * epsilon) * (x + 1) / 2 + epsilon
        logit = jnp.log(y) - jnp.log1p(-y)
        log_p = -jnp.log(2 * scale * y * (1 - y)) - jnp.abs(logit - location) / scale
        return -_mean(log_p)

    def mean(output):
        y = (jax.nn.sigmoid(output[..., 0]) - epsilon) / (1 - 2 * epsilon)
        return 2 * jnp.clip(y, 0, 1) - 1

    return OutputDistribution(2, nll, mean, lambda keys, output: mean(output))


def _error(penalty: Callable) -> OutputDistribution:
    def nll(x, output):
        return _mean(penalty(x - output[..., 0]))

    def mean(output):
        return output[..., 0]

    return OutputDistribution(1, nll, mean, lambda keys, output: mean(output))


def _mean(values: Images) -> Float[Array, " B"]:
    return values.reshape(values.shape[0], -1).mean(axis=-1)
