"""Train the system of a config, or continue a run.

  python launch.py train --config=configs/digits.py --workdir=runs/digits [--config.train.steps=2000 ...]

Running the same command again resumes at the last checkpoint, and so does --workdir alone. SIGTERM, SIGHUP and Ctrl-C
save first; the exit code is then 128 + the signal's number. A closed standard output does not end training.

A config that would compute other numbers than the run's is refused. --allow_config_change accepts it and records what
changed in config_changes.jsonl.

Several processes train one run where each is told --coordinator=HOST:PORT --processes=N --process=I, or Slurm or a
TPU slice says so: docs/scaling.md.
"""

import contextlib
import errno
import logging
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from absl import flags as absl_flags

from diffjax.commands.flags import Arguments, Flags, define_config, define_workdir, read_config, required
from diffjax.train import hosts
from diffjax.train.checkpoints import steps_in
from diffjax.train.stop_signal import has_left_work
from diffjax.training import train
from diffjax.typing import System
from diffjax.workdir import Workdir


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
    with _output_may_close():
        return _run(arguments)


def _run(arguments: Arguments) -> int:
    workdir = Workdir(required(arguments, "workdir"))
    begun = workdir.config.exists() or steps_in(workdir.checkpoints)
    config = read_config(arguments, workdir.read_config() if begun else None)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # a save that fails is printed in one line, not as traces
    hosts.connect(arguments.coordinator, arguments.processes, arguments.process, wait=arguments.wait)
    with hosts.together():
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


@contextlib.contextmanager
def _output_may_close() -> Iterator[None]:
    """Keeps training when standard output or error closes, as in `train | head` or after a lost terminal."""
    own = {name: _Output(getattr(sys, name) or open(os.devnull, "w")) for name in ("stdout", "stderr")}  # noqa: SIM115
    former = {name: getattr(sys, name) for name in own}
    for name, stream in own.items():
        setattr(sys, name, stream)
    try:
        yield
    finally:
        for name, stream in own.items():
            stream.flush()
            if getattr(sys, name) is stream:  # else another process of the run has replaced it
                setattr(sys, name, former[name])


class _Output:
    """A text stream whose writes do not fail."""

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._surviving():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._surviving():
            self._stream.flush()

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO, errno.EBADF):  # it stays closed: what is buffered goes nowhere
                with open(os.devnull, "w") as nowhere, contextlib.suppress(OSError, ValueError):
                    os.dup2(nowhere.fileno(), self._stream.fileno())
