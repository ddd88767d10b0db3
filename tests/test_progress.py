"""Messages about compilations: of programs that take long, once per compilation, on standard error."""

import re
import sys
import time

import jax
import pytest
from tqdm import tqdm

from diffjax import progress


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(progress, "_DELAY", 0.05)


def test_a_long_compilation_is_announced_and_timed(capsys):
    with progress.shown(), progress.compiling("the training step"):
        time.sleep(0.2)
        announced = capsys.readouterr()
    assert announced.err == "compiling the training step ...\n"
    captured = capsys.readouterr()
    assert re.fullmatch(r"compiled the training step in 0\.[2-9] s\n", captured.err)
    assert announced.out == captured.out == ""


def test_python_programs_short_compilations_and_errors_print_nothing_more(capsys):
    with progress.compiling("a program"):
        time.sleep(0.2)
    with progress.shown():
        with progress.compiling("a short one"):
            pass
        with pytest.raises(ZeroDivisionError), progress.compiling("one that fails"):
            time.sleep(0.2)
            raise ZeroDivisionError
    time.sleep(0.1)
    assert capsys.readouterr().err == "compiling one that fails ...\n"


def test_only_calls_that_compile_are_announced(capsys):
    compilation = progress.Compilation("the sum")

    @jax.jit
    def add(x):
        compilation.start()
        time.sleep(0.1)  # when traced
        return x + 1

    with progress.shown():
        for _ in range(3):
            with compilation:
                add(1.0)
                time.sleep(0.1)
    assert capsys.readouterr().err.count("compiled the sum in") == 1


def test_messages_are_lines_above_a_progress_bar(capsys):
    with progress.shown(), tqdm(total=3, file=sys.stderr, mininterval=0) as bar:
        bar.update(1)
        with progress.compiling("the sampler"):
            time.sleep(0.2)
        bar.update(2)
    lines = re.split(r"[\r\n]", capsys.readouterr().err)
    assert "compiling the sampler ..." in lines
    assert any(line.startswith("compiled the sampler in") for line in lines)
