"""Reproduces the accuracy of configs/digits.py: minutes on two cores."""

import json

import pytest

from diffjax import cli
from tests import tiny


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_samples_of_digits_are_recognised(tmp_path):
    config = tiny.ROOT / "configs" / "digits.py"
    flags = ["--config.parallel.num_devices=1"]
    assert cli.main(["launch.py", "train", f"--config={config}", f"--workdir={tmp_path}", *flags]) == 0
    assert cli.main(["launch.py", "sweep", f"--workdir={tmp_path}", "--steps=50", "--num=500"]) == 0
    results = json.loads((tmp_path / "results" / "sweep.json").read_text())
    assert results["reference"]["classifier_held_out_accuracy"] >= 0.97
    assert results["cells"][0]["classifier_accuracy"] >= 0.9
