"""Sampling settings of any model, from its config's `sampler` section and overrides."""

from collections.abc import Mapping
from typing import Any

import flax.struct
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from diffjax.errors import validate_integer, validate_number
from diffjax.registry import check_options

Scalars = dict[str, Shaped[Array, ""]]


@flax.struct.dataclass
class SamplingSettings:
    """Sampling settings. Arrays are traced inputs: settings with equal choices and shapes share a compilation.

    `settings[name]` is a scalar or a choice.

    Attributes:
      scalars: numbers by name, such as guidance or temperature.
      choices: static settings, (name, value) each, such as the sampler's name.
      times: time grid [capacity + 1] of a diffusion model, zeros after its end; empty for other models.
      sampler_options: options of the sampler of a diffusion model or a masked prior, such as eta.
      guidance_options: options of the rule and the schedule of its guidance and of the method of an inverse problem, by
        axis.
      arrays: "operator", of a measurement by a mask or a matrix; "masked_fractions", of the steps of a masked prior.
      stages: settings of a pipeline's stages, by name.
    """

    scalars: Scalars = flax.struct.field(default_factory=dict)
    choices: tuple[tuple[str, Any], ...] = flax.struct.field(pytree_node=False, default=())
    times: Float[Array, " T"] = flax.struct.field(default_factory=lambda: jnp.zeros(0))
    sampler_options: Scalars = flax.struct.field(default_factory=dict)
    guidance_options: dict[str, Scalars] = flax.struct.field(default_factory=dict)
    arrays: dict[str, Array] = flax.struct.field(default_factory=dict)
    stages: dict[str, "SamplingSettings"] = flax.struct.field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.scalars[name] if name in self.scalars else dict(self.choices)[name]

    @property
    def num_steps(self) -> int:
        """Number of sampler steps, of all stages together."""
        return int(self.scalars.get("steps", 0)) + sum(stage.num_steps for stage in self.stages.values())

    @property
    def num_deep_steps(self) -> int:
        """Number of sampler steps, of all stages together, that compute the deep features of the network."""
        steps = -(-int(self.scalars.get("steps", 0)) // int(self.scalars.get("cache_interval", 1)))
        return steps + sum(stage.num_deep_steps for stage in self.stages.values())

    @property
    def is_guided(self) -> Bool[Array, ""]:
        """True if classifier-free guidance of a single model is on: one of its scales is not 1."""
        names = ("guidance", "first_scale") if dict(self.choices).get("first_condition") else ("guidance",)
        return jnp.any(jnp.array([self.scalars.get(name, 1.0) != 1.0 for name in names]))

    @property
    def is_adaptive(self) -> bool:
        """True if the sampler of a stage has adaptive step sizes, so that its number of evaluations is not fixed."""
        stages = [self, *self.stages.values()]
        return any("max_evaluations" in stage.sampler_options for stage in stages)

    @property
    def caches_by_change(self) -> bool:
        """True if a stage computes deep features where shallow ones have changed, in a number of steps not fixed."""
        stages = [self, *self.stages.values()]
        return any(dict(stage.choices).get("cache_by_change") for stage in stages)


def make_scalars(
    system: str, defaults: Mapping[str, float], sampler_config: Mapping[str, Any], **overrides: Any
) -> Scalars:
    """Returns the scalars of a config's `sampler` section with overrides; others have their default.

    Args:
      defaults: by name; a setting with an integer default is an int32, others are float32.

    Raises:
      UserError: a setting that `system` does not have, or an invalid value.
    """
    values = {**sampler_config, **overrides}
    check_options(f"system={system}", defaults, values)
    for name, value in values.items():
        if isinstance(defaults[name], int):
            validate_integer(f"sampler.{name}", value, low=0)
        elif value != defaults[name]:  # a default may be infinite
            validate_number(f"sampler.{name}", value)
    dtypes = {name: jnp.int32 if isinstance(value, int) else jnp.float32 for name, value in defaults.items()}
    return {name: jnp.asarray(values.get(name, value), dtypes[name]) for name, value in defaults.items()}
