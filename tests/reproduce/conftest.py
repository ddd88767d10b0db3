"""A tiny experiment: two learning rates, two numbers of steps."""

import pytest

from diffjax.reproduce import Axis, Experiment, Measure, Ordering, Paper, Scale, steps
from tests import tiny


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("experiment") / "tiny.py"
    return str(tiny.write(path, train__sample_count=0, sampler__guidance=1.0))


@pytest.fixture
def make(config):
    """An experiment of that config, with other fields of Experiment and of its only scale."""

    def made(scale=None, **fields):
        given = {
            "title": "Tiny",
            "source": "nobody",
            "claim": "none",
            "axes": [
                Axis("rate", {"low": {"train.learning_rate": 1e-3}, "high": {"train.learning_rate": 2e-3}}),
                steps(2, 4),
            ],
            "across": "steps",
            "measures": [Measure("fd_pixels")],
            "papers": [Paper("elsewhere", {("low", "2"): 3.5})],
            "orderings": [Ordering("more steps are better", [{"steps": "4"}, {"steps": "2"}])],
            "scales": {"smoke": Scale(config, "seconds", num=12, **(scale or {}))},
        }
        return Experiment(**(given | fields))

    return made
