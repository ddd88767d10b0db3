"""Config files: documentation, completeness, builds, published size; bad files; stored configs; --print_config."""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import pytest

from diffjax import cli, models
from diffjax.errors import UserError
from diffjax.runs.config_fields import configs_package, documented_fields, documented_name
from diffjax.runs.config_files import (
    changed_fields,
    flatten,
    from_json,
    load_file,
    to_json,
    training_fields,
    with_fields,
)
from diffjax.runs.datasets import image_spec
from diffjax.runs.loading import build_model
from tests import tiny

FOLDER = tiny.ROOT / "configs"
FILES = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.py") if path.stem != "common"
)
FIELDS = documented_fields()
COMPLETE = ("data", "text", "mapping", "discriminator", "adversarial", "pixelcnn", "train", "rerank", "parallel")
OTHER_TYPES = {"image_encoder.layers": tuple, "image_encoder.mlp_ratio": float}  # of published ResNets and ViTs
PIPELINES = {"shapes": "unclip_shapes", "emoji": "unclip_emoji"}  # with the parts that fields refer to by @name


def variants_of(name: str) -> list[str]:
    """Returns the variants of a config file, the default first; [""] for a file without variants."""
    scope: dict = {}
    with configs_package(str(FOLDER)):
        exec((FOLDER / f"{name}.py").read_text(), scope)
    return list(scope.get("VARIANTS", [""]))


CONFIGS = [(name, variant) for name in FILES for variant in variants_of(name)]


def load(name: str, variant: str = ""):
    return load_file(f"{FOLDER / name}.py" + (f":{variant}" if variant else ""))


def test_every_field_is_documented_and_has_the_documented_type():
    for name, variant in CONFIGS:
        config = load(name, variant)
        for field, value in flatten(config).items():
            assert documented_name(field) in FIELDS, f"{name}:{variant}: {field} is not in configs/common.py"
            default, text = FIELDS[documented_name(field)]
            kinds = (type(default), OTHER_TYPES.get(documented_name(field)))
            assert text and type(value) in kinds, f"{name}:{variant}: {field}={value!r}, default {default!r}"
        for field in FIELDS:
            section = field.rpartition(".")[0]
            if section in COMPLETE and section in config:
                assert field in flatten(config), f"{name}:{variant}: no {field}"
        assert {"seed", "system", "dtype", "data", "parallel"} <= {*config.keys()}
        assert "train" in config or config.system in ("glide", "unclip")
        assert from_json(to_json(config)).to_dict() == config.to_dict()


def test_every_file_has_a_header_with_command_time_score_and_setting():
    for name in FILES:
        text = (FOLDER / f"{name}.py").read_text()
        header = text.split('"""')[1]
        for words in (f"--config=configs/{name}.py", "\nTime: ", "\nScore: ", "\nSetting: "):
            assert words in header, f"{name}: no {words!r}"
        code = text.split('"""')[2].strip().splitlines()
        most = 80 if name.startswith(("published/", "few_step", "distilled")) else 60  # those have many variants
        assert len(code) <= most, f"{name} has {len(code)} lines"


def test_an_unknown_variant_is_an_error_that_lists_the_variants():
    for name in sorted({name for name, variant in CONFIGS if variant}):
        with pytest.raises(UserError, match=r"unknown variant 'none such'.*choose from"):
            load(name, "none such")


@functools.cache
def codec(spec):
    """Returns an autoencoder, as the configs of priors require it, and the shapes of its variables."""
    system = models.build(load("vqvae"), spec)
    return system, jax.eval_shape(lambda: {**system.init(jax.random.key(0)), "frozen": {}})


def check_builds(name: str, variant: str) -> None:
    """Builds the model of a config, with shapes in place of values."""
    config = load(name, variant)
    if config.get("parts"):
        system = build_model(config, abstract=True)
    elif any(str(value).startswith("@") for value in config.values()):
        system = build_model(config, parent=load(PIPELINES[config.data.name]), abstract=True)
    else:
        spec = image_spec(config)
        system = models.build(config, spec, **({"codec": codec(spec)} if config.system == "prior" else {}))
    assert jax.tree.leaves(system.variable_shapes) or not system.losses  # pipelines have no variables of their own


def parts_of(config) -> list[dict]:
    """Returns the parts of a config, and theirs, as dictionaries."""
    parts = list(config.get("parts", {}).values())
    return [part.to_dict() for part in parts] + [inner for part in parts for inner in parts_of(part)]


BUILT_AS_PARTS = [part for name in ("glide_shapes", "unclip_shapes") for part in parts_of(load(name))]
LATENTS = [("latent_shapes", "clip"), ("posterior_collapse", "vqvae")]  # with networks that no default variant has
DEFAULTS = [(name, variants_of(name)[0]) for name in FILES if not re.search("_emoji|published/", name)] + LATENTS
SKIPPED = [("latent_shapes", "f4"), ("ddpm_cifar10", "")]  # of which a variant, or another test, builds the model
BUILT = [case for case in DEFAULTS if load(*case).to_dict() not in BUILT_AS_PARTS and case not in SKIPPED]


@pytest.mark.slow
def test_each_architecture_builds():
    for name, variant in BUILT:
        check_builds(name, variant)


@pytest.mark.slow
def test_each_variant_builds():
    """But for those that tests of sizes build, in tests/published and tests/conversion."""
    for name, variant in CONFIGS:
        if (name, variant) not in BUILT and not re.match("published/(adm|clip|consistency|glide|improved_ddpm)", name):
            check_builds(name, variant)


def test_cifar10_is_the_papers_network():
    """35.7M parameters: Ho et al. 2020, app. B."""
    config = load("ddpm_cifar10")
    system = models.build(config, image_spec(config))
    shapes = system.variable_shapes
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 35_746_307


# Config files outside this repository.


DERIVED = """
from configs import common, digits

def get_config():
    config = digits.get_config()
    config.train.steps = 7
    common.add(config, "sampler.classifier_scale")
    return config
"""


def test_a_config_file_of_another_folder_uses_common(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(DERIVED)
    before = {name for name in sys.modules if name.startswith("configs")}
    config = load_file("mine.py")
    assert config.train.steps == 7 and config.sampler.classifier_scale == 1.0
    assert set(flatten(config)) - set(flatten(load("digits"))) == {"sampler.classifier_scale"}
    assert {name for name in sys.modules if name.startswith("configs")} == before


def test_a_config_file_of_another_folder_imports_configs_and_names_parts_of_both_folders(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from configs import common, dalle_shapes, my_clip\n\ndef get_config():\n"
        "    config = dalle_shapes.get_config()\n    config.train.steps = my_clip.STEPS\n"
        "    common.add_parts(config, clip='my_clip.py')\n    return config\n"
    )
    (tmp_path / "my_clip.py").write_text(
        "from configs import clip_shapes\n\nSTEPS = 5\n\ndef get_config():\n"
        "    config = clip_shapes.get_config()\n    config.train.steps = STEPS\n    return config\n"
    )
    config = load_file(str(tmp_path / "mine.py"))
    assert config.train.steps == config.parts.clip.train.steps == 5
    assert config.parts.codec.to_dict() == load("vqvae", "shapes").to_dict()


def test_an_error_in_an_imported_config_is_located_there(tmp_path):
    (tmp_path / "base.py").write_text("def get_config():\n    zero = 0\n    return 1 / zero\n")
    (tmp_path / "mine.py").write_text("from configs import base\n\ndef get_config():\n    return base.get_config()\n")
    with pytest.raises(UserError, match=r"mine.py: .*base.py, line 3: ZeroDivisionError: division by zero"):
        load_file(str(tmp_path / "mine.py"))


def test_a_common_module_next_to_the_config_file_takes_precedence(tmp_path):
    (tmp_path / "common.py").write_text("FIELDS = {'seed': (3, 'seed of mine')}\n")
    (tmp_path / "mine.py").write_text(
        "from ml_collections import ConfigDict\nfrom configs import common\n\n"
        "def get_config():\n    return ConfigDict({'seed': common.FIELDS['seed'][0]})\n"
    )
    assert load_file(str(tmp_path / "mine.py")).seed == 3
    assert documented_fields(str(tmp_path)) == {"seed": (3, "seed of mine")}
    assert load("digits").seed == 0


@pytest.mark.slow
def test_a_process_started_in_another_folder_loads_and_prints_a_config(tmp_path):
    command = [sys.executable, "-m", "diffjax", "train", f"--config={FOLDER / 'kl.py'}:shapes", "--print_config"]
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT), "PYTHONSAFEPATH": "1"}
    shown = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout
    assert "train.steps = 2500 " in shown


def test_a_misspelt_field_or_group_is_an_error(tmp_path):
    for line, message in {
        "config.train.stepz = 7": "line 6: AttributeError: .*stepz",
        "config.train.update(stepz=7)": "line 6: KeyError: .*stepz",
        "common.add(config, 'label')": "unknown group, section or field of configs/common.py 'label'.*'labels'",
        "common.new('ddpm', 'unets')": "unknown group.*'unet'",
    }.items():
        (tmp_path / "mine.py").write_text(DERIVED.replace("config.train.steps = 7", line))
        with pytest.raises(UserError, match=message):
            load_file(str(tmp_path / "mine.py"))


# --print_config


def printed(capsys, *flags: str) -> dict[str, tuple[str, str, str]]:
    """Returns (value, origin, documentation) of each field that --print_config prints."""
    assert cli.main(["launch.py", "train", "--print_config", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [re.fullmatch(r"  (\S+) = (.*?) +(default|config|command line) +# (.*)", line) for line in lines]
    return {row[1]: (row[2], row[3], row[4]) for row in rows if row}


def test_print_config_shows_every_value_its_origin_and_documentation(capsys):
    overrides = ("--config.train.steps=5", "--noconfig.data.flip", "--config.parts.clip.seed=3")
    shown = printed(capsys, f"--config={FOLDER}/dalle_shapes.py", *overrides)
    config = load("dalle_shapes")
    assert shown.keys() == flatten(config).keys()
    assert shown["train.steps"] == ("5", "command line", FIELDS["train.steps"][1])
    assert shown["data.flip"][:2] == ("False", "command line")
    assert shown["parts.clip.seed"][:2] == ("3", "command line")
    assert shown["model.layers"][:2] == ("6", "config")
    assert shown["train.learning_rate"][:2] == ("0.001", "default")
    assert shown["parts.codec.data.name"][:2] == ("'shapes'", "config")
    assert all(text == FIELDS[documented_name(name)][1] for name, (_, _, text) in shown.items())
    changed = {"train.steps": 5, "parts.clip.seed": 3}
    for name, value in flatten(config).items():
        assert shown[name][0] == repr(changed.get(name, value))


def test_a_data_set_is_overridden_for_all_parts_that_share_it(capsys):
    """Except for a part whose own field is overridden, or differs in the file, and for sizes."""
    overrides = ("--config.data.name=folder", "--config.data.channels=3", "--config.data.image_size=24")
    shown = printed(capsys, f"--config={FOLDER}/dalle_shapes.py", *overrides, "--config.parts.clip.data.channels=1")
    assert {shown[f"{part}data.name"][0] for part in ("", "parts.clip.", "parts.codec.")} == {"'folder'"}
    assert [shown[f"{part}data.channels"][0] for part in ("", "parts.clip.", "parts.codec.")] == ["3", "1", "3"]
    assert [shown[f"{part}data.image_size"][0] for part in ("", "parts.clip.", "parts.codec.")] == ["24", "32", "32"]
    shown = printed(capsys, f"--config={FOLDER}/dalle_shapes.py", "--config.parts.clip.data.name=folder")
    assert shown["data.name"][0] == shown["parts.codec.data.name"][0] == "'shapes'"


def test_print_config_groups_fields_by_section_and_part(capsys):
    cli.main(["launch.py", "train", "--print_config", f"--config={FOLDER}/glide_shapes.py"])
    headings = re.findall(r"\n\n(\S+)\n", capsys.readouterr().out)
    assert headings[:4] == ["run", "data", "sampler", "parallel"]
    assert {"parts.base.conditions", "parts.upsampler.train", "parts.noised_clip.image_encoder"} <= set(headings)


def test_print_config_of_a_run_reads_its_config_and_writes_nothing(capsys, tmp_path):
    (tmp_path / "config.json").write_text(to_json(load("vqvae", "cifar10")))
    before = sorted(tmp_path.iterdir())
    shown = printed(capsys, f"--workdir={tmp_path}")
    assert shown["codebook.size"] == ("512", "config", FIELDS["codebook.size"][1])
    assert sorted(tmp_path.iterdir()) == before
    assert printed(capsys, f"--workdir={tmp_path}/none", f"--config={FOLDER}/kl.py:emoji")["data.name"][0] == "'emoji'"
    assert not (tmp_path / "none").exists()


def test_print_config_reports_invalid_input(capsys):
    assert cli.main(["launch.py", "train", "--print_config"]) == 2
    assert cli.main(["launch.py", "train", "--print_config", f"--config={FOLDER}/kl.py", "--config.trian.steps=5"]) == 2
    assert capsys.readouterr().err.count("error: ") == 2


# Bad files, and stored configs.


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
    "a missing file": ("open('/nowhere/x')\n", "line 1: FileNotFoundError: .*nowhere"),
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


def test_an_error_of_a_config_file_is_one_line_with_its_location(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text(RETURNS.format({"seed": 7}))
    for text, message in BAD_FILES.values():
        bad.write_text(text)
        assert load_file(str(good)).seed == 7
        with pytest.raises(UserError, match=message) as raised:  # also after a valid file was loaded
            load_file(str(bad))
        assert "bad.py" in str(raised.value) and "\n" not in str(raised.value)


def test_each_load_executes_the_config_file(tmp_path):
    """Includes changes within the resolution of file times, and at the same length."""
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
    "a part that is a file": '{"parts": {"a": "codec.py"}}',
}


def test_a_stored_config_with_wrong_types_is_an_error():
    for text in BAD_STORED.values():
        with pytest.raises(UserError):
            from_json(text)


def test_a_stored_config_that_is_not_json_is_an_error():
    for text in ("", '{"seed": 0, "tra', b'{"seed": "\xff"}', "[" * 100_000):
        with pytest.raises(ValueError):
            from_json(text)


def test_stored_configs_of_earlier_versions_are_read():
    """They contain Infinity, and may lack data.on_corrupt."""
    assert from_json('{"sampler": {"guidance_high": Infinity}}').sampler.guidance_high == float("inf")
    new = from_json('{"data": {"on_corrupt": "raise", "dir": "x"}}')
    assert changed_fields(from_json('{"data": {"dir": ""}}'), new) == {"data.dir": ("", "x")}


def test_a_field_that_was_a_boolean_keeps_its_digest_and_is_read_as_a_name(tmp_path):
    for stored, name in ((False, "none"), (True, "blocks"), ("dots", "dots")):
        old = from_json(json.dumps({"model": {"remat": stored}}))
        (tmp_path / "config.json").write_text(to_json(old))
        new = load_file(str(tmp_path / "config.json"))
        assert (old.model.remat, new.model.remat) == (stored, name)
        assert training_fields(old) == training_fields(new) == {"model.remat": stored}
        assert changed_fields(old, new) == {}


def test_optional_fields_of_networks_can_be_set_in_configs_that_lack_them():
    config = with_fields(load_file("configs/clip_shapes.py"), {"text_encoder.remat": "dots"})
    assert config.text_encoder.remat == "dots" and config.is_locked
    with pytest.raises(UserError, match=r"unknown field of config\.model 'remat'"):
        build_model(with_fields(config, {"model.remat": "dots"}), abstract=True)
    with pytest.raises(UserError, match=r"unknown config field 'model\.remat'"):
        with_fields(from_json('{"seed": 0}'), {"model.remat": "dots"})
