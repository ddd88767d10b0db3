"""Bad input is one line that says what to do, exit code 2, and no traceback."""

import importlib
import io
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import diffjax
from diffjax import cli, data, evaluation
from diffjax.cli import edits, evaluate, flags, sample, settings, sweep
from diffjax.errors import UserError, printable
from diffjax.evaluation import samples
from diffjax.inference.sampler_runner import Generator
from diffjax.runs.config_files import to_json
from tests import tiny

CONFIG = str(tiny.ROOT / "configs" / "digits.py")
TRAIN = ["train", f"--config={CONFIG}", "--workdir=WORKDIR"]


def launch(*arguments: str) -> int:
    return cli.main(["launch.py", *map(str, arguments)])


CASES = {
    "no such verb": (["trian"], "unknown verb 'trian': did you mean 'train'?"),
    "no such flag": ([*TRAIN, "--workdirs=x"], "unknown flag 'workdirs': did you mean 'workdir'?"),
    "no workdir": (["train", f"--config={CONFIG}"], "--workdir is missing"),
    "no config": (["train", "--workdir=WORKDIR"], "--config is missing: for instance --config=configs/digits.py"),
    "no such config": (["train", "--config=nowhere.py", "--workdir=WORKDIR"], "cannot read --config=nowhere.py"),
    "stray word": ([*TRAIN, "now"], "unexpected argument 'now'"),
    "unknown field": (
        [*TRAIN, "--config.train.stepz=3"],
        "unknown config field 'train.stepz': did you mean 'train.steps'?",
    ),
    "unknown section": ([*TRAIN, "--config.trian.steps=3"], "did you mean 'train.steps'?"),
    "a section": ([*TRAIN, "--config.train=3"], "--config.train is a section"),
    "text for a number": ([*TRAIN, "--config.train.steps=many"], "train.steps is a whole number"),
    "fraction for a whole number": ([*TRAIN, "--config.train.steps=2.5"], "train.steps is a whole number"),
    "text for a rate": ([*TRAIN, "--config.train.learning_rate=x"], "train.learning_rate is a number"),
    "no value": ([*TRAIN, "--config.train.steps"], "write --config.train.steps=VALUE"),
    "text for a tuple": ([*TRAIN, "--config.model.multipliers=ab"], "a tuple, such as (1, 2)"),
    "batch over devices": (
        [*TRAIN, "--config.train.batch_size=100"],
        "does not divide over 8 devices (parallel.count) x",
    ),
    "batch over parts": ([*TRAIN, "--config.train.accumulate=3"], "make it a multiple of 24"),
    "size that cannot be halved": ([*TRAIN, "--config.data.image_size=9"], "cannot be halved 1 times"),
    "attention at no level": ([*TRAIN, "--config.model.attention_resolutions=(5,)"], "attention_resolutions"),
    "unknown data set": ([*TRAIN, "--config.data.name=digit"], "did you mean 'digits'?"),
    "not prepared": ([*TRAIN, "--config.data.name=cifar10", "--config.data.dir=WORKDIR"], "tfds build cifar10"),
    "emoji not prepared": (
        [
            *TRAIN,
            "--config.data.name=emoji",
            "--config.data.image_size=16",
            "--config.model.attention_resolutions=(8,)",
        ],
        "diffjax.data.prepare emoji",
    ),
    "unwritable workdir": (["train", f"--config={CONFIG}", "--workdir=/proc/nowhere"], "cannot write to --workdir"),
    "sampler steps": ([*TRAIN, "--config.sampler.steps=2000"], "has 1 to 1000 steps, not 2000"),
    "eps without signal": (
        [*TRAIN, "--config.diffusion.parameterization=eps", "--config.diffusion.zero_terminal_snr=True"],
        "where no signal is left (alpha = 0): choose v, x0, flow or edm",
    ),
    "evaluate without a metric": (["evaluate", "--workdir=WORKDIR"], "--metrics is missing"),
    "unknown metric": (["evaluate", "--workdir=WORKDIR", "--metrics=nil"], "did you mean 'nll'?"),
    "evaluate nothing": (["evaluate", "--workdir=WORKDIR", "--metrics=nll"], "is not a run"),
    "optimiser schedule": ([*TRAIN, "--config.train.schedule=cosin"], "did you mean 'cosine'?"),
    "sample from nothing": (["sample", "--workdir=WORKDIR", "--out=x.png"], "is not a run"),
    "sample to nowhere": (["sample", "--workdir=WORKDIR"], "--out is missing"),
    "sample to a jpeg": (["sample", "--workdir=WORKDIR", "--out=x.jpg"], "must end in .png"),
    "no samples": (["sample", "--workdir=WORKDIR", "--out=x.png", "--num=0"], "--num=0"),
    "negative seed": (["sample", "--workdir=WORKDIR", "--out=x.png", "--seed=-1"], "--seed=-1"),
    "override at sampling": (
        ["sample", "--workdir=WORKDIR", "--out=x.png", "--config.seed=1"],
        "takes no config overrides",
    ),
    "a flag for a verb": (["--workdir=WORKDIR"], "--workdir=WORKDIR: the verb comes first"),
    "a field twice": ([*TRAIN, "--config.seed=1", "--config.seed=2"], "--config.seed=2: the field is given twice"),
    "Arabic digits for a field": ([*TRAIN, "--config.train.steps=\u0663"], "train.steps is a whole number"),
    "a seed that repeats another": ([*TRAIN, "--config.seed=4294967296"], "--config.seed=4294967296: a whole number"),
    "a negative seed of a run": ([*TRAIN, "--config.seed=-1"], "--config.seed=-1: a whole number from 0"),
    "a rate that overflows": ([*TRAIN, "--config.train.learning_rate=1e400"], "train.learning_rate is a number"),
    "a field of spaces": ([*TRAIN, "--config.train.steps= "], "train.steps is a whole number"),
    "benchmark to a picture": (["benchmark", f"--config={CONFIG}", "--out=x.png"], "--out=x.png: the name must end in"),
    "steps of no run": (
        ["benchmark", f"--config={CONFIG}", "--communication=2", "--steps=3"],
        "--steps has no effect with --communication",
    ),
    "devices in superscript": (["benchmark", f"--config={CONFIG}", "--communication=\u00b2"], "numbers of devices"),
    "sweep of nothing": (["sweep", "--workdir=WORKDIR", "--steps=5"], "is not a run"),
    "benchmark of nothing": (["benchmark"], "--config is missing"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_one_clear_line(case, tmp_path, capsys):
    arguments, message = CASES[case]
    code = cli.main(["launch.py", *(a.replace("WORKDIR", str(tmp_path / "run")) for a in arguments)])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert message.replace("WORKDIR", str(tmp_path / "run")) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()  # nothing half made


@pytest.mark.parametrize(
    "argument",
    [
        "--steps=21",
        "--steps=2,3",
        "--label=10",
        "--eta=x",
        "--guidance=x",
        "--sampler=dim",
        "--sampler=ddim(eta=x)",
        "--checkpoint=7",
        "--image=test:0",
        "--image=test:1000 --strength=0.5",
        "--image=nowhere.png --strength=0.5",
        "--strength=0.5",
        "--mask=left",
        "--interpolate=3 --image=test:1",
        "--classifier=nowhere",
        "--weak_scale=2",
    ],
)
def test_sample_and_its_run_must_fit(argument, workdir, tmp_path, capsys):
    capsys.readouterr()
    flags = [f"--workdir={workdir}", f"--out={tmp_path}/x.png", *argument.split()]
    assert cli.main(["launch.py", "sample", *flags]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("argument", ["--steps=x", "--steps=21", "--grid=karas", "--split=tset", "--num=0"])
def test_evaluate_and_its_run_must_fit(argument, workdir, capsys):
    capsys.readouterr()
    assert cli.main(["launch.py", "evaluate", f"--workdir={workdir}", "--metrics=nll,reconstruction", argument]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")


@pytest.mark.parametrize(
    ("verb", "flags", "message"),
    [
        ("evaluate", ["--metrics=fid"], "download https://"),
        ("evaluate", ["--metrics=fid", "--inception=nowhere.pth"], "--inception=nowhere.pth: no such file"),
        ("evaluate", ["--metrics=fd_pixels", "--steps=2,3"], "give one value here"),
        ("evaluate", ["--metrics=fd_pixels", "--reference=tset"], "tset"),
        ("evaluate", ["--metrics=rfd_pixels"], "is a run of system=ddpm, without one"),
        ("evaluate", ["--metrics=reconstruction", "--lpips=one.pth"], "name two files, BACKBONE,LINEAR"),
        ("sweep", ["--metrics=fd_pixel", "--steps=2"], "did you mean 'fd_pixels'?"),
        ("sweep", ["--metrics=kid", "--steps=2"], "give --inception=FILE"),
    ],
)
def test_a_measure_and_its_run_must_fit(verb, flags, message, workdir, capsys):
    capsys.readouterr()
    assert cli.main(["launch.py", verb, f"--workdir={workdir}", *flags]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]


@pytest.mark.parametrize(
    ("verb", "flags", "message"),
    [
        ("evaluate", ["--metrics=nll,fid"], "give --inception=FILE"),
        ("evaluate", ["--metrics=nll,captions"], "--metrics=captions: requires text-conditional samples"),
        ("evaluate", ["--metrics=nll,accuracy"], "--metrics=accuracy"),
        ("evaluate", ["--metrics=nll,cmmd"], "--clip=RUN"),
        ("evaluate", ["--metrics=nll,manifold_pixels", "--num=5"], "requires at least 6 images, not 5; raise --num"),
        ("evaluate", ["--metrics=nll,fd_pixels", "--num=3"], "requires at least 4 images"),
        ("evaluate", ["--metrics=nll,fd_pixels", "--reference=tset"], "tset"),
        ("evaluate", ["--metrics=nll,fd_pixels", "--steps=2,3"], "give one value here"),
        ("evaluate", ["--metrics=nll,reconstruction", "--steps=5,21"], "21"),
        (
            "sweep",
            ["--metrics=fd_pixels,captions", "--steps=2"],
            "--metrics=captions: requires text-conditional samples",
        ),
        ("sweep", ["--metrics=fd_pixels,cmmd", "--steps=2"], "--clip=RUN"),
        ("sweep", ["--metrics=kd_pixels", "--steps=2", "--num=3"], "requires at least 4 images"),
        ("sweep", ["--metrics=is", "--steps=2", "--inception=nowhere.pth"], "--inception=nowhere.pth: no such file"),
    ],
)
def test_a_measure_that_cannot_be_is_refused_before_anything_is_computed(
    verb, flags, message, workdir, capsys, monkeypatch
):
    fail = lambda *_, **__: pytest.fail("computed")  # noqa: E731
    monkeypatch.setitem(evaluation.OF_DATA, "nll", {"model": fail})
    monkeypatch.setattr(Generator, "__call__", fail)
    monkeypatch.setattr(samples.Measurer, "__init__", fail)
    capsys.readouterr()
    assert cli.main(["launch.py", verb, f"--workdir={workdir}", *flags]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error


def test_missing_weights_are_found_before_the_run_is_opened(workdir, monkeypatch, capsys):
    for verb in (evaluate, sweep):
        monkeypatch.setattr(verb, "load", lambda *_: pytest.fail("opened"))
    for verb in ("evaluate", "sweep"):
        assert cli.main(["launch.py", verb, f"--workdir={workdir}", "--metrics=fid"]) == 2
        assert "download https://" in capsys.readouterr().err


def test_a_run_without_a_checkpoint(tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(tiny.config()))
    for verb, flag in (("sample", "--out=x.png"), ("sweep", "--steps=2")):
        assert cli.main(["launch.py", verb, f"--workdir={tmp_path}", flag]) == 2
        assert "has no checkpoint yet" in capsys.readouterr().err


def parsed(verb: str, *argv: str) -> flags.Arguments:
    declared = flags.Flags()
    importlib.import_module(f"diffjax.commands.{verb}").define(declared)
    return flags.parse(declared, [verb, *argv])


@pytest.mark.parametrize("blank", ["", " ", "\t"])
@pytest.mark.parametrize("verb", cli.VERBS)
def test_no_flag_of_any_verb_may_be_blank(verb, blank):
    for name in parsed(verb).values:
        with pytest.raises(UserError) as refused:
            parsed(verb, f"--{name}={blank}")
        assert str(refused.value).startswith(f"--{name}="), name


@pytest.mark.parametrize("text", [",", "a,", ",a", "a,,b", "a, ,b"])
@pytest.mark.parametrize("verb", cli.VERBS)
def test_no_entry_of_a_list_may_be_blank(verb, text):
    """The sampler's settings are read where they become a plan's."""
    for name in parsed(verb).values:
        if name in flags._LISTS:
            with pytest.raises(UserError, match=f"--{name}={text}: an entry is empty"):
                parsed(verb, f"--{name}={text}")
    for name in settings.SETTINGS if verb in ("sample", "sweep", "evaluate") else ():
        with pytest.raises(UserError, match=f"--{name}={text}: an entry is empty"):
            settings.values(parsed(verb, f"--{name}={text}"), name)


FLAGS = {
    "twice": (["--num=3", "--num=3"], "--num=3: the flag is given twice"),
    "twice in two forms": (["--invert", "--noinvert"], "the flag is given twice"),
    "unknown": (["--promt=x"], "unknown flag 'promt': did you mean 'prompt'?"),
    "of absl": (["--flagfile=x"], "unknown flag 'flagfile'"),
    "no value": (["--num"], "--num has no value: write --num=VALUE"),
    "no value before a flag": (["--out", "--num=3"], "--out has no value"),
    "a word": (["--num=3", "samples"], "unexpected argument 'samples'"),
    "Arabic digits": (["--num=\u0663"], "--num=\u0663: must be a whole number from 1 to 10,000,000"),
    "spaces": (["--num= 3"], "--num= 3: must be a whole number"),
    "hexadecimal": (["--num=0x10"], "must be a whole number"),
    "a fraction": (["--num=2.5"], "--num=2.5: must be a whole number"),
    "too many": (["--num=99999999999999999999"], "must be a whole number from 1 to 10,000,000"),
    "endless digits": (["--num=" + "9" * 9999], "must be a whole number"),
    "not a number": (["--strength=nan"], "--strength=nan: must be a finite number"),
    "infinite": (["--strength=inf"], "--strength=inf: must be a finite number"),
    "overflow": (["--strength=1e400"], "--strength=1e400: must be a finite number"),
    "underflow": (["--strength=1e-400"], "--strength=1e-400: must be a finite number"),
    "a negative label": (["--label=-1"], "--label=-1: must be a whole number from 0"),
    "a truth value": (["--invert=maybe"], "--invert=maybe: must be true or false"),
    "not UTF-8": (["--prompt=\udcff"], "must be UTF-8"),
}


@pytest.mark.parametrize("case", FLAGS)
def test_a_flag_is_refused_in_one_line(case):
    argv, message = FLAGS[case]
    with pytest.raises(UserError) as refused:
        parsed("sample", *argv)
    assert message in str(refused.value)
    assert len(str(refused.value)) <= 2000 and str(refused.value).isprintable()


def test_the_forms_of_a_flag():
    found = parsed(
        "sample", "--num", "1_000", "-seed=3", "--invert", "--strength=5e-1", "--prompt=a, b,", "--label", "0"
    )
    assert (found.num, found.seed, found.invert, found.strength, found.label) == (1000, 3, True, 0.5, 0)
    assert found.prompt == "a, b,"  # no list
    assert found.given == {"num", "seed", "invert", "strength", "prompt", "label"}
    assert parsed("train", "--noallow_config_change").allow_config_change is False
    found = parsed("train", "--config.train.steps=3", "--allow_config_change=true")
    assert found.overrides == ["--config.train.steps=3"]


@pytest.mark.parametrize("text", ["\u0663", "1e400", "1e-400", "nan", "0x1", "1 0", "", "--1", "1,", "infinity"])
def test_what_is_no_number(text):
    with pytest.raises(ValueError, match=r"number|range"):
        flags.number(text)


def test_numbers():
    texts = ("3", "-0.5", ".5", "5.", "+1e-3", "1_000", "inf", "-inf", "0e-999")
    assert [flags.number(text) for text in texts] == [3, -0.5, 0.5, 5, 1e-3, 1000, math.inf, -math.inf, 0]


# A sampler's settings that are replaced, or have no effect, for a run at guidance 2 in 4 of 20 steps.
NOTES = {
    "--steps=3 --grid=sections(3,2)": "--steps=3: replaced by 5, the steps of the grid",
    "--guidance=1 --guidance_rescale=0.5": "--guidance_rescale=0.5: has no effect at guidance=1",
    "--guidance=1 --guidance_low=0.5": "--guidance_low=0.5: has no effect at guidance=1",
    "--guidance=1 --guidance_high=2": "--guidance_high=2: has no effect at guidance=1",
    "--guidance=2 --guidance_low=2 --guidance_high=1": "no level is between them",
    "--weak=SELF": "--weak: has no effect at weak_scale=1",
    "--steps=3": None,
    "--guidance=1 --weak=SELF --weak_scale=2 --guidance_low=0.5": None,
    "--guidance=2 --guidance_low=0.5 --guidance_rescale=0.1": None,
}


@pytest.mark.parametrize("given", NOTES)
def test_a_setting_without_effect_is_noted_once(given, workdir, capsys):
    arguments = parsed("sample", *given.replace("SELF", str(workdir)).split())
    trained = diffjax.load(workdir)
    system, _ = settings.with_guides(arguments, trained)
    capsys.readouterr()
    for _ in range(2):
        system.plan(trained.config.sampler, **settings.one_cell(arguments))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (NOTES[given] is not None)
    assert all(line.startswith("note: ") and NOTES[given] in line for line in lines)


@pytest.fixture
def undrawn(monkeypatch):
    """Black images in the place of samples, and the batch sizes that were asked for."""
    sizes = []

    def init(self, system, *, batch_size):
        sizes.append(batch_size)

    def call(self, variables, seeds, condition, plan, progress):
        return np.zeros((len(seeds), 8, 8, 1), np.uint8)

    monkeypatch.setattr(Generator, "__init__", init)
    monkeypatch.setattr(Generator, "__call__", call)
    return sizes


SAMPLE_NOTES = {
    "--num=4 --batch_size=9": (4, "--batch_size=9: the samples, 4, are drawn in one batch"),
    "--num=20 --batch_size=12": (12, "--batch_size=12: rounded up to 16, as a batch is divided over 8 devices"),
    "--num=20 --batch_size=16": (16, None),
    "--num=4": (4, None),
    "--num=4 --image=test:0 --strength=0.6": (4, "--strength=0.6: rounded to whole steps, the last 2 of 4"),
    "--num=4 --image=test:0 --strength=0.01": (4, "--strength=0.01: rounded to whole steps, the last 1 of 4"),
    "--num=4 --image=test:0 --strength=0.5": (4, None),
}


@pytest.mark.parametrize("given", SAMPLE_NOTES)
def test_what_sample_rounds_is_noted(given, undrawn, workdir, tmp_path, capsys):
    size, message = SAMPLE_NOTES[given]
    assert launch("sample", f"--workdir={workdir}", f"--out={tmp_path}/x.png", *given.split()) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert undrawn == [size]
    assert notes == ([f"note: {message}"] if message else [])


def test_no_file_beside_the_output_is_touched(undrawn, workdir, tmp_path):
    names = ["a.new", "a.tmp", "a.png.new", "a.png.tmp", "a.npz.npz", ".a.png.tmp", "a"]
    for name in names:
        (tmp_path / name).write_text(name)
    for out in ("a.png", "a.npz"):
        assert launch("sample", f"--workdir={workdir}", f"--out={tmp_path}/{out}", "--num=2") == 0
    assert {path.name for path in tmp_path.iterdir()} == {*names, "a.png", "a.npz"}
    assert all((tmp_path / name).read_text() == name for name in names)


def test_a_class_conditional_stage_has_the_label_of_its_picture(workdir):
    run = diffjax.load(workdir)
    digits = data.open_source("digits", directory="", split="test", image_size=8, background="white")
    assert edits._label(parsed("sample", "--image=test:3"), run) == digits.__getitems__([3])[0]["label"]
    assert edits._label(parsed("sample", "--image=test:3", "--label=4"), run) == 4
    with pytest.raises(UserError, match="--label is missing"):
        edits._label(parsed("sample", "--image=x.png"), run)


def test_seeds_beyond_32_bits_would_repeat_others(workdir):
    run = diffjax.load(workdir)
    draw = Generator(run.system, batch_size=8)
    for seeds in ([0, 2**32], [-1]):
        with pytest.raises(UserError, match=r"must be below 2\*\*32"):
            draw(run.variables, seeds, {"label": np.zeros(len(seeds), np.int32)}, None)


OPENED = {
    "--image=none.png --strength=0.5": "--image=none.png: there is no such file; name an image file, or SPLIT:INDEX",
    "--image=TMP --strength=0.5": "--image=TMP: is a folder",
    "--image=test:0 --mask=lft": "--mask=lft: there is no such file; name an image file, or left, right",
    "--image=test:0,none.png --interpolate=3": "--image=none.png: there is no such file",
    "--label=10": "--label=10: this run has the classes 0 to 9",
    "--classifier=TMP": "TMP is not a run",
    "--weak=TMP": "TMP is not a run",
    "--clip=TMP": "TMP is not a run",
    "--prompts=none.txt": "cannot read --prompts=none.txt",
    "--out=TMP/folder.png": "--out=TMP/folder.png: is a folder; name a file",
    "--out=TMP/file/x.png": "cannot write to --out=TMP/file/x.png",
    "--out=/proc/none/x.png": "cannot write to --out=/proc/none/x.png",
    "--out=TMP/NAME.png": "cannot write to --out=TMP/",
}


@pytest.mark.parametrize("given", OPENED)
def test_a_bad_file_or_label_is_refused_before_the_run_is_opened(given, workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sample, "load", lambda *_: pytest.fail("the run was opened"))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    out = [] if "--out" in given else [f"--out={tmp_path}/new/deep/x.png"]
    argv = [flag.replace("TMP", str(tmp_path)).replace("NAME", "x" * 300) for flag in [*given.split(), *out]]
    assert launch("sample", f"--workdir={workdir}", *argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert OPENED[given].replace("TMP", str(tmp_path)) in error
    assert sorted(tmp_path.iterdir()) == before  # no folder of --out is left


def test_a_value_that_is_listed_twice_is_noted(capsys):
    arguments = parsed("sweep", "--steps=5,7,5", "--eta=0")
    assert [cell["steps"] for cell in settings.cells(arguments)] == [5, 7]
    assert capsys.readouterr().err == "note: --steps=5,7,5: a value is listed twice, and drawn once\n"


def test_an_option_is_set_in_one_place(workdir, tmp_path, capsys):
    for verb, out in (("sample", [f"--out={tmp_path}/x.png"]), ("sweep", [])):
        assert launch(verb, f"--workdir={workdir}", "--sampler=ddim(eta=0.5)", "--eta=1", *out) == 2
        assert "--sampler=ddim(eta=0.5): eta is also set by its own flag" in capsys.readouterr().err


def test_a_message_is_one_printable_line_of_bounded_length():
    error = UserError("a\n  b\r\n\tc\u2028d\x1b[31m\x00\u202ee\n" + "x" * 10**6 + "; do this")
    assert str(error).startswith(r"a b c d\x1b[31m\x00\u202ee xxx") and str(error).endswith("x; do this")
    assert str(error).isprintable() and len(str(error)) == 2000
    assert str(UserError("ü  £ 日本")) == "ü  £ 日本"  # spaces stay: a path may have them
    assert printable("a\nb\tc") == "a\nb\\tc"


def test_control_characters_of_a_file_do_not_reach_the_terminal(tmp_path, capsys):
    broken = tmp_path / "a\x1b[2Jb"
    broken.mkdir()
    (broken / "config.json").write_text('{"system": "\\u001b[31mred"}')
    assert launch("sample", f"--workdir={broken}", "--out=x.png") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.strip("\n").isprintable()


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("verb", ["sample", "sweep", "evaluate", "export"])
def test_a_signal_is_one_line(verb, stop, code, workdir, tmp_path, capsys, monkeypatch):
    def killed(*_, **__):
        os.kill(os.getpid(), stop)
        time.sleep(60)

    module = importlib.import_module(f"diffjax.commands.{verb}")
    monkeypatch.setattr(module, "load", killed)
    argv = {
        "sample": [f"--out={tmp_path}/x.png"],
        "sweep": ["--steps=2"],
        "evaluate": ["--metrics=fd_pixels"],
        "export": [f"--out={tmp_path}/x"],
    }
    assert launch(verb, f"--workdir={workdir}", *argv[verb]) == code
    said = capsys.readouterr()
    assert said.err.startswith("stopped by ") and said.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def in_process(*argv: str, **environment: str) -> subprocess.CompletedProcess:
    """`launch.py` in a shell, as redirections need; empty variables of `environment` are unset."""
    variables = {**os.environ, "PYTHONPATH": str(tiny.ROOT), "XLA_FLAGS": "", **environment}
    command = " ".join([sys.executable, str(tiny.ROOT / "launch.py"), *argv])
    return subprocess.run(["bash", "-c", command], env=variables, capture_output=True, text=True, timeout=120)


ENVIRONMENTS = {
    "unknown platform": ({"JAX_PLATFORMS": "nonsense"}, "JAX_PLATFORMS=nonsense: "),
    "platform that is not there": ({"JAX_PLATFORMS": "rocm"}, "JAX_PLATFORMS=rocm: "),
    "unknown flag of XLA": ({"XLA_FLAGS": "--nonsense"}, "XLA_FLAGS=--nonsense: Unknown flag in XLA_FLAGS"),
    "no flag of XLA": ({"XLA_FLAGS": "nonsense"}, "XLA_FLAGS=nonsense: "),
    "bad value for XLA": ({"XLA_FLAGS": "--xla_force_host_platform_device_count=x"}, "interpret value x for flag"),
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_a_broken_environment_is_one_line(case, workdir, tmp_path):
    environment, message = ENVIRONMENTS[case]
    done = in_process("sample", f"--workdir={workdir}", f"--out={tmp_path}/x.png", **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


STREAMS = {
    "closed": ("--help >&-", 0, ""),
    "both closed": ("trian >&- 2>&-", 2, ""),
    "full": ("--help >/dev/full", 2, "error: [Errno 28] No space left on device\n"),
    "a reader that leaves": ("--help | true; exit ${PIPESTATUS[0]}", 0, ""),
    "errors to a reader that leaves": ("trian 2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", 2, ""),
}


@pytest.mark.parametrize("case", STREAMS)
def test_streams_that_do_not_take_what_is_written(case):
    argv, code, error = STREAMS[case]
    done = in_process(argv)
    assert (done.returncode, done.stderr) == (code, error)


def test_what_an_encoding_lacks_is_escaped(tmp_path, capsys, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with cli._output():
        print("grün \x1b[31m\nred")
    stream.flush()
    assert stream.buffer.getvalue() == b"gr\\xfcn \\x1b[31m\nred\n"


def test_only_a_progress_bar_moves_the_cursor(capsys):
    with cli._output():
        print("\r50%\n\x1b[A\x1b[2Jred", file=sys.stderr)
        print("\r50%\n\x1b[A\x1b[2Jred")
    said = capsys.readouterr()
    assert said.err == "\r50%\n\x1b[A\\x1b[2Jred\n"
    assert said.out == "\\r50%\n\\x1b[A\\x1b[2Jred\n"


def test_a_first_answer_does_not_wait_for_jax():
    code = "import sys; from diffjax import commands; codes = [commands.main(argv) for argv in ARGV]"
    code = code.replace(
        "ARGV", repr([["launch.py"], ["launch.py", "-h"], ["launch.py", "trian"], ["launch.py", "--x"]])
    )
    code += "; print(codes, 'jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.stdout.endswith("[2, 0, 2, 2] False\n")


@pytest.mark.parametrize("verb", [None, *cli.VERBS])
def test_help_is_readable(verb, capsys):
    assert cli.main(["launch.py", *([verb] if verb else []), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("usage: python launch.py") == 1
    assert "absl" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_config_that_is_cut_short(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"seed": 0, "tra')
    assert cli.main(["launch.py", "sample", f"--workdir={tmp_path}", "--out=x.png"]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_a_config_that_lacks_a_field(tmp_path, capsys):
    config = tiny.config().unlock()
    del config.diffusion["timesteps"]
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\ninf = float('inf')\n"
        f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    assert cli.main(["launch.py", "train", f"--config={tmp_path}/c.py", f"--workdir={tmp_path}/run"]) == 2
    assert capsys.readouterr().err.startswith("error: the config has no field 'timesteps'")
