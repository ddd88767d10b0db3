"""Train the system of a config, or continue a run.

  python launch.py train --config=configs/digits.py --workdir=runs/digits [--config.train.steps=2000 ...]

Running the same command again resumes at the last checkpoint, and so does --workdir alone. SIGTERM, SIGHUP and Ctrl-C
save first; the exit code is then 128 + the signal's number. A closed standard output does not end training.

A config that would compute other numbers than the run's is refused. --allow_config_change accepts it and records what
changed in config_changes.jsonl.

Several processes train one run where each is told --coordinator=HOST:PORT --processes=N --process=I, or Slurm or a
TPU slice says so: docs/scaling.md.
"""

import logging
import os
import signal

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, define_config, define_workdir, read_config, required
from diffjax.cluster import multihost
from diffjax.cluster.signals import has_left_work
from diffjax.runs.checkpoints import steps_in
from diffjax.runs.workdir import Workdir
from diffjax.training.train import train
from diffjax.typing import System


def define(flags: Flags) -> None:
    define_config(flags)
    define_workdir(flags)
    absl_flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0 (or JAX_COORDINATOR_ADDRESS)", flag_values=flags
    )
    absl_flags.DEFINE_integer("processes", None, "that train the run (or JAX_NUM_PROCESSES)", flag_values=flags)
    absl_flags.DEFINE_integer("process", None, "which this is, from 0 (or JAX_PROCESS_ID)", flag_values=flags)
    absl_flags.DEFINE_integer("wait", 300, "seconds for the other processes to come", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_boolean(
        "allow_config_change",
        False,
        "resume even if the config computes other numbers than the run's so far; the change is recorded",
        flag_values=flags,
    )


def run(arguments: Arguments) -> int:
    workdir = Workdir(required(arguments, "workdir"))
    begun = workdir.config.exists() or steps_in(workdir.checkpoints)
    config = read_config(arguments, workdir.read_config() if begun else None)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # a save that fails is printed in one line, not as traces
    multihost.connect(arguments.coordinator, arguments.processes, arguments.process, wait=arguments.wait)
    with multihost.together():
        try:
            system, stopped = train(config, workdir, allow_config_change=arguments.allow_config_change)
        except KeyboardInterrupt:
            print("interrupted without saving; the same command continues at the last checkpoint", flush=True)
            return 128 + signal.SIGINT
    if stopped:
        print(f"stopped by signal {stopped}; the same command continues", flush=True)
        if has_left_work():
            os._exit(128 + stopped)
        return 128 + stopped
    _say_what_next(workdir, config, system)
    return 0


def _say_what_next(workdir: Workdir, config, system: System) -> None:
    if not system.stages:
        step = max(steps_in(workdir.checkpoints), default=config.train.steps)
        sheets = sorted(workdir.samples.glob(f"*_{step:08d}.png"))
        print(f"trained to step {step}" + "".join(f"; {sheet}" for sheet in sheets))
    print("try next:")
    run = f"--workdir={workdir.path}"
    if system.classify:
        print(f"  python launch.py evaluate {run} --metrics=accuracy")
        print(f"  python launch.py sweep --workdir=RUN --classifier={workdir.path} --classifier_scale=0,1,2")
    if system.embeds:
        print(f"  python launch.py sample --workdir={workdir.path.parent}, once the whole chain is trained")
    elif system.takes:
        print(f"  python launch.py sample {run} --image=test:0 --num=8 --out=samples.png")
    elif system.sample and system.text:
        print(f'  python launch.py sample {run} --prompt="..." --num=16 --out=samples.png')
    elif system.sample:
        print(f"  python launch.py sample {run} --out=samples.png --num=100")
    if system.clip:
        print(f"  python launch.py evaluate {run} --metrics=retrieval,zero_shot --num=1000")
    if system.model and not system.embeds:
        print(f"  python launch.py sweep {run} --steps=5,10,20,50,100 --eta=0,1")
    if system.codec and not system.embeds:
        print(f"  python launch.py evaluate {run} --metrics=reconstruction")
    if system.codec and not (system.sample or system.embeds):
        prior = f"--config=configs/prior_transformer.py --config.codec={workdir.path}"
        print(f"  python launch.py train {prior} --workdir=PRIOR")
