"""Search a time grid for a run: in few steps, closest to the samples of many steps.

  python launch.py optimize_grid --workdir=runs/digits --steps=5,8,10 [--sampler=unipc --guidance=1.5]
  python launch.py sample --workdir=runs/digits --sampler=unipc --grid=optimized --steps=8

The search starts at the best of the grids trailing, linspace, log_snr and karras, and moves one time after another. It
compares --num samples with those of --reference_steps steps, from the same noise. Errors are printed for other samples,
as root-mean-square differences in grey levels. The grids are stored in the file grids.json of the run, one per sampler
and number of steps; --grid=optimized of other verbs reads them.
"""

import shlex

from absl import flags as absl_flags
from tqdm import tqdm

from diffjax.cli.flags import GUIDANCE_FLAGS, Arguments, Flags, define_sampling, define_workdir, required
from diffjax.cli.settings import load_run
from diffjax.diffusion.grid_search import num_evaluations
from diffjax.errors import UserError
from diffjax.inference.grid_optimization import GridOptimizer
from diffjax.inference.overrides import SETTINGS, single_setting
from diffjax.parsing import texts
from diffjax.runs import optimized_grids

# Settings of samplers of diffusion models, but for the grid and the steps.
_SETTINGS = (
    *("sampler", "eta", "threshold", "number"),
    *GUIDANCE_FLAGS,
    *("perturbation", "perturbed_scale"),
)


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_sampling(flags)
    for name in _SETTINGS:
        absl_flags.DEFINE_string(name, None, SETTINGS[name].help, flag_values=flags)
    absl_flags.DEFINE_string("steps", None, "numbers of steps, separated by commas", flag_values=flags)
    absl_flags.DEFINE_integer("num", 64, "number of samples", 1, 10_000, flag_values=flags)
    absl_flags.DEFINE_integer(
        "reference_steps", 100, "steps of the samples to compare with", 3, 10_000, flag_values=flags
    )


def run(arguments: Arguments) -> int:
    path, text = required(arguments, "workdir"), required(arguments, "steps")
    try:
        counts = [int(one) for one in texts(text)]
    except ValueError as error:
        raise UserError(f"--steps={text}: must be whole numbers separated by commas") from error
    options = {"num": arguments.num, "seed": arguments.seed, "reference_steps": arguments.reference_steps}
    batch_size = arguments.batch_size
    trained = load_run(path, arguments, arguments.ema_length)
    overrides = single_setting({name: getattr(arguments, name) for name in _SETTINGS})
    optimizer, grids = GridOptimizer(trained, overrides, batch_size=batch_size, **options), []
    for steps in counts:
        optimizer.check_steps(steps)
    for steps in counts:
        with tqdm(total=num_evaluations(steps), unit="grid", dynamic_ncols=True, desc=f"{steps} steps") as bar:
            grids.append(optimizer.optimize(steps, bar.update))
            bar.total = bar.n
        best = grids[-1]
        others = ", ".join(f"{name} {error:.2f}" for name, error in best.errors.items())
        print(f"{optimizer.sampler}, {steps} steps: {best.error:.2f} grey levels; {others}", flush=True)
    entries = [
        {"sampler": one.sampler, "steps": one.steps, "times": one.times, "error": one.error, "errors": one.errors}
        | {"settings": overrides, "checkpoint": trained.step, **options}
        for one in grids
    ]
    optimized_grids.write(trained.workdir, entries)
    print(f"stored in {trained.workdir.grids}; try next:")
    chosen = {name: getattr(arguments, name) for name in _SETTINGS if getattr(arguments, name) is not None}
    flags = "".join(f" {shlex.quote(f'--{name}={value}')}" for name, value in chosen.items())
    print(f"  python launch.py sample --workdir={path}{flags} --grid=optimized --steps={counts[-1]}")
    return 0
