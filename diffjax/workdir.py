"""A run on disk: its config, its records, its checkpoints."""

import contextlib
import fcntl
import json
import os
import platform
from pathlib import Path

from ml_collections import ConfigDict

from diffjax import io
from diffjax.config import determining, from_json, to_json
from diffjax.errors import UserError
from diffjax.train import weights
from diffjax.train.checkpoints import Checkpoints


class Workdir:
    """The layout of a run's folder."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.results = self.path / "results"
        self.tokenizer = self.path / "tokenizer.json"  # of a run that reads text
        self.error = self.path / "error.txt"  # why a run that was trained with others ended
        self.weights = self.path / "weights.safetensors"  # of an exported run, in the place of checkpoints
        self.failed = self.path / "failed"  # what a step that was not finite was given

    def create(self) -> None:
        """Makes the folders. Raises UserError where the path cannot be written."""
        try:
            for folder in (self.path, self.samples, self.results):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise UserError(f"cannot write to --workdir={self.path} ({reason}): choose another folder") from error

    @contextlib.contextmanager
    def locked(self):
        """Makes the folders, and keeps other processes from training in them; the lock ends with the process.

        Raises UserError where another process trains there.
        """
        self.create()
        with (self.path / ".lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    f"{self.path} is being trained by {file.read() or 'another process'}: wait for it, stop it, or "
                    "choose another --workdir"
                ) from None
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
            yield

    def last_step(self) -> int | None:
        """Of the last checkpoint that is whole, or of exported weights; None where there is neither."""
        if self.weights.exists():
            return weights.step_of(self.weights)
        if not self.checkpoints.exists():
            return None
        with contextlib.closing(Checkpoints(self.checkpoints)) as checkpoints:
            return checkpoints.latest_step()

    def read_config(self) -> ConfigDict:
        """The config the run was started with. Raises UserError where there is none."""
        if not self.config.exists():
            raise UserError(f"{self.path} is not a run (it has no config.json): train one with launch.py train")
        try:
            return from_json(self.config.read_text())
        except json.JSONDecodeError as error:
            raise UserError(f"{self.config} is not JSON ({error}): restore it, or choose another folder") from error

    def check_config(self, config: ConfigDict) -> None:
        """Raises UserError, naming the fields, if `config` differs from the run's in more than what may change."""
        stored, asked = determining(self.read_config()), determining(config)
        differing = [
            f"{name} was {stored.get(name)!r}, now {asked.get(name)!r}"
            for name in sorted(stored.keys() | asked.keys())
            if stored.get(name) != asked.get(name)
        ]
        if differing:
            raise UserError(
                f"{self.path} was started with another config: {'; '.join(differing)}. Use another --workdir, "
                "or --overwrite to continue this one with the new config"
            )

    def write_config(self, config: ConfigDict) -> None:
        io.write_text(self.config, to_json(config))
