"""`launch.py optimize_grid`, and the grid `optimized` of other verbs."""

import json

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.models.diffusion.diffusion_settings import make_diffusion_settings
from diffjax.models.diffusion.process import Process
from diffjax.runs.loading import load
from tests import tiny
from tests.command_line import launch, refused, sample

GRIDS = (("ddim", 3, (18.0, 10.0, 2.0, 0.0)), ("unipc", 2, (20.0, 6.0, 0.0)))


def make(**overrides):
    config = tiny.config()
    options = {"guided": ("label",), "optimized_grids": GRIDS, "grid": "optimized"}
    return make_diffusion_settings(Process.from_config(config.diffusion), config.sampler, **{**options, **overrides})


def test_the_grid_is_that_of_the_sampler_and_the_steps():
    np.testing.assert_array_equal(make(name="ddim(eta=0)", steps=3, capacity=5).times, [18, 10, 2, 0, 0, 0])
    np.testing.assert_array_equal(make(name="unipc", steps=2).times, [20, 6, 0])
    with pytest.raises(UserError, match="of heun in 3 steps, only of ddim in 3 steps, unipc in 2 steps; search"):
        make(name="heun", steps=3)
    with pytest.raises(UserError, match=r"no grid of ddim in 3 steps; search one with launch\.py optimize_grid"):
        make(name="ddim", steps=3, optimized_grids=())


@pytest.mark.slow
def test_a_grid_is_searched_stored_and_used(workdir, tmp_path, capsys):
    flags = ("--sampler=dpmpp_2m", "--guidance=1", "--num=4", "--reference_steps=12")
    assert launch("optimize_grid", f"--workdir={workdir}", "--steps=3,4", *flags) == 0
    output = capsys.readouterr().out
    three, four = json.loads((workdir / "grids.json").read_text())
    assert (three["steps"], four["steps"], three["sampler"]) == (3, 4, "dpmpp_2m")
    assert f"dpmpp_2m, 3 steps: {three['error']:.2f} grey levels; trailing {three['errors']['trailing']:.2f}" in output
    assert "sample --workdir" in output and "--sampler=dpmpp_2m --guidance=1 --grid=optimized --steps=4" in output
    assert load(workdir).system.optimized_grids[0] == ("dpmpp_2m", 3, tuple(three["times"]))
    times = f"times({', '.join(map(str, three['times'][:-1]))})"
    shared = ("--sampler=dpmpp_2m", "--guidance=1", "--steps=3", "--num=4")
    by_name, by_times = (
        sample(workdir, tmp_path / name, f"--grid={grid}", *shared)
        for name, grid in (("name", "optimized"), ("times", times))
    )
    np.testing.assert_equal(by_name, by_times)
    launch("sweep", f"--workdir={workdir}", "--grid=optimized,trailing", *shared[:2], "--steps=3,4", "--num=4")
    assert "optimized" in capsys.readouterr().out
    launch("optimize_grid", f"--workdir={workdir}", "--steps=3", *flags)
    assert [entry["steps"] for entry in json.loads((workdir / "grids.json").read_text())] == [4, 3]


def test_what_cannot_be_searched_is_refused(workdir, capsys):
    for flags, message in (
        (("--steps=5", "--sampler=ancestral"), "--sampler=ancestral: adds noise"),
        (("--steps=1",), "--steps=1: must be from 2 to 19"),
        (("--steps=a",), "--steps=a: must be whole numbers"),
    ):
        assert message in refused(capsys, "optimize_grid", f"--workdir={workdir}", "--num=1", "--guidance=1", *flags)
