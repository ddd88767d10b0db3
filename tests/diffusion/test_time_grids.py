"""Every grid, for every number of steps, on every schedule."""

import functools
import itertools
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffjax.diffusion import noise_schedules, time_grids
from diffjax.registry import choices

# Grids of n steps, for any n in 1..T.
GRIDS = {
    "leading": time_grids.leading,
    "trailing": time_grids.trailing,
    "linspace": time_grids.linspace,
    "quadratic": time_grids.quadratic,
    "log_snr": time_grids.log_snr,
    "karras": time_grids.karras,
    "ays_sd15": time_grids.ays_sd15,
    "ays_sdxl": time_grids.ays_sdxl,
    "ays_svd": time_grids.ays_svd,
    "sections": time_grids.sections,
    "times": lambda n, schedule: time_grids.times(n, schedule, *np.linspace(schedule.timesteps, 1, n).astype(int)),
}
OF_LEVELS, PUBLISHED = ["karras", "log_snr"], ["ays_sd15", "ays_sdxl", "ays_svd"]
OF_TIMES = sorted(set(GRIDS) - {*OF_LEVELS, *PUBLISHED})
SCHEDULES = choices(noise_schedules)
LINEAR = noise_schedules.linear(1000)


@functools.cache
def make_grid(name, timesteps, zero=False):
    schedule = SCHEDULES[name](timesteps)
    return schedule.with_zero_terminal_snr() if zero else schedule


def check(grid, n, schedule, fractional=False):
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # of infinities
        times = grid(n, schedule)
    assert times.dtype == np.float64
    assert times.shape == (n + 1,)
    assert times[-1] == 0
    assert times[-2] >= np.float32(schedule.first)
    assert times[0] <= schedule.timesteps
    assert (np.diff(times) < 0).all(), times
    assert schedule.continuous or fractional or (times == np.round(times)).all()
    if n == schedule.timesteps and not schedule.continuous:
        np.testing.assert_array_equal(times, np.arange(n, -1, -1))
    return times


def test_the_table_is_complete():
    assert set(GRIDS) == set(choices(time_grids))


@pytest.mark.parametrize("name", OF_TIMES)
def test_every_number_of_steps(name):
    for timesteps in (1, 2, 7, 64, 250, 1000):
        schedule = make_grid("linear", timesteps)
        for n in range(1, timesteps + 1):
            check(GRIDS[name], n, schedule)


@given(data=st.data(), timesteps=st.integers(1, 4000), name=st.sampled_from(OF_TIMES))
@settings(max_examples=200, deadline=None)
def test_any_number_of_timesteps(data, timesteps, name):
    check(GRIDS[name], data.draw(st.integers(1, timesteps)), make_grid("linear", timesteps))


@given(data=st.data(), timesteps=st.integers(1, 4000))
@settings(max_examples=2, deadline=None)
def test_any_number_of_timesteps_by_level(data, timesteps):
    """Few examples, as each is compiled."""
    n = data.draw(st.integers(1, timesteps))
    for name in data.draw(st.lists(st.sampled_from(sorted(SCHEDULES)), min_size=2, max_size=2)):
        check(GRIDS[data.draw(st.sampled_from(OF_LEVELS))], n, make_grid(name, timesteps))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_LEVELS)
@pytest.mark.parametrize("zero", [False, True])
def test_every_schedule_has_every_grid_of_levels(name, zero):
    for timesteps in (1, 3, 1000):
        for n in {1, 2, timesteps} - {timesteps + 1}:
            for schedule in SCHEDULES:
                if not (zero and (timesteps == 1 or schedule == "learned")):
                    times = check(GRIDS[name], n, make_grid(schedule, timesteps, zero))
                    assert times[0] == timesteps
                    assert n == 1 or times[-2] == 1


@pytest.mark.parametrize("name", sorted(GRIDS))
def test_all_steps_are_the_unspaced_process(name):
    for timesteps in (1, 3, 1000, 4000):
        np.testing.assert_array_equal(
            GRIDS[name](timesteps, make_grid("cosine", timesteps)), np.arange(timesteps, -1, -1)
        )


@pytest.mark.parametrize("name", sorted(set(GRIDS) - {"times"}))
def test_impossible_numbers_of_steps_raise(name):
    for n in (0, -1, 1001):
        with pytest.raises(ValueError, match=f"1 to 1000 steps, not {n}"):
            GRIDS[name](n, LINEAR)
    continuous = noise_schedules.linear(10, continuous=True)
    if name in OF_LEVELS:  # real times have room for any number
        check(functools.partial(GRIDS[name], fractional=True), 1001, LINEAR, fractional=True)
        check(GRIDS[name], 50, continuous)
    elif name in OF_TIMES:
        with pytest.raises(ValueError, match="1 to 10 steps"):
            GRIDS[name](11, continuous)


def test_grids_equal_published_code():
    # DDIM's uniform (n divides T) and quadratic, counted from zero there.
    np.testing.assert_array_equal(time_grids.leading(50, LINEAR)[:-1][::-1] - 1, np.arange(0, 1000, 20))
    quadratic = (np.linspace(0, np.sqrt(1000 * 0.8), 10) ** 2).astype(int)
    np.testing.assert_array_equal(time_grids.quadratic(10, LINEAR)[:-1][::-1] - 1, quadratic)
    # The linspace of Lin et al. 2024, table 2: round(i * (T - 1) / (n - 1)).
    stride = 999 / 99
    np.testing.assert_array_equal(
        time_grids.linspace(100, LINEAR)[:-1][::-1] - 1, [round(i * stride) for i in range(100)]
    )
    # Lin et al. 2024: T, T - T / n, ...
    np.testing.assert_array_equal(time_grids.trailing(10, LINEAR)[:-1], np.arange(1000, 0, -100))


@pytest.mark.parametrize("n", [1, 2, 7, 10, 50, 300, 999])
def test_options_of_leading(n):
    """The formulas of diffusers' DDIMScheduler, whose times count from zero."""
    found = time_grids.leading(n, LINEAR, offset=1, whole_strides=True, end=1)
    np.testing.assert_array_equal(found[:-1][::-1] - 1, np.arange(n) * (1000 // n) + 1)
    assert found[-1] == 1
    np.testing.assert_array_equal(time_grids.leading(n, LINEAR, offset=1)[:-1], time_grids.leading(n, LINEAR)[:-1] + 1)
    assert time_grids.trailing(n, noise_schedules.linear(2000), end=1)[-1] == 1


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 50])
def test_trailing_among_the_timesteps_of_training(n):
    """The formula of diffusers' LCMScheduler, whose timesteps count from zero, in whole numbers."""
    origin = np.arange(1, 51) * 20 - 1
    chosen = [origin[::-1][i * 50 // n] for i in range(n)]
    np.testing.assert_array_equal(time_grids.trailing(n, LINEAR, among=50), [*(t + 1 for t in chosen), 0])


def test_offsets_and_ends_outside_the_grid_raise():
    with pytest.raises(ValueError, match=r"among=50\): must be from 51"):
        time_grids.trailing(51, LINEAR, among=50)
    with pytest.raises(ValueError, match="starts above 1000; lower offset or steps"):
        time_grids.leading(1000, LINEAR, offset=1)
    for end in (1, -1):
        with pytest.raises(ValueError, match=f"end={end}: must be at least 0 and below 1"):
            time_grids.leading(50, LINEAR, end=end)


@pytest.mark.parametrize("name", ["trailing", "linspace", "log_snr", "karras", "ays_sd15"])
@pytest.mark.parametrize("fractional", [False, True])
def test_a_last_level_other_than_the_clean_image(name, fractional):
    """Grids that reach the first level are spaced down to the end instead, evenly in their own measure."""
    grid = functools.partial(GRIDS[name], fractional=fractional)
    times, to_image = grid(10, LINEAR, end=20), grid(10, LINEAR)
    assert len(times) == 11 and times[-1] == 20 and times[0] == 1000 and (np.diff(times) < 0).all()
    assert (times == np.round(times)).all() != fractional or name in ("trailing", "linspace")
    if name in ("trailing", "ays_sd15"):
        np.testing.assert_array_equal(times[:-1], to_image[:-1])
        return
    levels = LINEAR(times)
    log_sigma = np.log(np.asarray(levels.sigma, np.float64)) - np.log(np.asarray(levels.alpha, np.float64))
    measure = {"linspace": times, "log_snr": log_sigma, "karras": np.exp(log_sigma / 7)}[name]
    tolerance = 1e-3 if fractional else 0.1
    np.testing.assert_allclose(np.diff(measure), np.full(10, (measure[-1] - measure[0]) / 10), rtol=tolerance)


def test_the_polyexponential_grid():
    """`get_sigmas_polyexponential` of k-diffusion."""
    schedule, rho = noise_schedules.edm(1000, continuous=True), 2.0
    ramp = np.linspace(1, 0, 12) ** rho
    sigmas = np.exp(ramp * (np.log(80) - np.log(0.002)) + np.log(0.002))
    times = time_grids.log_snr(12, schedule, rho=rho)
    np.testing.assert_allclose(schedule(times[:-1]).sigma, sigmas, rtol=2e-4)


def test_published_grids_interpolate_their_tables():
    """At 10 steps they are the tables; at 20 every second level is of the table."""
    schedule = noise_schedules.edm(1000, continuous=True, sigma_max=700.0)
    table = [700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034]
    ten, twenty = (schedule(time_grids.ays_svd(n, schedule)).sigma for n in (10, 20))
    np.testing.assert_allclose(ten[:-1], table, rtol=1e-3)
    np.testing.assert_allclose(twenty[:-1][::2], table, rtol=1e-3)
    np.testing.assert_allclose(twenty[1:-2:2], np.sqrt(ten[:-2] * ten[1:-1]), rtol=1e-3)


@pytest.mark.parametrize("n", [1, 2, 10, 64, 75, 80, 128, 999])
def test_first_and_last_times_of_grids(n):
    """`trailing` and `linspace` start at T; `leading` and `linspace` visit time 1."""
    assert time_grids.trailing(n, LINEAR)[0] == time_grids.linspace(n, LINEAR)[0] == 1000
    assert time_grids.leading(n, LINEAR)[-2] == 1
    assert n == 1 or time_grids.linspace(n, LINEAR)[-2] == 1


@pytest.mark.parametrize("n", [3, 7, 64, 300])
def test_times_are_within_a_level_of_even(n):
    i = np.arange(n)
    for grid, exact in (
        (time_grids.leading, 1 + i * 1000 / n),
        (time_grids.trailing, (i + 1) * 1000 / n),
        (time_grids.linspace, 1 + i * 999 / (n - 1)),
    ):
        assert (np.abs(grid(n, LINEAR)[:-1][::-1] - exact) < (0.5000001 if grid is time_grids.linspace else 1)).all()


def space_timesteps(total, counts):
    """Improved DDPM's spacing, with Python's additions and rounding one by one. Counted from zero."""
    taken, start = [], 0
    for i, count in enumerate(counts):
        size = total // len(counts) + (i < total % len(counts))
        stride = (size - 1) / (count - 1) if count > 1 else 1
        place = 0.0
        for _ in range(count):
            taken.append(start + round(place))
            place += stride
        start += size
    return np.array(taken)


@pytest.mark.parametrize(("timesteps", "every"), [(1000, 1), (4000, 97)])
def test_sections_without_counts_equal_improved_ddpms_spacing(timesteps, every):
    schedule = make_grid("linear", timesteps)
    for n in range(1, timesteps + 1, every):
        np.testing.assert_array_equal(time_grids.sections(n, schedule)[:-1][::-1] - 1, space_timesteps(timesteps, (n,)))


def test_linspace_is_not_improved_ddpms_spacing():
    """Sums of strides that end in a half round to other times, and a single step starts at the other end."""
    other = [n for n in range(1, 1001) if (time_grids.linspace(n, LINEAR) != time_grids.sections(n, LINEAR)).any()]
    assert other[0] == 1
    assert len(other) > 100
    for n in other[1:]:
        assert np.abs(time_grids.linspace(n, LINEAR) - time_grids.sections(n, LINEAR)).max() == 1


@pytest.mark.parametrize(
    ("timesteps", "counts"),
    [
        (1000, (90, 60, 60, 20, 20)),  # ADM, table 15
        (1000, (25,)),
        (1000, (21,)),  # has ties
        (4000, (100,)),
        (300, (10, 15, 20)),
        (1001, (7, 1, 30)),
        (16, (15,)),
        (5, (1, 1, 1, 1, 1)),
    ],
)
def test_sections_equal_improved_ddpms(timesteps, counts):
    found = time_grids.sections(sum(counts), make_grid("linear", timesteps), *counts)
    np.testing.assert_array_equal(found[:-1][::-1] - 1, space_timesteps(timesteps, counts))


@given(data=st.data(), timesteps=st.integers(1, 4000))
@settings(max_examples=60, deadline=None)
def test_sections_of_any_counts(data, timesteps):
    parts = data.draw(st.integers(1, min(6, timesteps)))
    sizes = [timesteps // parts + (i < timesteps % parts) for i in range(parts)]
    counts = [data.draw(st.integers(1, size)) for size in sizes]
    found = check(
        lambda n, schedule: time_grids.sections(n, schedule, *counts), sum(counts), make_grid("linear", timesteps)
    )
    np.testing.assert_array_equal(found[:-1][::-1] - 1, space_timesteps(timesteps, counts))


def test_sections_that_do_not_fit_raise():
    schedule = make_grid("linear", 11)  # parts of 4, 4 and 3
    check(lambda n, schedule: time_grids.sections(n, schedule, 4, 4, 3), 11, schedule)
    with pytest.raises(ValueError, match="section 3 of 11 timesteps has 3, not 4"):
        time_grids.sections(0, schedule, 4, 3, 4)
    for counts in ((0,), (3, -1), (1.5,), (1,) * 12):
        with pytest.raises(ValueError, match="grid sections"):
            time_grids.sections(0, schedule, *counts)


def test_times_are_sorted_and_end_at_zero():
    np.testing.assert_array_equal(time_grids.times(0, LINEAR, 500, 1000, 1), [1000, 500, 1, 0])
    continuous = noise_schedules.linear(1000, continuous=True)
    np.testing.assert_array_equal(time_grids.times(9, continuous, 1.0, 2.5), [2.5, 1, 0])
    np.testing.assert_array_equal(time_grids.times(9, LINEAR, 9.0, 2.5, end=1, fractional=True), [9, 2.5, 1])
    check(lambda n, schedule: time_grids.times(n, schedule, 7), 1, LINEAR)


@pytest.mark.parametrize(
    ("list", "message"),
    [
        ((), "must be distinct and from 1 to 1000"),
        ((1, 1), "distinct"),
        ((0, 5), "from 1 to 1000"),
        ((-3,), "from 1 to 1000"),
        ((5, 1001), "from 1 to 1000"),
        ((float("nan"),), "from 1 to 1000"),
        ((2.5,), "whole numbers"),
    ],
)
def test_bad_times_raise(list, message):
    with pytest.raises(ValueError, match=message):
        time_grids.times(1, LINEAR, *list)


def log_sigma_ends(name):
    """log(sigma / alpha) of a continuous schedule at its noisy end and at its first level, by the papers' formulas."""
    preserving = lambda log_bar: (np.log(-np.expm1(log_bar)) - log_bar) / 2  # noqa: E731
    low, high = 0.85**0.5, 12**0.5
    scaled = lambda u: -((low + u * (high - low)) ** 3 - low**3) / (3 * (high - low))  # noqa: E731
    half = np.pi / 2 / 1.008
    cosine = lambda u: 2 * np.log(np.cos((u + 0.008) * half) / np.cos(0.008 * half))  # noqa: E731
    rise = lambda u: 1 / (1 + np.exp(3 - 6 * u))  # noqa: E731
    return {
        "linear": (preserving(-10.05), preserving(-(1e-4 + 19.9e-6 / 2))),
        "scaled_linear": (preserving(scaled(1.0)), preserving(scaled(1e-3))),
        "cosine": (None, preserving(cosine(1e-3))),  # None: singular, and cut somewhere
        "sigmoid": (None, preserving(np.log((rise(1) - rise(1e-3)) / (rise(1) - rise(0))))),
        "variance_exploding": (np.log(50.0), np.log(0.01)),
        "edm": (np.log(80.0), np.log(0.002)),
        "rectified_flow": (np.log(999.0), -np.log(999.0)),
        "trig_flow": tuple(np.log(0.5 * np.tan(u * np.pi / 2)) for u in (0.999, 0.001)),
        "learned": (2.5, -6.65),
    }[name]


@pytest.mark.parametrize(
    ("name", "grid"),
    [
        *itertools.product(sorted(SCHEDULES), ["log_snr", "karras"]),
        ("edm", "karras, rho 3"),
        ("cosine", "karras, rho 3"),
    ],
)
def test_real_times_are_even_in_their_own_measure(name, grid):
    schedule = SCHEDULES[name](1000, continuous=True)
    rho = 3.0 if "rho" in grid else 7.0
    make = time_grids.log_snr if grid == "log_snr" else functools.partial(time_grids.karras, rho=rho)
    times = check(make, 20, schedule)
    noise = schedule(times[1:-1])  # T itself may be without signal
    log_sigma = np.log(np.asarray(noise.sigma, np.float64)) - np.log(np.asarray(noise.alpha, np.float64))
    measure = log_sigma if grid == "log_snr" else np.exp(log_sigma / rho)
    high, low = log_sigma_ends(name)
    if high is None:
        high = 2 * measure[0] - measure[1]
    elif grid != "log_snr":
        high = np.exp(high / rho)
    expected = np.linspace(high, low if grid == "log_snr" else np.exp(low / rho), 20)[1:]
    error = measure - expected if grid == "log_snr" else rho * np.log(measure / expected)
    np.testing.assert_allclose(error, np.zeros(19), atol=2e-3)
    assert times[0] == 1000
    np.testing.assert_allclose(times[-2], 1.0, rtol=1e-4)


def test_karras_on_edm_equals_the_paper():
    """Karras et al. 2022, eq. 5, and evenly spaced in the schedule's own time."""
    sigma = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    schedule = noise_schedules.edm(1000, continuous=True)
    times = time_grids.karras(18, schedule)
    np.testing.assert_allclose(schedule(times[:-1]).sigma, sigma, rtol=1e-4)
    assert schedule(times[-1]).sigma == 0
    np.testing.assert_allclose(times[:-1], np.linspace(1000, 1, 18), rtol=1e-4)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_many_real_times_are_distinct(name):
    schedule = SCHEDULES[name](1000, continuous=True)
    check(time_grids.karras, 250, schedule)
    if name != "learned":
        check(time_grids.log_snr, 250, schedule.with_zero_terminal_snr())


def test_karras_requires_a_positive_rho():
    for rho in (0.0, -7.0):
        with pytest.raises(ValueError, match="requires rho > 0"):
            time_grids.karras(10, LINEAR, rho=rho)
        with pytest.raises(ValueError, match="requires rho > 0"):
            time_grids.log_snr(10, LINEAR, rho=rho)
