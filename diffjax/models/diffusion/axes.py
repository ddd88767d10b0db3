"""Axes of choice of diffusion and its samplers: the modules whose public functions a config can name."""

from types import ModuleType
from typing import NamedTuple

from diffjax.diffusion import (
    clipping,
    couplings,
    distribution_matching,
    flow_map_losses,
    guidance_rules,
    guidance_schedules,
    inverse_problems,
    loss_metrics,
    loss_weighting,
    losses,
    masking_schedules,
    measurements,
    next_times,
    noise_schedules,
    parameterizations,
    samplers,
    time_grids,
    time_sampling,
    unmasking,
    variance,
)
from diffjax.models.diffusion import perturbations


class Axis(NamedTuple):
    """An axis of choice.

    Attributes:
      module: its public functions are the choices.
      title: name of the choices, for the documentation.
      field: config field that names one; empty: none.
      flag: flag of the verbs that sample; empty: none.
    """

    module: ModuleType
    title: str
    field: str
    flag: str = ""

    @property
    def name(self) -> str:
        """Name of the module."""
        return self.module.__name__.rpartition(".")[2]


AXES = (
    Axis(noise_schedules, "Noise schedules", "diffusion.schedule"),
    Axis(parameterizations, "Parameterizations", "diffusion.parameterization"),
    Axis(losses, "Losses", "diffusion.loss"),
    Axis(flow_map_losses, "Losses of flow maps", "diffusion.loss"),
    Axis(distribution_matching, "Distribution matching", "diffusion.loss"),
    Axis(next_times, "Second timesteps of flow maps", "diffusion.next_times"),
    Axis(loss_metrics, "Distances of flow maps", "diffusion.metric"),
    Axis(couplings, "Couplings of noise and data", "diffusion.coupling"),
    Axis(loss_weighting, "Loss weightings", "diffusion.weighting"),
    Axis(time_sampling, "Timestep sampling", "diffusion.time_sampling"),
    Axis(variance, "Reverse variances", "diffusion.variance"),
    Axis(samplers, "Samplers", "sampler.name", "--sampler"),
    Axis(time_grids, "Time grids", "sampler.grid", "--grid"),
    Axis(clipping, "Thresholds", "sampler.threshold", "--threshold"),
    Axis(guidance_rules, "Rules of classifier-free guidance", "sampler.guidance_rule", "--guidance_rule"),
    Axis(guidance_schedules, "Schedules of guidance", "sampler.guidance_schedule", "--guidance_schedule"),
    Axis(perturbations, "Perturbations of a network for guidance", "sampler.perturbation", "--perturbation"),
    Axis(measurements, "Measurements of inverse problems", "", "--measure"),
    Axis(inverse_problems, "Methods of inverse problems", "", "--inverse"),
    Axis(masking_schedules, "Masking schedules", "masking.schedule", "--schedule"),
    Axis(unmasking, "Samplers of masked priors", "sampler.name", "--sampler"),
)
