"""Guidance against NumPy, on a mixture of Gaussians whose denoisers and classifier are known."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import clipping, guidance, noise_schedules, samplers, sampling, time_grids, variance
from diffjax.diffusion import denoiser as denoisers
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import Noise
from diffjax.diffusion.samplers.base import guided_x0
from diffjax.registry import choices

WEIGHTS = np.array([0.2, 0.5, 0.3])  # of the mixture's classes
MEANS = np.array([[-0.6, 0.4], [0.5, 0.1], [0.1, -0.7]])
SPREAD = 0.04  # variance of each
B = 6
RNG = np.random.default_rng(0)
LABEL = RNG.integers(0, 3, B)
X = np.float32(RNG.normal(size=(B, 2)))
LEVELS = [(0.95, 0.3122499), (0.5, 0.8660254), (1.0, 3.0), (0.05, 0.9987492)]  # (alpha, sigma)


def noise(alpha, sigma):
    return Noise(*(jnp.asarray(v, jnp.float32) for v in (0.0, alpha, sigma)))


# The mixture, in JAX: E[x_0 | x_t], with its class or without, and log p(x_t, class).


def classify(x, noise):
    total = noise.alpha**2 * SPREAD + noise.sigma**2
    distance = jnp.sum((x[:, None] - noise.alpha * jnp.asarray(MEANS, jnp.float32)[None]) ** 2, axis=2)
    return jnp.log(jnp.asarray(WEIGHTS, jnp.float32))[None] - distance / (2 * total)


def by_class(x, noise):
    gain = noise.alpha * SPREAD / (noise.alpha**2 * SPREAD + noise.sigma**2)
    means = jnp.asarray(MEANS, jnp.float32)[None]
    return means + gain * (x[:, None] - noise.alpha * means)


def conditional(x, noise):
    return Denoised(jnp.take_along_axis(by_class(x, noise), jnp.asarray(LABEL)[:, None, None], axis=1)[:, 0])


def unconditional(x, noise):
    return Denoised(jnp.sum(jax.nn.softmax(classify(x, noise))[..., None] * by_class(x, noise), axis=1))


# The mixture in NumPy.


def exact(x, alpha, sigma):
    """(E[x_0 | x_t, label], E[x_0 | x_t], the gradient of log p(label | x_t)), float64."""
    total = alpha**2 * SPREAD + sigma**2
    offsets = x[:, None] - alpha * MEANS
    log_p = np.log(WEIGHTS) - np.sum(offsets**2, axis=2) / (2 * total)
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    p = (p / p.sum(axis=1, keepdims=True))[..., None]
    means = MEANS + alpha * SPREAD / total * offsets
    rows = np.arange(len(x))
    gradient = alpha / total * (MEANS[LABEL] - np.sum(p * MEANS, axis=1))
    return means[rows, LABEL], np.sum(p * means, axis=1), gradient


def constant(x0, **others):
    return lambda x, noise: Denoised(jnp.asarray(x0, jnp.float32), **others)


def named(name, x0, ran):
    """A denoiser that records its runs."""

    def denoise(x, noise):
        jax.debug.callback(lambda: ran.append(name))
        return Denoised(jnp.full_like(x, x0))

    return denoise


def ran_by(make, x, noise):
    ran = []
    x0 = make(functools.partial(named, ran=ran))(x, noise).x0
    jax.effects_barrier()
    return sorted(ran), x0


@pytest.mark.parametrize("scale", [0.0, 1.0, 1.5, 4.0])
def test_classifier_free_guidance_equals_both_published_conventions(scale):
    """GLIDE's s, and Ho & Salimans 2022, eq. 6, with w = s - 1."""
    (alpha, sigma), x = LEVELS[1], np.float64(X)
    x0_given = RNG.normal(size=(2, B, 2))
    guided = guidance.classifier_free(constant(x0_given[0]), constant(x0_given[1]), scale)(
        jnp.asarray(X), noise(alpha, sigma)
    )
    of_condition, without, of_guided = ((x - alpha * x0) / sigma for x0 in (*x0_given, np.float64(guided.x0)))
    w = scale - 1
    np.testing.assert_allclose(of_guided, without + scale * (of_condition - without), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_guided, (1 + w) * of_condition - w * without, rtol=1e-4, atol=1e-5)


def test_classifier_free_guidance_runs_one_network_at_scale_1():
    at = noise(*LEVELS[0])
    for scale, expected, x0 in ((1.0, ["with"], 2.0), (3.0, ["with", "without"], 4.0), (0.0, ["with", "without"], 1.0)):
        ran, guided = ran_by(lambda n: guidance.classifier_free(n("with", 2.0), n("without", 1.0), scale), X, at)  # noqa: B023
        assert ran == expected
        np.testing.assert_allclose(guided, x0, rtol=1e-6)


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale_equals_the_papers_formula_per_example(phi):
    """Lin et al. 2024, eq. 15 and 16, with factor phi."""
    of_condition, without = RNG.normal(size=(2, B, 3, 2)) * np.geomspace(0.1, 10, B)[:, None, None]
    guided = guidance.classifier_free(constant(of_condition), constant(without), 5.0, rescale=phi)
    x0 = without + 5.0 * (of_condition - without)
    std = lambda v: v.reshape(B, -1).std(axis=1)[:, None, None]  # noqa: E731
    expected = phi * x0 * std(of_condition) / std(x0) + (1 - phi) * x0
    result = np.asarray(guided(jnp.zeros((B, 3, 2)), noise(*LEVELS[0])).x0)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)
    if phi == 1.0:
        np.testing.assert_allclose(std(result), std(of_condition), rtol=1e-4)


def test_autoguidance_equals_the_papers_formula():
    """Karras et al. 2024, eq. 3: w D_1 + (1 - w) D_0."""
    strong, weak = RNG.normal(size=(2, B, 2))
    for w in (0.5, 1.0, 2.5):
        guided = guidance.autoguidance(constant(strong), constant(weak), w)(jnp.asarray(X), noise(*LEVELS[0]))
        np.testing.assert_allclose(guided.x0, w * strong + (1 - w) * weak, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "alpha, sigma, low, high, expected",
    [
        (0.5, 1.0, 1.0, 3.0, "guided"),
        (0.5, 1.0, 2.0, 3.0, "plain"),  # on the lower edge, which is not part of it
        (0.5, 1.0, 1.0, 2.0, "guided"),  # on the upper edge, which is
        (0.5, 1.0, 2.5, 3.0, "plain"),
        (0.5, 1.0, 0.0, 1.5, "plain"),
        (1.0, 80.0, 0.0, 80.0, "guided"),
        (0.0, 1.0, 1.0, 1e30, "plain"),  # sigma / alpha is infinite
        (0.0, 1.0, 0.0, np.inf, "guided"),
        (0.5, 1.0, 0.0, np.inf, "guided"),
    ],
)
def test_guidance_is_active_in_its_interval_only(alpha, sigma, low, high, expected):
    """Kynkaanniemi et al. 2024, eq. 6: sigma / alpha in (low, high]. Elsewhere only the conditional network runs."""
    at, interval = noise(alpha, sigma), (low, high)
    make = lambda n: guidance.classifier_free(n("with", 2.0), n("without", 1.0), 3.0, interval=interval)  # noqa: E731
    ran, x0 = ran_by(make, X, at)
    assert ran == (["with", "without"] if expected == "guided" else ["with"])
    np.testing.assert_allclose(x0, 4.0 if expected == "guided" else 2.0, rtol=1e-6)
    weak = guidance.autoguidance(constant(np.full(2, 2.0)), constant(np.ones(2)), 3.0, interval=interval)
    np.testing.assert_allclose(weak(X, at).x0, 4.0 if expected == "guided" else 2.0, rtol=1e-6)


# Gradients.


@jax.jit
def classifier_guided(x, level, scale):
    denoised = guidance.classifier(unconditional, classify, jnp.asarray(LABEL), scale)(x, level)
    return denoised, guided_x0(denoised, level)


@pytest.mark.parametrize("alpha, sigma", LEVELS)
def test_a_classifiers_gradient_makes_the_unconditional_denoiser_conditional(alpha, sigma):
    """Bayes' rule: at scale 1, as a shift of eps, the classifier of the mixture gives E[x_0 | x_t, label] exactly."""
    x = alpha * MEANS[RNG.integers(0, 3, B)] + sigma * X  # not too far from the data, where all agree
    x0_given, without, gradient = exact(x, alpha, sigma)
    for scale in (1.0, 2.5):
        denoised, x0 = classifier_guided(x, noise(alpha, sigma), scale)
        np.testing.assert_allclose(denoised.x0, without, atol=1e-5)
        np.testing.assert_allclose(denoised.guidance_gradient, scale * gradient, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(x0, without + scale * sigma**2 / alpha * gradient, atol=1e-4 * scale)
        if scale == 1.0:
            np.testing.assert_allclose(x0, x0_given, atol=1e-4)


@pytest.mark.parametrize("function", [variance.fixed_small, variance.fixed_large, variance.learned_range])
def test_ancestral_shifts_the_mean_by_variance_times_gradient(function):
    """ADM (Dhariwal & Nichol 2021), algorithm 1, in NumPy."""
    (a, s), (a2, s2), scale = LEVELS[1], LEVELS[0], 3.0

    def base(x, noise):
        share = jnp.full_like(x, 0.25) if function is variance.learned_range else None
        return unconditional(x, noise)._replace(variance_interpolation=share)

    denoise = guidance.classifier(base, classify, jnp.asarray(LABEL), scale)
    eps = np.float32(np.random.default_rng(0).normal(size=(B, 2)))
    step = jax.jit(lambda *arrays: samplers.ancestral(variance=function).step(lambda *_: eps, denoise, *arrays)[0])
    y = step(noise(1.0, 0.0), jnp.asarray(X), noise(a, s), noise(a2, s2))
    x = np.float64(X)
    _, x0, gradient = exact(x, a, s)
    large = s**2 - (a / a2 * s2) ** 2
    small = large * s2**2 / s**2
    names = {"fixed_small": small, "fixed_large": large, "learned_range": large**0.25 * small**0.75}
    spread = names[function.__name__]
    mean = a / a2 * s2**2 / s**2 * x + a2 * large / s**2 * x0 + spread * scale * gradient
    np.testing.assert_allclose(y, mean + np.sqrt(spread) * eps, atol=1e-5)


@pytest.mark.parametrize("name", ["fixed_small", "fixed_large", "learned_range"])
def test_a_guided_ancestral_trajectory_equals_adms(name):
    """`p_sample` with `cond_fn` of ADM's code, t from zero, over all steps; the last is shifted too, without noise."""
    timesteps, scale, share = 40, 10.0, 0.3
    betas = np.linspace(1e-4, 0.02, timesteps) * 1000 / timesteps
    bar = np.cumprod(1 - betas)
    bar_before = np.append(1.0, bar[:-1])
    posterior = betas * (1 - bar_before) / (1 - bar)
    clipped = np.append(posterior[1], posterior[1:])
    large = np.append(posterior[1], betas[1:])
    learned = np.exp(share * np.log(betas) + (1 - share) * np.log(clipped))
    model_variance, noise_variance = {  # variance of the shift of the mean, and of the noise
        "fixed_small": (posterior, clipped),
        "fixed_large": (large, large),
        "learned_range": (learned, learned),
    }[name]
    rng = np.random.default_rng(4)
    draws = rng.normal(size=(timesteps + 1, B, 2))

    def base(x, noise):
        learned = jnp.full_like(x, share) if name == "learned_range" else None
        return unconditional(x, noise)._replace(
            variance_interpolation=learned, guidance_gradient=scale * jnp.sin(3 * x + noise.sigma)
        )

    denoise = denoisers.with_clipping(base, clipping.clip)
    schedule = noise_schedules.linear(timesteps)
    sampler = samplers.ancestral(variance=choices(variance)[name])
    found = jnp.asarray(draws[-1], jnp.float32)
    carry = sampler.init(found)
    step = jax.jit(lambda eps, carry, x, now, next: sampler.step(lambda *_: eps, denoise, carry, x, now, next))
    for i, t in enumerate(range(timesteps - 1, -1, -1)):
        eps = jnp.asarray(draws[i], jnp.float32)
        x = np.float64(found)  # float32 errors would grow from step to step
        found, carry = step(eps, carry, found, schedule(t + 1.0), schedule(float(t)))
        _, x0, _ = exact(x, np.sqrt(bar[t]), np.sqrt(1 - bar[t]))
        x0, gradient = np.clip(x0, -1, 1), scale * np.sin(3 * x + np.sqrt(1 - bar[t]))
        mean = betas[t] * np.sqrt(bar_before[t]) / (1 - bar[t]) * x0
        mean += (1 - bar_before[t]) * np.sqrt(1 - betas[t]) / (1 - bar[t]) * x
        mean += model_variance[t] * gradient
        x = mean + (t != 0) * np.sqrt(noise_variance[t]) * draws[i]
        np.testing.assert_allclose(found, x, atol=2e-4, err_msg=f"t={t}")
    shift = model_variance[0] * np.abs(gradient).max()
    assert (shift > 5e-3) == (name != "fixed_small")  # otherwise the last step would test nothing


def test_a_chain_of_one_step_is_shifted_by_its_own_variance():
    """No step precedes it. The mean is x_0, shifted by the large variance if the variance is not zero."""
    now, clean = noise(0.8, 0.6), noise(1.0, 0.0)
    for function, shift in ((variance.fixed_small, 0.0), (variance.fixed_large, 0.36), (variance.learned_range, 0.36)):
        share = {"variance_interpolation": jnp.full(X.shape, 0.3)} if function is variance.learned_range else {}
        sampler = samplers.ancestral(variance=function)
        denoise = constant(np.zeros_like(X), guidance_gradient=jnp.ones_like(X), **share)
        found, _ = sampler.step(lambda *_: X, denoise, sampler.init(jnp.asarray(X)), jnp.asarray(X), now, clean)
        np.testing.assert_allclose(found, shift * np.ones_like(X), rtol=1e-5)


def test_guidance_without_signal_does_not_shift_eps():
    denoised = Denoised(jnp.ones(2), guidance_gradient=jnp.full(2, 5.0))
    np.testing.assert_array_equal(guided_x0(denoised, noise(0.0, 1.0)), 1.0)


def test_clip_similaritys_gradient_is_that_of_the_cosine():
    """Compares with central differences in float64."""
    matrix, embedding = RNG.normal(size=(2, 5)), RNG.normal(size=(B, 5))
    alpha, sigma = LEVELS[0]

    def encode(x, noise):
        return jnp.tanh(x @ jnp.asarray(matrix, jnp.float32)) + noise.sigma

    def cosine(x):
        f = np.tanh(x @ matrix) + sigma
        return np.sum(f * embedding, axis=1) / np.linalg.norm(f, axis=1) / np.linalg.norm(embedding, axis=1)

    x, h = np.float64(X), 1e-5
    expected = np.stack([(cosine(x + h * e) - cosine(x - h * e)) / (2 * h) for e in np.eye(2)], axis=1)
    denoise = guidance.clip_similarity(unconditional, encode, jnp.asarray(embedding, jnp.float32), 7.0)
    denoised = jax.jit(denoise)(jnp.asarray(X), noise(alpha, sigma))
    np.testing.assert_allclose(denoised.guidance_gradient, 7.0 * expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(denoised.x0, exact(x, alpha, sigma)[1], atol=1e-5)


@pytest.mark.parametrize(("scale", "first_scale"), [(2.0, 4.0), (1.0, 4.0), (2.0, 1.0), (1.0, 1.0)])
def test_two_conditions_have_scales_of_their_own(scale, first_scale):
    """u + s_1 (i - u) + s_2 (c - i), inside the interval of guidance."""
    c, u, i = RNG.normal(size=(3, B, 2))
    inside, outside = noise(*LEVELS[1]), noise(*LEVELS[2])
    options = {"first": constant(i), "first_scale": first_scale, "interval": (0.0, 2.0)}
    denoise = guidance.classifier_free(constant(c), constant(u), scale, **options)
    np.testing.assert_allclose(denoise(jnp.asarray(X), outside).x0, c, atol=1e-5)
    expected = u + first_scale * (i - u) + scale * (c - i)
    np.testing.assert_allclose(denoise(jnp.asarray(X), inside).x0, expected, atol=1e-5)


@pytest.mark.parametrize(("scale", "perturbed_scale"), [(3.0, 2.5), (1.0, 2.5), (3.0, 1.0)])
def test_perturbed_guidance_adds_to_classifier_free_guidance(scale, perturbed_scale):
    """PAG with CFG: u + s (c - u) + w (c - p), where w is perturbed_scale - 1."""
    c, u, p = RNG.normal(size=(3, B, 2))
    inside, outside = noise(*LEVELS[1]), noise(*LEVELS[2])
    denoise = guidance.perturbed(constant(c), constant(p), perturbed_scale, interval=(0.0, 2.0))
    denoise = guidance.with_shift(guidance.classifier_free(denoise, constant(u), scale))
    expected = u + scale * (c - u)
    np.testing.assert_allclose(denoise(jnp.asarray(X), outside).x0, expected, atol=1e-5)
    expected += (perturbed_scale - 1) * (c - p)
    np.testing.assert_allclose(denoise(jnp.asarray(X), inside).x0, expected, atol=1e-5)


GRADIENT, SHARE = (np.float32(RNG.normal(size=(B, 2))) for _ in range(2))
MASK = np.float32([[1.0, 0.0]])
WRAPPERS = {  # wrapper of a denoiser with GRADIENT, and the expected gradient
    "with_clipping": (lambda d: denoisers.with_clipping(d, clipping.clip), GRADIENT),
    "inpaint": (lambda d: guidance.inpaint(d, jnp.zeros((1, 2)), jnp.asarray(MASK)), GRADIENT * (1 - MASK)),
    "classifier_free": (lambda d: guidance.classifier_free(d, constant(X), 3.0), GRADIENT),
    "classifier_free at 1": (lambda d: guidance.classifier_free(d, constant(X), 1.0), GRADIENT),
    "autoguidance": (lambda d: guidance.autoguidance(d, constant(X), 2.0), GRADIENT),
    "classifier_free, outside": (
        lambda d: guidance.classifier_free(d, constant(X), 3.0, interval=(8.0, 9.0)),
        GRADIENT,
    ),
    "autoguidance, outside": (lambda d: guidance.autoguidance(d, constant(X), 3.0, interval=(8.0, 9.0)), GRADIENT),
    "classifier": (
        lambda d: guidance.classifier(d, classify, jnp.asarray(LABEL), 2.0),
        GRADIENT + 2.0 * exact(np.float64(X), *LEVELS[1])[2],
    ),
}


@pytest.mark.parametrize("name", sorted(WRAPPERS))
def test_wrappers_keep_gradient_and_interpolation(name):
    wrap, expected = WRAPPERS[name]
    inner = constant(
        RNG.normal(size=(B, 2)), variance_interpolation=jnp.asarray(SHARE), guidance_gradient=jnp.asarray(GRADIENT)
    )
    denoised = wrap(inner)(jnp.asarray(X), noise(*LEVELS[1]))
    np.testing.assert_allclose(denoised.guidance_gradient, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(denoised.variance_interpolation, SHARE)


# Inpainting, and combined guidance.

SAMPLERS = {"ancestral": samplers.ancestral(), "ddim": samplers.ddim(), "heun": samplers.heun()}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_inpaint_samples_the_known_region_from_the_forward_process(name):
    """The region is N(alpha known, sigma^2) at each level, exactly if alpha_T = 0, and `known` at the end."""
    schedule, count, known = noise_schedules.rectified_flow(1000), 20_000, 0.8
    levels = schedule(jnp.asarray(time_grids.trailing(8, schedule), jnp.float32))

    def free(x, noise):  # something else in the region
        return Denoised(-0.3 * x)

    @jax.jit
    def run(keys, steps):
        denoise = guidance.inpaint(free, jnp.full((1, 2), known), jnp.asarray(MASK))
        return sampling.sample(keys, denoise, SAMPLERS[name], levels, steps, shape=(2,))

    keys = jax.random.split(jax.random.key(1), count)
    for steps in (3, 6):
        x = np.asarray(run(keys, steps), np.float64)[:, 0]
        alpha, sigma = float(levels.alpha[steps]), float(levels.sigma[steps])
        np.testing.assert_allclose(x.mean(), alpha * known, atol=5 * sigma / np.sqrt(count))
        np.testing.assert_allclose(x.var(), sigma**2, rtol=5 * np.sqrt(2 / count))
        z = (x - x.mean()) / x.std()
        np.testing.assert_allclose([np.mean(z**3), np.mean(z**4)], [0, 3], atol=5 * np.sqrt(24 / count))
    x = np.asarray(run(keys, 8))
    np.testing.assert_allclose(x[:, 0], known, atol=1e-6)
    assert x[:, 1].std() > 0.01


def test_inpaint_mixes_where_the_mask_is_soft():
    denoise = guidance.inpaint(constant(np.full((B, 2), 0.5)), jnp.full((1, 2), -1.0), jnp.array([[0.25, 1.0]]))
    denoised = denoise(jnp.asarray(X), noise(*LEVELS[0]))
    np.testing.assert_allclose(denoised.x0, np.tile([[0.125, -1.0]], (B, 1)), rtol=1e-6)
    assert denoised.guidance_gradient is None


def test_combined_guidance_equals_numpy_in_one_compilation():
    """Every scale is traced; the reference computes DDIM's steps and each wrapper in NumPy."""
    schedule, steps = noise_schedules.linear(1000), 6
    grid = time_grids.trailing(steps, schedule)
    levels = schedule(jnp.asarray(grid, jnp.float32))
    known, traces = np.float32([[0.3, 9.0]]), 0

    @jax.jit
    def run(x, guide, phi, low, high, ascend):
        nonlocal traces
        traces += 1
        denoise = guidance.classifier_free(conditional, unconditional, guide, rescale=phi, interval=(low, high))
        denoise = guidance.classifier(denoise, classify, jnp.asarray(LABEL), ascend)
        denoise = guidance.inpaint(denoisers.with_clipping(denoise, clipping.clip), known, jnp.asarray(MASK))
        keys = jax.random.split(jax.random.key(0), B)
        return sampling.run(keys, denoise, samplers.ddim(), levels, steps, x)

    def by_hand(x, guide, phi, low, high, ascend):
        alpha, sigma = (np.asarray(v, np.float64) for v in levels[1:])
        inside = 0
        for a, s, a2, s2 in zip(alpha[:-1], sigma[:-1], alpha[1:], sigma[1:], strict=True):
            x0_given, without, gradient = exact(x, a, s)
            x0 = x0_given
            if low < s / a <= high:
                inside += 1
                x0 = without + guide * (x0_given - without)
                if guide != 1:
                    x0 = x0 * (phi * x0_given.std(axis=1) / x0.std(axis=1) + 1 - phi)[:, None]
            x0 = MASK * known + (1 - MASK) * np.clip(x0, -1, 1)
            x0 = x0 + s**2 / a * ascend * (1 - MASK) * gradient
            x = a2 * x0 + s2 * (x - a * x0) / s
        return x, inside

    table = [  # scales, and the number of steps in the interval
        ((1.0, 0.0, 0.0, np.inf, 0.0), 6),
        ((4.0, 0.0, 0.0, np.inf, 0.0), 6),
        ((4.0, 0.7, 0.5, 20.0, 0.0), 4),
        ((1.0, 0.0, 0.0, np.inf, 1.0), 6),
        ((2.5, 0.3, 1.0, 30.0, 0.8), 3),
    ]
    drawn = []
    for scales, count in table:
        expected, inside = by_hand(np.float64(X), *scales)
        assert inside == count
        drawn.append(np.asarray(run(jnp.asarray(X), *map(jnp.float32, scales))))
        np.testing.assert_allclose(drawn[-1], expected, rtol=2e-3, atol=2e-4, err_msg=str(scales))
        np.testing.assert_allclose(drawn[-1][:, 0], 0.3, atol=1e-5)
    assert traces == 1
    assert len({tuple(x.ravel().round(3)) for x in drawn}) == len(table)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [samplers.ancestral(), samplers.ddim(), samplers.dpmpp_2m()])
def test_classifier_guidance_from_pure_noise_samples_the_class(sampler):
    """Starts at nearly no signal, where a small shift of eps moves x_0 without bounds."""
    schedule = noise_schedules.cosine(1000)
    means, std = np.array([-0.8, 0.6]), 0.15

    def shares(x, n):  # log p(class | x_t), of two equally likely Gaussians
        spread = (n.alpha * std) ** 2 + n.sigma**2
        return -((x[:, None] - (n.alpha * means)[None]) ** 2) / (2 * spread)

    def plain(x, n):
        gain = n.alpha * std**2 / ((n.alpha * std) ** 2 + n.sigma**2)
        each = means[None] + gain * (x[:, None] - (n.alpha * means)[None])
        return Denoised((jax.nn.softmax(shares(x, n)) * each).sum(-1))

    def classify(x, n):  # slightly wrong, as if trained: its gradient does not vanish with the signal
        return shares(x, n) + 0.02 * x[:, None] * jnp.array([[0.0, 1.0]])

    label = jnp.ones(2000, jnp.int32)
    denoise = guidance.classifier(plain, classify, label, 1.0)
    keys = jax.random.split(jax.random.key(0), 2000)
    levels = schedule(time_grids.trailing(100, schedule))
    x = np.asarray(jax.jit(lambda keys: sampling.sample(keys, denoise, sampler, levels, 100, shape=()))(keys))
    np.testing.assert_allclose(x.mean(), means[1], atol=0.03)
    np.testing.assert_allclose(x.std(), std, rtol=0.25)
