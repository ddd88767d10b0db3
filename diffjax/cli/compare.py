"""Compare runs side by side: their results, their training logs, and the config fields that differ.

  python launch.py compare runs/a runs/b --metric=fd_pixels[,loss] [--out=compare.png] [--csv=compare.csv]

A metric is one of the runs' results, as sweep and evaluate stored them (fd_pixels, nll.bound, ...), or one of their
training logs (loss, ...). Results are those of the newest checkpoint that has any, a row per setting; training logs are
compared by their last value. --out plots results against the number of sampler steps if they differ in it, else against
the runs, and training logs against the training step.
"""

from pathlib import Path

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, check_writable
from diffjax.cli.results import define_csv, write_table
from diffjax.errors import UserError
from diffjax.evaluation.comparison import Comparison, open_runs
from diffjax.evaluation.comparison_plots import comparison
from diffjax.parsing import texts

POSITIONAL = "RUN RUN ..."  # arguments without a name


def define(flags: Flags) -> None:
    define_csv(flags)
    for name, text in {
        "metric": "name of a result, or of a value of the training log; several, separated by commas",
        "out": "plot to write, .png; or DIR/ for one plot per metric",
    }.items():
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)


def run(arguments: Arguments) -> int:
    compared = Comparison(open_runs(arguments.positional), texts(arguments.metric or ""))
    plots = _plots(arguments, compared.metrics)
    for flag, paths in {"out": list(plots), "csv": [Path(arguments.csv)] if arguments.csv else []}.items():
        for path in paths:
            check_writable(flag, path)
    print(compared.text())
    write_table(arguments, compared.rows())
    for path, names in plots.items():
        comparison(path, compared, names)
        print(path)
    return 0


def _plots(arguments: Arguments, metrics: list[str]) -> dict[Path, list[str]]:
    """Returns the metrics of each plot to write. Raises UserError if the file is not a PNG."""
    if arguments.out is None:
        return {}
    out = Path(arguments.out)
    if arguments.out.endswith("/") or out.is_dir():
        return {out / f"{name.replace('/', '_')}.png": [name] for name in metrics}
    if out.suffix != ".png":
        raise UserError(f"--out={out}: the name must end in .png, or in / (a folder)")
    return {out: metrics}
