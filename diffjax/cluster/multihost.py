"""Training by several processes: discovery, agreement and failure.

All processes read one folder of the run. The main process, number 0, writes the shared files (config, metrics,
previews). All processes take part in computations on global arrays: steps, previews, checkpoints.
"""

import contextlib
import functools
import glob
import importlib.util
import itertools
import logging
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.errors import UserError

HEARTBEAT = 30  # seconds without a heartbeat after which a process counts as gone
_VARIABLES = {"coordinator": "JAX_COORDINATOR_ADDRESS", "processes": "JAX_NUM_PROCESSES", "process": "JAX_PROCESS_ID"}
_BARRIER_TIMEOUT = 3600  # seconds; the main process may prepare a data set
_barriers = itertools.count()
_EXIT_DELAY = 2.0  # seconds that a failed process stays, so that others can report their own errors


def is_main_process() -> bool:
    """Returns whether this process writes the shared files."""
    return jax.process_index() == 0


def is_single_process() -> bool:
    """Returns whether the run has one process only."""
    return jax.process_count() == 1


def resolve_settings(
    coordinator: str | None, processes: int | None, process: int | None
) -> tuple[str, int, int] | None:
    """Completes the flags by environment variables.

    Returns:
      The coordinator's address, the number of processes, and the number of this process; None if nothing is set.

    Raises:
      UserError: the settings are incomplete or not valid.
    """
    flags = {"coordinator": coordinator, "processes": processes, "process": process}
    values = {name: os.environ.get(_VARIABLES[name]) if value is None else value for name, value in flags.items()}
    labels = {name: f"--{name} ({_VARIABLES[name]})" for name in values}
    if all(value is None for value in values.values()):
        return None
    if missing := [labels[name] for name, value in values.items() if value is None]:
        raise UserError(f"{missing[0]} is missing; a run with several processes requires {', '.join(labels.values())}")
    address = str(values["coordinator"])
    try:
        count, number = int(str(values["processes"])), int(str(values["process"]))
    except ValueError as error:
        raise UserError(f"{labels['processes']} and {labels['process']} must be whole numbers ({error})") from error
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"{labels['coordinator']} = {address!r}: must be HOST:PORT, with the host of process 0")
    if count < 1 or not 0 <= number < count:
        raise UserError(f"--process={number} of --processes={count}: processes are numbered 0 ... {count - 1}")
    return address, count, number


def is_cluster_detected() -> bool:
    """Returns whether jax can detect the processes by itself: in a Slurm step of several tasks, or on TPUs."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if os.environ.get("JAX_PLATFORMS", "tpu") not in ("", "tpu", "tpu,cpu"):
        return slurm
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return slurm or bool(chips and importlib.util.find_spec("libtpu"))


def connect(coordinator: str | None, processes: int | None, process: int | None, *, wait: int) -> None:
    """Joins the other processes of the run. Call it before any use of a jax device. Does nothing for one process.

    Args:
      coordinator: HOST:PORT of process 0; None: from the environment, as for the next two.
      processes: number of processes.
      process: number of this process, from 0.
      wait: seconds to wait for the other processes.

    Raises:
      UserError: the settings are not valid, or the coordinator cannot be reached.
    """
    settings = resolve_settings(coordinator, processes, process)
    if settings is None and not is_cluster_detected():
        return
    if settings and settings[1] == 1:
        return
    if settings and settings[2] > 0:
        _await_coordinator(settings[0], wait)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from the training loop
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs the loss of a process at length
    _filter_standard_error()
    address, count, number = settings or (None, None, None)
    try:
        jax.distributed.initialize(
            address,
            count,
            number,
            cluster_detection_method="deactivate" if settings else None,
            initialization_timeout=wait,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:
        if settings is None and "coordinator_address" in str(error):  # TPUs of one machine outside of a cluster
            return
        raise UserError(
            f"the processes of the run cannot be joined ({error}); correct --coordinator, --processes and --process"
        ) from error
    except RuntimeError as error:
        raise UserError(
            f"the processes of the run cannot be joined ({str(error).splitlines()[0]}); start them all again"
        ) from error
    if not is_main_process():  # the main process prints for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _await_coordinator(address: str, wait: int) -> None:
    """Waits for the coordinator, as jax would end this process otherwise. Raises UserError after `wait` s."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + wait
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"--coordinator={address}: no answer after {wait} s ({error.strerror or error}); start process 0 "
                    "there, or correct the address"
                ) from error
        time.sleep(0.5)


def _filter_standard_error() -> None:
    """Redirects what libraries write to standard error through `crash_log`. Python's output is not redirected."""
    direct = os.dup(2)
    script = Path(__file__).with_name("crash_log.py")
    log_filter = subprocess.Popen(
        [sys.executable, "-E", "-S", str(script)], stdin=subprocess.PIPE, stderr=direct, start_new_session=True
    )
    assert log_filter.stdin is not None
    os.dup2(log_filter.stdin.fileno(), 2)
    log_filter.stdin.close()
    sys.stderr = os.fdopen(direct, "w", buffering=1)


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Ends this process at once if the block fails, so that the other processes end too.

    Otherwise the failed process would wait at its exit for the others, and they in their next step for it.
    """
    try:
        yield
    except BaseException as error:
        if is_single_process():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError | TimeoutError) and "RESOURCE_EXHAUSTED" not in str(error):
            time.sleep(HEARTBEAT + 5)  # most likely another process is gone; then jax ends this one with a message
        if isinstance(error, UserError | OSError):
            print(f"error: {error}", file=sys.stderr)
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stderr.flush()
        time.sleep(_EXIT_DELAY)
        os._exit(2 if isinstance(error, UserError | OSError) else 1)


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    if not is_single_process():
        ocp.multihost.get_barrier_sync_fn()(key=f"{name}_{next(_barriers)}", timeout_ms=_BARRIER_TIMEOUT * 1000)


@contextlib.contextmanager
def main_process_first(name: str) -> Iterator[None]:
    """Runs the block in the main process, then in the others, which find the files that it wrote."""
    if not is_main_process():
        barrier(name)
    yield
    if is_main_process():
        barrier(name)


def check_shared(file: Path) -> None:
    """Checks that this process sees a file that the main process has written. Raises UserError if not."""
    deadline = time.monotonic() + 30  # network file systems have a delay
    while not file.exists():
        if time.monotonic() > deadline:
            raise UserError(
                f"process {jax.process_index()} does not see {file}, which process 0 wrote; put --workdir on a file "
                "system that all hosts share"
            )
        time.sleep(0.2)


def put(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays that every process has on the devices of `sharding`, as jax.device_put, without comparing them."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def global_array(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # a global array already
            return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(global_array, tree)


def any_process(flag: bool) -> bool:
    """Returns whether `flag` is true in any process. All processes must call it."""
    return bool(make_allreduce_max()(int(flag)))


@functools.cache
def make_allreduce_max() -> Callable[[int], jax.Array]:
    """Returns a function of one integer per process that computes the maximum of all processes, asynchronously."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    largest = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(mesh, P()))

    def allreduce_max(number: int) -> jax.Array:
        local = np.full(len(jax.local_devices()), number, np.int32)
        return largest(jax.make_array_from_process_local_data(NamedSharding(mesh, P("devices")), local))

    return allreduce_max
