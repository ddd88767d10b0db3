"""Published tables as files: what an experiment is, how it is run, and what it comes to.

An experiment's file is a value: `EXPERIMENT = Experiment(...)`. `launch.py reproduce` runs it.
"""

from diffjax.reproduce.spec import TINY, Axis, Experiment, Measure, Ordering, Paper, Scale, steps

__all__ = ["TINY", "Axis", "Experiment", "Measure", "Ordering", "Paper", "Scale", "steps"]
