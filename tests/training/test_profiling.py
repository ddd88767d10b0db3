"""The profile of training steps."""

import jax
import pytest
from flax import linen as nn
from jax import numpy as jnp

from diffjax.training.profiling import Profiler, read_operations
from tests import tiny
from tests.command_line import launch


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(1024, name="large")(x)
        return nn.Dense(1, name="small")(nn.silu(x)).sum()


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """Returns the folder of a profile of two steps, the text of the program, and the number of calls of the step."""
    folder, network, x = tmp_path_factory.mktemp("profile") / "trace", Network(), jnp.ones((512, 1024))
    params = network.init(jax.random.key(0), x)
    step = jax.jit(lambda params, x, _: (jax.grad(network.apply)(params, x), {"loss": jnp.zeros(())}))
    profiler = Profiler(step, 2, folder)
    for _ in range(7):
        params, metrics = profiler(params, x, {})
    assert metrics.keys() == {"loss"}
    profiler.close()
    return folder, step.lower(params, x, {}).compile().as_text()


def test_operations_have_their_place_in_the_model(profile):
    """Forward and backward."""
    operations = read_operations(*profile)
    assert [seconds for _, seconds in operations] == sorted((seconds for _, seconds in operations), reverse=True)
    large = {name: seconds for name, seconds in operations if "Network/large" in name}
    assert {name.endswith("(backward)") for name in large} == {True, False}
    assert large["Network/large/dot_general"] > 0


def test_without_the_program_operations_have_the_names_of_instructions(profile):
    folder, _ = profile
    named, unnamed = read_operations(*profile), read_operations(folder, "")
    assert not any("/" in name for name, _ in unnamed)
    assert sum(s for _, s in named) == pytest.approx(sum(s for _, s in unnamed))


@pytest.mark.slow
def test_train_prints_the_slowest_operations_and_a_short_run_has_none(tmp_path, capsys):
    config = tiny.write(tmp_path / "config.py", train__steps=6, train__sample_every=0, train__num_preview_samples=0)
    launch("train", f"--config={config}", f"--workdir={tmp_path / 'run'}", "--profile=2")
    out = capsys.readouterr().out
    assert f"profile of 2 steps: {tmp_path / 'run' / 'profile'}" in out and "ms per step  " in out and "UNet/" in out
    flags = ("--config.train.steps=7", "--allow_config_change", "--profile=2")
    launch("train", f"--workdir={tmp_path / 'run'}", *flags)
    assert "--profile=2: the run ended before 5 steps; there is no table" in capsys.readouterr().out
