"""A process that computes one side of the comparison with PyTorch, in turn with the other side's.

    python -m diffjax.benchmark.worker

reads lines of JSON from standard input and answers each with one: first the workload, then the number of steps of each
turn, and an empty line to end. Libraries print to standard error.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

WARMUP = 2  # steps that are not timed
_STATUS, _RESET = "/proc/self/status", "/proc/self/clear_refs"  # of Linux


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        _serve(json.loads(sys.stdin.readline()), answers)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        _answer(answers, {"error": f"{type(error).__name__}: {lines[0]}"})


def _serve(request: dict[str, Any], answers: TextIO) -> None:
    start = _torch if request["side"] != "jax" else _jax
    run, description, peak_memory = start(request)
    for _ in range(WARMUP):
        run()
    _reset_peak()
    _answer(answers, description)
    while line := sys.stdin.readline().strip():
        seconds = []
        for _ in range(int(line)):
            before = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - before)
        _answer(answers, {"seconds": seconds})
    _answer(answers, {"peak_memory": peak_memory() or _peak_of_process()})


def _jax(request: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any], Callable[[], int | None]]:
    import jax
    from jaxlib import version as jaxlib

    from diffjax.benchmark import jax_workloads

    jax.config.update("jax_enable_compilation_cache", False)  # the seconds of compilation are reported
    workload = jax_workloads.build(request["case"], request["scale"], request["dtype"], request["batch_size"])
    device = jax.local_devices()[0]
    description = {
        "parameters": workload.parameters,
        "units": workload.units,
        "compile_seconds": workload.compile_seconds,
        "hardware": {"device": device.device_kind, "threads": len(os.sched_getaffinity(0))},
        "versions": {"jax": jax.__version__, "jaxlib": jaxlib.__version__},
    }
    return workload.run, description, lambda: (device.memory_stats() or {}).get("peak_bytes_in_use")


def _torch(request: dict[str, Any]) -> tuple[Callable[[], Any], dict[str, Any], Callable[[], int | None]]:
    from diffjax.benchmark import torch_workloads

    compiled = request["side"] == "torch_compile"
    run, parameters, units, seconds = torch_workloads.build(request["peer"], compiled=compiled)
    description = {
        "parameters": parameters,
        "units": units,
        "compile_seconds": seconds,
        "hardware": torch_workloads.hardware(),
        "versions": torch_workloads.versions(),
    }
    return run, description, torch_workloads.peak_memory


def _answer(answers: TextIO, values: dict[str, Any]) -> None:
    answers.write(json.dumps(values) + "\n")
    answers.flush()


def _reset_peak() -> None:
    """Resets the peak of this process' memory, where Linux allows it, so that it has no compilation."""
    try:
        with open(_RESET, "w") as file:
            file.write("5")
    except OSError:
        pass


def _peak_of_process() -> int:
    """Returns the peak of this process' memory in bytes."""
    try:
        with open(_STATUS) as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["VmHWM"].split()[0]) * 1024
    except (OSError, KeyError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
