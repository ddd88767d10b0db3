"""How much noise there is at each time. A public function of this file is a schedule a config can name.

Times run from 0, the clean image, to T = `timesteps`, and the paper's t is the argument. A discrete schedule is told
to the network as t - 1, counted from zero as the published models count it; a continuous one as t itself.
"""

import abc
import dataclasses
from collections.abc import Callable

import numpy as np
from jax import Array
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.noise import Noise

_MAX_BETA = 0.999  # Improved DDPM (Nichol & Dhariwal 2021), sec. 3.2: no singular step at the end of the process


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule(abc.ABC):
    """Maps a time to its level of noise.

    Attributes:
      timesteps: T, the last time, where next to nothing but noise is left.
      continuous: whether times between the integers have a level of their own.
    """

    timesteps: int
    continuous = False

    @abc.abstractmethod
    def __call__(self, t: Float[Array, "..."]) -> Noise:
        """The level at time `t` in [0, T], elementwise; (alpha, sigma) = (1, 0) at t = 0."""


@dataclasses.dataclass(frozen=True, eq=False)
class Discrete(Schedule):
    """T levels from a list of betas; a time is rounded to the nearest integer."""

    alphas: np.ndarray  # float64 [T + 1], that of the clean image first
    sigmas: np.ndarray

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> "Discrete":
        """Levels of the chain q(x_t | x_t-1) = N(sqrt(1 - beta_t) x_t-1, beta_t I), `betas` float64 [T] in (0, 1)."""
        log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-betas))])
        return cls(len(betas), np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar)))

    def __call__(self, t):
        index = jnp.round(t).astype(jnp.int32)
        alpha, sigma = (jnp.asarray(table, jnp.float32)[index] for table in (self.alphas, self.sigmas))
        return Noise((index - 1).astype(jnp.float32), alpha, sigma)


@dataclasses.dataclass(frozen=True, eq=False)
class Continuous(Schedule):
    """Any real time; `log_alpha_bar` maps u = t / T in [0, 1] to log alpha^2 <= 0, and sigma^2 = 1 - alpha^2."""

    log_alpha_bar: Callable[[Array], Array]
    continuous = True

    def __call__(self, t):
        t = jnp.asarray(t, jnp.float32)
        log_alpha_bar = self.log_alpha_bar(t / self.timesteps)
        return Noise(t, jnp.exp(log_alpha_bar / 2), jnp.sqrt(-jnp.expm1(log_alpha_bar)))


def linear(
    timesteps: int = 1000, *, continuous: bool = False, beta_min: float = 1e-4, beta_max: float = 0.02
) -> Schedule:
    """DDPM's linear betas (Ho et al. 2020, sec. 4), given for T = 1000 and scaled by 1000 / T elsewhere.

    The continuous form is the variance-preserving SDE it tends to (Song et al. 2021b, eq. 33).
    """
    low, high = 1000 * beta_min, 1000 * beta_max
    if continuous:
        return Continuous(timesteps, lambda u: -(low * u + (high - low) * u**2 / 2))
    return _discrete(np.linspace(low, high, timesteps) / timesteps)


def scaled_linear(
    timesteps: int = 1000, *, continuous: bool = False, beta_min: float = 8.5e-4, beta_max: float = 0.012
) -> Schedule:
    """Betas linear in their square root, as latent diffusion and Stable Diffusion train (Rombach et al. 2022, code)."""
    low, high = np.sqrt(1000 * beta_min), np.sqrt(1000 * beta_max)
    slope = high - low
    if continuous:
        return Continuous(timesteps, lambda u: -(low**2 * u + low * slope * u**2 + slope**2 * u**3 / 3))
    return _discrete(np.linspace(low, high, timesteps) ** 2 / timesteps)


def cosine(timesteps: int = 1000, *, continuous: bool = False, offset: float = 0.008) -> Schedule:
    """alpha-bar = cos^2(pi/2 (u + s) / (1 + s)), normalised at 0: Improved DDPM (Nichol & Dhariwal 2021), eq. 17.

    Its end is singular. The discrete form clips beta at 0.999 as the paper does; the continuous one keeps
    log alpha-bar above -20 (Ho & Salimans 2022 keep log-SNR in [-20, 20]).
    """

    start = offset / (1 + offset) * np.pi / 2

    def log_alpha_bar(u, xp):  # 1 - alpha-bar as a product of sines: exactly zero at u = 0, and precise beside it
        angle = u / (1 + offset) * np.pi / 2
        return xp.log1p(-xp.minimum(xp.sin(angle) * xp.sin(angle + 2 * start) / np.cos(start) ** 2, 1.0))

    if continuous:
        return Continuous(timesteps, lambda u: jnp.maximum(log_alpha_bar(u, jnp), -20.0))
    edges = np.linspace(0, 1, timesteps + 1)[:-1]  # the last edge is singular: cos(pi / 2) = 0 makes beta_T one
    return _discrete(-np.expm1(np.diff(np.append(log_alpha_bar(edges, np), -np.inf))))


def _discrete(betas: np.ndarray) -> Discrete:
    return Discrete.from_betas(np.minimum(betas, _MAX_BETA))
