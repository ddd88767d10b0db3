"""Executes an experiment's job groups: one after another in a separate process, or as Slurm jobs."""

import concurrent.futures
import contextlib
import dataclasses
import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from diffjax import evaluation
from diffjax.errors import UserError, quiet_libraries
from diffjax.evaluation import classifier
from diffjax.evaluation.metrics import COMPARISONS
from diffjax.metrics import features
from diffjax.metrics.features import WeightPaths
from diffjax.reproduce import spec
from diffjax.reproduce.cells import RunOptions, collect, run_group
from diffjax.reproduce.outcome import Outcome
from diffjax.reproduce.plan import JobGroup, get_measures, get_scale, make_groups
from diffjax.reproduce.spec import Experiment, Scale
from diffjax.reproduce.store import Store
from diffjax.runs.datasets import image_spec, open_dataset

_POLL = 1.0  # interval of progress updates, in seconds
_KILLED = "the process was killed, probably out of memory: use a smaller train.batch_size or --batch_size"


@dataclasses.dataclass(frozen=True)
class Job:
    """An experiment at a scale in a folder, as plain values that another process can receive.

    Attributes:
      path: file of the experiment.
      scale: name of the scale.
      root: folder of the results.
      overrides: config fields that depend on the machine, with their values.
      weights, batch_size: as of `RunOptions`.
    """

    path: str
    scale: str
    root: str
    overrides: tuple[tuple[str, Any], ...]
    weights: WeightPaths = dataclasses.field(default_factory=dict)
    batch_size: int = 100

    def plan(self) -> tuple[list[JobGroup], RunOptions]:
        """Returns the job groups, in the same order in every process, and their options."""
        experiment = spec.load(self.path)
        scale = get_scale(experiment, self.scale)
        options = RunOptions(tuple(get_measures(experiment, scale)), scale.num, self.weights, self.batch_size)
        return make_groups(experiment, scale, dict(self.overrides)), options

    @property
    def store(self) -> Store:
        return Store(Path(self.root))


def run_job(job: Job, number: int) -> None:
    """Runs job group `number`, with its output in logs/."""
    groups, options = job.plan()
    with _open_log(job.root, groups[number]) as log, _redirect_output(log):
        run_group(job.store, groups[number], options)


def _open_log(root: str | os.PathLike, group: JobGroup) -> TextIO:
    logs = Path(root) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return (logs / f"{group.cells[0].training}.log").open("a")


def check(groups: Sequence[JobGroup], options: RunOptions) -> None:
    """Raises UserError for a missing data set or missing weights of a feature network, before any training."""
    names = (evaluation.OF_RECONSTRUCTIONS.get(m.metric, m.metric) for m in options.measures)
    networks = {COMPARISONS[name].network for name in names if name in COMPARISONS} - {"clip"}  # trained with the run
    if any(cell.features for group in groups for cell in group.cells):
        networks -= {"classifier"}  # trained by the experiment
    for network in networks:
        features.check(network, options.weights)
        if network == "classifier":
            for group in groups:
                classifier.check_features(options.weights[network] or "", image_spec(group.cells[0].config))
        else:
            features.load(network, options.weights)
    configs = {config.data.to_json(): config for group in groups for config in group.trainings.values()}
    for config in configs.values():
        open_dataset(config, config.data.split)


def local(job: Job, groups: Sequence[JobGroup]) -> None:
    """Runs the pending groups one after another in a separate process, which is replaced if it is killed."""
    pending = _pending(job, groups)
    with _progress(job.store, groups) as bar:
        while pending:
            pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent)
            try:
                while pending:
                    future = pool.submit(run_job, job, pending[0])
                    bar.describe(groups[pending[0]])
                    while not concurrent.futures.wait([future], _POLL).done:
                        bar.update()
                    future.result()
                    pending.pop(0)
            except BrokenProcessPool:
                _save_error(job.store, groups[pending.pop(0)], _KILLED)
            finally:
                pool.shutdown(cancel_futures=True)


def in_process(
    experiment: Experiment,
    scale: Scale,
    root: str | os.PathLike,
    overrides: Mapping[str, Any] | None = None,
    *,
    weights: WeightPaths | None = None,
    batch_size: int = 100,
) -> Outcome:
    """Runs the pending cells of an experiment in this process, with their output in logs/.

    Args:
      root: folder of the results, which keeps finished cells.
      overrides: config fields that depend on the machine, such as data.dir.
      weights, batch_size: as of `RunOptions`.

    Returns:
      The outcome of all cells. A cell that fails has its error there.

    Raises:
      UserError: an invalid field of a config, or a missing data set.
    """
    store, measures = Store(Path(root)), tuple(get_measures(experiment, scale))
    options = RunOptions(measures, scale.num, weights or {}, batch_size)
    groups = make_groups(experiment, scale, overrides or {})
    check(groups, options)
    for group in groups:
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(_open_log(root, group))
            stack.enter_context(contextlib.redirect_stdout(log))
            stack.enter_context(contextlib.redirect_stderr(log))
            stack.enter_context(quiet_libraries(logging.CRITICAL))
            run_group(store, group, options)
    cells = [cell for group in groups for cell in group.cells]
    return Outcome(experiment, measures, cells, collect(store, cells, measures))


def slurm(job: Job, groups: Sequence[JobGroup], parameters: Mapping[str, Any]) -> None:
    """Runs each pending group as a Slurm job, through submitit.

    Args:
      parameters: submitit's parameters; "cluster" selects its executor.

    Raises:
      UserError: submitit is not installed, or refuses the jobs.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("--executor=slurm: requires submitit; pip install 'diffjax[slurm]'") from error
    pending, remaining = _pending(job, groups), dict(parameters)
    try:
        executor = submitit.AutoExecutor(Path(job.root) / "slurm", cluster=remaining.pop("cluster", "slurm"))
        executor.update_parameters(**remaining)
        with executor.batch():
            jobs = [executor.submit(run_job, job, i) for i in pending]
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"--executor=slurm: {str(error).splitlines()[0]}") from error
    with _progress(job.store, groups) as bar:
        for number, submitted in zip(pending, jobs, strict=True):
            while not submitted.done():
                bar.update()
                threading.Event().wait(_POLL)
            if (error := submitted.exception()) is not None:
                last_line = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                _save_error(job.store, groups[number], f"job {submitted.job_id}: {last_line}")


def _pending(job: Job, groups: Sequence[JobGroup]) -> list[int]:
    """Returns the numbers of the groups with pending cells."""
    return [i for i, group in enumerate(groups) if any(job.store.result(cell.key) is None for cell in group.cells)]


def _save_error(store: Store, group: JobGroup, error: str) -> None:
    """Stores an error for each pending cell of a group."""
    for cell in group.cells:
        if store.result(cell.key) is None:
            store.save(cell.key, {"error": error, "training": cell.training})


class _Bar:
    """Progress bar over all cells. It counts stored results, so also those of other processes."""

    def __init__(self, store: Store, groups: Sequence[JobGroup]):
        self._store, self._cells = store, [cell.key for group in groups for cell in group.cells]
        self._bar = tqdm(total=len(self._cells), initial=self._done(), unit="cell", dynamic_ncols=True)

    def _done(self) -> int:
        return sum(self._store.result(cell) is not None for cell in self._cells)

    def describe(self, group: JobGroup) -> None:
        """Shows the labels that the cells of a group share."""
        labels = [cell.labels for cell in group.cells]
        shared = {axis: label for axis, label in labels[0].items() if all(other[axis] == label for other in labels)}
        self._bar.set_postfix_str(", ".join(f"{axis} {label}" for axis, label in shared.items()))

    def update(self) -> None:
        """Shows the number of cells that are done."""
        if new := self._done() - self._bar.n:
            self._bar.update(new)
        elif sys.stderr.isatty():
            self._bar.refresh()  # updates the elapsed time

    def close(self) -> None:
        self.update()
        self._bar.close()


@contextlib.contextmanager
def _progress(store: Store, groups: Sequence[JobGroup]) -> Iterator[_Bar]:
    bar = _Bar(store, groups)
    try:
        yield bar
    finally:
        bar.close()


def _end_with_parent() -> None:
    """Ends this process when its parent ends, so that no worker of a killed experiment continues."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a child process"

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _redirect_output(log: TextIO) -> Iterator[None]:
    """Redirects standard output and standard error into a file."""
    sys.stdout.flush()
    copies = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), copies, strict=True):
            os.dup2(copy, number)
            os.close(copy)
