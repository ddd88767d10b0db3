"""Working through an experiment's units: one after another in a process of their own, or as Slurm jobs."""

import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from diffjax import evaluation
from diffjax.errors import UserError
from diffjax.evaluation.metrics import COMPARISONS
from diffjax.metrics import features
from diffjax.reproduce import spec
from diffjax.reproduce.cells import Work, work_on
from diffjax.reproduce.plan import Unit, make_units, measures_of, scale_of
from diffjax.reproduce.store import Store
from diffjax.runs.loading import open_source

_POLL = 1.0  # seconds
_KILLED = "the process was killed, most likely for want of memory: use a smaller train.batch_size or --batch_size"


@dataclasses.dataclass(frozen=True)
class Job:
    """An experiment at a scale in a folder, as plain values: another process makes the same units of it."""

    path: str
    scale: str
    root: str
    overrides: tuple[tuple[str, Any], ...]  # config fields of the machine
    inception: str | None = None
    batch_size: int = 100
    together: tuple[str, ...] | None = None  # None: as the experiment says

    def units(self) -> tuple[list[Unit], Work]:
        experiment = spec.load(self.path)
        scale = scale_of(experiment, self.scale)
        work = Work(tuple(measures_of(experiment, scale)), scale.num, self.inception, self.batch_size)
        return make_units(experiment, scale, dict(self.overrides), self.together), work

    @property
    def store(self) -> Store:
        return Store(Path(self.root))


def do(job: Job, number: int) -> None:
    """Unit `number`, its output in logs/."""
    units, work = job.units()
    logs = Path(job.root) / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{units[number].cells[0].training}.log").open("a") as log, _into(log):
        work_on(job.store, units[number], work)


def check(units: Sequence[Unit], work: Work) -> None:
    """Raises UserError where a data set or a network's weights are not there, before anything is trained."""
    metrics = (evaluation.OF_RECONSTRUCTIONS.get(m.metric, m.metric) for m in work.measures)
    for network in {COMPARISONS[name].network for name in metrics if name in COMPARISONS}:
        features.load(network, weights=work.inception)
    seen = set()
    for unit in units:
        for config in unit.trainings.values():
            if (key := config.data.to_json()) not in seen:
                seen.add(key)
                open_source(config, config.data.split)


def local(job: Job, units: Sequence[Unit]) -> None:
    """One unit after another, in a process that is started anew where it was killed."""
    left = [i for i, unit in enumerate(units) if any(job.store.result(cell.key) is None for cell in unit.cells)]
    with _progress(job.store, units) as bar:
        while left:
            pool = concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _end_with_parent)
            try:
                while left:
                    future = pool.submit(do, job, left[0])
                    bar.say(units[left[0]])
                    while not concurrent.futures.wait([future], _POLL).done:
                        bar.update()
                    future.result()
                    left.pop(0)
            except BrokenProcessPool:
                for cell in units[left.pop(0)].cells:
                    if job.store.result(cell.key) is None:
                        job.store.keep(cell.key, {"error": _KILLED, "training": cell.training})
            finally:
                pool.shutdown(cancel_futures=True)


def slurm(job: Job, units: Sequence[Unit], parameters: Mapping[str, Any]) -> None:
    """Every unit a Slurm job, through submitit. Raises UserError where it is not installed or refuses."""
    try:
        import submitit
    except ImportError as error:
        raise UserError("--executor=slurm needs submitit: pip install -e '.[slurm]'") from error
    left = [i for i, unit in enumerate(units) if any(job.store.result(cell.key) is None for cell in unit.cells)]
    given = dict(parameters)
    try:
        executor = submitit.AutoExecutor(Path(job.root) / "slurm", cluster=given.pop("cluster", "slurm"))
        executor.update_parameters(**given)
        with executor.batch():
            jobs = [executor.submit(do, job, i) for i in left]
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise UserError(f"--executor=slurm: {str(error).splitlines()[0]}") from error
    with _progress(job.store, units) as bar:
        for number, submitted in zip(left, jobs, strict=True):
            while not submitted.done():
                bar.update()
                threading.Event().wait(_POLL)
            if (error := submitted.exception()) is not None:
                said = (str(error).strip().splitlines() or [type(error).__name__])[-1]
                for cell in units[number].cells:
                    if job.store.result(cell.key) is None:
                        job.store.keep(
                            cell.key, {"error": f"job {submitted.job_id}: {said}", "training": cell.training}
                        )


class _Bar:
    """Counts cells that are done, whoever did them."""

    def __init__(self, store: Store, units: Sequence[Unit]):
        self._store, self._cells = store, [cell.key for unit in units for cell in unit.cells]
        done = self._done()
        self._bar = tqdm(total=len(self._cells), initial=done, unit="cell", dynamic_ncols=True)

    def _done(self) -> int:
        return sum(self._store.result(cell) is not None for cell in self._cells)

    def say(self, unit: Unit) -> None:
        labels = [cell.labels for cell in unit.cells]
        shared = {axis: label for axis, label in labels[0].items() if all(other[axis] == label for other in labels)}
        self._bar.set_postfix_str(", ".join(f"{axis} {label}" for axis, label in shared.items()))

    def update(self) -> None:
        if new := self._done() - self._bar.n:
            self._bar.update(new)
        elif sys.stderr.isatty():
            self._bar.refresh()  # the clock

    def close(self) -> None:
        self.update()
        self._bar.close()


@contextlib.contextmanager
def _progress(store: Store, units: Sequence[Unit]) -> Iterator[_Bar]:
    bar = _Bar(store, units)
    try:
        yield bar
    finally:
        bar.close()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone, so that a killed experiment leaves nothing that works on."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def _into(log) -> Iterator[None]:
    """Everything that is printed goes into a file."""
    sys.stdout.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
