"""Guidance: denoisers in, a denoiser out; a sampler never knows that it is guided."""

from jax import Array, lax

from diffjax.diffusion.denoiser import Denoised, Denoiser


def classifier_free(conditional: Denoiser, unconditional: Denoiser, scale: Array | float) -> Denoiser:
    """x_0 = unconditional + scale (conditional - unconditional): Ho & Salimans 2022, eq. 6.

    `scale` is GLIDE's and latent diffusion's s: 1 is unguided, 0 unconditional. It is 1 + w in the convention of
    Ho & Salimans. Guiding x_0 is guiding eps: the two differ by a factor that depends on the level alone. At scale 1
    the unconditional denoiser is not run.
    """

    def both(x, noise):
        with_condition, without = conditional(x, noise), unconditional(x, noise)
        return with_condition._replace(x0=without.x0 + scale * (with_condition.x0 - without.x0))

    def denoise(x, noise) -> Denoised:
        return lax.cond(scale == 1.0, conditional, both, x, noise)

    return denoise
