"""Reproduces published tables: an experiment's declaration, its execution, and its report.

The file of an experiment defines `EXPERIMENT = Experiment(...)`. `launch.py reproduce` runs it.
"""

from diffjax.reproduce.spec import (
    SMALL_NETWORKS,
    SMALL_TRAINING,
    Axis,
    Experiment,
    Fields,
    Measure,
    Multiply,
    Ordering,
    Paper,
    SameBest,
    Scale,
    few_step_scales,
    smoke,
    steps,
)

__all__ = [
    "SMALL_NETWORKS",
    "SMALL_TRAINING",
    "Axis",
    "Experiment",
    "Fields",
    "Measure",
    "Multiply",
    "Ordering",
    "Paper",
    "SameBest",
    "Scale",
    "few_step_scales",
    "smoke",
    "steps",
]
