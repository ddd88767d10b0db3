"""Reading checkpoints while another process trains: it may save new ones and delete old ones meanwhile."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from diffjax.errors import UserError
from diffjax.runs.checkpoint_files import list_files, list_steps
from diffjax.runs.checkpoints import Checkpoints
from diffjax.typing import Variables

_MAX_ATTEMPTS = 10
_PAUSE = 0.2  # seconds between attempts
_MAX_UNCHANGED = 3  # failures with the same list of checkpoints that count as damage, not as a deletion in progress

T = TypeVar("T")


def read_variables(
    directory: Path, template: Variables, step: int | None = None, *, averaged: bool = True
) -> tuple[Variables, int]:
    """Reads the variables that sampling needs.

    Args:
      directory: folder of the checkpoints.
      template: shapes of the variables.
      step: step of the checkpoint; None: the newest undamaged one.
      averaged: read the averaged parameters instead of those of the last step.

    Returns:
      The variables, as `Checkpoints.restore_ema` or `restore_variables`, and their step.

    Raises:
      UserError: there is no such checkpoint, it is damaged, does not fit the shapes, or is replaced too fast.
    """

    def attempt(checkpoints: Checkpoints) -> tuple[Variables, int]:
        chosen = checkpoints.latest_step() if step is None else step
        files = list_files(directory / str(chosen))
        restore = checkpoints.restore_ema if averaged else checkpoints.restore_variables
        variables = restore(template, chosen)
        if chosen is None or list_files(directory / str(chosen)) != files:
            raise FileNotFoundError(f"checkpoint {chosen} was deleted while it was read")
        return variables, chosen

    return _retry_while_replaced(directory, attempt)


def newest_step(directory: Path) -> int | None:
    """Returns the step of the newest undamaged checkpoint; None if there is no checkpoint.

    Raises:
      UserError: there are checkpoints, and all are damaged.
    """
    return _retry_while_replaced(directory, Checkpoints.latest_step) if list_steps(directory) else None


def _retry_while_replaced(directory: Path, attempt: Callable[[Checkpoints], T]) -> T:
    """Calls `attempt` with the checkpoints of a folder, up to `_MAX_ATTEMPTS` times.

    A checkpoint whose deletion has begun looks damaged until its folder is gone. So a failure counts as damage only
    once the list of checkpoints stays the same.
    """
    unchanged = 0
    for number in range(1, _MAX_ATTEMPTS + 1):
        before = list_steps(directory)
        checkpoints: Checkpoints | None = None
        try:
            with Checkpoints(directory, read_only=True) as checkpoints:
                result = attempt(checkpoints)
                checkpoints.report_damage()
                return result
        except Exception as error:  # Orbax raises many types for a missing file
            time.sleep(_PAUSE)
            unchanged = unchanged + 1 if list_steps(directory) == before else 0
            if number == _MAX_ATTEMPTS or unchanged == _MAX_UNCHANGED:
                if isinstance(error, UserError) and checkpoints:
                    checkpoints.report_damage()
                    raise
                reason = (str(error).strip().splitlines() or [""])[0][:200]
                raise UserError(
                    f"the checkpoints in {directory} cannot be read ({type(error).__name__}: {reason}); try again, "
                    "and raise train.keep_last if training replaces them meanwhile"
                ) from error
    raise AssertionError("unreachable")
