"""The work of an experiment: training what is not trained, measuring what is not measured, and keeping both."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from diffjax import ensemble, evaluation
from diffjax.errors import UserError
from diffjax.evaluation import metrics, provenance
from diffjax.evaluation.samples import Measurer
from diffjax.evaluation.settings import Examples, Settings
from diffjax.inference import prompts
from diffjax.inference.reranking import Judge, best_of, judge_of
from diffjax.inference.sampler_runner import Generator
from diffjax.models.diffusion.guided import guided
from diffjax.reproduce.figures import SHOWN
from diffjax.reproduce.plan import Cell, Unit
from diffjax.reproduce.spec import Measure
from diffjax.reproduce.store import Store
from diffjax.runs.config_files import part_alone, part_names, training_key
from diffjax.runs.loading import Run, blueprint, load
from diffjax.training.train import train


@dataclasses.dataclass(frozen=True)
class Work:
    """What all units of an experiment have in common.

    Attributes:
      inception: file of the weights of FID's network.
    """

    measures: tuple[Measure, ...]
    num: int
    inception: str | None = None
    batch_size: int = 100


def work_on(store: Store, unit: Unit, work: Work) -> None:
    """Does what is left of a unit. What fails is recorded with its error; the rest goes on.

    Raises:
      KeyboardInterrupt: stopped by a signal; everything so far is kept.
    """
    left = list({cell.key: cell for cell in unit.cells if store.result(cell.key) is None}.values())
    needed = {key for cell in left for key in (cell.training, cell.classifier)}
    guides = {cell.classifier for cell in left}
    wanted = {key: config for key, config in unit.trainings.items() if key in needed}
    errors = _train(store, {key: config for key, config in wanted.items() if key in guides})
    errors |= _train(store, {key: config for key, config in wanted.items() if key not in guides})
    for training, classifier in dict.fromkeys((cell.training, cell.classifier) for cell in left):
        own = [cell for cell in left if (cell.training, cell.classifier) == (training, classifier)]
        if error := errors.get(training) or errors.get(classifier):
            for cell in own:
                _fail(store, cell, error)
            continue
        try:
            guide = load(store.run(classifier).path) if classifier else None
            measure = _CellMeasures(load(store.run(training).path), guide, work, own)
        except Exception as error:
            for cell in own:
                _fail(store, cell, error)
            continue
        for cell in own:
            try:
                measure(store, cell)
            except Exception as error:
                _fail(store, cell, error)


def _train(store: Store, wanted: Mapping[str, ConfigDict]) -> dict[str, Exception | str]:
    """Trains the configs, as one program where they differ in numbers alone; gives the errors of those that failed."""
    configs, errors = list(wanted.values()), {}
    if len(configs) > 1 and ensemble.can_train_together(configs):
        with contextlib.ExitStack() as locks:
            for training in sorted(wanted):
                locks.enter_context(store.lock(training))
            try:
                found = ensemble.train_together(configs, [store.run(training) for training in wanted])
            except ensemble.Stopped as stopped:
                raise KeyboardInterrupt from stopped
            except Exception as error:
                found = [error] * len(configs)
        return {training: error for training, error in zip(wanted, found, strict=True) if error}
    for training, config in wanted.items():
        try:
            _train_one(store, config)
        except Exception as error:
            errors[training] = error
    return errors


def _train_one(store: Store, config: ConfigDict) -> None:
    """Trains a config; before it its parts, which are runs of their own, shared by all that stand on them."""
    training = training_key(config)
    left = [name for name in part_names(config) if not store.has_part(training, name)]
    if left:
        blueprint(config)  # what does not fit is said before any part is trained
    for name in left:
        part = part_alone(config, name)
        _train_one(store, part)
        store.link_part(training, name, training_key(part))
    with store.lock(training):
        _, stopped = train(config, store.run(training))
    if stopped:
        raise KeyboardInterrupt


def _fail(store: Store, cell: Cell, error: Exception | str) -> None:
    said = str(error).strip().splitlines() or [type(error).__name__]
    text = said[0] if isinstance(error, UserError | str) else f"{type(error).__name__}: {said[0]}"
    print(f"{cell.labels}: {text}")
    store.keep(cell.key, {"error": text, "training": cell.training})


class _CellMeasures:
    """Measures the cells of one trained run: what they share is computed once."""

    def __init__(self, trained: Run, guide: Run | None, work: Work, cells: list[Cell]):
        self._trained, self._work, self._seen = trained, work, {}
        self._system, self._variables = trained.system, trained.variables
        if guide:
            self._system = guided(trained.system, classifier=guide.system)
            self._variables = {"model": trained.variables, "classifier": guide.variables}
        of_samples = [m.metric for m in work.measures if m.metric in metrics.NAMES]
        self._draws = trained.system.sample is not None
        for measure in work.measures:
            if measure.metric in evaluation.NAMES:
                evaluation.check(measure.metric, trained)
        given = {"inception": work.inception, "batch_size": work.batch_size}
        self._measurer = Measurer(of_samples, trained, classes=self._system.classes, **given) if of_samples else None
        again = [
            evaluation.OF_RECONSTRUCTIONS[m.metric] for m in work.measures if m.metric in evaluation.OF_RECONSTRUCTIONS
        ]
        self._again = Measurer(again, trained, split="test", **given) if again else None
        self._generator = Generator(self._system, batch_size=min(work.batch_size, work.num))
        if self._draws:
            steps = [getattr(trained.system.plan(cell.config.sampler), "steps", 0) for cell in cells]
            self._capacity = max(map(int, steps))

    def __call__(self, store: Store, cell: Cell) -> None:
        trained, began = self._trained, time.perf_counter()
        figures, told, images = {}, {"classifier": cell.classifier} if cell.classifier else {}, None
        if self._draws:
            plan = trained.system.plan(cell.config.sampler, capacity=self._capacity)
            asked = prompts.of_run(trained, self._work.num, classes=self._system.classes)
            candidates = cell.config.get("rerank", {}).get("best_of", 1)
            judge = self._judge() if candidates > 1 else None
            images, _ = best_of(self._generator, self._variables, asked, plan, judge, candidates=candidates)
            told["sampler"] = cell.config.sampler.to_dict()
            if self._measurer:
                found = self._measurer(images, asked.condition["label"], asked.captions)
                figures |= {name: estimate._asdict() for name, estimate in found.items()}
                told |= {"samples": self._work.num, "reference": self._measurer.provenance}
                told |= {"warnings": list(self._measurer.warnings)}
        for measure in self._work.measures:
            if measure.metric in evaluation.OF_DATA:
                found = _figure(self._of_data(cell, measure), measure.figure)
            elif measure.metric == "training":
                found = _figure(_last_logged(trained), measure.figure)
            else:
                continue
            if found is not None:
                figures[measure.name] = found
        if self._again:
            examples = self._examples(Settings(num=self._work.num))
            originals, back = examples.images, self._generator.reconstruct(trained.variables, examples.images)
            found = self._again(back, examples.labels)
            images = np.concatenate([originals[: SHOWN // 2], back[: SHOWN // 2]])
            figures |= {f"r{name}": estimate._asdict() for name, estimate in found.items()}
            told |= {"reconstructions": len(back), "reference": self._again.provenance}
        if settings := {m.name: dict(m.settings) for m in self._work.measures if m.settings}:
            told["settings"] = settings
        depends = {**provenance.of_run(trained), **told, "seed": int(cell.labels["seed"])}
        seconds = round(time.perf_counter() - began, 2)
        result = {"figures": figures, "provenance": depends, "training": cell.training, "seconds": seconds}
        store.keep(cell.key, result, images)

    def _judge(self) -> Judge:
        """Of the run's own CLIP."""
        if "judge" not in self._seen:
            self._seen["judge"] = judge_of(self._trained, batch_size=self._work.batch_size)
        return self._seen["judge"]

    def _of_data(self, cell: Cell, measure: Measure) -> dict[str, Any]:
        """The figures of a metric of data, computed once."""
        given = dict(measure.settings)
        if measure.metric == "reconstruction" and self._trained.system.model:
            given = {"steps": (cell.config.sampler.steps,), "grid": cell.config.sampler.grid, **given}
        settings = Settings(**given)
        key = measure.metric, settings
        if key not in self._seen:
            found = evaluation.of_data(measure.metric, self._trained)
            self._seen[key] = found(settings, self._trained, self._examples(settings))
        return self._seen[key]

    def _examples(self, settings: Settings) -> Examples:
        key = settings.split, settings.num
        if key not in self._seen:
            self._seen[key] = evaluation.examples(settings, self._trained)
        return self._seen[key]


def _figure(found: Any, path: str) -> dict[str, float | None] | None:
    """That of a dotted path; None where there is none, as of the codes of a VAE."""
    try:
        for part in path.split("."):
            found = found[int(part)] if isinstance(found, list) else found[part]
    except (KeyError, IndexError):
        return None
    if found is None:  # not finite when it was logged
        return None
    if not isinstance(found, Mapping):
        return {"value": float(found), "standard_error": None}
    return {"value": found["mean"], "standard_error": found["standard_error"]}


def _last_logged(trained: Run) -> dict[str, float]:
    return json.loads((trained.workdir.path / "metrics.jsonl").read_text().splitlines()[-1])


def collect(store: Store, cells: Sequence[Cell], wanted: Sequence[Measure]) -> dict[str, dict[str, Any] | None]:
    """Returns what is known of each cell, by its key, with the figures that need other cells' samples.

    That is to_most_steps. The cell of the most steps is the reference of the others: it has no such figure, as its
    difference from itself is 0 by construction.
    """
    results = {cell.key: store.result(cell.key) for cell in cells}
    if any(measure.metric == "to_most_steps" for measure in wanted):
        references: dict[tuple, np.ndarray] = {}
        for cell in sorted(cells, key=lambda cell: -cell.config.sampler.steps):
            images, result = store.images(cell.key), results[cell.key]
            if images is None or result is None or "figures" not in result:
                continue
            sampler = {name: value for name, value in cell.config.sampler.items() if name != "steps"}
            group = cell.training, json.dumps(sampler, sort_keys=True)
            if group not in references:
                references[group] = images
                continue
            difference = images.astype(np.float32) - references[group]
            result["figures"]["to_most_steps"] = {
                "value": float(np.sqrt(np.mean(difference**2))),
                "standard_error": None,
            }
    return results
