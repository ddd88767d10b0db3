"""One module per system of the line: `build(config, spec)` makes a System of it."""

from diffjax.errors import unknown
from diffjax.systems import classifier, ddpm
from diffjax.typing import ImageSpec, System

_SYSTEMS = {"classifier": classifier, "ddpm": ddpm}


def build(config, spec: ImageSpec) -> System:
    """The system that `config.system` names, for images of `spec`. Raises UserError where they do not fit."""
    if config.system not in _SYSTEMS:
        raise unknown("system", config.system, _SYSTEMS)
    return _SYSTEMS[config.system].build(config, spec)
