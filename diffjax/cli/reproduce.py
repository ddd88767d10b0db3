"""Run a published experiment: a grid of trainings and samplings, and a report beside the paper's figures.

  python launch.py reproduce --experiment=experiments/ddim_table1.py --workdir=runs/experiments --scale=smoke
  python launch.py reproduce ... --scale=small --data_dir=DIR
  python launch.py reproduce ... --scale=paper --executor=slurm --slurm=partition=gpu,gpus_per_node=1,timeout_min=600

smoke runs in minutes on two cores and shows that everything works; small fits one GPU for an hour or a CPU overnight;
paper is the paper's own setting on its own data. The same command again goes on where it was stopped: what is trained
is not trained again, what is measured is not measured again, and experiments in one --workdir share what they have in
common. A cell that fails is recorded with its error, and the others go on; --retry tries those again.

Writes WORKDIR/EXPERIMENT_SCALE/results.json, report.md and report.html (one file, pictures inside); logs are in
WORKDIR/logs. --results=DIR/results.json writes the report of finished results again, in DIR, without any cells: after
a change of the experiment's claims, or with a newer version of the statistical test.
"""

from pathlib import Path

from absl import flags as absl_flags

from diffjax.cli.flags import Arguments, Flags, define_workdir, required
from diffjax.cli.settings import texts
from diffjax.errors import UserError, unknown
from diffjax.reproduce import execute, report, spec, verdicts
from diffjax.reproduce.cells import collect
from diffjax.reproduce.outcome import Outcome
from diffjax.reproduce.plan import make_units, measures_of, scale_of

_EXECUTORS = ("local", "slurm")


def define(flags: Flags) -> None:
    define_workdir(flags)
    for name, default, text in (
        ("experiment", None, "file of the experiment, such as experiments/ddim_table1.py"),
        ("scale", "smoke", "smoke | small | paper"),
        ("data_dir", None, "where prepared data sets lie (data.dir of the configs)"),
        ("together", None, "axes whose cells are trained as one program, such as seed (default: as the file says)"),
        ("results", None, "results.json whose report is to be written again, without a --workdir"),
        ("inception", None, "file of the weights of FID's InceptionV3"),
        ("executor", "local", "local: one after another on this machine; slurm: a job for each training"),
        ("slurm", "", "submitit's parameters: partition=gpu,gpus_per_node=1,timeout_min=600"),
    ):
        absl_flags.DEFINE_string(name, default, text, flag_values=flags)
    absl_flags.DEFINE_integer("batch_size", 100, "samples drawn at once; does not change them", 1, flag_values=flags)
    absl_flags.DEFINE_boolean("retry", False, "try cells that failed again", flag_values=flags)
    absl_flags.DEFINE_boolean("report_only", False, "write the report of what is measured so far", flag_values=flags)


def run(arguments: Arguments) -> int:
    path = required(arguments, "experiment")
    if arguments.slurm and arguments.executor != "slurm":
        raise UserError(f"--slurm={arguments.slurm}: requires --executor=slurm; add it, or leave --slurm out")
    if arguments.retry and arguments.report_only:
        raise UserError("--retry: is not supported with --report_only, which measures nothing; leave one of them out")
    if arguments.results:
        if ignored := sorted(arguments.given - {"experiment", "scale", "results"}):
            raise UserError(f"--{ignored[0]}: has no effect with --results, which measures nothing; leave it out")
        return _rewrite(path, arguments.scale, Path(arguments.results))
    root = required(arguments, "workdir")
    if arguments.executor not in _EXECUTORS:
        raise unknown("executor", arguments.executor, _EXECUTORS)
    experiment = spec.load(path)
    scale = scale_of(experiment, arguments.scale)
    overrides = {"data.dir": arguments.data_dir} if arguments.data_dir else {}
    job = execute.Job(
        path,
        arguments.scale,
        root,
        overrides=tuple(overrides.items()),
        inception=arguments.inception,
        batch_size=arguments.batch_size,
        together=None if arguments.together is None else tuple(texts(arguments.together)),
    )
    units, work = job.units()
    cells = [cell for unit in units for cell in unit.cells]
    if not arguments.report_only:
        execute.check(units, work)
        if arguments.retry:
            for cell in cells:
                if "error" in (job.store.result(cell.key) or {}):
                    job.store.forget(cell)
        print(f"{experiment.title}: {len(cells)} cells on {sum(len(u.trainings) for u in units)} trained models")
        try:
            if arguments.executor == "local":
                execute.local(job, units)
            else:
                execute.slurm(job, units, _parameters(arguments.slurm))
        except KeyboardInterrupt:
            print("stopped; the same command continues")
            return 130
    measures = measures_of(experiment, scale)
    outcome = Outcome(experiment, measures, cells, collect(job.store, cells, measures))
    command = f"python launch.py reproduce --experiment={path} --workdir=W --scale={arguments.scale}"
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


def _rewrite(path: str, scale_name: str, results: Path) -> int:
    """Writes the report of a results.json again."""
    experiment = spec.load(path)
    scale = scale_of(experiment, scale_name)
    cells = [cell for unit in make_units(experiment, scale, {}) for cell in unit.cells]
    outcome, command = report.read(results, experiment, scale_name, cells, measures_of(experiment, scale))
    _print(outcome, report.write(results.parent, outcome, scale_name, scale, None, command))
    return 0


def _print(outcome: Outcome, written: Path) -> None:
    for labels, error in outcome.errors.items():
        print(f"failed: {labels}: {error}")
    for ordering in outcome.experiment.orderings:
        print(f"{ordering.says}: {verdicts.describe(outcome.verdict(ordering)).replace('**', '')}")
    print(f"{outcome.done} of {outcome.total} cells, {len(outcome.errors)} failed")
    print(f"{written}\n{written.with_suffix('.html')}")


def _parameters(text: str) -> dict:
    """partition=gpu,timeout_min=600 as submitit takes them. Raises UserError."""
    found = {}
    for part in texts(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"--slurm={text}: write NAME=VALUE,NAME=VALUE")
        found[name] = int(value) if value.isdigit() else value
    return found
