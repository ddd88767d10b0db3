"""Guidance: functions that wrap denoisers into a denoiser, and compose. Samplers do not know of guidance.

`Denoised.guidance_gradient` carries guidance by a gradient (of a classifier or CLIP). The sampler applies it, after
clipping of x_0, as in ADM's code (Dhariwal & Nichol 2021): `ancestral` shifts the mean by variance times gradient
(algorithm 1), every other sampler shifts eps by -sigma times gradient (algorithm 2).

A scale is a number, or a function of the noise level: see `scheduled`.
"""

from collections.abc import Callable

import chex
import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float, Int

from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.guidance_rules import Estimates, Guided, extrapolation
from diffjax.diffusion.noise import Noise

Scale = Array | float | Callable[[Noise], Array]
ALWAYS = (0.0, float("inf"))


def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Scale,
    *,
    rule: Callable[[Estimates, Array | float], Guided] = extrapolation,
    rescale: Array | float = 0.0,
    interval: tuple[Array | float, Array | float] = ALWAYS,
    channels: int = 0,
    average: Float[Array, "B ..."] | None = None,
    first: Denoiser | None = None,
    first_scale: Array | float = 1.0,
) -> Denoiser:
    """Classifier-free guidance, by default x_0 = unconditional + scale (conditional - unconditional).

    With `first` two conditions have scales of their own: x_0 = unconditional + first_scale (first - unconditional) +
    scale (conditional - first).

    Guidance of x_0 equals guidance of eps: they differ by a factor that depends on the noise level only.

    Args:
      conditional: denoiser with the condition.
      unconditional: denoiser with the null condition; does not run at scale 1.
      scale: s of GLIDE and latent diffusion, 1 + w of Ho & Salimans; 1: no guidance, 0: unconditional.
      rule: a choice of guidance_rules.py.
      rescale: phi in [0, 1], how much of the result gets the standard deviation of the conditional estimate, per
        example (Lin et al. 2024, eq. 15 and 16, who apply it to the network's output).
      interval: (low, high) of sigma / alpha; guides for low < sigma / alpha <= high only (Kynkaanniemi et al. 2024,
        eq. 6).
      channels: number of first channels (last axis) to guide, as in DiT's code (3); 0: all.
      average: running average of the rule, for one with momentum: see guided_steps.py; None: no memory.
      first: denoiser with one of the conditions alone; None: all conditions have one scale.
      first_scale: scale of that condition; 1: no guidance towards it.

    Returns:
      The guided denoiser, whose `Denoised.guidance_average` is the next average if `average` is given.

    Reference: Ho & Salimans 2022, eq. 6; with `first` InstructPix2Pix (Brooks et al. 2023), eq. 3.
    """

    def is_guided(noise) -> Array:
        has_scale = (at_level(scale, noise) != 1.0) | (first is not None and first_scale != 1.0)
        return in_interval(noise, interval) & has_scale

    def both(x, noise, *next):
        with_condition, without = conditional(x, noise, *next), unconditional(x, noise, *next)
        base = without if first is None else first(x, noise, *next)
        estimates = Estimates(x, noise, with_condition.x0, base.x0, average)
        x0, new_average = rule(estimates, at_level(scale, noise))
        x0 = x0 if first is None else x0 + (first_scale - 1.0) * (base.x0 - without.x0)
        spread = _std(with_condition.x0) / jnp.maximum(_std(x0), 1e-8)
        x0 = x0 * (rescale * spread + (1.0 - rescale))
        if channels:
            x0 = jnp.concatenate([x0[..., :channels], with_condition.x0[..., channels:]], axis=-1)
        x0 = jnp.where(is_guided(noise), x0, with_condition.x0)
        return with_condition._replace(x0=x0, guidance_average=None if average is None else new_average)

    def unguided(x, *levels):
        return conditional(x, *levels)._replace(guidance_average=average)

    def denoise(x, noise, *next) -> Denoised:
        return lax.cond(jnp.any(is_guided(noise)), both, unguided, x, noise, *next)

    return denoise


def autoguidance(
    denoiser: Denoiser,
    weak: Denoiser,
    scale: Scale,
    *,
    interval: tuple[Array | float, Array | float] = ALWAYS,
) -> Denoiser:
    """Autoguidance: x_0 = weak + scale (x_0 - weak).

    Args:
      denoiser: the model.
      weak: a weaker model of the same data, with the same condition.
      scale: 1: no guidance.
      interval: (low, high) of sigma / alpha, as for `classifier_free`.

    Returns:
      The guided denoiser.

    Reference: Karras et al. 2024, eq. 3.
    """

    def denoise(x, noise, *next):
        denoised, weaker = denoiser(x, noise, *next), weak(x, noise, *next)
        active = jnp.where(in_interval(noise, interval), at_level(scale, noise), 1.0)
        return denoised._replace(x0=weaker.x0 + active * (denoised.x0 - weaker.x0))

    return denoise


def perturbed(
    denoiser: Denoiser,
    perturbed: Denoiser,
    scale: Scale,
    *,
    interval: tuple[Array | float, Array | float] = ALWAYS,
) -> Denoiser:
    """Guidance by a perturbation of the same network: x_0 + (scale - 1) (x_0 - perturbed), in `Denoised.shift`.

    The shift is added by `with_shift`, after classifier-free guidance of the same denoiser, so that both add up.

    Args:
      denoiser: the model with its condition.
      perturbed: the model with a perturbed network and the same condition; does not run at scale 1.
      scale: 1: no guidance; the scale of the papers is scale - 1.
      interval: (low, high) of sigma / alpha, as for `classifier_free`.

    Returns:
      The denoiser, whose x_0 is unchanged.

    Reference: PAG (Ahn et al. 2024), section 4.
    """

    def is_guided(noise) -> Array:
        return in_interval(noise, interval) & (at_level(scale, noise) != 1.0)

    def shift(x0, x, noise, *next):
        return jnp.where(is_guided(noise), at_level(scale, noise) - 1.0, 0.0) * (x0 - perturbed(x, noise, *next).x0)

    def denoise(x, noise, *next) -> Denoised:
        denoised = denoiser(x, noise, *next)
        zero = lambda x0, *_: jnp.zeros_like(x0)  # noqa: E731
        return denoised._replace(shift=lax.cond(jnp.any(is_guided(noise)), shift, zero, denoised.x0, x, noise, *next))

    return denoise


def with_shift(denoiser: Denoiser) -> Denoiser:
    """Adds the shift of `perturbed` to x_0."""

    def denoise(x, *levels) -> Denoised:
        denoised = denoiser(x, *levels)
        assert denoised.shift is not None, "the denoiser is that of `perturbed`"
        return denoised._replace(x0=denoised.x0 + denoised.shift, shift=None)

    return denoise


def classifier(
    denoiser: Denoiser,
    classify: Callable[[Float[Array, "B ..."], Noise], Float[Array, "B K"]],
    label: Int[Array, " B"],
    scale: Array | float,
) -> Denoiser:
    """Classifier guidance towards `label`, by scale times the gradient of log p(label | x_t).

    Args:
      denoiser: the model.
      classify: maps noised images and their noise level to logits [B, K].
      label: class of each example.
      scale: 0: no guidance.

    Returns:
      The guided denoiser.

    Reference: ADM (Dhariwal & Nichol 2021), sec. 4.
    """

    chex.assert_rank(label, 1)

    def log_probability(x, noise):
        logits = jax.nn.log_softmax(classify(x, noise))
        return jnp.take_along_axis(logits, label[:, None], axis=1)[:, 0]

    return _ascend(denoiser, log_probability, scale)


def clip_similarity(
    denoiser: Denoiser,
    encode: Callable[[Float[Array, "B ..."], Noise], Float[Array, "B D"]],
    embedding: Float[Array, "B D"],
    scale: Array | float,
) -> Denoiser:
    """CLIP guidance towards a caption, by scale times the gradient of cos(f(x_t), g(c)).

    Args:
      denoiser: the model.
      encode: f, the image encoder of a CLIP trained on noised images; maps images and their noise level to [B, D].
      embedding: g(c), embeddings of the captions.
      scale: includes CLIP's logit scale; 0: no guidance.

    Returns:
      The guided denoiser.

    Reference: GLIDE (Nichol et al. 2021), sec. 2.4.
    """
    target = _unit(embedding)
    return _ascend(denoiser, lambda x, noise: jnp.sum(_unit(encode(x, noise)) * target, axis=-1), scale)


def inpaint(denoiser: Denoiser, known: Float[Array, "B ..."], mask: Float[Array, "B ..."]) -> Denoiser:
    """Replaces the estimate of x_0 by `known` where `mask` is 1.

    x_t in that region then has the distribution of the noised `known`. For the resampling of RePaint see
    `resample_steps` of sampling.run.

    Args:
      denoiser: the model.
      known: images in [-1, 1], broadcast with x_0.
      mask: in [0, 1], broadcast with x_0.

    Returns:
      The denoiser.

    Reference: RePaint (Lugmayr et al. 2022), eq. 8.
    """

    def denoise(x, *levels):
        denoised = denoiser(x, *levels)
        gradient = None if denoised.guidance_gradient is None else (1.0 - mask) * denoised.guidance_gradient

        def fill(x0):
            return None if x0 is None else mask * known + (1.0 - mask) * x0

        return denoised._replace(x0=fill(denoised.x0), unclipped=fill(denoised.unclipped), guidance_gradient=gradient)

    return denoise


def scheduled(scale: Array | float, schedule: Callable[[Array], Array], last: float) -> Callable[[Noise], Array]:
    """Returns the scale at a noise level: 1 + (scale - 1) schedule(progress).

    Args:
      scale: s; 1: no guidance.
      schedule: a choice of guidance_schedules.py.
      last: T, the last timestep; the progress at timestep t is 1 - t / T.
    """
    return lambda noise: 1.0 + (scale - 1.0) * schedule(1.0 - noise.t / last)


def at_level(scale: Scale, noise: Noise) -> Array | float:
    """Returns the value of a scale at a noise level."""
    return scale(noise) if callable(scale) else scale


def in_interval(noise: Noise, interval: tuple[Array | float, Array | float]) -> Array:
    """Returns whether low < sigma / alpha <= high, for the interval (low, high)."""
    low, high = interval
    above = noise.sigma > low * noise.alpha  # multiplied out, as alpha may be zero
    return above & ((noise.sigma <= high * noise.alpha) | jnp.isposinf(high))


def _ascend(denoiser: Denoiser, log_probability: Callable, scale: Array | float) -> Denoiser:
    def denoise(x, noise, *next):
        denoised = denoiser(x, noise, *next)
        gradient = scale * jax.grad(lambda x: jnp.sum(log_probability(x, noise)))(x)
        if denoised.guidance_gradient is not None:
            gradient = gradient + denoised.guidance_gradient
        return denoised._replace(guidance_gradient=gradient)

    return denoise


def _std(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)
