"""Training in another process, which tests stop."""

import json
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from tests import tiny

_OF_MACHINE = ("images_per_second", "data_wait")


def steps(workdir) -> list[dict]:
    """Returns the lines of metrics.jsonl without metrics of the machine."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]  # the last may be incomplete
    return [{name: value for name, value in line.items() if name not in _OF_MACHINE} for line in whole]


def state_arrays(workdir, step: int) -> dict[str, bytes]:
    """Returns the bytes of every array of a checkpoint, by name."""
    folder = (workdir / "checkpoints" / str(step)).absolute()
    with ocp.StandardCheckpointer() as reader:
        return {
            part + jax.tree_util.keystr(keys): np.asarray(leaf).tobytes()
            for part in ("variables", "ema", "optimizer", "health")
            for keys, leaf in jax.tree_util.tree_leaves_with_path(reader.restore(folder / part))
        }


def process(config, path, *flags, **options):
    """Starts `launch.py train`; programs that this process compiled with the same flags of XLA are cached."""
    command = [sys.executable, "launch.py", "train", f"--config={config}", f"--workdir={path}", *flags]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    return subprocess.Popen(command, cwd=tiny.ROOT, **options)


def wait_for_step(path, step, running):
    for _ in range(6000):
        if (path / "metrics.jsonl").exists() and any(line["step"] >= step for line in steps(path)):
            return
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.02)
    raise TimeoutError
