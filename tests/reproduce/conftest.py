"""A small experiment: two learning rates, two numbers of steps."""

import pytest

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, steps
from tests import tiny


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    return str(
        tiny.write(path, model=tiny.DIT, train__num_preview_samples=0, sampler__guidance=1.0, parallel__num_devices=1)
    )


@pytest.fixture(scope="session")
def make(config):
    """Returns a function that makes an experiment, with other fields of Experiment and of its only scale."""

    def make_experiment(scale=None, **fields):
        defaults = {
            "title": "Tiny",
            "source": "nobody",
            "claim": "none",
            "axes": [
                Axis("rate", {"low": {"train.learning_rate": 1e-3}, "high": {"train.learning_rate": 2e-3}}),
                steps(2, 4),
            ],
            "column_axis": "steps",
            "measures": [Measure("fd_pixels")],
            "papers": [Paper("elsewhere", {("low", "2"): 3.5})],
            "orderings": [Ordering(claim="more steps are better", order=[{"steps": "4"}, {"steps": "2"}])],
            "scales": {"smoke": Scale(config=config, duration="seconds", num=12, **(scale or {}))},
        }
        return Experiment(**(defaults | fields))

    return make_experiment
