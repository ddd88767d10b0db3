"""Pairs of timesteps: each against its paper, on continuous and discrete schedules."""

import functools
import math

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy import stats

from diffjax.diffusion import next_times, noise_schedules
from diffjax.registry import choices

CONTINUOUS = noise_schedules.edm(1000, continuous=True)
DISCRETE = noise_schedules.cosine(1000)
FEW_LEVELS = noise_schedules.rectified_flow(20)
COUNT = 2000
TIMES = np.random.default_rng(0).uniform(1, 1000, COUNT).astype(np.float32)


def sample_time(key):
    return jax.random.uniform(key, minval=1.0, maxval=1000.0)


def pairs(name, schedule=CONTINUOUS, times=TIMES, step=0, **options):
    """Returns (now, next), float64 [COUNT]."""
    keys = jax.random.split(jax.random.key(1), len(times))
    compute = compiled(name, schedule, tuple(options.items()))
    return tuple(np.asarray(t, np.float64) for t in compute(keys, times, jnp.asarray(step)))


@functools.cache
def compiled(name, schedule, options):
    choose = functools.partial(choices(next_times)[name], sample_time=sample_time, schedule=schedule, **dict(options))
    return jax.jit(jax.vmap(lambda key, t, step: choose(key, t, step=step), (0, 0, None)))


def sigmas(times):
    level = CONTINUOUS(jnp.asarray(times, jnp.float32))
    return np.asarray(level.sigma / level.alpha, np.float64)


@pytest.mark.parametrize("name", sorted(choices(next_times)))
def test_next_is_below_now(name):
    for schedule in (CONTINUOUS, DISCRETE):
        times = np.round(TIMES) if schedule is DISCRETE else TIMES
        for step in (0, 10**5, 10**7) if name in ("doubling", "square_root", "shrinking") else (0,):
            now, next = pairs(name, schedule, times, step)
            assert (next >= 0).all() and (next <= now).all() and (now <= 1000).all() and (now >= 1).all()
            if schedule is DISCRETE and name != "second_sample":  # whose second times are not rounded here
                np.testing.assert_array_equal([now, next], np.round([now, next]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("clean", "uniform_below", "skip", "doubling", "square_root", "shrinking")),
        *(("skip", {"share": 0.001}), ("grid", {"steps": 20}), ("grid", {"steps": 20, "rho": 7.0})),
    ],
)
def test_pairs_for_losses_of_steps_are_never_equal(name, options):
    """On a schedule of few levels, to which many pairs round."""
    for step in (0, 10**6):
        now, next = pairs(name, FEW_LEVELS, np.arange(1, 21, dtype=np.float32), step, **options)
        assert (next < now).all() and (next == np.round(next)).all()


@pytest.mark.parametrize("name", ["uniform_below", "shrinking"])
def test_below_the_first_level_is_the_clean_image(name):
    now, next = pairs(name, times=np.full(4, CONTINUOUS.first, np.float32))
    assert (now == CONTINUOUS.first).all() and (next == 0).all()


def test_a_second_sample_is_sorted_with_the_first():
    """`now` is the larger of two samples in all pairs, also in those of equal times."""
    now, next = pairs("second_sample", share=0.3)
    assert np.mean(next < now) == pytest.approx(0.3, abs=0.04)
    assert (now >= TIMES).all() and np.isin(TIMES[next < now], [now[next < now], next[next < now]]).all()
    for rows in (next == now, next < now):
        assert stats.kstest((now[rows] - 1) / 999, lambda x: x**2).pvalue > 0.01


def test_next_times_are_uniform_below():
    now, next = pairs("uniform_below")
    np.testing.assert_array_equal(now, TIMES)
    assert stats.kstest((next - 1) / (now - 1), "uniform").pvalue > 0.01


def test_dyadic_steps_lie_on_their_grid():
    now, next = pairs("dyadic", steps=16, share=0.5)
    rows = next < now
    assert rows.mean() == pytest.approx(0.5, abs=0.05)
    length = (now - next)[rows] / 1000
    exponents, counts = np.unique(-np.log2(length), return_counts=True)
    np.testing.assert_allclose(exponents, [0, 1, 2, 3], atol=1e-5)
    assert counts.min() > 0.2 * rows.sum()
    np.testing.assert_allclose(now[rows] / 1000 / length, np.round(now[rows] / 1000 / length), atol=1e-4)


def test_grids_of_distillation():
    now, next = pairs("grid", DISCRETE, steps=4)
    assert {*zip(now, next, strict=True)} == {(1000, 750), (750, 500), (500, 250), (250, 0)}
    now, next = (np.unique(t) for t in pairs("grid", steps=18, rho=7.0))
    roots = np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 19)  # Karras et al. 2022, eq. 5
    np.testing.assert_allclose(sigmas(now), roots[1:] ** 7, rtol=2e-3)
    np.testing.assert_allclose(sigmas(next), roots[:-1] ** 7, rtol=2e-3)


@pytest.mark.parametrize(("step", "intervals"), [(0, 10), (49, 10), (50, 20), (399, 1280), (10**4, 1280)])
def test_doubling_is_the_curriculum_of_ict(step, intervals):
    """N(k) = min(s_0 2^floor(k / K'), s_1) + 1, K' = floor(K / (log_2 floor(s_1 / s_0) + 1)): sec. 3.5."""
    assert intervals == min(10 * 2 ** (step // (400 // (int(math.log2(1280 // 10)) + 1))), 1280)
    now, next = (sigmas(t) ** (1 / 7) for t in pairs("doubling", step=step, steps=400))
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    place = (now - low) / (high - low) * intervals
    np.testing.assert_allclose(place, np.round(place), atol=0.03)
    np.testing.assert_allclose(now - next, (high - low) / intervals, rtol=0.03, atol=1e-5)
    wanted = (sigmas(TIMES) ** (1 / 7) - low) / (high - low) * intervals
    np.testing.assert_allclose(place, np.clip(np.ceil(wanted), 1, intervals), atol=1.01)


@pytest.mark.parametrize("step", [0, 1, 10, 57, 399, 400, 10**4])
def test_square_root_is_the_curriculum_of_consistency_training(step):
    """N(k) = ceil(sqrt(k / K ((s_1 + 1)^2 - s_0^2) + s_0^2) - 1) + 1: appendix C."""
    levels = math.ceil(math.sqrt(min(step / 400, 1) * (151**2 - 2**2) + 2**2) - 1) + 1
    now, next = (sigmas(t) ** (1 / 7) for t in pairs("square_root", step=step, steps=400))
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    np.testing.assert_allclose(now - next, (high - low) / (levels - 1), rtol=0.03, atol=1e-5)
    assert len(np.unique(np.round((now - low) / (high - low) * (levels - 1)))) == levels - 1


@pytest.mark.parametrize("step", [0, 25_000, 120_000])
def test_shrinking_is_the_mapping_of_ect(step):
    """`t_to_r_sigmoid` of locuslab/ect."""
    now, next = pairs("shrinking", step=step)
    sigma = sigmas(now)
    ratio = 1 - (1 + 8 / (1 + np.exp(sigma))) / 2 ** (step // 25_000 + 1)
    expected = np.maximum(sigma * ratio, 0)
    rows = expected > 0.0021
    np.testing.assert_allclose(sigmas(next)[rows], expected[rows], rtol=5e-3)
    assert (next[expected < 0.0019] == 0).all()


def test_a_skip_is_a_share_of_all_timesteps():
    now, next = pairs("skip", DISCRETE, np.float32([1000, 500, 20, 7]), share=0.02)
    np.testing.assert_array_equal([now, next], [[1000, 500, 20, 7], [980, 480, 0, 0]])


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("dyadic", {"steps": 0}, "steps=0: must be a whole number, at least 1"),
        ("dyadic", {"steps": 12}, "steps=12: must be a power of two"),
        ("dyadic", {"steps": 1024}, "steps=1024: must be at most 1000"),
        ("dyadic", {"share": 1.5}, "share=1.5: must be from 0 to 1"),
        ("second_sample", {"share": -0.5}, "share=-0.5: must be from 0 to 1"),
        ("grid", {"steps": 2.5}, "steps=2.5: must be a whole number"),
        ("grid", {"steps": 1001}, "steps=1001: must be at most 1000"),
        ("grid", {"rho": 0.01}, "rho=0.01: must be from 1 to 100"),
        ("skip", {"share": 0}, "share=0: must be above 0"),
        ("doubling", {"start": 0}, "start=0: must be a whole number"),
        ("doubling", {"end": 5}, "end=5: must be at least start=10"),
        ("doubling", {"steps": 0}, "steps=0: must be a whole number"),
        ("doubling", {"rho": 0}, "rho=0: must be from 1 to 100"),
        ("square_root", {"start": 1}, "start=1: must be at least 2"),
        ("shrinking", {"every": 0}, "every=0: must be a whole number"),
        ("shrinking", {"q": 1}, "q=1: must be above 1"),
    ],
)
def test_invalid_options_raise(name, options, problem):
    with pytest.raises(ValueError, match=problem):
        pairs(name, **options)
