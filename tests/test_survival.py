"""Runs killed at random moments end with the same bits of state, metrics and previews as uninterrupted runs.

The full form, `DIFFJAX_KILLS=20 pytest -m slow tests/test_survival.py`, kills a run of every kind of model 20 times.
"""

import os
import random
import time

import pytest

from tests import running, tiny

KILLS = int(os.environ.get("DIFFJAX_KILLS", "2"))
FAST_KINDS = ("diffusion", "codebook")
STEPS = 40
_COMMON = {
    "parallel__num_devices": 1,
    "train__steps": STEPS,
    "train__batch_size": 8,
    "train__checkpoint_every": 1,
    "train__sample_every": 20,
    "train__eval_every": 10,
    "train__num_preview_samples": 4,
}
KINDS = {
    "diffusion": ("digits", {"diffusion__time_sampling": "importance", "model__dropout": 0.1}),
    "codebook": ("vqvae", {}),
    "adversarial": ("gan", {}),
    "clip": ("clip_shapes", {"data__name": "shapes", "data__image_size": 16, "text": tiny.TEXT}),
    "autoregressive": ("prior_transformer", {}),
}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in FAST_KINDS or "DIFFJAX_KILLS" in os.environ])
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_run_ends_as_an_uninterrupted_one(kind, tmp_path):
    config, whole, broken = written(kind, tmp_path), tmp_path / "whole", tmp_path / "broken"
    finished(config, whole)
    rng = random.Random(kind)
    for _ in range(KILLS):
        killed(config, broken, rng)
    finished(config, broken)
    assert running.steps(broken) == running.steps(whole)
    assert [line["step"] for line in running.steps(whole)] == list(range(1, STEPS + 1))
    assert running.state_arrays(broken, STEPS) == running.state_arrays(whole, STEPS)
    assert previews(broken) == previews(whole)


def written(kind, folder):
    base, changes = KINDS[kind]
    if kind == "autoregressive":
        codec = tiny.write(folder / "codec.py", "vqvae", parallel__num_devices=1)
        finished(codec, folder / "codec")
        changes = {"codec": str(folder / "codec")}
    return tiny.write(folder / f"{kind}.py", base, **_COMMON | changes)


def finished(config, path):
    run = running.process(config, path)
    output = run.communicate(timeout=600)[0]
    assert run.returncode == 0, output


def killed(config, path, rng):
    """Starts the run and kills it: mostly soon after it has logged a new step, else as it starts."""
    logged = len(running.steps(path)) if (path / "metrics.jsonl").exists() else 0
    run = running.process(config, path)
    if rng.random() < 0.2:
        time.sleep(rng.uniform(1, 8))
    else:
        running.wait_for_step(path, logged + 1, run)
        time.sleep(rng.uniform(0, 0.3))
    run.kill()
    run.communicate()


def previews(path):
    return {file.name: file.read_bytes() for file in (path / "samples").iterdir()}
