"""Models: `build` makes the model of a config, and the classes of base.py define its capabilities."""

from diffjax.models.build import build

__all__ = ["build"]
