"""Checkpoints of a run through Orbax: written in the background, atomically, with the whole training state."""

import contextlib
import itertools
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from diffjax.cluster import multihost
from diffjax.errors import UserError
from diffjax.runs.checkpoint_files import find_damage, list_steps, write_manifest
from diffjax.runs.state import TrainState
from diffjax.typing import Variables

_ITEMS = (
    "variables",
    "ema",
    "optimizer",
    "health",
    "power_ema",
)  # stored separately, so that sampling reads no optimiser state
_METADATA_SIZE = 2**20  # bytes, upper bound of the files that describe a state


class Checkpoints:
    """The checkpoints of one run.

    Damaged checkpoints are skipped, and each is reported once on standard error.
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
          keep_last: number of newest checkpoints to keep; 0: all.
          keep_every: checkpoints of steps divisible by it are kept too; 0: none.
          read_only: write and delete nothing. Damaged checkpoints are not reported at once, as they may be in the
            process of being deleted; call `report_damage`.
          on_saved: called with the step of each checkpoint once it is complete.
        """
        self._directory = directory.absolute()
        self._read_only = read_only
        self._keep_last = keep_last or None
        self._keep_every = keep_every or None
        self._on_saved = on_saved
        self._manager = self._open_manager()
        self._saving: int | None = None  # step of the checkpoint that is being written
        self._failure: str | None = None  # why the last save failed
        self._damage_by_step: dict[int, str | None] = {}  # results of `find_damage`

    def latest_step(self) -> int | None:
        """Returns the step of the newest undamaged checkpoint, None if there is no checkpoint at all.

        Raises:
          UserError: there are checkpoints, and all are damaged.
        """
        self.wait()
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            if self._damage(step) is None:
                return step
        if steps:
            raise UserError(
                f"every checkpoint in {self._directory} is damaged; restore one from a copy, or delete the folder to "
                "train from the start"
            )
        return None

    def save(self, step: int, state: TrainState) -> None:
        """Copies `state` off the device, then writes it in the background. Does nothing if the step is saved already.

        A failed write, such as on a full disk, is reported on standard error, and earlier checkpoints stay. With
        several processes a write that fails half-way ends training, so it is not started on a disk without space.
        """
        self.wait()
        # Damaged checkpoints of later steps would count as the newest, so that good earlier ones would be deleted.
        later = [existing for existing in list_steps(self._directory) if existing >= step]
        if os.path.lexists(self._directory / str(step)) and step not in later:
            later.append(step)  # a file
        for existing in later:
            if self._damage(existing) is not None:
                self._set_aside(existing)
            elif existing == step:
                return
        self._saving, self._failure = step, None
        self._damage_by_step.pop(step, None)
        items = {name: ocp.args.StandardSave(getattr(state, name)) for name in _items(state)}
        if not multihost.is_single_process() and multihost.any_process(self._lacks_space(state)):
            self._report_failure("no space left on device")
            return
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)  # even if a later one exists
        except Exception as error:  # from the file system or any library
            self._handle_failure(step, error)
        if not multihost.is_single_process():
            self.wait()  # Orbax's threads use collectives, which must not interleave with those of the next step

    def restore(self, template: TrainState, step: int | None = None) -> TrainState:
        """Returns the state of a checkpoint.

        Args:
          template: shapes and shardings of the state, as jax.ShapeDtypeStruct.
          step: step of the checkpoint; None: the newest undamaged one.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or it does not fit the template.
        """
        step = self._check_step(step)
        names = [name for name in _items(template) if (self._directory / str(step) / name).exists()]
        if template.power_ema and "power_ema" not in names:
            raise UserError(
                f"checkpoint {step} in {self._directory} has no averages of train.ema_lengths; train a new run"
            )
        items = self._restore({name: getattr(template, name) for name in names}, step)
        if "health" not in items:  # format 1

            def zeros(leaf):
                return jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)

            items["health"] = jax.tree.map(zeros, template.health)
        return TrainState(step=jax.device_put(np.int32(step), template.step.sharding), **items)

    def restore_ema(self, template: Variables, step: int | None = None) -> Variables:
        """Returns the variables of a checkpoint with averaged parameters, on one device of this process.

        Args:
          template: shapes of the variables.
          step: step of the checkpoint; None: the newest undamaged one.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or it does not fit the template.
        """
        template = _on_one_device(template)
        restored = self._restore({"variables": template, "ema": template["params"]}, self._check_step(step))
        return {**restored["variables"], "params": restored["ema"]}

    def restore_variables(self, template: Variables, step: int | None = None) -> Variables:
        """Returns the variables of a checkpoint as `restore_ema` does, with the parameters that are not averaged."""
        return self._restore({"variables": _on_one_device(template)}, self._check_step(step))["variables"]

    def report_damage(self) -> None:
        """Prints the damaged checkpoints that were skipped and still exist, on standard error."""
        for step, damage in self._damage_by_step.items():
            if damage and os.path.lexists(self._directory / str(step)):
                self._print_damage(step, damage)

    def wait(self) -> None:
        """Waits for the checkpoint that is being written."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            self._handle_failure(self._saving, error)
        step, self._saving = self._saving, None
        # The folder gets its name last. After an error that ended training it may be missing.
        if step is not None and not self._failure and step in list_steps(self._directory):
            self._on_saved(step)

    def close(self) -> None:
        """Waits for the checkpoint that is being written.

        Raises:
          UserError: the last checkpoint could not be saved.
        """
        self.wait()
        self._manager.close()
        if self._failure:
            raise UserError(f"{self._failure}; make room, and run the same command again")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, error, trace) -> None:
        """Closes. An error of the block is not replaced by the error of a save, which is printed already."""
        with contextlib.suppress(UserError) if error else contextlib.nullcontext():
            self.close()

    def _check_step(self, step: int | None) -> int:
        """Returns the step of an undamaged checkpoint, the newest for None. Raises UserError if it does not exist."""
        steps = sorted(self._manager.all_steps())
        chosen = self.latest_step() if steps and step is None else step
        if not steps or chosen is None:
            raise UserError(f"no checkpoint in {self._directory}; train first, or pass the --workdir of a trained run")
        if chosen not in steps:
            raise UserError(
                f"no checkpoint of step {chosen} in {self._directory}; choose from {', '.join(map(str, steps))}"
            )
        if damage := self._damage(chosen):
            raise UserError(f"checkpoint {chosen} in {self._directory} is damaged ({damage}); choose another step")
        return chosen

    def _damage(self, step: int) -> str | None:
        if step not in self._damage_by_step:
            self._damage_by_step[step] = damage = find_damage(self._directory / str(step))
            if damage and not self._read_only:
                self._print_damage(step, damage)
        return self._damage_by_step[step]

    def _print_damage(self, step: int, damage: str) -> None:
        print(f"checkpoint {step} in {self._directory} is damaged and skipped: {damage}", file=sys.stderr)

    def _restore(self, templates: dict[str, Any], step: int) -> dict[str, Any]:
        args = {name: ocp.args.StandardRestore(template) for name, template in templates.items()}
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**args)).items())
        except (ValueError, KeyError) as error:
            first_line = str(error).strip().splitlines()[0][:200]
            raise UserError(
                f"checkpoint {step} in {self._directory} does not fit this config's model ({first_line}); use the "
                "config it was trained with, or another --workdir"
            ) from error

    def _open_manager(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep_last,
            keep_period=self._keep_every,
            read_only=self._read_only,
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        return ocp.CheckpointManager(self._directory, options=options, item_names=_ITEMS)

    def _write_manifest(self) -> None:
        """Called by Orbax when all files are written, before the folder gets its final name."""
        write_manifest(self._unfinished(self._saving))

    def _unfinished(self, step: int | None) -> Path:
        """Returns the folder that Orbax writes a checkpoint to, before it renames the folder."""
        return self._directory / f"{step}{ocp.utils.TMP_DIR_SUFFIX}"

    def _handle_failure(self, step: int | None, error: Exception) -> None:
        """Reports a failed save and deletes its files. With several processes raises the error."""
        if not multihost.is_single_process():
            raise error  # the processes would disagree about the checkpoint
        self._report_failure(str(error.__cause__ or error).strip().splitlines()[0][:200])
        self._delete_unfinished(step)
        if self._directory.exists():  # otherwise the run was moved, and its folder is not created again
            self._manager = self._open_manager()  # the old one remembers the step as saved

    def _delete_unfinished(self, step: int | None) -> None:
        """Deletes the files of a failed save. Other threads of Orbax may still write some for a moment."""
        for _ in range(50):
            shutil.rmtree(self._unfinished(step), ignore_errors=True)  # the disk may be full
            if not self._unfinished(step).exists():
                return
            time.sleep(0.1)

    def _report_failure(self, reason: str) -> None:
        self._failure = f"step {self._saving} could not be saved in {self._directory} ({reason})"
        if multihost.is_main_process():
            print(f"{self._failure}: training continues, earlier checkpoints are kept", file=sys.stderr)

    def _lacks_space(self, state: TrainState) -> bool:
        size = sum(leaf.nbytes for leaf in jax.tree.leaves([getattr(state, name) for name in _ITEMS]))
        return shutil.disk_usage(self._directory).free < size + _METADATA_SIZE

    def _set_aside(self, step: int) -> None:
        """Renames a damaged checkpoint, since its step, or an earlier one, is trained again."""
        if multihost.is_main_process():
            names = itertools.chain([f"{step}.damaged"], (f"{step}.damaged.{i}" for i in itertools.count(2)))
            unused = next(name for name in names if not os.path.lexists(self._directory / name))
            (self._directory / str(step)).rename(self._directory / unused)
        self._damage_by_step.pop(step, None)
        multihost.barrier("set aside")
        self._manager.reload()


def _items(state: TrainState) -> list[str]:
    """Returns the items that a state has: runs without train.ema_lengths have no power_ema."""
    return [name for name in _ITEMS if name != "power_ema" or state.power_ema]


def _on_one_device(shapes: Variables) -> Variables:
    """Returns the shapes of variables with a sharding on the first device of this process."""
    local = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=local), shapes)
