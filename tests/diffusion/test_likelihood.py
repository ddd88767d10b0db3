"""Likelihoods of data with known best denoiser and density, against closed forms and quadratures."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy import integrate, special, stats

from diffjax.diffusion import likelihood, noise_schedules, time_grids, variance
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import Noise
from tests.diffusion.closed_forms import BIN, decoder, kl

GREYS = -1 + 2 * np.arange(256) / 255
MEAN, STD = 0.1, 0.15  # data of the bound, too narrow for the infinite outer bins

SCHEDULES = {  # with a mean of the data, small enough for the prior to fit to 1e-3 bits
    "linear": (noise_schedules.linear(1000), 0.01),
    "cosine": (noise_schedules.cosine(1000), 0.1),
    "cosine, continuous": (noise_schedules.cosine(1000, continuous=True), 0.1),
    "linear, zero terminal SNR": (noise_schedules.linear(1000).with_zero_terminal_snr(), 0.4),
    "variance_exploding": (noise_schedules.variance_exploding(1000), 0.02),
    "edm": (noise_schedules.edm(1000), 0.02),
    "rectified_flow": (noise_schedules.rectified_flow(1000), 0.4),
}


def lay(schedule, times, capacity=1000):
    """Levels of `times`, padded so that programs are shared."""
    return schedule(jnp.asarray(np.pad(times, (0, capacity + 1 - len(times))), jnp.float32))


def noise(alpha, sigma, t=0.0):
    return Noise(*(jnp.asarray(v, jnp.float32) for v in (t, alpha, sigma)))


def float64(levels):
    return np.asarray(levels.alpha, np.float64), np.asarray(levels.sigma, np.float64)


def pairs(levels, steps):
    """(forward variance, posterior variance, weight of x_0 in its mean) of each step, float64: DDPM, eq. 7."""
    alpha, sigma = (v[: steps + 1] for v in float64(levels))
    a, s, a2, s2 = alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]
    forward = s**2 - (a / a2 * s2) ** 2
    return forward, forward * s2**2 / s**2, a2 * forward / s**2


# The discretised decoder.


@jax.jit
def decoders(x0, mean, std):
    """Values and gradients by mean and std of a term for each x_0, one dimension each."""
    both = jax.vmap(jax.value_and_grad(likelihood.decoder_term, (1, 2)), (0, 0, None))
    return both(*(jnp.broadcast_to(v, (256,)) for v in (x0, mean)), std)


@pytest.mark.parametrize("std", [0.003, 0.02, 0.3, 2.0])
@pytest.mark.parametrize("mean", [-1.0, -0.31, 0.0, 0.5, 1.2])
def test_the_decoder_is_the_mass_of_each_grey_levels_bin(mean, std):
    bits, _ = decoders(jnp.asarray(GREYS, jnp.float32), mean, std)
    upper, lower = np.append(GREYS[:-1] + BIN / 2, np.inf), np.append(-np.inf, GREYS[1:] - BIN / 2)
    mass = stats.norm.cdf(upper, mean, std) - stats.norm.cdf(lower, mean, std)
    precise = mass > 1e-9  # where cdf's difference is, without a formula for the tails
    np.testing.assert_allclose(bits[precise], -np.log2(mass[precise]), rtol=2e-4, atol=1e-4)
    np.testing.assert_allclose(bits, decoder(GREYS.astype(np.float32), mean, std), rtol=1e-3, atol=2e-4)
    np.testing.assert_allclose(np.sum(2.0 ** -np.asarray(bits, np.float64)), 1.0, atol=1e-4)


def test_the_decoder_is_a_mean_over_dimensions():
    x0, mean = GREYS[[0, 3, 200, 255]].reshape(2, 2), np.array([[-0.9, -0.5], [0.6, 0.7]])
    bits = jax.jit(likelihood.decoder_term)(jnp.asarray(x0, jnp.float32), jnp.asarray(mean, jnp.float32), 0.2)
    np.testing.assert_allclose(bits, decoder(x0, mean, 0.2).mean(), rtol=1e-4)


@pytest.mark.parametrize("std", [1e-4, 1e-3, 0.01, 1.0, 1e4])
def test_the_decoders_gradient_is_finite_everywhere(std):
    for mean in (-30.0, -1.0, 0.3, 1.0, 30.0):
        bits, gradients = decoders(jnp.asarray(GREYS, jnp.float32), mean, std)
        assert all(np.isfinite(value).all() for value in (bits, *gradients))


@pytest.mark.slow
@pytest.mark.parametrize("distance", [20, 100, 1000, 3000, 10_000])
@pytest.mark.parametrize("side", [-1, 1])
def test_the_decoders_gradient_in_the_tails(side, distance):
    """An untrained network misses by 2, which is 3000 standard deviations of a rectified flow's first level.

    There -log p = d^2 / 2 + log d + ..., d being the standard deviations to the bin's nearer edge.
    """
    std = 7e-4
    x0 = np.float32(GREYS[100])
    mean = np.float32(x0 + side * (distance * std + BIN / 2))
    d = (np.abs(np.float64(mean) - x0) - BIN / 2) / std
    _, (by_mean, by_std) = decoders(x0, mean, std)
    np.testing.assert_allclose(by_mean, side * (d + 1 / d) / std / np.log(2), rtol=0.01)
    np.testing.assert_allclose(by_std, -d * (d + 1 / d) / std / np.log(2), rtol=0.01)


# The terms of the bound.


prior_term = jax.jit(likelihood.prior_term)


@pytest.mark.parametrize("alpha, sigma", [(0.1, 0.99499), (1.0, 80.0), (0.0, 1.0), (0.4, 0.5)])
def test_the_prior_term_is_the_kl_of_two_gaussians(alpha, sigma):
    x0 = np.array([[-1.0, 0.2, 0.9], [0.0, 1.0, 0.4]])
    expected = kl(alpha * x0, sigma**2, 0.0, alpha**2 + sigma**2).mean() / np.log(2)
    np.testing.assert_allclose(prior_term(jnp.asarray(x0, jnp.float32), noise(alpha, sigma)), expected, 1e-4, 1e-7)


VARIANCES = {  # (choice, interpolation, the variance in float64)
    "fixed_small": (variance.fixed_small, None, lambda small, large: small),
    "fixed_large": (variance.fixed_large, None, lambda small, large: large),
    "learned_range": (variance.learned_range, 0.3, lambda small, large: large**0.3 * small**0.7),
    "learned_range beyond": (variance.learned_range, -0.2, lambda small, large: large**-0.2 * small**1.2),
}
STEPS = {  # (before, now, next), each (alpha, sigma)
    "preserving": ((0.5, 0.8660254), (0.8, 0.6), (0.95, 0.3122499)),
    "exploding": ((1.0, 9.0), (1.0, 2.0), (1.0, 0.7)),
    "no signal": ((0.0, 1.0), (0.0, 1.0), (0.6, 0.8)),
    "last": ((0.98, 0.1989975), (0.995, 0.0998749), (1.0, 0.0)),
    "only": ((0.0, 1.0), (0.0, 1.0), (1.0, 0.0)),
}
X0, X0_HAT, X = np.float32([-0.9, 0.2]), np.float32([-0.7, 0.5]), np.float32([0.4, -1.3])


@functools.cache
def step_terms():
    """Computes the whole table in one program."""

    @jax.jit
    @jax.vmap
    def all_variances(before, now, next):
        def term(function, interpolation):
            denoised = Denoised(X0_HAT, None if interpolation is None else jnp.full(2, interpolation))
            return likelihood.step_term(denoised, X0, X, now, next, before=before, variance=function)

        return {name: term(*choice[:2]) for name, choice in VARIANCES.items()}

    table = np.float32(list(STEPS.values()))  # [steps, 3, 2]
    levels = (Noise(np.zeros(len(STEPS), np.float32), *table[:, i].T) for i in range(3))
    return jax.tree.map(lambda leaf: dict(zip(STEPS, leaf, strict=True)), all_variances(*levels))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(VARIANCES))
@pytest.mark.parametrize("step", ["preserving", "exploding", "no signal"])
def test_a_step_term_is_the_kl_of_two_gaussians(step, name):
    _, (a, s), (a2, s2) = STEPS[step]
    ratio = a / a2
    large = s**2 - ratio**2 * s2**2
    small = large * s2**2 / s**2
    means = [ratio * s2**2 / s**2 * X + a2 * large / s**2 * clean for clean in (X0, X0_HAT)]  # DDPM, eq. 7
    expected = kl(means[0], small, means[1], VARIANCES[name][2](small, large)).mean() / np.log(2)
    np.testing.assert_allclose(step_terms()[name][step], expected, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(VARIANCES))
@pytest.mark.parametrize("step", ["last", "only"])
def test_the_last_step_uses_the_variance_of_the_step_before(step, name):
    """L_0 has no posterior variance. A chain of one step has no step before and uses the large variance."""
    before, now, _ = STEPS[step]
    large = now[1] ** 2  # of the step to the clean image
    small = (before[1] ** 2 - (before[0] / now[0] * now[1]) ** 2) * (now[1] / before[1]) ** 2 if now[0] else large
    expected = decoder(X0, X0_HAT, np.sqrt(VARIANCES[name][2](small, large))).mean()
    np.testing.assert_allclose(step_terms()[name][step], expected, rtol=1e-3)


def tanh_decoder(x0, mean, std):
    """-log2 of the bin's probability as DDPM's code has it: an approximate distribution function, and a floor."""
    cdf = lambda z: 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))  # noqa: E731
    above, below = cdf((x0 - mean + 1 / 255) / std), cdf((x0 - mean - 1 / 255) / std)
    probability = np.where(x0 < -0.999, above, np.where(x0 > 0.999, 1 - below, above - below))
    return -np.log2(np.maximum(probability, 1e-12))


def test_the_ddpm_decoder_equals_the_published_code():
    """The formula differs from the exact decoder by hundredths of a bit per dimension, and by many in the far tails."""
    term = jax.jit(jax.vmap(likelihood.ddpm_decoder_term, (0, None, None)))
    for mean, std in ((-0.31, 0.02), (0.0, 0.00733), (0.5, 0.3), (1.2, 0.01), (-1.0, 0.003)):
        expected = tanh_decoder(GREYS, mean, std)
        bits = term(jnp.asarray(GREYS, jnp.float32), mean, std)
        precise = expected < 16  # a difference of float32 numbers below 1 is a multiple of 6e-8
        np.testing.assert_allclose(bits[precise], expected[precise], rtol=2e-3, atol=1e-3)
        assert np.asarray(bits).max() <= -np.log2(1e-12) + 1e-3
    z = np.linspace(-3, 3, 200)
    difference = np.abs(tanh_decoder(0.0, z * 0.01, 0.01) - decoder(0.0, z * 0.01, 0.01))
    assert 0.02 < difference.max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fixed_small", "fixed_large", "learned_range"])
def test_the_bound_with_ddpms_decoder_equals_its_code(name):
    """`_vb_terms_bpd` of DDPM, Improved DDPM and ADM over a whole chain, in float64 and their letters, t from zero."""
    timesteps, share = 40, 0.3
    betas = np.linspace(1e-4, 0.02, timesteps) * 1000 / timesteps
    bar = np.cumprod(1 - betas)
    bar_before = np.append(1.0, bar[:-1])
    posterior = betas * (1 - bar_before) / (1 - bar)
    clipped = np.append(posterior[1], posterior[1:])
    spread = {
        "fixed_small": clipped,
        "fixed_large": np.append(posterior[1], betas[1:]),
        "learned_range": np.exp(share * np.log(betas) + (1 - share) * np.log(clipped)),
    }[name]
    rng = np.random.default_rng(3)
    x0 = np.float32(rng.choice(GREYS, size=(3, 4)))
    x0[0, :2] = -1, 1
    x0_hat = np.clip(x0 + 0.004 * rng.normal(size=x0.shape), -1, 1)

    schedule = noise_schedules.linear(timesteps)
    levels = schedule(np.arange(timesteps, -1.0, -1.0))
    keys = jax.random.split(jax.random.key(7), len(x0))
    interpolation = jnp.full(x0.shape, share) if name == "learned_range" else None
    found = likelihood.bound_terms(
        keys,
        lambda x, noise: Denoised(jnp.asarray(x0_hat, jnp.float32), interpolation),
        jnp.asarray(x0),
        levels,
        jnp.arange(timesteps),
        variance=VARIANCES[name][0],
        decoder="ddpm",
    )
    for i, t in enumerate(range(timesteps - 1, -1, -1)):
        if t == 0:
            expected = tanh_decoder(np.float64(x0), x0_hat, np.sqrt(spread[0]))
        else:
            weight = betas[t] * np.sqrt(bar_before[t]) / (1 - bar[t])
            expected = kl(weight * np.float64(x0), clipped[t], weight * x0_hat, spread[t]) / np.log(2)
        np.testing.assert_allclose(found[i], expected.mean(axis=1), rtol=5e-3, atol=2e-4, err_msg=f"t={t}")


def test_the_convention_of_the_decoder_affects_the_last_step_only():
    _, now, next = STEPS["preserving"]

    def term(convention):
        options = {"variance": variance.fixed_large, "decoder": convention}
        return likelihood.step_term(Denoised(X0_HAT), X0, X, noise(*now), noise(*next), before=noise(*now), **options)

    terms = jax.jit(lambda: [term(convention) for convention in likelihood.DECODERS])()
    np.testing.assert_allclose(terms, [step_terms()["fixed_large"]["preserving"]] * 2, rtol=1e-5)


# The bound on Gaussian data.


def best(x, noise):
    gain = noise.alpha * STD**2 / (noise.alpha**2 * STD**2 + noise.sigma**2)
    return Denoised(MEAN + gain * (x - noise.alpha * MEAN))


def data(shape, seed=0):
    return jnp.asarray(MEAN + STD * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def bound(name, large):
    levels, steps, x0 = chain(name)
    return [np.asarray(v, np.float64) for v in bound_of(x0, levels, jnp.arange(steps), large)]


@jax.jit
def bound_of(x0, levels, which, large):
    """Computes the bound with a traced choice of the variance, in one compilation."""

    def chosen(*variances):
        return jnp.where(large, variance.fixed_large(*variances), variance.fixed_small(*variances))

    keys = jax.random.split(jax.random.key(7), len(x0))
    prior = jax.vmap(likelihood.prior_term, (0, None))(x0, jax.tree.map(lambda leaf: leaf[0], levels))
    return likelihood.bound_terms(keys, best, x0, levels, which, variance=chosen), prior


def exact_bound(levels, steps, large):
    """Mean and standard deviation of each term but the last, mean of the last, and mean of the prior, in bits."""
    alpha, sigma = float64(levels)
    forward, small, weight = (v[:-1] for v in pairs(levels, steps))
    left = (STD * sigma) ** 2 / ((STD * alpha) ** 2 + sigma**2)  # variance of x_0 given x_t
    error = weight**2 * left[: steps - 1]
    spread = forward if large else small
    terms, stds = kl(0, small, 0, spread) + error / (2 * spread), error / (2 * spread) * np.sqrt(2)
    std0 = sigma[steps - 1] if large or steps == 1 else np.sqrt(small[-1])

    def integrand(z):  # x_0 - E[x_0 | x_1] ~ N(0, left)
        return stats.norm.pdf(z) * decoder(z * np.sqrt(left[steps - 1]), 0.0, std0)

    last = integrate.quad(integrand, -8, 8)[0]
    unit = alpha[0] ** 2 + sigma[0] ** 2
    prior = kl(0, sigma[0] ** 2, 0, unit) + alpha[0] ** 2 * (MEAN**2 + STD**2) / (2 * unit)
    return terms / np.log(2), stds / np.log(2), last, prior / np.log(2)


def test_the_distortion_is_the_variance_of_the_image_given_its_noisy_version():
    levels = lay(noise_schedules.cosine(1000), np.array([1000.0, 700.0, 300.0, 1.0, 0.0]))
    which, x0 = jnp.arange(4), data((2000, 8))
    keys = jax.random.split(jax.random.key(3), len(x0))
    found = jax.jit(lambda: likelihood.distortions(keys, best, x0, levels, which))()
    alpha, sigma = (values[:4] for values in float64(levels))
    expected = (STD * sigma) ** 2 / ((STD * alpha) ** 2 + sigma**2)
    np.testing.assert_allclose(found.mean(axis=1), expected, rtol=5 * np.sqrt(2 / x0.size))


CHAINS = {
    "linear, whole": ("linear", 1000),
    "rectified_flow, 25": ("rectified_flow", 25),
    "linear, 25": ("linear", 25),
    "cosine, continuous, 25": ("cosine, continuous", 25),
    "edm, 25": ("edm", 25),
}


@functools.cache
def chain(name):
    schedule, steps = SCHEDULES[CHAINS[name][0]][0], CHAINS[name][1]
    levels = lay(schedule, time_grids.trailing(steps, schedule), steps)
    return levels, steps, data((8, 256) if steps == 1000 else (64, 256))


SLOW = ("linear, whole", True)  # 1000 steps, as with the small variance


@pytest.mark.parametrize(
    ("name", "large"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case == SLOW))
        for case in itertools.product(sorted(CHAINS), (False, True))
    ],
)
def test_every_term_of_the_bound_has_its_closed_form(name, large):
    """The posterior's means differ by weight (x_0 - x_0-hat), whose variance is that of x_0 given x_t."""
    levels, steps, x0 = chain(name)
    terms, prior = bound(name, large)
    assert terms.shape == (steps, len(x0))
    expected, stds, last, exact_prior = exact_bound(levels, steps, large)
    errors = terms.mean(axis=1)[:-1] - expected
    np.testing.assert_array_less(np.abs(errors), 5 * stds / np.sqrt(x0.size) + 2e-7)
    np.testing.assert_array_less(np.abs(errors.sum()), 5 * np.sqrt(np.sum(stds**2) / x0.size) + 1e-4)
    terms_error = 5 * terms[-1].std() / np.sqrt(len(x0))
    np.testing.assert_allclose(terms[-1].mean(), last, atol=terms_error)
    whole = expected.sum() + last + exact_prior  # x_0 is random, so the prior term has a Monte-Carlo error too
    spread = np.sqrt(np.sum(stds**2) + (terms[-1].std() * 16) ** 2 + (prior.std() * 16) ** 2)
    np.testing.assert_allclose(
        terms.sum(axis=0).mean() + prior.mean(), whole, atol=5 * spread / np.sqrt(x0.size) + 1e-4
    )


def test_terms_of_the_bound_are_selected_by_index():
    levels, steps, x0 = chain("linear, 25")
    reverse, _ = bound_of(x0, levels, jnp.arange(steps)[::-1], False)
    np.testing.assert_allclose(reverse[::-1], bound("linear, 25", False)[0], rtol=1e-6)


# The likelihood by the ODE.


def gaussian(mean, basis, spread):
    """E[x_0 | x_t] of N(mean, basis diag(spread) basis^T)."""

    def denoise(x, noise):
        gain = noise.alpha * spread / (noise.alpha**2 * spread + noise.sigma**2)
        centred = (x.reshape(len(x), -1) - noise.alpha * mean[None]) @ basis
        return Denoised((mean[None] + (gain[None] * centred) @ basis.T).reshape(x.shape))

    return denoise


def mixture(x, noise):
    """E[x_0 | x_t] of MIXTURE, by Bayes' rule."""
    log_weights, means = [], []
    for weight, mean, spread in MIXTURE:
        mean, spread = jnp.asarray(mean)[None], jnp.asarray(spread)[None]
        total = noise.alpha**2 * spread + noise.sigma**2
        centred = x - noise.alpha * mean
        log_weights.append(jnp.log(weight) - jnp.sum(centred**2 / total + jnp.log(total), axis=1) / 2)
        means.append(mean + noise.alpha * spread / total * centred)
    weights = jax.nn.softmax(jnp.stack(log_weights), axis=0)
    return Denoised(jnp.sum(weights[..., None] * jnp.stack(means), axis=0))


MIXTURE = [(0.3, (-0.5, 0.3), (0.09, 0.02)), (0.7, (0.4, -0.2), (0.03, 0.12))]  # (weight, mean, variances)
SHAPE = (4, 5)  # 20 dimensions: more than the exact trace takes at a time
BASIS = stats.ortho_group.rvs(20, random_state=3)
SPREAD = np.geomspace(0.25, 1.0, 20)  # sigma_min^2 / variance <= 4e-4: the first level, which counts as x_0, is near


@functools.partial(jax.jit, static_argnames="exact")
def gaussian_bits(keys, x0, levels, steps, mean, basis, spread, exact):
    return likelihood.ode_bits(keys, gaussian(mean, basis, spread), x0, levels, steps, exact=exact)


@functools.partial(jax.jit, static_argnames="exact")
def mixture_bits(keys, x0, levels, steps, exact):
    return likelihood.ode_bits(keys, mixture, x0, levels, steps, exact=exact)


def points(mean, basis, spread, count, seed=1):
    z = np.random.default_rng(seed).normal(size=(count, len(mean)))
    return mean + (z * np.sqrt(spread)) @ basis.T


def as_arguments(x0, mean, basis, spread):
    return (jnp.asarray(v, jnp.float32) for v in (x0.reshape(-1, *SHAPE), mean, basis, spread))


def run(x0, levels, steps, mean, basis, spread, exact=True):
    x0, *distribution = as_arguments(x0, mean, basis, spread)
    keys = jax.random.split(jax.random.key(5), len(x0))
    return np.asarray(gaussian_bits(keys, x0, levels, steps, *distribution, exact=exact))


def bits(log_p, dimensions):
    return -log_p / np.log(2) / dimensions - np.log2(2 / 255)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_the_ode_gives_the_density_of_a_correlated_gaussian(name):
    """To 1e-3 bits/dim, without a reference to the method.

    Three errors are kept below that by choice: the first level counts as x_0, which widens the data by sigma_1 <= 0.01,
    4e-4 of the least variance; where signal is left at T the prior is wrong by about alpha_T mean, so that the mean is
    small; and all 1000 steps are taken.
    """
    schedule, mean = SCHEDULES[name]
    mean = mean * np.sign(np.arange(20) % 3 - 0.5)
    x0 = points(mean, BASIS, SPREAD, 16)
    log_p = stats.multivariate_normal(mean, BASIS * SPREAD @ BASIS.T).logpdf(x0)
    ours = run(x0, lay(schedule, time_grids.trailing(1000, schedule)), 1000, mean, BASIS, SPREAD)
    np.testing.assert_allclose(ours, bits(log_p, 20), atol=1e-3)


def flow_bits(x0, levels, steps, mean, basis, spread):
    """The solved ODE: along each axis of the Gaussian (x - alpha mean) / std is constant."""
    alpha, sigma = float64(levels)
    (a, s), (a_last, s_last) = (alpha[steps - 1], sigma[steps - 1]), (alpha[0], sigma[0])
    first, last = np.sqrt(a**2 * spread + s**2), np.sqrt(a_last**2 * spread + s_last**2)
    x_last = a_last * mean @ basis + last / first * a * ((x0 - mean) @ basis)
    log_p = stats.norm.logpdf(x_last, scale=np.hypot(a_last, s_last)).sum(axis=1)
    return bits(log_p + np.sum(np.log(last / first)) + len(mean) * np.log(a), len(mean))


@pytest.mark.parametrize("name", ["cosine", "rectified_flow", "edm"])
def test_the_odes_error_falls_as_the_square_of_the_steps(name):
    """The reference includes the first level and the misfit of the prior, which leaves Heun's error."""
    schedule = SCHEDULES[name][0]
    mean = np.full(20, 0.2)
    x0 = points(mean, BASIS, SPREAD, 16)
    grid = time_grids.karras if name == "edm" else time_grids.linspace
    errors = []
    for steps in (20, 40, 80):
        levels = lay(schedule, grid(steps, schedule))
        errors.append(run(x0, levels, steps, mean, BASIS, SPREAD) - flow_bits(x0, levels, steps, mean, BASIS, SPREAD))
    size = np.sqrt(np.mean(np.square(errors), axis=1))
    assert size[2] < 3e-3
    np.testing.assert_array_less(3.0, size[:-1] / size[1:])
    np.testing.assert_array_less(size[:-1] / size[1:], 5.5)


def test_the_first_level_counts_as_x0_at_its_own_scale():
    """If the chain stops at t, the density is that of x_t / alpha_t."""
    schedule, mean = SCHEDULES["rectified_flow"][0], np.full(20, 0.2)
    levels = lay(schedule, np.append(np.linspace(1000, 400, 101), 0.0))
    x0 = points(mean, BASIS, SPREAD, 16)
    ours = run(x0, levels, 101, mean, BASIS, SPREAD)
    np.testing.assert_allclose(ours, flow_bits(x0, levels, 101, mean, BASIS, SPREAD), atol=1e-3)
    smoothed = stats.multivariate_normal(mean, BASIS * (SPREAD + (0.4 / 0.6) ** 2) @ BASIS.T)
    np.testing.assert_allclose(ours, bits(smoothed.logpdf(x0), 20), atol=1e-3)


def test_hutchinsons_estimate_on_gaussians():
    """Rademacher probes are exact for a diagonal covariance, and unbiased for a correlated one."""
    schedule = noise_schedules.rectified_flow(1000)
    levels, mean = lay(schedule, time_grids.linspace(100, schedule)), np.full(20, 0.2)
    for basis in (np.eye(20), BASIS):
        x0 = np.repeat(points(mean, basis, SPREAD, 2), 256, axis=0)
        exact = run(x0[::32], levels, 100, mean, basis, SPREAD)[[0, 8]]
        estimates = run(x0, levels, 100, mean, basis, SPREAD, exact=False).reshape(2, 256)
        if basis is BASIS:
            assert np.all(estimates.std(axis=1) > 1e-2)
            error = estimates.std(axis=1) / np.sqrt(256)
            np.testing.assert_array_less(np.abs(estimates.mean(axis=1) - exact), 5 * error)
        else:
            np.testing.assert_allclose(estimates, np.repeat(exact[:, None], 256, axis=1), atol=1e-4)


@pytest.mark.slow
def test_the_ode_gives_the_density_of_a_mixture():
    """A rectified flow: no signal at T, sigma_1 = 1e-3. Hutchinson's estimate is right on average over probes alone."""
    schedule = noise_schedules.rectified_flow(1000)
    rng = np.random.default_rng(0)
    which = rng.random(16) < MIXTURE[0][0]
    means, spreads = (np.where(which[:, None], MIXTURE[0][i], MIXTURE[1][i]) for i in (1, 2))
    x0 = means + np.sqrt(spreads) * rng.normal(size=(16, 2))
    log_p = special.logsumexp(
        [np.log(w) + stats.norm.logpdf(x0, m, np.sqrt(v)).sum(axis=1) for w, m, v in MIXTURE], axis=0
    )
    keys = jax.random.split(jax.random.key(1), 16)
    x0 = jnp.asarray(x0, jnp.float32)
    levels = lay(schedule, time_grids.linspace(1000, schedule))
    exact = mixture_bits(keys, x0, levels, 1000, exact=True)
    np.testing.assert_allclose(exact, bits(log_p, 2), atol=1e-3)
    probes = 256
    keys = jax.random.split(jax.random.key(2), 4 * probes)
    estimates = mixture_bits(keys, jnp.repeat(x0[:4], probes, axis=0), levels, 1000, exact=False)
    estimates = np.asarray(estimates).reshape(4, probes)
    error = estimates.std(axis=1) / np.sqrt(probes)
    assert np.all(error > 1e-4)
    np.testing.assert_array_less(np.abs(estimates.mean(axis=1) - bits(log_p[:4], 2)), 5 * error + 1e-3)


def test_the_bound_is_above_the_odes_value():
    """The gap equals that of the closed form and the entropy of the data."""
    schedule = noise_schedules.rectified_flow(1000)
    flow = lay(schedule, time_grids.linspace(200, schedule), 200)
    keys = jax.random.split(jax.random.key(3), 8)
    ode = jax.jit(lambda x0: likelihood.ode_bits(keys, best, x0, flow, 200))
    entropy = np.log2(STD * np.sqrt(2 * np.pi * np.e)) - np.log2(2 / 255)
    for name in ("linear, 25", "linear, whole"):
        levels, steps, x0 = chain(name)
        terms, prior = bound(name, False)
        gap = np.mean(terms.sum(axis=0)[:8] + prior[:8] - ode(x0[:8]))
        expected, stds, last, exact_prior = exact_bound(levels, steps, False)
        exact = expected.sum() + last + exact_prior - entropy
        assert gap > 0 and exact > 0
        np.testing.assert_allclose(gap, exact, atol=5 * np.sqrt((np.sum(stds**2) + 2) / x0[:8].size))


# Dequantisation.


def test_dequantized_is_uniform_in_each_bin():
    x0 = jnp.asarray(np.random.default_rng(0).choice(GREYS, size=(50, 10, 40)), jnp.float32)
    keys = jax.random.split(jax.random.key(4), 50)
    y = likelihood.dequantized(keys, x0)
    offset = np.asarray(y, np.float64) - np.asarray(x0, np.float64)
    assert np.all(np.abs(offset) <= BIN / 2 + 1e-7)
    np.testing.assert_array_equal(np.round((np.asarray(y) + 1) / 2 * 255), np.round((np.asarray(x0) + 1) / 2 * 255))
    assert stats.kstest(offset.ravel(), stats.uniform(-BIN / 2, BIN).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(offset[0].ravel(), offset[1].ravel())[0, 1]) < 0.25  # a key each
    np.testing.assert_array_equal(likelihood.dequantized(keys[3:4], x0[3:4]), y[3:4])
