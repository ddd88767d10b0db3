"""The interface of a sampler, and what samplers share: estimates, levels of the process, and guards of long steps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jax import Array
from jax import numpy as jnp
from jaxtyping import Bool, Int

from diffjax.diffusion.denoiser import Denoised, Denoiser
from diffjax.diffusion.noise import Noise, ddim_step, eps_from_x0, initial_std, log_snr, posterior_variance
from diffjax.diffusion.noise_schedules import Schedule

# (start, end, part=0, repeat=0) -> standard normal noise like x, of the interval between two levels. A step that has
# several intervals numbers them by `part`, and one that goes through an interval again by `repeat`; noises of different
# parts, repeats and steps are independent. Levels [B, 1, ...] and parts [B] are those of each example.
StepNoise = Callable[..., Array]


class Evaluations(NamedTuple):
    """Evaluations of the denoiser by a sampler with adaptive step sizes, per example.

    Attributes:
      count: number of evaluations; with features that are computed by their change, of steps that compute them.
      is_limited: whether a limit of that number ended the adaptation, so that the error may exceed the tolerance.
    """

    count: Int[Array, " B"]
    is_limited: Bool[Array, " B"]


class Sampler(NamedTuple):
    """A numerical method. Every grid ends at the clean level, where a step returns x_0 and adds no noise.

    Attributes:
      init: maps x to the initial carry: the history of a multi-step method, or ().
      step: maps (noise: StepNoise, denoiser, carry, x [B, ...], now: Noise, next: Noise) to (x, carry).
      evaluations: maps the carry to the `Evaluations` so far; None: their number is that of the steps.
    """

    init: Callable
    step: Callable
    evaluations: Callable | None = None


def check_order(order: Array | float, highest: int, name: str = "order", lowest: int = 1) -> None:
    """Raises ValueError for an order that is not a whole number in the range; a traced one is not checked."""
    if isinstance(order, int | float) and not (order == round(order) and lowest <= order <= highest):
        raise ValueError(f"{name}={order:g}: must be a whole number from {lowest} to {highest}")


def no_history(x: Array) -> tuple:
    """Returns the carry of a method without a history."""
    del x
    return ()


def guided_x0(denoised: Denoised, noise: Noise) -> Array:
    """Returns x_0, shifted by the guidance gradient: eps shifts by -sigma times gradient.

    No shift at nearly no signal, where the shift of x_0 has no bounds.

    Reference: ADM (Dhariwal & Nichol 2021), algorithm 2.
    """
    if denoised.guidance_gradient is None:
        return denoised.x0
    return denoised.x0 + jnp.where(has_signal(noise), noise.sigma**2 / noise.alpha, 0.0) * denoised.guidance_gradient


def estimate_x0(denoiser: Denoiser, x: Array, noise: Noise) -> Array:
    """Returns the denoiser's estimate of x_0, guidance gradient included."""
    return guided_x0(denoiser(x, noise), noise)


def estimate_eps(denoiser: Denoiser, x: Array, noise: Noise) -> Array:
    """Returns the denoiser's estimate of the noise in x, guidance gradient included."""
    return eps_from_x0(x, estimate_x0(denoiser, x, noise), noise)


def x0_from_eps(x: Array, eps: Array, noise: Noise) -> Array:
    """Computes the clean image in x_t for the noise `eps`."""
    return (x - noise.sigma * eps) / noise.alpha


def half_log_snr_gain(now: Noise, next: Noise) -> Array:
    """Returns h = lambda_next - lambda_now of Lu et al. 2022, where lambda is half the log-SNR."""
    return (log_snr(next) - log_snr(now)) / 2


def level_between(schedule: Schedule, now: Noise, next: Noise, share: Array | float) -> Noise:
    """Returns the level of the process at `share` of the way from `now` to `next` in log-SNR."""
    return schedule(schedule.time_at((1 - share) * log_snr(now) + share * log_snr(next)))


def level_at_ratio(schedule: Schedule, ratio: Array | float) -> Noise:
    """Returns the level with this sigma / alpha, or the nearest one of the schedule."""
    return schedule(schedule.time_at(-2 * jnp.log(ratio)))


def choose_level(condition: Array, a: Noise, b: Noise) -> Noise:
    """Returns `a` if the condition is true, else `b`."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def lowered(now: Noise, next: Noise, eta: Array | float) -> tuple[Noise, Array]:
    """Returns the level that a step moves to without noise, and the standard deviation of the noise up to `next`.

    The noise is eta times that of the posterior q(x_next | x_now, x_0), and 0 if `next` is clean.

    Reference: DDIM (Song et al. 2021), eq. 12 and 16.
    """
    std = eta * jnp.sqrt(posterior_variance(now, next))
    # sqrt(sigma_next^2 - std^2), written without cancellation at low signal
    decay = now.alpha * next.sigma / (next.alpha * now.sigma)
    sigma = next.sigma * jnp.sqrt(jnp.maximum(1.0 - eta**2 + (eta * decay) ** 2, 0.0))
    return Noise(next.t, next.alpha, sigma), unless_clean(std, next)


def unless_clean(std: Array, next: Noise) -> Array:
    """Returns `std`, or 0 if `next` is the clean level."""
    return jnp.where(next.sigma > 0, std, 0.0)


def has_signal(noise: Noise) -> Array:
    """Returns whether sigma / alpha, the coordinate of the higher-order methods, is not nearly infinite."""
    return noise.alpha > 1e-3 * noise.sigma


def is_short(now: Noise, next: Noise, middle: Noise | None = None) -> Array:
    """Returns whether Heun's method is right to 10 % from `now` to `next`, on Gaussian data of unit variance.

    With `middle` the midpoint method, which uses eps of that level, has to be right too.

    There E[eps | x_t] = sigma x_t / (alpha^2 + sigma^2), and x_t has standard deviation `initial_std`. In longer steps,
    from nearly pure noise to the first structure, methods that average eps along sigma / alpha overshoot without
    bounds, and DDIM's step does not. Published codes exclude such steps from the grid instead: EDM ends at sigma /
    alpha = 80, DPM-Solver cuts the cosine schedule at 164.
    """
    start, end = initial_std(now), initial_std(next)

    def move(eps, level):
        return ddim_step(start, x0_from_eps(start, eps, now), now, level)

    first = now.sigma / start
    second = next.sigma / end**2 * move(first, next)
    is_right = jnp.abs(move((first + second) / 2, next) - end) <= 0.1 * end
    if middle is not None:
        second = middle.sigma / initial_std(middle) ** 2 * move(first, middle)
        is_right &= jnp.abs(move(second, next) - end) <= 0.1 * end
    return has_signal(now) & is_right


def exponential_mean(z: Array) -> Array:
    """Returns the mean of a position in [0, 1] whose density is proportional to exp(z position).

    1/2 at z = 0; tends to 1 for large z, and to 0 for large -z. It is the weight of the slope of an estimate in
    exponential integrators.

    Reference: DPM-Solver (Lu et al. 2022).
    """
    is_small = jnp.abs(z) < 1e-3
    safe = jnp.where(is_small, 1.0, z)
    return jnp.where(is_small, 0.5 + z / 12, -1 / jnp.expm1(-safe) - 1 / safe)
