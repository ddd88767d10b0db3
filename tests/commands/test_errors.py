"""Bad input is one line that says what to do, exit code 2, and no traceback."""

import pytest

from diffjax import commands
from tests import tiny

CONFIG = str(tiny.ROOT / "configs" / "digits.py")
TRAIN = ["train", f"--config={CONFIG}", "--workdir=WORKDIR"]

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
    "sweep of nothing": (["sweep", "--workdir=WORKDIR", "--steps=5"], "is not a run"),
    "benchmark of nothing": (["benchmark"], "--config is missing"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_one_clear_line(case, tmp_path, capsys):
    arguments, message = CASES[case]
    code = commands.main(["launch.py", *(a.replace("WORKDIR", str(tmp_path / "run")) for a in arguments)])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
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
    assert commands.main(["launch.py", "sample", *flags]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("argument", ["--steps=x", "--steps=21", "--grid=karas", "--split=tset", "--num=0"])
def test_evaluate_and_its_run_must_fit(argument, workdir, capsys):
    capsys.readouterr()
    assert (
        commands.main(["launch.py", "evaluate", f"--workdir={workdir}", "--metrics=nll,reconstruction", argument]) == 2
    )
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert error[0].startswith("error: ")


@pytest.mark.parametrize(
    ("verb", "flags", "message"),
    [
        ("evaluate", ["--metrics=fid"], "download https://"),
        ("evaluate", ["--metrics=fid", "--inception=nowhere.pth"], "cannot read nowhere.pth"),
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
    assert commands.main(["launch.py", verb, f"--workdir={workdir}", *flags]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]


def test_a_run_without_a_checkpoint(tmp_path, capsys):
    (tmp_path / "config.json").write_text(tiny.config().to_json())
    for verb, flag in (("sample", "--out=x.png"), ("sweep", "--steps=2")):
        assert commands.main(["launch.py", verb, f"--workdir={tmp_path}", flag]) == 2
        assert "has no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [None, *commands.VERBS])
def test_help_is_readable(verb, capsys):
    assert commands.main(["launch.py", *([verb] if verb else []), "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("usage: python launch.py") == 1
    assert "absl" not in text
    assert max(map(len, text.splitlines())) <= 120


def test_a_config_that_is_cut_short(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"seed": 0, "tra')
    assert commands.main(["launch.py", "sample", f"--workdir={tmp_path}", "--out=x.png"]) == 2
    assert "is not JSON" in capsys.readouterr().err


def test_a_config_that_lacks_a_field(tmp_path, capsys):
    config = tiny.config().unlock()
    del config.diffusion["timesteps"]
    (tmp_path / "c.py").write_text(
        "from ml_collections import ConfigDict\ninf = float('inf')\n"
        f"def get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    assert commands.main(["launch.py", "train", f"--config={tmp_path}/c.py", f"--workdir={tmp_path}/run"]) == 2
    assert capsys.readouterr().err.startswith("error: the config has no field 'timesteps'")
