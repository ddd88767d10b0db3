"""Inverse problems: samples of p(x_0 | y) for a measurement y = A x_0 + noise, from a denoiser of p(x_0).

A public function of this file is a method that a config can name. Each wraps a denoiser, as guidance does, with an
approximation of the gradient of log p(y | x_t). `pigdm` and `tmpd` set `Denoised.guidance_gradient`, which samplers
apply as that of a classifier; `dps` sets `Denoised.displacement`: see guided_steps.py. x_0 is not clipped before.
"""

from collections.abc import Callable

import jax
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.measurements import Operator
from diffjax.diffusion.noise import Noise, for_examples

_MIN_VARIANCE = 1e-6  # of a value of the measurement; smaller ones are not resolved in float32
_CG_STEPS = 100  # at most


def dps(
    denoiser: Denoiser, operator: Operator, y: Float[Array, "B ..."], std: Array | float, *, scale: Array | float = 1.0
) -> Denoiser:
    """Diffusion posterior sampling: each step is followed by one along -scale times the gradient of ||y - A x_0||.

    A step of that length, whatever the noise level, replaces the unknown variance of y given x_t. It does not depend on
    the noise of the measurement, so that the spread of the samples is not that of the posterior.

    Args:
      denoiser: the model.
      operator: A, of one image.
      y: measurements.
      std: standard deviation of their noise; not used.
      scale: step size, >= 0.

    Returns:
      The denoiser.

    Reference: Chung et al. 2023, algorithm 1, with the step size of their code.
    """
    del std

    def denoise(x, *levels):
        denoised, pull_back = _with_pull_back(denoiser, x, *levels)
        difference = y - jax.vmap(operator)(denoised.x0)
        length = jnp.sqrt(jnp.sum(difference**2, axis=tuple(range(1, difference.ndim)), keepdims=True))
        direction = jax.vmap(_transpose(operator, denoised.x0))(difference / jnp.maximum(length, 1e-12))
        return denoised._replace(displacement=scale * pull_back(direction))

    return denoise


def pigdm(
    denoiser: Denoiser,
    operator: Operator,
    y: Float[Array, "B ..."],
    std: Array | float,
    *,
    data_std: Array | float = 1.0,
) -> Denoiser:
    """Pseudoinverse-guided diffusion: p(x_0 | x_t) is taken for a Gaussian of covariance r_t^2 I.

    So y given x_t has the covariance r_t^2 A A^T + std^2 I, which is exact for independent Gaussian data. The system is
    solved by conjugate gradients.

    Args:
      denoiser: the model.
      operator: A, of one image.
      y: measurements.
      std: standard deviation of their noise.
      data_std: standard deviation of the data, > 0, of which r_t follows: with s = sigma / alpha,
        r_t^2 = s^2 data_std^2 / (s^2 + data_std^2).

    Returns:
      The denoiser.

    Reference: Song et al. 2023, section 3, for the gradient g of log p(y | x_t). Here it is that of a classifier: the
    estimate of x_0 moves by sigma^2 / alpha g, and eps with it. The authors' code (NVlabs/RED-diff) takes DDIM's step
    with the unguided estimates instead, and adds alpha_next alpha r_t^2 g for measurements without noise.
    """

    def solve(noise, x0, pull_back, difference):
        del pull_back
        variance, signal = noise.sigma**2, (noise.alpha * data_std) ** 2
        r2, noise_variance = variance * data_std**2 / (variance + signal), jnp.maximum(std**2, _MIN_VARIANCE)
        transpose = _transpose(operator, x0)

        def solve_one(r2, difference):
            multiply = lambda v: r2 * operator(transpose(v)) + noise_variance * v  # noqa: E731
            return jax.scipy.sparse.linalg.cg(multiply, difference, maxiter=_CG_STEPS)[0]

        return jax.vmap(solve_one)(jnp.broadcast_to(jnp.ravel(r2), len(difference)), difference)

    return _with_likelihood(denoiser, operator, y, solve)


def tmpd(denoiser: Denoiser, operator: Operator, y: Float[Array, "B ..."], std: Array | float) -> Denoiser:
    """Tweedie moment projected diffusion: p(x_0 | x_t) is taken for a Gaussian of its own covariance.

    That covariance is sigma^2 / alpha times the Jacobian of the denoiser. Of the covariance of A x_0 only the sums of
    its rows are computed, for a diagonal, at the cost of one more backward pass.

    Args:
      denoiser: the model.
      operator: A, of one image.
      y: measurements.
      std: standard deviation of their noise.

    Returns:
      The denoiser.

    Reference: Boys et al. 2023, with the diagonal of its experiments on images.
    """

    def solve(noise, x0, pull_back, difference):
        ones = jax.vmap(_transpose(operator, x0))(jnp.ones_like(difference))
        factor = jnp.where(noise.alpha > 0, noise.sigma**2 / noise.alpha, 0.0)
        spread = jax.vmap(operator)(pull_back(ones))
        variance = jnp.maximum(for_examples(factor, spread) * spread, 0.0) + std**2
        return difference / jnp.maximum(variance, _MIN_VARIANCE)

    return _with_likelihood(denoiser, operator, y, solve)


def _with_likelihood(denoiser: Denoiser, operator: Operator, y: Array, solve: Callable) -> Denoiser:
    """Adds the gradient of log N(y; A x_0, C) to the guidance; `solve` multiplies a difference by the inverse of C."""

    def denoise(x, noise, *next) -> Denoised:
        denoised, pull_back = _with_pull_back(denoiser, x, noise, *next)
        weighted = solve(noise, denoised.x0, pull_back, y - jax.vmap(operator)(denoised.x0))
        gradient = pull_back(jax.vmap(_transpose(operator, denoised.x0))(weighted))
        if denoised.guidance_gradient is not None:
            gradient = gradient + denoised.guidance_gradient
        return denoised._replace(guidance_gradient=gradient)

    return denoise


def _with_pull_back(denoiser: Denoiser, x: Array, *levels: Noise) -> tuple[Denoised, Callable[[Array], Array]]:
    """Returns the estimate, and the function that multiplies by the transposed Jacobian of x_0 by x."""

    def estimate(x):
        denoised = denoiser(x, *levels)
        return denoised.x0, denoised

    _, pull_back, denoised = jax.vjp(estimate, x, has_aux=True)
    return denoised, lambda v: pull_back(v)[0]


def _transpose(operator: Operator, x0: Array) -> Callable[[Array], Array]:
    """Returns the transpose of the operator, a function of one measurement; `x0` [B, ...] gives its shape."""
    transpose = jax.linear_transpose(operator, jax.ShapeDtypeStruct(x0.shape[1:], x0.dtype))
    return lambda y: transpose(y)[0]
