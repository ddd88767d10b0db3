"""Coordinate check: activations under muP do not depend on the width, and grow with it without muP."""

import json

import numpy as np
import pytest
from PIL import Image

from diffjax import cli
from diffjax.errors import UserError
from diffjax.training import coordinate_check
from tests import tiny

DIT = {**tiny.DIT, "width": 16, "heads": 2}


def test_slopes_are_those_of_powers():
    widths = [8, 16, 64]
    sizes = [{"grows": 3.0 * w, "flat": 0.5, "shrinks": w**-0.5, "zero": 0.0 if w == 16 else 1.0} for w in widths]
    slopes = coordinate_check.slopes(widths, sizes)
    assert slopes.keys() == {"grows", "flat", "shrinks"}
    np.testing.assert_allclose([*slopes.values()], [1, 0, -0.5], atol=1e-12)


def test_what_cannot_be_checked_is_an_error():
    with pytest.raises(UserError, match="a coordinate check requires a diffusion model"):
        coordinate_check.config_of_width(tiny.config("vae"), 8, 8)
    with pytest.raises(UserError, match=r"so 1\.5 heads"):
        coordinate_check.config_of_width(tiny.config(model=DIT), 12, 0)
    config = coordinate_check.config_of_width(tiny.config(model=DIT), 64, 16)
    assert (config.model.width, config.model.heads, config.train.mup_base_width) == (64, 8, 16)
    assert coordinate_check.config_of_width(tiny.config(), 24, 8).model.channels == 24


@pytest.mark.slow
def test_benchmark_checks_coordinates(tmp_path, capsys):
    config = tiny.write(tmp_path / "config.py", model=DIT, train__learning_rate=0.02, train__clip_norm=0.0)
    flags = ["--coordinates=16,32,64,128", "--steps=3", f"--out={tmp_path}/check.json"]
    assert cli.main(["launch.py", "benchmark", f"--config={config}", *flags]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "check.json").read_text())
    standard, mup = ({**results[name]["slopes"][-1]} for name in ("standard", "muP"))
    largest = {name: max(map(abs, slopes.values())) for name, slopes in (("standard", standard), ("muP", mup))}
    assert largest["standard"] > 0.6 and largest["muP"] < 0.3, printed
    assert results["widths"] == [16, 32, 64, 128] and results["base_width"] == 16
    assert results["standard"]["sizes"][0] == results["muP"]["sizes"][0]  # the base width
    assert Image.open(tmp_path / "check.png").size[0] > 100
    assert "block_0/qkv" in printed
