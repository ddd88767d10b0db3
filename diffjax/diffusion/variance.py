"""The variance of a step of the reverse process. A public function of this file is a choice a config can name."""

from jax import Array

from diffjax.diffusion.noise import Noise, posterior_variance, transition_variance


def fixed_small(now: Noise, next: Noise) -> Array:
    """That of the posterior q(x_next | x_now, x_0), right for data of one point: DDPM (Ho et al. 2020), sec. 3.2."""
    return posterior_variance(now, next)


def fixed_large(now: Noise, next: Noise) -> Array:
    """That of the forward step (beta_t between neighbours), right for x_0 ~ N(0, I): DDPM, sec. 3.2.

    Over a sub-sequence it is the square of DDIM's sigma-hat (Song et al. 2021, sec. 5).
    """
    return transition_variance(now, next)
