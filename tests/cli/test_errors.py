"""Bad input is reported in one line with the remedy and exit code 2, without a traceback."""

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
from diffjax.cli import export, flags, settings
from diffjax.errors import UserError, printable
from diffjax.evaluation import samples
from diffjax.inference import edits, overrides
from diffjax.inference.guidance_models import attach_guidance_models
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.runs.config_files import to_json
from tests import tiny
from tests.command_line import launch, parsed, refused

CONFIG = str(tiny.ROOT / "configs" / "digits.py")
TRAIN = ["train", f"--config={CONFIG}", "--workdir=WORKDIR"]


CASES = {
    "no such verb": (["trian"], "unknown verb 'trian': did you mean 'train'?"),
    "no such flag": ([*TRAIN, "--workdirs=x"], "unknown flag 'workdirs': did you mean 'workdir'?"),
    "no workdir": (["train", f"--config={CONFIG}"], "--workdir is missing"),
    "no config": (["train", "--workdir=WORKDIR"], "--config is missing; add it, such as --config=configs/digits.py"),
    "no such config": (["train", "--config=nowhere.py", "--workdir=WORKDIR"], "cannot read --config=nowhere.py"),
    "stray word": ([*TRAIN, "now"], "unexpected argument 'now'"),
    "unknown field": (
        [*TRAIN, "--config.train.stepz=3"],
        "unknown config field 'train.stepz': did you mean 'train.steps'?",
    ),
    "unknown section": ([*TRAIN, "--config.trian.steps=3"], "did you mean 'train.steps'?"),
    "a section": ([*TRAIN, "--config.train=3"], "--config.train is a section"),
    "text for a number": ([*TRAIN, "--config.train.steps=many"], "train.steps must be a whole number"),
    "fraction for a whole number": ([*TRAIN, "--config.train.steps=2.5"], "train.steps must be a whole number"),
    "text for a rate": ([*TRAIN, "--config.train.learning_rate=x"], "train.learning_rate must be a number"),
    "no value": ([*TRAIN, "--config.train.steps"], "write --config.train.steps=VALUE"),
    "no name of a policy": (
        [*TRAIN, "--config.model.remat"],
        "write --config.model.remat=VALUE: values of blocks kept for gradients: none (all) | dots",
    ),
    "unknown policy": ([*TRAIN, "--config.model.remat=true"], "remat='true': choose from none, blocks, dots"),
    "text for a tuple": ([*TRAIN, "--config.model.multipliers=ab"], "a tuple, such as (1, 2)"),
    "batch over devices": (
        [*TRAIN, "--config.train.batch_size=100"],
        "cannot be divided over 8 devices (parallel.num_devices)",
    ),
    "batch over parts": ([*TRAIN, "--config.train.accumulate=3"], "make it a multiple of 24"),
    "size that cannot be halved": (
        [*TRAIN, "--config.data.image_size=9"],
        "must be a multiple of 2, as model.multipliers halves",
    ),
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
    "unwritable workdir": (
        ["train", f"--config={CONFIG}", "--workdir=/proc/nowhere"],
        "nowhere: cannot be written",
    ),
    "sampler steps": ([*TRAIN, "--config.sampler.steps=2000"], "has 1 to 1000 steps, not 2000"),
    "eps without signal": (
        [*TRAIN, "--config.diffusion.parameterization=eps", "--config.diffusion.zero_terminal_snr=True"],
        "where no signal is left (alpha = 0); choose v, x0, flow, edm or consistency",
    ),
    "evaluate without a metric": (["evaluate", "--workdir=WORKDIR"], "--metrics is missing"),
    "unknown metric": (["evaluate", "--workdir=WORKDIR", "--metrics=nil"], "did you mean 'nll'?"),
    "evaluate nothing": (["evaluate", "--workdir=WORKDIR", "--metrics=nll"], "is not a run"),
    "learning-rate schedule": ([*TRAIN, "--config.train.learning_rate_schedule=cosin"], "did you mean 'cosine'?"),
    "sample from nothing": (["sample", "--workdir=WORKDIR", "--out=x.png"], "is not a run"),
    "sample to the folder of no run": (["sample", "--workdir=WORKDIR"], "is not a run"),
    "sample to a GIF": (["sample", "--workdir=WORKDIR", "--out=x.gif"], "must end in .png"),
    "no samples": (["sample", "--workdir=WORKDIR", "--out=x.png", "--num=0"], "--num=0"),
    "negative seed": (["sample", "--workdir=WORKDIR", "--out=x.png", "--seed=-1"], "--seed=-1"),
    "override at sampling": (
        ["sample", "--workdir=WORKDIR", "--out=x.png", "--config.seed=1"],
        "takes no config overrides",
    ),
    "a flag for a verb": (["--workdir=WORKDIR"], "--workdir=WORKDIR: the verb comes first"),
    "a field twice": ([*TRAIN, "--config.seed=1", "--config.seed=2"], "--config.seed=2: the field is set twice"),
    "Arabic digits for a field": ([*TRAIN, "--config.train.steps=\u0663"], "train.steps must be a whole number"),
    "a seed that repeats another": (
        [*TRAIN, "--config.seed=4294967296"],
        "--config.seed=4294967296: must be a whole number",
    ),
    "a negative seed of a run": ([*TRAIN, "--config.seed=-1"], "--config.seed=-1: must be a whole number from 0"),
    "a rate that overflows": ([*TRAIN, "--config.train.learning_rate=1e400"], "train.learning_rate must be a number"),
    "a field of spaces": ([*TRAIN, "--config.train.steps= "], "train.steps must be a whole number"),
    "benchmark to an image": (["benchmark", f"--config={CONFIG}", "--out=x.png"], "--out=x.png: the name must end in"),
    "steps of no run": (
        ["benchmark", f"--config={CONFIG}", "--communication=2", "--steps=3"],
        "--steps: has no effect with --communication",
    ),
    "devices in superscript": (
        ["benchmark", f"--config={CONFIG}", "--communication=\u00b2"],
        "must be numbers of devices",
    ),
    "sweep of nothing": (["sweep", "--workdir=WORKDIR", "--steps=5"], "is not a run"),
    "benchmark of nothing": (["benchmark"], "--config is missing"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_bad_input_is_reported_in_one_line(case, tmp_path, capsys):
    arguments, message = CASES[case]
    code = cli.main(["launch.py", *(a.replace("WORKDIR", str(tmp_path / "run")) for a in arguments)])
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert message.replace("WORKDIR", str(tmp_path / "run")) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()  # no partial run


@pytest.fixture(scope="module")
def opened(workdir):
    return diffjax.load(workdir)


@pytest.fixture
def without_loading(opened, monkeypatch):
    """Returns the run loaded once, in the place of loading it for each command."""
    monkeypatch.setattr(
        settings, "load", lambda path, step=None, **_: opened if step is None else diffjax.load(path, step)
    )


# Flags of `sample` that do not fit a class-conditional diffusion model of digits at 4 of 20 steps.
SAMPLE_CASES = {
    "--steps=21": "21",
    "--steps=2,3": "--steps=2,3: must be one value",
    "--label=10": "--label=10: must be from 0 to 9",
    "--eta=x": "--eta=x: must be numbers",
    "--guidance=x": "--guidance=x: must be numbers",
    "--sampler=dim": "did you mean 'ddim'?",
    "--sampler=ddim(eta=x)": "sampler='ddim(eta=x)'",
    "--checkpoint=7": "7",
    "--image=test:0": "requires --strength (to edit it), --mask (to inpaint it), --measure (to restore it) or",
    "--measure=blur": "--measure: requires --image",
    "--image=test:0 --strength=0.5 --inverse=dps": "--inverse: requires --measure",
    "--image=test:0 --measure=blur --strength=0.5": "--strength: is not supported with --measure",
    "--image=test:0 --measure=blr": "did you mean 'blur'?",
    "--image=test:0 --measure=blur(sigma=0)": "--measure=blur, sigma=0: must be a finite number above 0",
    "--image=test:0 --measure=grey": "--measure=grey: requires images of 3 channels, not 1",
    "--image=test:0 --measure=downsample(factor=3)": "factor=3: must be a whole number that divides the sides 8 and 8",
    "--image=test:0 --measure=mask": "--measure=mask: requires --mask",
    "--image=test:0 --measure=matrix": "--measure=matrix: requires a file, --measure=FILE.npy",
    "--image=test:0 --measure=nowhere.npy": "--measure=nowhere.npy: there is no such file",
    "--image=test:0 --measure=blur --mask=left": "--mask: is not supported with --measure=blur",
    "--image=test:0 --measure=blur --inverse=ddrm": "unknown --inverse 'ddrm'",
    "--image=test:0 --measure=blur --inverse=dps(scale=-1)": "--inverse=dps, scale=-1: must be a finite number from 0",
    "--image=test:0 --measure=blur --measure_noise=-1": "--measure_noise=-1: must be a finite number from 0",
    "--image=test:1000 --strength=0.5": "--image=test:1000: must be below test:360",
    "--image=nowhere.png --strength=0.5": "--image=nowhere.png: there is no such file",
    "--strength=0.5": "--strength: requires --image",
    "--mask=left": "--mask: requires --image",
    "--image=test:0 --mask=left --strength=0.5": "--strength: is not supported with --mask",
    "--image=test:0 --strength=0.5 --resample_steps=2": "--resample_steps: is not supported with --strength",
    "--interpolate=3 --image=test:1": "requires two images",
    "--classifier=nowhere": "nowhere",
    "--weak_scale=2": "--weak_scale: requires --weak=RUN",
    "--clip_scale=2": "requires a pipeline with a noised_clip stage",
    "--invert": "--invert: requires an unCLIP pipeline (this run: system=ddpm)",
    "--components=1": "--components: requires an unCLIP pipeline",
    "--prompt=x": "--prompt: requires a text-conditioned model (this run: system=ddpm)",
    "--best_of=4": "--best_of: requires a text-conditioned model",
    "--initial_image=test:0": "--initial_image: requires a prior over codes",
    "--keep_fraction=0.5": "--keep_fraction: requires --initial_image",
}


@pytest.mark.parametrize("flags", SAMPLE_CASES)
def test_flags_of_sample_that_do_not_fit_the_run(flags, workdir, without_loading, tmp_path, capsys):
    error = refused(capsys, "sample", f"--workdir={workdir}", f"--out={tmp_path}/x.png", *flags.split())
    assert SAMPLE_CASES[flags] in error
    assert not (tmp_path / "x.png").exists()


METRIC_CASES = [
    ("evaluate", "nll,reconstruction", ["--steps=x"], "--steps=x"),
    ("evaluate", "nll,reconstruction", ["--steps=5,21"], "21"),
    ("evaluate", "nll,reconstruction", ["--grid=karas"], "karas"),
    ("evaluate", "nll,reconstruction", ["--split=tset"], "tset"),
    ("evaluate", "nll,reconstruction", ["--num=0"], "--num=0"),
    ("evaluate", "reconstruction", ["--lpips=one.pth"], "must be two files, BACKBONE,LINEAR"),
    ("evaluate", "nll,fid", [], "--inception=FILE"),
    ("evaluate", "fid", ["--inception=nowhere.pth"], "--inception=nowhere.pth: no such file"),
    ("evaluate", "recon_fd_pixels", [], "--metrics=recon_fd_pixels"),
    ("evaluate", "nll,caption_accuracy", [], "--metrics=caption_accuracy: requires text-conditional samples"),
    ("evaluate", "nll,accuracy", [], "--metrics=accuracy"),
    ("evaluate", "nll,cmmd", [], "--clip=RUN"),
    ("evaluate", "nll,precision_recall_pixels", ["--num=5"], "requires at least 6 images, not 5; raise --num"),
    ("evaluate", "nll,fd_pixels", ["--num=3"], "requires at least 4 images"),
    ("evaluate", "nll,fd_pixels", ["--reference=tset"], "tset"),
    ("evaluate", "nll,fd_pixels", ["--reference=gone.npz"], "--reference=gone.npz: cannot be read: No such file"),
    ("evaluate", "fd_pixels", ["--reference=img512.pkl"], "--reference=img512.pkl: pickles are not supported"),
    ("evaluate", "nll,fd_dinov2", [], "pass --dinov2=DIR"),
    ("evaluate", "nll,fd_pixels", ["--steps=2,3"], "must be one value"),
    ("sweep", "fd_pixel", ["--steps=2"], "did you mean 'fd_pixels'?"),
    ("sweep", "kid", ["--steps=2"], "--inception=FILE"),
    ("sweep", "kd_dinov2", ["--steps=2", "--dinov2=nowhere"], "--dinov2=nowhere: no such folder"),
    ("sweep", "fd_pixels", ["--steps=2", "--reference=gone.npz"], "--reference=gone.npz: cannot be read"),
    ("sweep", "fd_pixels,caption_accuracy", ["--steps=2"], "--metrics=caption_accuracy: requires text-conditional"),
    ("sweep", "fd_pixels,cmmd", ["--steps=2"], "--clip=RUN"),
    ("sweep", "kd_pixels", ["--steps=2", "--num=3"], "requires at least 4 images"),
    ("sweep", "is", ["--steps=2", "--inception=nowhere.pth"], "--inception=nowhere.pth: no such file"),
]


@pytest.mark.parametrize(("verb", "metrics", "flags", "message"), METRIC_CASES)
def test_unsupported_metrics_are_refused_before_anything_is_computed(
    verb, metrics, flags, message, workdir, without_loading, capsys, monkeypatch
):
    def fail(*_, **__):
        pytest.fail("computed")

    monkeypatch.setattr(SampleRunner, "__call__", fail)
    monkeypatch.setattr(samples.Measurer, "__init__", fail)
    monkeypatch.setattr(evaluation, "evaluate", fail)
    assert message in refused(capsys, verb, f"--workdir={workdir}", f"--metrics={metrics}", *flags)


def test_missing_weights_are_reported_before_the_run_is_loaded(workdir, monkeypatch, capsys):
    monkeypatch.setattr(settings, "load", lambda *_, **__: pytest.fail("loaded"))
    for verb in ("evaluate", "sweep"):
        assert cli.main(["launch.py", verb, f"--workdir={workdir}", "--metrics=fid"]) == 2
        assert "download https://" in capsys.readouterr().err


def test_a_run_without_a_checkpoint(tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(tiny.config()))
    for verb, flag in (("sample", "--out=x.png"), ("sweep", "--steps=2")):
        assert cli.main(["launch.py", verb, f"--workdir={tmp_path}", flag]) == 2
        assert "has no checkpoint yet" in capsys.readouterr().err


@pytest.mark.parametrize("blank", ["", " ", "\t"])
@pytest.mark.parametrize("verb", cli.VERBS)
def test_blank_flags_are_refused(verb, blank):
    for name in parsed(verb).values:
        with pytest.raises(UserError) as raised:
            parsed(verb, f"--{name}={blank}")
        assert str(raised.value).startswith(f"--{name}="), name


@pytest.mark.parametrize("text", [",", "a,", ",a", "a,,b", "a, ,b"])
@pytest.mark.parametrize("verb", cli.VERBS)
def test_blank_entries_of_lists_are_refused(verb, text):
    """Sampling settings are parsed later than other flags."""
    for name in parsed(verb).values:
        if name in flags._LISTS:
            with pytest.raises(UserError, match=f"--{name}={text}: an entry is empty"):
                parsed(verb, f"--{name}={text}")
    for name in overrides.SETTINGS if verb in ("sample", "sweep", "evaluate") else ():
        with pytest.raises(UserError, match=f"--{name}={text}: an entry is empty"):
            overrides.setting_values(name, text)


FLAGS = {
    "twice": (["--num=3", "--num=3"], "--num=3: the flag is set twice"),
    "twice in two forms": (["--invert", "--noinvert"], "the flag is set twice"),
    "unknown": (["--promt=x"], "unknown flag 'promt': did you mean 'prompt'?"),
    "of absl": (["--flagfile=x"], "unknown flag 'flagfile'"),
    "no value": (["--num"], "--num has no value; write --num=VALUE"),
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
def test_bad_flags_are_refused_in_one_line(case):
    argv, message = FLAGS[case]
    with pytest.raises(UserError) as raised:
        parsed("sample", *argv)
    assert message in str(raised.value)
    assert len(str(raised.value)) <= 2000 and str(raised.value).isprintable()


def test_forms_of_flags():
    parsed_flags = parsed(
        "sample", "--num", "1_000", "-seed=3", "--invert", "--strength=5e-1", "--prompt=a, b,", "--label", "0"
    )
    assert (parsed_flags.num, parsed_flags.seed, parsed_flags.invert, parsed_flags.strength, parsed_flags.label) == (
        1000,
        3,
        True,
        0.5,
        0,
    )
    assert parsed_flags.prompt == "a, b,"  # not a list
    assert parsed_flags.given_flags == {"num", "seed", "invert", "strength", "prompt", "label"}
    assert parsed("train", "--noallow_config_change").allow_config_change is False
    parsed_flags = parsed("train", "--config.train.steps=3", "--allow_config_change=true")
    assert parsed_flags.overrides == ["--config.train.steps=3"]


@pytest.mark.parametrize("text", ["\u0663", "1e400", "1e-400", "nan", "0x1", "1 0", "", "--1", "1,", "infinity"])
def test_text_that_is_not_a_number(text):
    with pytest.raises(ValueError, match=r"number|range"):
        flags.number(text)


def test_numbers():
    texts = ("3", "-0.5", ".5", "5.", "+1e-3", "1_000", "inf", "-inf", "0e-999")
    assert [flags.number(text) for text in texts] == [3, -0.5, 0.5, 5, 1e-3, 1000, math.inf, -math.inf, 0]


# Settings that are replaced or have no effect, for a run at guidance 2 in 4 of 20 steps.
NOTES = {
    "--steps=3 --grid=sections(3,2)": "--steps=3: replaced by 5, the number of steps of the grid",
    "--guidance=1 --guidance_rescale=0.5": "--guidance_rescale=0.5: has no effect at guidance=1",
    "--guidance=1 --guidance_low=0.5": "--guidance_low=0.5: has no effect at guidance=1",
    "--guidance=1 --guidance_high=2": "--guidance_high=2: has no effect at guidance=1",
    "--guidance=1 --guidance_rule=adaptive_projected(eta=0)": "_projected(eta=0): has no effect at guidance=1",
    "--guidance=1 --guidance_schedule=linear": "--guidance_schedule=linear: has no effect at guidance=1",
    "--guidance=1 --weak=SELF --weak_scale=2 --guidance_schedule=linear": None,
    "--perturbation=skip_blocks(0)": "--perturbation=skip_blocks(0): has no effect at perturbed_scale=1",
    "--first_scale=2": "--first_scale=2: has no effect without a first_condition",
    "--perturbed_scale=2": "--perturbed_scale=2: has no effect at perturbation=none",
    "--guidance=1 --perturbation=skip_blocks(0) --perturbed_scale=2 --guidance_low=0.5": None,
    "--guidance=2 --guidance_low=2 --guidance_high=1": "the interval is empty",
    "--weak=SELF": "--weak: has no effect at weak_scale=1",
    "--steps=3": None,
    "--guidance=1 --weak=SELF --weak_scale=2 --guidance_low=0.5": None,
    "--guidance=2 --guidance_low=0.5 --guidance_rescale=0.1": None,
}


@pytest.mark.parametrize("flag_text", NOTES)
def test_settings_without_effect_are_noted_once(flag_text, workdir, opened, capsys):
    arguments = parsed("sample", *flag_text.replace("SELF", str(workdir)).split())
    model, _ = attach_guidance_models(opened, arguments.as_dict())
    make_settings = overrides.SettingsFactory(model, opened.config.sampler)
    capsys.readouterr()
    for _ in range(2):
        make_settings(**overrides.single_setting(arguments.as_dict()))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (NOTES[flag_text] is not None)
    assert all(line.startswith("note: ") and NOTES[flag_text] in line for line in lines)


@pytest.fixture
def black_samples(monkeypatch, without_loading):
    """Replaces samples by black images; returns the batch sizes."""
    sizes = []

    def init(self, system, *, batch_size):
        sizes.append(batch_size)
        self.evaluations = None

    def call(self, variables, seeds, conditions, settings, progress, listener):
        return np.zeros((len(seeds), 8, 8, 1), np.uint8)

    monkeypatch.setattr(SampleRunner, "__init__", init)
    monkeypatch.setattr(SampleRunner, "__call__", call)
    return sizes


SAMPLE_NOTES = {
    "--num=4 --batch_size=9": (4, "--batch_size=9: there are 4 samples, in one batch"),
    "--num=20 --batch_size=12": (12, "--batch_size=12: rounded up to 16, a multiple of the 8 devices"),
    "--num=20 --batch_size=16": (16, None),
    "--num=4": (4, None),
    "--num=4 --image=test:0 --strength=0.6": (4, "--strength=0.6: rounded to whole steps, the last 2 of 4"),
    "--num=4 --image=test:0 --strength=0.01": (4, "--strength=0.01: rounded to whole steps, the last 1 of 4"),
    "--num=4 --image=test:0 --strength=0.5": (4, None),
}


@pytest.mark.parametrize("flag_text", SAMPLE_NOTES)
def test_rounding_by_sample_is_noted(flag_text, black_samples, workdir, tmp_path, capsys):
    size, message = SAMPLE_NOTES[flag_text]
    assert launch("sample", f"--workdir={workdir}", f"--out={tmp_path}/x.png", *flag_text.split()) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert black_samples == [size]
    assert notes == ([f"note: {message}"] if message else [])


def test_sample_changes_no_other_file(black_samples, workdir, tmp_path):
    names = ["a.new", "a.tmp", "a.png.new", "a.png.tmp", "a.npz.npz", ".a.png.tmp", "a"]
    for name in names:
        (tmp_path / name).write_text(name)
    for out in ("a.png", "a.npz"):
        assert launch("sample", f"--workdir={workdir}", f"--out={tmp_path}/{out}", "--num=2") == 0
    assert {path.name for path in tmp_path.iterdir()} == {*names, "a.png", "a.npz"}
    assert all((tmp_path / name).read_text() == name for name in names)


def test_variations_have_the_label_of_their_image(opened):
    run = opened
    digits = data.open_dataset("digits", directory="", split="test", image_size=8, background="white")
    assert edits.image_label(parsed("sample", "--image=test:3"), run) == digits.__getitems__([3])[0]["label"]
    assert edits.image_label(parsed("sample", "--image=test:3", "--label=4"), run) == 4
    with pytest.raises(UserError, match="--label is missing"):
        edits.image_label(parsed("sample", "--image=x.png"), run)


def test_seeds_of_more_than_32_bits_are_refused(opened):
    run = opened
    draw = SampleRunner(run.system, batch_size=8)
    for seeds in ([0, 2**32], [-1]):
        with pytest.raises(UserError, match=r"must be below 2\*\*32"):
            draw(run.variables, seeds, {"label": np.zeros(len(seeds), np.int32)}, None)


FILE_CASES = {
    "--image=none.png --strength=0.5": "--image=none.png: there is no such file; name an image file, or SPLIT:INDEX",
    "--image=TMP --strength=0.5": "--image=TMP: is a folder",
    "--image=test:0 --mask=lft": "--mask=lft: there is no such file; name an image file, or left, right",
    "--image=test:0,none.png --interpolate=3": "--image=none.png: there is no such file",
    "--label=10": "--label=10: must be from 0 to 9",
    "--classifier=TMP": "TMP is not a run",
    "--weak=TMP": "TMP is not a run",
    "--clip=TMP": "TMP is not a run",
    "--prompts=none.txt": "--prompts=none.txt: cannot be read",
    "--out=TMP/folder.png": "--out=TMP/folder.png: is a folder; name a file",
    "--out=TMP/file/x.png": "--out=TMP/file/x.png: cannot be written",
    "--out=/proc/none/x.png": "--out=/proc/none/x.png: cannot be written",
    "--out=TMP/NAME.png": "cannot be written",
}


@pytest.mark.parametrize("flag_text", FILE_CASES)
def test_bad_files_and_labels_are_refused_before_the_run_is_loaded(flag_text, workdir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(settings, "load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    out = [] if "--out" in flag_text else [f"--out={tmp_path}/new/deep/x.png"]
    argv = [flag.replace("TMP", str(tmp_path)).replace("NAME", "x" * 300) for flag in [*flag_text.split(), *out]]
    assert launch("sample", f"--workdir={workdir}", *argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert FILE_CASES[flag_text].replace("TMP", str(tmp_path)) in error
    assert sorted(tmp_path.iterdir()) == before  # the folder of --out is not created


def test_duplicate_values_are_noted(capsys):
    arguments = parsed("sweep", "--steps=5,7,5", "--eta=0")
    assert [cell["steps"] for cell in overrides.setting_grid(arguments.as_dict())] == [5, 7]
    assert capsys.readouterr().err == "note: --steps=5,7,5: a value is listed twice, and sampled once\n"


def test_an_option_is_set_in_one_place(workdir, without_loading, tmp_path, capsys):
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

    monkeypatch.setattr(export if verb == "export" else settings, "load", killed)
    argv = {
        "sample": [f"--out={tmp_path}/x.png"],
        "sweep": ["--steps=2"],
        "evaluate": ["--metrics=fd_pixels"],
        "export": [f"--out={tmp_path}/x"],
    }
    assert launch(verb, f"--workdir={workdir}", *argv[verb]) == code
    error = capsys.readouterr().err
    assert error.startswith("stopped by ") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def in_process(*argv: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs `launch.py` in a shell, which redirections require."""
    variables = {**os.environ, "PYTHONPATH": str(tiny.ROOT), "XLA_FLAGS": "", **environment}
    command = " ".join([sys.executable, str(tiny.ROOT / "launch.py"), *argv])
    return subprocess.run(["bash", "-c", command], env=variables, capture_output=True, text=True, timeout=120)


ENVIRONMENTS = {
    "unknown platform": ({"JAX_PLATFORMS": "nonsense"}, "JAX_PLATFORMS=nonsense: "),
    "missing platform": ({"JAX_PLATFORMS": "rocm"}, "JAX_PLATFORMS=rocm: "),
    "unknown flag of XLA": ({"XLA_FLAGS": "--nonsense"}, "XLA_FLAGS=--nonsense: Unknown flag in XLA_FLAGS"),
    "not a flag": ({"XLA_FLAGS": "nonsense"}, "XLA_FLAGS=nonsense: "),
    "bad value for XLA": ({"XLA_FLAGS": "--xla_force_host_platform_device_count=x"}, "interpret value x for flag"),
}


@pytest.mark.parametrize(
    "case",
    [case if case == "unknown flag of XLA" else pytest.param(case, marks=pytest.mark.slow) for case in ENVIRONMENTS],
)
def test_a_bad_environment_is_reported_in_one_line(case, workdir, tmp_path):
    environment, message = ENVIRONMENTS[case]
    done = in_process("sample", f"--workdir={workdir}", f"--out={tmp_path}/x.png", **environment)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


STREAMS = {
    "closed": ("--help >&-", 0, ""),
    "both closed": ("trian >&- 2>&-", 2, ""),
    "full": ("--help >/dev/full", 2, "error: [Errno 28] No space left on device\n"),
    "closed pipe": ("--help | true; exit ${PIPESTATUS[0]}", 0, ""),
    "closed pipe of errors": ("trian 2>&1 >/dev/null | true; exit ${PIPESTATUS[0]}", 2, ""),
}


@pytest.mark.parametrize("case", STREAMS)
def test_closed_and_full_output_streams(case):
    argv, code, error = STREAMS[case]
    done = in_process(argv)
    assert (done.returncode, done.stderr) == (code, error)


def test_characters_outside_of_the_encoding_are_escaped(tmp_path, capsys, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with cli._output():
        print("grün \x1b[31m\nred")
    stream.flush()
    assert stream.buffer.getvalue() == b"gr\\xfcn \\x1b[31m\nred\n"


def test_only_progress_bars_keep_their_control_sequences(capsys):
    with cli._output():
        print("\r50%\n\x1b[A\x1b[2Jred", file=sys.stderr)
        print("\r50%\n\x1b[A\x1b[2Jred")
    captured = capsys.readouterr()
    assert captured.err == "\r50%\n\x1b[A\\x1b[2Jred\n"
    assert captured.out == "\\r50%\n\\x1b[A\\x1b[2Jred\n"


def test_help_and_errors_do_not_import_jax():
    code = "import sys; from diffjax import cli; codes = [cli.main(argv) for argv in ARGV]"
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
    assert capsys.readouterr().err.startswith("error: the config does not have the field 'timesteps'")
