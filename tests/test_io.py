import errno
import json
import math
import os
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffjax import io
from diffjax.errors import UserError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text().filter(lambda s: s not in io._NON_FINITE),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=10,
)


def equal(a, b) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[name], b[name]) for name in a)
    return a == b


@given(VALUES)
def test_json_round_trip_is_exact_and_strict(value):
    text = io.to_json(value)
    assert equal(io.from_json(text), value)
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_another_parser_reads_our_json():
    text = io.to_json({"psnr": math.inf, "loss": [math.nan, -math.inf, 1.5]})
    script = "console.log(JSON.stringify(JSON.parse(process.argv[1])))"
    read = subprocess.run(["node", "-e", script, text], capture_output=True, text=True, check=True).stdout
    assert json.loads(read) == {"psnr": "Infinity", "loss": ["NaN", "-Infinity", 1.5]}


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_one_line_that_names_the_file(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.json is damaged.*delete it") as raised:
        io.read_json(tmp_path / "x.json", "delete it")
    assert "\n" not in str(raised.value)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    io.write_text(tmp_path / "a", "old")
    with pytest.raises(RuntimeError), io.atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path):
    with pytest.raises(OSError) as raised:
        io.write_text(tmp_path / "missing" / "a.json", "text")
    assert raised.value.filename == str(tmp_path / "missing" / "a.json")


def test_files_of_similar_names_are_not_changed(tmp_path):
    for name in ("a.new", "a.tmp", ".a.tmp", "a.json.new"):
        (tmp_path / name).write_text("user's")
    io.write_text(tmp_path / "a.json", "text")
    assert {path.read_text() for path in tmp_path.iterdir() if path.name != "a.json"} == {"user's"}


def test_a_symbolic_link_is_replaced_and_its_target_kept(tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    io.write_text(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "kept"
    assert not (tmp_path / "link").is_symlink()


def test_permissions_follow_the_umask(tmp_path):
    io.write_text(tmp_path / "a", "text")
    (tmp_path / "b").write_text("text")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_lines_are_appended_after_an_incomplete_one(tmp_path):
    path = tmp_path / "x.jsonl"
    assert io.read_json_lines(path) == ([], [])
    io.append_json_line(path, {"a": math.inf})
    with path.open("a") as file:
        file.write('{"b": 2')  # of a process that was killed
    assert io.read_json_lines(path) == ([{"a": math.inf}], [])
    io.append_json_line(path, {"c": 3})
    assert io.read_json_lines(path) == ([{"a": math.inf}, {"c": 3}], [2])
    with path.open("a") as file:
        file.write('[1]\n\n{"d": 4}')  # not an object; a blank line; a whole line without its end
    assert io.read_json_lines(path) == ([{"a": math.inf}, {"c": 3}, {"d": 4}], [2, 4])
    io.append_json_line(path, {"e": 5})
    assert io.read_json_lines(path)[0][-2:] == [{"d": 4}, {"e": 5}]


def test_a_line_that_a_full_disk_rejects_leaves_the_file(tmp_path, monkeypatch):
    path, write, calls = tmp_path / "x.jsonl", os.write, iter(range(2))
    io.append_json_line(path, {"a": 1})

    def full(descriptor, data):
        if next(calls) == 0:
            return write(descriptor, data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left") as raised:
        io.append_json_line(path, {"b": 2})
    assert raised.value.filename == str(path) and path.read_text() == '{"a": 1}\n'
