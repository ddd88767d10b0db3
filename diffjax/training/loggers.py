"""Loggers of a run besides metrics.jsonl: TensorBoard, Weights & Biases, or none."""

import importlib
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ml_collections import ConfigDict
from PIL import Image
from tensorboardX import SummaryWriter

from diffjax import io
from diffjax.errors import UserError, one_line, unknown
from diffjax.runs.workdir import Workdir

_PROJECT = "diffjax"  # of wandb, unless WANDB_PROJECT is set
_TIMEOUT = 60  # seconds that wandb may take to start, and to upload the rest at the end
_OFFLINE = "run `wandb login`, or set WANDB_MODE=offline to upload later with `wandb sync`"


class Logger(Protocol):
    """Receives finite metrics, and images uint8 [H, W, C], of increasing steps."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self, *, failed: bool = False) -> None:
        """Writes what is left. `failed`: whether an error ended the run."""
        ...


class NullLogger:
    """Discards everything."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, image: np.ndarray) -> None: ...

    def close(self, *, failed: bool = False) -> None: ...


class TensorBoardLogger:
    """Writes events to the folder `events` of a run. A resumed run drops the events after its step."""

    def __init__(self, workdir: Workdir, start: int):
        # A file of its own even if the run resumes within a second of its start.
        purge = {"purge_step": start + 1, "filename_suffix": f".{start}"} if start else {}
        self._events = SummaryWriter(str(workdir.events), **purge)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        self._events.add_image(name, image, step, dataformats="HWC")

    def close(self, *, failed: bool = False) -> None:
        self._events.close()


class WandbLogger:
    """Logs to Weights & Biases (wandb), whose id of the run is stored in wandb.json, so that resuming continues it.

    The id, the project and so on can be set by wandb's environment variables, such as WANDB_PROJECT and WANDB_ENTITY.
    After an error of wandb during training one line is printed, and nothing more is logged there.
    """

    def __init__(self, workdir: Workdir, config: ConfigDict, name: str, last: int):
        """Starts or continues the run of a workdir.

        Args:
          name: name of the run, unless WANDB_NAME is set.
          last: last step that was logged before; wandb takes no values of earlier steps.

        Raises:
          UserError: wandb cannot be started.
        """
        wandb, run_id = _import_wandb(), _run_id(workdir)
        self._last, self._image, self._failed, is_offline = last, wandb.Image, False, _is_offline(wandb)
        try:
            settings = wandb.Settings(console="off", silent=True, init_timeout=_TIMEOUT, finish_timeout=_TIMEOUT)
            self._run = wandb.init(
                dir=str(workdir.path),
                id=run_id,
                resume=None if is_offline else "allow",
                project=os.environ.get("WANDB_PROJECT", _PROJECT),
                name=os.environ.get("WANDB_NAME", name),
                config=io.parse_json(io.to_json(config.to_dict())),
                settings=settings,
                reinit="finish_previous",
            )
        except Exception as error:  # its errors have many types
            raise UserError(f"--logger=wandb: cannot start ({_reason(error)}); {_OFFLINE}") from error
        print(f"wandb: {f'offline, in {Path(self._run.dir).parent}' if is_offline else self._run.url}")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        if step > self._last:
            self._try(lambda: self._run.log(dict(values), step=step))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        if step >= self._last:
            shown = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
            self._try(lambda: self._run.log({name: self._image(shown)}, step=step))

    def close(self, *, failed: bool = False) -> None:
        self._try(lambda: self._run.finish(exit_code=int(failed)))

    def _try(self, act: Callable[[], Any]) -> None:
        """Calls `act` unless it has failed before."""
        if self._failed:
            return
        try:
            act()
        except Exception as error:
            self._failed = True
            print(f"--logger=wandb: stops ({_reason(error)}); training continues", file=sys.stderr)


LOGGERS = ("tensorboard", "wandb", "none")


def check_logger(name: str) -> None:
    """Checks that a logger can be used. Computes and writes nothing.

    Raises:
      UserError: an unknown name, or wandb is not installed, not logged in, or does not reach its server.
    """
    if name not in LOGGERS:
        raise unknown("--logger", name, LOGGERS)
    if name != "wandb":
        return
    wandb = _import_wandb()
    if _is_offline(wandb):
        return
    try:
        is_logged_in = wandb.login(prompt=False)
    except Exception as error:
        raise UserError(f"--logger=wandb: {_reason(error)}; {_OFFLINE}") from error
    if not is_logged_in:
        raise UserError(f"--logger=wandb: there is no login of wandb on this machine; {_OFFLINE}")


def open_logger(name: str, workdir: Workdir, config: ConfigDict, *, run_name: str, start: int, last: int) -> Logger:
    """Opens a logger of `LOGGERS` for a run that starts or resumes at step `start`.

    Args:
      run_name: name of the run for wandb.
      last: last step that was logged before.

    Raises:
      UserError: wandb cannot be started.
    """
    if name == "tensorboard":
        return TensorBoardLogger(workdir, start)
    return WandbLogger(workdir, config, run_name, last) if name == "wandb" else NullLogger()


def _import_wandb() -> Any:
    """Imports wandb, which only its logger needs. Raises UserError if it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(f"--logger=wandb: wandb is not installed ({error}); pip install 'diffjax[wandb]'") from error


def _is_offline(wandb: Any) -> bool:
    return os.environ.get("WANDB_MODE", wandb.setup().settings.mode) in ("offline", "dryrun", "disabled")


def _reason(error: Exception) -> str:
    """Returns the message of an error of wandb, which may have many lines, as a short line."""
    return one_line(str(error))[:300]


def _run_id(workdir: Workdir) -> str:
    """Returns the id of a run of wandb: the stored one, else that of WANDB_RUN_ID, else a new one, which is stored."""
    advice = "restore it, or delete it to log to a new run of wandb"
    if workdir.wandb_run.exists():
        record = io.read_json(workdir.wandb_run, advice)
        run_id = record.get("id") if isinstance(record, dict) else None
        if not isinstance(run_id, str) or not run_id:
            raise UserError(f"{workdir.wandb_run} is damaged; {advice}")
        return run_id
    run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)
    io.write_json(workdir.wandb_run, {"id": run_id})
    return run_id
