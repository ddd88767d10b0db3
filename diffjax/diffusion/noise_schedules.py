"""Noise schedules: the noise level at each timestep. A public function of this file is a choice a config can name.

Numbers run from 0, the clean image, to T = `timesteps`. A discrete schedule has the levels 1, ..., T; a continuous
one every real t in [T / 1000, T]: smaller timesteps are neither trained nor sampled.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Float

from diffjax.diffusion.noise import Noise, log_snr

MAX_BETA = 0.999  # Improved DDPM (Nichol & Dhariwal 2021), sec. 3.2: no singular step at the end of the process
MIN_LOG_SNR = -20.0  # where a singular continuous end stops (Ho & Salimans 2022 keep log-SNR in [-20, 20])
FIRST = 1e-3  # t / T of a continuous schedule's first level (Song et al. 2021b, app. C)


Table = Array | np.ndarray
Numbers = Float[Array, "..."] | np.ndarray | float


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule(abc.ABC):
    """Maps a timestep to its noise level.

    Attributes:
      timesteps: T, the last timestep, with nearly pure noise.
      continuous: whether training samples real timesteps rather than integers.
    """

    timesteps: int
    continuous = False

    @abc.abstractmethod
    def __call__(self, t: Numbers) -> Noise:
        """Returns the noise level at `t` in [0, T], elementwise; (alpha, sigma) = (1, 0) at t = 0."""

    @property
    def first(self) -> float:
        """Timestep of the least noisy level in training."""
        return self.timesteps * FIRST if self.continuous else 1.0

    @abc.abstractmethod
    def time_at(self, log_snr: Numbers) -> Float[Array, "..."]:
        """Returns the real timestep in [first, T] with log-SNR `log_snr`, clipped to the ends. Elementwise."""

    @abc.abstractmethod
    def with_zero_terminal_snr(self) -> "Schedule":
        """Returns the schedule shifted to zero SNR at T, with the first level unchanged.

        Scales to alpha^2 + sigma^2 = 1 at the same SNRs first, if the schedule does not preserve variance.

        Raises:
          ValueError: the schedule has one level, or is learned.

        Reference: Lin et al. 2024, algorithm 1.
        """


class ScheduleTables(NamedTuple):
    """Tables [T + 1] of the levels of a discrete schedule, the clean image first: float64, or float32 and traced.

    Attributes:
      log_snr: log-SNR, bounded at both ends.
      signal: alpha^2 / (alpha^2 + sigma^2).
      precision: 1 / (alpha^2 + sigma^2).
    """

    alpha: Table
    sigma: Table
    log_snr: Table
    signal: Table
    precision: Table

    @classmethod
    def from_levels(cls, alphas: np.ndarray, sigmas: np.ndarray) -> "ScheduleTables":
        """Computes the tables of the levels 0, ..., T, float64 [T + 1]."""
        with np.errstate(divide="ignore"):
            log_snr = np.clip(2 * (np.log(alphas) - np.log(sigmas)), 2 * MIN_LOG_SNR, -4 * MIN_LOG_SNR)
        power = alphas**2 + sigmas**2
        return cls(alphas, sigmas, log_snr, alphas**2 / power, 1 / power)


@dataclasses.dataclass(frozen=True, eq=False)
class Discrete(Schedule):
    """T levels from tables. Interpolates log-SNR at a timestep between two integers, which samplers may visit."""

    tables: ScheduleTables = dataclasses.field(repr=False)

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> "Discrete":
        """Returns the levels of the chain q(x_t | x_t-1) = N(sqrt(1 - beta_t) x_t-1, beta_t I).

        Args:
          betas: float64 [T], > 0; clipped at MAX_BETA.

        Raises:
          ValueError: a beta is not above 0.
        """
        if not (betas > 0).all():
            raise ValueError(f"beta={np.min(betas):g}: every beta of a schedule must be above 0")
        log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-np.minimum(betas, MAX_BETA)))])
        tables = ScheduleTables.from_levels(np.exp(log_alpha_bar / 2), np.sqrt(np.abs(np.expm1(log_alpha_bar))))
        return cls(len(betas), tables)

    @classmethod
    def from_levels(cls, alphas: np.ndarray, sigmas: np.ndarray) -> "Discrete":
        """Returns the schedule of the levels 1, ..., T, float64 [T]."""
        return cls(len(alphas), ScheduleTables.from_levels(np.append(1.0, alphas), np.append(0.0, sigmas)))

    @property
    def alphas(self) -> Table:  # [T + 1]
        return self.tables.alpha

    @property
    def sigmas(self) -> Table:  # [T + 1]
        return self.tables.sigma

    def __call__(self, t):
        t = jnp.asarray(t, jnp.float32)
        below = jnp.clip(jnp.floor(t).astype(jnp.int32), 0, self.timesteps)
        above = jnp.minimum(below + 1, self.timesteps)
        fraction = jnp.where(below > 0, t - below, 0.0)

        def mix(table, fraction):
            return (1 - fraction) * self._at(table, below) + fraction * self._at(table, above)

        # 1 / (alpha^2 + sigma^2) is linear in alpha^2 / (alpha^2 + sigma^2) where variance is preserved or explodes.
        log_snr = mix(self.tables.log_snr, fraction)
        high, low = self._at(self.tables.signal, below), self._at(self.tables.signal, above)
        place = jnp.where(
            high > low, (high - jax.nn.sigmoid(log_snr)) / jnp.where(high > low, high - low, 1.0), fraction
        )
        scale = 1 / jnp.sqrt(mix(self.tables.precision, jnp.clip(place, 0.0, 1.0)))
        between = fraction > 0
        return Noise(
            t,
            jnp.where(between, scale * jnp.sqrt(jax.nn.sigmoid(log_snr)), self._at(self.alphas, below)),
            jnp.where(between, scale * jnp.sqrt(jax.nn.sigmoid(-log_snr)), self._at(self.sigmas, below)),
        )

    def time_at(self, log_snr):
        snrs = jnp.asarray(self.tables.log_snr[1:], jnp.float32)
        return jnp.interp(-jnp.asarray(log_snr, jnp.float32), -snrs, jnp.arange(1.0, self.timesteps + 1))

    def with_zero_terminal_snr(self):
        if self.timesteps == 1:
            raise ValueError("zero terminal SNR needs at least two levels")
        first, last = ((self.alphas[i], self.sigmas[i]) for i in (1, -1))
        return Discrete.from_levels(*_without_last_signal(self.alphas[1:], self.sigmas[1:], first, last, np))

    @staticmethod
    def _at(table: Table, index: Array) -> Array:
        return jnp.asarray(table, jnp.float32)[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Continuous(Schedule):
    """Levels at real timesteps; `level` maps u = t / T in (0, 1] to (alpha, sigma)."""

    level: Callable[[Array], tuple[Array, Array]]
    continuous = True

    @classmethod
    def from_log_alpha_bar(cls, timesteps: int, log_alpha_bar: Callable[[Array], Array]) -> "Continuous":
        """Returns the variance-preserving process with log alpha^2 = `log_alpha_bar`(u) <= 0."""

        def level(u):
            value = log_alpha_bar(u)
            return jnp.exp(value / 2), jnp.sqrt(-jnp.expm1(value))

        return cls(timesteps, level)

    def __call__(self, t):
        t = jnp.asarray(t, jnp.float32)
        alpha, sigma = self.level(jnp.maximum(t, 1e-12) / self.timesteps)
        return Noise(t, jnp.where(t > 0, alpha, 1.0), jnp.where(t > 0, sigma, 0.0))

    def time_at(self, log_snr):
        return _bisect(self, log_snr)

    def with_zero_terminal_snr(self):
        first, last = self.level(jnp.asarray(FIRST)), self.level(jnp.asarray(1.0))

        def level(u):
            alpha, sigma = _without_last_signal(*self.level(u), first, last, jnp)
            return jnp.where(u < 1, alpha, 0.0), jnp.where(u < 1, sigma, 1.0)  # exact under any compilation

        return Continuous(self.timesteps, level)


@dataclasses.dataclass(frozen=True, eq=False)
class Learned(Schedule):
    """A monotone log-SNR with learned parameters; linear between its ends without them.

    Attributes:
      gamma_min: minus the log-SNR at the first level, at initialisation.
      gamma_max: minus the log-SNR at the last level, at initialisation.
      params: see `init`; None: not bound.
    """

    continuous: bool = False
    gamma_min: float = -13.3
    gamma_max: float = 5.0
    params: dict[str, Array] | None = None

    def init(self, hidden: int = 1024) -> dict[str, Array]:
        """Returns initial parameters, float32, with which gamma is nearly linear between its ends."""
        return {
            "ends": jnp.array([self.gamma_min, self.gamma_max]),
            "slope": jnp.zeros(()),
            "steepness": jnp.full((hidden,), 10.0),
            "centre": jnp.linspace(0.0, 1.0, hidden),
            "height": jnp.zeros((hidden,)),
        }

    def bind(self, params: dict[str, Array]) -> "Learned":
        """Returns the schedule with `params`."""
        return dataclasses.replace(self, params=params)

    def gamma(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns minus the log-SNR at u in [0, 1], by a network that is monotone as its weights are positive.

        Reference: VDM (Kingma et al. 2021), app. H.
        """
        if self.params is None:
            return self.gamma_min + (self.gamma_max - self.gamma_min) * u
        ends, slope, steepness, centre, height = (
            self.params[name] for name in ("ends", "slope", "steepness", "centre", "height")
        )

        def rise(u):
            hidden = jax.nn.sigmoid(jax.nn.softplus(steepness) * (u - centre))
            return jax.nn.softplus(slope) * u + jnp.mean(jax.nn.softplus(height) * hidden)

        low, high = rise(0.0), rise(1.0)
        risen = jax.vmap(rise)(jnp.ravel(u)).reshape(jnp.shape(u))
        return ends[0] + (ends[1] - ends[0]) * (risen - low) / (high - low)

    def __call__(self, t):
        t = jnp.asarray(t, jnp.float32)
        span = self.timesteps - self.first
        gamma = self.gamma(jnp.clip((t - self.first) / span, 0.0, 1.0) if span else jnp.ones_like(t))
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(sign * gamma)) for sign in (-1, 1))
        return Noise(t, jnp.where(t > 0, alpha, 1.0), jnp.where(t > 0, sigma, 0.0))

    def time_at(self, log_snr):
        return _bisect(self, log_snr)

    def with_zero_terminal_snr(self):
        raise ValueError("a learned schedule learns its ends: zero terminal SNR is not supported")


def linear(
    timesteps: int = 1000, *, continuous: bool = False, beta_min: float = 1e-4, beta_max: float = 0.02
) -> Schedule:
    """DDPM's linear betas, defined for T = 1000 and scaled by 1000 / T otherwise.

    The continuous form is its limit, the variance-preserving SDE.

    Args:
      timesteps: T.
      continuous: whether timesteps are real numbers.
      beta_min: first beta at T = 1000.
      beta_max: last beta at T = 1000.

    Reference: DDPM (Ho et al. 2020), sec. 4; Song et al. 2021b, eq. 33.
    """
    low, high = 1000 * beta_min, 1000 * beta_max
    if continuous:
        return Continuous.from_log_alpha_bar(timesteps, lambda u: -(low * u + (high - low) * u**2 / 2))
    return Discrete.from_betas(np.linspace(low, high, timesteps) / timesteps)


def scaled_linear(
    timesteps: int = 1000, *, continuous: bool = False, beta_min: float = 8.5e-4, beta_max: float = 0.012
) -> Schedule:
    """Betas linear in their square root, as in latent diffusion and Stable Diffusion. For the arguments see `linear`.

    Reference: Rombach et al. 2022, code.
    """
    low, high = np.sqrt(1000 * beta_min), np.sqrt(1000 * beta_max)
    slope = high - low
    if continuous:
        return Continuous.from_log_alpha_bar(
            timesteps, lambda u: -(low**2 * u + low * slope * u**2 + slope**2 * u**3 / 3)
        )
    return Discrete.from_betas(np.linspace(low, high, timesteps) ** 2 / timesteps)


def cosine(timesteps: int = 1000, *, continuous: bool = False, offset: float = 0.008) -> Schedule:
    """alpha-bar = cos^2(pi/2 (u + s) / (1 + s)), normalised at 0, with a singular end.

    The discrete form clips beta at 0.999, as the paper does; the continuous form bounds log alpha-bar by -20.

    Args:
      timesteps: T.
      continuous: whether timesteps are real numbers.
      offset: s.

    Reference: Improved DDPM (Nichol & Dhariwal 2021), eq. 17.
    """
    start = offset / (1 + offset) * np.pi / 2

    def signal(u, xp):
        return (xp.sin((1 - u) / (1 + offset) * np.pi / 2) / np.cos(start)) ** 2

    def one_minus_signal(u, xp):  # 1 - signal as a product of sines
        angle = u / (1 + offset) * np.pi / 2
        return xp.sin(angle) * xp.sin(angle + 2 * start) / np.cos(start) ** 2

    return _from_signal(timesteps, signal, one_minus_signal, continuous)


def sigmoid(
    timesteps: int = 1000, *, continuous: bool = False, start: float = -3.0, end: float = 3.0, temperature: float = 1.0
) -> Schedule:
    """alpha-bar falls as a sigmoid from `start` to `end`, over `temperature`, with a singular end as for `cosine`.

    Reference: Jabri et al. 2022, app. B; Chen 2023, algorithm 1.
    """
    low, span = start / temperature, (end - start) / temperature

    def share(u, far, middle, xp):  # a difference of sigmoids, over that of both ends
        return xp.sinh(u * span / 2) / np.sinh(span / 2) * np.cosh(far / 2) / xp.cosh(middle / 2)

    def signal(u, xp):
        return share(1 - u, low, low + u * span, xp)

    def one_minus_signal(u, xp):
        return share(u, low + span, low + u * span, xp)

    return _from_signal(timesteps, signal, one_minus_signal, continuous)


def variance_exploding(
    timesteps: int = 1000, *, continuous: bool = False, sigma_min: float = 0.01, sigma_max: float = 50.0
) -> Schedule:
    """alpha = 1 and sigma geometric from `sigma_min` to `sigma_max`.

    Reference: SMLD (Song et al. 2021b), eq. 30.
    """
    return _exploding(timesteps, lambda u: sigma_min * (sigma_max / sigma_min) ** u, continuous)


def edm(
    timesteps: int = 1000,
    *,
    continuous: bool = False,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Schedule:
    """alpha = 1 and sigma^(1/rho) linear in time, from `sigma_min` to `sigma_max`.

    EDM's own time is sigma. Any other time gives the same levels, and samplers and losses depend on levels only.

    Reference: EDM (Karras et al. 2022), eq. 5.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return _exploding(timesteps, lambda u: (low + u * (high - low)) ** rho, continuous)


def rectified_flow(
    timesteps: int = 1000, *, continuous: bool = False, shift: float = 1.0, end: float = 1.0
) -> Schedule:
    """alpha = 1 - u, sigma = u, by default with no signal at the end.

    Args:
      timesteps: T.
      continuous: whether timesteps are real numbers.
      shift: s, moves u to s u / (1 + (s - 1) u): more noise at every timestep for s > 1 (Esser et al. 2024, eq. 23).
      end: sigma at the end, by which every sigma is multiplied; below 1, predicted noise determines x_0 there too.

    Reference: rectified flow (Liu et al. 2022), eq. 1; Lipman et al. 2022.
    """

    def level(u):
        u = end * shift * u / (1 + (shift - 1) * u)
        return 1.0 - u, u

    if continuous:
        return Continuous(timesteps, level)
    return Discrete.from_levels(*level(np.arange(1, timesteps + 1) / timesteps))


def trig_flow(timesteps: int = 1000, *, continuous: bool = False, sigma_data: float = 0.5) -> Schedule:
    """alpha = cos(theta), sigma = sigma_data sin(theta), theta = u pi / 2, with no signal at the end.

    Args:
      timesteps: T.
      continuous: whether timesteps are real numbers.
      sigma_data: standard deviation of the data, and of the noise at the end.

    Reference: Lu & Song 2025 (sCM), sec. 3.
    """

    def level(u, xp=jnp):
        # A sine of the complement, so that no signal is left at the end.
        return xp.sin((1 - u) * np.pi / 2), sigma_data * xp.sin(u * np.pi / 2)

    if continuous:
        return Continuous(timesteps, level)
    return Discrete.from_levels(*level(np.arange(1, timesteps + 1) / timesteps, np))


def learned(
    timesteps: int = 1000, *, continuous: bool = False, gamma_min: float = -13.3, gamma_max: float = 5.0
) -> Schedule:
    """Monotone log-SNR with learned shape and ends, for loss = vlb.

    Args:
      timesteps: T.
      continuous: whether timesteps are real numbers.
      gamma_min: minus the log-SNR at the first level, at initialisation.
      gamma_max: minus the log-SNR at the last level, at initialisation.

    Reference: VDM (Kingma et al. 2021), sec. 3.2 and app. H.
    """
    return Learned(timesteps, continuous, gamma_min, gamma_max)


def _from_signal(timesteps: int, signal: Callable, one_minus_signal: Callable, continuous: bool) -> Schedule:
    """Returns the variance-preserving process with alpha-bar = `signal`(u, numpy or jax.numpy), 0 at u = 1.

    `one_minus_signal` is 1 - alpha-bar. Each is precise near its zero.
    """
    if continuous:

        def level(u):
            alpha_bar = jnp.maximum(signal(u, jnp), np.exp(MIN_LOG_SNR))
            return jnp.sqrt(alpha_bar), jnp.sqrt(jnp.minimum(one_minus_signal(u, jnp), -np.expm1(MIN_LOG_SNR)))

        return Continuous(timesteps, level)
    edges = np.linspace(0, 1, timesteps + 1)[:-1]  # the last edge is singular: beta_T would be one
    return Discrete.from_betas(-np.expm1(np.diff(np.append(np.log1p(-one_minus_signal(edges, np)), -np.inf))))


def _exploding(timesteps: int, sigma: Callable, continuous: bool) -> Schedule:
    """Returns the process with alpha = 1; `sigma` maps u in [0, 1] to sigma, from the first level to the last."""
    if not continuous:
        sigmas = sigma(np.linspace(0, 1, timesteps) if timesteps > 1 else np.ones(1))
        return Discrete.from_levels(np.ones(timesteps), sigmas)

    def level(u):
        rest = jnp.minimum(u / FIRST, 1.0)  # linear from the clean image to the first level
        std = rest * sigma(jnp.maximum(u - FIRST, 0.0) / (1 - FIRST))
        return jnp.ones_like(std), std

    return Continuous(timesteps, level)


def _without_last_signal(alpha, sigma, first, last, xp):
    """Scales (alpha, sigma) to variance one, and shifts alpha to 0 at `last` with `first` unchanged."""

    def one_minus_alpha(alpha, sigma):  # after scaling to alpha^2 + sigma^2 = 1
        scale = xp.hypot(alpha, sigma)
        return sigma**2 / (scale * (scale + alpha))

    low, high = one_minus_alpha(*first), one_minus_alpha(*last)
    scale = (1 - low) / (high - low)
    new_alpha = xp.clip(scale * (high - one_minus_alpha(alpha, sigma)), 0.0, 1.0)  # exactly 0 at `last`
    complement = xp.clip(low + scale * (one_minus_alpha(alpha, sigma) - low), 0.0, 1.0)  # precise near 0
    return new_alpha, xp.sqrt(complement * (2 - complement))


def _bisect(schedule: Schedule, wanted: Numbers) -> Array:
    """Returns the timestep at which the falling log-SNR of `schedule` is `wanted`, by 40 halvings of [first, T]."""
    wanted = jnp.asarray(wanted, jnp.float32)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        noisier = log_snr(schedule(middle)) < wanted
        return jnp.where(noisier, low, middle), jnp.where(noisier, middle, high)

    ends = (jnp.full_like(wanted, schedule.first), jnp.full_like(wanted, schedule.timesteps))
    return lax.fori_loop(0, 40, halve, ends)[1]
