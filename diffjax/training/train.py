"""Trains or resumes a run and its parts in a folder: prepares data, devices, checkpoints and logs for the loop."""

import contextlib
import dataclasses
import shutil
import sys
from collections.abc import Callable
from typing import Any, cast

import jax
import numpy as np
from ml_collections import ConfigDict

from diffjax import data, io
from diffjax.cluster import multihost
from diffjax.data import tokenizer
from diffjax.data.examples import Source
from diffjax.data.sources import OpenedSets, is_built_in
from diffjax.data.tokenizer import Tokenizer
from diffjax.errors import UserError, memory_limit_as_user_error, note, validate_integer, validate_number
from diffjax.inference.prompts import unique_captions
from diffjax.models.base import Model
from diffjax.models.capabilities import is_pipeline
from diffjax.models.lora import LoraModel, adapt, is_lora
from diffjax.models.pipelines.pipeline import Pipeline
from diffjax.runs import averages, exported_weights, latents
from diffjax.runs.checkpoint_files import list_steps
from diffjax.runs.checkpoints import Checkpoints
from diffjax.runs.datasets import open_training_examples, resolve
from diffjax.runs.dependencies import part_config, part_names, referenced_run
from diffjax.runs.loading import build_model, read_lora_base
from diffjax.runs.mirror import mirror_of
from diffjax.runs.power_functions import check_length, name_of
from diffjax.runs.state import TrainState
from diffjax.runs.tokenizers import load_tokenizer
from diffjax.runs.workdir import Workdir
from diffjax.training import loop, previews, resume
from diffjax.training.compiled_step import (
    Optimizers,
    compile_step,
    fit_to_first_batch,
    make_optimizers,
    memory_advice,
    needs_first_batch,
    trained_parameters,
)
from diffjax.training.held_out import has_losses, make_evaluate, open_held_out
from diffjax.training.loggers import open_logger
from diffjax.training.logging import MetricsLog, NullLog
from diffjax.training.profiling import Profiler
from diffjax.training.sharding import Devices
from diffjax.training.start import StartWeights, read_start
from diffjax.typing import Variables

_MAX_WORKERS = 256  # processes that read data
_TOKENIZER_CAPTIONS = 5_000  # first captions of the data set, which a tokenizer is trained on


def train(
    config: ConfigDict,
    workdir: Workdir,
    *,
    allow_config_change: bool = False,
    logger: str = "tensorboard",
    profile: int = 0,
    parent: ConfigDict | None = None,
    opened: OpenedSets | None = None,
) -> tuple[Model | None, int | None]:
    """Trains the parts of a config and then its model, or resumes each at its last checkpoint.

    The config is stored in the folder before any training, so that the folder alone is enough to resume.

    Args:
      allow_config_change: resume even if fields changed that affect the numbers of a step (see `resume`).
      logger: name of the logger, of `loggers.LOGGERS`.
      profile: number of steps to profile; 0: none.
      parent: config that this one is a part of.
      opened: data sets that need not be opened again, of the parent.

    Returns:
      The model (None: a signal came before it was built), and the signal that ended the run early, or None.

    Raises:
      UserError: the config or the folder is not valid, or too many steps were not finite.
    """
    if workdir.path.exists() and not workdir.path.is_dir():
        raise UserError(f"--workdir={workdir.path}: is not a folder; choose another path")
    if mirror_of(workdir.path) and not multihost.is_single_process():
        raise UserError(
            f"--workdir={workdir.name}: is only supported with one process; choose a folder on a file system that all "
            "hosts share"
        )
    if workdir.weights.exists():
        raise UserError(f"--workdir={workdir.name}: is an exported run, which cannot be trained; choose another folder")
    check(config)
    latents.check_config(config)
    opened = {} if opened is None else opened
    config = config if parent else resolve(config, opened)
    # Building the model with abstract parts reports errors of the whole config before any part is trained.
    planned = build_model(config, workdir.path, parent=parent, abstract=True)
    latents.check_model(config, planned)
    names = part_names(config)
    resume.check(config, workdir, allow_config_change=allow_config_change)
    system = None if names else build_model(config, workdir.path, training=True)
    prepared = None if is_pipeline(planned) else _Preparation.create(config, planned, workdir, parent, opened)
    if is_pipeline(planned) and not all(resume.is_trained_elsewhere(Workdir(workdir.path / name)) for name in names):
        check_examples(config, planned, open_training_examples(config, opened))
    _check_starts_of_parts(config, workdir)
    with workdir.locked() if multihost.is_main_process() else contextlib.nullcontext(lambda: None) as check_place:
        with multihost.main_process_first("begin"):
            if multihost.is_main_process() and is_pipeline(planned) and workdir.config.exists():
                resume.accept(config, workdir, 0)
            elif multihost.is_main_process() and not list_steps(workdir.checkpoints):
                workdir.write_config(config)
                if prepared:
                    workdir.write_last_checkpoint(0, len(prepared.source))
            multihost.check_shared(workdir.config)
        for number, name in enumerate(names, 1):
            print(f"part {number} of {len(names)}: {name}")
            part = Workdir(workdir.path / name)
            if resume.is_trained_elsewhere(part):
                continue
            options: Any = {"allow_config_change": allow_config_change, "logger": logger, "profile": profile}
            options |= {"parent": config, "opened": opened}
            _, stopped = train(part_config(config, name), part, **options)
            if stopped:
                return None, stopped
        system = system or build_model(config, workdir.path, training=True)
        if prepared and config.train.get("start") in {f"@{name}" for name in names}:  # which has weights now
            prepared = _Preparation.create(config, planned, workdir, parent, opened)
        if prepared is None:
            _complete_pipeline(config, cast(Pipeline, system), workdir)
            return system, None
        return system, _train(config, system, workdir, prepared, check_place, logger, profile)


def check(config: ConfigDict) -> None:
    """Checks the numbers of a config and of its parts. Raises UserError for numbers out of range."""
    validate_integer("seed", config.seed, low=0)
    validate_integer("data.workers", config.data.get("workers", 0), low=0, high=_MAX_WORKERS)
    counts = (
        "log_every",
        "eval_every",
        "sample_every",
        "checkpoint_every",
        "keep_last",
        "keep_every",
        "max_consecutive_skips",
    )
    if "train" in config:
        c = config.train
        validate_integer("train.steps", c.steps)
        for name in counts:
            validate_integer(f"train.{name}", c.get(name, 0), low=0)
        validate_integer("train.eval_batches", c.get("eval_batches", 1))
        num_samples = c.get("num_preview_samples", 0)
        validate_integer("train.num_preview_samples", num_samples, low=0, high=previews.MAX_SAMPLES)
        validate_integer("train.lora.rank", c.get("lora", {}).get("rank", 0), low=0)
        validate_integer("train.ema_every", c.get("ema_every", 0), low=0)
        lengths = c.get("ema_lengths", ())
        for length in lengths:
            check_length("train.ema_lengths", length)
        if len(set(map(name_of, lengths))) < len(lengths) or len(lengths) == 1:
            raise UserError(f"train.ema_lengths={lengths}: must be two different lengths, such as (0.05, 0.1), or ()")
        if c.get("ema_every", 0) and not lengths:
            raise UserError(f"train.ema_every={c.ema_every}: requires train.ema_lengths; set them, such as (0.05, 0.1)")
        validate_number("train.ema_decay", c.ema_decay, low=0, high=1, exclusive="high")
    for name in part_names(config):
        check(part_config(config, name))


@dataclasses.dataclass(frozen=True)
class _Preparation:
    """Devices, optimisers and data set, created before any part is trained so that their errors come first."""

    devices: Devices
    optimizers: Optimizers
    source: Source
    held_out: Source | None  # examples of the held-out loss; None: no such loss
    start: StartWeights | None  # initial weights; None: random, or the run has a checkpoint
    lora_base: Variables | None  # parameters that LoRA adapts; None: no LoRA

    @classmethod
    def create(
        cls, config: ConfigDict, model: Model, workdir: Workdir, parent: ConfigDict | None, opened: OpenedSets
    ) -> "_Preparation":
        devices = Devices.create(**config.parallel)
        devices.check_batch(config.train.batch_size, config.train.accumulate, model.group_size)
        start = None if list_steps(workdir.checkpoints) else read_start(config, model, workdir, parent)
        base = None
        if is_lora(config):
            base = _lora_base(config, model, workdir, start)
            model, start = adapt(config, model, base), start and start.without_params
        source = open_training_examples(config, opened)
        check_examples(config, model, source)
        held_out = open_held_out(config, opened) if has_losses(model) else None
        return cls(devices, make_optimizers(config, model), source, held_out, start, base)


def _lora_base(config: ConfigDict, model: Model, workdir: Workdir, start: StartWeights | None) -> Variables:
    """Returns the parameters that LoRA adapts, from the run that a new run starts from or from the run itself."""
    if list_steps(workdir.checkpoints):
        return read_lora_base(workdir, model)
    shapes = model.variable_shapes["params"]
    adapt(config, model, shapes)  # reports errors of the config first
    if start:
        return start.averaged_params
    if config.train.get("start"):
        return shapes  # of a part that is not trained yet
    rank = config.train.lora.rank
    raise UserError(f"train.lora.rank={rank}: requires train.start, the run whose weights are adapted; set it")


def _check_starts_of_parts(config: ConfigDict, workdir: Workdir) -> None:
    """Raises UserError if the initial weights of a part that is not trained yet do not fit."""
    for name in part_names(config):
        part, folder = part_config(config, name), Workdir(workdir.path / name)
        if part.get("train", {}).get("start") and not folder.has_weights:
            try:
                read_start(part, build_model(part, folder.path, parent=config, abstract=True), folder, config)
            except UserError as error:
                raise UserError(f"parts.{name}.{error}") from error
        _check_starts_of_parts(part, folder)


def _train(
    config: ConfigDict,
    system: Model,
    workdir: Workdir,
    prepared: _Preparation,
    check_place: Callable[[], None],
    logger: str,
    profile: int,
) -> int | None:
    """Trains a model with parameters. Returns the signal that ended training early, or None.

    Args:
      check_place: raises UserError if the run's folder is no longer at its path.
      logger: name of the logger.
      profile: number of steps to profile; 0: none.
    """
    devices = prepared.devices
    if system.text and list_steps(workdir.checkpoints) and not workdir.tokenizer.exists():
        raise UserError(
            f"{workdir.tokenizer}: is missing, and the run was trained with it; put a copy back, or choose another "
            "--workdir to start again"
        )
    with multihost.main_process_first("tokenizer"):
        start_tokenizer = prepared.start.tokenizer if prepared.start else None
        source = with_tokens(config, system, prepared.source, workdir, start_tokenizer)
    batches = data.Batches(
        source,
        batch_size=config.train.batch_size,
        seed=config.seed,
        flip=config.data.flip,
        keys=latents.example_fields(config, system, source),
    )
    local_batches = dataclasses.replace(batches, share=(jax.process_index(), jax.process_count()))
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory_limit_as_user_error(memory_advice(config, devices)))
        checkpoints = stack.enter_context(_open_checkpoints(config, workdir, check_place, len(source)))
        start = checkpoints.latest_step() or 0
        preview_first = previews.previews_missing(config, system, workdir, start)
        if start >= config.train.steps and not preview_first:
            _report_trained(config, workdir, start)
            return None
        trained = system if prepared.lora_base is None else adapt(config, system, prepared.lora_base)
        if isinstance(trained, LoraModel) and not start:
            with multihost.main_process_first("base"):
                if multihost.is_main_process():
                    exported_weights.save(workdir.base, {"params": trained.frozen["base"]}, 0)
        step, state = compile_step(
            config, trained, prepared.optimizers, devices, len(source), checkpoints if start else None
        )
        if profile:
            step = Profiler(step, profile, workdir.profile)
            stack.callback(step.close)
        if not start:
            state = _initialise(trained, state, batches, prepared)
        frozen = devices.replicate(trained.frozen)
        with multihost.main_process_first("config"):
            if multihost.is_main_process() and start:
                resume.accept(config, workdir, start)  # after the restore, which fails if the config does not fit
                _, before = workdir.read_last_checkpoint()
                if before not in (None, len(source)):
                    note(f"the data set has {len(source):,} examples, before {before:,}: they come in another order")
                workdir.write_last_checkpoint(start, len(source))  # later checkpoints are damaged
        log = stack.enter_context(_open_log(config, workdir, start, logger))
        _announce(config, trained, state, len(source), devices, start)
        preview = previews.make_preview(config, system, source, workdir, log, devices)
        merge = jax.jit(trained.merge) if isinstance(trained, LoraModel) else None

        def preview_in_place(step: int, state: TrainState) -> None:
            check_place()
            preview(step, state.replace(ema=merge(frozen["base"], state.ema)) if merge else state)

        evaluate = None
        if prepared.held_out:
            held_out = _with_run_tokens(system, prepared.held_out, workdir)
            fields = latents.example_fields(config, system, held_out)
            evaluate = make_evaluate(config, trained, held_out, fields, devices, frozen)
        intervals = ("steps", "log_every", "sample_every", "checkpoint_every")
        lengths = config.train.get("ema_lengths", ())
        if lengths and multihost.is_main_process():
            averages.delete_after(workdir, start)

        def save_averages(step: int, state: TrainState) -> None:
            if lengths:
                check_place()
                _save_averages(workdir, devices, step, state)

        iterator = local_batches.iterate(start, workers=config.data.get("workers", 0))
        stack.enter_context(contextlib.closing(iterator))
        max_skips = config.train.get("max_consecutive_skips", 0)
        try:
            _, stopped = loop.run(
                lambda state, batch: step(state, batch, frozen),
                state,
                data.prefetch(iterator, devices.put_batch),
                start=start,
                intervals=loop.Intervals(
                    **{name: config.train[name] for name in intervals},
                    ema_every=config.train.get("ema_every", 0),
                    eval_every=config.train.get("eval_every", 0),
                ),
                batch_size=config.train.batch_size,
                recorder=loop.Recorder(log, checkpoints, system.warn, max_skips, check_place, save_averages),
                preview=preview_in_place,
                preview_first=preview_first,
                evaluate=evaluate,
            )
        except loop.NotFinite as error:
            check_place()
            raise UserError(save_failed_step(workdir, batches, error)) from error
    return stopped


def _open_log(config: ConfigDict, workdir: Workdir, start: int, logger: str) -> MetricsLog | NullLog:
    """Opens the log of a run in the main process. A part is named PARENT/PART in wandb."""
    if not multihost.is_main_process():
        return NullLog()
    path = workdir.path.resolve()
    is_part = (path.parent / "config.json").exists()
    run_name = f"{path.parent.name}/{path.name}" if is_part else path.name
    return MetricsLog(
        workdir.path,
        start,
        lambda last: open_logger(logger, workdir, config, run_name=run_name, start=start, last=last),
    )


def _with_run_tokens(system: Model, source: Source, workdir: Workdir) -> Source:
    """Adds tokens to examples if the model reads captions, by the tokenizer of the run."""
    if system.text is None:
        return source
    text_tokenizer, length = tokenizer.load(workdir.tokenizer), system.text.length
    return data.with_tokens(source, lambda texts: text_tokenizer.encode(texts, length))


def _save_averages(workdir: Workdir, devices: Devices, step: int, state: TrainState) -> None:
    """Stores the power-function averages of a step. A full disk is reported on standard error, and ends nothing."""
    collections = {name: tree for name, tree in state.variables.items() if name != "params"}
    values = devices.on_host((state.power_ema, collections))
    if multihost.is_main_process():
        try:
            averages.save_snapshot(workdir, step, *values)
        except OSError as error:
            print(f"step {step}: the averages cannot be stored ({error.strerror})", file=sys.stderr)


def _initialise(system: Model, state: TrainState, batches: data.Batches, prepared: _Preparation) -> TrainState:
    """Returns a new state with the weights that the run starts from, then fitted to the first batch if needed."""
    if prepared.start:
        print(prepared.start.summary)
        state = prepared.start.apply(state)
    if needs_first_batch(system):
        state = fit_to_first_batch(system, state, batches.batch(0), prepared.devices)
        state = prepared.start.apply(state) if prepared.start else state  # the fit is of fresh weights only
    return state


def _open_checkpoints(
    config: ConfigDict, workdir: Workdir, check_place: Callable[[], None], examples: int
) -> Checkpoints:
    """Opens the checkpoints for writing; the main process records the newest step in last_checkpoint.json."""

    def record_step(step: int) -> None:
        with contextlib.suppress(OSError, UserError):  # on a full disk the older record stays valid
            check_place()
            workdir.write_last_checkpoint(step, examples)

    return Checkpoints(
        workdir.checkpoints,
        keep_last=config.train.keep_last,
        keep_every=config.train.keep_every,
        on_saved=record_step if multihost.is_main_process() else lambda step: None,
    )


def _report_trained(config: ConfigDict, workdir: Workdir, step: int) -> None:
    """Prints that a run has all its steps, and stores changes of other fields of its config."""
    print(f"{workdir.name} is trained to step {step}; raise --config.train.steps to continue")
    if multihost.is_main_process():
        changed = ConfigDict(config.to_dict())
        changed.train.steps = workdir.read_config().train.steps
        resume.accept(changed, workdir, step)


def save_failed_step(workdir: Workdir, batches: data.Batches, error: loop.NotFinite) -> str:
    """Saves the state and the batch of a failed step for `launch.py replay`. Returns the extended error message."""
    if multihost.is_main_process():
        shutil.rmtree(workdir.failed, ignore_errors=True)
    multihost.barrier("failed")
    with contextlib.closing(Checkpoints(workdir.failed)) as checkpoints:
        checkpoints.save(error.step - 1, error.state)
    if multihost.is_main_process():
        batch: dict[str, Any] = dict(batches.batch(error.step - 1))
        with io.atomic_path(workdir.failed / "batch.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, **batch)
    return f"{error}; see `python launch.py replay --workdir={workdir.path}`"


def _complete_pipeline(config: ConfigDict, system: Pipeline, workdir: Workdir) -> None:
    """Stores the tokenizer of a pipeline, which has no parameters besides those of its stages."""
    if not multihost.is_main_process():
        return
    if system.text:
        runs = [referenced_run(config, name, workdir.path) for name in ("clip", *system.stages) if config.get(name)]
        with_tokenizer = [run for run in runs if Workdir(run).tokenizer.exists()]
        if not with_tokenizer:
            raise UserError(
                f"{Workdir(runs[-1]).tokenizer}: is missing, as in the other stages of {workdir.path}; put a copy back"
            )
        load_tokenizer(with_tokenizer[0]).save(workdir.tokenizer)
    print(f"{config.system}: all stages are trained: {', '.join(system.stages)}")


def with_tokens(
    config: ConfigDict, system: Model, source: Source, workdir: Workdir, start_tokenizer: Tokenizer | None = None
) -> Source:
    """Adds tokens to the examples of a source if the model reads captions, and stores the tokenizer in the workdir.

    The tokenizer is, in this order: the workdir's, that of the CLIP that the config names, that of `text.tokenizer`,
    `start_tokenizer`, that of the run that the initial weights are from, or a new one, trained on the captions.

    Raises:
      UserError: the tokenizer does not fit `text.vocabulary`.
    """
    if system.text is None:
        return source
    captions, spec = unique_captions(source, _TOKENIZER_CAPTIONS), system.text
    text_tokenizer = _choose_tokenizer(config, workdir, captions, spec.vocabulary, start_tokenizer)
    if text_tokenizer.vocabulary > spec.vocabulary:
        raise UserError(
            f"text.tokenizer={config.text.tokenizer}: has {text_tokenizer.vocabulary} tokens, but text.vocabulary is "
            f"{spec.vocabulary}; raise text.vocabulary to that number"
        )
    if cut := sum(count > 0 for count in text_tokenizer.overlong(captions, spec.length)):
        print(f"text.length={spec.length}: {cut} of the first {len(captions)} captions have more tokens and are cut")
    if multihost.is_main_process():
        text_tokenizer.save(workdir.tokenizer)
    return data.with_tokens(source, lambda texts: text_tokenizer.encode(texts, spec.length))


def _choose_tokenizer(
    config: ConfigDict, workdir: Workdir, captions: list[str], vocabulary: int, start_tokenizer: Tokenizer | None
) -> Tokenizer:
    if workdir.tokenizer.exists():
        return tokenizer.load(workdir.tokenizer)
    if config.get("clip"):
        return load_tokenizer(referenced_run(config, "clip", workdir.path))
    if config.text.tokenizer:
        return tokenizer.load(config.text.tokenizer)
    return start_tokenizer or tokenizer.train(captions, vocabulary)


def check_examples(config: ConfigDict, model: Model, source: Source) -> None:
    """Checks the first example of a data set. Prints a note if the user's own data have captions that are not used.

    Raises:
      UserError: it cannot be read, or has no caption and the model reads captions.
    """
    name, has_captions = config.data.name, "caption" in source[0]
    if model.text and not has_captions:
        raise UserError(
            f"data.name={name}: has no captions, but this model is conditioned on them; add captions "
            "(docs/data.md), or choose shapes or emoji"
        )
    if has_captions and not model.text and not is_built_in(name):
        note(f"data.name={name}: the captions are not used, as this model is not text-conditioned")


def _announce(
    config: ConfigDict, system: Model, state: TrainState, examples: int, devices: Devices, start: int
) -> None:
    """Prints the size of the model and data set, the devices, and warnings about the config."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.variables["params"]))
    trained = jax.tree.leaves(trained_parameters(config, system))
    sizes = [leaf.size for leaf in jax.tree.leaves(state.variables["params"])] if trained else []
    frozen = sum(size for size, is_trained in zip(sizes, trained, strict=True) if not is_trained)
    print(
        f"{config.system} on {config.data.name}: {parameters:,} parameters{f' ({frozen:,} frozen)' * bool(frozen)}, "
        f"{examples:,} examples, "
        f"{devices.num_devices} {jax.default_backend()} device{'s' * (devices.num_devices > 1)} ({devices.mode})"
        + ("" if multihost.is_single_process() else f" of {jax.process_count()} processes")
        + (f", continuing at step {start}" if start else "")
        + (f"\n{system.note}" if system.note else "")
    )
    if config.train.warmup_steps > config.train.steps:
        print(
            f"train.warmup_steps={config.train.warmup_steps}: is more than train.steps={config.train.steps}, so the "
            "learning rate does not reach train.learning_rate"
        )
