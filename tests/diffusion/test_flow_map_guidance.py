"""Classifier-free guidance in the losses of mean flows, against NumPy and at exact guided flow maps."""

import functools
import itertools

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion import (
    flow_map_losses,
    loss_metrics,
    next_times,
    noise_schedules,
    parameterizations,
    time_sampling,
)
from diffjax.diffusion.denoiser import Prediction, predictor, time_difference
from diffjax.diffusion.flow_map_losses import Guidance, Networks
from diffjax.diffusion.noise import for_examples
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.errors import UserError
from diffjax.models.diffusion.condition_kinds import ClassLabel, ImageEmbedding, Number
from diffjax.models.diffusion.conditions import Conditions
from diffjax.registry import choices
from tests import conditioned, tiny
from tests.conditioned import SPEC

T = 1000
FLOW = noise_schedules.rectified_flow(T, continuous=True)
LINEAR_TIME = functools.partial(parameterizations.flow, time_scale=1 / T)
NULL = 2
LABELS = np.array([0, 1, 0, NULL, 1])
TIMES, NEXT = np.array([900.0, 700.0, 400.0, 300.0, 200.0]), np.array([500.0, 100.0, 400.0, 0.0, 20.0])
SCALES = np.array([1.0, 2.5, 4.0, 3.0, 1.5])


def batch_at(x0, eps):
    now, next = (FLOW(jnp.asarray(times, jnp.float32)) for times in (TIMES, NEXT))
    x = for_examples(now.alpha, x0) * x0 + for_examples(now.sigma, x0) * eps
    return NoisedBatch(x0, eps, x, now, jnp.ones(len(x0)), next, 0)


def compute(name, batch, predict, scales, **options):
    """Returns the loss of a network (labels, scales) -> predictions."""
    guidance = Guidance(predict(jnp.full(5, NULL), scales), jnp.asarray(LABELS) != NULL, scales)
    trained = predict(jnp.asarray(LABELS), scales)
    loss = functools.partial(choices(flow_map_losses)[name], schedule=FLOW, metric=loss_metrics.l2, **options)
    return loss(batch, Networks(trained, trained, LINEAR_TIME, guidance=guidance))


# A linear network of x, the time, the interval and the scale, with weights per label.

RNG = np.random.default_rng(0)
X0, EPS = (RNG.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
PARAMS = {
    "x": RNG.normal(size=(3, 3, 3)).astype(np.float32),
    "others": RNG.normal(size=(3, 4, 3)).astype(np.float32),  # of the time, the interval, their product, and the scale
}


def linear(params, labels, scales, x, t, interval, xp):
    features = xp.stack([t, interval, t * interval, scales], axis=1)
    return xp.einsum("bij,bj->bi", params["x"][labels], x) + xp.einsum("bf,bfi->bi", features, params["others"][labels])


def linear_predict(params):
    def bind(labels, scales):
        network_scales = jnp.zeros(5) if scales is None else scales
        network = lambda x, t, interval: linear(params, labels, network_scales, x, t, interval, jnp)  # noqa: E731
        return predictor(network, LINEAR_TIME, interval=time_difference(LINEAR_TIME))

    return bind


def expected(name, scales, fixed, mix, high):
    """Returns the loss and its gradient by PARAMS["x"], as in the papers: u - sg(v~ - (t - r) du/dt)."""
    params = {key: value.astype(np.float64) for key, value in PARAMS.items()}
    network_scales = np.zeros(5) if scales is None else scales
    t, r = TIMES / T, NEXT / T
    column = lambda v: np.asarray(v)[:, None]  # noqa: E731
    x, v = column(1 - t) * X0 + column(t) * EPS, EPS - np.float64(X0)

    def u(labels, interval):
        return linear(params, labels, network_scales, x, t - 1 / T, interval, np)

    def derivative(tangent):
        """du/dt with fixed r, whose interval t - r grows as t."""
        others = params["others"][LABELS]
        by_time = others[:, 0] + others[:, 1] + column(t - 1 / T + t - r) * others[:, 2]
        return np.einsum("bij,bj->bi", params["x"][LABELS], tangent) + by_time

    is_guided = (LABELS != NULL) & (t / (1 - t) <= high)
    w = np.where(is_guided, fixed if scales is None else scales, 1.0)
    u_c, u_null = u(LABELS, 0 * t), u(np.full(5, NULL), 0 * t)
    if name == "mean_flow":
        kappa = np.where(w == 1, 0.0, mix)
        omega = w * (1 - kappa)
        target = column(omega) * v + column(kappa) * u_c + column(1 - omega - kappa) * u_null
        tangent = target
    else:
        target, tangent = v + column(1 - 1 / w) * (u_c - u_null), u_c
    error = u(LABELS, t - r) - (target - column(t - r) * derivative(tangent))
    gradient = np.zeros((3, 3, 3))
    np.add.at(gradient, LABELS, 2 / 3 * error[:, :, None] * x[:, None, :])
    return np.mean(error**2, axis=1), gradient


@pytest.mark.parametrize(
    ("name", "scales", "fixed", "mix", "high"),
    [
        ("mean_flow", None, 2.0, 0.0, np.inf),
        ("mean_flow", None, 3.0, 0.9, 3.0),
        ("mean_flow", SCALES, 1.0, 0.5, np.inf),
        ("improved_mean_flow", None, 2.0, 0.0, 3.0),
        ("improved_mean_flow", SCALES, 1.0, 0.0, np.inf),
    ],
)
def test_the_guided_target_and_gradient_are_those_of_the_papers(name, scales, fixed, mix, high):
    options = {"guidance": fixed, "guidance_high": high} | ({"mix": mix} if mix else {})
    traced = None if scales is None else jnp.asarray(scales, jnp.float32)

    @jax.jit
    def value_and_gradient(params):
        losses = lambda params: compute(name, batch_at(X0, EPS), linear_predict(params), traced, **options)  # noqa: E731
        return losses(params), jax.grad(lambda params: jnp.sum(losses(params)))(params)["x"]

    values, gradient = value_and_gradient(jax.tree.map(jnp.asarray, PARAMS))
    expected_values, expected_gradient = expected(name, scales, fixed, mix, high)
    np.testing.assert_allclose(values, expected_values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["mean_flow", "improved_mean_flow"])
def test_the_loss_at_scale_1_is_that_without_guidance(name):
    predict, batch = linear_predict(jax.tree.map(jnp.asarray, PARAMS)), batch_at(X0, EPS)

    @jax.jit
    def both():
        ones = jnp.ones(5)
        trained = predict(jnp.asarray(LABELS), ones)
        loss = functools.partial(choices(flow_map_losses)[name], schedule=FLOW, metric=loss_metrics.l2)
        without = loss(batch, Networks(trained, trained, LINEAR_TIME))
        return without, compute(name, batch, predict, ones, **({"mix": 0.5} if name == "mean_flow" else {}))

    without, guided = both()
    np.testing.assert_array_equal(without, guided)


# Gaussians, whose guided ODE has a closed form where either the means or the deviations of the classes are equal.

MEANS = np.array([[0.7, 0.2], [-0.4, 0.2], [0.1, 0.2]], np.float32)  # of each class, and without a class
STDS = np.array([[0.5, 0.3], [0.5, 0.8], [0.5, 0.6]], np.float32)


def guided_predict(shift, unguided=False):
    """F of the flow map of s v_c + (1 - s) v_null: X = (1 - r) m + H(r) / H(t) (x - (1 - t) m).

    m is the guided mean, and H the product of the standard deviations of the noised classes, to the power of s and of
    1 - s. The label NULL has s = 1.
    """

    means, stds = jnp.asarray(MEANS), jnp.asarray(STDS)

    def bind(labels, scales):
        s = jnp.where((labels == NULL) | unguided, 1.0, scales)[:, None]
        mean = s * means[labels] + (1 - s) * means[NULL:]

        def log_h(t):
            log_std = lambda std: 0.5 * jnp.log((1 - t) ** 2 * std**2 + t**2)  # noqa: E731
            return s * log_std(stds[labels]) + (1 - s) * log_std(stds[NULL:])

        def predict(x, now, next):
            t, r = now.t[:, None] / T, next.t[:, None] / T
            _, slope = jax.jvp(log_h, (t,), (jnp.ones_like(t),))
            off = x - (1 - t) * mean
            is_step = t > r
            average = (off * (1 - jnp.exp(log_h(r) - log_h(t)))) / jnp.where(is_step, t - r, 1.0)
            return Prediction(jnp.where(is_step, average, slope * off) - mean + shift, LINEAR_TIME(now))

        return predict

    return bind


@pytest.mark.parametrize(("name", "mix"), [("mean_flow", 0.0), ("mean_flow", 0.6), ("improved_mean_flow", None)])
def test_the_loss_is_zero_at_the_exact_guided_flow_map(name, mix):
    """With the direction of each class, E[x_0 | x_t], in the place of that of an example."""
    mean, std = jnp.asarray(MEANS[LABELS]), jnp.asarray(STDS[LABELS])
    noised = batch_at(jnp.asarray(X0[:, :2]), jnp.asarray(EPS[:, :2]))
    alpha, sigma = (for_examples(level, noised.x) for level in noised.noise[1:])
    x0 = mean + alpha * std**2 / (alpha**2 * std**2 + sigma**2) * (noised.x - alpha * mean)
    options = {} if mix is None else {"mix": mix}

    @jax.jit
    def losses():
        networks = [guided_predict(0.0), guided_predict(0.1), guided_predict(0.0, unguided=True)]
        scales = jnp.asarray(SCALES, jnp.float32)
        return [compute(name, noised._replace(x0=x0), predict, scales, **options) for predict in networks]

    exact, shifted, unguided = losses()
    is_guided = (LABELS != NULL) & (SCALES != 1)
    assert (exact < 1e-8).all()
    assert (shifted > 1e-4).all()
    assert (unguided[is_guided] > 1e-4).all() and (unguided[~is_guided] < 1e-8).all()


# Trained on two classes.

CENTRES, WIDTHS = np.array([-1.0, 0.7]), np.array([0.5, 0.4])
BATCH, TRAINING_STEPS = 256, 2000


def guided_end(x, label, scale):
    """Returns where the guided ODE goes from t = 1 to 0, for two classes of equal shares: Heun's method."""

    def velocity(x, t):
        variance = (1 - t) ** 2 * WIDTHS**2 + t**2
        off = x[:, None] - (1 - t) * CENTRES
        each = (t - (1 - t) * WIDTHS**2) / variance * off - CENTRES
        weights = np.exp(-(off**2) / (2 * variance)) / np.sqrt(variance)
        null = np.sum(weights * each, axis=1) / np.sum(weights, axis=1)
        return null + scale * (each[:, label] - null)

    times = np.linspace(1, 0, 201)
    for t, next_t in itertools.pairwise(times):
        v = velocity(x, t)
        x = x + (next_t - t) / 2 * (v + velocity(x + (next_t - t) * v, next_t))
    return x


def perceptron(params, labels, scales, x, t, interval):
    waves = [wave(k * v) for v in (t, interval) for k in (1.0, 2.0, 4.0) for wave in (jnp.sin, jnp.cos)]
    hidden = jnp.concatenate([x, jax.nn.one_hot(labels, 3), jnp.stack([t, interval, 1 / scales, *waves], axis=1)], 1)
    for i, (kernel, bias) in enumerate(params):
        hidden = hidden @ kernel + bias[None]
        hidden = jax.nn.silu(hidden) if i < len(params) - 1 else hidden
    return hidden


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean_flow", "improved_mean_flow"])
def test_one_step_of_a_trained_map_goes_to_the_end_of_the_guided_ode(name):
    """MeanFlow of scale 2, and improved MeanFlow with scales from 1 to 3 as an input."""
    loss = choices(flow_map_losses)[name]
    options = {"guidance": 2.0, "mix": 0.5} if name == "mean_flow" else {}

    def predict_with(params, labels, scales):
        return predictor(
            functools.partial(perceptron, params, labels, scales), LINEAR_TIME, interval=time_difference(LINEAR_TIME)
        )

    def mean_loss(params, key):
        label_key, drop_key, data_key, time_key, eps_key, scale_key = jax.random.split(key, 6)
        classes = jax.random.randint(label_key, (BATCH,), 0, 2)
        centres, widths = (jnp.asarray(v, jnp.float32)[classes] for v in (CENTRES, WIDTHS))
        x0 = (centres + widths * jax.random.normal(data_key, (BATCH,)))[:, None]
        labels = jnp.where(jax.random.bernoulli(drop_key, 0.2, (BATCH,)), NULL, classes)
        sampled = jax.random.uniform(scale_key, (BATCH,), minval=1.0, maxval=3.0) if not options else None
        scales = jnp.ones(BATCH) if sampled is None else sampled
        batch = NoisedBatch.sample(
            *(jax.random.split(k, BATCH) for k in (time_key, eps_key)),
            x0,
            schedule=FLOW,
            time_sampler=time_sampling.uniform(),
            state={},
            next_times=functools.partial(next_times.second_sample, share=0.5),
        )
        guidance = Guidance(predict_with(params, jnp.full(BATCH, NULL), scales), labels != NULL, sampled)
        trained = predict_with(params, labels, scales)
        networks = Networks(trained, trained, LINEAR_TIME, guidance=guidance)
        return loss(batch, networks, schedule=FLOW, metric=loss_metrics.l2, **options).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, TRAINING_STEPS, alpha=0.01))

    def update(state, step):
        params, ema, memory = state
        gradient = jax.grad(mean_loss)(params, jax.random.fold_in(jax.random.key(1), step))
        updates, memory = optimizer.update(gradient, memory, params)
        params = optax.apply_updates(params, updates)
        return (params, optax.incremental_update(params, ema, 0.005), memory), None

    sizes, keys = [19, 64, 64, 64, 1], jax.random.split(jax.random.key(0), 4)
    shapes = zip(keys, sizes[:-1], sizes[1:], strict=True)
    params = [(jax.random.normal(k, (a, b)) * np.sqrt(2 / a) * (b > 1), jnp.zeros(b)) for k, a, b in shapes]
    train = jax.jit(
        lambda state: jax.lax.scan(update, state, jnp.arange(TRAINING_STEPS))[0], compiler_options=tiny.OPTIMIZED
    )
    _, ema, _ = train((params, params, optimizer.init(params)))
    x = np.linspace(-2, 2, 41)
    for label in (0, 1):
        scales = jnp.ones(41) if options else jnp.full(41, 2.0)
        predict = predict_with(ema, jnp.full(41, label), scales)
        one_step = predict(jnp.asarray(x, jnp.float32)[:, None], FLOW(float(T)), FLOW(0.0)).x0(x[:, None])[:, 0]
        guided, unguided = (guided_end(x, label, scale) for scale in (2.0, 1.0))
        error, effect = (np.sqrt(np.mean((v - guided) ** 2)) for v in (one_step, unguided))
        assert error < 0.5 * effect, (error, effect)


# Models.

SCALE = {"guidance_scale": {"low": 1.0, "high": 4.0}}


def build(loss, **changes):
    fixed = {"diffusion__metric": "l2", "diffusion__label_dropout": 0.5, "model": tiny.DIT}
    changes = {"diffusion__loss": loss, **fixed, **changes}
    return models.build(tiny.config("few_step_digits:mean_flow", **changes), SPEC)


def test_examples_are_dropped_if_all_conditions_to_drop_are():
    each = {"label": ClassLabel(10, 0.5), "image_embedding": ImageEmbedding(2, dropout=0.5), "number": Number()}
    values = {
        "label": jnp.array([1, 10, 3, 10]),
        "image_embedding": {"embedding": jnp.ones((4, 2)), "present": jnp.array([True, True, False, False])},
        "number": jnp.ones(4),
    }
    np.testing.assert_array_equal(Conditions(each).are_dropped(values, 4), [False, False, False, True])


@pytest.mark.slow
def test_examples_without_a_label_are_not_guided():
    """Labels that are dropped are those without an effect on the loss."""
    plain, variables = conditioned.with_random_params(build("mean_flow"))
    guided = build("mean_flow(guidance=3, mix=0.5)")
    batch = tiny.batch()

    @jax.jit
    def loss(labels):
        arguments = {**batch, "label": labels}, conditioned.keys(), tiny.moment()
        return [model.loss(variables, *arguments)[0] for model in (plain, guided)]

    (without, value), (without_other, _) = (loss(labels) for labels in (batch["label"], (batch["label"] + 1) % 10))
    is_dropped = np.asarray(without == without_other)
    assert is_dropped.any() and not is_dropped.all()
    np.testing.assert_allclose(value[is_dropped], without[is_dropped], rtol=1e-5)
    assert (np.abs(value - without)[~is_dropped] > 1e-4).all()


@pytest.mark.slow
def test_the_scale_of_guidance_is_an_input_without_a_teacher():
    model, variables = conditioned.with_random_params(build("improved_mean_flow", conditions=SCALE))
    batch, keys = tiny.batch(), conditioned.keys()

    @jax.jit
    def value_and_gradient(scales):
        def loss(params):
            losses = model.loss(
                {**variables, "params": params}, {**batch, "guidance_scale": scales}, keys, tiny.moment()
            )
            return losses[0].mean(), losses[0]

        return jax.grad(loss, has_aux=True)(variables["params"])

    (gradient, low), (_, high) = map(value_and_gradient, (jnp.ones(6), jnp.full(6, 3.0)))
    _, mixed = value_and_gradient(jnp.array([1.0, 3.0] * 3))
    np.testing.assert_allclose(mixed, np.where(np.arange(6) % 2, high, low), rtol=1e-5)
    assert (np.abs(low - high) > 1e-5).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    settings = model.make_settings(tiny.config("few_step_digits:mean_flow").sampler, guidance=2.0)
    with pytest.raises(UserError, match=r"sampler\.guidance"):
        model.make_settings(tiny.config("few_step_digits:mean_flow").sampler, guidance=5.0)
    evaluations = model.bind(variables, {"label": jnp.arange(6), "guidance_scale": jnp.full(6, 2.0)})
    assert evaluations.unconditional is None and settings["guidance"] == 2.0  # one evaluation per step


@pytest.mark.parametrize(
    ("loss", "changes", "message"),
    [
        ("mean_flow(guidance=0.5)", {}, "guidance=0.5: must be at least 1"),
        ("mean_flow(guidance=2, mix=1)", {}, "mix=1: must be at least 0 and below 1"),
        ("mean_flow(guidance=2, guidance_low=3, guidance_high=2)", {}, "must be low < high"),
        ("mean_flow(mix=0.5)", {}, "mix: has no effect at guidance=1"),
        ("mean_flow(guidance=2)", {"diffusion__label_dropout": 0.0}, "guidance requires dropped conditions"),
        ("mean_flow(guidance=2)", {"teacher": "RUN"}, "guidance=2: is not supported with a teacher"),
        ("mean_flow(guidance=2)", {"conditions": SCALE}, "has no effect with conditions.guidance_scale"),
        ("mean_flow(guidance=2)", {"diffusion__next_times": "clean"}, "requires pairs of equal times"),
        (
            "improved_mean_flow",
            {"conditions": {"guidance_scale": {"low": 0.5, "high": 4.0}}},
            "guidance_scale.low=0.5: must be at least 1",
        ),
    ],
)
def test_guidance_that_does_not_fit_raises(loss, changes, message):
    with pytest.raises(UserError, match=message):
        build(loss, **changes)
