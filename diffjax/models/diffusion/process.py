"""A diffusion process as a config chooses it: what every diffusion system shares, whatever its data space."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp

from diffjax.diffusion import (
    denoiser,
    loss_weighting,
    losses,
    noise_schedules,
    parameterizations,
    sampling,
    time_sampling,
    variance,
)
from diffjax.diffusion.denoiser import Denoiser, Network
from diffjax.diffusion.levels import Learned, Schedule
from diffjax.diffusion.noise import Noise, perturb
from diffjax.errors import UserError, checked_number, checked_whole
from diffjax.registry import Choice, choose
from diffjax.typing import PRNGKeys

_MOST_STEPS = 1_000_000  # of a process, whose levels are tables
GIVEN = ("schedule", "steps", "variance", "weighting")  # options of choices that the process fills in


def make_schedule(config) -> Schedule:
    """The schedule of a `diffusion` section, by its name or itself. Raises UserError where there is no such one."""
    if isinstance(config.schedule, Schedule):
        return config.schedule
    checked_whole("diffusion.timesteps", config.timesteps, high=_MOST_STEPS)
    make = _look_up(config, "schedule", noise_schedules, given=("continuous",)).bind(continuous=config.continuous)
    try:
        with np.errstate(all="ignore"):  # what comes of bad options is found below
            schedule = make(config.timesteps)
            schedule = schedule.with_zero_terminal_snr() if config.zero_terminal_snr else schedule
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"diffusion.schedule={config.schedule}: {error}") from error
    _check_levels(config.schedule, schedule)
    return schedule


def time_scale(config, schedule: Schedule) -> float:
    """Returns the factor on the time that a network is given: 1000 / T with `rescale_timesteps`, else 1.

    With it the network's time stays in [0, 1000) for any T, as in the code of Improved DDPM and ADM. `config` is a
    `diffusion` section.
    """
    return 1000.0 / schedule.timesteps if config.get("rescale_timesteps", False) else 1.0


def make_times(config, schedule: Schedule) -> time_sampling.Times:
    """How a `diffusion` section draws its times. Raises UserError where it cannot from `schedule`."""
    chosen = _look_up(config, "times", time_sampling)
    try:
        drawn = chosen.bind()()
        drawn.init(schedule)
    except ValueError as error:
        raise UserError(f"diffusion: {error}") from error
    return drawn


@dataclasses.dataclass(frozen=True)
class Process:
    """The choices of a config's `diffusion` section, looked up."""

    schedule: Schedule
    parameterization: Choice
    loss: Choice
    weighting: Choice
    times: time_sampling.Times
    variance: Choice
    time_scale: float = 1.0  # factor on the time that the network is given

    @classmethod
    def from_config(cls, config) -> "Process":
        """Reads the `diffusion` section. Raises UserError for what does not exist, with the nearest, or not fit."""

        schedule = make_schedule(config)
        process = cls(
            schedule=schedule,
            parameterization=_look_up(config, "parameterization", parameterizations),
            loss=_look_up(config, "loss", losses),
            weighting=_look_up(config, "weighting", loss_weighting),
            times=make_times(config, schedule),
            variance=_look_up(config, "variance", variance),
            time_scale=time_scale(config, schedule),
        )
        process._check(config)
        return process

    def _check(self, config) -> None:
        """Raises UserError for choices that do not go together."""
        parameterization, loss = self.parameterization.name, self.loss.name
        if parameterization == "edm" and self.time_scale != 1.0:
            raise UserError(
                "diffusion.rescale_timesteps=True: parameterization=edm gives the network log(sigma / alpha) / 4 "
                "instead of the timestep; set it to False"
            )
        if parameterization == "mu" and self.schedule.continuous:
            raise UserError("diffusion.parameterization=mu predicts the step before: it needs continuous=False")
        for name, choice in (("loss", self.loss), ("parameterization", self.parameterization)):
            for option, value in choice.options.items():
                checked_number(f"diffusion.{name}={choice.name}, {option}", value, low=0, open_at="low")
        last = self.coefficients(self.schedule(float(self.schedule.timesteps)))
        traced = any(isinstance(c, jax.core.Tracer) for c in last)  # then it was checked while it was a number
        if not traced and not np.all(np.isfinite(last)):
            raise UserError(
                f"diffusion.parameterization={parameterization} has no value at the last level, where no signal is "
                "left (alpha = 0): choose v, x0, flow or edm, or a schedule that keeps some signal"
            )
        weights = None if traced else self._weights()
        if weights is not None and not np.all(np.isfinite(weights) & (weights >= 0)):
            raise UserError(
                f"diffusion.weighting={config.weighting} is negative or not finite at some level of "
                f"diffusion.schedule={config.schedule}: use options within their papers' ranges (docs/diffusion.md)"
            )
        if self.learns_variance and (loss == "mse" or self.schedule.continuous):
            raise UserError(
                "diffusion.variance=learned_range is trained by the bound between discrete steps: set "
                "diffusion.loss=hybrid or vlb, and continuous=False"
            )
        if isinstance(self.schedule, Learned) and loss != "vlb":
            raise UserError(f"diffusion.schedule=learned is trained by the bound: set diffusion.loss=vlb, not {loss}")
        if loss == "vlb" and _look_up(config, "times", time_sampling).name in ("log_normal", "logit_normal"):
            raise UserError("diffusion.loss=vlb is the bound only with times=uniform or importance")

    @property
    def learns_variance(self) -> bool:
        """Whether the network gives twice the channels, the second half for the variance."""
        return self.variance.function is variance.learned_range

    def init(self) -> dict[str, Any]:
        """Initial parameters of the process itself: those of a learned schedule, else none."""
        return {"schedule": self.schedule.init()} if isinstance(self.schedule, Learned) else {}

    def _weights(self) -> np.ndarray:
        """At some levels."""
        noise = self.schedule(_some_times(self.schedule))
        try:
            return np.asarray(self.weighting.bind()(noise, self.coefficients(noise)))
        except ZeroDivisionError:
            return np.full(1, np.inf)

    def bound(self, params: Mapping[str, Any]) -> "Process":
        """The process with its own among `params`."""
        if "schedule" not in params:
            return self
        return dataclasses.replace(self, schedule=self.schedule.bind(params["schedule"]))

    def coefficients(self, noise: Noise) -> parameterizations.Coefficients:
        """Those of the parameterization at a level."""
        found = self.parameterization.bind(schedule=self.schedule)(noise)
        return found._replace(time=self.time_scale * found.time)

    def denoiser(self, network: Network) -> Denoiser:
        """The denoiser of a network trained with `train_loss`."""
        return denoiser.from_network(network, self.coefficients, learned_variance=self.learns_variance)

    def train_loss(
        self, network: Network, x0: Array, keys: PRNGKeys, memory: time_sampling.State
    ) -> tuple[Array, time_sampling.State]:
        """Noises each example at a time of its own: DDPM (Ho et al. 2020), algorithm 1.

        Args:
          network: (input [B, ...], time [B]) -> F [B, ...], or [B, ..., 2C] where the variance is learned.
          x0: clean examples [B, ..., C].
          memory: what drawing the times remembers; `times.init(schedule)` at first.

        Returns:
          The loss [B] and the new memory.
        """
        time_key, eps_key = sampling.split(keys)
        t, factor = jax.vmap(self.times.draw, (0, None, None))(time_key, self.schedule, memory)
        noise = self.schedule(t)
        eps = sampling.noise_of(eps_key, x0.shape[1:])
        x = jax.vmap(perturb)(x0, eps, noise)
        c = self.coefficients(noise)
        output, interpolation = network(jax.vmap(jnp.multiply)(c.input, x), c.time), None
        if self.learns_variance:
            output, interpolation = denoiser.split_variance(output)
        given = {"schedule": self.schedule, "variance": self.variance.bind(), "weighting": self.weighting.bind()}
        loss = self.loss.bind(**given)(losses.Trial(x0, eps, x, noise, c, output, interpolation))
        return factor * loss, self.times.update(memory, t, lax.stop_gradient(loss))


def _check_levels(name: str, schedule: Schedule) -> None:
    """Raises UserError for a schedule whose noise is not finite, not positive or does not rise."""
    alpha, sigma = (np.asarray(part) for part in schedule(_some_times(schedule))[1:])
    sound = np.isfinite(alpha) & np.isfinite(sigma) & (alpha >= 0) & (sigma > 0)
    ratio = alpha / np.where(sound, sigma, 1.0)
    falling = ratio[1:] <= ratio[:-1] * (1 + 1e-4)
    if not (sound.all() and falling.all()):
        raise UserError(
            f"diffusion.schedule={name} is no process: its noise is not finite, not positive or does not rise with "
            "time; use the options of docs/diffusion.md within their papers' ranges"
        )


def _some_times(schedule: Schedule) -> np.ndarray:
    """The first and the last of a schedule, and some in between."""
    found = np.linspace(schedule.first, schedule.timesteps, 17)
    return (found if schedule.continuous else np.unique(np.round(found))).astype(np.float32)


def _look_up(config, name: str, module: ModuleType, given: Sequence[str] = GIVEN) -> Choice:
    return choose(f"diffusion.{name}", module, config[name], given=given)
