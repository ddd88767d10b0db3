"""How much noise there is at each time. A public function of this file is a schedule a config can name."""

from collections.abc import Callable

import numpy as np
from jax import numpy as jnp

from diffjax.diffusion.levels import FIRST, LEAST_LOG_SNR, Continuous, Discrete, Learned, Schedule


def linear(
    timesteps: int = 1000, *, continuous: bool = False, beta_min: float = 1e-4, beta_max: float = 0.02
) -> Schedule:
    """DDPM's linear betas (Ho et al. 2020, sec. 4), given for T = 1000 and scaled by 1000 / T elsewhere.

    The continuous form is the variance-preserving SDE it tends to (Song et al. 2021b, eq. 33).
    """
    low, high = 1000 * beta_min, 1000 * beta_max
    if continuous:
        return Continuous.from_log_alpha_bar(timesteps, lambda u: -(low * u + (high - low) * u**2 / 2))
    return Discrete.from_betas(np.linspace(low, high, timesteps) / timesteps)


def scaled_linear(
    timesteps: int = 1000, *, continuous: bool = False, beta_min: float = 8.5e-4, beta_max: float = 0.012
) -> Schedule:
    """Betas linear in their square root, as latent diffusion and Stable Diffusion train (Rombach et al. 2022, code)."""
    low, high = np.sqrt(1000 * beta_min), np.sqrt(1000 * beta_max)
    slope = high - low
    if continuous:
        return Continuous.from_log_alpha_bar(
            timesteps, lambda u: -(low**2 * u + low * slope * u**2 + slope**2 * u**3 / 3)
        )
    return Discrete.from_betas(np.linspace(low, high, timesteps) ** 2 / timesteps)


def cosine(timesteps: int = 1000, *, continuous: bool = False, offset: float = 0.008) -> Schedule:
    """alpha-bar = cos^2(pi/2 (u + s) / (1 + s)), normalised at 0: Improved DDPM (Nichol & Dhariwal 2021), eq. 17.

    Its end is singular. The discrete form clips beta at 0.999 as the paper does; the continuous one keeps
    log alpha-bar above -20.
    """
    start = offset / (1 + offset) * np.pi / 2

    def kept(u, xp):
        return (xp.sin((1 - u) / (1 + offset) * np.pi / 2) / np.cos(start)) ** 2

    def lost(u, xp):  # as a product of sines
        angle = u / (1 + offset) * np.pi / 2
        return xp.sin(angle) * xp.sin(angle + 2 * start) / np.cos(start) ** 2

    return _from_shares(timesteps, kept, lost, continuous)


def sigmoid(
    timesteps: int = 1000, *, continuous: bool = False, start: float = -3.0, end: float = 3.0, temperature: float = 1.0
) -> Schedule:
    """alpha-bar falls as a sigmoid from `start` to `end`: Jabri et al. 2022, app. B; Chen 2023, algorithm 1.

    Its end is singular, and treated as the cosine's.
    """
    low, span = start / temperature, (end - start) / temperature

    def share(u, far, middle, xp):  # a difference of sigmoids over that of the ends
        return xp.sinh(u * span / 2) / np.sinh(span / 2) * np.cosh(far / 2) / xp.cosh(middle / 2)

    def kept(u, xp):
        return share(1 - u, low, low + u * span, xp)

    def lost(u, xp):
        return share(u, low + span, low + u * span, xp)

    return _from_shares(timesteps, kept, lost, continuous)


def variance_exploding(
    timesteps: int = 1000, *, continuous: bool = False, sigma_min: float = 0.01, sigma_max: float = 50.0
) -> Schedule:
    """alpha = 1 and sigma geometric from `sigma_min` to `sigma_max`: SMLD (Song et al. 2021b, eq. 30)."""
    return _exploding(timesteps, lambda u: sigma_min * (sigma_max / sigma_min) ** u, continuous)


def edm(
    timesteps: int = 1000,
    *,
    continuous: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Schedule:
    """alpha = 1 and sigma^(1/rho) linear in time: EDM (Karras et al. 2022), eq. 5, its times being our levels.

    EDM's own time is sigma itself, which any other time gives back: samplers and losses see levels only.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _exploding(timesteps, lambda u: (low + u * (high - low)) ** rho, continuous)


def rectified_flow(timesteps: int = 1000, *, continuous: bool = False, shift: float = 1.0) -> Schedule:
    """alpha = 1 - u, sigma = u: rectified flow (Liu et al. 2022, eq. 1; Lipman et al. 2022). Ends without any signal.

    `shift` s moves u to s u / (1 + (s - 1) u), more noise at every time for s > 1: Esser et al. 2024, eq. 23.
    """

    def level(u):
        u = shift * u / (1 + (shift - 1) * u)
        return 1.0 - u, u

    if continuous:
        return Continuous(timesteps, level)
    return Discrete.from_levels(*level(np.arange(1, timesteps + 1) / timesteps))


def learned(
    timesteps: int = 1000, *, continuous: bool = False, gamma_min: float = -13.3, gamma_max: float = 5.0
) -> Schedule:
    """Monotone log-SNR with learned shape and ends: VDM (Kingma et al. 2021), sec. 3.2 and app. H. For loss = vlb.

    `gamma_min` and `gamma_max`, minus the log-SNR at the first and the last level, are the ends it starts with.
    """
    return Learned(timesteps, continuous, gamma_min, gamma_max)


def _from_shares(timesteps: int, kept: Callable, lost: Callable, continuous: bool) -> Schedule:
    """The variance-preserving process of alpha-bar = `kept`(u, numpy or jax.numpy), which reaches 0 at u = 1.

    `lost` is 1 - alpha-bar. Each is precise where it is small.
    """
    if continuous:

        def level(u):
            alpha_bar = jnp.maximum(kept(u, jnp), np.exp(LEAST_LOG_SNR))
            return jnp.sqrt(alpha_bar), jnp.sqrt(jnp.minimum(lost(u, jnp), -np.expm1(LEAST_LOG_SNR)))

        return Continuous(timesteps, level)
    edges = np.linspace(0, 1, timesteps + 1)[:-1]  # the last edge is singular: beta_T would be one
    return Discrete.from_betas(-np.expm1(np.diff(np.append(np.log1p(-lost(edges, np)), -np.inf))))


def _exploding(timesteps: int, sigma: Callable, continuous: bool) -> Schedule:
    """alpha = 1; `sigma` maps u in [0, 1], from the first level to the last."""
    if not continuous:
        sigmas = sigma(np.linspace(0, 1, timesteps) if timesteps > 1 else np.ones(1))
        return Discrete.from_levels(np.ones(timesteps), sigmas)

    def level(u):
        rest = jnp.minimum(u / FIRST, 1.0)  # before the first level, in a straight line from the clean image
        std = rest * sigma(jnp.maximum(u - FIRST, 0.0) / (1 - FIRST))
        return jnp.ones_like(std), std

    return Continuous(timesteps, level)
