"""Trained runs for the tests of verbs: copies per module, because verbs write results to a run."""

import pytest


@pytest.fixture(scope="module")
def run_copy(trained_runs, tmp_path_factory):
    """Returns the module's own copy of a run of tests/trained_runs.py."""
    copies = {}

    def copy(name):
        if name not in copies:
            copies[name] = trained_runs.copy(name, tmp_path_factory.mktemp(name) / name)
        return copies[name]

    return copy


@pytest.fixture(scope="module")
def config(trained_runs):
    """The config file of the pixel run."""
    return trained_runs.config("pixel")


@pytest.fixture(scope="module")
def workdir(run_copy):
    """A run of a class-conditional diffusion model of 8x8 digits."""
    return run_copy("pixel")


@pytest.fixture(scope="module")
def classifier(run_copy):
    """A run of a classifier of noised digits."""
    return run_copy("classifier")
