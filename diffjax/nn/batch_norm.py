"""Batch normalisation (Ioffe & Szegedy 2015) by the statistics of the whole batch, however it lies on devices."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float


class BatchNorm(nn.Module):
    """Normalises each channel over examples and space, by PyTorch's conventions; statistics are float32.

    In training (`mean` is given) by the statistics of the batch, of which the gradient flows back to every example, and
    the collection "batch_stats" moves a tenth of the way towards them; else by that collection.
    """

    mean: Callable[[Any], Any] | None = None  # averages over the examples at hand -> over all devices' (typing.Moment)
    examples: int | None = None  # of all devices; None: those at hand
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    epsilon: float = 1e-5
    momentum: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
        shape = x.shape[-1:]
        gain = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
        running_variance = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)

        x, every = x.astype(jnp.float32), (None,) * (x.ndim - 1)
        if self.mean is None:
            mean, variance = running_mean.value, running_variance.value
        else:
            over = tuple(range(x.ndim - 1))
            # Of distances to the mean as rounded: E[x^2] - E[x]^2 loses the variance of inputs far from zero.
            near = jax.lax.stop_gradient(self.mean(x.mean(over)))
            away = x - near[every]
            away_mean, square = self.mean((away.mean(over), (away * away).mean(over)))
            mean, variance = near + away_mean, jnp.maximum(square - away_mean**2, 0.0)
            count = (self.examples or len(x)) * math.prod(x.shape[1:-1])
            unbiased = variance * (count / max(count - 1, 1))  # is what PyTorch remembers, not what it normalises by
            for running, value in ((running_mean, mean), (running_variance, unbiased)):
                running.value = running.value + self.momentum * (value - running.value)
        a = gain * jax.lax.rsqrt(variance + self.epsilon)
        return ((x - mean[every]) * a[every] + bias[every]).astype(self.dtype)
