"""Evaluations of a run: metrics of data, of reconstructions and of samples, each an entry of the results store."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from diffjax import evaluation, io
from diffjax.errors import UserError
from diffjax.evaluation import metrics, provenance, results_store, samples
from diffjax.evaluation.results_store import Entry, ResultsStore, Writers, make_id
from diffjax.evaluation.samples import Measurer
from diffjax.evaluation.settings import Examples, Settings
from diffjax.inference import image_grids, prompts
from diffjax.inference.guidance_models import attach_guidance_models
from diffjax.inference.overrides import SettingsFactory, all_settings, by_flag, setting_values, single_setting
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.metrics.features import WeightPaths
from diffjax.parsing import entries, number, texts
from diffjax.runs.datasets import dataset_info, test_split
from diffjax.runs.loading import Run

DEFAULT_SAMPLES = 1000
# Options of metrics of data, with the least value of those that are whole numbers.
OPTIONS = {
    **dict.fromkeys(("decoder", "template", "lpips", "masks", "strength")),
    "resample_steps": 1,
    "ode_steps": 0,
    "samples": 1,
    "terms": 0,
    "exact_trace": 0,
}
_MAX_IMAGES = 100  # images of an example grid
_NOT_SHOWN = ("seed", "batch_size", "num")  # fields of Settings that are not settings of an entry


@dataclasses.dataclass(frozen=True)
class References:
    """Real images, networks and models that guide, for metrics of samples and reconstructions."""

    real: str | None = None  # split of the data set, or .npz file, to compare samples with; None: the training split
    clip: str | None = None  # run or folder of a CLIP; None: the one trained with the run
    weights: WeightPaths = dataclasses.field(default_factory=dict)  # of feature networks


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of one set of images, not computed yet.

    Attributes:
      id: hash of everything that the metrics depend on.
      settings: what is set for the entry, by name.
      compute: returns the entry, and functions that write its images.
    """

    id: str
    settings: Mapping[str, Any]
    compute: Callable[[], tuple[Entry, Writers]]


def check_names(names: Sequence[str], references: References) -> None:
    """Raises UserError for an unknown metric, or if the weights of its network are missing; reads no file."""
    for name in names:
        evaluation.check_name(name)
    compared = [evaluation.OF_RECONSTRUCTIONS[name] for name in names if name in evaluation.OF_RECONSTRUCTIONS]
    samples.check_names([*compared, *(name for name in names if name in metrics.NAMES)], references.weights)


def make_settings(flags: Mapping[str, Any]) -> Settings:
    """Returns settings of metrics of data from values of flags by name; None or absent: not set.

    Raises:
      UserError: --steps is not a list of whole numbers, --strength not one of numbers, or --lpips not two files.
    """
    names = ("seed", "batch_size", "split", "num", "grid", *OPTIONS)
    fields = {name: flags[name] for name in names if flags.get(name) is not None}
    if "samples" in fields:
        fields["draws"] = fields.pop("samples")
    if "lpips" in fields:
        fields["lpips"] = tuple(texts(fields["lpips"]))
        if len(fields["lpips"]) != 2:
            raise UserError(f"--lpips={flags['lpips']}: must be two files, BACKBONE,LINEAR")
    if "strength" in fields:
        try:
            fields["strength"] = tuple(number(part) for part in entries("strength", str(fields["strength"])))
        except ValueError as error:
            raise UserError(f"--strength={flags['strength']}: must be numbers separated by commas") from error
    if "resample_steps" in fields:
        fields["overrides"] = (("resample_steps", fields.pop("resample_steps")),)
    if flags.get("steps"):
        values = setting_values("steps", flags["steps"])
        fields["steps"] = tuple(value["steps"] for value in values if "steps" in value)  # others are of stages
    return Settings(**fields)


def prepare(
    names: Sequence[str],
    trained: Run,
    settings: Settings,
    flags: Mapping[str, Any],
    references: References,
) -> list[Evaluation]:
    """Checks all metrics before anything is computed, and returns their evaluations.

    Args:
      names: names in evaluation.NAMES.
      flags: texts of sampling settings by name, and "split", "classifier" and "weak"; None or absent: not set.

    Raises:
      UserError: a metric or a setting that the run does not support.
    """
    guides = [name for name in ("classifier", "weak") if flags.get(name)]
    for name in names:
        evaluation.check(name, trained, _settings_of(name, settings, flags), guides)
    data_metrics = [name for name in names if name in evaluation.OF_DATA]
    reconstruction_metrics = [name for name in names if name in evaluation.OF_RECONSTRUCTIONS]
    sample_metrics = [name for name in names if name in metrics.NAMES]
    if (data_metrics or reconstruction_metrics) and flags.get("split") is None:
        settings = dataclasses.replace(settings, split=test_split(trained.config))
    examples = evaluation.examples(settings, trained) if data_metrics or reconstruction_metrics else None
    if reconstruction_metrics and examples:
        compared = [evaluation.OF_RECONSTRUCTIONS[name] for name in reconstruction_metrics]
        options = {"real": settings.split, "weights": references.weights, "clip": references.clip}
        samples.check(compared, trained, len(examples.images), **options, extrapolate=True)
    if sample_metrics and not flags.get("classifier"):  # a classifier can add classes
        single_setting(flags)
        _check_samples(sample_metrics, trained, settings, references, trained.system.classes)
    sampled = [_sample_evaluation(sample_metrics, trained, settings, flags, references)] if sample_metrics else []
    evaluations = []
    if examples:
        for name in data_metrics:
            evaluations.append(_data_evaluation(name, trained, _settings_of(name, settings, flags), examples))
    if examples and reconstruction_metrics:
        evaluations.append(_reconstruction_evaluation(reconstruction_metrics, trained, settings, examples, references))
    return evaluations + sampled


def _settings_of(name: str, settings: Settings, flags: Mapping[str, Any]) -> Settings:
    """Returns the settings of a metric; those of edits have the sampling settings of the flags."""
    if name not in evaluation.OF_EDITS:
        return settings
    return dataclasses.replace(settings, overrides=(*settings.overrides, *single_setting(flags).items()))


def compute(
    evaluations: Sequence[Evaluation], results: ResultsStore | None = None, *, recompute: bool = False
) -> Iterator[tuple[Entry, bool]]:
    """Computes and stores evaluations. Yields the entry of each, and whether it was stored before.

    Args:
      results: store of the run; None: nothing is stored.
      recompute: whether to compute those that are stored too.
    """
    for prepared in evaluations:
        stored = results.find(prepared.id, prepared.settings) if results and not recompute else None
        if stored:
            yield stored, True
            continue
        entry, files = prepared.compute()
        if results:
            results.add(entry, files)
        yield entry, False


def _data_evaluation(name: str, trained: Run, settings: Settings, examples: Examples) -> Evaluation:
    fields = {field: value for field, value in dataclasses.asdict(settings).items() if field not in _NOT_SHOWN}
    defaults = dataclasses.asdict(Settings())
    shown = {field: value for field, value in fields.items() if field == "split" or value != defaults[field]}
    shown = {field: _plain(value) for field, value in shown.items() if field != "overrides"}
    shown |= by_flag(dict(settings.overrides))
    identity = make_id(
        metrics=[name],
        settings={**fields, "lpips": list(map(io.file_hash, settings.lpips)), "seed": settings.seed},
        examples=provenance.fingerprint(examples.batch),
        captions=examples.captions,
        **_model_inputs(trained, trained.variables),
    )

    def work() -> tuple[Entry, Writers]:
        result = evaluation.evaluate(name, trained, settings, examples)
        values = {
            "settings": shown,
            "num": len(examples.images),
            "seed": settings.seed,
            "metrics": dict(_estimates(name, result.values)),
            "details": dict(result.values),
            "text": result.text,
            "warnings": list(result.warnings),
            "files": list(result.plots),
        }
        return results_store.make_entry("evaluate", trained, identity, values), result.plots

    return Evaluation(identity, shown, work)


def _sample_evaluation(
    names: Sequence[str], trained: Run, settings: Settings, flags: Mapping[str, Any], references: References
) -> Evaluation:
    count, overrides = settings.count(DEFAULT_SAMPLES), single_setting(flags)
    model, variables = attach_guidance_models(trained, flags)
    _check_samples(names, trained, settings, references, model.classes)
    sampling_settings = SettingsFactory(model, trained.config.sampler)(**overrides)
    conditions, captions = prompts.default_prompts(trained, count, split=settings.split, classes=model.classes)
    measure = _measurer(names, trained, settings, references, references.real, model.classes)
    sampler = all_settings(trained.config.sampler.to_dict(), overrides, sampling_settings)
    guides = {name: str(flags[name]) for name in ("classifier", "weak") if flags.get(name)}
    length = {"ema_length": trained.ema_length} if trained.ema_length else {}
    steps = {"steps": sampling_settings.num_steps} if sampling_settings.num_steps else {}
    shown = {**length, **by_flag(overrides), **steps}
    identity = make_id(
        metrics=sorted(names),
        sampler=sampler,
        prompts=provenance.fingerprint(conditions),
        captions=captions,
        split=settings.split if captions else None,
        num=count,
        seed=settings.seed,
        reference=measure.provenance,
        **_model_inputs(trained, variables),
    )

    def work() -> tuple[Entry, Writers]:
        seeds = settings.seed + np.arange(count)
        runner = SampleRunner(model, batch_size=min(settings.batch_size, count))
        with tqdm(total=count, unit="image") as bar:
            images = runner(variables, seeds, conditions, sampling_settings, progress=bar.update)
        estimates = measure(images, conditions["label"], captions)
        baselines = measure.baselines(settings.split)
        title = f"{count} samples, seeds from {settings.seed}, checkpoint {trained.step}"
        fields = {
            "settings": shown,
            "num": count,
            "seed": settings.seed,
            "metrics": {name: metrics.result_entry(name, estimates[name], baselines.get(name)) for name in estimates},
            "not_finite": runner.not_finite,
            "sampler": sampler,
            "guides": guides,
            **({"prompts": f"{len(set(captions))} captions of {settings.split}"} if captions else {}),
            "reference": measure.provenance,
            "text": _text(title, measure, estimates, count, baselines),
            "warnings": list(measure.warnings),
            "files": ["samples.png"],
        }
        entry = results_store.make_entry("evaluate", trained, identity, fields)
        return entry, {"samples.png": _grid_writer(trained, images)}

    return Evaluation(identity, shown, work)


def _reconstruction_evaluation(
    names: Sequence[str], trained: Run, settings: Settings, examples: Examples, references: References
) -> Evaluation:
    compared = [evaluation.OF_RECONSTRUCTIONS[name] for name in names]
    measure = _measurer(compared, trained, settings, references, settings.split, 0)
    shown = {"split": settings.split}
    identity = make_id(
        metrics=sorted(names),
        examples=provenance.fingerprint(examples.batch),
        seed=settings.seed,
        reference=measure.provenance,
        **_model_inputs(trained, trained.variables),
    )

    def work() -> tuple[Entry, Writers]:
        runner = SampleRunner(trained.system, batch_size=settings.batch_size)
        images = runner.reconstruct(trained.variables, examples.images)
        estimates = measure(images, examples.labels)
        title = f"{len(images)} reconstructions of {settings.split}, checkpoint {trained.step}"
        fields = {
            "settings": shown,
            "num": len(images),
            "seed": settings.seed,
            "metrics": {f"recon_{name}": metrics.result_entry(name, estimates[name]) for name in estimates},
            "reference": measure.provenance,
            "text": _text(title, measure, estimates, len(images), {}),
            "warnings": list(measure.warnings),
            "files": ["reconstructions.png"],
        }
        entry = results_store.make_entry("evaluate", trained, identity, fields)
        return entry, {"reconstructions.png": _grid_writer(trained, images)}

    return Evaluation(identity, shown, work)


def _plain(value: Any) -> Any:
    """Returns the value of a setting as JSON has it; a tuple of one value is that value."""
    return value if not isinstance(value, tuple) else value[0] if len(value) == 1 else list(value)


def _model_inputs(trained: Run, variables: Any) -> dict[str, Any]:
    """Returns what samples and likelihoods of a model depend on, for an id."""
    return {"config": provenance.config_hash(trained), "weights": provenance.fingerprint(variables)}


def _check_samples(
    names: Sequence[str], trained: Run, settings: Settings, references: References, classes: int
) -> None:
    """Raises UserError for a metric that is not supported for the samples; loads nothing."""
    options = {"real": references.real, "weights": references.weights, "clip": references.clip}
    samples.check(names, trained, settings.count(DEFAULT_SAMPLES), classes=classes, **options, extrapolate=True)


def _measurer(
    names: Sequence[str], trained: Run, settings: Settings, references: References, real: str | None, classes: int
) -> Measurer:
    return Measurer(
        names,
        trained,
        real=real,
        classes=classes,
        weights=references.weights,
        clip=references.clip,
        batch_size=settings.batch_size,
        with_errors=True,
        extrapolate=True,
        seed=settings.seed,
    )


def _text(
    title: str, measure: Measurer, estimates: metrics.Values, count: int, baselines: Mapping[str, Mapping[str, Any]]
) -> str:
    """Returns the lines that show estimates."""
    lines = [title, f"  against {measure.real.text}"]
    for name, estimate in estimates.items():
        text = metrics.estimate_text(name, estimate, count, baselines.get(name))
        lines.append(f"  {measure.columns[name].heading:36} {text}")
    return "\n".join(lines)


def _grid_writer(trained: Run, images: UInt8[np.ndarray, "N H W C"]) -> Callable[[Path], None]:
    """Returns a function that writes a grid of the first images."""
    names = dataset_info(trained.config).class_names
    layout = image_grids.class_layout(trained.system.classes, min(_MAX_IMAGES, len(images)), names)
    return lambda path: image_grids.save(path, image_grids.grid(images[:_MAX_IMAGES], layout))


def _estimates(name: str, values: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the estimates in the values of a metric of data, by dotted name, such as nll.bound."""
    if isinstance(values, Mapping) and {"mean", "standard_error"} <= values.keys():
        others = {key: value for key, value in values.items() if key not in ("mean", "standard_error")}
        yield name, {"value": values["mean"], "standard_error": values["standard_error"], **others}
    elif isinstance(values, Mapping):
        for key, child in values.items():
            yield from _estimates(f"{name}.{key}", child)
    elif isinstance(values, list):
        for i, child in enumerate(values):
            if isinstance(child, Mapping):
                yield from _estimates(f"{name}.{i}", child)
    elif isinstance(values, float):
        yield name, {"value": values, "standard_error": None}
