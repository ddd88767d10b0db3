"""Several processes that train one run: equal to one process, one of them writes, and failures of each."""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from diffjax.cluster import crash_log, multihost
from diffjax.errors import UserError
from tests import running, tiny

QUIET = {"train__sample_every": 0, "train__num_preview_samples": 0}


def start(config, path, processes, *flags, devices=4, address=None, numbers=None, slurm=False):
    """Starts the processes `numbers` of a run in `path`, which have `devices` virtual devices together.

    They find one another by flags, or by the environment variables of Slurm.
    """
    address = address or f"127.0.0.1:{free_port()}"
    flags_of_xla = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    environment = os.environ | {"XLA_FLAGS": flags_of_xla, "JAX_NUM_CPU_DEVICES": str(devices // processes)}
    command = [sys.executable, "launch.py", "train", f"--config={config}", f"--workdir={path}", *flags]
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": str(processes)}
    started = []
    for i in numbers or range(processes):
        identity = [f"--coordinator={address}", f"--processes={processes}", f"--process={i}"]
        task = job | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
        started.append(
            subprocess.Popen(
                command + identity * (processes > 1 and not slurm),
                cwd=tiny.ROOT,
                env=environment | task if slurm else environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return started


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def finish(started, timeout=500):
    """Returns the output and the exit code of each process."""
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    return printed, [process.returncode for process in started]


def losses(path):
    return np.array([[line["step"], line["loss"]] for line in running.steps(path)])


def check_equal_losses(path, reference):
    np.testing.assert_allclose(losses(path), losses(reference), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Compares two processes of two devices, which share one copy of the state, with one process of four."""
    config = tiny.write(tmp_path / "config.py", "vae", **QUIET, train__steps=3)
    one = start(config, tmp_path / "one", 1)
    two = start(config, tmp_path / "two", 2, "--config.parallel.fsdp=4")
    printed, codes = finish(one + two)
    assert codes == [0, 0, 0], printed
    check_equal_losses(tmp_path / "two", tmp_path / "one")
    assert len(losses(tmp_path / "two")) == 3
    assert "4 cpu devices (jit) of 2 processes" in printed[1]
    assert "trained to step 3" in printed[1] and "trained" not in printed[2]  # only the main process prints


@pytest.mark.slow
def test_slurm_tasks_need_no_flags(tmp_path):
    config = tiny.write(tmp_path / "config.py", "vae", **QUIET)
    printed, codes = finish(start(config, tmp_path / "run", 2, slurm=True))
    assert codes == [0, 0], printed
    assert "of 2 processes" in printed[0]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("mode=jit",), ("mode=jit", "fsdp=2"), ("mode=pmap",)], ids=" ".join)
def test_previews_and_captions_in_every_parallel_mode(tmp_path, flags):
    """All processes sample previews and read the tokenizer, which the first trains."""
    changes = {"data__name": "shapes", "data__image_size": 8, "text": tiny.TEXT, "conditions__caption": tiny._READER}
    changes |= {"model__head_channels": 8, "train__sample_every": 2, "train__num_preview_samples": 8}
    config = tiny.write(tmp_path / "config.py", "glide_base", **changes)
    one = start(config, tmp_path / "one", 1)
    two = start(config, tmp_path / "two", 2, *(f"--config.parallel.{flag}" for flag in flags))
    printed, codes = finish(one + two)
    assert codes == [0, 0, 0], printed
    check_equal_losses(tmp_path / "two", tmp_path / "one")
    previews = [sorted(path.name for path in (tmp_path / run / "samples").iterdir()) for run in ("one", "two")]
    assert previews[0] == previews[1] != []


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_stops_the_other_and_the_run_resumes(tmp_path, victim):
    config = tiny.write(
        tmp_path / "config.py", "vae", **QUIET, train__steps=2000, train__learning_rate_schedule="constant"
    )
    pair = start(config, tmp_path / "run", 2)
    running.wait_for_step(tmp_path / "run", 6, pair[0])
    pair[victim].kill()
    began = time.monotonic()
    printed, codes = finish(pair, timeout=multihost.HEARTBEAT + 60)
    assert time.monotonic() - began < multihost.HEARTBEAT + 10
    assert codes[1 - victim] not in (0, None)
    errors = [line for line in printed[1 - victim].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"process {victim}" in errors[0], printed[1 - victim]
    assert "Traceback" not in printed[1 - victim] and "stack trace" not in printed[1 - victim]
    print(f"measured: the other ended {time.monotonic() - began:.2f} s later")

    last = losses(tmp_path / "run")[-1, 0]
    short = f"--config.train.steps={int(last) + 2}"
    printed, codes = finish(start(config, tmp_path / "run", 2, short) + start(config, tmp_path / "whole", 1, short))
    assert codes == [0, 0, 0], printed
    assert "continuing at step" in printed[0]
    check_equal_losses(tmp_path / "run", tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path):
    config = tiny.write(
        tmp_path / "config.py",
        "vae",
        **QUIET,
        train__steps=2000,
        train__checkpoint_every=0,
        train__learning_rate_schedule="constant",
    )
    pair = start(config, tmp_path / "run", 2)
    running.wait_for_step(tmp_path / "run", 5, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    printed, codes = finish(pair)
    assert codes == [128 + signal.SIGTERM] * 2, printed
    (saved,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert losses(tmp_path / "run")[-1, 0] == saved < 2000
    printed, codes = finish(start(config, tmp_path / "run", 2, f"--config.train.steps={saved + 2}"))
    assert codes == [0, 0], printed
    assert f"continuing at step {saved}" in printed[0]


@pytest.mark.slow
def test_a_failed_process_stops_the_other(tmp_path):
    """The second process has another folder than the first, and alone reports it."""
    config = tiny.write(tmp_path / "config.py", "vae", **QUIET)
    (tmp_path / "other").mkdir()
    address = f"127.0.0.1:{free_port()}"
    pair = [
        *start(config, tmp_path / "run", 2, address=address, numbers=[0]),
        *start(config, tmp_path / "other" / "run", 2, address=address, numbers=[1]),
    ]
    printed, codes = finish(pair)
    assert codes[1] == 2 and codes[0] != 0
    assert re.search("^error: process 1 does not see .*put --workdir on a file system", printed[1], re.MULTILINE), (
        printed
    )
    assert re.search("^error: process 1 stopped", printed[0], re.MULTILINE), printed


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", [16], indirect=True)
def test_a_full_disk_fails_only_the_save(tmp_path, small_disk):
    config = tiny.write(tmp_path / "config.py", "vae", **QUIET, train__steps=30, model__channels=64)
    ballast, path = small_disk / "ballast", small_disk / "run"
    ballast.write_bytes(bytes(16 * 2**20 - 500 * 2**10))  # room for logs, not for a state
    pair = start(config, path, 2)
    running.wait_for_step(path, 5, pair[0])
    ballast.unlink()
    printed, codes = finish(pair)
    assert codes == [0, 0], printed
    assert "step 2 could not be saved" in printed[0] and "could not be saved" not in printed[1]
    assert (path / "checkpoints" / "30" / "manifest.json").exists()
    assert losses(path)[:, 0].tolist() == list(range(1, 31))


@pytest.mark.slow
def test_processes_that_do_not_join_are_reported(tmp_path):
    config = tiny.write(tmp_path / "config.py", "vae", **QUIET)
    began = time.monotonic()
    (printed,), (code,) = finish(start(config, tmp_path / "run", 2, "--wait=5", numbers=[0]))
    assert code != 0 and time.monotonic() - began < 60
    assert re.search("^error: not all processes joined in time", printed, re.MULTILINE), printed
    assert "stack trace" not in printed


@pytest.fixture
def environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("JAX_COORD", "JAX_NUM_PROC", "JAX_PROC", "SLURM_"))]:
        monkeypatch.delenv(name)
    return monkeypatch


def test_settings_come_from_flags_or_the_environment(environment):
    assert multihost.resolve_settings(None, None, None) is None
    assert multihost.resolve_settings("a:1", 4, 3) == ("a:1", 4, 3)
    environment.setenv("JAX_COORDINATOR_ADDRESS", "b:2")
    environment.setenv("JAX_NUM_PROCESSES", "3")
    environment.setenv("JAX_PROCESS_ID", "2")
    assert multihost.resolve_settings(None, None, None) == ("b:2", 3, 2)
    assert multihost.resolve_settings("a:1", None, 0) == ("a:1", 3, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a:1", 2, None), "--process .JAX_PROCESS_ID. is missing"),
        ((None, 2, 1), "--coordinator .JAX_COORDINATOR_ADDRESS. is missing"),
        (("a:1", 2, 2), "--process=2 of --processes=2: processes are numbered 0 ... 1"),
        (("a:1", 2, -1), "--process=-1"),
        (("a:1", 0, 0), "--processes=0"),
        (("a", 2, 1), "must be HOST:PORT"),
        (("a:99999", 2, 1), "must be HOST:PORT"),
    ],
)
def test_invalid_settings_are_refused(environment, arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        multihost.resolve_settings(*arguments)
    assert "\n" not in str(raised.value)


def test_a_number_of_processes_that_is_not_a_number_is_refused(environment):
    environment.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(UserError, match="must be whole numbers"):
        multihost.resolve_settings("a:1", None, 0)


def test_an_unreachable_coordinator_is_reported(environment):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"--coordinator=127.0.0.1:\d+: no answer after 1 s \(Connection refused\)"):
        multihost.connect(f"127.0.0.1:{free_port()}", 2, 1, wait=1)
    assert time.monotonic() - began < 10


def test_slurm_is_detected_in_a_step_of_several_tasks(environment):
    assert not multihost.is_cluster_detected()
    environment.setenv("SLURM_NTASKS", "8")  # of a batch script, which is one process
    assert not multihost.is_cluster_detected()
    environment.setenv("SLURM_STEP_NODELIST", "node[01-02]")
    assert multihost.is_cluster_detected()
    environment.setenv("SLURM_NTASKS", "1")
    assert not multihost.is_cluster_detected()


_FATAL = "F1127 12:06:38.8 27433 client.h:80] " + crash_log.FATAL + ". See the other task logs. "
LOGS = {  # as jax 0.10 writes them
    "process 1 stopped": [
        "E1127 12:06:38.8 27422 coordination_service.cc:1549] Use error polling to propagate: unhealthy:\n",
        "1\n",
        "The tasks have crashed. Check the task logs.\n",
        "E1127 12:06:38.8 27433 coordination_service_agent.cc:289] Polled an error from coordination service.\n",
        _FATAL + "absl::Status: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n",
        "1\n",
        "The tasks have crashed.\n",
        "*** Check failure stack trace: ***\n",
        "    @     0x7f29a5440634  absl::lts_20260107::log_internal::LogMessage::SendToLog()\n",
    ],
    "process 0, the coordinator, stopped": [
        _FATAL + "absl::Status: UNAVAILABLE: Failed to send RPC to coordination service.\n",
        "*** Check failure stack trace: ***\n",
    ],
    "process 0, the coordinator, stopped or does not answer": [_FATAL + "absl::Status: DEADLINE_EXCEEDED: Deadline\n"],
    "not all processes joined in time": [
        _FATAL + "absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded\n",
        "\n",
        "RPC: /xla.coordination.CoordinationService/RegisterTask\n",
    ],
    "the coordinator refuses this process (ALREADY_EXISTS: Aborted connect attempt": [
        _FATAL + "absl::Status: ALREADY_EXISTS: Aborted connect attempt\n",
        "RPC: /xla.coordination.CoordinationService/RegisterTask\n",
    ],
    "jax ends this process (INTERNAL: unheard of)": [_FATAL + "absl::Status: INTERNAL: unheard of\n"],
}


@pytest.mark.parametrize("expected", LOGS)
def test_the_fatal_log_becomes_one_line(expected):
    before = ["W1127 12:00:00.0 1 gpu.cc:1] A warning stays\n", "another line\n"]
    *passed, last = crash_log.in_one_line(before + LOGS[expected])
    assert passed == before
    assert last.startswith(f"error: {expected}") and last.count("\n") == 1


def test_lines_that_are_not_fatal_are_unchanged():
    lines = ["Traceback\n", "  1\n", "E1127 12:00:00.0 1 gpu.cc:1] x\n", "1\n"]
    assert list(crash_log.in_one_line(lines)) == lines
