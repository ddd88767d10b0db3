"""The local copy of a run at a URL: its files, their states, and a record of what was transferred."""

import collections
import contextlib
import dataclasses
import itertools
import os
import re
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from diffjax import io, remote
from diffjax.errors import UserError
from diffjax.runs.checkpoint_files import MANIFEST

NUM_PHASES = 4  # of an upload

_CHECKPOINT = re.compile(r"((?:.+/)?checkpoints)/(0|[1-9]\d*)/(.+)")  # folder of checkpoints, step, file of it
_SHARED = re.compile(r"(?:.+/)?(?:results/.+|samples/.+|grids\.json)")
_RESULTS = re.compile(r"(?:.+/)?results/results\.jsonl")
_RECORD = "record.json"  # next to the copy
_LAST = "last_checkpoint.json"

FileState = tuple[int, int]  # size in bytes, time of the last change in ns


@dataclasses.dataclass
class Record:
    """State of a copy after the last transfer, stored next to the copy.

    Attributes:
      owner: id of the training that owned the run.
      files: by path, the state of the file in the copy, and its version at the URL (None: not known).
    """

    url: str
    owner: str | None = None
    files: dict[str, tuple[FileState, str | None]] = dataclasses.field(default_factory=dict)

    def changed(self, local: dict[str, FileState]) -> set[str]:
        """Returns the files of the copy, given by their states, that are new or were changed since the transfer."""
        return {path for path, state in local.items() if path not in self.files or self.files[path][0] != state}

    def version(self, path: str) -> str | None:
        return self.files[path][1] if path in self.files else None


class RunCopy:
    """The local copy of a run at a URL; paths of files are relative to `folder`, with slashes.

    Attributes:
      root: folder of the copy and of its record.
      folder: the copy.
    """

    def __init__(self, url: str):
        """Names the folders of a copy; creates nothing."""
        self.url = url
        self.root = remote.copy_root(url, "runs")
        self.folder = remote.copy_folder(url, "runs")

    def scan(self) -> dict[str, FileState]:
        """Returns the state of each file, by path. Temporary files and symbolic links are omitted."""
        states = {}
        for folder, folders, names in os.walk(self.folder):
            relative = Path(folder).relative_to(self.folder)
            folders[:] = [name for name in folders if not is_hidden((relative / name).as_posix())]
            for path in [(relative / name).as_posix() for name in names]:
                with contextlib.suppress(FileNotFoundError):
                    if not is_hidden(path) and stat.S_ISREG((self.folder / path).lstat().st_mode):
                        states[path] = self.state(path)
        return states

    def state(self, path: str) -> FileState:
        """Returns the state of a file."""
        status = (self.folder / path).stat()
        return status.st_size, status.st_mtime_ns

    def delete(self, path: str) -> None:
        """Deletes a file, and the folders that this empties."""
        (self.folder / path).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty
            for folder in list(Path(path).parents)[:-1]:
                (self.folder / folder).rmdir()

    def add_lines(self, path: str, lines: Iterable[bytes]) -> None:
        """Puts lines before those of a file that are not among them."""
        lines = list(lines)
        ours = (self.folder / path).read_bytes().splitlines()
        merged = [*lines, *(line for line in ours if line not in {*lines})]
        with io.atomic_path(self.folder / path) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in merged))

    def lacks_files(self, checkpoint: str, local: Collection[str]) -> bool:
        """Returns whether a checkpoint lacks its manifest, or files that this has."""
        try:
            manifest = io.from_json((self.folder / checkpoint / MANIFEST).read_bytes())
            return any(f"{checkpoint}/{name}" not in local for name in manifest["sha256"])
        except (OSError, ValueError, TypeError, KeyError):
            return True

    def retention(self, folder: str) -> tuple[int, int]:
        """Returns `train.keep_last` and `keep_every` of the run with a folder of checkpoints; 0, 0: it keeps all."""
        try:
            section = io.read_json((self.folder / folder).with_name("config.json"), "restore it")["train"]
            return int(section["keep_last"]), int(section["keep_every"])
        except (OSError, UserError, TypeError, KeyError, ValueError):
            return 0, 0

    def read_record(self) -> Record:
        """Returns the record, empty before the first transfer. Raises UserError if it is damaged."""
        file, advice = self.root / _RECORD, f"delete {self.root}"
        try:
            record = io.read_json(file, advice)
            files = {path: ((size, time), version) for path, ((size, time), version) in record["files"].items()}
            return Record(self.url, record["owner"], files)
        except FileNotFoundError:
            return Record(self.url)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise UserError(f"{file} is damaged: {advice}") from error

    def write_record(self, record: Record) -> None:
        io.write_json(self.root / _RECORD, dataclasses.asdict(record))


def url_of_copy(folder: Path) -> str | None:
    """Returns the URL of a folder in a copy, as messages name it; None for other folders."""
    with contextlib.suppress(OSError, UserError, ValueError, LookupError, TypeError):
        copies = remote.copies("runs")
        return io.read_json(copies / folder.relative_to(copies).parts[0] / _RECORD, "")["url"]
    return None


def checkpoint_of(path: str) -> str | None:
    """Returns the checkpoint that has a file, such as "checkpoints/100"; None: the file is of no checkpoint."""
    match = _CHECKPOINT.fullmatch(path)
    return f"{match[1]}/{match[2]}" if match else None


def complete_checkpoints(paths: Iterable[str]) -> dict[str, list[str]]:
    """Returns the checkpoints that have a manifest, with the paths of their files in them."""
    files = collections.defaultdict(list)
    for match in filter(None, map(_CHECKPOINT.fullmatch, paths)):
        files[f"{match[1]}/{match[2]}"].append(match[3])
    return {name: names for name, names in files.items() if MANIFEST in names}


def steps_by_folder(checkpoints: Iterable[str]) -> dict[str, list[int]]:
    """Returns the steps of checkpoints by folder."""
    steps = collections.defaultdict(list)
    for folder, _, step in (checkpoint.rpartition("/") for checkpoint in checkpoints):
        steps[folder].append(int(step))
    return steps


def upload_phase(path: str) -> int:
    """Returns the phase of an upload for a file: each may rely on the files of those before. -1: after the others."""
    if match := _CHECKPOINT.fullmatch(path):
        return 3 if match[3] == MANIFEST else 2
    return -1 if is_last_record(path) else int(path.rpartition("/")[2] == "config.json")


def is_last_record(path: str) -> bool:
    """Returns whether a file is the record of the newest checkpoint; with step 0: before the first."""
    return path.rpartition("/")[2] == _LAST


def is_shared(path: str) -> bool:
    """Returns whether verbs other than `train` write a file: results, samples and time grids."""
    return _SHARED.fullmatch(path) is not None


def has_results(path: str) -> bool:
    """Returns whether a file has stored results, to which several processes add lines."""
    return _RESULTS.fullmatch(path) is not None


def is_hidden(path: str) -> bool:
    """Returns whether a file is not uploaded: hidden and temporary files, and what is set aside in `checkpoints`."""
    parts = path.split("/")
    is_aside = any(a == "checkpoints" and not b.isdigit() for a, b in itertools.pairwise(parts))
    return is_aside or any(part.startswith(".") for part in parts)
