"""Models that are released with the package: read-only exported runs, by name.

Every flag, config field and function that takes the folder of a run also takes `pretrained:NAME`, and
`pretrained:NAME/PART` for a part of a pipeline.
"""

import os
import re
from pathlib import Path

from diffjax.errors import UserError, unknown

PREFIX = "pretrained:"
FOLDER = Path(__file__).parents[1] / "pretrained"
_OUTPUTS = Path("runs", "pretrained")  # in the current folder
_PATH = re.compile(r"\w+(/\w+)*")


def names() -> list[str]:
    """Returns the names of the released models, sorted."""
    return sorted(config.parent.name for config in FOLDER.glob("*/config.json"))


def resolve(path: str | os.PathLike) -> Path:
    """Returns the folder of `pretrained:NAME` or `pretrained:NAME/PART`, and any other path as it is.

    Raises:
      UserError: there is no released model of this name.
    """
    text = os.fspath(path)
    if not text.startswith(PREFIX):
        return Path(path)
    name = text.removeprefix(PREFIX).rstrip("/")
    if name.partition("/")[0] not in names():
        raise unknown("released model", name, names())
    if not _PATH.fullmatch(name):
        raise UserError(f"{text}: must be {PREFIX}NAME, or {PREFIX}NAME/PART for a part of a pipeline")
    return FOLDER / name


def name_of(folder: Path) -> str | None:
    """Returns `pretrained:NAME` for the folder of a released model or of its part; None for other folders."""
    return f"{PREFIX}{folder.relative_to(FOLDER).as_posix()}" if folder.is_relative_to(FOLDER) else None


def output_folder(folder: Path) -> Path:
    """Returns the folder that verbs write results and samples of a run to.

    It is the run's own, and for released models `runs/pretrained/NAME` in the current folder.
    """
    return _OUTPUTS / folder.relative_to(FOLDER) if folder.is_relative_to(FOLDER) else folder
