"""A schedule of noise as a table, as a function, or as parameters: what `schedules.py` makes its choices of.

Times run from 0, the clean image, to T = `timesteps`. A discrete schedule has the levels 1, ..., T; a continuous one
every real time in [T / 1000, T]: below that, nothing is trained or sampled.
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
LEAST_LOG_SNR = -20.0  # where a singular continuous end stops (Ho & Salimans 2022 keep log-SNR in [-20, 20])
FIRST = 1e-3  # t / T of a continuous schedule's first level (Song et al. 2021b, app. C)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule(abc.ABC):
    """Maps a time to its level of noise.

    Attributes:
      timesteps: T, the last time, where next to nothing but noise is left.
      continuous: whether training draws times between the integers.
    """

    timesteps: int
    continuous = False

    @abc.abstractmethod
    def __call__(self, t: Float[Array, "..."]) -> Noise:
        """The level at time `t` in [0, T], elementwise; (alpha, sigma) = (1, 0) at t = 0."""

    @property
    def first(self) -> float:
        """The time of the least noisy level that a network sees."""
        return self.timesteps * FIRST if self.continuous else 1.0

    @abc.abstractmethod
    def time_at(self, log_snr: Float[Array, "..."]) -> Float[Array, "..."]:
        """The real time in [first, T] where the log-SNR is `log_snr`; the nearer end where none is. Elementwise."""

    @abc.abstractmethod
    def with_zero_terminal_snr(self) -> "Schedule":
        """The schedule shifted to have no signal at T and its own at the first level: Lin et al. 2024, algorithm 1.

        One that does not preserve variance is first scaled to alpha^2 + sigma^2 = 1 at the same SNRs. Raises
        ValueError where there is nothing to shift.
        """


class Tables(NamedTuple):
    """Of T levels, float64 [T + 1], that of the clean image first; or float32 and traced."""

    alpha: Array | np.ndarray
    sigma: Array | np.ndarray
    log_snr: Array | np.ndarray  # kept finite at both ends
    signal: Array | np.ndarray  # alpha^2 / (alpha^2 + sigma^2)
    precision: Array | np.ndarray  # 1 / (alpha^2 + sigma^2)

    @classmethod
    def of(cls, alphas: np.ndarray, sigmas: np.ndarray) -> "Tables":
        with np.errstate(divide="ignore"):
            log_snr = np.clip(2 * (np.log(alphas) - np.log(sigmas)), 2 * LEAST_LOG_SNR, -4 * LEAST_LOG_SNR)
        power = alphas**2 + sigmas**2
        return cls(alphas, sigmas, log_snr, alphas**2 / power, 1 / power)


@dataclasses.dataclass(frozen=True, eq=False)
class Discrete(Schedule):
    """T levels from tables. A time between two integers, which a sampler may visit, is between them in log-SNR."""

    tables: Tables

    @classmethod
    def from_betas(cls, betas: np.ndarray) -> "Discrete":
        """Levels of the chain q(x_t | x_t-1) = N(sqrt(1 - beta_t) x_t-1, beta_t I), `betas` float64 [T] above 0.

        Raises ValueError for others.
        """
        if not (betas > 0).all():
            raise ValueError(f"a step adds noise of variance {np.min(betas):g}: all are above 0")
        log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-np.minimum(betas, MAX_BETA)))])
        tables = Tables.of(np.exp(log_alpha_bar / 2), np.sqrt(np.abs(np.expm1(log_alpha_bar))))
        return cls(len(betas), tables)

    @classmethod
    def from_levels(cls, alphas: np.ndarray, sigmas: np.ndarray) -> "Discrete":
        """The levels 1, ..., T as they are, float64 [T]."""
        return cls(len(alphas), Tables.of(np.append(1.0, alphas), np.append(0.0, sigmas)))

    @property
    def alphas(self) -> np.ndarray:  # [T + 1]
        return self.tables.alpha

    @property
    def sigmas(self) -> np.ndarray:  # [T + 1]
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
    def _at(table: Array | np.ndarray, index: Array) -> Array:
        return jnp.asarray(table, jnp.float32)[index]


@dataclasses.dataclass(frozen=True, eq=False)
class Continuous(Schedule):
    """Any real time; `level` maps u = t / T in (0, 1] to (alpha, sigma)."""

    level: Callable[[Array], tuple[Array, Array]]
    continuous = True

    @classmethod
    def from_log_alpha_bar(cls, timesteps: int, log_alpha_bar: Callable[[Array], Array]) -> "Continuous":
        """The variance-preserving process with log alpha^2 = `log_alpha_bar`(u) <= 0."""

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
            return jnp.where(u < 1, alpha, 0.0), jnp.where(u < 1, sigma, 1.0)  # exactly, however it is compiled

        return Continuous(self.timesteps, level)


@dataclasses.dataclass(frozen=True, eq=False)
class Learned(Schedule):
    """A monotone log-SNR with parameters of its own; without them it is linear between its ends."""

    continuous: bool = False
    gamma_min: float = -13.3  # minus the log-SNR at the first level, as initialised
    gamma_max: float = 5.0  # and at the last
    params: dict[str, Array] | None = None

    def init(self, hidden: int = 1024) -> dict[str, Array]:
        """Initial parameters, float32: next to linear between the ends."""
        return {
            "ends": jnp.array([self.gamma_min, self.gamma_max]),
            "slope": jnp.zeros(()),
            "steepness": jnp.full((hidden,), 10.0),
            "centre": jnp.linspace(0.0, 1.0, hidden),
            "height": jnp.zeros((hidden,)),
        }

    def bind(self, params: dict[str, Array]) -> "Learned":
        return dataclasses.replace(self, params=params)

    def gamma(self, u: Float[Array, "..."]) -> Float[Array, "..."]:
        """Minus the log-SNR at u in [0, 1]: VDM, app. H, a network that is monotone as all its weights are positive."""
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
        raise ValueError("a learned schedule finds its own ends: zero terminal SNR cannot be asked of it")


def _without_last_signal(alpha, sigma, first, last, xp):
    """(alpha, sigma) of variance one, moved so that `last` has no signal and `first` keeps its own."""

    def lost(alpha, sigma):  # 1 - alpha, once alpha^2 + sigma^2 = 1
        scale = xp.hypot(alpha, sigma)
        return sigma**2 / (scale * (scale + alpha))

    low, high = lost(*first), lost(*last)
    scale = (1 - low) / (high - low)
    left = xp.clip(scale * (high - lost(alpha, sigma)), 0.0, 1.0)  # exactly zero for `last`
    gone = xp.clip(low + scale * (lost(alpha, sigma) - low), 0.0, 1.0)  # 1 - left, precise beside the image
    return left, xp.sqrt(gone * (2 - gone))


def _bisect(schedule: Schedule, wanted: Array) -> Array:
    """Where the falling log-SNR of `schedule` is `wanted`: 40 halvings of [first, T]."""
    wanted = jnp.asarray(wanted, jnp.float32)

    def halve(_, ends):
        low, high = ends
        middle = (low + high) / 2
        noisier = log_snr(schedule(middle)) < wanted
        return jnp.where(noisier, low, middle), jnp.where(noisier, middle, high)

    ends = (jnp.full_like(wanted, schedule.first), jnp.full_like(wanted, schedule.timesteps))
    return lax.fori_loop(0, 40, halve, ends)[1]
