"""Training losses of flow maps, for samples in few steps. A public function of this file is a loss a config can name.

A flow map takes x_t along the probability-flow ODE to a less noisy level. Here it is a DDIM step with the x_0 of the
network, X = next.alpha x0_hat + next.sigma (x - now.alpha x0_hat) / now.sigma = a x + b F: for a rectified flow
x - (t - r) F, with the average velocity F, and to the clean image x0_hat itself, as of consistency models.

Each loss follows the ODE from x_t by the x_0 of the example and the same noise, whose mean over examples is the ODE's
direction, or by the x_0 of a teacher: then it distils the teacher. All targets are without gradient. A loss maps a
noised batch and its networks to a value per example [B]; the process passes `schedule`, `weighting`, `metric` and the
`steps` of next_times. Losses raise ValueError for invalid options.

Reference: Boffi et al. 2025, "How to build a consistency model", for flow maps in general.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
from jax import Array, lax
from jax import numpy as jnp
from jaxtyping import Bool, Float

from diffjax.diffusion.denoiser import Predict
from diffjax.diffusion.guidance import in_interval
from diffjax.diffusion.noise import Noise, ddim_step, eps_from_x0, for_examples, log_snr
from diffjax.diffusion.noise_schedules import Schedule
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.diffusion.parameterizations import Coefficients

Metric = Callable[[Float[Array, "B ..."]], Float[Array, " B"]]


class Guidance(NamedTuple):
    """Guidance of a flow map by its own network.

    Attributes:
      unconditional: the trained network under the null conditions.
      has_condition: which examples have a condition; the others, whose conditions are dropped, are not guided.
      scale: scale of each example, at least 1, which the network is given; None: the option `guidance` of the loss.
    """

    unconditional: Predict
    has_condition: Bool[Array, " B"]
    scale: Float[Array, " B"] | None = None


class Networks(NamedTuple):
    """The networks of a flow-map loss, under the conditions and the dropout of the batch.

    Attributes:
      trained: with the parameters that are trained.
      average: the same, with their moving average.
      coefficients: coefficients of the parameterization at a noise level.
      teacher: (x, now) -> x_0 of a trained model that is distilled; None: the data teach.
      guidance: classifier-free guidance of the loss, without a teacher; None: none.
    """

    trained: Predict
    average: Predict
    coefficients: Callable[[Noise], Coefficients]
    teacher: Callable[[Float[Array, "B ..."], Noise], Float[Array, "B ..."]] | None = None
    guidance: Guidance | None = None


def consistency(
    batch: NoisedBatch,
    networks: Networks,
    *,
    schedule: Schedule,
    weighting: Callable,
    metric: Metric,
    by_interval: bool = False,
    average_target: bool = False,
    heun: bool = False,
) -> Float[Array, " B"]:
    """Compares the x_0 of both ends of a step: consistency training, or with a teacher consistency distillation.

    Args:
      batch: noised examples with their next level; at a clean one the target is x_next itself.
      networks: networks.
      schedule: noise level at a timestep.
      weighting: a choice of loss_weighting.py.
      metric: a choice of loss_metrics.py.
      by_interval: whether to divide by the interval of sigma / alpha, the weighting of iCT; the loss is 0 without one.
      average_target: whether the target is that of the averaged parameters; otherwise that of the trained ones.
      heun: whether to follow a teacher by Heun's step, as the paper does; otherwise by a DDIM step.

    Reference: Song et al. 2023, "Consistency models", algorithms 2 and 3; Song & Dhariwal 2024 (iCT); Geng et al. 2024
    (ECT).
    """
    now, next = batch.noise, _next(batch)
    x0_hat = networks.trained(batch.x, now).x0(batch.x)
    # Networks are not evaluated below the first level, where they are not trained.
    level = schedule(jnp.maximum(next.t, schedule.first))
    x_next = _follow(batch, networks, next, level, heun)
    target = (networks.average if average_target else networks.trained)(x_next, level)
    target = jnp.where(for_examples(next.sigma > 0, x_next), target.x0(x_next), x_next)
    loss = weighting(now, networks.coefficients(now)) * metric(x0_hat - lax.stop_gradient(target))
    if not by_interval:
        return loss
    # 1 / (now.sigma / now.alpha - next.sigma / next.alpha); zero without signal
    factor = now.alpha * next.alpha / jnp.maximum(now.sigma * next.alpha - next.sigma * now.alpha, 1e-12)
    return loss * jnp.where(next.t < now.t, factor, 0.0)


def continuous_consistency(
    batch: NoisedBatch,
    networks: Networks,
    *,
    schedule: Schedule,
    metric: Metric,
    sigma_data: float = 0.5,
    warmup: float = 10_000,
    bound: float = 0.1,
) -> Float[Array, " B"]:
    """Continuous-time consistency training or distillation (sCM), in any parameterization on a continuous schedule.

    The target of F is F - cos(theta) dx_0/dtheta, as long as its tangent is not longer than about 1, with the angle
    theta = arctan(sigma / (alpha sigma_data)).

    Args:
      batch: noised examples.
      networks: networks.
      schedule: noise level at a timestep.
      metric: a choice of loss_metrics.py.
      sigma_data: standard deviation of the data, above 0.
      warmup: training steps over which the parts of the tangent that may be unstable grow in; 0: from the start.
      bound: c of the normalised tangent g / (|g| + c), |g| the root mean square; 0: not normalised.

    Reference: Lu & Song 2025, "Simplifying, stabilizing and scaling continuous-time consistency models", algorithm 1;
    its adaptive weighting is the weighting `learned`.
    """
    if sigma_data <= 0:
        raise ValueError(f"sigma_data={sigma_data:g}: must be above 0")
    x, direction = batch.x, _direction(batch, networks, schedule)

    def coefficients(t):
        now = schedule(t)
        c = networks.coefficients(now)
        return c.skip, c.out, jnp.arctan2(now.sigma, sigma_data * now.alpha)

    t, ones = batch.noise.t, jnp.ones_like(batch.noise.t)
    (skip, out, theta), (d_skip, d_out, d_theta) = jax.jvp(coefficients, (t,), (ones,))
    output, d_output = _along(networks.trained, x, t, direction, schedule)
    grown = jnp.minimum(1.0, jnp.asarray(batch.step) / warmup) if warmup else 1.0
    stable = for_examples(skip, x) * direction + for_examples(d_out, x) * output
    tangent = stable + grown * (for_examples(d_skip, x) * x + for_examples(out, x) * d_output)
    # Towards the x_0 of less noise: F moves against the sign of its factor.
    tangent = -for_examples(jnp.sign(out) * jnp.cos(theta) / d_theta, x) * tangent
    if bound:
        size = jax.vmap(lambda g: jnp.sqrt(jnp.mean(g**2)))(tangent)
        tangent = tangent / for_examples(size + bound, x)
    return metric(output - lax.stop_gradient(output + tangent))


def shortcut(
    batch: NoisedBatch,
    networks: Networks,
    *,
    schedule: Schedule,
    metric: Metric,
    steps: int,
    average_target: bool = True,
) -> Float[Array, " B"]:
    """Trains each step to equal two steps of half its length, and the ODE's direction where next = now.

    Args:
      batch: noised examples with their next level: next_times `dyadic`.
      networks: networks.
      schedule: noise level at a timestep.
      metric: a choice of loss_metrics.py; of the error of F.
      steps: number of the shortest steps in T, which follow the ODE's direction; that of `dyadic`.
      average_target: whether the half steps are those of the averaged parameters.

    Reference: Frans et al. 2024, "One step diffusion via shortcut models", eq. 5 and algorithm 1.
    """
    x, now, next = batch.x, batch.noise, _next(batch)
    middle = schedule((now.t + next.t) / 2)
    predict = networks.average if average_target else networks.trained
    is_shortest = now.t - middle.t <= schedule.timesteps / steps * 1.001

    def half_step(x, start, end):
        target_level = jax.tree.map(lambda a, b: jnp.where(is_shortest, a, b), start, end)
        return _move(x, predict(x, start, target_level).x0(x), start, end)

    reached = half_step(half_step(x, now, middle), middle, next)
    c = networks.coefficients(now)
    a, b = _map_coefficients(now, next, c)
    is_step = next.t < now.t
    by_halves = (reached - for_examples(a, x) * x) / for_examples(jnp.where(is_step, b, 1.0), x)
    along_ode = (_clean_estimate(batch, networks) - for_examples(c.skip, x) * x) / for_examples(c.out, x)
    target = jnp.where(for_examples(is_step, x), by_halves, along_ode)
    return metric(networks.trained(x, now, next).output - lax.stop_gradient(target))


def mean_flow(
    batch: NoisedBatch,
    networks: Networks,
    *,
    schedule: Schedule,
    metric: Metric,
    guidance: float = 1.0,
    mix: float = 0.0,
    guidance_low: float = 0.0,
    guidance_high: float = float("inf"),
) -> Float[Array, " B"]:
    """Trains the F for which the end of the step stays where it is as its start moves along the ODE: dX/dt = 0.

    For a rectified flow, F = v - (t - r) dF/dt (MeanFlow); for other parameterizations and paths the same condition on
    X = a x + b F. Requires a continuous schedule.

    With guidance the ODE is the guided one: v is omega v + kappa v_c + (1 - omega - kappa) v_null, with the directions
    of the network itself, where next = now, under the conditions of the example and the null conditions.

    Args:
      batch: noised examples with their next level: next_times `second_sample`.
      networks: networks.
      schedule: noise level at a timestep.
      metric: a choice of loss_metrics.py; of the error of F.
      guidance: scale of classifier-free guidance that the flow map learns, omega / (1 - kappa), at least 1; 1: none.
        `networks.guidance.scale` replaces it.
      mix: kappa in [0, 1), the weight of the network's own guided direction.
      guidance_low, guidance_high: guidance applies for low < sigma / alpha <= high only.

    Reference: Geng et al. 2025, "Mean flows for one-step generative modeling", eq. 10 and 11; guidance: section 4.2,
    the mixing scale kappa: the appendix on improved guidance.
    """
    scale = _guidance_scale(batch, networks, guidance, (guidance_low, guidance_high))
    if not 0 <= mix < 1:
        raise ValueError(f"mix={mix:g}: must be at least 0 and below 1")
    x, now, x0 = batch.x, batch.noise, _clean_estimate(batch, networks)
    if scale is not None:
        conditional = networks.trained(x, now, now).x0(x) if mix else x0
        x0 = _guided(batch, networks, x0, conditional, scale, mix)
    direction = _direction_to(x, x0, now, schedule)
    return _average_velocity(batch, networks, direction, direction, schedule, metric)


def improved_mean_flow(
    batch: NoisedBatch,
    networks: Networks,
    *,
    schedule: Schedule,
    metric: Metric,
    guidance: float = 1.0,
    guidance_low: float = 0.0,
    guidance_high: float = float("inf"),
) -> Float[Array, " B"]:
    """Equals `mean_flow`, with dF/dt along the direction of the network itself instead of that of the example.

    The target then has the variance of denoising only. One more evaluation gives that direction, F where next = now.
    The released models have an auxiliary output of the network instead. Options of guidance are those of `mean_flow`,
    with kappa = 1 - 1 / guidance, so that omega = 1: v + (1 - 1 / guidance) (v_c - v_null).

    Reference: Geng et al. 2025b, "Improved mean flows", algorithm 1; guidance: the released code.
    """
    x, now, x0 = batch.x, batch.noise, _clean_estimate(batch, networks)
    conditional = networks.trained(x, now, now).x0(x)
    mean_direction = _direction_to(x, conditional, now, schedule)
    scale = _guidance_scale(batch, networks, guidance, (guidance_low, guidance_high))
    if scale is not None:
        x0 = _guided(batch, networks, x0, conditional, scale, 1.0 - 1.0 / scale)
    direction = _direction_to(x, x0, now, schedule)
    return _average_velocity(batch, networks, direction, lax.stop_gradient(mean_direction), schedule, metric)


def inductive_moment_matching(
    batch: NoisedBatch,
    networks: Networks,
    *,
    schedule: Schedule,
    group: int = 4,
    k: float = 12.0,
    eta_max: float = 160.0,
    a: float = 1.0,
    b: float = 5.0,
) -> Float[Array, " B"]:
    """Matches samples that are moved to the next level from two levels, by the squared maximum mean discrepancy (IMM).

    The target is that of the same network without gradient, which starts from a level r between both, with the same
    noise: eta = sigma / alpha is smaller by eta_max / 2^k, and not below the next level. The estimate of the
    discrepancy is biased, a V-statistic. With groups of one example the loss is one of consistency.

    Args:
      batch: noised examples with their next level; `group` consecutive ones have the same levels.
      networks: networks; an example's direction to level r is that of its own x_0, or of the teacher's.
      schedule: noise level at a timestep in [0, T]; the weight is that of t / T.
      group: number M of examples that are compared with each other.
      k: halvings of eta_max to the decrement of eta.
      eta_max: sigma / alpha above which r stays at the level of the largest eta; above 0.
      a, b: of the weight sigmoid(b - log-SNR) alpha^a / (alpha^2 + sigma^2) (-d log-SNR / dt) / 2; a at least 1.

    Returns:
      For each example its row of the group's sums of kernels, so that the mean is that of the paper.

    Reference: Zhou et al. 2025, "Inductive moment matching", eq. 13, 67 and app. C.6; the Laplace kernel of app. C.8,
    whose scale is the inverse of the factor of F.
    """
    if group < 1 or group % 1:
        raise ValueError(f"group={group:g}: must be a whole number of examples, at least 1")
    if eta_max <= 0 or a < 1:
        raise ValueError(f"eta_max={eta_max:g}, a={a:g}: must be eta_max > 0, a >= 1")
    x, now, next = batch.x, batch.noise, _next(batch)
    r = _lower_by_eta(now, next, schedule, eta_max / 2.0**k, eta_max)
    x_r = _move(x, _clean_estimate(batch, networks), now, schedule(r))
    # Networks are not evaluated below the first level, where they are not trained.
    level = schedule(jnp.maximum(r, schedule.first))
    target = _move(x_r, networks.trained(x_r, level, next).x0(x_r), level, next)
    target = lax.stop_gradient(jnp.where(for_examples(r > next.t, x), target, x_r))
    reached = _move(x, networks.trained(x, now, next).x0(x), now, next)
    _, factor = _map_coefficients(now, next, networks.coefficients(now))
    scale = 1.0 / jnp.maximum(jnp.abs(factor), 1e-6)

    def rows(reached, target, scale):
        inner, outer = _laplace(reached, reached, scale), _laplace(target, target, scale)
        return jnp.mean(inner + outer - 2.0 * _laplace(reached, target, scale), axis=1)

    in_groups = (jnp.reshape(v, (-1, int(group), *v.shape[1:])) for v in (reached, target, scale))
    _, rates = jax.jvp(schedule, (now.t,), (jnp.ones_like(now.t),))
    slope = 2.0 * (now.alpha**a * rates.sigma / now.sigma - now.alpha ** (a - 1.0) * rates.alpha)
    weight = jax.nn.sigmoid(b - log_snr(now)) * schedule.timesteps * slope / (now.alpha**2 + now.sigma**2) / 2.0
    return weight * jnp.ravel(jax.vmap(rows)(*in_groups))


def progressive(
    batch: NoisedBatch, networks: Networks, *, schedule: Schedule, weighting: Callable, metric: Metric
) -> Float[Array, " B"]:
    """Trains one step to equal two DDIM steps of a teacher: progressive distillation. Requires a teacher.

    Args:
      batch: noised examples with their next level: next_times `grid`, with the steps of the student.
      networks: networks.
      schedule: noise level at a timestep.
      weighting: a choice of loss_weighting.py; `truncated_snr` in the paper.
      metric: a choice of loss_metrics.py; of the error of x_0.

    Reference: Salimans & Ho 2022, algorithm 2.
    """
    assert networks.teacher is not None
    x, now, next = batch.x, batch.noise, _next(batch)
    middle = schedule((now.t + next.t) / 2)
    half = _move(x, networks.teacher(x, now), now, middle)
    end = _move(half, networks.teacher(half, middle), middle, next)
    # The x_0 whose DDIM step from x goes there.
    ratio = for_examples(next.sigma / now.sigma, x)
    target = (end - ratio * x) / (for_examples(next.alpha, x) - ratio * for_examples(now.alpha, x))
    error = networks.trained(x, now).x0(x) - lax.stop_gradient(target)
    return weighting(now, networks.coefficients(now)) * metric(error)


class Needs(NamedTuple):
    """Requirements of a loss on the process.

    Attributes:
      interval: the network is given the interval of the step.
      continuous: the schedule must be continuous, as it is differentiated by time or steps are halved.
      derivative: the network is differentiated along the trajectory, in forward mode.
      teacher: the loss is one of distillation only.
      next_times: choices of next_times.py that fit; empty: all.
      reason: problem that the loss has with the others, as the end of a sentence.
      equal_pairs: some pairs must have equal times, which teach the direction of the ODE.
    """

    interval: bool = False
    continuous: bool = False
    derivative: bool = False
    teacher: bool = False
    next_times: tuple[str, ...] = ()
    reason: str = ""
    equal_pairs: bool = False


_UNEQUAL = ("grid", "square_root", "doubling", "shrinking", "skip", "uniform_below", "clean")
WITH_EQUAL_PAIRS = ("second_sample", "dyadic")  # choices of next_times.py
_MEAN_FLOW = Needs(interval=True, continuous=True, derivative=True)
NEEDS: Mapping[str, Needs] = {
    "consistency": Needs(next_times=_UNEQUAL, reason="learns nothing of pairs of equal times"),
    "inductive_moment_matching": Needs(
        interval=True, continuous=True, next_times=_UNEQUAL, reason="learns nothing of pairs of equal times"
    ),
    "continuous_consistency": Needs(continuous=True, derivative=True, next_times=("clean",), reason="does not use it"),
    "shortcut": Needs(
        interval=True, continuous=True, next_times=("dyadic",), reason="learns steps and their halves", equal_pairs=True
    ),
    "mean_flow": _MEAN_FLOW,
    "improved_mean_flow": _MEAN_FLOW._replace(
        next_times=WITH_EQUAL_PAIRS, reason="requires pairs of equal times", equal_pairs=True
    ),
    "progressive": Needs(teacher=True, next_times=("grid",), reason="requires the steps of the student, grid(steps=N)"),
}


def _lower_by_eta(now: Noise, next: Noise, schedule: Schedule, decrement: float, eta_max: float) -> Array:
    """Returns timesteps between two levels, with sigma / alpha smaller by `decrement` than now, or than `eta_max`."""
    eta = jnp.minimum(now.sigma / jnp.maximum(now.alpha, 1e-6), eta_max) - decrement
    first = schedule(schedule.first)
    t = jnp.minimum(schedule.time_at(-2.0 * jnp.log(jnp.maximum(eta, 1e-6))), now.t)
    return jnp.where(eta < first.sigma / first.alpha, next.t, jnp.maximum(t, next.t))


def _laplace(x: Float[Array, "M ..."], y: Float[Array, "M ..."], scale: Float[Array, " M"]) -> Float[Array, "M M"]:
    """Returns the kernels exp(-scale |x_i - y_j| / D) of all pairs of examples of D values."""
    x, y = (jnp.reshape(v, (len(v), -1)) for v in (x, y))
    square = jnp.sum((x[:, None] - y[None]) ** 2, axis=-1)
    # Far below any distance that matters, so that the gradient at zero is zero.
    return jnp.exp(-scale[:, None] * jnp.sqrt(jnp.maximum(square, 1e-16)) / x.shape[-1])


def _guidance_scale(
    batch: NoisedBatch, networks: Networks, option: float, interval: tuple[float, float]
) -> Float[Array, " B"] | None:
    """Returns the scale of each example, 1 where it is not guided; None: there is no guidance."""
    if option < 1:
        raise ValueError(f"guidance={option:g}: must be at least 1")
    if not interval[0] < interval[1]:
        raise ValueError(f"guidance_low={interval[0]:g}, guidance_high={interval[1]:g}: must be low < high")
    if networks.guidance is None:
        return None
    scale = option if networks.guidance.scale is None else networks.guidance.scale
    return jnp.where(networks.guidance.has_condition & in_interval(batch.noise, interval), scale, 1.0)


def _guided(
    batch: NoisedBatch, networks: Networks, x0: Array, conditional: Array, scale: Array, mix: Array | float
) -> Array:
    """Returns the x_0 of the guided direction: omega x0 + mix conditional + (1 - omega - mix) null.

    omega = (1 - mix) scale; `x0` where the scale is 1. Directions are affine in x_0, so they have the same weights.
    """
    assert networks.guidance is not None
    null = networks.guidance.unconditional(batch.x, batch.noise, batch.noise).x0(batch.x)
    omega, mix = (for_examples(jnp.asarray(weight), x0) for weight in ((1.0 - mix) * scale, mix))
    guided = omega * x0 + mix * conditional + (1.0 - omega - mix) * null
    return jnp.where(for_examples(scale == 1.0, x0), x0, guided)


def _average_velocity(
    batch: NoisedBatch, networks: Networks, direction: Array, tangent: Array, schedule: Schedule, metric: Metric
) -> Float[Array, " B"]:
    """Returns the error of F = -(a' x + a direction + b dF/dt) / b', where dF/dt is along `tangent`."""
    x, t, next = batch.x, batch.noise.t, _next(batch)

    def coefficients(t):
        now = schedule(t)
        return _map_coefficients(now, next, networks.coefficients(now))

    (a, b), (d_a, d_b) = jax.jvp(coefficients, (t,), (jnp.ones_like(t),))
    output, d_output = _along(networks.trained, x, t, tangent, schedule, next)
    target = -(
        for_examples(d_a, x) * x + for_examples(a, x) * direction + for_examples(b, x) * d_output
    ) / for_examples(d_b, x)
    return metric(output - lax.stop_gradient(target))


def _along(predict: Predict, x: Array, t: Array, direction: Array, schedule: Schedule, *next: Noise):
    """Returns the network's output, and its derivative by time as x moves in a direction; to fixed next levels."""

    def output(x, t):
        return predict(x, schedule(t), *next).output

    return jax.jvp(output, (x, t), (lax.stop_gradient(direction), jnp.ones_like(t)))


def _map_coefficients(now: Noise, next: Noise, c: Coefficients) -> tuple[Array, Array]:
    """Returns a and b of the flow map a x + b F."""
    ratio = next.sigma / now.sigma
    x0_weight = next.alpha - now.alpha * ratio
    return ratio + x0_weight * c.skip, x0_weight * c.out


def _clean_estimate(batch: NoisedBatch, networks: Networks) -> Array:
    """Returns the x_0 that gives the direction of the ODE: that of the teacher, or of the example."""
    if networks.teacher is None:
        return batch.x0
    return lax.stop_gradient(networks.teacher(batch.x, batch.noise))


def _direction(batch: NoisedBatch, networks: Networks, schedule: Schedule) -> Array:
    """Returns dx/dt along the ODE."""
    return _direction_to(batch.x, _clean_estimate(batch, networks), batch.noise, schedule)


def _direction_to(x: Array, x0: Array, now: Noise, schedule: Schedule) -> Array:
    """Returns dx/dt with a fixed x_0 and its noise."""
    _, rates = jax.jvp(schedule, (now.t,), (jnp.ones_like(now.t),))
    eps = eps_from_x0(x, x0, _levels(now, x))
    return for_examples(rates.alpha, x) * x0 + for_examples(rates.sigma, x) * eps


def _follow(batch: NoisedBatch, networks: Networks, next: Noise, level: Noise, heun: bool) -> Array:
    """Returns x at the next level along the ODE, by a DDIM step, or of a teacher, evaluated at `level`, by Heun's."""
    now, x0 = batch.noise, _clean_estimate(batch, networks)
    x_next = _move(batch.x, x0, now, next)
    if networks.teacher is None or not heun:
        return x_next
    eps = eps_from_x0(x_next, networks.teacher(x_next, level), _levels(level, x_next))
    change = next.sigma - next.alpha / now.alpha * now.sigma
    corrected = x_next + for_examples(change / 2, x_next) * (eps - eps_from_x0(batch.x, x0, _levels(now, batch.x)))
    return jnp.where(for_examples(next.sigma > 0, x_next), corrected, x_next)


def _move(x: Array, x0: Array, now: Noise, next: Noise) -> Array:
    return ddim_step(x, x0, _levels(now, x), _levels(next, x))


def _next(batch: NoisedBatch) -> Noise:
    assert batch.next is not None
    return batch.next


def _levels(noise: Noise, x: Array) -> Noise:
    return jax.tree.map(lambda leaf: for_examples(leaf, x), noise)
