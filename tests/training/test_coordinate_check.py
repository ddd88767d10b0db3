"""Coordinate check: activations under muP do not depend on the width, and grow with it without muP."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from diffjax import cli, models
from diffjax.errors import UserError
from diffjax.training import coordinate_check
from diffjax.typing import ImageSpec
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


class Recorder:
    """A network that records its inputs and has no layers."""

    def clone(self, remat):
        return self

    def apply(self, variables, x, t, **options):
        self.x, self.t = np.asarray(x), np.asarray(t)
        return None, {"intermediates": {}}


@pytest.mark.parametrize(
    ("changes", "times", "scales"),
    [
        ({"schedule": "linear", "rescale_timesteps": True}, (0, 950), (1, 1)),
        (
            {"schedule": "edm", "parameterization": "edm"},
            (np.log(0.002) / 4, np.log(80) / 4),
            [np.sqrt((1 + sigma**2) / (0.25 + sigma**2)) for sigma in (0.002, 80)],
        ),
    ],
)
def test_inputs_are_those_of_training(changes, times, scales):
    """At both ends of the process: c_noise and c_in of EDM (Karras et al. 2022, table 1); t - 1, rescaled to 1000."""
    fields = {f"diffusion__{name}": value for name, value in changes.items()}
    network, model = Recorder(), models.build(tiny.config(model=DIT, **fields), ImageSpec(8, 1, 10))
    coordinate_check.activation_sizes(dataclasses.replace(model, network=network), {"params": {"model": {}}})
    np.testing.assert_allclose(network.t[[0, -1]], times, rtol=1e-4, atol=1e-4)
    unscaled = np.asarray(jax.random.normal(jax.random.key(0), network.x.shape))
    np.testing.assert_allclose((network.x / unscaled)[[0, -1]].mean((1, 2, 3)), scales, rtol=1e-4)


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
