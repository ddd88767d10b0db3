"""Training in a process of its own, to be stopped."""

import json
import os
import subprocess
import sys
import time

from diffjax.training.loop import TIMES
from tests import tiny


def steps(workdir) -> list[dict]:
    """The lines of metrics.jsonl, without what the machine has to do with."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be in the making
    return [{name: value for name, value in line.items() if name not in TIMES} for line in whole]


def process(config, path, *flags, **options):
    command = [sys.executable, "launch.py", "train", f"--config={config}", f"--workdir={path}", *flags]
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    return subprocess.Popen(command, cwd=tiny.ROOT, env=environment, **given)


def wait_for_step(path, step, running):
    for _ in range(6000):
        if (path / "metrics.jsonl").exists() and any(line["step"] >= step for line in steps(path)):
            return
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.02)
    raise TimeoutError
