"""Sampling settings of models without a diffusion process: a mapping of scalars, each a traced input.

A mapping rather than a dataclass: each model has its own names, which are those of its config's `sampler` section.
"""

from collections.abc import Mapping
from typing import Any

from jax import Array
from jax import numpy as jnp

from diffjax.errors import validate_integer, validate_number
from diffjax.registry import check_options


def make_scalar_settings(
    system: str,
    defaults: Mapping[str, float],
    sampler_config: Mapping[str, Any],
    *,
    capacity: int | None = None,
    **overrides: Any,
) -> dict[str, Array]:
    """Returns the settings of a config's `sampler` section with overrides; others have their default.

    Args:
      defaults: by name; a setting with an integer default is an int32, others are float32.
      capacity: not used, as there are no steps to pad.

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
