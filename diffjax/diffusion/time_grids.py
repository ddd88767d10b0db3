"""Time grids: the timesteps a sampler visits. A public function of this file is a grid a config can name.

A grid of n steps is n + 1 strictly decreasing timesteps, float64: the start of each step, and 0, the clean image, as
the target of the last step. The target of each step is the start of the next, for any n in 1..T. On a discrete
schedule, timesteps are integers and n = T visits every one. All grids raise ValueError for more steps than the schedule
allows.

Options of several grids:

- `end`: a noisier target of the last step than 0. Grids that start their last step at the first level are spaced down
  to `end` instead.
- `fractional`: whether timesteps on a discrete schedule are not rounded. The schedule interpolates their log-SNR, and
  the network is given a fractional time.
"""

import numpy as np
from jaxtyping import Float

from diffjax.diffusion.noise import log_snr as log_snr_of
from diffjax.diffusion.noise_schedules import Schedule

Grid = Float[np.ndarray, "n+1"]


def leading(n: int, schedule: Schedule, *, offset: int = 0, whole_strides: bool = False, end: int = 0) -> Grid:
    """Spaces timesteps evenly from 1 up: DDIM's `uniform`, for an n that need not divide T.

    diffusers' schedulers for Stable Diffusion have leading(offset=1, whole_strides=True, end=1).

    Args:
      n: number of steps.
      schedule: noise level at a timestep.
      offset: is added to the timesteps; diffusers' `steps_offset`.
      whole_strides: whether all strides are floor(T / n), as in diffusers, so that the grid stops short of T if n does
        not divide T. Otherwise strides differ by 1, to cover all of T.
      end: target of the last step: 0 for the clean image; 1 for the first level, diffusers' `set_alpha_to_one=False`,
        whose noise the samples then have.

    Reference: DDIM (Song et al. 2021), app. D.2.
    """
    steps = np.arange(_checked(n, schedule))
    sources = steps * (schedule.timesteps // n) if whole_strides else steps * schedule.timesteps // n
    if sources[-1] + 1 + offset > schedule.timesteps:
        raise ValueError(f"grid leading(offset={offset:g}): starts above {schedule.timesteps}; lower offset or steps")
    return _down_to(end, sources + 1 + offset)


def trailing(n: int, schedule: Schedule, *, end: int = 0, fractional: bool = False, among: int = 0) -> Grid:
    """Spaces timesteps evenly from T down, so that the first step starts at pure noise. For `end` see `leading`.

    Args:
      n: number of steps.
      schedule: noise level at a timestep.
      end: see `leading`.
      fractional: see above.
      among: chooses among the timesteps of a grid of so many steps, with whole strides: those that a latent
        consistency model was trained at, 50 in published ones. 0: any timestep.

    Reference: Lin et al. 2024, table 2; `among`: Luo et al. 2023, "Latent consistency models", section 4.3.
    """
    places = np.arange(1, _checked(n, schedule) + 1)
    if among:
        if not n <= among <= schedule.timesteps:
            raise ValueError(f"grid trailing(among={among:g}): must be from {n} (steps) to {schedule.timesteps}")
        return _down_to(end, schedule.timesteps // among * np.ceil(places * among / n))
    sources = places * schedule.timesteps / n
    return _down_to(end, sources if fractional else np.round(sources))


def linspace(n: int, schedule: Schedule, *, end: float = 0, fractional: bool = False) -> Grid:
    """Spaces timesteps evenly, with both ends 1 and T, or `end` and T. One step starts at T.

    Improved DDPM (Nichol & Dhariwal 2021, sec. 4) describes these timesteps too. Its code sums strides before it rounds
    them, so that it rounds ties differently, and starts one step at 1: that is `sections`.

    Reference: Lin et al. 2024, table 2.
    """
    n = _checked(n, schedule)
    if end:
        sources = np.linspace(schedule.timesteps, end, n + 1)[-2::-1] - 1
    else:
        sources = np.linspace(schedule.timesteps - 1, 0, n)[::-1]
    return _down_to(end, (sources if fractional else np.round(sources)) + 1)


def quadratic(n: int, schedule: Schedule) -> Grid:
    """Spaces the roots of timesteps evenly: denser near the image. Ends at 0.8 T, as DDIM's code for CIFAR-10.

    Squares that round to the same integer move up to the next free one, so that n = T visits every timestep.

    Reference: DDIM, app. D.2.
    """
    roots = np.linspace(np.sqrt(0.8 * schedule.timesteps), 0, _checked(n, schedule))[::-1]
    return _down_to_clean(_distinct(np.floor(roots**2) + 1, schedule.timesteps))


def log_snr(n: int, schedule: Schedule, *, rho: float = 1.0, end: float = 0, fractional: bool = False) -> Grid:
    """Spaces log-SNR evenly between the ends of the schedule: k-diffusion's exponential grid.

    Args:
      n: number of steps.
      schedule: noise level at a timestep.
      rho: > 0; above 1 steps near the image are shorter in log-SNR: k-diffusion's polyexponential grid.
      end: see above.
      fractional: see above.

    Reference: DPM-Solver (Lu et al. 2022), sec. 3.4; Crowson's k-diffusion.
    """
    _check_positive("log_snr", "rho", rho)
    low, high = _log_snr_ends(schedule, end)
    places = 1 - np.linspace(1, 0, _checked(n, schedule, real=True, fractional=fractional) + bool(end)) ** rho
    return _at_log_snr(low + (high - low) * places, schedule, end, fractional)


def karras(n: int, schedule: Schedule, *, rho: float = 7.0, end: float = 0, fractional: bool = False) -> Grid:
    """Spaces (sigma / alpha)^(1/rho) evenly between the ends of the schedule.

    Args:
      n: number of steps.
      schedule: noise level at a timestep.
      rho: > 0.
      end: see above.
      fractional: see above.

    Reference: EDM (Karras et al. 2022), eq. 5.
    """
    _check_positive("karras", "rho", rho)
    low, high = (
        np.exp(-level / (2 * rho)) for level in _log_snr_ends(schedule, end)
    )  # sigma^(1/rho) of the noisy and of the clean end
    places = np.linspace(low, high, _checked(n, schedule, real=True, fractional=fractional) + bool(end))
    return _at_log_snr(-2 * rho * np.log(places), schedule, end, fractional)


# sigma / alpha of the starts of 10 steps, and the first level
_AYS_SD15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)
_AYS_SVD = (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002)


def ays_sd15(n: int, schedule: Schedule, *, end: float = 0, fractional: bool = False) -> Grid:
    """Align Your Steps' grid for Stable Diffusion 1.5: published for 10 steps, interpolated in log(sigma / alpha).

    Made for the schedule `scaled_linear`. The first step starts at T, whatever the schedule.

    Reference: Sabour et al. 2024, "Align your steps", and the tables of its project page.
    """
    return _published(_AYS_SD15, n, schedule, end, fractional)


def ays_sdxl(n: int, schedule: Schedule, *, end: float = 0, fractional: bool = False) -> Grid:
    """Align Your Steps' grid for Stable Diffusion XL: see `ays_sd15`.

    Reference: Sabour et al. 2024.
    """
    return _published(_AYS_SDXL, n, schedule, end, fractional)


def ays_svd(n: int, schedule: Schedule, *, end: float = 0, fractional: bool = False) -> Grid:
    """Align Your Steps' grid for Stable Video Diffusion, with sigma from 700 to 0.002: see `ays_sd15`.

    Reference: Sabour et al. 2024.
    """
    return _published(_AYS_SVD, n, schedule, end, fractional)


def sections(n: int, schedule: Schedule, *counts: int) -> Grid:
    """Cuts T in equal sections, with `counts` steps each, the section nearest the image first.

    Without `counts` there is one section of `n` steps, the spacing of Improved DDPM and ADM. Within a section timesteps
    are evenly spaced with both ends; one step is at the end nearest the image.

    Args:
      n: number of steps; has no effect with `counts`.
      schedule: noise level at a timestep.
      *counts: steps of each section.

    Raises:
      ValueError: a section has fewer timesteps than steps.

    Reference: `space_timesteps` of the code of ADM (Dhariwal & Nichol 2021, app. J, table 15).
    """
    counts = counts or (_checked(n, schedule),)
    if any(count < 1 or count != int(count) for count in counts):
        raise ValueError(f"grid sections{counts}: each count must be a whole number of steps, at least 1")
    total, parts = schedule.timesteps, len(counts)
    sizes = [total // parts + (i < total % parts) for i in range(parts)]
    sources, start = [], 1
    for i, (size, count) in enumerate(zip(sizes, map(int, counts), strict=True)):
        if count > size:
            raise ValueError(
                f"grid sections{counts}: section {i + 1} of {total} timesteps has {size}, not {count}; lower its count"
            )
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        sources.append(start + np.round(np.cumsum([0.0] + [stride] * (count - 1))))
        start += size
    return _down_to_clean(np.concatenate(sources))


def times(n: int, schedule: Schedule, *list: float, end: float = 0, fractional: bool = False) -> Grid:
    """Visits the timesteps of `list`, in any order, and the clean image or `end`.

    Args:
      n: has no effect; the number of steps is the length of `list`.
      schedule: noise level at a timestep.
      *list: distinct timesteps; integers on a discrete schedule, unless `fractional`.
      end: see above.
      fractional: see above.
    """
    del n
    sources = np.unique(np.array(list, np.float64))
    low, high = schedule.first, schedule.timesteps
    if not list or len(sources) < len(list) or not (low <= sources[0] and sources[-1] <= high):
        raise ValueError(f"grid times(...): timesteps must be distinct and from {low:g} to {high}")
    if not (schedule.continuous or fractional) and (sources != np.round(sources)).any():
        raise ValueError(
            "grid times(...): timesteps must be whole numbers on a discrete schedule; or set fractional=True"
        )
    return _down_to(end, sources)


def _published(table: tuple[float, ...], n: int, schedule: Schedule, end: float, fractional: bool) -> Grid:
    """Returns the grid of n steps whose levels are those of `table` [11], interpolated in their logarithm."""
    places = np.arange(_checked(n, schedule, real=True, fractional=fractional)) * (len(table) - 1) / n
    log_sigmas = np.interp(places, np.arange(len(table)), np.log(table))
    return _at_log_snr(np.append(-2 * log_sigmas, np.inf)[: n + bool(end)], schedule, end, fractional)


def _check_positive(grid: str, option: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"grid {grid}({option}={value:g}): requires {option} > 0")


def _checked(n: int, schedule: Schedule, *, real: bool = False, fractional: bool = False) -> int:
    timesteps = schedule.timesteps
    if n < 1 or (n > timesteps and not (real and (schedule.continuous or fractional))):
        raise ValueError(f"a grid over {timesteps} timesteps has 1 to {timesteps} steps, not {n}")
    return n


def _log_snr_ends(schedule: Schedule, end: float = 0) -> tuple[float, float]:
    """Returns the log-SNR of the last level and of the first, or of the level at `end` if it is not 0.

    Replaces the last level by the one before if it is without signal or a singular end.
    """
    last = schedule(float(schedule.timesteps))
    if not last.alpha > (1e-3 * last.sigma if schedule.continuous else 0.0):
        last = schedule(max(schedule.timesteps - schedule.first, schedule.first))
    low, high = np.clip([log_snr_of(last), log_snr_of(schedule(end or schedule.first))], -40.0, 80.0)
    return float(low), float(high)


def _at_log_snr(log_snrs: np.ndarray, schedule: Schedule, end: float, fractional: bool) -> Grid:
    """Returns the timesteps of increasing `log_snrs`, the first of them moved to T, and the clean image.

    If `end` is not 0, the last of `log_snrs` is replaced by it.
    """
    times = np.array(schedule.time_at(log_snrs), np.float64)
    times[0] = schedule.timesteps
    times = times[:-1] if end else times
    if not (schedule.continuous or fractional):
        times = _distinct(np.round(times)[::-1], schedule.timesteps)[::-1]
    return _down_to(end, times[::-1])


def _distinct(wanted: np.ndarray, timesteps: int) -> np.ndarray:
    """Returns strictly rising integers near `wanted`, which rises weakly: equal ones move up, and down at the end."""
    rank = np.arange(len(wanted))
    return np.minimum(np.maximum.accumulate(wanted - rank) + rank, timesteps - rank[::-1])


def _down_to_clean(sources: np.ndarray) -> Grid:
    return _down_to(0, sources)


def _down_to(end: float, sources: np.ndarray) -> Grid:
    """Returns the grid of rising `sources` with `end` as the target of the last step."""
    if not 0 <= end < sources[0]:
        raise ValueError(f"grid end={end:g}: must be at least 0 and below {sources[0]:g}, the last step's start")
    return np.append(sources[::-1].astype(np.float64), float(end))
