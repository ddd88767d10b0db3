"""Time grids that are optimised for a run and a sampler: fewer steps for the same error."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from diffjax.diffusion import grid_search
from diffjax.errors import UserError
from diffjax.inference.batching import DataParallelMap
from diffjax.inference.noise_pairs import is_deterministic
from diffjax.inference.overrides import SettingsFactory
from diffjax.inference.prompts import default_prompts
from diffjax.models.capabilities import is_diffusion
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.runs.loading import Run

GRIDS = ("trailing", "linspace", "log_snr", "karras")  # that a search starts from, the best of them


@dataclasses.dataclass(frozen=True)
class OptimizedGrid:
    """Result of a search. Errors are root-mean-square differences, in grey levels, of samples that it did not use.

    Attributes:
      sampler: name of the sampler.
      times: the grid, of steps + 1 times.
      error: error of the grid.
      errors: errors of GRIDS.
    """

    sampler: str
    times: tuple[float, ...]
    error: float
    errors: Mapping[str, float]

    @property
    def steps(self) -> int:
        return len(self.times) - 1


class GridOptimizer:
    """Searches time grids whose samples are closest to those of many steps, from the same noise.

    Reference: the objective is that of Tong et al. 2025, "Learning to discretize denoising diffusion ODEs", without
    gradients; Align Your Steps (Sabour et al. 2024) minimises an upper bound of a KL divergence instead.
    """

    def __init__(
        self,
        trained: Run,
        overrides: Mapping[str, Any],
        *,
        num: int = 64,
        seed: int = 0,
        reference_steps: int = 100,
        batch_size: int = 100,
    ):
        """Samples the reference.

        Args:
          trained: run of a diffusion model.
          overrides: sampling settings, but for the grid and the steps.
          num: number of samples of the search, and of those that measure its result.
          seed: seed of the first sample.
          reference_steps: steps of the samples that the others are compared with, at most T of a discrete schedule.
          batch_size: samples per batch; does not change them.

        Raises:
          UserError: the run is no diffusion model, or the sampler adds noise or is adaptive.
        """
        if not is_diffusion(model := trained.system):
            raise UserError(f"--workdir={trained.workdir.name}: must be a diffusion model, not {trained.config.system}")
        self._make, self._overrides = SettingsFactory(model, trained.config.sampler), dict(overrides)
        self._schedule = schedule = model.noise_schedule
        self._capacity = reference_steps if schedule.continuous else min(reference_steps, schedule.timesteps)
        conditions = dict(default_prompts(trained, 2 * num).conditions)
        seeds, variables = (seed + np.arange(2 * num)).astype(np.uint32), jax.device_put(trained.variables)

        def compute(shared: Any, batch: Any) -> Any:
            (variables, settings), (seeds, conditions) = shared, batch
            return model.sample(variables, jax.vmap(jax.random.key)(seeds), conditions, settings)

        compiled = DataParallelMap(min(batch_size, num)).compile(compute, "the sampler")

        def half(second: bool) -> Callable[[SamplingSettings], np.ndarray]:
            part = slice(num, None) if second else slice(num)
            inputs = seeds[part], jax.tree.map(lambda leaf: leaf[part], conditions)
            return lambda settings: np.asarray(compiled((variables, settings), inputs), np.float64)

        self._samples = half(False), half(True)  # of the search, and of its measurement
        reference = self._settings("trailing", self._capacity, cache_interval=1, cache_threshold=0.0)
        self.sampler = str(reference["sampler"])
        if not is_deterministic(model.process, reference):
            raise UserError(f"--sampler={self.sampler}: adds noise, so its error cannot be measured; use another")
        if reference.is_adaptive:
            raise UserError(f"--sampler={self.sampler}: chooses its step sizes; use one with the steps of the grid")
        self._reference = [sample(reference) for sample in self._samples]

    def _settings(self, grid: str, steps: int, **others: Any) -> SamplingSettings:
        return self._make(self._capacity, **{**self._overrides, "grid": grid, "steps": steps, **others})

    def _error(self, settings: SamplingSettings, times: np.ndarray, *, held_out: bool) -> float:
        """Returns the root-mean-square difference of samples on a grid from the reference, in grey levels."""
        padded = jnp.asarray(np.pad(times, (0, self._capacity + 1 - len(times))), jnp.float32)
        images = self._samples[held_out](dataclasses.replace(settings, times=padded))
        return float(127.5 * np.sqrt(np.mean((images - self._reference[held_out]) ** 2)))

    def check_steps(self, steps: int) -> None:
        """Raises UserError for a number of steps that cannot be optimised: one, or as many as the reference has."""
        if not 2 <= steps < self._capacity:
            raise UserError(f"--steps={steps}: must be from 2 to {self._capacity - 1}, fewer than --reference_steps")

    def optimize(self, steps: int, on_evaluation: Callable[[], object] = lambda: None) -> OptimizedGrid:
        """Searches a grid of a number of steps, from the best of GRIDS."""
        settings = {name: self._settings(name, steps) for name in GRIDS}
        grids = {name: np.asarray(each.times[: steps + 1], np.float64) for name, each in settings.items()}
        error = functools.partial(self._error, settings[GRIDS[0]])
        start = min(grids, key=lambda name: error(grids[name], held_out=False))
        times, _ = grid_search.coordinate_search(
            functools.partial(error, held_out=False),
            grids[start],
            whole=not self._schedule.continuous,
            on_evaluation=on_evaluation,
        )
        errors = {name: error(grid, held_out=True) for name, grid in grids.items()}
        return OptimizedGrid(self.sampler, tuple(map(float, times)), error(times, held_out=True), errors)
