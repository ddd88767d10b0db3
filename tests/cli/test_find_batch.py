"""`launch.py benchmark --find_batch`."""

import json

import jax
import pytest

from diffjax.benchmark.largest_batch import MAX_BATCH, largest_fitting, step_memory
from diffjax.cli import benchmark
from diffjax.runs.config_files import load_file
from diffjax.runs.datasets import image_spec
from diffjax.runs.loading import build_model
from diffjax.training.sharding import Devices
from tests import tiny
from tests.command_line import launch, refused


@pytest.mark.parametrize("memory", [lambda b: 100 + 7 * b, lambda b: 50 + b**1.3, lambda b: 100 + 64 * (b // 64 + 1)])
@pytest.mark.parametrize("unit", [1, 8])
def test_the_largest_batch_is_found_with_few_compilations(memory, unit):
    for limit in (120, 500, 10_000, 100_000):
        batch, sizes = largest_fitting(memory, limit, unit)
        expected = max((size for size in range(unit, limit + unit, unit) if memory(size) <= limit), default=0)
        assert 0.97 * expected <= batch <= expected
        assert batch % unit == 0 and len(sizes) <= 10


def test_limits_of_the_search():
    assert largest_fitting(lambda batch: 10, 5, 4)[0] == 0
    batch, sizes = largest_fitting(lambda batch: 10, 20, 4)
    assert 0.97 * MAX_BATCH <= batch <= MAX_BATCH and len(sizes) < 30


def test_a_cpu_needs_a_limit(capsys):
    flags = ("benchmark", "--config=digits")
    assert "add a limit in GiB, such as --memory=16" in refused(capsys, *flags, "--find_batch")
    assert "--memory=1: requires --find_batch" in refused(capsys, *flags, "--memory=1")
    assert "--steps: has no effect with --find_batch" in refused(capsys, *flags, "--find_batch", "--steps=1")


def test_the_verb_prints_the_largest_batch(tmp_path, capsys, monkeypatch):
    config, out = tiny.write(tmp_path / "config.py", "vae"), tmp_path / "batch.json"
    monkeypatch.setattr(benchmark, "step_memory", lambda config, spec, model, devices, size: 1000 + 100 * size)
    flags = ("benchmark", f"--config={config}", "--config.parallel.num_devices=1", "--find_batch")
    assert launch(*flags, f"--memory={21_500 / 2**30}", f"--out={out}") == 0
    assert json.loads(out.read_text())["largest_batch"] == 205
    assert "largest batch: 205" in capsys.readouterr().out
    assert "a batch of 1 does not fit" in refused(capsys, *flags, f"--memory={1_000 / 2**30}")


@pytest.mark.slow
def test_the_memory_of_a_step_grows_with_its_batch(tmp_path):
    config = load_file(str(tiny.write(tmp_path / "config.py", "vae")))
    spec, model, devices = image_spec(config), build_model(config, abstract=True), Devices.create(num_devices=1)
    small, large = (step_memory(config, spec, model, devices, size) for size in (8, 80))
    images = 72 * spec.size**2 * spec.channels
    state = 4 * 4 * sum(leaf.size for leaf in jax.tree.leaves(model.variable_shapes["params"]))  # Adam and the average
    assert small > state and large > small + images
