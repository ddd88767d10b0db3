"""The notebooks of docs/notebooks/ run, and their stored outputs are clean and small."""

import importlib.util

import nbformat
import pytest

from tests import tiny

DOCS = tiny.ROOT / "docs"
_spec = importlib.util.spec_from_file_location("notebooks", DOCS / "notebooks.py")
assert _spec and _spec.loader
notebooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(notebooks)

PARAMETERS = {  # tiny sizes
    "train_and_sample": {"TRAIN_STEPS": 5, "NUM": 80, "STEPS": [1, 2], "WORKDIR": "run"},
    "your_own_denoiser": {"NUM_POINTS": 200, "MAX_STEPS": 8, "TRAIN_STEPS": 100},
    "reproduce_a_table": {"TRAIN_STEPS": 5, "SEEDS": (0, 1), "NUM": 10, "STEPS": ("10", "20"), "WORKDIR": "cells"},
}
FIGURES = {"train_and_sample": 5, "your_own_denoiser": 6, "reproduce_a_table": 2}  # images in the outputs
MAX_SIZE = 500_000  # bytes, of all notebooks


def images(notebook):
    """Returns the number of images in the outputs of a notebook."""
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ()))


def test_every_notebook_has_tiny_sizes():
    assert notebooks.names() == sorted(PARAMETERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", PARAMETERS)
def test_the_notebook_runs(name, tmp_path):
    executed = notebooks.execute(name, tmp_path, PARAMETERS[name])
    assert not notebooks.faults(executed)
    assert images(executed) == FIGURES[name]


def test_the_stored_outputs_are_clean_and_small():
    for name in notebooks.names():
        notebook = nbformat.read(DOCS / "notebooks" / f"{name}.ipynb", as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "executed in order, all cells"
        assert not notebooks.faults(notebook) and images(notebook) == FIGURES[name]
        assert all(output.output_type != "error" for cell in code for output in cell.outputs)
    assert sum(path.stat().st_size for path in (DOCS / "notebooks").glob("*.ipynb")) < MAX_SIZE


def test_a_parameter_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no parameter NUMBER"):
        notebooks.execute("your_own_denoiser", tmp_path, {"NUMBER": 3})
