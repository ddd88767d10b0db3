"""Every config file: complete, buildable, and of the size its paper says."""

import jax
import pytest

from diffjax import systems
from diffjax.commands.flags import load_file
from diffjax.workdir import flatten, from_json, image_spec, to_json
from tests import tiny

CONFIGS = sorted(path.stem for path in (tiny.ROOT / "configs").glob("*.py"))
REQUIRED = [
    "seed",
    "system",
    "dtype",
    "data.name",
    "data.dir",
    "data.split",
    "data.image_size",
    "data.flip",
    "diffusion.schedule",
    "diffusion.zero_terminal_snr",
    "diffusion.timesteps",
    "diffusion.continuous",
    "diffusion.times",
    "train.steps",
    "train.batch_size",
    "train.learning_rate",
    "train.warmup_steps",
    "train.clip_norm",
    "train.ema_decay",
    "train.log_every",
    "train.sample_every",
    "train.checkpoint_every",
    "parallel.mode",
]
REQUIRED_OF = {
    "classifier": ["model.pool"],
    "ddpm": [
        "diffusion.parameterization",
        "diffusion.loss",
        "diffusion.weighting",
        "diffusion.variance",
        "sampler.name",
        "sampler.steps",
        "sampler.grid",
        "sampler.guidance",
        "sampler.threshold",
    ],
}


def load(name):
    return load_file(str(tiny.ROOT / "configs" / f"{name}.py"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_complete_and_fits(name):
    config = load(name)
    assert {*REQUIRED, *REQUIRED_OF[config.system]} <= flatten(config).keys()
    system = systems.build(config, image_spec(config))
    jax.eval_shape(system.objective.init, jax.random.key(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_its_workdir(name):
    config = load(name)
    assert from_json(to_json(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_command_time_score_and_setting(name):
    text = (tiny.ROOT / "configs" / f"{name}.py").read_text()
    header = text.split('"""')[1]
    assert f"--config=configs/{name}.py" in header
    for word in ("Time:", "Score:", "Setting:"):
        assert word in header
    values = [line for line in text.splitlines() if line.strip().startswith("config.") and "ConfigDict()" not in line]
    without = [line for line in values if "#" not in line]
    assert not without, f"no comment behind {without}"


def test_cifar10_is_the_papers_network():
    """35.7M parameters: Ho et al. 2020, app. B."""
    config = load("ddpm_cifar10")
    system = systems.build(config, image_spec(config))
    shapes = jax.eval_shape(system.objective.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307
