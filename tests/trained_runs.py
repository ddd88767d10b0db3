"""Tiny trained runs, trained once per session and shared by the workers of xdist."""

import contextlib
import fcntl
import functools
import os
import shutil
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from diffjax import cli
from diffjax.training import compiled_step
from tests import tiny

_ONE_LEVEL = {"model__multipliers": (1,), "model__attention_resolutions": ()}
_QUIET = {"train__num_preview_samples": 0, "parallel__num_devices": 1}


def _config(base: str, **changes) -> Callable[[Path], Path]:
    return lambda folder: tiny.write(folder / "config.py", base, **_QUIET | changes)


# Writes the config of each run in a folder.
CONFIGS: dict[str, Callable[[Path], Path]] = {
    "pixel": _config("digits", model=tiny.DIT, train__num_preview_samples=10, train__learning_rate_schedule="constant"),
    "classifier": _config("classifier_digits", train__steps=2, **_ONE_LEVEL),
    "vae": _config("vae", train__steps=2, train__num_preview_samples=10),
    "vqvae": _config("vqvae", train__steps=2),
    "gan": _config("gan", train__steps=2),
    "dalle": tiny.write_dalle,  # with the parts codec, a VQ-VAE, and clip
    "unclip": lambda folder: tiny.write_pipeline(folder, "unclip", ("clip", "prior", "decoder")),
    "unclip_all": lambda folder: tiny.write_pipeline(
        folder, "unclip", ("clip", "pca", "prior", "ar_prior", "decoder", "upsampler")
    ),
    "glide": lambda folder: tiny.write_pipeline(folder, "glide", ("base", "upsampler", "noised_clip")),
}
RANDOM = ("unclip", "glide")  # their weights are random


def with_random_weights(*, trace: bool):
    """Lets `train` give runs random weights: no step is compiled, which takes most of its time.

    Args:
      trace: whether the step of each run is traced, which finds shapes and types that do not fit.
    """
    make = compiled_step._compile

    def make_step(config, model, optimizers, devices, examples, shapes):
        compiled, metrics = make(config, model, optimizers, devices, examples, shapes), {}

        def step(state, batch, frozen):
            nonlocal metrics
            if trace and not metrics:
                metrics = jax.eval_shape(compiled, shapes, batch, frozen)[1]
            zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), metrics)
            return state.replace(step=state.step + 1), zeros

        return step

    def compile_init(init, sharding):
        model, *others = init.args
        variables = tiny.randomised(model.init)
        drawn = types.SimpleNamespace(init=lambda key: variables)
        return jax.jit(functools.partial(init.func, drawn, *others, **init.keywords), out_shardings=sharding)

    return mock.patch.multiple(compiled_step, _compile=make_step, compile_init=compile_init)


class TrainedRuns:
    """Trains each run at its first use, while other processes wait for it.

    The runs are read only: tests that write to a run, as `evaluate` does, use `copy`.
    """

    def __init__(self, root: Path):
        self._root = root
        root.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str) -> Path:
        """Returns the workdir of a run of CONFIGS."""
        folder = self._root / name
        with _locked(self._root / f"{name}.lock"):
            if not (folder / "done").exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that was stopped
                folder.mkdir()
                config = CONFIGS[name](folder)
                with with_random_weights(trace=False) if name in RANDOM else contextlib.nullcontext():
                    assert cli.main(["launch.py", "train", f"--config={config}", f"--workdir={folder}/run"]) == 0
                (folder / "done").write_text(str(config))
        return folder / "run"

    def config(self, name: str) -> Path:
        """Returns the config file of a run."""
        return Path((self(name).parent / "done").read_text())

    def copy(self, name: str, path: Path) -> Path:
        """Returns a copy of a run."""
        return shutil.copytree(self(name), path, dirs_exist_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a file lock; the system releases it if the process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def session_folder(base: Path) -> Path:
    """Returns the folder that the workers of a session share, from the worker's base folder of temporary files."""
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
