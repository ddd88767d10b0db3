"""Provenance of a result: everything that it depends on, stored with it."""

import datetime
import functools
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from diffjax import io
from diffjax.errors import UserError
from diffjax.models.parameter_paths import tree_hash
from diffjax.runs.config_files import to_json
from diffjax.runs.datasets import image_data
from diffjax.runs.loading import Run

_PACKAGES = ("diffjax", "jax", "jaxlib", "flax", "optax", "numpy")
_ABOVE = ("api.py", "cli", "reproduce", "training")  # packages that import evaluation, or that it does not import
_PACKAGE_FOLDER = Path(__file__).resolve().parent.parent
# Fields that a table compares, and fields that do not affect results.
_MAY_DIFFER = {
    "captions",
    "workdir",
    "system",
    "classifier",
    "weak",
    "config",
    "checkpoint",
    "ema_length",
    "sampler",
    "seed",
    "date",
    "command",
    "warnings",
}


def environment() -> dict[str, Any]:
    """Returns the environment of this process.

    Returns:
      A dict of strict JSON:
        command: arguments of this process, quoted for a shell; "notebook" for the kernel of one.
        git: {"commit": str, "dirty": bool} of the checkout with this package; None without a checkout or git.
        date: current time in UTC, ISO 8601, in seconds.
        device: kind and number of the devices, and the model of the CPU, such as "cpu x 1 (AMD EPYC 7B13)".
        versions: installed version of each package that results depend on; None: not installed.
    """
    return {
        "command": "notebook" if "ipykernel" in sys.argv[0] else shlex.join(sys.argv),
        "git": _git(_PACKAGE_FOLDER),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()} ({_cpu_model()})",
        "versions": _versions(),
    }


def run_provenance(trained: Run) -> dict[str, Any]:
    """Returns the provenance that all results of a run share, with the `environment`."""
    return {
        "workdir": trained.workdir.name,
        "system": trained.config.system,
        "config": config_hash(trained),
        "config_changes": trained.config_changes,
        "checkpoint": trained.step,
        "ema_decay": trained.config.get("train", {}).get("ema_decay"),  # None: a pipeline is not trained itself
        **({"ema_length": trained.ema_length} if trained.ema_length else {}),
        **({"weights_dtype": trained.weights_dtype} if trained.weights_dtype != "float32" else {}),
        "data": _data_name(trained),
        **environment(),
    }


@functools.cache
def code_hash() -> str:
    """Returns a hash of the code that results depend on: the Python files that evaluation imports, and `versions`."""
    files = {path.relative_to(_PACKAGE_FOLDER): path for path in _PACKAGE_FOLDER.rglob("*.py")}
    sources = {str(name): io.file_hash(path) for name, path in files.items() if name.parts[0] not in _ABOVE}
    return io.short_hash(io.to_json({"sources": sources, "versions": _versions()}, sort_keys=True))


def fingerprint(tree: Any) -> str:
    """Returns a short `tree_hash`."""
    return tree_hash(tree)[:16]


def config_hash(trained: Run) -> str:
    """Returns a hash of the stored config of a run, parts included."""
    return io.short_hash(to_json(trained.config))


def differences(provenances: Iterable[Mapping[str, Any]], *, shared: bool = False) -> list[str]:
    """Returns the dotted paths of fields whose differences make results not comparable.

    Args:
      shared: ignore fields that some results lack.
    """
    flat = [dict(_leaves(provenance)) for provenance in provenances]
    names = sorted({name for one in flat for name in one if name.partition(".")[0] not in _MAY_DIFFER})
    if shared:
        names = [name for name in names if all(name in one for one in flat)]
    return [name for name in names if len({json.dumps(one.get(name)) for one in flat}) > 1]


def _data_name(trained: Run) -> str:
    """Returns the name of the data set of the images; "latents" if the run is on stored latents that are missing."""
    try:
        return image_data(trained.config).name
    except UserError:
        return trained.config.data.name


@functools.cache  # the state at the first call: a checkout may change while a process runs
def _git(folder: Path) -> dict[str, Any] | None:
    """Returns the commit of the checkout that tracks the Python files of `folder`, and whether its code is modified.

    A package that is installed inside another checkout is not tracked by it: the result is None. Modified means changes
    of tracked files, or files in `folder` that are neither tracked nor ignored.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.strip()

    try:
        if not git("ls-files", "--", "*.py"):
            return None
        changes = git("status", "--porcelain", "--untracked-files=no") or git("status", "--porcelain", "--", ".")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(models), "") or platform.processor() or platform.machine()


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _leaves(tree: Mapping[str, Any], prefix: str = ""):
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
