"""Runs killed at random moments end as those that never were: the same bits of state, metrics and samples.

The full form, `pytest -m slow tests/test_survival.py`, kills a run of every kind of system KILLS times.
"""

import random
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests import running, tiny

KILLS = 20
STEPS = 60
_COMMON = {
    "parallel__count": 1,
    "train__steps": STEPS,
    "train__batch_size": 8,
    "train__checkpoint_every": 1,
    "train__sample_every": 20,
    "train__sample_count": 4,
}
KINDS = {
    "diffusion": ("digits", {"diffusion__times": "importance", "model__dropout": 0.1}),
    "codebook": ("vqvae", {}),
    "game": ("gan", {}),
    "clip": ("clip_shapes", {"data__name": "shapes", "data__image_size": 16, "text": tiny.TEXT}),
    "autoregressive": ("prior_transformer", {}),
}


@pytest.mark.parametrize(
    ("kind", "kills"),
    [pytest.param(kind, KILLS, marks=pytest.mark.slow) for kind in KINDS] + [("codebook", 2)],
)
@pytest.mark.timeout(1800)
def test_a_run_killed_ends_as_one_that_was_not(kind, kills, tmp_path):
    config, whole, broken = written(kind, tmp_path), tmp_path / "whole", tmp_path / "broken"
    finished(config, whole)
    rng = random.Random(kind)
    for _ in range(kills):
        killed(config, broken, rng)
    finished(config, broken)
    assert running.steps(broken) == running.steps(whole)
    assert [line["step"] for line in running.steps(whole)] == list(range(1, STEPS + 1))
    assert arrays(broken) == arrays(whole)
    assert sheets(broken) == sheets(whole)


def written(kind, folder):
    base, changes = KINDS[kind]
    if kind == "autoregressive":
        codec = tiny.write(folder / "codec.py", "vqvae", parallel__count=1)
        finished(codec, folder / "codec")
        changes = {"codec": str(folder / "codec")}
    return tiny.write(folder / f"{kind}.py", base, **_COMMON | changes)


def finished(config, path):
    run = running.process(config, path)
    said = run.communicate(timeout=600)[0]
    assert run.returncode == 0, said


def killed(config, path, rng):
    """Starts the run and kills it: mostly soon after it has logged a step of its own, else as it starts."""
    begun = len(running.steps(path)) if (path / "metrics.jsonl").exists() else 0
    run = running.process(config, path)
    if rng.random() < 0.2:
        time.sleep(rng.uniform(1, 8))
    else:
        running.wait_for_step(path, begun + 1, run)
        time.sleep(rng.uniform(0, 0.3))
    run.kill()
    run.communicate()


def arrays(path):
    """The bytes of every array of the last checkpoint, by name."""
    folder = (path / "checkpoints" / str(STEPS)).absolute()
    with ocp.StandardCheckpointer() as reader:
        return {
            part + jax.tree_util.keystr(keys): np.asarray(leaf).tobytes()
            for part in ("variables", "ema", "optimizer", "health")
            for keys, leaf in jax.tree_util.tree_leaves_with_path(reader.restore(folder / part))
        }


def sheets(path):
    return {file.name: file.read_bytes() for file in (path / "samples").iterdir()}
