"""Reconstruct the average of the weights over any length, after training.

  python launch.py ema --workdir=runs/digits --length=0.1[,0.15] [--checkpoint=2000]
  python launch.py sample --workdir=runs/digits --ema_length=0.1 --out=samples.png

The length is the relative standard deviation of the averaging profile: 0.1 averages over about the last 10 to 20 % of
training. The run must have stored two averages at intervals, with train.ema_lengths and train.ema_every. The result is
stored in the run's folder `averages`; sample, evaluate, sweep and export use it with --ema_length. Without this verb
they reconstruct the average themselves.

Reference: Karras et al. 2024 (EDM2), section 3.2.
"""

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, define_workdir, required
from diffjax.cli.settings import parse_lengths
from diffjax.runs import averages
from diffjax.runs.loading import read_template
from diffjax.runs.workdir import Workdir


def define(flags: Flags) -> None:
    define_workdir(flags)
    absl_flags.DEFINE_string(
        "length",
        None,
        "relative standard deviation of the average, such as 0.1; several, separated by commas",
        flag_values=flags,
    )
    absl_flags.DEFINE_integer(
        "checkpoint", None, "last step of the average (default: the last stored one)", flag_values=flags
    )


def run(arguments: Arguments) -> int:
    workdir = Workdir(required(arguments, "workdir"))
    lengths = parse_lengths("length", required(arguments, "length"))
    template, stored = read_template(workdir)
    for length in lengths:
        variables, step, error = averages.reconstruct(workdir, template, stored, length, arguments.checkpoint)
        path = averages.save_reconstruction(workdir, variables, length, step)
        print(f"length {length:g} at step {step}, relative error of the profile {error:.2g}: {path}")
    print(
        f"try next:\n  python launch.py sample --workdir={workdir.path} --ema_length={lengths[0]:g} --out=samples.png"
    )
    return 0
