"""Models: `build` makes that of a config, and the classes of base.py say what it can do."""

from diffjax.models.build import build

__all__ = ["build"]
