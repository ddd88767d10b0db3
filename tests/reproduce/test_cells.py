"""Training and evaluating the cells of an experiment, in one process."""

import json
import math
import types

import numpy as np
import pytest

from diffjax.evaluation.settings import Result, Shown
from diffjax.metrics.resampling import Estimate
from diffjax.reproduce import Axis, Measure, Scale, cells, steps
from diffjax.reproduce.cells import RunOptions, collect, run_group, select_estimate
from diffjax.reproduce.plan import make_groups
from diffjax.reproduce.store import Store
from diffjax.runs.config_files import load_file, with_fields
from diffjax.runs.dependencies import training_hash
from diffjax.runs.workdir import Workdir
from tests import tiny

MEASURES = [
    Measure("fd_pixels"),
    Measure("rms_to_finest_grid"),
    Measure("seconds_per_image"),
    Measure("reconstruction", "mse", settings={"num": 4}),
    Measure("training", "loss"),
]
ONE_TRAINING = {"axes": {"rate": ("low",)}}


def run(experiment, root):
    """Returns the store, the cells and their results."""
    scale = experiment.scales["smoke"]
    groups, store = make_groups(experiment, scale, {}), Store(root)
    measures = tuple(scale.measures or experiment.measures)
    for group in groups:
        run_group(store, group, RunOptions(measures, scale.num))
    every = [cell for group in groups for cell in group.cells]
    return store, every, collect(store, every, measures)


def values(results):
    return {key: {n: e["value"] for n, e in r.get("estimates", {}).items()} for key, r in results.items()}


@pytest.fixture(scope="module")
def finished(make, tmp_path_factory):
    """The small experiment after one run: its folder, store, cells and results."""
    root = tmp_path_factory.mktemp("finished")
    return root, *run(make(ONE_TRAINING, measures=MEASURES), root)


def test_cells_have_estimates_and_provenance(finished):
    root, store, every, results = finished
    assert len(list((root / "runs").glob("*/config.json"))) == 1
    few, many = every
    assert (few.labels["steps"], many.labels["steps"]) == ("2", "4")
    names = {measure.name for measure in MEASURES}
    assert set(results[few.key]["estimates"]) == names
    assert set(results[many.key]["estimates"]) == names - {"rms_to_finest_grid"}  # the reference itself
    assert min(values(results)[few.key].values()) > 0
    assert all(results[cell.key]["estimates"]["fd_pixels"]["standard_error"] > 0 for cell in every)
    for cell in every:
        provenance = results[cell.key]["provenance"]
        assert provenance["samples"] == 12 and provenance["reference"]["split"] == "train"
        assert provenance["sampler"]["steps"] == int(cell.labels["steps"])
        assert provenance["date"] and provenance["device"] and provenance["versions"]["jax"]
        assert any("12 samples of 64 features" in text for text in provenance["warnings"])
        assert store.images(cell.key).shape == (12, 8, 8, 1)


def test_finished_cells_are_not_computed_again(make, finished, monkeypatch):
    root, *_, before = finished
    monkeypatch.setattr(cells, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(cells, "load", lambda *_: pytest.fail("loaded again"))
    *_, after = run(make(ONE_TRAINING, measures=MEASURES), root)
    assert before == after


@pytest.mark.slow
def test_a_failed_training_is_recorded_and_a_lost_cell_is_evaluated_again_without_training(make, finished):
    """The lost cell comes after the failed one, has the values of the first time, and its run has no new checkpoint."""
    root, store, every, before = finished
    store.delete(every[0].key)
    checkpoints = {path: path.stat().st_mtime_ns for path in (root / "runs").glob("*/checkpoints/*")}
    rates = {"huge": {"train.learning_rate": 1e30, "train.clip_norm": 0.0}, "low": {"train.learning_rate": 1e-3}}
    axes = [Axis("rate", rates), steps(2)]
    _, (failed, lost), results = run(make(axes=axes, measures=MEASURES, papers=(), orderings=()), root)
    assert "loss = nan" in results[failed.key]["error"] or "grad_norm" in results[failed.key]["error"]
    assert store.images(failed.key) is None
    assert lost.key == every[0].key
    recomputed = values(results)[lost.key]
    assert recomputed.pop("seconds_per_image") > 0
    assert recomputed.items() <= values(before)[lost.key].items()
    assert (
        checkpoints.items()
        <= {path: path.stat().st_mtime_ns for path in (root / "runs").glob("*/checkpoints/*")}.items()
    )


def test_a_metric_that_the_run_does_not_support_is_recorded(make, finished):
    experiment = make({**ONE_TRAINING, "measures": [Measure("accuracy")]}, papers=())
    _, every, results = run(experiment, finished[0])
    assert all("--metrics=accuracy" in results[cell.key]["error"] for cell in every)


def test_the_ode_of_the_likelihood_has_the_steps_of_the_sampler(make, finished, monkeypatch):
    def evaluate(metric, trained, settings, examples):
        return Result(title="", values={"ode_hutchinson": settings.ode_steps}, rows=[])

    monkeypatch.setattr(cells.evaluation, "evaluate", evaluate)
    measures = [Measure("nll", "ode_hutchinson", settings={"num": 4})]
    _, every, results = run(make(ONE_TRAINING, measures=measures, papers=(), orderings=()), finished[0])
    assert [values(results)[cell.key] for cell in every] == [{"nll.ode_hutchinson": steps} for steps in (2, 4)]


def test_edits_have_the_sampler_of_their_cell_and_are_shown(make, finished, monkeypatch):
    """Samples are not computed, as no measure needs them."""
    calls = []

    def evaluate(metric, trained, settings, examples):
        calls.append((trained.config.sampler.strength, settings.seed))
        shown = Shown(np.full((3, 8, 8, 1), len(calls), np.uint8), "edits")
        return Result("", {"diversity": trained.config.sampler.strength}, [], shown=shown, warnings=["few"])

    monkeypatch.setattr(cells.evaluation, "evaluate", evaluate)
    monkeypatch.setattr(cells, "best_of", lambda *_, **__: pytest.fail("sampled"))
    axes = [Axis("rate", {"low": {"train.learning_rate": 1e-3}})]
    axes += [Axis("strength", {text: {"sampler.strength": float(text)} for text in ("0.25", "1")})]
    measures = [Measure("interpolation", name, settings={"num": 4}) for name in ("diversity", "gone")]
    experiment = make(axes=axes, measures=measures, column_axis="", papers=(), orderings=())
    store, every, results = run(experiment, finished[0])
    assert calls == [(0.25, 0), (1.0, 0)]  # once for both measures
    assert [values(results)[cell.key] for cell in every] == [{"interpolation.diversity": s} for s in (0.25, 1.0)]
    provenance = results[every[0].key]["provenance"]
    assert provenance["shown"] == "edits" and provenance["warnings"] == ["few"]
    assert provenance["sampler"]["strength"] == 0.25
    np.testing.assert_array_equal(store.images(every[1].key), np.full((3, 8, 8, 1), 2))


def test_training_seeds_have_different_samples(finished, monkeypatch):
    """So the sampling errors of their values are independent; the cells of one training seed share their noise."""
    _, store, every, _ = finished
    seeds = []

    def best_of(*_, seed, **__):
        seeds.append(seed)
        return types.SimpleNamespace(images=np.zeros((12, 8, 8, 1), np.uint8))

    monkeypatch.setattr(cells, "best_of", best_of)
    monkeypatch.setattr(cells.SampleRunner, "compile", lambda *_: None)
    options = RunOptions((Measure("fd_pixels"),), 12)
    evaluator = cells.CellEvaluator(cells.load(store.run(every[0].training).path), {}, options, every)
    for seed in ("0", "1", "2"):
        evaluator.evaluate(every[0]._replace(labels={**every[0].labels, "seed": seed}))
    assert seeds == sorted(seeds) and seeds[0] == 0 and min(np.diff(seeds)) >= 50_000


def test_cells_are_evaluated_with_the_average_of_their_length(make, tmp_path, monkeypatch):
    axes = [Axis("EMA length", {length: {"ema_length": float(length)} for length in ("0.05", "0.1")}), steps(2, 4)]
    loaded = []

    def load(path, ema_length):
        loaded.append(ema_length)
        raise ValueError(f"length {ema_length}")

    monkeypatch.setattr(cells, "_train_all", lambda *_: {})
    monkeypatch.setattr(cells, "load", load)
    _, every, results = run(make(axes=axes, papers=(), orderings=()), tmp_path)
    assert loaded == [0.05, 0.1]
    assert [results[cell.key]["error"] for cell in every] == [f"ValueError: length {cell.ema_length}" for cell in every]


def test_samples_are_compared_in_the_features_of_the_classifier_of_the_scale(make, tmp_path, monkeypatch):
    features = ("configs/classifier_digits.py", {"train.steps": 2})
    experiment, weights, trained = make({**ONE_TRAINING, "features": features}, papers=(), orderings=()), [], []

    def evaluator(run, guides, options, cells):
        weights.append(options.weights)
        raise ValueError("enough")

    monkeypatch.setattr(cells, "_train_all", lambda _, trainings: trained.extend(trainings) or {})
    monkeypatch.setattr(cells, "load", lambda *_, **__: None)
    monkeypatch.setattr(cells, "CellEvaluator", evaluator)
    store, every, _ = run(experiment, tmp_path)
    assert weights == [{"classifier": str(store.run(every[0].features).path)}]
    assert trained == [every[0].features, every[0].training]


def test_results_are_written_completely_or_not_at_all(tmp_path):
    store = Store(tmp_path)
    assert store.result("a") is None and store.images("a") is None
    store.save("a", {"estimates": {}}, np.zeros((200, 2, 2, 1), np.uint8))
    assert store.result("a") == {"estimates": {}} and store.images("a").shape == (100, 2, 2, 1)
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == ["a.json", "a.npz"]


def stored(make, tmp_path, reference):
    """Returns the results of steps 2, 4 and 8, whose samples are 0, 3 and `reference`; None: that cell failed."""
    experiment = make(ONE_TRAINING, axes=[Axis("rate", {"low": {}}), steps(2, 4, 8)], papers=(), orderings=())
    (group,) = make_groups(experiment, experiment.scales["smoke"], {})
    store = Store(tmp_path)
    for cell, grey in zip(group.cells, (0, 3, reference), strict=True):
        if grey is None:
            store.save(cell.key, {"error": "failed"}, np.zeros((2, 4, 4, 1), np.uint8))  # samples of an earlier attempt
        else:
            store.save(cell.key, {"estimates": {}}, np.full((2, 4, 4, 1), grey, np.uint8))
    results = collect(store, group.cells, [Measure("rms_to_finest_grid")])
    return [results[cell.key].get("estimates", {}).get("rms_to_finest_grid", {}).get("value") for cell in group.cells]


def test_rms_to_finest_grid_needs_the_samples_of_the_most_steps(make, tmp_path):
    """If that cell failed, no other cell becomes the reference."""
    assert stored(make, tmp_path / "whole", reference=5) == [5, 2, None]
    assert stored(make, tmp_path / "failed", reference=None) == [None, None, None]


def test_damaged_lines_of_the_log_are_left_out(tmp_path):
    workdir = Workdir(tmp_path)
    assert workdir.read_metrics() == []
    lines = '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": null}\n{"step": 3, "loss": NaN}\n{"step": 4, "lo'
    workdir.metrics.write_text(lines)
    assert workdir.read_metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": None}]
    assert select_estimate(workdir.read_metrics()[-1], "loss") is None
    assert select_estimate({"loss": 0.5}, "loss") == Estimate(0.5, None)


def test_missing_values_are_left_out():
    values = {"mse": {"mean": 0.5, "standard_error": 0.1}, "codes": [{"used": 1.0}]}
    assert select_estimate(values, "mse") == Estimate(0.5, 0.1)
    assert select_estimate(values, "codes.-1.used") == Estimate(1.0, None)
    assert select_estimate(values, "codes.1.used") is None
    assert select_estimate({"mse": values["mse"]}, "codes.0.used") is None


def test_parts_are_trained_once_and_shared(tmp_path, monkeypatch):
    """With a stand-in for training: trained systems, their folders, and the parts that are there in time."""
    trained = []

    def train(config, workdir):
        if not workdir.config.exists():
            trained.append(config.system)
        assert all((workdir.path / name / "config.json").exists() for name in config.get("parts", {}))
        workdir.create()
        workdir.write_config(config)
        return None, None

    monkeypatch.setattr(cells, "train", train)
    monkeypatch.setattr(cells, "build_model", lambda config, abstract: None)
    store, pipeline = Store(tmp_path / "w"), load_file(str(tiny.ROOT / "configs" / "unclip_shapes.py"))

    def newly_trained(**fields):
        changed = with_fields(pipeline, {name.replace("__", "."): value for name, value in fields.items()})
        trained.clear()
        cells.train_with_parts(store, changed)
        return store.run(training_hash(changed)).path, sorted(trained)

    path, systems = newly_trained()
    assert systems == ["clip", "ddpm", "ddpm", "pca", "prior", "unclip", "unclip_prior"]
    linked = ("clip", "decoder/clip", "ar_prior/clip", "ar_prior/pca/clip")
    assert len({(path / name).resolve() for name in linked}) == 1
    assert sorted(Workdir(path / "ar_prior").read_config().parts) == ["clip", "pca"]
    other, systems = newly_trained(parts__decoder__train__steps=7)
    assert systems == ["ddpm", "unclip"]
    assert (other / "prior").resolve() == (path / "prior").resolve()
    _, systems = newly_trained(parts__clip__seed=5)
    assert systems == ["clip", "ddpm", "pca", "prior", "unclip", "unclip_prior"], "only the upsampler is independent"
    store.root.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "runs" / path.name / "ar_prior" / "pca" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cells_of_a_pipeline_share_its_parts(make, tmp_path):
    sampler = {"prior": "diffusion", "candidates": 1, "stages": {}}
    config = tiny.write_pipeline(tmp_path, "unclip", ("clip", "prior", "decoder", "upsampler"), sampler=sampler)
    axes = [
        Axis("prior", {name: {"sampler.prior": name} for name in ("none", "diffusion")}),
        Axis("steps", {n: {"sampler.stages.decoder.steps": int(n)} for n in "15"}),
    ]
    scales = {"smoke": Scale(config=str(config), duration="seconds", num=12)}
    experiment = make(scales=scales, axes=axes, measures=[Measure("clip_score")], papers=(), orderings=())
    store, every, results = run(experiment, tmp_path / "w")
    assert not [result["error"] for result in results.values() if "error" in result]
    assert len(list((tmp_path / "w" / "runs").glob("*/config.json"))) == 5  # the pipeline and its parts
    assert all(math.isfinite(value) for each in values(results).values() for value in each.values())
    for few, many in (every[:2], every[2:]):
        assert np.any(store.images(few.key) != store.images(many.key))
        stages = results[few.key]["provenance"]["sampler"]["stages"]
        assert (stages["decoder"]["steps"], stages["decoder"]["name"], stages["prior"]["steps"]) == (1, "ddim", 2)
        assert json.dumps(stages)
