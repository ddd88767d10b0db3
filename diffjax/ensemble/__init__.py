"""Runs that differ in numbers alone, trained together as one vmapped program: seeds, rates, weights, noise schedules.

Each is a member and has a folder of its own, where it leaves what `training.train` would have left.
"""

from diffjax.ensemble.program import can_train_together, check_together, compile_together, differing_fields, fresh_state
from diffjax.ensemble.runs import Stopped, train_together

__all__ = [
    "Stopped",
    "can_train_together",
    "check_together",
    "compile_together",
    "differing_fields",
    "fresh_state",
    "train_together",
]
