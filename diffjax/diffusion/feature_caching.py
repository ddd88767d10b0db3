"""Feature caching: steps of a sampler that reuse deep features of the network from an earlier step.

Deep features change slowly from step to step, so most steps evaluate only the shallow layers of the network.

References: DeepCache (Ma et al. 2023), section 3; for transformers Delta-DiT (Chen et al. 2024).
"""

from collections.abc import Callable, Mapping

import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Int

from diffjax.diffusion.noise import Noise
from diffjax.diffusion.samplers import Sampler

Features = Mapping[str, Array]


def with_cached_features(
    sampler: Sampler,
    interval: Int[Array, ""] | int,
    compute: Callable[[Array, Noise], Features],
) -> Sampler:
    """Returns a sampler that computes deep features at the start of every `interval`-th step.

    All evaluations of these steps and of those in between use them. In the place of a denoiser its steps take a
    function from deep features to the denoiser.

    Args:
      sampler: a choice of samplers whose steps are those of the grid, without adaptive step sizes.
      interval: N >= 1, in steps; may be traced.
      compute: maps (x, level) to the deep features.
    """

    def init(x):
        shapes = jax.eval_shape(compute, x, Noise(*jnp.ones(3, x.dtype)))
        features = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return sampler.init(x), jnp.zeros((), jnp.int32), features

    def step(noise, denoiser_with, carry, x, now, next):
        inner, count, features = carry
        features = lax.cond(count % interval == 0, compute, lambda *_: features, x, now)
        x, inner = sampler.step(noise, denoiser_with(features), inner, x, now, next)
        return x, (inner, count + 1, features)

    return Sampler(init, step)
