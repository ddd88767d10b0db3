"""The verbs on runs that read captions: a tiny DALL-E of shapes with its codec and its CLIP."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import diffjax
from diffjax import cli
from diffjax.cli import sample
from diffjax.data import shapes, tokenizer
from diffjax.errors import UserError
from diffjax.evaluation import samples
from diffjax.inference import prompts
from diffjax.inference.reranking import judge_of
from tests import published, tiny

RED, BLUE = "a small red circle", "three blue squares"


def launch(*arguments) -> int:
    return cli.main(["launch.py", *map(str, arguments)])


@pytest.fixture(scope="module")
def dalle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dalle")
    config = tiny.write_dalle(folder)
    assert launch("train", f"--config={config}", f"--workdir={folder}/run") == 0
    return folder / "run"


def arrays(workdir, path, *flags):
    assert launch("sample", f"--workdir={workdir}", f"--out={path}", *flags) == 0
    return np.load(path)


def result(workdir, metric):
    return json.loads((workdir / "results" / f"{metric}.json").read_text())


def test_a_prompt_is_drawn_as_often_as_asked(dalle, tmp_path):
    found = arrays(dalle, tmp_path / "a.npz", f"--prompt={RED}", "--num=6", "--seed=3")
    assert found["images"].shape == (6, 8, 8, 3)
    assert list(found["captions"]) == [RED] * 6
    np.testing.assert_array_equal(found["seeds"], 3 + np.arange(6))
    later = arrays(dalle, tmp_path / "b.npz", f"--prompt={RED}", "--num=2", "--seed=7", "--batch_size=1")
    np.testing.assert_array_equal(later["images"], found["images"][4:])


def test_prompts_of_a_file_are_a_row_each(dalle, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text(f"{RED}\n\n  {BLUE}  \n")  # empty lines say nothing
    flags = [f"--prompts={file}", "--num=3"]
    found = arrays(dalle, tmp_path / "a.npz", *flags)
    assert list(found["captions"]) == [RED] * 3 + [BLUE] * 3
    assert launch("sample", f"--workdir={dalle}", f"--out={tmp_path}/a.png", *flags) == 0
    cell, gap, title = 64, 2, 16  # a caption stands above each row
    size = (3 * (cell + gap) + gap, 2 * (title + cell + gap) + gap)
    assert Image.open(tmp_path / "a.png").size == size


def test_of_many_the_nearest_to_the_caption_are_kept(dalle, tmp_path):
    many = arrays(dalle, tmp_path / "many.npz", f"--prompt={RED}", "--num=12")
    best = arrays(dalle, tmp_path / "best.npz", f"--prompt={RED}", "--num=3", "--best_of=12")
    judge = judge_of(diffjax.load(dalle))
    scores = judge.pictures(many["images"]) @ judge.texts([RED])[0]
    order = np.argsort(-scores, kind="stable")[:3]
    np.testing.assert_array_equal(best["seeds"], many["seeds"][order])
    np.testing.assert_array_equal(best["images"], many["images"][order])
    other = arrays(dalle, tmp_path / "other.npz", f"--prompt={RED}", "--num=3", "--best_of=12", f"--clip={dalle}/clip")
    np.testing.assert_array_equal(other["images"], best["images"])


def test_a_picture_is_completed_from_its_top(dalle, tmp_path):
    """Whose codes stay: there all completions are alike, and like the codec's picture of it."""
    flags = [f"--prompt={RED}", "--num=16"]
    free = arrays(dalle, tmp_path / "a.npz", *flags)["images"].astype(float)
    found = arrays(dalle, tmp_path / "b.npz", *flags, "--initial_image=test:0")["images"].astype(float)
    picture = shapes.draw(shapes.scene("test", 0), 8)
    codec = diffjax.load(dalle / "codec").codec
    back = np.asarray(codec.from_codes(codec.to_codes(picture[None].astype(np.float32) / 127.5 - 1)))[0]
    top = np.s_[:, :2]
    assert found[top].std(axis=0).mean() < 0.5 * free[top].std(axis=0).mean()
    expected = (back + 1) * 127.5
    assert np.abs(found[top] - expected[:2]).mean() < 0.5 * np.abs(free[top] - expected[:2]).mean()
    assert found[:, -2:].std(axis=0).mean() > 0.5 * free[:, -2:].std(axis=0).mean()  # the rest is drawn


@pytest.mark.parametrize("flags", [["--guidance=1e5"], ["--top_k=2", "--temperature=0.5"], ["--top_p=0.5"]])
def test_how_codes_are_drawn_is_a_flag(dalle, tmp_path, flags):
    """The scale is beyond all use, as a model that is hardly trained says nearly the same of all captions."""
    found = arrays(dalle, tmp_path / "a.npz", f"--prompt={RED}", "--num=4", *flags)["images"]
    plain = arrays(dalle, tmp_path / "b.npz", f"--prompt={RED}", "--num=4")["images"]
    assert not np.array_equal(found, plain)


def test_a_prompt_that_is_too_long_is_read_in_part_and_said(dalle, tmp_path, capsys):
    long = "a small red circle " * 500
    found = arrays(dalle, tmp_path / "a.npz", f"--prompt={long}", "--num=2")
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "note: prompt 1, 'a small red circle" in notes[0] and "the model reads 10" in notes[0]
    cut, total = map(int, re.search(r"the last (\d+) of its (\d+) tokens are cut", notes[0]).groups())
    assert total - cut == 10 and total >= 2000
    assert len(found["images"]) == 2


BAD = {
    "nothing asked": ([], "give one of --prompt=TEXT and --prompts=FILE"),
    "both": ([f"--prompt={RED}", "--prompts=x.txt"], "give one of --prompt=TEXT"),
    "empty": (["--prompt=  "], "--prompt=  : the value is empty"),
    "no file": (["--prompts=TMP/none.txt"], "cannot read --prompts="),
    "a folder": (["--prompts=TMP"], "cannot read --prompts="),
    "not UTF-8": (["--prompts=TMP/latin.txt"], "line 1 is not UTF-8"),
    "a file of nothing": (["--prompts=TMP/empty.txt"], "every line is blank"),
    "a control character": (["--prompt=a\x1b[31mred"], r"has the control character '\x1b'"),
    "a judge of nothing": ([f"--prompt={RED}", "--clip=DALLE/clip"], "ranks the samples of --best_of"),
    "a classifier": ([f"--prompt={RED}", "--classifier=DALLE"], "--classifier guides diffusion models"),
    "a sampler": ([f"--prompt={RED}", "--sampler=ddim"], "--sampler=ddim: is only supported for diffusion"),
    "fewer than kept": ([f"--prompt={RED}", "--num=4", "--best_of=2"], "--best_of=2 is fewer than the 4"),
    "no CLIP": ([f"--prompt={RED}", "--num=1", "--best_of=2", "--clip=TMP"], "is not a run"),
    "not a CLIP": ([f"--prompt={RED}", "--num=1", "--best_of=2", "--clip=DALLE/codec"], "which is no CLIP"),
    "a label": (["--label=3"], "of runs that read no text"),
    "kept of nothing": ([f"--prompt={RED}", "--kept=0.5"], "--kept is of an --initial_image"),
    "kept whole": ([f"--prompt={RED}", "--initial_image=test:0", "--kept=1"], "kept=1"),
    "no such image": ([f"--prompt={RED}", "--initial_image=TMP/none.png"], "none.png"),
    "an edit": ([f"--prompt={RED}", "--image=test:0", "--strength=0.5"], "of diffusion models"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_bad_input_is_one_clear_line(dalle, tmp_path, capsys, case):
    flags, message = BAD[case]
    (tmp_path / "latin.txt").write_bytes("ein grüner Kreis".encode("latin-1"))
    (tmp_path / "empty.txt").write_text("\n \n")
    flags = [flag.replace("TMP", str(tmp_path)).replace("DALLE", str(dalle)) for flag in flags]
    assert launch("sample", f"--workdir={dalle}", f"--out={tmp_path}/a.png", *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("flag", ["--prompt=x", "--best_of=4"])
def test_a_run_without_text_takes_no_prompt(workdir, tmp_path, capsys, flag):
    assert launch("sample", f"--workdir={workdir}", f"--out={tmp_path}/a.png", flag) == 2
    assert "is of runs that read text" in capsys.readouterr().err


PROMPTS = {
    "marked": b"\xef\xbb\xbfred\nblue\n",
    "CR LF": b"red\r\n\r\nblue\r\n",
    "CR": b"red\rblue",
    "tab": b"\tred\t\n blue ",
    "no last break": b"red\n\nblue",
}


@pytest.mark.parametrize("case", PROMPTS)
def test_prompts_are_the_lines_that_an_editor_shows(case, tmp_path):
    (tmp_path / "p.txt").write_bytes(PROMPTS[case])
    assert prompts.read_file(tmp_path / "p.txt") == ["red", "blue"]


def test_only_line_breaks_divide_prompts(tmp_path):
    """Not what else Unicode breaks lines at, as the line separator and the next line do."""
    (tmp_path / "p.txt").write_text("a\u2028b\nc\u2029d ü \N{CAT FACE}\n", encoding="utf-8")
    assert prompts.read_file(tmp_path / "p.txt") == ["a\u2028b", "c\u2029d ü \N{CAT FACE}"]


BAD_PROMPTS = {
    "UTF-16": ("red\n".encode("utf-16"), "the file is UTF-16 or UTF-32; save it as UTF-8"),
    "UTF-16 without a mark": ("red\n".encode("utf-16-le"), r"line 1 has the control character '\x00'"),
    "UTF-32": ("red\n".encode("utf-32"), "the file is UTF-16 or UTF-32"),
    "Latin-1": ("red\nblue\ngrün\n".encode("latin-1"), "line 3 is not UTF-8 (byte 0xfc at 2)"),
    "cut UTF-8": (b"red\n\xc3", "line 2 is not UTF-8"),
    "an escape": (b"red\n\x1b[2Jblue", r"line 2 has the control character '\x1b'"),
    "blank lines": (b"\n \n\t\r\n", "every line is blank"),
    "nothing": (b"", "every line is blank"),
    "a mark alone": (b"\xef\xbb\xbf", "every line is blank"),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_a_bad_prompts_file_is_named_with_its_line(case, tmp_path):
    content, message = BAD_PROMPTS[case]
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError) as refused:
        prompts.read_file(tmp_path / "p.txt")
    assert message in str(refused.value) and str(tmp_path / "p.txt") in str(refused.value)


def test_the_prompts_that_are_cut_are_named(capsys):
    known = tokenizer.train([RED, BLUE], 300)
    texts = ["red", RED * 2000] + ["blue circle " * 9] * 6
    prompts.note_cut(known, 6, texts)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines[:5]] == [f"note: prompt {i}" for i in range(2, 7)]
    assert lines[5:] == ["note: 2 more prompts are cut to the 4 tokens that the model reads"]
    assert max(map(len, lines)) < 200


def test_the_title_of_a_long_caption_is_short():
    assert sample._title("x" * 10_000) == "x" * 97 + "..."
    assert sample._title("red\n\x1b[2Jblue") == r"red \x1b[2Jblue"


def test_a_diffusion_model_completes_nothing(workdir, tmp_path, capsys):
    assert launch("sample", f"--workdir={workdir}", f"--out={tmp_path}/a.png", "--initial_image=test:0") == 2
    assert "by a prior, not by system=ddpm" in capsys.readouterr().err


def test_samples_are_measured_against_their_captions(dalle, capsys, monkeypatch):
    monkeypatch.setattr(samples, "_MOST", 200)  # real images
    assert launch("evaluate", f"--workdir={dalle}", "--metrics=clip_score,r_precision,cmmd,captions", "--num=24") == 0
    out = capsys.readouterr().out
    assert "CLIP score" in out and "captions shown" in out
    shown = result(dalle, "captions")["figures"]
    assert shown["captions"]["value"] <= min(shown[f"caption_{part}"]["value"] for part in ("count", "colour", "shape"))
    assert 0 <= result(dalle, "clip_score")["figures"]["clip_score"]["value"] <= 100
    assert "captions of test" in result(dalle, "captions")["prompts"]


def test_retrieval_of_a_clip(dalle, capsys):
    assert launch("evaluate", f"--workdir={dalle}/clip", "--metrics=retrieval", "--num=40") == 0
    found = result(dalle / "clip", "retrieval")
    for way in ("text_of_image", "image_of_text"):
        values = [found[f"{way}_{k}"]["mean"] for k in (1, 5, 10)]
        assert values == sorted(values)
        assert 1 / 40 <= found[f"{way}_1"]["chance"] < 0.1 < found[f"{way}_10"]["chance"] < 0.5
    assert found["captions"] <= 40


def test_composition_of_a_clip(dalle, capsys):
    assert launch("evaluate", f"--workdir={dalle}/clip", "--metrics=composition", "--num=40") == 0
    found = result(dalle / "clip", "composition")
    assert {"colour", "shape", "size", "order", "binding"} <= found.keys() and found["order"]["chance"] == 0.5
    assert "order" in capsys.readouterr().out


@pytest.fixture(scope="module")
def published_clip(tmp_path_factory):
    folder = published.write(
        tmp_path_factory.mktemp("published"),
        published.CONFIG | {"text_config": published.TEXT | {"vocab_size": 300}},
        published.tensors(300),
    )
    tokenizer.train([RED, BLUE], 300).save(folder / "tokenizer.json")
    return folder


def test_a_published_clip_judges(dalle, published_clip, tmp_path):
    found = arrays(dalle, tmp_path / "a.npz", f"--prompt={RED}", "--num=2", "--best_of=6", f"--clip={published_clip}")
    assert found["images"].shape == (2, 8, 8, 3)
    flags = ["--metrics=clip_score", "--num=8", f"--clip={published_clip}"]
    assert launch("evaluate", f"--workdir={dalle}", *flags) == 0
    judge = result(dalle, "clip_score")["reference"]["judge"]
    assert judge["clip"].startswith("sha256:")


@pytest.mark.parametrize("source", ["part", pytest.param("published", marks=pytest.mark.slow)])
def test_a_frozen_clip_conditions(dalle, published_clip, tmp_path, source):
    """A caption is what it embeds it as."""
    clip = "@clip" if source == "part" else str(published_clip)
    given = {"model__condition": "clip", "model__masks": (), "model__last_mask": "", "clip": clip}
    config = tiny.write_dalle(tmp_path, **given, loss={"text_weight": 0.0}, train__sample_every=4)
    codec = f"--config.codec={dalle}/codec"
    assert launch("train", f"--config={config}", f"--workdir={tmp_path}/run", codec) == 0
    run = diffjax.load(tmp_path / "run")
    assert run.system.text.length == (12 if source == "part" else 5)
    assert "text_head" not in run.variables["params"]["model"]
    found = arrays(tmp_path / "run", tmp_path / "a.npz", f"--prompt={RED}", "--num=2", "--guidance=2")
    assert found["images"].shape == (2, 8, 8, 3)


def test_a_clip_draws_nothing(dalle, tmp_path, capsys):
    assert launch("sample", f"--workdir={dalle}/clip", f"--out={tmp_path}/a.png", f"--prompt={RED}") == 2
    assert capsys.readouterr().err.count("\n") == 1
