"""Checks before a run is resumed: nothing of it is missing, and its config computes the same numbers.

A config field is free, or it changes what a step computes. Free fields (`config.determining` leaves them out) may
differ when a run is resumed. Others are refused, unless the user allows it. Every change, allowed or free, is
recorded in config_changes.jsonl with its step.

`train.steps` is of both kinds. Where the learning rate does not depend on it, as after a warm-up to a constant, it only
decides when training ends. Under a decaying schedule it moves the whole decay.

A run also computes with the weights of its parts. Once it has trained, a part must not change, nor train on.
"""

from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax.errors import UserError
from diffjax.runs.checkpoints import steps_in
from diffjax.runs.config_files import determining, differing, flatten, part_alone, part_config, part_names, referred_run
from diffjax.runs.workdir import Workdir
from diffjax.training.compiled_step import learning_rates
from diffjax.training.logging import last_logged_step

_FLAG = "--allow_config_change"

Changes = dict[str, tuple[Any, Any]]  # (old, new) by dotted name


def check(config: ConfigDict, workdir: Workdir, *, allow_config_change: bool = False) -> None:
    """Checks that a run and its parts may be resumed with a config. Changes nothing.

    Args:
      config: config to resume with, or to begin with where the run has no checkpoint yet.
      allow_config_change: accept fields that change what a step computes.

    Raises:
      UserError: something of the run is missing, or its config is another one.
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
    """Whether the folder of a part is a link to another run, or exported weights: then it is only read."""
    return part.path.is_symlink() or part.weights.exists()


def check_complete(config: ConfigDict, workdir: Workdir) -> None:
    """Raises UserError, which names it, for what is missing of a run that has trained."""
    found = max(steps_in(workdir.checkpoints), default=0)
    restore = f"put a copy back, or choose another --workdir to begin anew (nothing in {workdir.path} was changed)"
    if found and not workdir.config.exists():
        raise UserError(f"{workdir.config}: is missing, and the run has checkpoints; {restore}")
    last = workdir.read_last_checkpoint()
    back = f'to train on from step {found}, write {{"step": {found}}} into {workdir.last_checkpoint}'
    if last is not None and last > found:
        there = f"the newest there is of step {found}" if found else "there is none"
        raise UserError(f"{workdir.checkpoints}: the checkpoint of step {last} is missing, {there}; {restore}; {back}")
    if last is None and "train" in config and workdir.config.exists():  # a run of an earlier version
        logged = last_logged_step(workdir.metrics)
        every = workdir.read_config().get("train", {}).get("checkpoint_every", 0)
        if logged and (not workdir.checkpoints.exists() or 0 < every < logged - found):
            raise UserError(
                f"{workdir.checkpoints}: checkpoints are missing, as {workdir.metrics} goes to step {logged} and the "
                f"newest checkpoint is of step {found}; {restore}; {back}"
            )
    if not found:
        return
    for field, value in flatten(config).items():
        if isinstance(value, str) and value.startswith("@") and not field.startswith("parts."):
            part = Workdir(referred_run(config, field, workdir.path))
            if not part.config.exists():
                raise UserError(f"{field}={value}: {part.path}, which the run was trained with, is missing; {restore}")


def check_config(config: ConfigDict, workdir: Workdir) -> None:
    """Raises UserError, which names the fields, if a run that has trained would compute other numbers with a config."""
    if not workdir.config.exists():
        return
    stored, found = workdir.read_config(), max(steps_in(workdir.checkpoints), default=0)
    if found or workdir.error.exists() or "train" not in config:
        fields, numbers = changes(stored, config)
        if numbers := [name for name in numbers if "train" in config or not name.startswith("parts.")]:
            was = "; ".join(f"{name} was {fields[name][0]!r}, now {fields[name][1]!r}" for name in numbers)
            raise UserError(
                f"{workdir.path} was started with another config: {was}{_rates_note(stored, config, found, numbers)}. "
                f"Use another --workdir, or {_FLAG} to continue this one with the new config"
            )
    for name in part_names(config):  # parts stand on one another
        if name not in stored.get("parts", {}) or not steps_in(Workdir(workdir.path / name).checkpoints):
            continue
        fields, numbers = changes(part_alone(stored, name), part_alone(config, name))
        if below := [field for field in numbers if field.startswith("parts.")]:
            was = "; ".join(f"{field} was {fields[field][0]!r}, now {fields[field][1]!r}" for field in below)
            raise UserError(
                f"{workdir.path / name} was trained with parts of another config: {was}. Use another --workdir, or "
                f"{_FLAG} to continue with the new config"
            )


def changes(old: ConfigDict, new: ConfigDict) -> tuple[Changes, list[str]]:
    """Returns the fields that differ, and the names of those that change what a step computes.

    Of parts it has what changes their weights: also the steps that they are trained for.
    """
    fields = differing(old, new)
    decisive = determining(old).keys() | determining(new).keys()
    numbers = [name for name in fields if name in decisive]
    if "train.steps" in fields and ("train" not in old or "train" not in new or not same_rates(new, old.train.steps)):
        numbers.append("train.steps")
    for name in part_names(new):
        if name in old.get("parts", {}):
            found, theirs = changes(part_config(old, name), part_config(new, name))
            theirs = sorted({*theirs, *({"train.steps"} & found.keys())})
            fields |= {f"parts.{name}.{field}": found[field] for field in theirs}
            numbers += [f"parts.{name}.{field}" for field in theirs]
    return fields, sorted(numbers)


def same_rates(config: ConfigDict, total: int) -> bool:
    """Whether the learning rate at every step of a config would be the same with `train.steps` = `total`."""
    other = ConfigDict(config.to_dict())
    other.train.steps = total
    steps = np.arange(max(config.train.steps, total))
    before, after = learning_rates(config), learning_rates(other)
    return all(np.array_equal(jax.vmap(before[group])(steps), jax.vmap(after[group])(steps)) for group in before)


def accept(config: ConfigDict, workdir: Workdir, step: int) -> None:
    """Stores the config that a run is resumed with after `step`; records and prints what changes."""
    stored = workdir.read_config()
    fields, numbers = changes(stored, config)
    if fields:
        workdir.add_config_change(step, fields, numbers)
        was = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in fields.items())
        print(f"config changes at step {step}: {was}{_rates_note(stored, config, step, numbers)}")
    workdir.write_config(config)


def _rates_note(old: ConfigDict, new: ConfigDict, step: int, numbers: list[str]) -> str:
    """What a change of `train.steps` does to the learning rate at a step, as a part of a message."""
    if "train.steps" not in numbers or "train" not in old:
        return ""
    before, after = learning_rates(old), learning_rates(new)
    each = [
        f"from {float(before[group](step)):.3g} to {float(after[group](step)):.3g}" + f" ({group})" * bool(group)
        for group in sorted(before.keys() & after.keys())
    ]
    return f" (train.schedule decays to train.steps, so the learning rate at step {step} goes {', '.join(each)})"
