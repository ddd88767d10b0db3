"""The folder of a run: its config, its records, its checkpoints."""

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
from diffjax.runs import exported_weights, mirror, pretrained, read_checkpoints
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.config_files import from_json, to_json


class Workdir:
    """The paths in a run's folder.

    A released model, `pretrained:NAME`, is read-only: its samples and results are in the current folder. A run at a URL
    has a local copy, which is downloaded when the process opens the run for the first time.
    """

    def __init__(self, path: str | os.PathLike):
        """Sets the paths of a folder.

        Raises:
          UserError: an unknown name of a released model, or a URL that cannot be read.
        """
        self.path = mirror.resolve(pretrained.resolve(path))
        self.config = self.path / "config.json"
        self.config_changes = self.path / "config_changes.jsonl"  # changes of the config when the run was resumed
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events"  # TensorBoard events
        self.wandb = self.path / "wandb"  # files of wandb, with --logger=wandb
        self.wandb_run = self.path / "wandb.json"  # id of the run of wandb
        self.checkpoints = self.path / "checkpoints"
        self.last_checkpoint = self.path / "last_checkpoint.json"  # step of the newest checkpoint that was written
        self.samples = pretrained.output_folder(self.path) / "samples"  # previews
        self.profile = self.path / "profile"  # trace of `train --profile`
        self.results = pretrained.output_folder(self.path) / "results"
        self.grids = pretrained.output_folder(self.path) / "grids.json"  # time grids of launch.py optimize_grid
        self.tokenizer = self.path / "tokenizer.json"  # only if the model reads captions
        self.weights = self.path / "weights.safetensors"  # only in exported runs, which have no checkpoints
        self.base = self.path / "base.safetensors"  # only in LoRA runs: weights of the run that they started from
        self.adapter = self.path / "adapter_model.safetensors"  # only in exported LoRA runs: for peft
        self.adapter_config = self.path / "adapter_config.json"  # of the same
        self.averages = self.path / "averages"  # averages of the weights at intervals, with train.ema_lengths
        self.failed = self.path / "failed"  # state and batch of a step with non-finite numbers, for replay
        self.lock = self.path / ".lock"

    def __repr__(self) -> str:
        return f"Workdir({self.name!r})"

    @property
    def name(self) -> str:
        """The folder of the run, its URL, or `pretrained:NAME`."""
        return pretrained.name_of(self.path) or mirror.name_of(self.path) or str(self.path)

    def create(self) -> None:
        """Creates the folders.

        Raises:
          UserError: the path cannot be written, or a symbolic link in it points outside of the run.
        """
        self._check_links()
        try:
            for folder in (self.path, self.samples, self.results):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise UserError(f"--workdir={self.path}: cannot be written ({reason}); choose another folder") from error

    def _check_links(self) -> None:
        """Raises UserError for a symbolic link that points outside of the run, at or below a path that training writes.

        Folders of parts may be links, as training only reads a linked part.
        """
        root = self.path.resolve()
        for written in vars(self).values():
            # wandb links its folders of runs to its cache, and writes to new ones only.
            for link in _links(written, below=written != self.wandb) if written != self.path else ():
                if not link.resolve().is_relative_to(root):
                    raise UserError(
                        f"{link}: is a symbolic link to {os.readlink(link)}, outside of the run, and training would "
                        "write there; replace the link by its target, or delete it"
                    )

    @contextlib.contextmanager
    def locked(self) -> Iterator[Callable[[], None]]:
        """Creates the folders, and locks them against training by other processes. The lock ends with the process.

        A run at a URL is owned meanwhile, and uploaded: see `Mirror.training`.

        Yields:
          A function that raises UserError if the folder is no longer at its path, or another training owns the run.

        Raises:
          UserError: another process trains there, the lock is not a regular file, or the run is a released model.
        """
        if pretrained.name_of(self.path):
            raise UserError(
                f"--workdir={self.name}: is a released model, which is read-only; choose another --workdir, and start "
                f"from its weights with --config.train.start={self.name}"
            )
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
                    f"--workdir={self.name}: is being trained by {holder or 'another process'}; stop it, or choose "
                    "another --workdir"
                ) from None
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())  # readers use the first line
            identity, copy = _identity(self.path), mirror.mirror_of(self.path)

            def check_place() -> None:
                if copy:
                    copy.check_owner()
                if _identity(self.path) != identity:
                    raise UserError(
                        f"--workdir={self.path}: the folder was moved or replaced during training, so training stops "
                        "without another save; run the same command with the new path to continue at the last "
                        f"checkpoint there (a save in progress may have left {self.checkpoints}: delete it)"
                    )

            with copy.training() if copy else contextlib.nullcontext():
                yield check_place

    @property
    def has_weights(self) -> bool:
        """True if the run has a checkpoint, which may be damaged, or exported weights."""
        return bool(list_steps(self.checkpoints)) or self.weights.exists()

    def last_step(self) -> int | None:
        """Returns the step of the newest undamaged checkpoint, or of exported weights; None if there is neither."""
        if self.weights.exists():
            return exported_weights.step_of(self.weights)
        return read_checkpoints.newest_step(self.checkpoints) if self.checkpoints.exists() else None

    def read_config(self) -> ConfigDict:
        """Returns the config of the run. Raises UserError if it is missing or damaged."""
        try:
            return from_json(self.config.read_bytes())
        except NotADirectoryError as error:
            raise UserError(f"{self.path}: is a file; name the folder of a run") from error
        except FileNotFoundError as error:
            if self.has_weights:
                raise UserError(
                    f"{self.config}: is missing, and the run has trained weights; put a copy back, or choose another "
                    "--workdir"
                ) from error
            raise UserError(
                f"{self.name} is not a run, as it has no config.json; train one with launch.py train"
            ) from error
        except OSError as error:
            raise UserError(f"{self.config}: cannot be read ({error.strerror}); choose the folder of a run") from error
        except (UserError, ValueError) as error:
            kind = "is damaged" if isinstance(error, UserError) else "is not JSON"
            raise UserError(f"{self.config}: {kind} ({error}); restore it, or choose another folder") from error

    def write_config(self, config: ConfigDict) -> None:
        io.write_text(self.config, to_json(config))

    def read_config_changes(self) -> list[dict[str, Any]]:
        """Returns the changes of the config since the run began, oldest first, in the form of `add_config_change`.

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
                    raise ValueError("each field needs an old and a new value")
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{self.config_changes}: line {number} is damaged ({error}); restore the file, or delete the line"
                ) from error
            changes.append(change)
        return changes

    def add_config_change(
        self, step: int, fields: Mapping[str, tuple[Any, Any]], changes_numbers: Sequence[str]
    ) -> None:
        """Records a change of the config.

        Args:
          step: number of training steps before the change.
          fields: (old, new) by dotted name.
          changes_numbers: names of the fields that change the numbers of a step.
        """
        change = {
            "step": step,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "changes_numbers": list(changes_numbers),
            "fields": {name: list(values) for name, values in fields.items()},
        }
        before = self.config_changes.read_text() if self.config_changes.exists() else ""
        io.write_text(self.config_changes, f"{before}{io.to_json(change)}\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the lines of metrics.jsonl, in order: "step", and values by name. Damaged lines are left out."""
        lines, _ = io.read_json_lines(self.metrics)
        return [line for line in lines if type(line.get("step")) is int and line["step"] >= 0]

    def read_last_checkpoint(self) -> tuple[int | None, int | None]:
        """Returns the record of the newest checkpoint that was written.

        Returns:
          Its step (0: there is no checkpoint yet; None: the run has no record), and the number of examples of the data
          set (None: it is not recorded).

        Raises:
          UserError: the record is damaged.
        """
        advice = 'write {"step": N} to it, where N is the step of the newest checkpoint'
        try:
            record = io.read_json(self.last_checkpoint, advice)
        except FileNotFoundError:
            return None, None
        step = record.get("step") if isinstance(record, dict) else None
        if type(step) is not int or step < 0:
            raise UserError(f"{self.last_checkpoint} is damaged; {advice}")
        examples = record.get("examples")
        return step, examples if type(examples) is int else None

    def write_last_checkpoint(self, step: int, examples: int) -> None:
        io.write_json(self.last_checkpoint, {"step": step, "examples": examples})


def _links(path: Path, *, below: bool = True) -> Iterator[Path]:
    """Yields the symbolic links at a path, and with `below` those in it, without following them."""
    if path.is_symlink():
        yield path
    elif below and path.is_dir():
        for child in path.iterdir():
            yield from _links(child)


def _identity(path: Path) -> tuple[int, int] | None:
    """Returns device and inode of a folder, which stay when it is moved; None if there is no folder."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
