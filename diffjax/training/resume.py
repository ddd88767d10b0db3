"""Checks before a run is resumed: no file is missing, and the config computes the same numbers.

A config field is either mutable or a training field, which changes the numbers of a step. Mutable fields
(`config_files.training_fields` omits them) may differ when a run is resumed. Other changes are refused, unless the user
allows them. Every change is recorded in config_changes.jsonl with its step.

`train.steps` can be either. If no learning rate so far depends on it, as in a warm-up, with a constant or in the stable
phase of a schedule that decays at the end, it only sets the end of training. Otherwise it changes the whole decay.

A run also computes with the weights of its parts. Once it has trained, its parts must not change or train further.
"""

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax.errors import UserError
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.config_files import changed_fields, flatten, training_fields
from diffjax.runs.dependencies import part_config, part_names, referenced_run, standalone_part
from diffjax.runs.workdir import Workdir
from diffjax.training.compiled_step import learning_rates

_FLAG = "--allow_config_change"

Changes = dict[str, tuple[Any, Any]]  # (old, new) by dotted name


def check(config: ConfigDict, workdir: Workdir, *, allow_config_change: bool = False) -> None:
    """Checks that a run and its parts may be resumed with a config. Changes nothing.

    Args:
      config: config to resume with, or to start with if the run has no checkpoint yet.
      allow_config_change: accept changes of training fields.

    Raises:
      UserError: a file of the run is missing, or the config changes its numbers.
    """
    check_complete(config, workdir)
    if not allow_config_change:
        check_config(config, workdir)
    for name in part_names(config):
        part = Workdir(workdir.path / name)
        if is_trained_elsewhere(part):
            continue
        check(part_config(config, name), part, allow_config_change=allow_config_change)


def is_trained_elsewhere(part: Workdir) -> bool:
    """Returns whether a part is a link to another run, or exported weights, and so is not trained."""
    return part.path.is_symlink() or part.weights.exists()


def check_complete(config: ConfigDict, workdir: Workdir) -> None:
    """Checks that no file of a run that has trained is missing. Raises UserError if one is."""
    newest = max(list_steps(workdir.checkpoints), default=0)
    restore = f"put a copy back, or choose another --workdir to start again (nothing in {workdir.path} was changed)"
    if newest and not workdir.config.exists():
        raise UserError(f"{workdir.config}: is missing, and the run has checkpoints; {restore}")
    last, _ = workdir.read_last_checkpoint()
    rewind = f'to continue from step {newest}, write {{"step": {newest}}} to {workdir.last_checkpoint}'
    if last is not None and last > newest:
        present = f"the newest is of step {newest}" if newest else "there is no checkpoint"
        raise UserError(
            f"{workdir.checkpoints}: the checkpoint of step {last} is missing, {present}; {restore}; {rewind}"
        )
    if last is None and "train" in config and workdir.config.exists():  # a run of an earlier version
        logged = max((line["step"] for line in workdir.read_metrics()), default=0)
        every = workdir.read_config().get("train", {}).get("checkpoint_every", 0)
        if logged and (not workdir.checkpoints.exists() or 0 < every < logged - newest):
            raise UserError(
                f"{workdir.checkpoints}: checkpoints are missing, as {workdir.metrics} ends at step {logged} and the "
                f"newest checkpoint is of step {newest}; {restore}; {rewind}"
            )
    if not newest:
        return
    for field, value in flatten(config).items():
        if isinstance(value, str) and value.startswith("@") and not field.startswith("parts."):
            part = Workdir(referenced_run(config, field, workdir.path))
            if not part.config.exists():
                raise UserError(
                    f"{field}={value}: {part.path}, a part that the run was trained with, is missing; {restore}"
                )


def check_config(config: ConfigDict, workdir: Workdir) -> None:
    """Checks that a config does not change the numbers of a run that has trained. Raises UserError if it does."""
    if not workdir.config.exists():
        return
    stored, newest = workdir.read_config(), max(list_steps(workdir.checkpoints), default=0)
    if newest or "train" not in config:
        fields, numbers = changes(stored, config, newest)
        if numbers := [name for name in numbers if "train" in config or not name.startswith("parts.")]:
            note = _rates_note(stored, config, newest, numbers)
            raise UserError(
                f"{workdir.path} was started with another config: {_describe(fields, numbers)}{note}; use another "
                f"--workdir, or {_FLAG} to continue with the new config"
            )
    for name in part_names(config):  # parts depend on one another
        if name not in stored.get("parts", {}) or not list_steps(Workdir(workdir.path / name).checkpoints):
            continue
        fields, numbers = changes(standalone_part(stored, name), standalone_part(config, name))
        if changed := [field for field in numbers if field.startswith("parts.")]:
            raise UserError(
                f"{workdir.path / name} was trained with parts of another config: {_describe(fields, changed)}; use "
                f"another --workdir, or {_FLAG} to continue with the new config"
            )


def changes(old: ConfigDict, new: ConfigDict, step: int | None = None) -> tuple[Changes, list[str]]:
    """Returns the fields that differ, and the names of those that change the numbers of a step.

    Fields of parts are included if they change the weights of the part; `train.steps` does.

    Args:
      step: number of training steps so far, whose learning rates must be the same; None: those of all steps.
    """
    fields = changed_fields(old, new)
    all_training_fields = training_fields(old).keys() | training_fields(new).keys()
    numbers = [name for name in fields if name in all_training_fields]
    has_rates = "train" in old and "train" in new
    if "train.steps" in fields and not (has_rates and same_rates(new, old.train.steps, step)):
        numbers.append("train.steps")
    for name in part_names(new):
        if name in old.get("parts", {}):
            part_fields, part_numbers = changes(part_config(old, name), part_config(new, name))
            names = sorted({*part_numbers, *({"train.steps"} & part_fields.keys())})
            fields |= {f"parts.{name}.{field}": part_fields[field] for field in names}
            numbers += [f"parts.{name}.{field}" for field in names]
    return fields, sorted(numbers)


def same_rates(config: ConfigDict, total: int, step: int | None = None) -> bool:
    """Returns whether the learning rates of a config are the same with `train.steps` = `total`.

    Args:
      step: last step whose learning rate is compared, after the steps so far; None: the last of training.
    """
    other = ConfigDict(config.to_dict())
    other.train.steps = total
    steps = np.arange(max(config.train.steps, total) if step is None else step + 1)
    before, after = learning_rates(config), learning_rates(other)
    return all(np.array_equal(jax.vmap(before[group])(steps), jax.vmap(after[group])(steps)) for group in before)


def accept(config: ConfigDict, workdir: Workdir, step: int) -> None:
    """Stores the config that a run resumes with after `step`; records and prints its changes."""
    stored = workdir.read_config()
    fields, numbers = changes(stored, config, step)
    if fields:
        workdir.add_config_change(step, fields, numbers)
        note = _rates_note(stored, config, step, numbers)
        print(f"config changes at step {step}: {_describe(fields, fields)}{note}")
    workdir.write_config(config)


def _describe(fields: Changes, names: Iterable[str]) -> str:
    return "; ".join(f"{name} was {fields[name][0]!r}, now {fields[name][1]!r}" for name in names)


def _rates_note(old: ConfigDict, new: ConfigDict, step: int, numbers: list[str]) -> str:
    """Returns the effect of a change of `train.steps` on the learning rate at a step, for a message."""
    if "train.steps" not in numbers or "train" not in old:
        return ""
    before, after = learning_rates(old), learning_rates(new)
    each = [
        f"from {np.asarray(before[group](step)):.3g} to {np.asarray(after[group](step)):.3g}"
        + f" ({group})" * bool(group)
        for group in sorted(before.keys() & after.keys())
    ]
    rates = ", ".join(each)
    return f" (train.learning_rate_schedule decays to train.steps, so the learning rate at step {step} goes {rates})"
