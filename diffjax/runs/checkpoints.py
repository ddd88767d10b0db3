"""Checkpoints through Orbax: written in the background, atomically, each with all that continuing needs.

Beside what Orbax writes lies a manifest, the SHA-256 of every file, which is part of the same atomic write: a file
that was cut, flipped or lost later is found, and the checkpoint before it is used.
"""

import concurrent.futures
import contextlib
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffjax import io
from diffjax.cluster import multihost
from diffjax.errors import UserError
from diffjax.runs.state import TrainState
from diffjax.typing import Variables

FORMAT = 2  # 1 had neither manifest nor health, and is read; a later one is refused
_PARTS = ("variables", "ema", "optimizer", "health")  # apart, so that sampling reads no optimiser state
_MANIFEST = "manifest.json"
_DESCRIBED = 2**20  # bytes at most of what describes a state
_ATTEMPTS = 10  # at reading checkpoints that another process replaces meanwhile
_PAUSE = 0.2  # seconds between them
_UNCHANGED = 3  # failures among the same checkpoints that are taken as damage, and not as a deletion in progress

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run: the last `keep_last` (0: all), and every step divisible by `keep_every` (0: none).

    Of the checkpoints found, damaged ones are passed over, and named on standard error.
    """

    def __init__(
        self,
        directory: Path,
        *,
        keep_last: int = 0,
        keep_every: int = 0,
        read_only: bool = False,
        on_saved: Callable[[int], None] = lambda step: None,
    ):
        """Opens the checkpoints in a folder, which is created unless `read_only`.

        Args:
          keep_last: newest checkpoints kept; 0: all.
          keep_every: checkpoints of steps divisible by it are kept too; 0: none.
          read_only: write and delete nothing. Damaged checkpoints are not named at once, as they may be in the
            process of being deleted; `report_damage` does it.
          on_saved: called with the step of each checkpoint once it is whole.
        """
        self._directory = directory.absolute()
        self._read_only = read_only
        self._keep = {"max_to_keep": keep_last or None, "keep_period": keep_every or None}
        self._on_saved = on_saved
        self._manager = self._opened()
        self._saving: int | None = None  # the step that is being written
        self._failure: str | None = None  # why the last one could not be
        self._found: dict[int, str | None] = {}  # what is wrong with each that was looked at

    def latest_step(self) -> int | None:
        """The last step whose checkpoint is whole, None where there is no checkpoint at all.

        Raises UserError where there are some, and all are damaged.
        """
        self._settle()  # what is being written counts too
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            if self._damage(step) is None:
                return step
        if steps:
            raise UserError(
                f"every checkpoint in {self._directory} is damaged: put back a copy of one, or remove the folder to "
                "begin anew"
            )
        return None

    def save(self, step: int, state: TrainState) -> None:
        """Copies `state` off the device, then writes in the background. A step that is already saved is left alone.

        A write that fails, as on a full disk, is said on standard error, and the checkpoints before it stay. Several
        processes cannot go on from one that fails half-way: they do not begin it where the disk lacks room.
        """
        self._settle()
        # Damaged ones of later steps would count as the newest, so that good ones before them would be deleted.
        there = [found for found in steps_in(self._directory) if found >= step]
        if os.path.lexists(self._directory / str(step)) and step not in there:
            there.append(step)  # a file
        for found in there:
            if self._damage(found) is not None:
                self._set_aside(found)
            elif found == step:
                return
        self._saving, self._failure = step, None
        self._found.pop(step, None)
        parts = {name: ocp.args.StandardSave(getattr(state, name)) for name in _PARTS}
        if not multihost.alone() and multihost.any_says(self._lacks_room(state)):
            self._give_up("no space left on device")
            return
        try:
            self._manager.save(step, args=ocp.args.Composite(**parts), force=True)  # even if a later one exists
        except Exception as error:  # of the file system or of any library below
            self._failed(error)
        if not multihost.alone():
            self._settle()  # Orbax's threads meet over the devices, and may do so in another order than the next step

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """The state at `step` (None: the last whole one), laid out as `template`, of jax.ShapeDtypeStruct."""
        step = self._existing(step)
        names = [name for name in _PARTS if (self._directory / str(step) / name).exists()]
        parts = self._restore({name: getattr(template, name) for name in names}, step)
        if "health" not in parts:  # format 1
            fresh = lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)  # noqa: E731
            parts["health"] = jax.tree.map(fresh, template.health)
        return TrainState(step=jax.device_put(np.int32(step), template.step.sharding), **parts)

    def restore_ema(self, template: Variables, step: int | None = None) -> Variables:
        """The variables at `step` with averaged parameters, which sampling needs, with the shapes of `template`.

        On one device of this process, on whichever they were trained.
        """
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), template)
        restored = self._restore({"variables": template, "ema": template["params"]}, self._existing(step))
        return {**restored["variables"], "params": restored["ema"]}

    def report_damage(self) -> None:
        """Names the damaged checkpoints that were passed over and still exist on standard error."""
        for step, found in self._found.items():
            if found and os.path.lexists(self._directory / str(step)):
                print(f"checkpoint {step} in {self._directory} is damaged and passed over: {found}", file=sys.stderr)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written."""
        self._settle()

    def close(self) -> None:
        """Waits for what is being written. Raises UserError where that, the last one, could not be."""
        self._settle()
        self._manager.close()
        if self._failure:
            raise UserError(f"{self._failure}: make room, and run the same command again")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Closes; an error of the block is not replaced by that of a save, which is printed already."""
        with contextlib.suppress(UserError) if error else contextlib.nullcontext():
            self.close()

    def _existing(self, step: int | None) -> int:
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise UserError(f"no checkpoint in {self._directory}: train first, or point --workdir at a trained run")
        step = self.latest_step() if step is None else step
        if step not in steps:
            there = ", ".join(map(str, steps))
            raise UserError(f"no checkpoint of step {step} in {self._directory}; there are {there}")
        if damage := self._damage(step):
            raise UserError(f"checkpoint {step} in {self._directory} is damaged ({damage}): choose another step")
        return step

    def _damage(self, step: int) -> str | None:
        if step not in self._found:
            self._found[step] = found = damage(self._directory / str(step))
            if found and not self._read_only:
                print(f"checkpoint {step} in {self._directory} is damaged and passed over: {found}", file=sys.stderr)
        return self._found[step]

    def _restore(self, parts: dict, step: int) -> dict:
        args = {name: ocp.args.StandardRestore(template) for name, template in parts.items()}
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
        except (ValueError, KeyError) as error:
            first_line = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"checkpoint {step} in {self._directory} does not fit this config's model ({first_line}): "
                "use the config it was trained with, or another --workdir"
            ) from error

    def _opened(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            **self._keep,
            read_only=self._read_only,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        return ocp.CheckpointManager(self._directory, options=options, item_names=_PARTS)

    def _write_manifest(self) -> None:
        """Orbax calls it when all is written, before the folder is given its name."""
        folder = self._unfinished(self._saving)
        (folder / _MANIFEST).write_text(io.to_json({"format": FORMAT, "sha256": _digests(folder)}, indent=1))

    def _unfinished(self, step: int) -> Path:
        """The folder that Orbax writes a checkpoint to. Others with such names are leftovers, of other versions too."""
        return self._directory / f"{step}{ocp.utils.TMP_DIR_SUFFIX}"

    def _settle(self) -> None:
        """Waits for what is being written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._failed(error)
        saved, self._saving = self._saving, None
        if saved is not None and not self._failure:
            self._on_saved(saved)

    def _failed(self, error: Exception) -> None:
        if not multihost.alone():
            raise error  # one process cannot go on by itself
        self._give_up(str(error.__cause__ or error).strip().splitlines()[0][:200])
        shutil.rmtree(self._unfinished(self._saving), ignore_errors=True)  # what it takes of a disk that may be full
        if self._directory.exists():  # else the run was moved, and its folder is not created anew
            self._manager = self._opened()  # the old one remembers the step as saved

    def _give_up(self, reason: str) -> None:
        self._failure = f"step {self._saving} could not be saved in {self._directory} ({reason})"
        if multihost.first():
            print(f"{self._failure}: training goes on, the checkpoints before it are kept", file=sys.stderr)

    def _lacks_room(self, state: TrainState) -> bool:
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves([getattr(state, name) for name in _PARTS]))
        return shutil.disk_usage(self._directory).free < needed + _DESCRIBED

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, as its step, or one before it, is made again."""
        if multihost.first():
            names = itertools.chain([f"{step}.damaged"], (f"{step}.damaged.{i}" for i in itertools.count(2)))
            free = next(name for name in names if not os.path.lexists(self._directory / name))
            (self._directory / str(step)).rename(self._directory / free)
        self._found.pop(step, None)
        multihost.barrier("set aside")
        self._manager.reload()


def steps_in(directory: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, in ascending order, damaged ones too; [] without a folder."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        names = [path.name for path in directory.iterdir() if path.name.isascii() and path.name.isdigit()]
        return sorted(int(name) for name in names if str(int(name)) == name and (directory / name).is_dir())
    return []


def read(directory: Path, template: Variables, step: int | None = None) -> tuple[Variables, int]:
    """Reads the variables that sampling needs, also while another process saves and deletes checkpoints.

    Args:
      directory: folder of the checkpoints.
      template: shapes of the variables.
      step: step of the checkpoint; None: the newest whole one.

    Returns:
      The variables with averaged parameters, as `Checkpoints.restore_ema`, and their step.

    Raises:
      UserError: there is no such checkpoint, it is damaged, does not fit the shapes, or is replaced too fast.
    """

    def attempt(checkpoints: Checkpoints) -> tuple[Variables, int]:
        found = checkpoints.latest_step() if step is None else step
        files = _files(directory / str(found))
        variables = checkpoints.restore_ema(template, found)
        if _files(directory / str(found)) != files:
            raise FileNotFoundError(f"checkpoint {found} was deleted while it was read")
        return variables, found

    return _while_others_write(directory, attempt)


def newest(directory: Path) -> int | None:
    """Returns the step of the newest whole checkpoint, also while another process writes; None where there is none.

    Raises:
      UserError: there are checkpoints, and all are damaged.
    """
    return _while_others_write(directory, Checkpoints.latest_step) if steps_in(directory) else None


def _while_others_write(directory: Path, attempt: Callable[[Checkpoints], T]) -> T:
    """Calls `attempt` with the checkpoints in a folder, up to `_ATTEMPTS` times.

    After a failure the folder is watched: a checkpoint whose deletion has begun looks damaged until its name is gone.
    """
    unchanged = 0
    for last in [*[False] * (_ATTEMPTS - 1), True]:
        before = steps_in(directory)
        try:
            with Checkpoints(directory, read_only=True) as checkpoints:
                result = attempt(checkpoints)
                checkpoints.report_damage()
                return result
        except Exception as error:  # of Orbax, whichever file it misses
            time.sleep(_PAUSE)
            unchanged = unchanged + 1 if steps_in(directory) == before else 0
            if last or unchanged == _UNCHANGED:
                if isinstance(error, UserError):
                    checkpoints.report_damage()
                    raise
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                raise UserError(
                    f"the checkpoints in {directory} cannot be read ({type(error).__name__}: {reason}); try again, "
                    "and keep more of them (train.keep_last) if training replaces them meanwhile"
                ) from error
    raise AssertionError("unreachable")


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, None where nothing is.

    One of format 1, which has no manifest, is taken as it is. Raises UserError for one of a later format.
    """
    try:
        manifest = io.from_json((checkpoint / _MANIFEST).read_bytes())
    except FileNotFoundError:
        whole = all((checkpoint / name / "_METADATA").exists() for name in ("variables", "ema", "optimizer"))
        return None if whole and not (checkpoint / "health").exists() else f"{_MANIFEST} is missing"
    except (ValueError, OSError) as error:
        return f"{_MANIFEST} cannot be read ({type(error).__name__})"
    fields = manifest if isinstance(manifest, dict) else {}
    written, expected = fields.get("format"), fields.get("sha256")
    if type(written) is not int:
        return f"{_MANIFEST} has no format number"
    if written > FORMAT:
        raise UserError(
            f"{checkpoint} is a checkpoint of format {written}, and this version reads up to {FORMAT}: use a newer one"
        )
    if not isinstance(expected, dict):
        return f"{_MANIFEST} has no digests of files"
    try:
        there = _digests(checkpoint)
    except OSError as error:
        return f"{error.filename} cannot be read ({error.strerror})"
    if lost := sorted(expected.keys() - there.keys()):
        return f"{lost[0]} is missing" + _others(lost)
    if changed := sorted(name for name in expected if there[name] != expected[name]):
        return f"{changed[0]} is not as it was written" + _others(changed)
    return None


def _others(names: list[str]) -> str:
    return f", and {len(names) - 1} other files" if len(names) > 1 else ""


def _digests(checkpoint: Path) -> dict[str, str]:
    """SHA-256 of each file of the parts, by its path; those beside them Orbax writes last of all."""
    files = _files(checkpoint)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # hashing lets other threads run
        digests = pool.map(io.file_hash, files)
        return {path.relative_to(checkpoint).as_posix(): digest for path, digest in zip(files, digests, strict=True)}


def _files(checkpoint: Path) -> list[Path]:
    """The files of the parts of a checkpoint."""
    return sorted(path for path in checkpoint.glob("*/**/*") if path.is_file())
