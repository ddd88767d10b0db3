"""The verbs on chains: a tiny unCLIP and a tiny GLIDE of shapes with all their parts."""

import json
import shutil

import numpy as np
import pytest

import diffjax
from diffjax import cli
from diffjax.cli import edits, flags, sample
from diffjax.data import shapes, tokenizer
from diffjax.errors import UserError
from tests import tiny

RED, BLUE = "a small red circle", "a large blue square"


def launch(*arguments) -> int:
    return cli.main(["launch.py", *map(str, arguments)])


@pytest.fixture(scope="module")
def unclip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unclip")
    config = tiny.write_chain(folder, "unclip", ("clip", "pca", "prior", "ar_prior", "decoder", "upsampler"))
    assert launch("train", f"--config={config}", f"--workdir={folder}/run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def glide(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glide")
    config = tiny.write_chain(folder, "glide", ("base", "upsampler", "noised_clip"))
    assert launch("train", f"--config={config}", f"--workdir={folder}/run") == 0
    return folder / "run"


def arrays(workdir, path, *flags):
    assert launch("sample", f"--workdir={workdir}", f"--out={path}", *flags) == 0
    return np.load(path)


UNCLIP = {
    "diffusion": [f"--prompt={RED}", "--prior=diffusion", "--steps=prior:3,decoder:3,upsampler:1"],
    "ar": [f"--prompt={RED}", "--prior=ar"],
    "none": [f"--prompt={RED}", "--prior=none", "--guidance=3"],
    "variations": ["--image=test:0"],
    "inverted": ["--image=test:0", "--invert", "--eta=0"],
    "pictures": ["--image=test:0,test:1", "--interpolate=4"],
    "text diff": ["--image=test:0", f"--prompt={RED}", f"--base_prompt={BLUE}", "--interpolate=4"],
    "components": ["--image=test:0", "--components=1,2,4,12"],
    "painted in": ["--image=test:0", "--mask=left", f"--prompt={RED}"],
    "edited": ["--image=test:0", "--strength=0.5", f"--prompt={RED}"],
}


FAST = ("diffusion", "text diff")


@pytest.mark.parametrize("case", [c if c in FAST else pytest.param(c, marks=pytest.mark.slow) for c in UNCLIP])
def test_all_that_unclip_draws(unclip, tmp_path, case):
    found = arrays(unclip, tmp_path / "a.npz", "--num=4", *UNCLIP[case])
    assert found["images"].shape == (4, 16, 16, 3)


def test_a_picture_of_every_prompt_stands_in_its_row(unclip, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{RED}\n{BLUE}\n")
    flags = [f"--prompts={tmp_path}/prompts.txt", "--num=2", "--prior=none"]
    found = arrays(unclip, tmp_path / "a.npz", *flags)
    assert list(found["captions"]) == [RED, RED, BLUE, BLUE]
    assert not np.array_equal(found["images"][0], found["images"][1])


@pytest.mark.slow
def test_glide_draws_paints_and_is_guided_by_clip(glide, tmp_path):
    plain = arrays(glide, tmp_path / "a.npz", f"--prompt={RED}", "--num=2", "--guidance=1")["images"]
    by_clip = arrays(glide, tmp_path / "b.npz", f"--prompt={RED}", "--num=2", "--guidance=1", "--clip_scale=100")
    assert plain.shape == (2, 16, 16, 3)
    assert not np.array_equal(plain, by_clip["images"])
    painted = arrays(glide, tmp_path / "c.npz", f"--prompt={RED}", "--num=2", "--image=test:0", "--mask=left")["images"]
    picture = shapes.draw(shapes.scene("test", 0), 16)
    np.testing.assert_array_equal(painted[:, :, 8:], np.stack([picture, picture])[:, :, 8:])


@pytest.mark.slow
def test_a_chain_is_measured_and_swept(unclip, capsys):
    assert launch("evaluate", f"--workdir={unclip}", "--metrics=captions", "--num=8", "--prior=none") == 0
    assert json.loads((unclip / "results" / "captions.json").read_text())["samples"] == 8
    flags = ["--steps=decoder:1,decoder:3", "--num=8", "--metrics=captions", "--prior=none"]
    assert launch("sweep", f"--workdir={unclip}", *flags) == 0
    assert "1 compilation(s)" in capsys.readouterr().out
    cells = json.loads((unclip / "results" / "sweep.json").read_text())["cells"]
    assert [cell["decoder:steps"] for cell in cells] == [1, 3]


@pytest.mark.slow
def test_a_stage_draws_a_picture_again(unclip, tmp_path):
    for stage, side in (("decoder", 8), ("upsampler", 16)):
        found = arrays(unclip / stage, tmp_path / "a.npz", "--image=test:0", "--num=2")
        assert found["images"].shape == (2, side, side, 3)


def test_a_chain_continues_where_it_was_and_is_not_trained_again(unclip, tmp_path, capsys):
    config = unclip.parent / "unclip.py"
    assert launch("train", f"--config={config}", f"--workdir={unclip}") == 0
    assert capsys.readouterr().out.count("is trained to step 2") == 6


BAD = {
    "nothing asked": ([], "give one of --prompt=TEXT"),
    "an unknown stage": ([f"--prompt={RED}", "--steps=decodr:3"], "unknown stage 'decodr'"),
    "an unknown prior": ([f"--prompt={RED}", "--prior=gan"], "unknown prior 'gan'"),
    "a setting twice": ([f"--prompt={RED}", "--steps=decoder:3,decoder:4"], "give one value here"),
    "a stage that takes no part": ([f"--prompt={RED}", "--prior=ar", "--steps=prior:3"], "takes no part"),
    "no smaller picture": ([f"--prompt={RED}", "--augmentation=0.5"], "of the smaller picture of an upsampler"),
    "CLIP guidance": ([f"--prompt={RED}", "--clip_scale=3"], "of a chain with a noised_clip"),
    "too many steps": ([f"--prompt={RED}", "--steps=prior:99"], "1 to 20 steps"),
    "components of nothing": (["--components=1,2"], "--components needs the --image"),
    "too many components": (["--image=test:0", "--components=1,13"], "from 1 to the 12 values"),
    "components in words": (["--image=test:0", "--components=all"], "expected whole numbers"),
    "a base of no prompt": (["--image=test:0", f"--base_prompt={RED}"], "needs --prompt"),
    "no difference": (
        ["--image=test:0", f"--base_prompt={RED}", f"--prompt={RED}", "--interpolate=2"], "say the same",
    ),
    "between seeds": (["--interpolate=4", f"--prompt={RED}"], "needs --image"),
    "one picture of two": (["--interpolate=4", "--image=test:0"], "goes between two images"),
    "a label": ([f"--prompt={RED}", "--label=1"], "of runs that read no text"),
    "many of a picture": (["--image=test:0", "--best_of=4"], "not supported with an --image that is drawn again"),
    "a checkpoint": ([f"--prompt={RED}", "--checkpoint=2"], "is a chain, which has no checkpoints"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(unclip, tmp_path, capsys, case):
    flags, message = BAD[case]
    assert launch("sample", f"--workdir={unclip}", f"--out={tmp_path}/a.png", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


WITHOUT_EFFECT = {
    "a prior of a picture": (["--image=test:0", "--prior=ar"], "--prior: is not supported with an --image"),
    "steps of a prior of a picture": (["--image=test:0", "--steps=prior:3"], "prior:steps: has no effect"),
    "a label of a picture": (["--image=test:0", "--label=1"], "was trained without labels"),
    "a prompt between pictures": (
        ["--image=test:0,test:1", "--interpolate=2", f"--prompt={RED}"], "--prompt has no effect with --interpolate",
    ),
    "inverted components": (["--image=test:0", "--components=1", "--invert"], "--invert has no effect"),
    "inverted and repeated": (["--image=test:0", "--invert", "--repeats=2"], "--repeats has no effect"),
    "painted components": (
        ["--image=test:0", "--mask=left", f"--prompt={RED}", "--components=1"], "has no effect with --mask",
    ),
    "best of a row": (
        ["--image=test:0,test:1", "--interpolate=2", "--best_of=3"], "--best_of=3: is not supported with --interpolate",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def opened(unclip):
    return diffjax.load(unclip)


@pytest.mark.parametrize("case", WITHOUT_EFFECT)
def test_a_flag_without_effect_is_refused(opened, case):
    argv, message = WITHOUT_EFFECT[case]
    declared = flags.Flags()
    sample.define(declared)
    with pytest.raises(UserError) as refused:
        edits.check(flags.parse(declared, ["sample", *argv]), opened)
    assert message in str(refused.value)


@pytest.mark.parametrize("stage", ["prior", "ar_prior", "pca"])
def test_embeddings_are_not_drawn(unclip, tmp_path, capsys, stage):
    assert launch("sample", f"--workdir={unclip / stage}", f"--out={tmp_path}/a.png", f"--prompt={RED}") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_stage_that_is_not_trained_names_the_command(unclip, tmp_path, capsys):
    shutil.copytree(unclip, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "decoder")
    assert launch("sample", f"--workdir={tmp_path}/run", f"--out={tmp_path}/a.png", f"--prompt={RED}") == 2
    assert f"`python launch.py train --workdir={tmp_path}/run` goes on with it" in capsys.readouterr().err


def test_stages_of_other_words_are_refused(unclip, tmp_path, capsys):
    shutil.copytree(unclip, tmp_path / "run")
    tokenizer.train(["quite other words"], 260).save(tmp_path / "run" / "decoder" / "tokenizer.json")
    assert launch("sample", f"--workdir={tmp_path}/run", f"--out={tmp_path}/a.png", f"--prompt={RED}") == 2
    error = capsys.readouterr().err
    assert "different tokenizers, of 300 and 258" in error


def test_a_chain_is_not_timed(unclip, capsys):
    assert launch("benchmark", f"--config={unclip.parent}/unclip.py") == 2
    assert "trains nothing itself" in capsys.readouterr().err
