"""Executes the notebooks of docs/notebooks/ from the start and stores their outputs.

Deletes their runs of before, in runs/notebooks/.

pip install -e '.[notebooks]'
python docs/notebooks.py [NAME ...]
"""

import base64
import io
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).parent / "notebooks"
_TIMEOUT = 1_200  # seconds per cell
_COLOURS = 64  # of a stored figure


def names() -> list[str]:
    """Returns the names of all notebooks."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def execute(name: str, folder: Path, parameters: Mapping[str, Any] | None = None) -> nbformat.NotebookNode:
    """Returns a notebook with the outputs of its cells, figures compressed, without metadata of the execution.

    Args:
      folder: working directory of the cells.
      parameters: values in the place of those of the cell tagged `parameters`, by name.

    Raises:
      CellExecutionError: a cell fails.
      ValueError: there is no such parameter.
    """
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    stored = cell.source
    for parameter, value in (parameters or {}).items():
        cell.source, count = re.subn(rf"^{parameter} = .*$", f"{parameter} = {value!r}", cell.source, flags=re.M)
        if count != 1:
            raise ValueError(f"{name}: has no parameter {parameter}")
    client = NotebookClient(notebook, timeout=_TIMEOUT, record_timing=False, resources={"metadata": {"path": folder}})
    client.execute()
    cell.source = stored
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _compressed(output.data["image/png"])
                output.data.pop("image/jpeg", None)  # Pillow's images are in both formats
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def _compressed(png: str) -> str:
    """Returns an image in base64 with a palette of few colours."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    opaque = Image.new("RGBA", image.size, "white")
    opaque.alpha_composite(image.convert("RGBA"))
    small = io.BytesIO()
    opaque.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return base64.b64encode(small.getvalue()).decode() + "\n"


def faults(notebook: nbformat.NotebookNode) -> list[str]:
    """Returns what outputs must not have: text on standard error, and paths of this machine."""
    result = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                result.append(f"cell {number} writes to standard error: {output.text}")
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            if match := re.search(rf"{Path.home()}/|{FOLDER.parents[1]}|/(home|tmp|Users|usr)/", text):
                result.append(f"cell {number} shows a path of this machine: {match[0]}")
    return result


def main() -> None:
    shutil.rmtree(FOLDER.parents[1] / "runs" / "notebooks", ignore_errors=True)
    for name in sys.argv[1:] or names():
        notebook = execute(name, FOLDER)
        if problems := faults(notebook):
            raise SystemExit("\n".join([f"{name} is not stored:", *problems]))
        nbformat.write(notebook, FOLDER / f"{name}.ipynb")


if __name__ == "__main__":
    main()
