"""Runs the jobs of an experiment: trains what is not trained, evaluates what is not evaluated, and stores both."""

import dataclasses
import functools
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from diffjax import evaluation
from diffjax.errors import UserError
from diffjax.evaluation import metrics, provenance
from diffjax.evaluation.samples import Measurer
from diffjax.evaluation.settings import Examples, Result, Settings
from diffjax.inference import prompts
from diffjax.inference.reranking import Reranker, best_of, load_reranker
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.metrics import similarity
from diffjax.metrics.features import WeightPaths
from diffjax.metrics.resampling import Estimate
from diffjax.models.capabilities import is_diffusion, is_generative
from diffjax.models.diffusion.guided import guided
from diffjax.reproduce.figures import SHOWN
from diffjax.reproduce.plan import Cell, JobGroup, sampling_sections
from diffjax.reproduce.spec import SEED, Measure
from diffjax.reproduce.store import Store
from diffjax.runs.config_files import flatten
from diffjax.runs.dependencies import part_names, standalone_part, training_hash
from diffjax.runs.loading import Run, build_model, load
from diffjax.training.train import train

# Distance of the first seeds of samples and edits of two training seeds, so that their noise is independent.
_SEEDS_APART = 1_000_000


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options that all jobs of an experiment share.

    Attributes:
      measures: measured columns.
      num: samples per cell.
      weights: paths of the weights of feature networks that require a download.
      batch_size: samples per batch; does not change them.
    """

    measures: tuple[Measure, ...]
    num: int
    weights: WeightPaths = dataclasses.field(default_factory=dict)
    batch_size: int = 100


@dataclasses.dataclass(frozen=True)
class CellResult:
    """Result of a cell.

    Attributes:
      estimates: values with their sampling errors, by the name of the measure.
      provenance: everything that the estimates depend on.
      images: samples, or originals and reconstructions; None: the model does not sample.
    """

    estimates: Mapping[str, Estimate]
    provenance: Mapping[str, Any]
    images: UInt8[np.ndarray, "N H W C"] | None = None


def run_group(store: Store, group: JobGroup, options: RunOptions) -> None:
    """Trains and evaluates the cells of a group that are pending. Stores an error for each cell that fails.

    Raises:
      KeyboardInterrupt: stopped by a signal; finished cells and checkpoints are stored.
    """
    pending = list({cell.key: cell for cell in group.cells if store.result(cell.key) is None}.values())
    guides = {key for cell in pending for key in (cell.classifier, cell.weak, cell.features)}
    required = guides | {cell.training for cell in pending}
    trainings = {key: config for key, config in group.trainings.items() if key in required}
    errors = _train_all(store, {key: config for key, config in trainings.items() if key in guides})
    errors |= _train_all(store, {key: config for key, config in trainings.items() if key not in guides})
    for keys in dict.fromkeys(map(_weights_of, pending)):
        cells = [cell for cell in pending if _weights_of(cell) == keys]
        error = next((errors[key] for key in keys if key in errors), None)
        if not error:
            error = _evaluate_all(store, cells, options)
        if error:
            for cell in cells:
                _save_error(store, cell, error)


def _weights_of(cell: Cell) -> tuple[str | float | None, ...]:
    """Returns what determines the weights that a cell is sampled and measured with."""
    return cell.training, cell.classifier, cell.weak, cell.features, cell.ema_length


def _train_all(store: Store, trainings: Mapping[str, ConfigDict]) -> dict[str, Exception]:
    """Trains the configs; returns the errors of those that failed, by key."""
    errors = {}
    for key, config in trainings.items():
        try:
            train_with_parts(store, config)
        except Exception as error:
            errors[key] = error
    return errors


def train_with_parts(store: Store, config: ConfigDict) -> None:
    """Trains a config, after its parts. A part is a run of its own, which all runs with an equal part share."""
    key = training_hash(config)
    missing = [name for name in part_names(config) if not store.has_part(key, name)]
    if missing:
        build_model(config, abstract=True)  # reports an invalid config before any part is trained
    for name in missing:
        part = standalone_part(config, name)
        train_with_parts(store, part)
        store.link_part(key, name, training_hash(part))
    with store.lock(key):
        _, stopped = train(config, store.run(key))
    if stopped:
        raise KeyboardInterrupt


def _evaluate_all(store: Store, cells: Sequence[Cell], options: RunOptions) -> Exception | None:
    """Evaluates and stores cells of one trained run and its guiding models; returns an error that concerns them all."""
    try:
        keys = {"classifier": cells[0].classifier, "weak": cells[0].weak}
        guides = {name: load(store.run(key).path) for name, key in keys.items() if key}
        trained = load(store.run(cells[0].training).path, ema_length=cells[0].ema_length)
        if key := cells[0].features:
            weights = {**options.weights, "classifier": str(store.run(key).path)}
            options = dataclasses.replace(options, weights=weights)
        evaluator = CellEvaluator(trained, guides, options, cells)
    except Exception as error:
        return error
    for cell in cells:
        started = time.perf_counter()
        try:
            result = evaluator.evaluate(cell)
        except Exception as error:
            _save_error(store, cell, error)
            continue
        stored = {
            "estimates": {name: estimate._asdict() for name, estimate in result.estimates.items()},
            "provenance": result.provenance,
            "training": cell.training,
            "seconds": round(time.perf_counter() - started, 2),
        }
        store.save(cell.key, stored, result.images)
    return None


def _save_error(store: Store, cell: Cell, error: Exception) -> None:
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    text = first_line if isinstance(error, UserError) else f"{type(error).__name__}: {first_line}"
    print(f"{cell.labels}: {text}")
    store.save(cell.key, {"error": text, "training": cell.training})


class CellEvaluator:
    """Evaluates the cells of one trained run. Everything that they share is computed once."""

    def __init__(self, trained: Run, guides: Mapping[str, Run], options: RunOptions, cells: Sequence[Cell]):
        """Opens the data and networks of the metrics.

        Args:
          guides: runs that guide the samples, "classifier" and "weak".
          cells: all cells that will be evaluated; they determine the size of the compiled sampler.

        Raises:
          UserError: a metric that the run does not support.
        """
        self._trained, self._options = trained, options
        model: Any = trained.system
        self._model, self._variables = model, trained.variables
        if guides:
            systems: dict[str, Any] = {name: guide.system for name, guide in guides.items()}
            self._model = guided(model, **systems)
            self._variables = {"model": trained.variables} | {name: guide.variables for name, guide in guides.items()}
        names = [measure.metric for measure in options.measures]
        for name in names:
            if name in evaluation.NAMES:
                evaluation.check(name, trained, guides=guides)
        of_samples = [name for name in names if name in metrics.NAMES]
        of_reconstructions = [evaluation.OF_RECONSTRUCTIONS[n] for n in names if n in evaluation.OF_RECONSTRUCTIONS]
        has_edits = not set(names).isdisjoint(evaluation.OF_EDITS)
        measures_samples = bool(of_samples or {"rms_to_finest_grid", "seconds_per_image"} & {*names})
        self._samples = is_generative(model) and (measures_samples or not has_edits)  # a report shows edits instead
        self._measure_samples = self._measurer(of_samples) if of_samples else None
        self._measure_reconstructions = self._measurer(of_reconstructions, "test") if of_reconstructions else None
        self._runner = SampleRunner(self._model, batch_size=min(options.batch_size, options.num))
        self._capacity = 0
        if is_generative(model):
            settings = (model.make_settings(cell.sampler) for cell in cells)
            self._capacity = max(int(getattr(each, "steps", 0)) for each in settings)
        self._data_results: dict[tuple[str, Settings, str], Result] = {}
        self._examples_of = functools.cache(lambda split, num: self._read_examples(split, num))

    def _measurer(self, names: Sequence[str], split: str | None = None) -> Measurer:
        weights, batch_size = self._options.weights, self._options.batch_size
        options = {"classes": self._model.classes, "weights": weights, "batch_size": batch_size, "with_errors": True}
        return Measurer(names, self._trained, real=split, **options)

    def evaluate(self, cell: Cell) -> CellResult:
        """Returns the result of a cell."""
        results = [self._evaluate_samples(cell)] if self._samples else []
        if self._measure_reconstructions:
            results.append(self._evaluate_reconstructions(self._measure_reconstructions))
        results.append(self._evaluate_data(cell))
        estimates, depends, images = {}, {}, None
        for result in results:
            estimates |= result.estimates
            depends |= {**result.provenance, "warnings": depends.get("warnings", []) + result.provenance["warnings"]}
            images = images if result.images is None else result.images
        depends["seed"] = int(cell.labels[SEED])
        depends |= {name: key for name in ("classifier", "weak") if (key := getattr(cell, name))}
        return CellResult(estimates, {**provenance.run_provenance(self._trained), **depends}, images)

    def _evaluate_samples(self, cell: Cell) -> CellResult:
        model: Any = self._trained.system
        settings = model.make_settings(cell.sampler, capacity=self._capacity)
        conditions = prompts.default_prompts(self._trained, self._options.num, classes=self._model.classes)
        candidates = flatten(cell.config).get("rerank.best_of", 1)
        judge = self._judge if candidates > 1 else None
        seed = _SEEDS_APART * int(cell.labels[SEED])
        self._runner.compile(self._variables, seed + np.arange(self._options.num), conditions.conditions, settings)
        start = time.perf_counter()
        options = {"candidates": candidates, "seed": seed}
        images = best_of(self._runner, self._variables, conditions, settings, judge, **options).images
        times = {"seconds_per_image": Estimate((time.perf_counter() - start) / self._options.num, None)}
        depends: dict[str, Any] = {"sampler": cell.sampler.to_dict(), "warnings": []}
        if conditions.captions:
            depends["captions"] = conditions.captions[:SHOWN]  # of the samples that the report shows
        estimates = times if any(m.metric in times for m in self._options.measures) else {}
        if not self._measure_samples:
            return CellResult(estimates, depends, images)
        estimates |= self._measure_samples(images, conditions.conditions["label"], conditions.captions)
        depends |= {"samples": self._options.num, "reference": self._measure_samples.provenance}
        return CellResult(estimates, depends | {"warnings": list(self._measure_samples.warnings)}, images)

    def _evaluate_reconstructions(self, measurer: Measurer) -> CellResult:
        examples = self._examples_of(Settings.split, self._options.num)
        reconstructions = self._runner.reconstruct(self._trained.variables, examples.images)
        values = measurer(reconstructions, examples.labels)
        images = np.concatenate([examples.images[: SHOWN // 2], reconstructions[: SHOWN // 2]])
        depends = {"reconstructions": len(reconstructions), "reference": measurer.provenance}
        estimates = {f"recon_{name}": estimate for name, estimate in values.items()}
        return CellResult(estimates, depends | {"warnings": list(measurer.warnings)}, images)

    def _evaluate_data(self, cell: Cell) -> CellResult:
        """Evaluates metrics of data, and values that training logged."""
        estimates, warnings, shown = {}, {}, None
        for measure in self._options.measures:
            if measure.metric in evaluation.OF_DATA:
                result = self._data_result(cell, measure)
                estimate = select_estimate(result.values, measure.value)
                warnings |= dict.fromkeys(result.warnings)
                shown = shown or result.shown
            elif measure.metric == "training":
                lines = self._trained.workdir.read_metrics()
                estimate = select_estimate(lines[-1] if lines else {}, measure.value)
            else:
                continue
            if estimate is not None:
                estimates[measure.name] = estimate
        settings = {m.name: dict(m.settings) for m in self._options.measures if m.settings}
        depends: dict[str, Any] = {"warnings": list(warnings)} | ({"settings": settings} if settings else {})
        if shown:
            depends |= {"sampler": cell.sampler.to_dict(), "shown": shown.text}
        return CellResult(estimates, depends, shown.images if shown else None)

    def _data_result(self, cell: Cell, measure: Measure) -> Result:
        """Returns the result of a metric of data, computed once per metric, settings and for edits the sampler."""
        fields = dict(measure.settings)
        if is_diffusion(self._trained.system) and measure.metric == "reconstruction":
            fields = {"steps": (cell.sampler.steps,), "grid": cell.sampler.grid, **fields}
        elif is_diffusion(self._trained.system) and measure.value.startswith("ode"):
            fields = {"ode_steps": cell.sampler.steps, **fields}
        trained, sampler = self._trained, ""
        if measure.metric in evaluation.OF_EDITS:
            fields = {"seed": _SEEDS_APART * int(cell.labels[SEED]), **fields}
            trained, sampler = with_sampler(trained, cell.sampler), cell.sampler.to_json()
        settings = Settings(**fields)
        key = measure.metric, settings, sampler
        if key not in self._data_results:
            examples = self._examples_of(settings.split, settings.num)
            self._data_results[key] = evaluation.evaluate(measure.metric, trained, settings, examples)
        return self._data_results[key]

    def _read_examples(self, split: str, num: int | None) -> Examples:
        return evaluation.examples(Settings(split=split, num=num), self._trained)

    @functools.cached_property
    def _judge(self) -> Reranker:
        """The CLIP that was trained with the run."""
        return load_reranker(self._trained, batch_size=self._options.batch_size)


def with_sampler(trained: Run, sampler: ConfigDict) -> Run:
    """Returns a run with another sampler section of its config."""
    config = ConfigDict(trained.config.copy_and_resolve_references()).unlock()
    config.sampler = sampler
    return dataclasses.replace(trained, config=config.lock())


def select_estimate(values: Any, path: str) -> Estimate | None:
    """Returns the estimate at a dotted path, such as "codes.-1.perplexity".

    None if there is no such value, such as codes of a VAE, or if it was not finite when it was logged.
    """
    try:
        for part in path.split("."):
            values = values[int(part)] if isinstance(values, list) else values[part]
    except (KeyError, IndexError):
        return None
    if values is None:
        return None
    if not isinstance(values, Mapping):
        return Estimate(float(values), None)
    return Estimate(values["mean"], values["standard_error"])


def collect(store: Store, cells: Sequence[Cell], measures: Sequence[Measure]) -> dict[str, dict[str, Any] | None]:
    """Returns the stored result of each cell, by its key, with the values that need other cells' samples.

    That is rms_to_finest_grid. The cell with the most steps of each setting is the reference of the others. It has no
    value, as its difference from itself is 0 by construction. Without its samples the others have no value either.
    """
    results = {cell.key: store.result(cell.key) for cell in cells}
    if not any(measure.metric == "rms_to_finest_grid" for measure in measures):
        return results
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        sections = sampling_sections(cell.config)
        del sections["sampler"]["steps"]
        groups.setdefault((_weights_of(cell), json.dumps(sections, sort_keys=True)), []).append(cell)
    for group in groups.values():
        reference, *others = sorted(group, key=lambda cell: -cell.sampler.steps)
        reference_images = _measured_images(store, reference, results)
        for cell in others:
            images = _measured_images(store, cell, results)
            result = results[cell.key]
            if result and images is not None and reference_images is not None:
                rms = similarity.rms_difference(images, reference_images)
                result["estimates"]["rms_to_finest_grid"] = rms._asdict()
    return results


def _measured_images(
    store: Store, cell: Cell, results: Mapping[str, Mapping[str, Any] | None]
) -> UInt8[np.ndarray, "N H W C"] | None:
    """Returns the samples of a cell that did not fail; None without any."""
    return store.images(cell.key) if "estimates" in (results[cell.key] or {}) else None
