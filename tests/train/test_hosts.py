"""Several processes that train one run: the same numbers as one process, one that writes, and what ends them."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from diffjax.errors import UserError
from diffjax.train import fatal_log, hosts
from tests import running, tiny

QUIET = {"train__sample_every": 0, "train__sample_count": 0}


def start(config, path, processes, *flags, devices=4, address=None):
    """Processes that train one run in `path`, with `devices` virtual ones together."""
    address = address or f"127.0.0.1:{free_port()}"
    flags_of_xla = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    environment = os.environ | {"XLA_FLAGS": flags_of_xla, "JAX_NUM_CPU_DEVICES": str(devices // processes)}
    command = [sys.executable, "launch.py", "train", f"--config={config}", f"--workdir={path}", *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    told = [[f"--coordinator={address}", f"--processes={processes}", f"--process={i}"] for i in range(processes)]
    return [
        subprocess.Popen(command + own * (processes > 1), cwd=tiny.ROOT, env=environment, **pipes) for own in told
    ]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def finish(started, timeout=500):
    """What each process printed, and its exit code."""
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return printed, [process.returncode for process in started]


def losses(path):
    return np.array([[line["step"], line["loss"]] for line in running.steps(path)])


def check_the_same(path, reference):
    np.testing.assert_allclose(losses(path), losses(reference), rtol=1e-5, atol=1e-5)


def test_two_processes_train_as_one(tmp_path):
    """Two processes of two devices, over which a copy of the state is spread, and one process of four."""
    config = tiny.write(tmp_path / "config.py", "vae", **QUIET, train__steps=3)
    one = start(config, tmp_path / "one", 1)
    two = start(config, tmp_path / "two", 2, "--config.parallel.fsdp=4")
    printed, codes = finish(one + two)
    assert codes == [0, 0, 0], printed
    check_the_same(tmp_path / "two", tmp_path / "one")
    assert len(losses(tmp_path / "two")) == 3
    assert "4 cpu devices (jit) of 2 processes" in printed[1]
    assert "trained to step 3" in printed[1] and "trained" not in printed[2]  # what is said is said once
