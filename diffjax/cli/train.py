"""Train a config, or resume a run.

  python launch.py train --config=configs/digits.py --workdir=runs/digits [--config.train.steps=2000 ...]

The same command resumes at the last checkpoint, and so does --workdir alone. SIGTERM, SIGHUP and Ctrl-C save a
checkpoint first; the exit code is then 128 + the signal's number. A closed standard output does not stop training.

A config that would change the results of a run is refused. --allow_config_change accepts it, and records the change in
config_changes.jsonl.

metrics.jsonl has the metrics (docs/logging.md). --logger selects where they are shown besides: tensorboard (the folder
events of the run), wandb (Weights & Biases), or none.

To train one run with several processes, start each with --coordinator=HOST:PORT --processes=N --process=I; under Slurm
and on TPU slices this is detected (docs/scaling.md).
"""

import logging
import os
import signal
from collections.abc import Callable

from absl import flags as absl_flags
from ml_collections import ConfigDict

from diffjax.cli import print_config
from diffjax.cli.flags import Arguments, Flags, define_config, define_workdir, read_config, required
from diffjax.cluster import multihost
from diffjax.cluster.signals import has_abandoned_threads
from diffjax.errors import quiet_libraries
from diffjax.models import capabilities
from diffjax.models.base import Model
from diffjax.models.capabilities import is_pipeline
from diffjax.runs.checkpoints import list_steps
from diffjax.runs.workdir import Workdir
from diffjax.training.loggers import check_logger
from diffjax.training.train import train


def define(flags: Flags) -> None:
    define_config(flags)
    define_workdir(flags)
    absl_flags.DEFINE_string(
        "logger", "tensorboard", "besides metrics.jsonl: tensorboard | wandb | none", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0 (or JAX_COORDINATOR_ADDRESS)", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "processes", None, "number of processes of the run (or JAX_NUM_PROCESSES)", flag_values=flags
    )
    absl_flags.DEFINE_integer("process", None, "index of this process, from 0 (or JAX_PROCESS_ID)", flag_values=flags)
    absl_flags.DEFINE_integer("wait", 300, "seconds to wait for the other processes", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_boolean(
        "allow_config_change",
        False,
        "resume even if the config changes the results of the run; the change is recorded",
        flag_values=flags,
    )
    absl_flags.DEFINE_boolean(
        "print_config", False, "print every config value with its documentation, and exit", flag_values=flags
    )


def run(arguments: Arguments) -> int:
    if arguments.print_config:
        return print_config.run(arguments)
    workdir = Workdir(required(arguments, "workdir"))
    has_started = workdir.config.exists() or list_steps(workdir.checkpoints)
    config = read_config(arguments, workdir.read_config() if has_started else None)
    multihost.connect(arguments.coordinator, arguments.processes, arguments.process, wait=arguments.wait)
    with multihost.fail_together(), quiet_libraries(logging.CRITICAL):  # a failed save is one line, not tracebacks
        try:
            if multihost.is_main_process():
                check_logger(arguments.logger)
            system, stopped = train(
                config, workdir, allow_config_change=arguments.allow_config_change, logger=arguments.logger
            )
        except KeyboardInterrupt:
            print("interrupted without saving; the same command resumes at the last checkpoint", flush=True)
            return 128 + signal.SIGINT
    if stopped:
        print(f"stopped by signal {stopped}; the same command resumes", flush=True)
        if has_abandoned_threads():
            os._exit(128 + stopped)
        return 128 + stopped
    assert system is not None  # only a stopped run returns None
    if not is_pipeline(system):
        _print_result(workdir, config)
    print("try next:")
    for line in _next_commands(system, workdir):
        print(f"  python launch.py {line}")
    return 0


def _print_result(workdir: Workdir, config: ConfigDict) -> None:
    step = max(list_steps(workdir.checkpoints), default=config.train.steps)
    previews = sorted(workdir.samples.glob(f"*_{step:08d}.png"))
    print(f"trained to step {step}" + "".join(f"; {preview}" for preview in previews))


# Commands to try after training, for models of one capability; {run} is the flag of the workdir.
_NEXT_COMMANDS: tuple[tuple[Callable[[Model], bool], str], ...] = (
    (capabilities.is_classifier, "evaluate {run} --metrics=accuracy"),
    (capabilities.is_classifier, "sweep --workdir=RUN --classifier={path} --classifier_scale=0,1,2"),
    (capabilities.outputs_embeddings, "sample --workdir={parent}, once the full pipeline is trained"),
    (
        lambda model: capabilities.samples_images(model) and capabilities.is_upsampling_stage(model),
        "sample {run} --image=test:0 --num=8 --out=samples.png",
    ),
    (
        lambda model: _samples_from_prompts(model) and capabilities.is_text_conditioned(model),
        'sample {run} --prompt="..." --num=16 --out=samples.png',
    ),
    (
        lambda model: _samples_from_prompts(model) and not capabilities.is_text_conditioned(model),
        "sample {run} --out=samples.png --num=100",
    ),
    (capabilities.is_clip, "evaluate {run} --metrics=retrieval,zero_shot --num=1000"),
    (
        lambda model: capabilities.is_diffusion(model) and not capabilities.outputs_embeddings(model),
        "sweep {run} --steps=5,10,20,50,100 --eta=0,1",
    ),
    (
        lambda model: capabilities.is_autoencoder(model) and not capabilities.outputs_embeddings(model),
        "evaluate {run} --metrics=reconstruction",
    ),
    (
        lambda model: (
            capabilities.is_autoencoder(model)
            and not (capabilities.is_generative(model) or capabilities.outputs_embeddings(model))
        ),
        "train --config=configs/prior_transformer.py --config.codec={path} --workdir=PRIOR",
    ),
)


def _samples_from_prompts(model: Model) -> bool:
    return capabilities.samples_images(model) and not capabilities.is_upsampling_stage(model)


def _next_commands(model: Model, workdir: Workdir) -> list[str]:
    paths = {"run": f"--workdir={workdir.path}", "path": workdir.path, "parent": workdir.path.parent}
    return [command.format(**paths) for applies, command in _NEXT_COMMANDS if applies(model)]
