"""Sweep sampling settings of a trained run: a table, a plot, and entries of results/results.jsonl.

  python launch.py sweep --workdir=runs/digits --steps=5,10,20,50,100,250,1000 --eta=0,1 [--guidance=1,2] [--grid=...]
  python launch.py sweep --workdir=runs/digits --ema_length=0.05,0.1,0.15

--ema_length, --metrics and the settings of sampling and guidance take several values, separated by commas. Computes
every combination of the settings, a cell each. All cells start from the same noise. Each sampler compiles once,
for all numbers of steps, etas and guidance scales. Every finished cell is printed and appended to the store at once.
The same command resumes a sweep that was stopped: cells in the store with the same inputs and code are not computed
again.

The columns are those of --metrics (see launch.py evaluate --help) with their standard errors. The default is
fd_pixels, the Fréchet distance to the training images on pixels averaged to at most 8x8 (this is not FID, and is
comparable only at the same --num), and classifier_accuracy: the fraction of samples that a support vector machine,
trained on real images, assigns to their class. Compare that with its accuracy on held-out real images.

rms_to_finest_grid is the root-mean-square difference to the samples of the same seeds and settings with the most steps,
in grey levels of 255; that reference has no value itself. It falls to 0 with more steps if the sampler is
deterministic; samples of stochastic samplers differ at any number of steps. Options that a sampler does not take, such
as --eta, are left out for it. seconds is the sampling time without compilation; compile_seconds is the compilation time
of the cell that compiled.
"""

import sys

from absl import flags as absl_flags
from tqdm import tqdm

from diffjax.cli.flags import MAX_COUNT, Arguments, Flags, define_sampling, define_workdir, required
from diffjax.cli.results import (
    check_output,
    define_clip,
    define_csv,
    define_feature_networks,
    define_recompute,
    define_reference,
    report_unwritten,
    signal_of,
    weight_paths,
    write_table,
)
from diffjax.cli.settings import define_settings, load_run, note_batch_size, parse_lengths
from diffjax.evaluation import samples
from diffjax.evaluation.metrics import NAMES
from diffjax.evaluation.results_store import ResultsStore, flat_row
from diffjax.evaluation.sweep import DEFAULT_METRICS, Sweep, SweepOptions, table_row
from diffjax.evaluation.tables import TableLines
from diffjax.numbers import with_error
from diffjax.parsing import texts


def define(flags: Flags) -> None:
    define_workdir(flags, url=True)
    define_sampling(flags, several_lengths=True)
    absl_flags.DEFINE_integer("num", 500, "number of samples per cell", 2, MAX_COUNT, flag_values=flags)
    define_settings(flags)
    define_recompute(flags, "cells")
    define_csv(flags)
    define_clip(flags)
    define_feature_networks(flags)
    define_reference(flags)
    text = f"of samples: {' | '.join(NAMES)}"
    absl_flags.DEFINE_string("metrics", ",".join(DEFAULT_METRICS), text, flag_values=flags)


def run(arguments: Arguments) -> int:
    names = texts(arguments.metrics)
    samples.check_names(names, weight_paths(arguments))
    lengths = parse_lengths("ema_length", arguments.ema_length) if arguments.ema_length else [None]
    path = required(arguments, "workdir")
    runs = {length: load_run(path, arguments, length) for length in lengths}
    results = ResultsStore(runs[lengths[0]].workdir.results)
    check_output(arguments, results)
    options = SweepOptions(
        metrics=names if "metrics" in arguments.given_flags else None,
        num=arguments.num,
        seed=arguments.seed,
        batch_size=arguments.batch_size,
        clip=arguments.clip,
        weights=weight_paths(arguments),
        reference=arguments.reference,
        recompute=arguments.recompute,
    )
    sweep = Sweep(runs, arguments.as_dict(), options, results)
    note_batch_size(arguments, arguments.num)
    if sweep.num_stored:
        print(
            f"{sweep.num_stored} of {len(sweep.entries)} cells are in {results.path}; --recompute computes them again"
        )
    try:
        _compute(sweep)
    except KeyboardInterrupt as error:
        return _report(arguments, sweep, results, signal_of(error))
    return _report(arguments, sweep, results)


def _compute(sweep: Sweep) -> None:
    """Computes the cells that are not stored, and prints a line for each."""
    lines, warnings = TableLines(sweep.settings, sweep.columns), set()
    if sweep.num_stored < len(sweep.entries):
        print(lines.head)
    for entry in sweep.compute():
        tqdm.write(lines.line(table_row(entry)), file=sys.stdout)
        for text in entry["warnings"]:
            if text not in warnings:
                tqdm.write(f"warning: {text}", file=sys.stderr)
        warnings |= {*entry["warnings"]}


def _report(arguments: Arguments, sweep: Sweep, results: ResultsStore, stopped: int | None = None) -> int:
    """Prints the table and writes the plot. Returns the exit code: 0, 2, or 128 + the signal `stopped`."""
    finished, total = sweep.finished, len(sweep.entries)
    if finished:
        print(sweep.table())
    for name, baseline in sweep.baselines.items():
        print(f"{sweep.columns[name].heading.strip()} of real images: {with_error(*baseline['real'].values())}")
    print(
        f"{len(finished)} of {total} cells of {arguments.num} samples, {sweep.compilations} "
        f"compilation(s) of the sampler in {sweep.compile_seconds:.1f} s"
    )
    code = report_unwritten(results)
    write_table(arguments, list(map(flat_row, finished)))
    if stopped is not None:
        advice = f"; the same command continues, with those in {results.path}" if finished else ""
        print(f"stopped after {len(finished)} of {total} cells{advice}", file=sys.stderr)
    if code or stopped is not None:
        return code or 128 + (stopped or 0)
    print(results.path)
    plot = results.file("sweep.png")
    sweep.plot(plot)
    print(plot)
    return 0
