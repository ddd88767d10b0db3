"""Several processes that train one run, each with its devices: how they find, agree with and lose one another.

All read one folder of the run. The first writes what is one for all (config, metrics, pictures); all take part in what
is computed on global arrays: steps, previews, checkpoints.
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

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffjax.errors import UserError

HEARTBEAT = 30  # seconds without a sign of life after which a process counts as gone
_VARIABLES = {"coordinator": "JAX_COORDINATOR_ADDRESS", "processes": "JAX_NUM_PROCESSES", "process": "JAX_PROCESS_ID"}
_PATIENCE = 3600  # seconds for which others wait for what the first prepares, such as a data set
_barriers = itertools.count()
_LINGER = 2.0  # seconds for which a process that failed stays, so that others can say of what they fail themselves


def first() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def alone() -> bool:
    return jax.process_count() == 1


def settings(coordinator: str | None, processes: int | None, process: int | None) -> tuple[str, int, int] | None:
    """The coordinator's address, the number of processes and the place of this one: as given, else the environment's.

    None: nothing is said of them. Raises UserError for what is incomplete or cannot be.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    found = {name: os.environ.get(_VARIABLES[name]) if value is None else value for name, value in given.items()}
    named = {name: f"--{name} ({_VARIABLES[name]})" for name in found}
    if all(value is None for value in found.values()):
        return None
    if missing := [named[name] for name, value in found.items() if value is None]:
        raise UserError(
            f"of several processes each is told the coordinator, processes and process: {missing[0]} is missing"
        )
    try:
        processes, process = int(found["processes"]), int(found["process"])
    except ValueError as error:
        raise UserError(f"{named['processes']} and {named['process']} are whole numbers ({error})") from error
    host, colon, port = str(found["coordinator"]).rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(
            f"{named['coordinator']} is {found['coordinator']!r}: write HOST:PORT, of the machine of process 0"
        )
    if processes < 1 or not 0 <= process < processes:
        raise UserError(f"--process={process} of --processes={processes}: processes are numbered 0 ... {processes - 1}")
    return str(found["coordinator"]), processes, process


def detected() -> bool:
    """Whether jax finds out by itself who takes part: a Slurm step of several tasks, or a machine with TPUs."""
    slurm = "SLURM_STEP_NODELIST" in os.environ and int(os.environ.get("SLURM_NTASKS", "1")) > 1
    if os.environ.get("JAX_PLATFORMS", "tpu") not in ("", "tpu", "tpu,cpu"):
        return slurm
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return slurm or bool(chips and importlib.util.find_spec("libtpu"))


def connect(coordinator: str | None, processes: int | None, process: int | None, *, wait: int) -> None:
    """Joins the other processes of the run, before anything asks jax for a device. Does nothing where there are none.

    Args:
      coordinator, processes, process: HOST:PORT of process 0, how many there are and which this is; None: what the
        environment says.
      wait: seconds for the others to come.

    Raises:
      UserError: settings that cannot be; a coordinator that cannot be reached.
    """
    given = settings(coordinator, processes, process)
    if given is None and not detected():
        return
    if given and given[1] == 1:
        return
    if given and given[2] > 0:
        _await_coordinator(given[0], wait)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from the training loop
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # where one is gone, Orbax tells it at length, too
    _shorten_fatal_log()
    address, count, place = given or (None, None, None)
    try:
        jax.distributed.initialize(
            address,
            count,
            place,
            cluster_detection_method="deactivate" if given else None,
            initialization_timeout=wait,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:
        if given is None and "coordinator_address" in str(error):  # TPUs of one machine, which belong to no cluster
            return
        raise UserError(f"the processes of the run cannot be joined ({error})") from error
    except RuntimeError as error:
        raise UserError(f"the processes of the run cannot be joined ({str(error).splitlines()[0]})") from error
    if not first():  # what is said of the run is said once
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def _await_coordinator(address: str, wait: int) -> None:
    """Returns once somebody listens there: jax itself would end the process where nobody does."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + wait
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                raise UserError(
                    f"no coordinator at {address} after {wait} s ({error.strerror or error}): start process 0 on that "
                    "machine, or correct --coordinator"
                ) from error
        time.sleep(0.5)


def _shorten_fatal_log() -> None:
    """Sends what libraries write to standard error through `fatal_log`; Python's own goes there directly."""
    direct = os.dup(2)
    script = Path(__file__).with_name("fatal_log.py")
    filtered = subprocess.Popen(
        [sys.executable, "-E", "-S", str(script)], stdin=subprocess.PIPE, stderr=direct, start_new_session=True
    )
    os.dup2(filtered.stdin.fileno(), 2)
    filtered.stdin.close()
    sys.stderr = os.fdopen(direct, "w", buffering=1)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what all processes do: one that fails ends at once, and so do those that wait for it.

    Without it a failed process would wait at its exit for the others, and they in their next step for it.
    """
    try:
        yield
    except BaseException as error:
        if alone():
            raise
        if isinstance(error, jax.errors.JaxRuntimeError | TimeoutError) and "RESOURCE_EXHAUSTED" not in str(error):
            time.sleep(HEARTBEAT + 5)  # most likely another one is gone: then jax ends this process, and says so
        if isinstance(error, UserError | OSError):
            print(f"error: {error}", file=sys.stderr)
        elif not isinstance(error, SystemExit):
            traceback.print_exc()
        sys.stderr.flush()
        time.sleep(_LINGER)
        os._exit(2 if isinstance(error, UserError | OSError) else 1)


def barrier(name: str) -> None:
    """Returns once all processes are here."""
    if not alone():
        ocp.multihost.get_barrier_sync_fn()(key=f"{name}_{next(_barriers)}", timeout_ms=_PATIENCE * 1000)


@contextlib.contextmanager
def first_before_others(what: str) -> Iterator[None]:
    """The first process does what is inside, then the others: they find what it wrote."""
    if not first():
        barrier(what)
    yield
    if first():
        barrier(what)


def check_shared(file: Path) -> None:
    """Raises UserError where this process does not see a file that the first has written."""
    until = time.monotonic() + 30  # a network's folder may be late
    while not file.exists():
        if time.monotonic() > until:
            raise UserError(
                f"process {jax.process_index()} does not see {file}, which process 0 wrote: put --workdir on a file "
                "system that all hosts share"
            )
        time.sleep(0.2)


def put(tree, sharding: NamedSharding):
    """Arrays that every process has, on the devices of `sharding`: `jax.device_put`, without comparing them."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    def global_array(leaf):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:  # already one of all processes
            return jax.jit(lambda x: x, out_shardings=sharding)(leaf)
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(global_array, tree)


def any_says(flag: bool) -> bool:
    """Whether it is true of any process; all ask together."""
    return bool(make_agreement()(int(flag)))


@functools.cache
def make_agreement() -> Callable[[int], jax.Array]:
    """A function that is told this process's number and gives, once it is computed, the largest of all."""
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    largest = jax.jit(lambda x: x.max(), out_shardings=NamedSharding(mesh, P()))

    def agree(number: int) -> jax.Array:
        own = np.full(len(jax.local_devices()), number, np.int32)
        return largest(jax.make_array_from_process_local_data(NamedSharding(mesh, P("devices")), own))

    return agree
