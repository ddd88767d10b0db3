"""Which times a sampler visits. A public function of this file is a grid a config can name.

A grid of n steps is n + 1 strictly decreasing times, float64: those of the steps' sources, and 0, the clean image, as
the last step's target. Each target is the next source, for any n in 1..T. On a discrete schedule times are integers and
n = T visits every one. Raises ValueError for a number of steps that the schedule has no room for.
"""

import numpy as np
from jaxtyping import Float

from diffjax.diffusion.levels import Schedule
from diffjax.diffusion.noise import log_snr as log_snr_of

Grid = Float[np.ndarray, "n+1"]


def leading(n: int, schedule: Schedule) -> Grid:
    """Evenly spaced from time 1 up: DDIM's `uniform` (Song et al. 2021, app. D.2) for an n that need not divide T."""
    return _down_to_clean(np.arange(_checked(n, schedule)) * schedule.timesteps // n + 1)


def trailing(n: int, schedule: Schedule) -> Grid:
    """Evenly spaced from time T down, so that the first step starts at pure noise (Lin et al. 2024, table 2)."""
    return _down_to_clean(np.round(np.arange(1, _checked(n, schedule) + 1) * schedule.timesteps / n))


def linspace(n: int, schedule: Schedule) -> Grid:
    """Evenly spaced with both ends, 1 and T: the linspace of Lin et al. 2024, table 2. One step starts at T.

    Improved DDPM (Nichol & Dhariwal 2021), sec. 4, describes these times too. Its code sums up strides before it rounds
    them, so that ties fall elsewhere, and starts one step at 1: that is `sections`.
    """
    return _down_to_clean(np.round(np.linspace(schedule.timesteps - 1, 0, _checked(n, schedule))[::-1]) + 1)


def quadratic(n: int, schedule: Schedule) -> Grid:
    """Denser near the image, as DDIM samples CIFAR-10 (Song et al. 2021, app. D.2; code, which ends at 0.8 T).

    Where the squares fall on one integer, times move up to the next free one, so n = T again visits them all.
    """
    roots = np.linspace(np.sqrt(0.8 * schedule.timesteps), 0, _checked(n, schedule))[::-1]
    return _down_to_clean(_distinct(np.floor(roots**2) + 1, schedule.timesteps))


def log_snr(n: int, schedule: Schedule) -> Grid:
    """Evenly spaced in log-SNR between the schedule's ends: DPM-Solver (Lu et al. 2022, sec. 3.4)."""
    low, high = _log_snr_ends(schedule)
    return _at_log_snr(np.linspace(low, high, _checked(n, schedule, real=True)), schedule)


def karras(n: int, schedule: Schedule, *, rho: float = 7.0) -> Grid:
    """(sigma / alpha)^(1/rho) evenly spaced between the schedule's ends: EDM (Karras et al. 2022), eq. 5."""
    if rho <= 0:
        raise ValueError(f"the grid karras(rho={rho:g}) needs rho > 0")
    low, high = (np.exp(-end / (2 * rho)) for end in _log_snr_ends(schedule))  # of sigma^(1/rho), the noisy end first
    return _at_log_snr(-2 * rho * np.log(np.linspace(low, high, _checked(n, schedule, real=True))), schedule)


def sections(n: int, schedule: Schedule, *counts: int) -> Grid:
    """T cut in equal parts, `counts` steps in each, the part nearest the image first: ADM (app. K, table 15).

    Without `counts` there is one part of `n` steps, the spacing of Improved DDPM and ADM; with them `n` is not used. As
    `space_timesteps` in their code: within a part times are evenly spaced with both its ends, and one step is at the
    end nearest the image. Raises ValueError where a part has fewer times than its count.
    """
    counts = counts or (_checked(n, schedule),)
    if any(count < 1 or count != int(count) for count in counts):
        raise ValueError(f"the grid sections{counts} needs one whole number of steps, at least 1, for each part")
    total, parts = schedule.timesteps, len(counts)
    sizes = [total // parts + (i < total % parts) for i in range(parts)]
    sources, start = [], 1
    for i, (size, count) in enumerate(zip(sizes, map(int, counts), strict=True)):
        if count > size:
            raise ValueError(f"the grid sections{counts}: part {i + 1} of {total} timesteps has {size}, not {count}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        sources.append(start + np.round(np.cumsum([0.0] + [stride] * (count - 1))))
        start += size
    return _down_to_clean(np.concatenate(sources))


def times(n: int, schedule: Schedule, *list: float) -> Grid:
    """The times of `list`, in any order, and the clean image. `n` is their number, whatever is given."""
    del n
    sources = np.unique(np.array(list, np.float64))
    low, high = schedule.first, schedule.timesteps
    if not list or len(sources) < len(list) or not (low <= sources[0] and sources[-1] <= high):
        raise ValueError(f"the grid times(...) needs distinct times from {low:g} to {high}")
    if not schedule.continuous and (sources != np.round(sources)).any():
        raise ValueError("the grid times(...) needs whole numbers for a discrete schedule")
    return _down_to_clean(sources)


def _checked(n: int, schedule: Schedule, *, real: bool = False) -> int:
    most = schedule.timesteps
    if n < 1 or (n > most and not (real and schedule.continuous)):
        raise ValueError(f"a grid over {most} timesteps has 1 to {most} steps, not {n}")
    return n


def _log_snr_ends(schedule: Schedule) -> tuple[float, float]:
    """Of the last level, or of the one before if the last is without signal or a singular end, and of the first."""
    last = schedule(float(schedule.timesteps))
    if not last.alpha > (1e-3 * last.sigma if schedule.continuous else 0.0):
        last = schedule(max(schedule.timesteps - schedule.first, schedule.first))
    low, high = np.clip([log_snr_of(last), log_snr_of(schedule(schedule.first))], -40.0, 80.0)
    return float(low), float(high)


def _at_log_snr(log_snrs: np.ndarray, schedule: Schedule) -> Grid:
    """Times of increasing `log_snrs`, the first of them moved to T."""
    found = np.array(schedule.time_at(log_snrs), np.float64)
    found[0] = schedule.timesteps
    if not schedule.continuous:
        found = _distinct(np.round(found)[::-1], schedule.timesteps)[::-1]
    return np.append(found, 0.0)


def _distinct(wanted: np.ndarray, timesteps: int) -> np.ndarray:
    """Rising integers near `wanted`, which rise in the weak sense: those that collide move up, at the end down."""
    rank = np.arange(len(wanted))
    return np.minimum(np.maximum.accumulate(wanted - rank) + rank, timesteps - rank[::-1])


def _down_to_clean(sources: np.ndarray) -> Grid:
    return np.append(sources[::-1].astype(np.float64), 0.0)
