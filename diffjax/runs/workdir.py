"""A run on disk: its config, its records, its checkpoints."""

import contextlib
import datetime
import errno
import fcntl
import os
import platform
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from diffjax import io
from diffjax.errors import UserError
from diffjax.runs import checkpoints, exported_weights
from diffjax.runs.config_files import from_json, to_json


class Workdir:
    """The layout of a run's folder."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.config_changes = self.path / "config_changes.jsonl"  # what changed in it when the run was resumed
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events"
        self.checkpoints = self.path / "checkpoints"
        self.last_checkpoint = self.path / "last_checkpoint.json"  # the step of the newest one that was written
        self.samples = self.path / "samples"
        self.results = self.path / "results"
        self.tokenizer = self.path / "tokenizer.json"  # of a run that reads text
        self.error = self.path / "error.txt"  # why a run that was trained with others ended
        self.weights = self.path / "weights.safetensors"  # of an exported run, in the place of checkpoints
        self.failed = self.path / "failed"  # what a step that was not finite was given
        self.lock = self.path / ".lock"

    def create(self) -> None:
        """Makes the folders.

        Raises:
          UserError: the path cannot be written, or a symbolic link in it would lead writes outside of the run.
        """
        self._check_links()
        try:
            for folder in (self.path, self.samples, self.results):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise UserError(f"cannot write to --workdir={self.path} ({reason}): choose another folder") from error

    def _check_links(self) -> None:
        """Raises UserError for a symbolic link that leads outside, at or below a path that training writes.

        Folders of parts may be links: training reads a linked part, and does not write it.
        """
        root = self.path.resolve()
        for written in vars(self).values():
            for link in _links(written) if written != self.path else ():
                if not link.resolve().is_relative_to(root):
                    raise UserError(
                        f"{link}: is a symbolic link to {os.readlink(link)}, outside of the run, which training would "
                        "write through; replace it by what it points to, or delete it"
                    )

    @contextlib.contextmanager
    def locked(self) -> Iterator[Callable[[], None]]:
        """Makes the folders, and keeps other processes from training in them; the lock ends with the process.

        Yields:
          A function that raises UserError if the folder is no longer at its path.

        Raises:
          UserError: another process trains there, or the lock is not a regular file.
        """
        self.create()
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise UserError(f"{self.lock}: must be a regular file, not a symbolic link; delete it") from error
        with os.fdopen(descriptor, "rb+", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise UserError(f"{self.lock}: must be a regular file; delete it")
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = file.read(200).decode(errors="replace").split("\n")[0]
                raise UserError(
                    f"{self.path} is being trained by {holder or 'another process'}: wait for it, stop it, or choose "
                    "another --workdir"
                ) from None
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())  # readers take the first line
            identity = _identity(self.path)

            def check_place() -> None:
                if _identity(self.path) != identity:
                    raise UserError(
                        f"--workdir={self.path}: the folder was moved or replaced while it trained, so training "
                        "stops without another save; run the same command with its new path, which continues at the "
                        f"last checkpoint there (a save in progress may have left {self.checkpoints}: delete it)"
                    )

            yield check_place

    def last_step(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or of exported weights; None where there is neither."""
        if self.weights.exists():
            return exported_weights.step_of(self.weights)
        return checkpoints.newest(self.checkpoints) if self.checkpoints.exists() else None

    def read_config(self) -> ConfigDict:
        """Returns the config of the run. Raises UserError where it is missing or damaged."""
        try:
            return from_json(self.config.read_bytes())
        except FileNotFoundError as error:
            if checkpoints.steps_in(self.checkpoints) or self.weights.exists():
                raise UserError(
                    f"{self.config}: is missing, and the run has trained weights; put a copy back, or choose another "
                    "--workdir"
                ) from error
            raise UserError(
                f"{self.path} is not a run (it has no config.json): train one with launch.py train"
            ) from error
        except (UserError, ValueError) as error:
            kind = "is damaged" if isinstance(error, UserError) else "is not JSON"
            raise UserError(f"{self.config} {kind} ({error}): restore it, or choose another folder") from error

    def write_config(self, config: ConfigDict) -> None:
        io.write_text(self.config, to_json(config))

    def read_config_changes(self) -> list[dict[str, Any]]:
        """Returns the changes of the config since the run began, oldest first, as `add_config_change` takes them.

        Raises:
          UserError: the file is damaged.
        """
        changes = []
        if not self.config_changes.exists():
            return changes
        for number, line in enumerate(self.config_changes.read_bytes().splitlines(), 1):
            try:
                change = io.from_json(line)
                _, _, fields = int(change["step"]), list(change["changes_numbers"]), dict(change["fields"])
                if not all(len(values) == 2 for values in fields.values()):
                    raise ValueError("a change needs an old and a new value")
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.config_changes}: line {number} is damaged ({error}); restore the file, or delete the line"
                ) from error
            changes.append(change)
        return changes

    def add_config_change(
        self, step: int, fields: Mapping[str, tuple[Any, Any]], changes_numbers: Sequence[str]
    ) -> None:
        """Records that the config is another from a step on.

        Args:
          step: steps made before the change.
          fields: (old, new) by dotted name.
          changes_numbers: those of the fields that change what a step computes.
        """
        change = {
            "step": step,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "changes_numbers": list(changes_numbers),
            "fields": {name: list(values) for name, values in fields.items()},
        }
        before = self.config_changes.read_text() if self.config_changes.exists() else ""
        io.write_text(self.config_changes, f"{before}{io.to_json(change)}\n")

    def read_last_checkpoint(self) -> int | None:
        """Returns the step of the newest checkpoint that was written, 0: none yet; None: the run has no record of it.

        Raises:
          UserError: the record is damaged.
        """
        advice = 'write {"step": N} into it, with the step N of the newest checkpoint'
        try:
            record = io.read_json(self.last_checkpoint, advice)
        except FileNotFoundError:
            return None
        step = record.get("step") if isinstance(record, dict) else None
        if type(step) is not int or step < 0:
            raise UserError(f"{self.last_checkpoint} is damaged: {advice}")
        return step

    def write_last_checkpoint(self, step: int) -> None:
        io.write_json(self.last_checkpoint, {"step": step})


def _links(path: Path) -> Iterator[Path]:
    """The symbolic links at and below a path, without following them."""
    if path.is_symlink():
        yield path
    elif path.is_dir():
        for child in path.iterdir():
            yield from _links(child)


def _identity(path: Path) -> tuple[int, int] | None:
    """What a folder keeps when it is moved: device and inode."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
