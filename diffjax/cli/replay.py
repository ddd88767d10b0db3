"""Say what was not finite in the step that ended a run.

  python launch.py replay --workdir=runs/digits

A run that more steps than train.skip_limit in a row were skipped in ends with the state before them and the batch of
the first in its folder `failed`. This computes that step once more, on one device, and names the examples whose loss,
and the parameters whose gradient or value, is not finite.
"""

import numpy as np

from diffjax.cli.flags import Arguments, Flags, define_workdir, required
from diffjax.runs.workdir import Workdir
from diffjax.training.diagnose import replay

_SHOWN = 10


def define(flags: Flags) -> None:
    define_workdir(flags)


def run(arguments: Arguments) -> int:
    workdir = Workdir(required(arguments, "workdir"))
    found = replay(workdir)
    print(f"step {found.step} of {workdir.path}")
    for group, losses in found.losses.items():
        bad = np.flatnonzero(~np.isfinite(losses))
        mean = f"{np.mean(losses[np.isfinite(losses)]):.4g} on average" if len(bad) < len(losses) else "none finite"
        print(f"  losses of {group}: {len(losses)} examples, {mean}; not finite: {_listed(list(map(str, bad)))}")
    print(f"  gradients not finite: {_listed(found.gradients)}")
    print(f"  parameters not finite: {_listed(found.parameters)}")
    print(f"the batch is {workdir.failed / 'batch.npz'}, the state beside it a checkpoint")
    return 0


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) + more) or "none"
