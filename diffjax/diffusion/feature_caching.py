"""Feature caching: steps of a sampler that reuse deep features of the network from an earlier step.

Deep features change slowly from step to step, so most steps evaluate only the shallow layers of the network.

References: DeepCache (Ma et al. 2023), section 3; for transformers Delta-DiT (Chen et al. 2024), and ParaAttention's
first-block cache (`FirstBlockCacheConfig` of diffusers).
"""

from collections.abc import Callable, Mapping

import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Bool, Float, Int

from diffjax.diffusion.noise import Noise, for_examples
from diffjax.diffusion.samplers import Evaluations, Sampler

Features = Mapping[str, Array]  # of each network by name, [B, ...]
Compute = Callable[[Array, Noise], Features]


def with_cached_features(
    sampler: Sampler,
    interval: Int[Array, ""] | int,
    compute: Compute,
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
        return sampler.init(x), jnp.zeros((), jnp.int32), _zeros(compute, x)

    def step(noise, denoiser_with, carry, x, now, next):
        inner, count, features = carry
        features = lax.cond(count % interval == 0, compute, lambda *_: features, x, now)
        x, inner = sampler.step(noise, denoiser_with(features), inner, x, now, next)
        return x, (inner, count + 1, features)

    return Sampler(init, step)


def with_features_by_change(
    sampler: Sampler, threshold: Float[Array, ""] | float, probe: Compute, compute: Compute
) -> Sampler:
    """Returns a sampler that computes deep features at the start of steps in which the shallow ones have changed.

    These are the first step, and those where the mean absolute change of a network's shallow features since deep ones
    were last computed exceeds `threshold` times their mean absolute value. Each example decides for itself, so that it
    does not depend on its batch; a batch takes as long as if all its examples had decided as any of them. The
    `evaluations` of the sampler count the steps that compute deep features. Otherwise as `with_cached_features`.

    Args:
      sampler: as in `with_cached_features`.
      threshold: relative change; may be traced.
      probe: maps (x, level) to the shallow features.
      compute: maps (x, level) to the deep features.
    """

    def init(x):
        return sampler.init(x), jnp.zeros(len(x), jnp.int32), _zeros(probe, x), _zeros(compute, x)

    def step(noise, denoiser_with, carry, x, now, next):
        inner, count, shallow, deep = carry
        probed = probe(x, now)
        is_due = (count == 0) | _has_changed(shallow, probed, threshold)
        computed = lax.cond(jnp.any(is_due), compute, lambda *_: deep, x, now)
        shallow, deep = jax.tree.map(
            lambda new, old: jnp.where(for_examples(is_due, new), new, old), (probed, computed), (shallow, deep)
        )
        x, inner = sampler.step(noise, denoiser_with(deep), inner, x, now, next)
        return x, (inner, count + is_due, shallow, deep)

    return Sampler(init, step, lambda carry: Evaluations(carry[1], jnp.zeros(carry[1].shape, bool)))


def _zeros(compute: Compute, x: Array) -> Features:
    shapes = jax.eval_shape(compute, x, Noise(*jnp.ones(3, x.dtype)))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def _has_changed(old: Features, new: Features, threshold: Array | float) -> Bool[Array, " B"]:
    def mean(values):
        return jnp.mean(jnp.abs(values.astype(jnp.float32)).reshape(len(values), -1), axis=1)

    changes = [mean(new[name] - old[name]) > threshold * mean(old[name]) for name in new]
    return jnp.any(jnp.stack(changes), axis=0)
