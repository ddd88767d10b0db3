"""Every config file: complete, buildable, and of the size its paper says."""

import functools
import re
import runpy

import jax
import pytest

from diffjax import models
from diffjax.errors import UserError
from diffjax.runs.config_files import differing, flatten, from_json, load_file, to_json
from diffjax.runs.loading import blueprint, image_spec
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
    system = models.build(load("vqvae"), spec)
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
        system = models.build(config, spec, **({"codec": codec(spec)} if config.system == "prior" else {}))
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
    system = models.build(config, image_spec(config))
    shapes = jax.eval_shape(system.objective.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307


RETURNS = "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({!r})\n"
BAD_FILES = {
    "no get_config": ("seed = 1\n", r"has no function get_config\(\); define it"),
    "a division": (
        "def get_config():\n    zero = 0\n    return 1 / zero\n",
        r"line 3: ZeroDivisionError: division by zero",
    ),
    "an exit": ("raise SystemExit(3)\n", "line 1: SystemExit: 3"),
    "a recursion": ("def get_config():\n    return get_config()\n", "line 2: RecursionError"),
    "an assertion": ("def get_config():\n    assert False\n", "line 2: AssertionError"),
    "its own exception": ("class E(BaseException): pass\n\nraise E('two\\nlines')\n", "line 3: E: two; correct"),
    "a syntax error": ("\ndef get_config(:\n", "line 2: SyntaxError"),
    "a null byte": ("\0", "SyntaxError|ValueError"),
    "another file that is missing": ("open('/nowhere/x')\n", "line 1: FileNotFoundError: .*nowhere"),
    "a dict": ("def get_config():\n    return {}\n", "returns dict; it must return a ml_collections.ConfigDict"),
    "None": ("def get_config(): pass\n", "returns NoneType; it must return"),
    "an object": (RETURNS.format({"seed": 1}).replace("1", "object"), "seed=<class 'object'>: must be a plain value"),
    "a text for a number": (RETURNS.format({"train": {"steps": "many"}}), "train.steps='many': must be a whole number"),
    "a number for a section": (RETURNS.format({"data": 3}), "data=3: must be a section"),
    "nothing for a number": (RETURNS.format({"seed": None}), "seed=None: must be a whole number"),
    "a part by an absolute path": (RETURNS.format({"parts": {"/tmp/x": {}}}), "parts./tmp/x: the name of a part is"),
    "a part in another folder": (RETURNS.format({"parts": {"a/b": {}}}), "parts.a/b: the name of a part is"),
    "a part in a folder of the run": (RETURNS.format({"parts": {"samples": {}}}), "parts.samples: the name of a part"),
    "a part of a part": (
        RETURNS.format({"parts": {"a": {"parts": {"-b": {}}}}}),
        "parts.a: parts.-b: the name of a part",
    ),
    "a number for a part": (RETURNS.format({"parts": {"a": 3}}), "parts.a=3: must be a config or its file"),
    "itself as a part": (RETURNS.format({"parts": {"a": "bad.py"}}), "the file is a part of itself"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_config_file_is_one_line_that_locates_it(case, tmp_path):
    text, message = BAD_FILES[case]
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(RETURNS.format({"seed": 7}))
    bad.write_text(text)
    assert load_file(str(good)).seed == 7
    with pytest.raises(UserError, match=message) as raised:  # also after a good one was loaded
        load_file(str(bad))
    assert "bad.py" in str(raised.value) and "\n" not in str(raised.value)


def test_a_config_file_is_read_anew_each_time(tmp_path):
    """Also within the resolution of file times, and at the same length."""
    for seed in (1, 2, 3):
        (tmp_path / "c.py").write_text(RETURNS.format({"seed": seed}))
        assert load_file(str(tmp_path / "c.py")).seed == seed
    assert not (tmp_path / "__pycache__").exists()


BAD_STORED = {
    "a list": "[]",
    "a number": "3",
    "a text for a number": '{"train": {"steps": "many"}}',
    "a list of sections": '{"data": [{"name": "digits"}]}',
    "a boolean for a number": '{"seed": true}',
    "dots in a name": '{"a.b": 1}',
    "a part in another folder": '{"parts": {"a/b": {}}}',
    "a part above": '{"parts": {"..": {}}}',
    "a part that is no config": '{"parts": {"a": "codec.py"}}',
}


@pytest.mark.parametrize("case", BAD_STORED)
def test_a_stored_config_of_other_types_is_refused(case):
    with pytest.raises(UserError):
        from_json(BAD_STORED[case])


@pytest.mark.parametrize("text", ["", '{"seed": 0, "tra', b'{"seed": "\xff"}', "[" * 100_000])
def test_a_stored_config_that_is_no_json_is_refused(text):
    with pytest.raises(ValueError):
        from_json(text)


def test_configs_of_earlier_versions_are_read():
    """They have Infinity, and may lack data.corrupt."""
    assert from_json('{"sampler": {"guidance_high": Infinity}}').sampler.guidance_high == float("inf")
    new = from_json('{"data": {"corrupt": "raise", "dir": "x"}}')
    assert differing(from_json('{"data": {"dir": ""}}'), new) == {"data.dir": ("", "x")}
