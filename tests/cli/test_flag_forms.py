"""Forms of flags on the command line, the groups of the help text, and proposals for unknown names."""

import re
import subprocess
import sys

import pytest
from absl import flags as absl_flags

from diffjax import cli
from diffjax.cli.flags import define_config, parse, read_config
from diffjax.diffusion import samplers
from diffjax.errors import UserError, unknown
from diffjax.registry import choices


def parsed(*argv):
    flags = absl_flags.FlagValues()
    define_config(flags)
    absl_flags.DEFINE_integer("num", 1, "number", flag_values=flags)
    absl_flags.DEFINE_boolean("invert", False, "switch", flag_values=flags)
    arguments = parse(flags, ["verb", *argv])
    return arguments, read_config(arguments) if arguments.config else None


@pytest.mark.parametrize("separate", [False, True], ids=["with =", "without ="])
def test_a_value_follows_an_equals_sign_or_a_space(separate):
    pairs = {
        "--config": "configs/digits.py",
        "--num": "-3",
        "--invert": "true",
        "--config.train.steps": "10",
        "--config.data.flip": "true",
    }
    argv = [*sum(pairs.items(), ())] if separate else [f"{name}={value}" for name, value in pairs.items()]
    arguments, config = parsed(*argv)
    assert (arguments.num, arguments.invert) == (-3, True)
    assert (config.train.steps, config.data.flip) == (10, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("qkv", ("qkv",)),
        ("down_*,label", ("down_*", "label")),
        ("('down_*', 'label')", ("down_*", "label")),
        ("()", ()),
    ],
)
def test_tuples_of_text_need_no_quotes(text, value):
    _, config = parsed("--config", "configs/digits.py", f"--config.train.freeze={text}")
    assert config.train.freeze == value
    _, config = parsed("--config", "configs/digits.py", "--config.data.class_names", text)
    assert config.data.class_names == value


def test_a_tuple_of_the_wrong_kind_is_refused():
    with pytest.raises(UserError, match=r"train.freeze=\(3,\): train.freeze must be a tuple, such as \('label',\)"):
        parsed("--config=configs/digits.py", "--config.train.freeze=(3,)")
    with pytest.raises(UserError, match=r"train.freeze=a,,b: an entry is empty"):
        parsed("--config=configs/digits.py", "--config.train.freeze=a,,b")


def test_optional_fields_of_networks_need_not_be_in_the_config():
    _, config = parsed("--config=configs/dalle_emoji.py", "--config.model.remat=dots")
    assert config.model.remat == "dots"
    with pytest.raises(UserError, match=r"unknown config field 'train\.remat'"):
        parsed("--config=configs/digits.py", "--config.train.remat=dots")


def test_a_boolean_needs_no_value():
    arguments, config = parsed("--config", "configs/digits.py", "--invert", "--noconfig.data.flip")
    assert arguments.invert and not config.data.flip


def test_the_help_groups_flags_by_purpose(capsys):
    assert cli.main(["launch.py", "sample", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("run:")
    groups = {}
    for line in lines[first:]:
        if line and not line.startswith(" "):
            groups[line] = []
        elif line.startswith("  --"):
            groups[[*groups][-1]].append(line.split()[0].split("=")[0])
    assert [*groups][:5] == ["run:", "samples:", "sampling:", "guidance:", "editing:"]
    assert [*groups][-1] == "output:"
    texts = [re.match(r"  --\S+ +", line) for line in lines[first:]]
    assert {text.end() for text in texts if text} == {26}
    assert groups["run:"][0] == "--workdir" and "--guidance" in groups["guidance:"] and "--mask" in groups["editing:"]


@pytest.mark.slow
def test_a_reader_may_close_the_help_early():
    command = f"{sys.executable} launch.py sample --help | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage:")


def test_an_unknown_name_proposes_all_names_that_contain_it():
    message = str(unknown("sampler", "dpm", choices(samplers)))
    names = [name for name in choices(samplers) if "dpm" in name]
    assert len(names) > 1 and all(repr(name) in message for name in names)
    assert "did you mean 'top_k' or 'stop_k'?" in str(unknown("flag", "top_", ["stop_k", "top_k", "num"]))


def test_an_unknown_name_proposes_the_most_similar_one():
    with pytest.raises(UserError, match="unknown flag 'nmu': did you mean 'num'"):
        parsed("--nmu=3")


@pytest.mark.parametrize(
    ("file", "program"),
    [
        ("launch.py", "python launch.py"),
        ("/usr/bin/diffjax", "diffjax"),
        ("site-packages/diffjax/__main__.py", "python -m diffjax"),
    ],
)
def test_commands_in_texts_start_with_the_program_that_runs(capsys, tmp_path, file, program):
    assert cli.main([file, "--help"]) == 0
    assert f"usage: {program} VERB" in capsys.readouterr().out
    assert cli.main([file, "sample", "--help"]) == 0
    assert f"\n  {program} sample --workdir=runs/digits" in capsys.readouterr().out
    assert cli.main([file, "sample", f"--workdir={tmp_path}/launch.py"]) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/launch.py is not a run" in error
    assert f"train one with {program.removeprefix('python ') if file == 'launch.py' else program} train" in error
