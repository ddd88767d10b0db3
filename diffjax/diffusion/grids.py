"""Which times a sampler visits. A public function of this file is a grid a config can name.

A grid of n steps over T timesteps is n + 1 strictly decreasing integers from {0, ..., T}, int64: the times of the
steps' sources, and 0, the clean image, as the last step's target. Each target is the next source, for any n in 1..T,
and n = T visits every time. Raises ValueError for any other n.
"""

import numpy as np
from jaxtyping import Int


def leading(n: int, timesteps: int) -> Int[np.ndarray, "n+1"]:
    """Evenly spaced from time 1 up: DDIM's `uniform` (Song et al. 2021, app. D.2) for an n that need not divide T."""
    _check(n, timesteps)
    return _down_to_clean(np.arange(n) * timesteps // n + 1)


def trailing(n: int, timesteps: int) -> Int[np.ndarray, "n+1"]:
    """Evenly spaced from time T down, so that the first step starts at pure noise (Lin et al. 2024, table 2)."""
    _check(n, timesteps)
    return _down_to_clean(-(-np.arange(1, n + 1) * timesteps // n))


def linspace(n: int, timesteps: int) -> Int[np.ndarray, "n+1"]:
    """Evenly spaced with both ends, 1 and T: Improved DDPM (Nichol & Dhariwal 2021), sec. 4. One step starts at T."""
    _check(n, timesteps)
    return _down_to_clean(np.round(np.linspace(timesteps, 1, n)[::-1]).astype(np.int64))


def quadratic(n: int, timesteps: int) -> Int[np.ndarray, "n+1"]:
    """Denser near the image, as DDIM samples CIFAR-10 (Song et al. 2021, app. D.2; code, which ends at 0.8 T).

    Where the squares fall on one integer, times move up to the next free one, so n = T again visits them all.
    """
    _check(n, timesteps)
    wanted = (np.linspace(np.sqrt(0.8 * timesteps), 0, n)[::-1] ** 2).astype(np.int64) + 1
    rank = np.arange(n)
    strictly_increasing = np.maximum.accumulate(wanted - rank) + rank
    return _down_to_clean(np.minimum(strictly_increasing, timesteps - rank[::-1]))


def _check(n: int, timesteps: int) -> None:
    if not 1 <= n <= timesteps:
        raise ValueError(f"a grid over {timesteps} timesteps has 1 to {timesteps} steps, not {n}")


def _down_to_clean(sources: np.ndarray) -> np.ndarray:
    return np.append(sources[::-1], 0)
