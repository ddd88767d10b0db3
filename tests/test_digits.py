"""Reproduces the accuracy of configs/digits.py with 300 training steps: minutes on two cores."""

import json
import os
import subprocess
import sys

import pytest

from tests import tiny


def launch(*arguments):
    """Runs `launch.py` without the flags of the tests for XLA, with which training takes twice as long."""
    environment = os.environ | {"XLA_FLAGS": ""}
    subprocess.run([sys.executable, "launch.py", *arguments], cwd=tiny.ROOT, env=environment, check=True)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_samples_of_digits_are_recognised(tmp_path):
    launch("train", "--config=configs/digits.py", f"--workdir={tmp_path}", "--config.train.steps=300")
    launch("sweep", f"--workdir={tmp_path}", "--steps=50", "--num=200")
    entry = json.loads((tmp_path / "results" / "results.jsonl").read_text())
    assert entry["reference"]["classifier_held_out_accuracy"] >= 0.97
    assert entry["metrics"]["classifier_accuracy"]["value"] >= 0.9
