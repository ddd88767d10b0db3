"""One tiny config and one run of it, for all the verbs."""

import pytest

from diffjax import cli
from tests import tiny


@pytest.fixture(scope="session")
def config(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("config") / "tiny.py")


@pytest.fixture(scope="session")
def workdir(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "digits"
    assert cli.main(["launch.py", "train", f"--config={config}", f"--workdir={path}"]) == 0
    return path


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """A run of a tiny classifier of noised digits."""
    folder = tmp_path_factory.mktemp("classifier")
    config = tiny.write(folder / "tiny.py", "classifier_digits", train__sample_count=0)
    assert cli.main(["launch.py", "train", f"--config={config}", f"--workdir={folder}/run"]) == 0
    return folder / "run"
