"""Trained parts that a system stands on."""

from collections.abc import Callable
from typing import Any

import jax


def described(bind: Callable[[Any], Any], variables: Any) -> Any:
    """A codec or CLIP of `variables`, or of their shapes, for its numbers alone: nothing is computed."""
    found = []
    jax.eval_shape(lambda variables: found.append(bind(variables)) or 0, variables)
    return found[0]
