"""The files of a source that an import reads: its configs and, in each folder, one file of weights or its shards."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from diffjax.errors import UserError
from diffjax.published.folders import FILES

_UNUSED = ("safety_checker",)  # components of pipelines without an equivalent
_INDEX = re.compile(r"(?P<stem>\w+)\.(?P<suffix>safetensors|bin|msgpack)\.index(?P<variant>\.\w+)?\.json")


def select(names: Iterable[str]) -> list[str]:
    """Returns the files that an import of a folder reads, sorted.

    Args:
      names: files by their paths relative to the folder, with "/"; those in folders of folders are left out.
    """
    folders: dict[str, set[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if "/" not in folder and folder not in _UNUSED:
            folders.setdefault(folder, set()).add(file)
    selected = []
    for folder, files in folders.items():
        weights = next((file for file in FILES if file in files), None)
        read = {file for file in files if _is_config(file)} | _with_shards(weights, files)
        selected += [f"{folder}/{file}" if folder else file for file in read]
    return sorted(selected)


def files_of(path: Path, parts: Sequence[str] | None) -> dict[str, Path]:
    """Returns the files that an import reads, by their relative paths.

    Args:
      path: file or folder.
      parts: names of files of the folder, for an import with a config; None: for one without.
    """
    if path.is_file():
        names = [file.name for file in path.parent.iterdir()] if _INDEX.fullmatch(path.name) else [path.name]
        return {name: path.with_name(name) for name in sorted(_with_shards(path.name, names))}
    if parts is not None:
        return {name: path / name for name in sorted(parts) if (path / name).exists()}
    folders = [path, *(folder for folder in path.iterdir() if folder.is_dir())]
    files = [file for folder in folders for file in folder.iterdir() if file.is_file()]
    return {name: path / name for name in select(PurePosixPath(file.relative_to(path)).as_posix() for file in files)}


def check_config(source: str, has_config: bool) -> None:
    """Raises UserError if a single file comes without a config."""
    if not has_config:
        fault = "is a single file, which does not have its config; pass --config=configs/published/..."
        raise UserError(f"--source={source}: {fault}")


def _is_config(file: str) -> bool:
    return file == "merges.txt" or (file.endswith(".json") and not _INDEX.fullmatch(file))


def _with_shards(weights: str | None, files: Iterable[str]) -> set[str]:
    """Returns a file of weights and, if it is an index, its shards."""
    if weights is None:
        return set()
    if not (index := _INDEX.fullmatch(weights)):
        return {weights}
    variant = re.escape(index["variant"] or "")
    shard = re.compile(rf"{index['stem']}(?:{variant}-\d+-of-\d+|-\d+-of-\d+{variant})\.{index['suffix']}")
    return {weights, *(file for file in files if shard.fullmatch(file))}
