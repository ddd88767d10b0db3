"""Find the non-finite values of the step that stopped a run.

  python launch.py replay --workdir=runs/digits

A run stops after more than train.max_consecutive_skips skipped steps in a row. It saves the training state before the
first of them, and its batch, in the folder `failed`. This verb computes that step again, on one device, and prints the
examples with non-finite losses and the parameters with non-finite gradients or values.
"""

from collections.abc import Sequence

import numpy as np

from diffjax.cli.flags import Arguments, Flags, define_workdir, required
from diffjax.runs.workdir import Workdir
from diffjax.training.diagnose import replay

_MAX_NAMES = 10


def define(flags: Flags) -> None:
    define_workdir(flags)


def run(arguments: Arguments) -> int:
    workdir = Workdir(required(arguments, "workdir"))
    failure = replay(workdir)
    print(f"step {failure.step} of {workdir.path}")
    for group, losses in failure.losses.items():
        bad = np.flatnonzero(~np.isfinite(losses))
        mean = f"{np.mean(losses[np.isfinite(losses)]):.4g} on average" if len(bad) < len(losses) else "none finite"
        print(f"  losses of {group}: {len(losses)} examples, {mean}; not finite: {_format_names(list(map(str, bad)))}")
    print(f"  gradients not finite: {_format_names(failure.gradients)}")
    print(f"  parameters not finite: {_format_names(failure.parameters)}")
    print(f"the batch is {workdir.failed / 'batch.npz'}, the training state is a checkpoint in the same folder")
    return 0


def _format_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return (", ".join(names[:_MAX_NAMES]) + more) or "none"
