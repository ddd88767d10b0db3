"""Training the system of a config, in a folder: what `launch.py train` and the experiments do."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax import data, io
from diffjax.cluster import multihost
from diffjax.data import tokenizer
from diffjax.data.sources import Source
from diffjax.errors import UserError, checked_number, checked_whole, enough_memory
from diffjax.inference.prompts import captions_of
from diffjax.runs.checkpoints import Checkpoints, steps_in
from diffjax.runs.config_files import part_config, part_names, referred_run
from diffjax.runs.loading import blueprint, build_system, open_source, tokenizer_of
from diffjax.runs.state import TrainState
from diffjax.runs.workdir import Workdir
from diffjax.training import loop, previews, resume
from diffjax.training.compiled_step import compile_step, make_optimizers, memory_advice, prepared
from diffjax.training.logging import MetricsLog, NoLog
from diffjax.training.sharding import Devices
from diffjax.typing import System

_CAPTIONS = 5_000  # that a tokenizer is trained on, the first of the data set


def train(
    config: ConfigDict, workdir: Workdir, *, allow_config_change: bool = False, beside: ConfigDict | None = None
) -> tuple[System | None, int | None]:
    """Trains the system of a config in a folder, or resumes at its last checkpoint; its parts first, in theirs.

    The whole config is in the folder before anything is trained, so that the folder alone suffices to resume.

    Args:
      allow_config_change: resume even if fields of the config differ that change what a step computes (`resume`).
      beside: the config that this one is a part of.

    Returns:
      The system (None: a signal came before its turn), and the signal that ended the run early or None.

    Raises:
      UserError: what does not exist, does not fit or is not there; a loss that is not finite.
    """
    if workdir.weights.exists():
        raise UserError(f"{workdir.path} is an exported run, whose training cannot go on: choose another --workdir")
    check(config)
    planned = blueprint(config, beside, workdir.path)  # errors of the whole come before any part is trained
    names = part_names(config)
    resume.check(config, workdir, allow_config_change=allow_config_change)
    system = None if names else build_system(config, workdir.path, training=True)
    if not planned.stages:
        devices = Devices.create(**config.parallel)
        devices.check_batch(config.train.batch_size, config.train.accumulate)
        optimizers = make_optimizers(config, planned)
        source = open_source(config, config.data.split)
    with workdir.locked() if multihost.first() else contextlib.nullcontext(lambda: None) as check_place:
        with multihost.first_before_others("begin"):
            if multihost.first() and planned.stages and workdir.config.exists():
                resume.accept(config, workdir, 0)
            elif multihost.first() and not steps_in(workdir.checkpoints):
                workdir.write_config(config)
                if not planned.stages:
                    workdir.write_last_checkpoint(0)
            multihost.check_shared(workdir.config)
        for number, name in enumerate(names, 1):
            print(f"part {number} of {len(names)}: {name}")
            part = Workdir(workdir.path / name)
            if resume.is_trained_elsewhere(part):
                continue
            allowed = {"allow_config_change": allow_config_change}
            _, stopped = train(part_config(config, name), part, **allowed, beside=config)
            if stopped:
                return None, stopped
        system = system or build_system(config, workdir.path, training=True)
        if system.stages:
            _join(config, system, workdir)
            return system, None
        return system, _train(config, system, workdir, devices, optimizers, source, check_place)


def check(config: ConfigDict) -> None:
    """Raises UserError for counts of a config, or of its parts, that count nothing."""
    checked_whole("seed", config.seed, low=0)
    counts = ("log_every", "sample_every", "checkpoint_every", "keep_last", "keep_every", "skip_limit")
    if "train" in config:
        checked_whole("train.steps", config.train.steps)
        for name in counts:
            checked_whole(f"train.{name}", config.train.get(name, 0), low=0)
        checked_whole("train.sample_count", config.train.get("sample_count", 0), low=0, high=previews.MOST)
        checked_number("train.ema_decay", config.train.ema_decay, low=0, high=1, open_at="high")
    for name in part_names(config):
        check(part_config(config, name))


def _train(
    config,
    system: System,
    workdir: Workdir,
    devices: Devices,
    optimizers,
    source: Source,
    check_place: Callable[[], None],
) -> int | None:
    """Trains a system that has parameters of its own. Returns the signal that ended it early or None.

    Args:
      check_place: raises UserError if the run's folder is no longer at its path.
    """
    if system.text and steps_in(workdir.checkpoints) and not workdir.tokenizer.exists():
        raise UserError(
            f"{workdir.tokenizer}: is missing, and the run was trained with it; put a copy back, or choose another "
            "--workdir to begin anew"
        )
    with multihost.first_before_others("tokenizer"):
        source = with_tokens(config, system, source, [workdir])
    batches = data.Batches(
        source, batch_size=config.train.batch_size, seed=config.seed, flip=config.data.flip, keys=keys_of(system)
    )
    share = dataclasses.replace(batches, share=(jax.process_index(), jax.process_count()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(enough_memory(memory_advice(config, devices)))

        def closed_after(thing):
            return stack.enter_context(contextlib.closing(thing))

        def note_checkpoint(step: int) -> None:
            with contextlib.suppress(OSError, UserError):  # of a full disk: an older note is right too
                check_place()
                workdir.write_last_checkpoint(step)

        keep = {name: config.train[name] for name in ("keep_last", "keep_every")}
        noted = note_checkpoint if multihost.first() else lambda step: None
        checkpoints = stack.enter_context(Checkpoints(workdir.checkpoints, **keep, on_saved=noted))
        start = checkpoints.latest_step() or 0
        lacks_sheets = previews.are_lacking(config, system, workdir, start)
        if start >= config.train.steps and not lacks_sheets:
            print(f"{workdir.path} is trained to step {start}; to go on, raise --config.train.steps")
            if multihost.first():
                changed = ConfigDict(config.to_dict())
                changed.train.steps = workdir.read_config().train.steps
                resume.accept(changed, workdir, start)
            return None
        step, state = compile_step(config, system, optimizers, devices, len(source), checkpoints if start else None)
        if not start and system.objective.prepare:
            state = prepared(system, state, batches.batch(0), devices)
        frozen = devices.put_everywhere(system.frozen)
        with multihost.first_before_others("config"):
            if multihost.first() and start:
                resume.accept(config, workdir, start)  # only now: the checkpoint may not fit it
                workdir.write_last_checkpoint(start)  # later ones are damaged
        log = closed_after(MetricsLog(workdir.path, start) if multihost.first() else NoLog())
        _announce(config, system, state, len(source), devices, start)
        preview = previews.make_preview(config, system, source, workdir, log, devices)

        def show(step: int, state: TrainState) -> None:
            check_place()
            preview(step, state)

        intervals = ("steps", "log_every", "sample_every", "checkpoint_every")
        try:
            _, stopped = loop.run(
                lambda state, batch: step(state, batch, frozen),
                state,
                data.prefetch(share.iterate(start), devices.put_batch),
                start=start,
                schedule=loop.Schedule(**{name: config.train[name] for name in intervals}),
                images=config.train.batch_size,
                record=loop.Record(
                    log, checkpoints, system.objective.warn, config.train.get("skip_limit", 0), check_place
                ),
                preview=show,
                preview_first=lacks_sheets,
            )
        except loop.NotFinite as error:
            check_place()
            raise UserError(keep_failed(workdir, batches, error)) from error
    return stopped


def keep_failed(workdir: Workdir, batches: data.Batches, error: loop.NotFinite) -> str:
    """Keeps what the step that failed was given; returns the error with what looks at it."""
    if multihost.first():
        shutil.rmtree(workdir.failed, ignore_errors=True)
    multihost.barrier("failed")
    with contextlib.closing(Checkpoints(workdir.failed)) as failed:
        failed.save(error.step - 1, error.state)
    if multihost.first():
        with io.atomic_path(workdir.failed / "batch.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **batches.batch(error.step - 1))
    return f"{error}. See `python launch.py replay --workdir={workdir.path}`"


def _join(config, system: System, workdir: Workdir) -> None:
    """Completes a run of a chain of trained stages, which has nothing of its own to train."""
    if not multihost.first():
        return
    if system.text:
        runs = [referred_run(config, name, workdir.path) for name in ("clip", *system.stages) if config.get(name)]
        readers = [run for run in runs if Workdir(run).tokenizer.exists()]
        if not readers:
            raise UserError(
                f"{Workdir(runs[-1]).tokenizer}: is missing, as in the other stages of {workdir.path}; put a copy back"
            )
        tokenizer_of(readers[0]).save(workdir.tokenizer)
    print(f"{config.system} of the stages {', '.join(system.stages)}: every one is trained")


def with_tokens(config, system: System, source: Source, workdirs: Sequence[Workdir]) -> Source:
    """A source whose examples have tokens, where the system reads text; its tokenizer is kept in each workdir.

    That is the tokenizer kept there, that of the CLIP it stands on, that of a file, or one trained on the captions.
    """
    if system.text is None:
        return source
    if "caption" not in source[0]:
        raise UserError(
            f"{config.data.name} has no captions, and system={config.system} reads them: choose shapes or emoji"
        )
    captions, limit = captions_of(source, _CAPTIONS), system.text
    if workdirs[0].tokenizer.exists():
        own = tokenizer.load(workdirs[0].tokenizer)
    elif config.get("clip"):
        own = tokenizer_of(referred_run(config, "clip", workdirs[0].path))
    elif config.text.tokenizer:
        own = tokenizer.load(config.text.tokenizer)
    else:
        own = tokenizer.train(captions, limit.vocabulary)
    if own.vocabulary > limit.vocabulary:
        raise UserError(
            f"text.tokenizer={config.text.tokenizer} has {own.vocabulary} tokens, and text.vocabulary is "
            f"{limit.vocabulary}: raise it to that"
        )
    if cut := sum(count > 0 for count in own.overlong(captions, limit.length)):
        print(f"{cut} of the first {len(captions)} captions are longer than text.length={limit.length} tokens: cut")
    for workdir in workdirs if multihost.first() else ():
        own.save(workdir.tokenizer)
    return data.tokenized(source, lambda texts: own.encode(texts, limit.length))


def keys_of(system: System) -> tuple[str, ...]:
    """What of an example the system is trained on."""
    return ("image", "label", "tokens") if system.text else ("image", "label")


def _announce(config, system: System, state: TrainState, examples: int, devices: Devices, start: int) -> None:
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.variables["params"]))
    print(
        f"{config.system} on {config.data.name}: {parameters:,} parameters, {examples:,} examples, "
        f"{devices.count} {jax.default_backend()} device{'s' * (devices.count > 1)} ({devices.mode})"
        + ("" if multihost.alone() else f" of {jax.process_count()} processes")
        + (f", continuing at step {start}" if start else "")
        + (f"\n{system.objective.note}" if system.objective.note else "")
    )
    if config.train.warmup_steps > config.train.steps:
        print(
            f"train.warmup_steps={config.train.warmup_steps}: is more than train.steps={config.train.steps}, so the "
            "learning rate does not reach train.learning_rate"
        )
