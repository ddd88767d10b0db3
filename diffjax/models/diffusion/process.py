"""Diffusion process of a config: noise schedule, parameterization, loss, variance. Independent of the data space."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax import Array, lax
from jax import numpy as jnp
from jax.core import Tracer
from ml_collections import ConfigDict

from diffjax.diffusion import (
    couplings,
    denoiser,
    distribution_matching,
    flow_map_losses,
    learned_weighting,
    loss_metrics,
    loss_weighting,
    losses,
    next_times,
    noise_schedules,
    parameterizations,
    time_grids,
    time_sampling,
    variance,
)
from diffjax.diffusion.denoiser import Denoiser, Network, Predict
from diffjax.diffusion.distribution_matching import DistributionMatching
from diffjax.diffusion.noise import Noise
from diffjax.diffusion.noise_schedules import Learned, Schedule
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.diffusion.random import split_each
from diffjax.errors import UserError, validate_integer, validate_number
from diffjax.registry import Choice, choices, lookup, options
from diffjax.typing import PRNGKeys

_MAX_TIMESTEPS = 1_000_000  # schedules are tables
# Options that the process sets, not configs.
INJECTED_ARGUMENTS = ("schedule", "steps", "times", "variance", "weighting", "metric")
FLOW_MAP_LOSSES = frozenset(choices(flow_map_losses))
Penalty = Callable[[Any], tuple[Array, dict[str, Array]]]


def make_schedule(config: ConfigDict) -> Schedule:
    """Returns the noise schedule of a `diffusion` section, whose `schedule` is a name or a Schedule.

    Raises:
      UserError: an unknown name or option, or a schedule that is not a diffusion process.
    """
    if isinstance(config.schedule, Schedule):
        return config.schedule
    validate_integer("diffusion.timesteps", config.timesteps, high=_MAX_TIMESTEPS)
    make = _look_up(config, "schedule", noise_schedules, injected=("continuous",)).bind(continuous=config.continuous)
    try:
        with np.errstate(all="ignore"):  # invalid options are reported below
            schedule = make(config.timesteps)
            schedule = schedule.with_zero_terminal_snr() if config.zero_terminal_snr else schedule
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"diffusion.schedule={config.schedule}: {error}") from error
    _check_levels(config.schedule, schedule)
    return schedule


def time_scale(config: ConfigDict, schedule: Schedule) -> float:
    """Returns the factor on the time that a network is given: 1000 / T with `rescale_timesteps`, else 1.

    With it the network's time stays in [0, 1000) for any T, as in the code of Improved DDPM and ADM. `config` is a
    `diffusion` section.
    """
    return 1000.0 / schedule.timesteps if config.get("rescale_timesteps", False) else 1.0


def have_same_noise(first: Schedule, second: Schedule) -> bool:
    """Returns whether two schedules have the same noise at some of their timesteps, the first and the last included."""
    ours, theirs = ([schedule(t) for t in np.linspace(1, schedule.timesteps, 5)] for schedule in (first, second))
    return np.allclose(ours, theirs)


def make_times(config: ConfigDict, schedule: Schedule) -> time_sampling.TimeSampler:
    """Returns the distribution of timesteps in training. Raises UserError if `schedule` does not support it."""
    times = _look_up(config, "time_sampling", time_sampling).bind()()
    try:
        times.init(schedule)
    except ValueError as error:
        raise UserError(f"diffusion.time_sampling={config.time_sampling}: {error}") from error
    return times


@dataclasses.dataclass(frozen=True)
class Process:
    """The choices of a config's `diffusion` section.

    Attributes:
      schedule: noise schedule.
      times: distribution of timesteps in training.
      time_scale: factor of the network's time input.
      next_times: pairs of timesteps, for losses of flow maps.
      metric: distance, for losses of flow maps.
      weight_params: parameters of a learned weighting; None: its initial ones.
    """

    schedule: Schedule
    parameterization: Choice
    loss: Choice
    weighting: Choice
    times: time_sampling.TimeSampler
    variance: Choice
    next_times: Choice
    metric: Choice
    coupling: Choice
    time_scale: float = 1.0
    weight_params: learned_weighting.Params | None = None

    @classmethod
    def from_config(cls, config: ConfigDict) -> "Process":
        """Builds the process of a `diffusion` section.

        Raises:
          UserError: an unknown choice, or choices that do not fit together.
        """
        schedule = make_schedule(config)
        process = cls(
            schedule=schedule,
            parameterization=_look_up(config, "parameterization", parameterizations),
            loss=_look_up(config, "loss", (losses, flow_map_losses, distribution_matching)),
            weighting=_look_up(config, "weighting", loss_weighting),
            times=make_times(config, schedule),
            variance=_look_up(config, "variance", variance),
            next_times=_look_up(config, "next_times", next_times, (), "clean"),
            metric=_look_up(config, "metric", loss_metrics, (), "l2"),
            coupling=_look_up(config, "coupling", couplings, (), "independent"),
            time_scale=time_scale(config, schedule),
        )
        process._check_parameterization()
        process._check_sigma_data(config)
        process._check_weighting(config)
        process._check_loss(config)
        return process

    def _check_parameterization(self) -> None:
        """Raises UserError for a parameterization that the schedule does not support, or invalid options."""
        parameterization = self.parameterization.name
        if parameterization in ("edm", "consistency", "trig_flow") and self.time_scale != 1.0:
            scalable = ", or use its option time_scale" if parameterization != "trig_flow" else ""
            raise UserError(
                f"diffusion.rescale_timesteps=True: parameterization={parameterization} gives the network a function "
                f"of sigma / alpha instead of the timestep; set it to False{scalable}"
            )
        if parameterization == "mu" and self.schedule.continuous:
            raise UserError("diffusion.continuous=True: parameterization=mu requires discrete timesteps; use False")
        chosen = {name: getattr(self, name) for name in ("loss", "parameterization", "next_times", "metric")}
        for name, choice in chosen.items():
            is_few_step = self.learns_flow_map or self.matches_distributions
            may_be_zero = name in ("next_times", "metric") or (name == "loss" and is_few_step)
            for option, value in choice.options.items():
                exclusive = "" if may_be_zero else "low"
                validate_number(f"diffusion.{name}={choice.name}, {option}", value, low=0, exclusive=exclusive)
        last = self.coefficients(self.schedule(float(self.schedule.timesteps)))
        if not _is_traced(last) and not np.all(np.isfinite(last)):
            raise UserError(
                f"diffusion.parameterization={parameterization}: is not finite at the last timestep, where no signal "
                "is left (alpha = 0); choose v, x0, flow, edm or consistency, or a schedule that keeps some signal"
            )

    def _check_sigma_data(self, config: ConfigDict) -> None:
        """Raises UserError for choices of sCM that disagree on the standard deviation of the data."""
        named = {"parameterization": self.parameterization, "loss": self.loss}
        if isinstance(config.schedule, str):
            named["schedule"] = _look_up(config, "schedule", noise_schedules, injected=("continuous",))
        if not {choice.name for choice in named.values()} & {"trig_flow", "continuous_consistency"}:
            return
        values = {
            f"diffusion.{field}={choice.name}": choice.all_options["sigma_data"]
            for field, choice in named.items()
            if "sigma_data" in options(choice.function)
        }
        (first, value), *others = values.items()
        for name, other in others:
            if other != value:
                raise UserError(
                    f"{name}, sigma_data={other:g}: must be that of {first}, {value:g}; set both to the standard "
                    "deviation of the data"
                )

    def _check_weighting(self, config: ConfigDict) -> None:
        """Raises UserError for weights without effect, or negative, not finite or without bounds at some timesteps."""
        name, is_weighted = self.weighting.name, "weighting" in options(self.loss.function)
        if name not in ("simple", "learned") and not is_weighted:
            learned = " or learned" if self.learns_flow_map else ""
            raise UserError(
                f"diffusion.weighting={config.weighting}: has no effect on loss={self.loss.name}, which has fixed "
                f"weights; set it to simple{learned}"
            )
        if self.learns_weighting and self.loss.name in ("vlb", "hybrid", "distribution_matching"):
            raise UserError(f"diffusion.weighting=learned: is not supported for loss={self.loss.name}; use simple")
        if self.parameterization.name == "consistency" and name in ("simple", "learned") and is_weighted:
            raise UserError(
                f"diffusion.weighting={name}: has no bounds near sigma_min with parameterization=consistency, which "
                "ignores the network there; set diffusion.weighting=edm"
            )
        noise = self.schedule(_some_times(self.schedule))
        if _is_traced(noise):
            return
        try:
            weights = np.asarray(self.weighting.bind()(noise, self.coefficients(noise)))
        except ZeroDivisionError:
            weights = np.full(1, np.inf)
        if not np.all(np.isfinite(weights) & (weights >= 0)):
            raise UserError(
                f"diffusion.weighting={config.weighting}: is negative or not finite at some timesteps of "
                f"diffusion.schedule={config.schedule}; use options within their papers' ranges (docs/diffusion.md)"
            )

    def _check_loss(self, config: ConfigDict) -> None:
        """Raises UserError for a loss that does not fit the variance, the schedule or the distribution of timesteps."""
        loss = self.loss.name
        if self.learns_variance and (loss == "mse" or self.schedule.continuous):
            raise UserError(
                "diffusion.variance=learned_range: is trained with the bound on discrete timesteps; set "
                "diffusion.loss=hybrid or vlb, and continuous=False"
            )
        if isinstance(self.schedule, Learned) and loss != "vlb":
            raise UserError(f"diffusion.loss={loss}: must be vlb for schedule=learned; set diffusion.loss=vlb")
        times = _look_up(config, "time_sampling", time_sampling).name
        if loss == "vlb" and times in ("log_normal", "logit_normal"):
            raise UserError("diffusion.loss=vlb: is the bound only with time_sampling=uniform or importance; use one")
        if self.couples_noise:
            self._check_coupling()
        if self.matches_distributions:
            self._check_distribution_matching(times)
        if self.learns_flow_map:
            self._check_flow_map(times)
        elif self.next_times.name != "clean" or self.metric.name != "l2":
            raise UserError(
                f"diffusion.next_times={self.next_times.name}, diffusion.metric={self.metric.name}: are for losses of "
                f"flow maps ({', '.join(sorted(FLOW_MAP_LOSSES))}), not loss={loss}; leave them at clean and l2"
            )

    def _check_coupling(self) -> None:
        """Raises UserError for a loss that coupled noise does not have, or invalid options."""
        coupling, loss = self.coupling.name, self.loss.name
        if self.matches_distributions:
            raise UserError(f"diffusion.coupling={coupling}: has no effect on loss={loss}; set it to independent")
        if loss in ("vlb", "hybrid"):
            raise UserError(
                f"diffusion.coupling={coupling}: has no variational bound, which loss={loss} requires; set "
                "diffusion.loss=mse, or coupling=independent"
            )
        if coupling == "reflow" and self.learns_flow_map:
            raise UserError(
                f"diffusion.coupling=reflow: trains a flow on samples of the teacher, whose ODE loss={loss} follows; "
                "set diffusion.loss=mse, or coupling=independent"
            )
        one, positions = jnp.zeros((1, 1)), jnp.zeros(1, jnp.int32)
        examples = couplings.Examples(one, one, positions, positions, lambda x: x, lambda x, now: x, self.schedule)
        try:
            jax.eval_shape(lambda: self.coupling.bind()(examples))
        except ValueError as error:
            raise UserError(f"diffusion.coupling={coupling}: {error}") from error

    def _check_few_steps(self, times: str) -> None:
        """Raises UserError for choices that no loss for samples in few steps supports."""
        loss = self.loss.name
        if self.learns_variance:
            raise UserError(f"diffusion.variance=learned_range: has no loss with loss={loss}; use fixed_small")
        if times == "importance":
            raise UserError(f"diffusion.time_sampling=importance: is not supported for loss={loss}; use another")

    def _check_distribution_matching(self, times: str) -> None:
        """Raises UserError for choices that do not fit distribution matching."""
        self._check_few_steps(times)
        try:
            time_grids.trailing(self.matching.generator_steps, self.schedule)
        except ValueError as error:
            raise UserError(f"diffusion.loss=distribution_matching: {error}") from error

    def _check_flow_map(self, times: str) -> None:
        """Raises UserError for choices that do not fit a loss of flow maps."""
        self._check_few_steps(times)
        loss, needs = self.loss.name, self.needs
        if needs.continuous and not self.schedule.continuous:
            raise UserError(f"diffusion.loss={loss}: requires a continuous schedule; set diffusion.continuous=True")
        if needs.next_times and self.next_times.name not in needs.next_times:
            raise UserError(
                f"diffusion.next_times={self.next_times.name}: loss={loss} {needs.reason}; use "
                f"{' or '.join(needs.next_times)}"
            )
        if self.metric.name != "l2" and "metric" not in options(self.loss.function):
            raise UserError(f"diffusion.metric={self.metric.name}: loss={loss} does not use it; use l2")
        if needs.equal_pairs and not self.has_equal_pairs:
            raise UserError(
                f"diffusion.next_times={self.next_times.name}, share=1: loss={loss} requires pairs of equal times; use "
                "a smaller share"
            )
        first = jnp.asarray(self.schedule.first)
        choose = functools.partial(self.next_times.bind(), schedule=self.schedule, sample_time=lambda key: first)
        _check_options("next_times", self.next_times, lambda: choose(jax.random.key(0), first, step=first))
        _check_options("metric", self.metric, lambda: self.metric.bind()(jnp.zeros((1, 1))))
        if loss == "progressive" and not self.schedule.continuous:
            self._check_halves()

        def compute_loss():
            x, noise = jnp.zeros((self.group, 1)), self.schedule(jnp.full(self.group, first))
            predict = self.predictor(lambda x, *times: x)
            networks = flow_map_losses.Networks(predict, predict, self.coefficients, lambda x, now: x)
            return self._bound_loss()(NoisedBatch(x, x, x, noise, noise.t, noise, 0), networks)

        _check_options("loss", self.loss, compute_loss)

    def _check_halves(self) -> None:
        """Raises UserError for steps of progressive distillation whose middle is no level of a discrete schedule."""
        grid = self.next_times.all_options
        if grid["rho"]:
            raise UserError(
                f"diffusion.next_times=grid, rho={grid['rho']:g}: loss=progressive halves the steps in time, which are "
                "whole timesteps for rho=0 only; set it to 0, or diffusion.continuous=True"
            )
        count = 2 * int(grid["steps"])
        if self.schedule.timesteps % count:
            raise UserError(
                f"diffusion.timesteps={self.schedule.timesteps}: loss=progressive halves the {count // 2} steps of "
                f"next_times=grid, so it must be a multiple of {count}; change one of them, or set "
                "diffusion.continuous=True"
            )

    @property
    def couples_noise(self) -> bool:
        """True if training pairs of noise and data are not independent."""
        return self.coupling.name != "independent"

    @property
    def learns_flow_map(self) -> bool:
        """True if the loss is one of flow maps, for samples in few steps."""
        return self.loss.name in FLOW_MAP_LOSSES

    @property
    def matches_distributions(self) -> bool:
        """True if the loss is distribution matching, of a generator with a teacher."""
        return self.loss.name == "distribution_matching"

    @property
    def distilled_steps(self) -> int | None:
        """Number of steps, of the grid `trailing`, that samples were distilled for; None: they have no fixed number."""
        if self.matches_distributions:
            return self.matching.generator_steps
        grid = self.next_times.all_options
        return int(grid["steps"]) if self.loss.name == "progressive" and not grid["rho"] else None

    @property
    def matching(self) -> DistributionMatching:
        """The losses of distribution matching; only with `matches_distributions`."""
        return self.loss.bind(schedule=self.schedule, weighting=self.weighting.bind())()

    @property
    def needs(self) -> flow_map_losses.Needs:
        """Requirements of the loss on the network, the schedule and the data; none for losses of denoising."""
        if self.matches_distributions:
            return flow_map_losses.Needs(teacher=True)
        return flow_map_losses.NEEDS.get(self.loss.name, flow_map_losses.Needs())

    @property
    def group(self) -> int:
        """Number of consecutive examples that the loss compares with each other, at the same timesteps; 1: none."""
        return int(self.loss.all_options.get("group", 1))

    @property
    def guidance(self) -> float | None:
        """Scale of the guidance of a flow map by its own network; 1: none; None: the loss does not support it."""
        return self.loss.all_options.get("guidance")

    @property
    def has_equal_pairs(self) -> bool:
        """True if some pairs of times are equal, which teach the direction of the ODE."""
        chosen = self.next_times
        return chosen.name in flow_map_losses.WITH_EQUAL_PAIRS and chosen.options.get("share") != 1

    @property
    def learns_variance(self) -> bool:
        """True if the network has twice the output channels, the second half for the variance."""
        return self.variance.function is variance.learned_range

    @property
    def learns_weighting(self) -> bool:
        """True if the loss has a learned weight per noise level."""
        return self.weighting.function is loss_weighting.learned

    def init(self) -> dict[str, Any]:
        """Returns fresh parameters of the process: those of a learned schedule and of a learned weighting."""
        schedule = {"schedule": self.schedule.init()} if isinstance(self.schedule, Learned) else {}
        return schedule | ({"weighting": learned_weighting.init()} if self.learns_weighting else {})

    def bind(self, params: Mapping[str, Any]) -> "Process":
        """Returns the process with its parameters among `params`, if it has any."""
        schedule = self.schedule
        if isinstance(schedule, Learned) and "schedule" in params:
            schedule = schedule.bind(params["schedule"])
        return dataclasses.replace(self, schedule=schedule, weight_params=params.get("weighting"))

    def coefficients(self, noise: Noise) -> parameterizations.Coefficients:
        """Returns the coefficients of the parameterization at a noise level."""
        coefficients = self.parameterization.bind(schedule=self.schedule)(noise)
        return coefficients._replace(time=self.time_scale * coefficients.time)

    def _bound_loss(self) -> Callable:
        """Returns the loss, of a batch and predictions or networks."""
        next_times = self.next_times.all_options
        return self.loss.bind(
            schedule=self.schedule,
            variance=self.variance.bind(),
            weighting=self.weighting.bind(),
            metric=self.metric.bind(),
            steps=next_times.get("steps"),
        )

    def denoiser(self, network: Network) -> Denoiser:
        """Returns the denoiser of a network trained with `train_loss`."""
        return denoiser.from_network(network, self.coefficients, **self._network_options)

    def predictor(self, network: Network) -> Predict:
        """Returns the predictions of a network at the noise levels of examples, as `train_loss` has them."""
        return denoiser.predictor(network, self.coefficients, **self._network_options)

    @property
    def _network_options(self) -> dict[str, Any]:
        return {"learned_variance": self.learns_variance, "interval": self.interval if self.needs.interval else None}

    def interval(self, now: Noise, next: Noise) -> Array:
        """Returns the network's input for the interval of a step: the difference of the time inputs of both levels.

        With edm and consistency, whose time has no bounds, it is that of the timesteps, in T and times `time_scale`.
        """
        if self.parameterization.name not in ("edm", "consistency"):
            return denoiser.time_difference(self.coefficients)(now, next)
        scale = self.parameterization.options.get("time_scale", 1.0)
        return scale * (now.t - next.t) / self.schedule.timesteps

    def train_loss(
        self,
        network: Network,
        x0: Array,
        keys: PRNGKeys,
        memory: time_sampling.State,
        *,
        average: Network | None = None,
        teacher: Callable[[Array, Noise], Array] | None = None,
        guidance: flow_map_losses.Guidance | None = None,
        step: Array | int = 0,
        couple: Callable[[Array, Array], couplings.Pairs] | None = None,
        penalty: Penalty | None = None,
    ) -> tuple[Array, time_sampling.State, dict[str, Array]]:
        """Returns the loss at a random timestep per example, as DDPM (Ho et al. 2020), algorithm 1; or of a flow map.

        Args:
          network: (input [B, ...], time [B]) -> F [B, ...], or [B, ..., 2C] if the variance is learned; with
            `needs.interval` (input, time, interval [B]).
          x0: clean examples [B, ..., C].
          keys: one per example; consumed.
          memory: state of the distribution of timesteps; `times.init(schedule)` at first.
          average: the network with averaged parameters, for losses of flow maps; None: `network`.
          teacher: (x, levels of the examples) -> x_0 of a trained model, for losses of flow maps; None: the data teach.
          guidance: guidance of a flow map by its own network; None: none.
          step: number of training steps so far.
          couple: (x_0, independent noise) -> coupled x_0 and noise; None: they are independent.
          penalty: (features that the network returns besides F) -> a term of the loss [B], and metrics; for losses of
            denoising. None: none.

        Returns:
          The loss [B], the new memory, and with `penalty` metrics [B]: its own, and the loss of denoising "denoising".
        """
        time_keys, eps_keys = split_each(keys)
        batch = NoisedBatch.sample(
            time_keys,
            eps_keys,
            x0,
            schedule=self.schedule,
            time_sampler=self.times,
            state=memory,
            next_times=self.next_times.bind() if self.learns_flow_map else None,
            step=step,
            couple=couple,
            group=self.group,
        )
        compute = self._bound_loss()
        predict, features = self.predictor(network), None
        if self.learns_flow_map:
            average_predict = self.predictor(average or network)
            networks = flow_map_losses.Networks(predict, average_predict, self.coefficients, teacher, guidance)
            loss = compute(batch, networks)
        else:
            prediction = predict(batch.x, batch.noise)
            loss, features = compute(batch, prediction), prediction.features
        memory = self.times.update(memory, batch.noise.t, lax.stop_gradient(loss))
        if self.learns_weighting:
            loss = learned_weighting.weighted(self.weight_params or learned_weighting.init(), batch.noise, loss)
        metrics = {}
        if penalty is not None:
            term, metrics = penalty(features)
            loss, metrics = loss + term, {"denoising": loss, **metrics}
        return batch.loss_factor * loss, memory, metrics


def _check_levels(name: str, schedule: Schedule) -> None:
    """Raises UserError for a schedule whose noise is not finite, not positive or does not increase."""
    alpha, sigma = (np.asarray(part) for part in schedule(_some_times(schedule))[1:])
    is_valid = np.isfinite(alpha) & np.isfinite(sigma) & (alpha >= 0) & (sigma > 0)
    ratio = alpha / np.where(is_valid, sigma, 1.0)
    decreases = ratio[1:] <= ratio[:-1] * (1 + 1e-4)
    if not (is_valid.all() and decreases.all()):
        raise UserError(
            f"diffusion.schedule={name}: its noise is not finite, not positive or does not increase with the timestep; "
            "use the options of docs/diffusion.md within their papers' ranges"
        )


def _check_options(field: str, choice: Choice, compute: Callable[[], Any]) -> None:
    """Raises UserError where `compute`, which calls a choice, raises ValueError for its options. Runs nothing."""
    try:
        jax.eval_shape(compute)
    except (ValueError, ArithmeticError) as error:
        raise UserError(f"diffusion.{field}={choice.name}, {error}") from error


def _is_traced(values: Iterable[Any]) -> bool:
    """Returns True if any value is traced; such a process was checked before it was traced."""
    return any(isinstance(value, Tracer) for value in values)


def _some_times(schedule: Schedule) -> np.ndarray:
    """Returns the first and the last timestep of a schedule, and some in between."""
    times = np.linspace(schedule.first, schedule.timesteps, 17)
    return (times if schedule.continuous else np.unique(np.round(times))).astype(np.float32)


def _look_up(
    config: ConfigDict,
    name: str,
    module: ModuleType | Sequence[ModuleType],
    injected: Sequence[str] = INJECTED_ARGUMENTS,
    default: str | None = None,
) -> Choice:
    """Returns the choice of a field; `default` where an older config lacks the field."""
    text = config[name] if default is None else config.get(name, default)
    return lookup(f"diffusion.{name}", module, text, injected=injected)
