"""The loop's other ways: up to a latent, from an image, over again. On a Gaussian each step is affine in x, so that the
samples' mean and covariance are known at any number of steps."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.diffusion import guidance, noise_schedules, samplers, sampling, time_grids
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.random import brownian_increment

MEAN, COVARIANCE = np.array([0.3, -0.2]), np.array([[0.25, 0.18], [0.18, 0.16]])  # a correlation of 0.9
COUNT = 4000
CAPACITY = 200
SCHEDULES = {
    "cosine": noise_schedules.cosine(1000),
    "rectified_flow": noise_schedules.rectified_flow(1000),
    "edm": noise_schedules.edm(1000),
}
SAMPLERS = {"ancestral": samplers.ancestral(), "ddim": samplers.ddim()}


def lay(schedule, steps, grid=time_grids.trailing):
    """Levels padded so that all steps share a program."""
    times = np.pad(grid(steps, schedule), (0, CAPACITY - steps))
    return schedule(jnp.asarray(times, jnp.float32))


_SPREAD, _BASIS = np.linalg.eigh(COVARIANCE)
_SPREAD, _BASIS = np.float32(_SPREAD), np.float32(_BASIS)


def best(x, noise):
    """E[x_0 | x_t] of the Gaussian."""
    mean = jnp.asarray(MEAN, jnp.float32)[None]
    gain = noise.alpha * _SPREAD / (noise.alpha**2 * _SPREAD + noise.sigma**2)
    return Denoised(mean + gain[None] * ((x - noise.alpha * mean) @ _BASIS) @ _BASIS.T)


def exact_best(a, s):
    """E[x_0 | x_t] = matrix x_t + offset, by the normal equations."""
    matrix = a * COVARIANCE @ np.linalg.inv(a**2 * COVARIANCE + s**2 * np.eye(2))
    return matrix, MEAN - a * matrix @ MEAN


def exact_moments(name, levels, steps, mean, cov, *, begin=0, resample_steps=1, mask=(0.0, 0.0), known=(0.0, 0.0)):
    """Mean and covariance of x_0 from those of x at levels[begin], float64, step by step."""
    alpha, sigma = (np.asarray(v, np.float64) for v in levels[1:])
    mask, known = np.asarray(mask), np.asarray(known)
    for i in range(begin, steps):
        a, s, a2, s2 = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        matrix, offset = exact_best(a, s)
        matrix, offset = (1 - mask)[:, None] * matrix, mask * known + (1 - mask) * offset
        forward = s**2 - (a / a2 * s2) ** 2
        if name == "ddim":
            slope = a2 * matrix + s2 / s * (np.eye(2) - a * matrix)
            shift, var = (a2 - s2 * a / s) * offset, 0.0
        else:
            slope = a / a2 * s2**2 / s**2 * np.eye(2) + a2 * forward / s**2 * matrix
            shift, var = a2 * forward / s**2 * offset, forward * s2**2 / s**2
        for r in range(resample_steps):
            if r > 0:  # q(x_now | x_next)
                mean, cov = a / a2 * mean, (a / a2) ** 2 * cov + forward * np.eye(2)
            mean, cov = slope @ mean + shift, slope @ cov @ slope.T + var * np.eye(2)
    return mean, cov


def check_moments(x, mean, cov):
    """Within five standard errors."""
    x = np.asarray(x, np.float64)
    deviation = x - x.mean(axis=0)
    np.testing.assert_array_less(np.abs(x.mean(axis=0) - mean), 5 * np.sqrt(np.diag(cov) / len(x)) + 1e-4)
    error = np.sqrt((np.outer(np.diag(cov), np.diag(cov)) + cov**2) / len(x))
    np.testing.assert_array_less(np.abs(deviation.T @ deviation / len(x) - cov), 5 * error + 1e-5)


# Encoding to a latent, and decoding.


@functools.cache
def there_and_back():
    traces = []

    @jax.jit
    def run(x0, levels, steps, first):
        traces.append(1)
        latent = sampling.encode(best, x0, levels, steps, first)
        keys = jax.random.split(jax.random.key(9), len(x0))
        return latent, sampling.run(keys, best, samplers.ddim(), levels, steps, latent)

    return run, traces


def data(count, seed=0):
    z = np.random.default_rng(seed).normal(size=(count, 2))
    return MEAN + z @ np.linalg.cholesky(COVARIANCE).T


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_encode_reverses_ddims_steps(name):
    """Compares with steps in float64; the image is treated as one at the first level."""
    schedule, run = SCHEDULES[name], there_and_back()[0]
    steps, first = 10, SCHEDULES[name](SCHEDULES[name].first)
    levels = lay(schedule, steps)
    latent, _ = run(jnp.asarray(data(64), jnp.float32), levels, steps, first)
    alpha, sigma = (np.asarray(v, np.float64)[:steps][::-1] for v in levels[1:])
    x, a, s = data(64), float(first.alpha), float(first.sigma)
    for a2, s2 in zip(alpha, sigma, strict=True):
        matrix, offset = exact_best(a, s)
        x0 = x @ matrix.T + offset
        x, a, s = a2 * x0 + s2 * (x - a * x0) / s, a2, s2
    np.testing.assert_allclose(latent, x, rtol=1e-3, atol=1e-3 * s)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_reconstruction_improves_with_steps(name):
    schedule, (run, traces) = SCHEDULES[name], there_and_back()
    x0, first = jnp.asarray(data(64), jnp.float32), schedule(schedule.first)
    grid = time_grids.karras if name == "edm" else time_grids.linspace
    errors = []
    for steps in (5, 10, 20, 50, 100, 200):
        _, back = run(x0, lay(schedule, steps, grid), steps, first)
        errors.append(np.sqrt(np.mean(np.square(back - x0))))
    assert np.all(np.diff(errors) < 0)
    assert errors[0] > 0.05 and errors[-1] < 0.02
    assert len(traces) == 1


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_latents_of_the_data_are_standard_normal(name):
    """Their std is sigma_max on exploding schedules. The flow keeps (x - mean) / std along each axis of the data."""
    schedule, run = SCHEDULES[name], there_and_back()[0]
    x0 = data(64)
    grid = time_grids.karras if name == "edm" else time_grids.linspace
    latent, _ = run(jnp.asarray(x0, jnp.float32), lay(schedule, 200, grid), 200, schedule(schedule.first))
    spread, basis = np.linalg.eigh(COVARIANCE)
    z = (x0 - MEAN) @ basis / np.sqrt(spread)
    last = schedule(1000.0)
    std = float(np.hypot(last.alpha, last.sigma))
    np.testing.assert_allclose(latent / std, z @ basis.T, atol=0.05)


# Between latents.

slerp = jax.jit(sampling.slerp)


def test_slerp_follows_the_great_circle():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 4, 3))
    b *= (np.linalg.norm(a, axis=(1, 2)) / np.linalg.norm(b, axis=(1, 2)))[:, None, None]
    a, b = np.float32(a), np.float32(b)
    norm = lambda v: np.linalg.norm(np.float64(v).reshape(5, -1), axis=1)  # noqa: E731
    angle = lambda u, v: np.arccos(np.sum(np.float64(u) * v, axis=(1, 2)) / norm(u) / norm(v))  # noqa: E731
    np.testing.assert_allclose(slerp(a, b, np.zeros(5)), a, atol=1e-6)
    np.testing.assert_allclose(slerp(a, b, np.ones(5)), b, atol=1e-6)
    for weight in (np.full(5, 0.5), np.linspace(0.1, 0.9, 5)):  # an example its own
        middle = slerp(a, b, weight)
        np.testing.assert_allclose(norm(middle), norm(a), rtol=1e-5)
        np.testing.assert_allclose(angle(a, middle), weight * angle(a, b), rtol=1e-4)
        np.testing.assert_allclose(angle(middle, b), (1 - weight) * angle(a, b), rtol=1e-4)


def test_slerp_of_unequal_lengths_equals_the_papers_formula():
    """DDIM, eq. 67."""
    a, b, weight = np.array([[3.0, 0.0]]), np.array([[1.0, 1.0]]), 0.25
    angle = np.pi / 4
    expected = (np.sin(0.75 * angle) * a + np.sin(0.25 * angle) * b) / np.sin(angle)
    np.testing.assert_allclose(slerp(a, b, np.array([weight])), expected, rtol=1e-5)


def test_slerp_of_a_latent_with_itself_is_the_latent():
    a = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)
    np.testing.assert_allclose(slerp(a, a, np.linspace(0.0, 1.0, 5)), a, rtol=1e-5)
    np.testing.assert_allclose(slerp(a, a * np.float32(1 + 1e-6), np.full(5, 0.5)), a, rtol=1e-5)
    gradient = jax.jit(jax.grad(lambda a: jnp.sum(sampling.slerp(a, a + 0.1, jnp.full(5, 0.5)))))(a)
    assert np.isfinite(gradient).all()


# From an image.


@functools.cache
def edit(sampler):
    @jax.jit
    def run(image, levels, steps, begin):
        keys = jax.random.split(jax.random.key(2), len(image))
        return sampling.edit(keys, best, SAMPLERS[sampler], levels, steps, image, begin=begin)

    return run


IMAGE = np.array([0.9, 0.6])  # unlike the data


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("begin", [0, 6, 15, 19])
def test_edit_has_the_closed_form_moments(begin, sampler):
    schedule, steps = SCHEDULES["cosine"], 20
    levels = lay(schedule, steps)
    a, s = float(levels.alpha[begin]), float(levels.sigma[begin])
    mean, cov = exact_moments(sampler, levels, steps, a * IMAGE, s**2 * np.eye(2), begin=begin)
    x = edit(sampler)(jnp.tile(jnp.asarray(IMAGE, jnp.float32), (COUNT, 1)), levels, steps, begin)
    check_moments(x, mean, cov)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_mix_of_two_noised_images_has_the_closed_form_moments(weight):
    """The noises of both images are independent, so the mix has less noise than its level: DDPM's interpolation."""
    levels, steps, begin, other = lay(SCHEDULES["cosine"], 20), 20, 10, np.array([-0.4, 0.2])
    a, s = float(levels.alpha[begin]), float(levels.sigma[begin])
    start = a * ((1 - weight) * IMAGE + weight * other)
    variance = s**2 * ((1 - weight) ** 2 + weight**2)
    mean, cov = exact_moments("ancestral", levels, steps, start, variance * np.eye(2), begin=begin)
    images = (jnp.tile(jnp.asarray(image, jnp.float32), (COUNT, 1)) for image in (IMAGE, other))
    check_moments(interpolate()(*images, jnp.full(COUNT, weight), levels, steps, begin), mean, cov)


@functools.cache
def interpolate():
    @jax.jit
    def run(image, other, weight, levels, steps, begin):
        keys = jax.random.split(jax.random.key(2), len(image))
        options = {"begin": begin, "other": other, "other_weight": weight}
        return sampling.edit(keys, best, SAMPLERS["ancestral"], levels, steps, image, **options)

    return run


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_later_edits_change_the_image_less(sampler):
    """From step 0 nothing of the image remains; from the last step nearly all of it."""
    schedule = SCHEDULES["cosine"]
    levels = lay(schedule, 100)
    image = jnp.tile(jnp.asarray(IMAGE, jnp.float32), (COUNT, 1))
    drawn = [np.asarray(edit(sampler)(image, levels, 100, begin)) for begin in (0, 50, 75, 99)]
    distance = [np.sqrt(np.mean((x - IMAGE) ** 2)) for x in drawn]
    assert np.all(np.diff(distance) < 0) and distance[-1] < 0.1
    moments = exact_moments(sampler, levels, 100, np.zeros(2), np.eye(2))
    np.testing.assert_allclose(moments[1], COVARIANCE, rtol=0.1)
    check_moments(drawn[0], *moments)


def test_run_starts_at_begin():
    """Without noise, the first steps followed by the rest equal the whole run."""
    levels = lay(SCHEDULES["rectified_flow"], 20)
    keys = jax.random.split(jax.random.key(3), 64)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 2)), jnp.float32)
    run = jax.jit(lambda x, steps, begin: sampling.run(keys, best, samplers.ddim(), levels, steps, x, begin=begin))
    np.testing.assert_allclose(run(run(x, 8, 0), 20, 8), run(x, 20, 0), atol=1e-5)
    assert np.abs(run(x, 8, 0) - x).max() > 0.1
    mean, _ = exact_moments("ddim", levels, 20, np.array([0.5, -1.0]), np.zeros((2, 2)), begin=12)
    np.testing.assert_allclose(
        run(jnp.tile(jnp.array([[0.5, -1.0]]), (64, 1)), 20, 12), np.tile(mean, (64, 1)), atol=1e-4
    )


# Resampling.


@functools.cache
def resampled(sampler):
    traces = []

    @jax.jit
    def run(levels, steps, resample_steps, mask, known):
        traces.append(1)
        keys = jax.random.split(jax.random.key(4), COUNT)
        denoise = guidance.inpaint(best, known[None], mask[None])
        return sampling.sample(
            keys, denoise, SAMPLERS[sampler], levels, steps, shape=(2,), resample_steps=resample_steps
        )

    return run, traces


FREE = (0.0, 0.0)
KNOWN = (1.0, 0.0)  # the first coordinate, two standard deviations out, below


def draw(sampler, levels, steps, resample_steps, mask=FREE, known=FREE):
    return resampled(sampler)[0](levels, steps, resample_steps, jnp.asarray(mask), jnp.asarray(known))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("schedule", ["cosine", "rectified_flow"])
@pytest.mark.parametrize("steps, resample_steps", [(1, 3), (8, 1), (8, 4)])
def test_resampled_moments_equal_the_closed_form(steps, resample_steps, schedule, sampler):
    levels = lay(SCHEDULES[schedule], steps)
    std = float(np.hypot(levels.alpha[0], levels.sigma[0]))
    expected = exact_moments(sampler, levels, steps, np.zeros(2), std**2 * np.eye(2), resample_steps=resample_steps)
    check_moments(draw(sampler, levels, steps, resample_steps), *expected)


def test_resampling_with_many_steps_has_the_moments_of_the_data():
    levels = lay(SCHEDULES["rectified_flow"], 100)
    mean, cov = exact_moments("ancestral", levels, 100, np.zeros(2), np.eye(2), resample_steps=3)
    np.testing.assert_allclose(mean, MEAN, atol=0.01)
    np.testing.assert_allclose(cov, COVARIANCE, rtol=0.1)
    check_moments(draw("ancestral", levels, 100, 3), mean, cov)


def test_resampling_moves_an_inpainted_coordinate_to_its_conditional_distribution():
    """The coordinates are correlated, so resampling moves the other one to its conditional distribution (RePaint)."""
    steps, levels = 25, lay(SCHEDULES["rectified_flow"], 25)
    known = (MEAN[0] + 2 * np.sqrt(COVARIANCE[0, 0]), 0.0)
    slope = COVARIANCE[0, 1] / COVARIANCE[0, 0]
    mean, std = MEAN[1] + slope * (known[0] - MEAN[0]), np.sqrt(COVARIANCE[1, 1] - slope * COVARIANCE[0, 1])
    off_mean, distance = [], []
    for resample_steps in (1, 3, 10):
        x = np.asarray(draw("ancestral", levels, steps, resample_steps, KNOWN, known))
        arguments = {"resample_steps": resample_steps, "mask": KNOWN, "known": known}
        check_moments(x, *exact_moments("ancestral", levels, steps, np.zeros(2), np.eye(2), **arguments))
        np.testing.assert_allclose(x[:, 0], known[0], atol=1e-5)
        off_mean.append(abs(x[:, 1].mean() - mean))
        distance.append(np.hypot(off_mean[-1], x[:, 1].std() - std))  # Wasserstein's, of two Gaussians
    assert off_mean[0] > off_mean[1] > off_mean[2]
    assert distance[0] > distance[1] > distance[2]
    assert distance[0] > 0.15 and distance[2] < 0.05


def test_steps_resample_steps_and_mask_are_traced():
    for sampler in SAMPLERS:
        run, traces = resampled(sampler)
        levels = lay(SCHEDULES["cosine"], 2)
        drawn = [
            run(levels, steps, resample_steps, jnp.asarray(FREE), jnp.asarray(FREE))
            for steps, resample_steps in ((1, 2), (2, 1))
        ]
        assert np.abs(drawn[0] - drawn[1]).max() > 0.01
        assert len(traces) == 1


def test_resampling_noises_each_example_by_its_key():
    levels = lay(SCHEDULES["cosine"], 4)
    keys = jax.random.split(jax.random.key(5), 6)

    @jax.jit
    def run(keys):
        return sampling.sample(keys, best, samplers.ancestral(), levels, 4, shape=(2,), resample_steps=3)

    whole = run(keys)
    np.testing.assert_allclose(run(keys[::-1])[::-1], whole, rtol=1e-5, atol=1e-6)
    assert len(np.unique(np.asarray(whole))) == whole.size


# Noise of one Brownian path.


@pytest.mark.slow
def test_brownian_increments_are_those_of_one_path():
    """Standard normal, independent if disjoint, and adding up; in 20,000 paths."""
    count = 20_000
    keys = jax.random.split(jax.random.key(0), count)
    times = np.array([1.0, 0.7, 0.6999, 0.25, 0.0])

    @jax.jit
    def increments(starts, ends):
        return [brownian_increment(keys, start, end, ()) for start, end in zip(starts, ends, strict=True)]

    parts = np.asarray(increments(times[:-1], times[1:]))
    np.testing.assert_allclose(parts @ parts.T / count, np.eye(4), atol=5 / np.sqrt(count))
    whole = np.asarray(increments(times[:1], times[-1:]))[0]
    np.testing.assert_allclose(np.sqrt(-np.diff(times)) @ parts, whole, atol=2e-3)


@pytest.mark.slow
def test_brownian_noise_gives_nearly_the_same_samples_in_any_number_of_steps():
    """Temperature scales the noise, so that at 0 both kinds give the same samples."""
    schedule = SCHEDULES["cosine"]
    keys = jax.random.split(jax.random.key(0), 500)

    @functools.partial(jax.jit, static_argnames="brownian")
    def run(levels, steps, brownian, temperature=1.0):
        sampler = samplers.dpmpp_2m_sde()
        options = {"temperature": temperature, "brownian": brownian}
        return sampling.sample(keys, best, sampler, levels, steps, shape=(2,), **options)

    def distance(*steps, brownian):
        few, many = (np.asarray(run(lay(schedule, n), n, brownian)) for n in steps)
        return np.sqrt(np.mean((few - many) ** 2))

    spread = np.sqrt(np.trace(COVARIANCE))
    assert distance(50, 200, brownian=False) > 0.5 * spread
    assert distance(50, 200, brownian=True) < 0.15 * spread
    assert distance(100, 200, brownian=True) < 0.7 * distance(50, 200, brownian=True)
    np.testing.assert_allclose(np.cov(run(lay(schedule, 200), 200, True).T), COVARIANCE, atol=0.05)
    cold = run(lay(schedule, 20), 20, False, 0.0)
    np.testing.assert_allclose(cold, run(lay(schedule, 20), 20, True, 0.0), atol=1e-5)
