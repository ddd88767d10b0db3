"""Train a config, or resume a run.

  python launch.py train --config=configs/digits.py --workdir=runs/digits [--config.train.steps=2000 ...]
  python launch.py train --config=digits --workdir=runs/digits
  python launch.py train --list

--config is a file, or the name of a packaged config, which --list lists.

The same command resumes at the last checkpoint, and so does --workdir alone. SIGTERM, SIGHUP and Ctrl-C save a
checkpoint first; the exit code is then 128 + the signal's number. A closed standard output does not stop training.

A config that would change the results of a run is refused. --allow_config_change accepts it, and records the change in
config_changes.jsonl.

metrics.jsonl has the metrics (docs/logging.md). --logger selects where they are shown besides: tensorboard (the folder
events of the run), wandb (Weights & Biases), or none.

--profile=10 writes a trace of ten steps into the folder profile of the run, for XProf, and prints the operations that
took most of the time.

To train one run with several processes, start each with --coordinator=HOST:PORT --processes=N --process=I; under Slurm
and on TPU slices this is detected (docs/scaling.md).
"""

import logging
import os
import signal

from absl import flags as absl_flags
from ml_collections import ConfigDict

from diffjax.cli import print_config
from diffjax.cli.flags import Arguments, Flags, define_config, define_workdir, print_summaries, read_config, required
from diffjax.cli.next_commands import next_commands
from diffjax.cluster import multihost
from diffjax.cluster.signals import has_abandoned_threads
from diffjax.errors import quiet_libraries
from diffjax.models.capabilities import is_pipeline
from diffjax.runs.checkpoints import list_steps
from diffjax.runs.workdir import Workdir
from diffjax.training.loggers import check_logger
from diffjax.training.train import train


def define(flags: Flags) -> None:
    define_config(flags)
    define_workdir(flags, url=True)
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
    absl_flags.DEFINE_integer(
        "profile", 0, "number of steps to profile; prints the slowest operations", lower_bound=0, flag_values=flags
    )
    absl_flags.DEFINE_boolean("list", False, "list the packaged configs, and exit", flag_values=flags)


def run(arguments: Arguments) -> int:
    if arguments.list:
        return print_summaries("configs")
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
                config,
                workdir,
                allow_config_change=arguments.allow_config_change,
                logger=arguments.logger,
                profile=arguments.profile,
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
    for line in next_commands(system, workdir.name):
        print(f"  python launch.py {line}")
    return 0


def _print_result(workdir: Workdir, config: ConfigDict) -> None:
    step = max(list_steps(workdir.checkpoints), default=config.train.steps)
    previews = sorted(workdir.samples.glob(f"*_{step:08d}.png"))
    print(f"trained to step {step}" + "".join(f"; {preview}" for preview in previews))
