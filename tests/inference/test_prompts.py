"""Files of prompts, notes about truncated prompts, and the captions of evaluations."""

import numpy as np
import pytest

import diffjax
from diffjax.data import tokenizer
from diffjax.errors import UserError
from diffjax.inference import prompts

RED, BLUE = "a small red circle", "three blue squares"

PROMPTS = {
    "marked": b"\xef\xbb\xbfred\nblue\n",
    "CR LF": b"red\r\n\r\nblue\r\n",
    "CR": b"red\rblue",
    "tab": b"\tred\t\n blue ",
    "no last break": b"red\n\nblue",
}


@pytest.mark.parametrize("case", PROMPTS)
def test_each_line_of_a_file_is_a_prompt(case, tmp_path):
    (tmp_path / "p.txt").write_bytes(PROMPTS[case])
    assert prompts.read_file(tmp_path / "p.txt") == ["red", "blue"]


def test_only_ascii_line_breaks_separate_prompts(tmp_path):
    """Other line breaks of Unicode, such as the line separator, are part of a prompt."""
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
def test_errors_name_the_file_and_line(case, tmp_path):
    content, message = BAD_PROMPTS[case]
    (tmp_path / "p.txt").write_bytes(content)
    with pytest.raises(UserError) as error:
        prompts.read_file(tmp_path / "p.txt")
    assert message in str(error.value) and str(tmp_path / "p.txt") in str(error.value)


def test_truncated_prompts_are_noted(capsys):
    known = tokenizer.train([RED, BLUE], 300)
    texts = ["red", RED * 2000] + ["blue circle " * 9] * 6
    prompts.note_truncated(known, 6, texts)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines[:5]] == [f"note: prompt {i}" for i in range(2, 7)]
    assert lines[5:] == ["note: 2 more prompts are cut to the 4 tokens that the model reads"]
    assert max(map(len, lines)) < 200


def test_a_stage_has_the_captions_of_its_pipeline(trained_runs):
    """Scores of the stages and of the whole are of the same captions; many test scenes share a short caption."""
    pipeline = diffjax.load(trained_runs("unclip"))
    stage = diffjax.load(trained_runs("unclip") / "decoder")
    expected, found = (prompts.default_prompts(run, 300) for run in (pipeline, stage))
    assert found.captions == expected.captions and len({*expected.captions}) == 300
    np.testing.assert_array_equal(found.conditions["tokens"], expected.conditions["tokens"])
