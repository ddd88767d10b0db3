"""Batch normalisation (Ioffe & Szegedy 2015) with statistics of the global batch, however it is sharded."""

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
    """Normalises each channel over examples and space, with PyTorch's conventions and float32 statistics.

    In training (`mean` is set) it uses the statistics of the batch, through which gradients flow to every example, and
    updates the running averages in the collection "batch_stats" with `momentum`. Otherwise it uses these averages.

    Reference: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """

    mean: Callable[[Any], Any] | None = None  # averages a tree over devices (training step context); None: evaluation
    examples: int | None = None  # batch size over all devices; None: that of the input
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    epsilon: float = 1e-5
    momentum: float = 0.1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B *space C"]) -> Float[Array, "B *space C"]:
        """Returns normalised features of the shape of `x`, in `dtype`."""
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
            # The variance is that of deviations from the rounded mean: E[x^2] - E[x]^2 cancels far from zero.
            near = jax.lax.stop_gradient(self.mean(x.mean(over)))
            away = x - near[every]
            away_mean, square = self.mean((away.mean(over), (away * away).mean(over)))
            mean, variance = near + away_mean, jnp.maximum(square - away_mean**2, 0.0)
            count = (self.examples or len(x)) * math.prod(x.shape[1:-1])
            unbiased = variance * (
                count / max(count - 1, 1)
            )  # PyTorch stores this one and normalises by the biased one
            for running, value in ((running_mean, mean), (running_variance, unbiased)):
                running.value = running.value + self.momentum * (value - running.value)
        a = gain * jax.lax.rsqrt(variance + self.epsilon)
        return ((x - mean[every]) * a[every] + bias[every]).astype(self.dtype)
