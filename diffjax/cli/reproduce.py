"""Run a published experiment: a grid of trained models and samplers, and a report with the paper's values.

  python launch.py reproduce --experiment=experiments/ddim_table1.py --workdir=runs/experiments --scale=smoke
  python launch.py reproduce ... --scale=small --data_dir=DIR
  python launch.py reproduce ... --scale=paper --executor=slurm --slurm=partition=gpu,gpus_per_node=1,timeout_min=600
  python launch.py reproduce --list

--experiment is a file, or the name of a packaged experiment, which --list lists.

--scale=smoke runs in minutes on two cores and checks that everything works; small takes ten minutes to a night on
two cores (`duration` in the experiment's file); paper has the paper's settings and data. The same command resumes: it
does not repeat finished training or evaluation, and experiments in one --workdir share their common runs. A cell that
fails is recorded with its error, and the other cells continue; --retry computes failed cells again.

Writes WORKDIR/EXPERIMENT_SCALE/results.json, report.md and report.html (one file with all images); logs are in
WORKDIR/logs. --results=DIR/results.json only writes the report of finished results again, in DIR: after a change of
the experiment's claims, or with a newer version of the statistical test.
"""

import sys
from pathlib import Path

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, define_workdir, print_summaries, required
from diffjax.cli.results import define_feature_networks, weight_paths
from diffjax.errors import UserError, program, unknown
from diffjax.parsing import texts
from diffjax.reproduce import execute, report, spec, verdicts
from diffjax.reproduce.cells import collect
from diffjax.reproduce.outcome import Outcome
from diffjax.reproduce.plan import get_measures, get_scale, make_groups

_EXECUTORS = ("local", "slurm")


def define(flags: Flags) -> None:
    define_workdir(flags)
    define_feature_networks(flags)
    for name, default, text in (
        ("experiment", None, "experiment file, or name of a packaged experiment, such as ddim_table1"),
        ("scale", "smoke", "smoke | small | paper, or another scale of the experiment"),
        ("data_dir", None, "folder of prepared data sets (data.dir of the configs)"),
        ("results", None, "results.json to write the report of again; replaces --workdir"),
        ("executor", "local", "local: one after another on this machine; slurm: one job per training run"),
        ("slurm", "", "submitit's parameters: partition=gpu,gpus_per_node=1,timeout_min=600"),
    ):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)
    absl_flags.DEFINE_integer("batch_size", 100, "samples per batch; does not change the samples", 1, flag_values=flags)
    absl_flags.DEFINE_boolean("list", False, "list the packaged experiments, and exit", flag_values=flags)
    absl_flags.DEFINE_boolean("retry", False, "compute failed cells again", flag_values=flags)
    absl_flags.DEFINE_boolean("report_only", False, "only write the report of the cells so far", flag_values=flags)


def run(arguments: Arguments) -> int:
    if arguments.list:
        return print_summaries("experiments")
    path = required(arguments, "experiment")
    if arguments.slurm and arguments.executor != "slurm":
        raise UserError(f"--slurm={arguments.slurm}: requires --executor=slurm; add it, or remove --slurm")
    if arguments.retry and arguments.report_only:
        raise UserError("--retry: is not supported with --report_only, which computes nothing; remove one of them")
    if arguments.results:
        if ignored := sorted(arguments.given_flags - {"experiment", "scale", "results"}):
            raise UserError(f"--{ignored[0]}: has no effect with --results, which computes nothing; remove it")
        return _rewrite_report(path, arguments.scale, Path(arguments.results))
    root = required(arguments, "workdir")
    if arguments.executor not in _EXECUTORS:
        raise unknown("executor", arguments.executor, _EXECUTORS)
    experiment = spec.load(path)
    scale = get_scale(experiment, arguments.scale)
    overrides = {"data.dir": arguments.data_dir} if arguments.data_dir else {}
    job = execute.Job(
        path,
        arguments.scale,
        root,
        overrides=tuple(overrides.items()),
        weights=weight_paths(arguments),
        batch_size=arguments.batch_size,
    )
    groups, options = job.plan()
    cells = [cell for group in groups for cell in group.cells]
    if not arguments.report_only:
        execute.check(groups, options)
        if arguments.retry:
            for cell in cells:
                if "error" in (job.store.result(cell.key) or {}):
                    job.store.delete(cell.key)
        print(f"{experiment.title}: {len(cells)} cells on {sum(len(g.trainings) for g in groups)} trained models")
        try:
            if arguments.executor == "local":
                execute.local(job, groups)
            else:
                execute.slurm(job, groups, _parameters(arguments.slurm))
        except KeyboardInterrupt:
            print("stopped; the same command resumes")
            return 130
    measures = get_measures(experiment, scale)
    outcome = Outcome(experiment, measures, cells, collect(job.store, cells, measures))
    command = f"{program(sys.argv[0])} reproduce --experiment={path} --workdir=W --scale={arguments.scale}"
    command += " --data_dir=DIR" * bool(arguments.data_dir)
    written = report.write(
        Path(root) / f"{Path(path).stem}_{arguments.scale}",
        outcome,
        arguments.scale,
        scale,
        job.store,
        command,
    )
    _print(outcome, written)
    return 0


def _rewrite_report(path: str, scale_name: str, results: Path) -> int:
    """Writes the report of finished results again."""
    experiment = spec.load(path)
    scale = get_scale(experiment, scale_name)
    cells = [cell for group in make_groups(experiment, scale, {}) for cell in group.cells]
    outcome, command = report.read(results, experiment, scale_name, cells, get_measures(experiment, scale))
    _print(outcome, report.write(results.parent, outcome, scale_name, scale, None, command))
    return 0


def _print(outcome: Outcome, written: Path) -> None:
    for labels, error in outcome.errors.items():
        print(f"failed: {labels}: {error}")
    for ordering in outcome.experiment.orderings:
        print(f"{ordering.claim}: {verdicts.describe(outcome.verdict(ordering)).replace('**', '')}")
    print(f"{outcome.done} of {outcome.total} cells, {len(outcome.errors)} failed")
    print(f"{written}\n{written.with_suffix('.html')}")


def _parameters(text: str) -> dict:
    """Parses submitit's parameters, such as partition=gpu,timeout_min=600. Raises UserError for other text."""
    parameters = {}
    for part in texts(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--slurm={text}: must be NAME=VALUE,NAME=VALUE")
        parameters[name] = int(value) if value.isdigit() else value
    return parameters
