"""Every config file: complete, buildable, and of the size its paper says."""

import functools
import re
import runpy

import jax
import pytest

from diffjax import systems
from diffjax.config import flatten, from_json, load_file, to_json
from diffjax.run import blueprint, image_spec
from tests import tiny

FILES = sorted(path.stem for path in (tiny.ROOT / "configs").glob("*.py"))


def variants(name: str) -> list[str]:
    """What a config file can be asked for: NAME, or NAME:DATA for each of its data sets."""
    module = runpy.run_path(str(tiny.ROOT / "configs" / f"{name}.py"))
    return [
        f"{name}:{variant}"
        for variant in next((module[kind] for kind in ("DATA", "KINDS", "SIZES") if kind in module), ())
    ] or [name]


CONFIGS = [config for name in FILES for config in variants(name)]
REQUIRED = [
    "seed",
    "system",
    "dtype",
    "data.name",
    "data.dir",
    "data.split",
    "data.image_size",
    "data.flip",
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
PROCESS = ["diffusion.schedule", "diffusion.zero_terminal_snr", "diffusion.timesteps", "diffusion.continuous"]
AUTOENCODER = ["model.architecture", "model.latent_channels", "loss.likelihood", "loss.perceptual_file"]
CHAINS = ("glide", "unclip")
REQUIRED_OF = {
    "classifier": [*PROCESS, "diffusion.times", "model.pool"],
    "clip": ["image_encoder.architecture", "model.dimensions", "text.tokenizer", "text.vocabulary", "text.length"],
    "ddgan": [*PROCESS, "sampler.steps"],
    "ddpm": [
        *PROCESS,
        "diffusion.times",
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
    "dvae": [*AUTOENCODER, "codes.size", "codes.temperature_end", "loss.kl_weight"],
    "gan": ["model.latent", "discriminator.loss"],
    "prior": [
        "codec",
        "model.architecture",
        "model.condition",
        "sampler.temperature",
        "sampler.top_k",
        "sampler.top_p",
    ],
    "vae": [*AUTOENCODER, "loss.beta", "loss.free_bits", "sampler.temperature"],
    "vqvae": [*AUTOENCODER, "codes.kind", "codes.learned", "codes.commitment", "codes.restart_below"],
}


def load(name):
    path, colon, variant = name.partition(":")
    return load_file(str(tiny.ROOT / "configs" / f"{path}.py") + colon + variant)


@functools.cache
def codec(spec):
    """A trained autoencoder for the configs that need one."""
    system = systems.build(load("vqvae"), spec)
    return system, jax.eval_shape(lambda: {**system.objective.init(jax.random.key(0)), "frozen": {}})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_complete_and_fits(name):
    config = load(name)
    required = [field for field in REQUIRED if config.system not in CHAINS or not field.startswith("train.")]
    assert {*required, *REQUIRED_OF.get(config.system, ())} <= flatten(config).keys()
    if config.get("parts"):
        system = blueprint(config)
    elif any(str(value).startswith("@") for value in config.values()):
        system = blueprint(config, load("unclip_emoji" if name.endswith(":emoji") else "unclip_shapes"))
    else:
        spec = image_spec(config)
        system = systems.build(config, spec, **({"codec": codec(spec)} if config.system == "prior" else {}))
    jax.eval_shape(system.objective.init, jax.random.key(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_its_workdir(name):
    config = load(name)
    assert from_json(to_json(config)).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", FILES)
def test_a_config_says_command_time_score_and_setting(name):
    text = (tiny.ROOT / "configs" / f"{name}.py").read_text()
    header = text.split('"""')[1]
    assert f"--config=configs/{name}.py" in header
    for word in ("Time:", "Score:", "Setting:"):
        assert word in header
    assert "MEASURE" not in header
    fields = [line for line in text.splitlines() if re.match(r" +config\.[\w.]+ = ", line)]
    values = [line for line in fields if "ConfigDict()" not in line]
    assert len(values) > 20 or "load_file(" in text  # then only what differs
    without = [line for line in values if "#" not in line]
    assert not without, f"no comment behind {without}"


def test_cifar10_is_the_papers_network():
    """35.7M parameters: Ho et al. 2020, app. B."""
    config = load("ddpm_cifar10")
    system = systems.build(config, image_spec(config))
    shapes = jax.eval_shape(system.objective.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307
