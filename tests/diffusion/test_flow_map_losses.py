"""Losses of flow maps against NumPy, and at the exact flow maps of a Gaussian and of a mixture."""

import functools
import itertools
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp
from scipy import stats

from diffjax import registry
from diffjax.diffusion import (
    flow_map_losses,
    loss_metrics,
    loss_weighting,
    next_times,
    noise_schedules,
    parameterizations,
    time_sampling,
)
from diffjax.diffusion.denoiser import Prediction, predictor, time_difference
from diffjax.diffusion.flow_map_losses import NEEDS, Networks
from diffjax.diffusion.noise import ddim_step, for_examples
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.registry import choices
from tests import tiny

T = 1000
FLOW = noise_schedules.rectified_flow(T, continuous=True)
TRIG = noise_schedules.trig_flow(T, continuous=True)
EDM = noise_schedules.edm(T, continuous=True)
COSINE = noise_schedules.cosine(T, continuous=True)
LINEAR_TIME = functools.partial(parameterizations.flow, time_scale=1 / T)
RNG = np.random.default_rng(0)
TIMES, NEXT = np.array([900.0, 700.0, 400.0, 300.0, 40.0]), np.array([500.0, 100.0, 400.0, 0.0, 20.0])
X0, EPS = (RNG.normal(size=(5, 3)).astype(np.float32) for _ in range(2))


def smooth(x, t, interval=0.0, xp=jnp):
    """A network: any function of its inputs that is easily differentiated."""
    t, interval = (xp.asarray(v).reshape(-1, 1) for v in (t, interval))
    return xp.sin(1.3 * x + 0.7 * t) + 0.2 * x * interval - 0.1 * t


def average(x, t, interval=0.0, xp=jnp):
    return 0.9 * smooth(x, t, interval, xp) + 0.1


def clean(x, t, xp=jnp):
    """x_0 of a teacher."""
    return 0.5 * xp.cos(x) + 0.1 * xp.asarray(t).reshape(-1, 1) / T


def teacher(x, noise):
    return clean(x, noise.t)


def batch_at(schedule, times=TIMES, next=NEXT, x0=X0, eps=EPS, step=0):
    now, end = schedule(jnp.asarray(times, jnp.float32)), schedule(jnp.asarray(next, jnp.float32))
    x = for_examples(now.alpha, x0) * x0 + for_examples(now.sigma, x0) * eps
    return NoisedBatch(jnp.asarray(x0), jnp.asarray(eps), x, now, jnp.ones(len(x0)), end, step)


def networks(name, parameterization, with_teacher=False):
    interval = time_difference(parameterization) if NEEDS[name].interval else None
    make = functools.partial(predictor, parameterization=parameterization, interval=interval)
    return Networks(make(smooth), make(average), parameterization, teacher if with_teacher else None)


def value(name, schedule, parameterization, *, with_teacher=False, step=0, **options):
    loss = functools.partial(choices(flow_map_losses)[name], schedule=schedule, metric=loss_metrics.l2, **options)
    return jax.jit(lambda batch: loss(batch, networks(name, parameterization, with_teacher)))(
        batch_at(schedule, step=step)
    )


def mean_square(x):
    return np.mean(np.asarray(x, np.float64) ** 2, axis=1)


def columns(*values):
    return (np.asarray(v, np.float64)[:, None] for v in values)


@pytest.mark.parametrize("name", ["mean_flow", "improved_mean_flow"])
@pytest.mark.parametrize("with_teacher", [False, True])
def test_mean_flow_is_eq_10_of_geng_et_al(name, with_teacher):
    """u = v - (t - r) (v du/dx + du/dt), by central differences; x_t = (1 - t) x_0 + t eps, network time t - 1 / T."""
    t, r = columns(TIMES / T, NEXT / T)
    x = (1 - t) * X0 + t * EPS
    v = (x - clean(x, T * t, np)) / t if with_teacher else np.float64(EPS - X0)

    def u(x, t):
        return smooth(x, t - 1 / T, t - r, np)

    tangent = smooth(x, t - 1 / T, 0 * t, np) if name == "improved_mean_flow" else v
    h = 1e-5
    du = (u(x + h * tangent, t + h) - u(x - h * tangent, t - h)) / (2 * h)
    expected = mean_square(u(x, t) - (v - (t - r) * du))
    np.testing.assert_allclose(
        value(name, FLOW, LINEAR_TIME, with_teacher=with_teacher), expected, rtol=5e-3, atol=1e-4
    )


@pytest.mark.parametrize("step", [0, 500, 10**6])
def test_continuous_consistency_is_algorithm_1_of_lu_and_song(step):
    """TrigFlow with sigma_data = 0.5, tangent warm-up over 1000 steps, by central differences."""
    (angle,) = columns(TIMES / T * np.pi / 2)
    s = 0.5
    x = np.cos(angle) * X0 + s * np.sin(angle) * EPS
    velocity = -np.sin(angle) * X0 + s * np.cos(angle) * EPS

    def f(x, angle):
        return smooth(x / s, angle, xp=np)

    h = 1e-5
    df = (f(x + h * velocity, angle + h) - f(x - h * velocity, angle - h)) / (2 * h)
    g = -(np.cos(angle) ** 2) * (s * f(x, angle) - velocity)
    g = g - min(1, step / 1000) * np.cos(angle) * np.sin(angle) * (x + s * df)
    size = np.sqrt(np.mean(g**2, axis=1, keepdims=True))
    expected = mean_square(g / (size + 0.1))
    found = value("continuous_consistency", TRIG, parameterizations.trig_flow, step=step, warmup=1000)
    np.testing.assert_allclose(found, expected, rtol=5e-3)


@pytest.mark.parametrize("kind", ["training", "euler", "heun"])
def test_consistency_is_that_of_openais_code(kind):
    """`consistency_losses` of openai/consistency_models in sigma, with the target of the averaged network."""
    levels = EDM(jnp.asarray(np.stack([TIMES, np.maximum(NEXT, 1.0)]), jnp.float32))
    sigma, next = (np.asarray(v, np.float64)[:, None] for v in levels.sigma)
    sd, low = 0.5, 0.002

    def denoise(net, x, sigma):
        skip = sd**2 / ((sigma - low) ** 2 + sd**2)
        out = (sigma - low) * sd / np.sqrt(sigma**2 + sd**2)
        return skip * x + out * net(x / np.sqrt(sigma**2 + sd**2), np.log(sigma) / 4, xp=np)

    x = X0 + sigma * EPS
    d = (x - (X0 if kind == "training" else clean(x, TIMES, np))) / sigma
    x_next = x + d * (next - sigma)
    if kind == "heun":
        d = (d + (x_next - clean(x_next, np.maximum(NEXT, 1.0), np)) / next) / 2
        x_next = x + d * (next - sigma)
    error = denoise(smooth, x, sigma) - denoise(average, x_next, next)
    expected = (1 / sigma[:, 0] ** 2 + 1 / sd**2) * mean_square(error)
    loss = functools.partial(value, "consistency", EDM, parameterizations.consistency, average_target=True)
    options = {"with_teacher": kind != "training", "heun": kind == "heun"}
    found = loss(weighting=loss_weighting.edm, **options)
    rows = NEXT > 0  # of a clean level the target is the image, which the code does not have
    np.testing.assert_allclose(found[rows], expected[rows], rtol=5e-3, atol=1e-4)
    by_interval = loss(weighting=loss_weighting.edm, by_interval=True, **options)
    rows, equal = rows & (NEXT < TIMES), NEXT == TIMES
    assert (found[equal] > 0).all() and (by_interval[equal] == 0).all()
    np.testing.assert_allclose(by_interval[rows], expected[rows] / (sigma - next)[rows, 0], rtol=5e-3, atol=1e-4)


def test_the_target_of_consistency_at_the_clean_level_is_the_image():
    loss = value("consistency", COSINE, parameterizations.v, weighting=loss_weighting.x0)
    noise = COSINE(jnp.float32(300.0))
    alpha, sigma = float(noise.alpha), float(noise.sigma)
    x = alpha * X0[3] + sigma * EPS[3]
    x0_hat = alpha * x - sigma * smooth(x[None], 299.0, xp=np)[0]
    np.testing.assert_allclose(loss[3], np.mean((x0_hat - X0[3]) ** 2), rtol=1e-3)


def test_shortcut_is_eq_5_of_frans_et_al():
    t, r = columns(TIMES / T, NEXT / T)
    half = (t - r) / 2
    x = (1 - t) * X0 + t * EPS

    def step(x, t):
        interval_input = np.where(half > 1 / 16 * 1.001, half, 0)
        return x - half * average(x, t - 1 / T, interval_input, np)

    reached = step(step(x, t), t - half)
    interval = np.where(t > r, t - r, 1)
    target = np.where(t > r, (x - reached) / interval, EPS - X0)
    expected = mean_square(smooth(x, t - 1 / T, t - r, np) - target)
    np.testing.assert_allclose(value("shortcut", FLOW, LINEAR_TIME, steps=16), expected, rtol=5e-3)


def test_progressive_distillation_is_that_of_openais_code():
    """`progdist_losses` of openai/consistency_models in sigma; the middle level is half way in time."""
    times = np.stack([TIMES, (TIMES + NEXT) / 2, NEXT])
    rows = NEXT < TIMES
    sigma, middle, end = np.asarray(EDM(jnp.asarray(times, jnp.float32)).sigma, np.float64)[..., None]
    x = X0 + sigma * EPS
    half = x + (x - clean(x, times[0], np)) / sigma * (middle - sigma)
    reached = half + (half - clean(half, times[1], np)) / middle * (end - middle)
    target = x - sigma * (reached - x) / np.where(rows[:, None], end - sigma, 1)
    c = np.sqrt(sigma**2 + 0.25)
    x0_hat = 0.25 / c**2 * x + 0.5 * sigma / c * smooth(x / c, np.log(sigma) / 4, xp=np)
    expected = np.maximum(sigma[:, 0] ** -2, 1) * mean_square(x0_hat - target)
    found = value("progressive", EDM, parameterizations.edm, with_teacher=True, weighting=loss_weighting.truncated_snr)
    np.testing.assert_allclose(found[rows], expected[rows], rtol=5e-3)


@pytest.mark.parametrize("with_teacher", [False, True])
def test_inductive_moment_matching_is_eq_67_of_zhou_et_al(with_teacher):
    """On the schedule and network of OT-FM and Euler-FM: eta = t / (1 - t), c_out = t - s, network time t - 1 / T."""
    m, t, s = 3, np.array([0.9, 0.6, 0.04]), np.array([0.5, 0.1, 0.02])
    r = np.maximum(s, [7 / 8, 1 / 3, 0])  # eta decreases by 1, from 8 at most; the last one ends at s
    weight = (1 - t) / ((1 - t) ** 2 + t**2) / (t * (1 - t)) / (1 + np.exp(2 * np.log((1 - t) / t) - 5))
    x0, eps = (RNG.normal(size=(9, 3)).astype(np.float32) for _ in range(2))
    every_t, every_r, every_s = columns(*(np.repeat(v, m) for v in (t, r, s)))

    def f(x, start):
        return x - (start - every_s) * smooth(x, start - 1 / T, start - every_s, np)

    x = (1 - every_t) * x0 + every_t * eps
    ode_x0 = clean(x, T * every_t, np) if with_teacher else x0
    x_r = (1 - every_r) * ode_x0 + every_r * (x - (1 - every_t) * ode_x0) / every_t
    ys, targets = (v.reshape(3, m, 3) for v in (f(x, every_t), f(x_r, every_r)))

    def kernels(i, a, b):
        return np.exp(-np.linalg.norm(a[i][:, None] - b[i][None], axis=-1) / (3 * (t[i] - s[i])))

    rows = [kernels(i, ys, ys) + kernels(i, targets, targets) - 2 * kernels(i, ys, targets) for i in range(3)]
    loss = functools.partial(flow_map_losses.inductive_moment_matching, schedule=FLOW, group=m, k=3.0, eta_max=8.0)
    batch = batch_at(FLOW, np.repeat(T * t, m), np.repeat(T * s, m), x0, eps)
    found = jax.jit(lambda batch: loss(batch, networks("inductive_moment_matching", LINEAR_TIME, with_teacher)))(batch)
    expected = np.repeat(weight, m) * np.concatenate([row.mean(axis=1) for row in rows])
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)


# At exact flow maps.


class Mixture(NamedTuple):
    """A mixture of Gaussians in one dimension."""

    centres: np.ndarray
    widths: np.ndarray
    shares: np.ndarray

    def noised(self, noise, x):
        """Returns the centres and the widths at noise levels, [B, K]."""
        alpha, sigma = (for_examples(v, x) for v in noise[1:])
        return alpha * self.centres[None], jnp.sqrt((alpha * self.widths[None]) ** 2 + sigma**2)

    def posterior(self, x, noise):
        """Returns the shares, means and widths of the Gaussians of x_0 given x_t [B, 1], each [B, K]."""
        centres, widths = self.noised(noise, x)
        alpha, sigma = (for_examples(v, x) for v in noise[1:])
        logits = jnp.log(self.shares[None]) - jnp.log(widths) - (x - centres) ** 2 / (2 * widths**2)
        means = self.centres[None] + alpha * self.widths[None] ** 2 / widths**2 * (x - centres)
        return jax.nn.softmax(logits, axis=1), means, self.widths[None] * sigma / widths

    def mean(self, x, noise):
        """E[x_0 | x_t], x [B, 1]."""
        shares, means, _ = self.posterior(x, noise)
        return jnp.sum(shares * means, axis=1, keepdims=True)

    def transport(self, x, now, next):
        """The ODE's x at the next level: F_next^-1(F_now(x)), with the distribution functions F of noised mixtures."""

        def distribution(x, noise):
            centres, widths = self.noised(noise, x)
            z = (x - centres) / widths
            parts = jax.scipy.stats.norm.cdf(z), jax.scipy.stats.norm.pdf(z) / widths
            return [jnp.sum(self.shares[None] * part, axis=1, keepdims=True) for part in parts]

        level, _ = distribution(x, now)

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            is_below = distribution(middle, next)[0] < jax.lax.stop_gradient(level)
            return jnp.where(is_below, middle, low), jnp.where(is_below, high, middle)

        ends = jax.lax.fori_loop(0, 30, halve, (jnp.full_like(x, -8.0), jnp.full_like(x, 8.0)))
        root = jax.lax.stop_gradient(ends[0])
        value, density = distribution(root, next)
        return root - (value - level) / jax.lax.stop_gradient(density)  # Newton's step, which has the derivatives


GAUSSIAN = Mixture(np.array([0.3]), np.array([0.6]), np.array([1.0]))
MIXTURE = Mixture(np.array([-1.0, 0.7]), np.array([0.3, 0.4]), np.array([0.4, 0.6]))
KINDS = ["mixture", pytest.param("Gaussian", marks=pytest.mark.slow)]
OPTIONS = {  # schedule, parameterization and options of each loss
    "consistency": (COSINE, parameterizations.v, {"weighting": loss_weighting.x0}),
    "continuous_consistency": (TRIG, parameterizations.trig_flow, {"warmup": 0.0}),
    "shortcut": (FLOW, LINEAR_TIME, {"steps": 10**6}),
    "mean_flow": (FLOW, LINEAR_TIME, {}),
    "improved_mean_flow": (TRIG, parameterizations.trig_flow, {}),
    "progressive": (COSINE, parameterizations.v, {"weighting": loss_weighting.x0}),
    "inductive_moment_matching": (FLOW, LINEAR_TIME, {"group": 6, "k": 10.0, "eta_max": 4.1}),
}


def test_the_transport_of_a_gaussian_is_affine():
    now, next = COSINE(jnp.array([800.0, 300.0])), COSINE(jnp.array([500.0, 0.0]))
    x = np.array([[0.7], [-1.2]])
    (start, start_std), (end, end_std) = (
        (0.3 * np.asarray(n.alpha), np.hypot(0.6 * np.asarray(n.alpha), n.sigma)) for n in (now, next)
    )
    expected = end + end_std / start_std * (x[:, 0] - start)
    np.testing.assert_allclose(GAUSSIAN.transport(jnp.asarray(x), now, next)[:, 0], expected, rtol=1e-5)


def exact_predict(data, name, parameterization, schedule, shift):
    """F of the exact flow map, plus `shift`: to the level that the network of a loss goes to."""

    def predict(x, now, next=None):
        c = parameterization(now)
        if name == "progressive":
            next = schedule(now.t - 4.0)
        elif not NEEDS[name].interval:
            next = schedule(jnp.zeros_like(now.t))
        a, s, an, sn, skip, out = (for_examples(v, x) for v in (*now[1:], *next[1:], c.skip, c.out))
        ratio = sn / s
        is_step = jnp.abs(an - ratio * a) > 1e-4  # towards the same level, x_0 is that of the ODE
        step = (data.transport(x, now, next) - ratio * x) / jnp.where(is_step, an - ratio * a, 1.0)
        return Prediction((jnp.where(is_step, step, data.mean(x, now)) - skip * x) / out + shift, c)

    return predict


@functools.cache
def at_the_exact_map(kind, name, *, distilled, **changes):
    """Returns losses and their derivatives by a shift of F, at shifts 0, 0.1 and -0.1; steps are short."""
    data = {"Gaussian": GAUSSIAN, "mixture": MIXTURE}[kind]
    schedule, parameterization, options = OPTIONS[name]
    function = choices(flow_map_losses)[name]
    metric = {"metric": loss_metrics.l2} if "metric" in registry.options(function) else {}
    loss = functools.partial(function, schedule=schedule, **metric, **options, **changes)
    times = np.array([800.0, 500.0, 300.0, 300.0])
    next = times - (4.0 if name == "progressive" else 1.0)
    if NEEDS[name].interval:
        next = np.array([500.0, 100.0, 0.0, 300.0 if "grid" not in NEEDS[name].next_times else 200.0])
    count = len(times)
    now = schedule(jnp.asarray(times, jnp.float32))
    # x_t, and nodes of x_0 given x_t, whose weighted mean is exact.
    nodes, weights = np.polynomial.hermite_e.hermegauss(6)
    x = np.asarray(now.alpha * 0.8 + now.sigma * 0.3)[:, None]
    shares, means, widths = (np.asarray(v, np.float64)[..., None] for v in data.posterior(jnp.asarray(x), now))
    weights = np.reshape(shares * weights / weights.sum(), (count, -1))
    x0 = np.reshape(means + widths * nodes, (count, -1))
    eps = (x - np.asarray(now.alpha)[:, None] * x0) / np.asarray(now.sigma)[:, None]
    repeat = lambda v: np.repeat(v, x0.shape[1])  # noqa: E731
    batch = batch_at(schedule, repeat(times), repeat(next), *(np.float32(v).reshape(-1, 1) for v in (x0, eps)), step=1)

    def total(shift):
        predict, average_predict = (exact_predict(data, name, parameterization, schedule, v) for v in (shift, 0.0))
        functions = Networks(predict, average_predict, parameterization, data.mean if distilled else None)
        return jnp.sum(loss(batch, functions).reshape(count, -1) * weights, axis=1)

    compute = jax.jit(lambda shift: (total(shift), jax.jacfwd(total)(shift)))
    return tuple(np.asarray(v) for v in jax.lax.map(compute, jnp.array([0.0, 0.1, -0.1])))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_the_loss_of_distillation_is_zero_at_the_exact_flow_map(name, kind):
    """The loss of IMM is a norm, so that the error of its target, of second order in its step, counts more."""
    losses, slopes = at_the_exact_map(kind, name, distilled=True)
    assert np.all(losses[0] < (0.1 if name == "inductive_moment_matching" else 1e-3) * losses[1:].max(0) + 1e-6)
    assert np.all(slopes[1] > 0) and np.all(slopes[2] < 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", sorted({*OPTIONS} - {"progressive", "inductive_moment_matching"}))
def test_the_mean_gradient_of_training_is_zero_at_the_exact_flow_map(name, kind):
    """Over x_0 given x_t, by quadrature; the loss itself is not zero. sCM's bounded tangent has another mean."""
    changes = {"bound": 0.0} if name == "continuous_consistency" else {}
    _, slopes = at_the_exact_map(kind, name, distilled=False, **changes)
    assert np.all(np.abs(slopes[0]) < 0.03 * slopes[1])
    assert np.all(slopes[1] > 0) and np.all(slopes[2] < 0)


@pytest.mark.parametrize("k", [0.0, 2.0])  # r is the next level; r is between
def test_the_mean_gradient_of_inductive_moment_matching_is_zero_at_the_exact_flow_map(k):
    """From t = 0.8 to 0.3, over pairs of samples; a shift of F shifts the target less, as it is nearer."""
    count, group = 5000, 4
    x0, eps = (RNG.normal(size=(count * group, 1)).astype(np.float32) for _ in range(2))
    batch = batch_at(FLOW, np.full(len(x0), 800.0), np.full(len(x0), 300.0), 0.3 + 0.6 * x0, eps)

    def losses(shift):
        predict = exact_predict(GAUSSIAN, "inductive_moment_matching", LINEAR_TIME, FLOW, shift)
        functions = Networks(predict, predict, LINEAR_TIME)
        found = flow_map_losses.inductive_moment_matching(
            batch, functions, schedule=FLOW, group=group, k=k, eta_max=4.0
        )
        return found.reshape(count, group).mean(axis=1)

    slopes = np.asarray(jax.lax.map(jax.jit(jax.jacfwd(losses)), jnp.array([0.0, 0.3, -0.3])))
    means, errors = slopes.mean(axis=1), slopes.std(axis=1) / np.sqrt(count)
    assert abs(means[0]) < 4 * errors[0]
    assert means[1] > 8 * errors[1] and means[2] < -8 * errors[2]


def test_every_loss_is_tested():
    assert set(OPTIONS) == set(choices(flow_map_losses)) == set(NEEDS)


# Trained on a mixture of Gaussians.

SPREAD = 0.85  # standard deviation of the mixture, about
BATCH, TRAINING_STEPS = 256, 4000


def perceptron(params, x, t, interval=None):
    """A network of smooth features of its time inputs."""
    times = [t, jnp.zeros_like(t) if interval is None else interval]
    waves = [wave(k * v) for v in times for k in (1.0, 2.0, 4.0) for wave in (jnp.sin, jnp.cos)]
    hidden = jnp.concatenate([x, jnp.stack([*times, *waves], axis=1)], axis=1)
    for i, (kernel, bias) in enumerate(params):
        hidden = hidden @ kernel + bias[None]
        hidden = jax.nn.silu(hidden) if i < len(params) - 1 else hidden
    return hidden


def fresh_params(key):
    sizes = [15, 128, 128, 128, 1]
    keys = jax.random.split(key, len(sizes))
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=False)
    kernels = [jax.random.normal(k, (a, b)) * np.sqrt(2 / a) * (b > 1) for k, a, b in shapes]
    return [(kernel, jnp.zeros(kernel.shape[1])) for kernel in kernels]


CONSISTENCY = functools.partial(parameterizations.consistency, sigma_data=SPREAD)
SMALL_EDM = noise_schedules.edm(T, continuous=True, sigma_max=20.0)
WIDE_TRIG = noise_schedules.trig_flow(T, continuous=True, sigma_data=SPREAD)
TRAINED = {  # schedule, parameterization, time sampling, next times, loss, and whether a teacher is distilled
    "iCT": (
        SMALL_EDM,
        CONSISTENCY,
        time_sampling.log_normal(mean=-1.1, std=2.0),
        functools.partial(next_times.doubling, start=10, end=160, steps=TRAINING_STEPS),
        functools.partial(
            flow_map_losses.consistency,
            metric=functools.partial(loss_metrics.pseudo_huber, c=0.03),
            weighting=loss_weighting.x0,
            by_interval=True,
        ),
        False,
    ),
    "ECT with c = 0.03": (  # the norm, c = 0, estimates the median in one dimension
        SMALL_EDM,
        CONSISTENCY,
        time_sampling.log_normal(mean=-1.1, std=2.0),
        functools.partial(next_times.shrinking, every=TRAINING_STEPS // 8),
        functools.partial(
            flow_map_losses.consistency,
            metric=functools.partial(loss_metrics.pseudo_huber, c=0.03),
            weighting=loss_weighting.x0,
            by_interval=True,
        ),
        False,
    ),
    "consistency distillation": (
        SMALL_EDM,
        CONSISTENCY,
        time_sampling.uniform(),
        functools.partial(next_times.grid, steps=18, rho=7.0),
        functools.partial(
            flow_map_losses.consistency,
            metric=loss_metrics.l2,
            weighting=functools.partial(loss_weighting.edm, sigma_data=SPREAD),
            heun=True,
        ),
        True,
    ),
    "sCM": (
        WIDE_TRIG,
        functools.partial(parameterizations.trig_flow, sigma_data=SPREAD),
        time_sampling.log_normal(mean=-0.8, std=1.6),
        next_times.clean,
        functools.partial(
            flow_map_losses.continuous_consistency,
            metric=loss_metrics.l2,
            sigma_data=SPREAD,
            warmup=TRAINING_STEPS // 4,
        ),
        True,
    ),
    "shortcut": (
        FLOW,
        LINEAR_TIME,
        time_sampling.uniform(),
        functools.partial(next_times.dyadic, steps=64, share=0.6),
        functools.partial(flow_map_losses.shortcut, metric=loss_metrics.l2, steps=64),
        False,
    ),
    "MeanFlow": (
        FLOW,
        LINEAR_TIME,
        time_sampling.logit_normal(mean=-0.4),
        functools.partial(next_times.second_sample, share=0.5),
        functools.partial(flow_map_losses.mean_flow, metric=loss_metrics.l2),
        True,
    ),
    "improved MeanFlow": (
        FLOW,
        LINEAR_TIME,
        time_sampling.logit_normal(mean=-0.4),
        functools.partial(next_times.second_sample, share=0.5),
        functools.partial(flow_map_losses.improved_mean_flow, metric=loss_metrics.l2),
        False,
    ),
    "IMM": (
        FLOW,
        LINEAR_TIME,
        time_sampling.uniform(),
        next_times.uniform_below,
        functools.partial(flow_map_losses.inductive_moment_matching, group=32, k=4.0, eta_max=8.0),
        False,
    ),
}


PROGRESSIVE = (
    FLOW,
    LINEAR_TIME,
    time_sampling.uniform(),
    functools.partial(next_times.grid, steps=2),
    functools.partial(flow_map_losses.progressive, metric=loss_metrics.l2, weighting=loss_weighting.flow),
    True,
)


def train(schedule, parameterization, times, choose, loss, distilled, *, steps=TRAINING_STEPS):
    """Returns the predictions of the trained network, and those with the average of its parameters."""
    group = loss.keywords.get("group", 1)
    interval = time_difference(parameterization) if NEEDS[loss.func.__name__].interval else None

    def predict_with(params):
        network = functools.partial(perceptron, params)
        return predictor(network, parameterization, interval=interval)

    def mean_loss(params, ema, key, step):
        kind_key, data_key, time_key, eps_key = jax.random.split(key, 4)
        kinds = jax.random.bernoulli(kind_key, MIXTURE.shares[1], (BATCH,)).astype(int)
        centres, widths = (jnp.asarray(v, jnp.float32)[kinds] for v in MIXTURE[:2])
        x0 = (centres + widths * jax.random.normal(data_key, (BATCH,)))[:, None]
        keys = (jax.random.split(k, BATCH) for k in (time_key, eps_key))
        options = {"schedule": schedule, "time_sampler": times, "next_times": choose, "step": step, "group": group}
        batch = NoisedBatch.sample(*keys, x0, state={}, **options)
        teacher = MIXTURE.mean if distilled else None
        functions = Networks(predict_with(params), predict_with(ema), parameterization, teacher)
        return loss(batch, functions, schedule=schedule).mean()

    rate = optax.cosine_decay_schedule(1e-3, steps, alpha=0.01)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))

    def update(state, step):
        params, ema, memory = state
        gradient = jax.grad(mean_loss)(params, ema, jax.random.fold_in(jax.random.key(1), step), step)
        updates, memory = optimizer.update(gradient, memory, params)
        params = optax.apply_updates(params, updates)
        return (params, optax.incremental_update(params, ema, 0.001), memory), None

    params = fresh_params(jax.random.key(0))
    run = jax.jit(lambda state: jax.lax.scan(update, state, jnp.arange(steps))[0], compiler_options=tiny.OPTIMIZED)
    last, ema, _ = run((params, params, optimizer.init(params)))
    return predict_with(last), predict_with(ema)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_one_step_of_a_trained_map_has_the_distribution_of_the_data(name):
    """By the distance of Kolmogorov and Smirnov; one step of DDIM has 0.47."""
    schedule = TRAINED[name][0]
    _, predict = train(*TRAINED[name])
    first, last = schedule(float(T)), schedule(0.0)
    x = np.hypot(first.alpha, first.sigma) * jax.random.normal(jax.random.key(2), (20_000, 1))
    samples = np.asarray(predict(x, first, last).x0(x))[:, 0]

    def cumulative(x):
        return sum(share * stats.norm.cdf(x, c, w) for c, w, share in zip(*MIXTURE, strict=True))

    assert stats.kstest(samples, cumulative).statistic < 0.12


@pytest.mark.slow
def test_two_steps_of_a_student_of_progressive_distillation_are_four_of_its_teacher():
    student, _ = train(*PROGRESSIVE, steps=1000)

    def sample(estimate, steps, x):
        levels = [FLOW(t) for t in np.linspace(T, 0, steps + 1)]
        for now, next in itertools.pairwise(levels):
            x = ddim_step(x, estimate(x, now), now, next)
        return np.asarray(x)

    x = jax.random.normal(jax.random.key(2), (2000, 1))
    twice, expected = sample(lambda x, now: student(x, now).x0(x), 2, x), sample(MIXTURE.mean, 4, x)
    assert np.std(twice - expected) < 0.1 * np.std(sample(MIXTURE.mean, 2, x) - expected)
