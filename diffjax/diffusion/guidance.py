"""Guidance: denoisers in, a denoiser out; a sampler never knows that it is guided. All of them compose.

Guidance by a gradient (a classifier, CLIP) is carried beside x_0, and the sampler lets it in where its paper does:
`ancestral` shifts the mean by variance times gradient (ADM, Dhariwal & Nichol 2021, algorithm 1), every other sampler
shifts eps by -sigma times gradient (algorithm 2). Both after x_0 is bounded, as in ADM's code.
"""

from collections.abc import Callable

import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float, Int

from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.noise import Noise

ALWAYS = (0.0, float("inf"))


def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    scale: Array | float,
    *,
    rescale: Array | float = 0.0,
    interval: tuple[Array | float, Array | float] = ALWAYS,
) -> Denoiser:
    """x_0 = unconditional + scale (conditional - unconditional): Ho & Salimans 2022, eq. 6.

    `scale` is GLIDE's and latent diffusion's s: 1 is unguided, 0 unconditional. It is 1 + w in the convention of
    Ho & Salimans. Guiding x_0 is guiding eps: the two differ by a factor that depends on the level alone. At scale 1
    the unconditional denoiser is not run.

    Args:
      rescale: phi in [0, 1] gives that much of the result the standard deviation of the conditional estimate, example
        by example: Lin et al. 2024, eq. 15 and 16, who apply it to the network's output.
      interval: guides where low < sigma / alpha <= high, and is unguided at other levels: Kynkaanniemi et al. 2024,
        eq. 6.
    """

    def both(x, noise):
        with_condition, without = conditional(x, noise), unconditional(x, noise)
        x0 = without.x0 + scale * (with_condition.x0 - without.x0)
        spread = _std(with_condition.x0) / jnp.maximum(_std(x0), 1e-8)
        return with_condition._replace(x0=x0 * (rescale * spread + (1.0 - rescale)))

    def denoise(x, noise) -> Denoised:
        return lax.cond(_inside(noise, interval) & (scale != 1.0), both, conditional, x, noise)

    return denoise


def autoguidance(
    denoiser: Denoiser,
    weak: Denoiser,
    scale: Array | float,
    *,
    interval: tuple[Array | float, Array | float] = ALWAYS,
) -> Denoiser:
    """x_0 = weak + scale (x_0 - weak), `weak` being a weaker model of the same data: Karras et al. 2024, eq. 3.

    Inside `interval`, as above. The weaker model should see the same condition.
    """

    def denoise(x, noise):
        denoised, weaker = denoiser(x, noise), weak(x, noise)
        active = jnp.where(_inside(noise, interval), scale, 1.0)
        return denoised._replace(x0=weaker.x0 + active * (denoised.x0 - weaker.x0))

    return denoise


def classifier(
    denoiser: Denoiser,
    classify: Callable[[Float[Array, "B ..."], Noise], Float[Array, "B K"]],
    label: Int[Array, "B"],
    scale: Array | float,
) -> Denoiser:
    """Towards `label`, by scale times the gradient of log p(label | x_t): ADM (Dhariwal & Nichol 2021), sec. 4.

    `classify` gives the logits of a classifier trained on noised images. Which of ADM's two algorithms it becomes is
    the sampler's: see the module.
    """

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
    """Towards a caption, by scale times the gradient of cos(f(x_t), g(c)): GLIDE (Nichol et al. 2021), eq. 8.

    `encode` is the image encoder f of a CLIP trained on noised images, `embedding` is g(c). CLIP's own logit scale is
    part of `scale`.
    """
    towards = _unit(embedding)
    return _ascend(denoiser, lambda x, noise: jnp.sum(_unit(encode(x, noise)) * towards, axis=-1), scale)


def inpaint(denoiser: Denoiser, known: Float[Array, "B ..."], mask: Float[Array, "B ..."]) -> Denoiser:
    """Replaces the estimate of x_0 by `known` where `mask` is 1: the sampler then draws that region of each x_t.

    So x_t there is distributed as the noised `known`, as in RePaint (Lugmayr et al. 2022, eq. 8); for its resampling
    see `repeats` of sampling.run. `known` [-1, 1] and `mask` [0, 1] broadcast with x_0.
    """

    def denoise(x, noise):
        denoised = denoiser(x, noise)
        gradient = None if denoised.gradient is None else (1.0 - mask) * denoised.gradient
        return denoised._replace(x0=mask * known + (1.0 - mask) * denoised.x0, gradient=gradient)

    return denoise


def _inside(noise: Noise, interval: tuple[Array | float, Array | float]) -> Array:
    low, high = interval
    above = noise.sigma > low * noise.alpha  # multiplied out, as alpha may be zero
    return above & ((noise.sigma <= high * noise.alpha) | jnp.isposinf(high))


def _ascend(denoiser: Denoiser, log_probability: Callable, scale: Array | float) -> Denoiser:
    def denoise(x, noise):
        denoised = denoiser(x, noise)
        gradient = scale * jax.grad(lambda x: jnp.sum(log_probability(x, noise)))(x)
        if denoised.gradient is not None:
            gradient = gradient + denoised.gradient
        return denoised._replace(gradient=gradient)

    return denoise


def _std(x: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    return jnp.std(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _unit(x: Float[Array, "B D"]) -> Float[Array, "B D"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)
