"""Distributions of training times, by histograms against exact probabilities."""

import jax
import numpy as np
import pytest
from scipy import special, stats

from diffjax.diffusion import noise_schedules, time_sampling
from diffjax.registry import choices

DRAWS = 20_000
# One in 10^4 of right samples is beyond these.
LEAST_P = 1e-4


def draw(sampling, schedule, state=None, count=DRAWS):
    state = sampling.init(schedule) if state is None else state
    keys = jax.random.split(jax.random.key(0), count)
    t, factor = jax.jit(jax.vmap(lambda key: sampling.sample(key, schedule, state)))(keys)
    return np.asarray(t, np.float64), np.asarray(factor, np.float64)


# name -> (options, the schedule's, the cumulative distribution of t) on continuous schedules of T = 100.
CONTINUOUS = {
    "uniform": ({}, noise_schedules.cosine, lambda t: (t - 0.1) / 99.9),
    "log_normal": ({}, noise_schedules.edm, lambda t: stats.norm.cdf((edm_log_sigma(t / 100) + 1.2) / 1.2)),
    "logit_normal": (
        {"mean": 0.3, "std": 0.7},
        noise_schedules.rectified_flow,
        lambda t: stats.norm.cdf((special.logit(t / 100) - 0.3) / 0.7),
    ),
    "importance": None,  # discrete only
}


def edm_log_sigma(u):
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    return 7 * np.log(high + (1 - u) / 0.999 * (low - high))


def test_the_table_is_complete():
    assert set(CONTINUOUS) == set(choices(time_sampling))


@pytest.mark.parametrize("name", [name for name, row in CONTINUOUS.items() if row])
def test_continuous_times(name):
    options, schedule, cdf = CONTINUOUS[name]
    t, factor = draw(choices(time_sampling)[name](**options), schedule(100, continuous=True))
    assert t.min() >= np.float32(0.1)
    assert t.max() <= 100
    assert len(np.unique(t)) > 0.9 * DRAWS
    assert stats.kstest(t, cdf).pvalue > LEAST_P
    np.testing.assert_array_equal(factor, np.ones(DRAWS))


@pytest.mark.parametrize("timesteps", [1, 7])
def test_uniform_over_discrete_times(timesteps):
    t, factor = draw(time_sampling.uniform(), noise_schedules.cosine(timesteps))
    counts = np.bincount(t.astype(int), minlength=timesteps + 1)
    assert counts[0] == 0
    assert len(counts) == timesteps + 1
    assert timesteps == 1 or stats.chisquare(counts[1:]).pvalue > LEAST_P
    np.testing.assert_array_equal(factor, np.ones(DRAWS))


def test_log_normal_has_edms_mean_and_spread():
    """log sigma ~ N(P_mean, P_std^2): Karras et al. 2022, table 1."""
    for options, mean, std in (({}, -1.2, 1.2), ({"mean": 0.5, "std": 0.3}, 0.5, 0.3)):
        t, _ = draw(time_sampling.log_normal(**options), noise_schedules.edm(1000, continuous=True))
        log_sigma = edm_log_sigma(t / 1000)
        np.testing.assert_allclose(log_sigma.mean(), mean, atol=4 * std / np.sqrt(DRAWS))
        np.testing.assert_allclose(log_sigma.std(), std, rtol=4 / np.sqrt(2 * DRAWS))


@pytest.mark.parametrize("name", ["log_normal", "logit_normal"])
@pytest.mark.parametrize("continuous", [False, True])
def test_times_are_clipped_to_the_ends(name, continuous):
    schedule = noise_schedules.edm(10, continuous=continuous)
    for mean, end in ((-100.0, schedule.first), (100.0, 10)):
        t, _ = draw(choices(time_sampling)[name](mean=mean), schedule, count=100)
        np.testing.assert_allclose(t, np.full(100, end), rtol=1e-6)


@pytest.mark.parametrize("name", ["log_normal", "logit_normal"])
def test_discrete_schedules_use_the_nearest_level(name):
    """Probabilities of levels: the normal's mass between midpoints, the rest at the ends."""
    schedule = noise_schedules.rectified_flow(10)
    middle = np.arange(1.5, 9)  # below the last level, which is without signal
    if name == "log_normal":
        sampling, log_sigma = time_sampling.log_normal(mean=0.0, std=1.0), special.logit(np.arange(1, 10) / 10)
        cumulative = stats.norm.cdf((log_sigma[1:] + log_sigma[:-1]) / 2)
    else:
        sampling, cumulative = time_sampling.logit_normal(), stats.norm.cdf(special.logit(middle / 10))
    t, _ = draw(sampling, schedule)
    np.testing.assert_array_equal(t, np.round(t))
    counts = np.bincount(t.astype(int), minlength=11)
    assert counts[0] == 0
    p = np.diff(np.concatenate([[0.0], cumulative, [1.0]]))
    assert stats.chisquare(np.append(counts[1:9], counts[9:].sum()), p * DRAWS).pvalue > LEAST_P


LOSSES = np.array([0.1, 3.0, 1.0, 0.5, 2.0])  # of t = 1..5, times one of SPREAD each time
SPREAD = np.array([0.5, 1.5])
SCHEDULE = noise_schedules.cosine(5)


def batch(seen=5):
    """Visits every t up to `seen` equally often, with both of its losses."""
    t = np.tile(np.arange(1.0, seen + 1), 2)
    return t.astype(np.float32), (LOSSES[t.astype(int) - 1] * np.repeat(SPREAD, seen)).astype(np.float32)


def trained(sampling, steps, seen=5):
    state = sampling.init(SCHEDULE)
    for _ in range(steps):
        state = sampling.update(state, *batch(seen))
    return state


def test_importance_is_uniform_before_its_horizon():
    sampling = time_sampling.importance(horizon=3.0)
    for steps in (0, 2):
        t, factor = draw(sampling, SCHEDULE, trained(sampling, steps))
        assert stats.chisquare(np.bincount(t.astype(int), minlength=6)[1:]).pvalue > LEAST_P
        np.testing.assert_allclose(factor, np.ones(DRAWS), rtol=1e-5)


@pytest.mark.parametrize("share", [0.001, 0.4])
def test_importance_is_proportional_to_the_root_mean_square_loss(share):
    """Nichol & Dhariwal 2021, eq. 18, and the factor 1 / (T p_t) that keeps the mean."""
    sampling = time_sampling.importance(horizon=3.0, uniform_share=share)
    t, factor = draw(sampling, SCHEDULE, trained(sampling, 3))
    root = np.sqrt((LOSSES[:, None] ** 2 * SPREAD**2).mean(1))
    p = share / 5 + (1 - share) * root / root.sum()
    index = t.astype(int) - 1
    assert stats.chisquare(np.bincount(index, minlength=5), p * DRAWS).pvalue > LEAST_P
    np.testing.assert_allclose(factor, 1 / (5 * p[index]), rtol=1e-5)
    weighed = factor * LOSSES[index]
    np.testing.assert_allclose(weighed.mean(), LOSSES.mean(), atol=4 * weighed.std() / np.sqrt(DRAWS))
    if share < 0.01:  # without the spread of a loss itself, every weighted loss is near the mean
        assert weighed.std() < 0.1 * LOSSES[np.random.default_rng(0).integers(0, 5, DRAWS)].std()


def test_importance_of_unvisited_times_is_the_mean():
    sampling = time_sampling.importance(horizon=1.0, uniform_share=0.0)
    t, factor = draw(sampling, SCHEDULE, trained(sampling, 1, seen=3))
    square = (LOSSES[:3, None] ** 2 * SPREAD**2).mean(1)
    root = np.sqrt(np.append(square, [square.mean()] * 2))
    index = t.astype(int) - 1
    assert stats.chisquare(np.bincount(index, minlength=5), root / root.sum() * DRAWS).pvalue > LEAST_P
    np.testing.assert_allclose(factor, root.sum() / 5 / root[index], rtol=1e-5)


def test_importance_forgets_over_its_horizon():
    sampling = time_sampling.importance(horizon=4.0)
    rng = np.random.default_rng(0)
    state, squares, draws = sampling.init(SCHEDULE), np.zeros(5), np.zeros(5)
    for _ in range(6):
        t, loss = rng.integers(1, 6, 8).astype(np.float32), rng.uniform(size=8).astype(np.float32)
        state = sampling.update(state, t, loss)
        squares, draws = 0.75 * squares, 0.75 * draws
        for i, value in zip(t.astype(int) - 1, loss, strict=True):
            squares[i] += value**2 / 8
            draws[i] += 1 / 8
    np.testing.assert_allclose(state["squared_losses"], squares, rtol=1e-5)
    np.testing.assert_allclose(state["counts"], draws, rtol=1e-5)
    assert state["age"] == 6


def test_importance_survives_losses_of_zero():
    sampling = time_sampling.importance(horizon=1.0)
    state = sampling.update(sampling.init(SCHEDULE), batch()[0], np.zeros(10, np.float32))
    t, factor = draw(sampling, SCHEDULE, state)
    assert stats.chisquare(np.bincount(t.astype(int), minlength=6)[1:]).pvalue > LEAST_P
    np.testing.assert_allclose(factor, np.ones(DRAWS), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(CONTINUOUS))
def test_memory_is_linear_in_the_batch(name):
    """The mean over two halves of a batch equals the whole batch."""
    sampling = choices(time_sampling)[name]()
    before = trained(sampling, 2)
    t, losses = batch()
    whole = sampling.update(before, t, losses)
    halves = [sampling.update(before, t[part], losses[part]) for part in (slice(0, 5), slice(5, 10))]
    assert set(whole) == ({"squared_losses", "counts", "age"} if name == "importance" else set())
    for key in whole:
        np.testing.assert_allclose((halves[0][key] + halves[1][key]) / 2, whole[key], rtol=1e-6)
        assert not np.array_equal(whole[key], before[key])


def test_importance_requires_discrete_times():
    with pytest.raises(ValueError, match="continuous=False"):
        time_sampling.importance().init(noise_schedules.linear(10, continuous=True))
