"""Config and experiment files of the package, by name: `digits`, `published/adm`, `ddim_table1`.

In a checkout the folders `configs` and `experiments` are next to the package; an installed wheel has them in it.
"""

import ast
import os
from pathlib import Path

from diffjax.errors import unknown

_PACKAGE = Path(__file__).parents[1]
ROOT = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent
CONFIGS = ROOT / "configs"
_VERBS = {"configs": "train", "experiments": "reproduce"}  # whose --list lists the names


def find(kind: str, path: str) -> str:
    """Returns the path of a file: of the current folder, of this package, or by the name of a packaged file.

    Args:
      kind: "configs" or "experiments".
      path: file, such as configs/digits.py, or a name, such as digits. A name is a path without a suffix.

    Returns:
      The path as it is if the file exists there, or if it is not packaged.

    Raises:
      UserError: there is no packaged file of this name.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        return path
    for candidate in (ROOT / path, ROOT / kind / f"{path}.py"):
        if candidate.is_file():
            return str(candidate)
    if Path(path).suffix or os.path.isdir(path):
        return path
    listing = f"list all with `launch.py {_VERBS[kind]} --list`"
    raise unknown(kind.removesuffix("s"), path, summaries(kind), listing=listing)


def summaries(kind: str) -> dict[str, str]:
    """Returns the first line of the docstring of every packaged file, by name.

    Args:
      kind: "configs" or "experiments".
    """
    folder = ROOT / kind
    files = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.py")}
    docs = {name: ast.get_docstring(ast.parse(files[name].read_bytes())) for name in sorted(files)}
    return {name: (doc or "").partition("\n")[0] for name, doc in docs.items() if name != "common"}
