"""Training what is not trained and measuring what is not measured, in one process."""

import numpy as np
import pytest

from diffjax.reproduce import Axis, Measure, Scale, cells, steps
from diffjax.reproduce.cells import Work, collect, work_on
from diffjax.reproduce.plan import make_units, with_fields
from diffjax.reproduce.store import Store
from diffjax.runs.config_files import load_file, training_key
from diffjax.runs.workdir import Workdir
from tests import tiny


def do(experiment, root):
    scale = experiment.scales["smoke"]
    units, store = make_units(experiment, scale, {}), Store(root)
    measures = tuple(scale.measures or experiment.measures)
    for unit in units:
        work_on(store, unit, Work(measures, scale.num))
    every = [cell for unit in units for cell in unit.cells]
    return store, every, collect(store, every, measures)


def values(found):
    return {key: {n: f["value"] for n, f in r.get("figures", {}).items()} for key, r in found.items()}


ONE = {"axes": {"rate": ("low",)}}  # training


@pytest.fixture(scope="session")
def done(tmp_path_factory):
    """Of the tiny experiment, its cells worked on once."""
    kept = {}

    def do_once(experiment):
        if not kept:
            kept["root"] = tmp_path_factory.mktemp("done")
            kept["found"] = do(experiment, kept["root"])
        return kept["root"], *kept["found"]

    return do_once


MEASURES = [
    Measure("fd_pixels"),
    Measure("to_most_steps"),
    Measure("reconstruction", "mse", settings={"num": 4}),
    Measure("training", "loss"),
]


def test_every_cell_has_its_figures_and_what_they_depend_on(make, done):
    root, store, every, found = done(make(ONE, measures=MEASURES))
    assert len(list((root / "runs").glob("*/config.json"))) == 1
    for cell in every:
        result = found[cell.key]
        reference = {"to_most_steps"} if cell.labels["steps"] == "4" else set()  # which is itself at the most steps
        assert set(result["figures"]) == {m.name for m in MEASURES} - reference
        provenance = result["provenance"]
        assert provenance["samples"] == 12 and provenance["reference"]["split"] == "train"
        assert provenance["sampler"]["steps"] == int(cell.labels["steps"])
        assert store.images(cell.key).shape == (12, 8, 8, 1)
        assert provenance["date"] and provenance["device"] and provenance["versions"]["jax"]
    assert all(found[c.key]["figures"]["to_most_steps"]["value"] > 0 for c in every if c.labels["steps"] == "2")
    assert every[0].labels["steps"] == "2" and values(found)[every[0].key]["reconstruction.mse"] > 0


def test_nothing_is_done_twice(make, done, monkeypatch):
    root, _, _, before = done(make(ONE, measures=MEASURES))
    monkeypatch.setattr(cells, "train", lambda *_: pytest.fail("trained again"))
    _, _, after = do(make(ONE, measures=MEASURES), root)
    assert before == after


def test_a_cell_that_was_lost_comes_back_the_same_without_training(make, done, monkeypatch):
    root, store, every, before = done(make(ONE, measures=MEASURES))
    store.forget(every[1])
    trained = []
    whole = cells.train
    monkeypatch.setattr(cells, "train", lambda config, workdir: trained.append(1) or whole(config, workdir))
    checkpoints = sorted(p.stat().st_mtime_ns for p in (root / "runs").glob("*/checkpoints/*"))
    _, _, after = do(make(ONE, measures=MEASURES), root)
    assert values(before) == values(after)
    assert checkpoints == sorted(p.stat().st_mtime_ns for p in (root / "runs").glob("*/checkpoints/*"))


def test_a_run_that_is_not_finite_is_recorded_and_the_others_go_on(make, tmp_path):
    rates = {"huge": {"train.learning_rate": 1e30, "train.clip_norm": 0.0}, "low": {"train.learning_rate": 1e-3}}
    given = {"axes": [Axis("rate", rates), steps(2)], "papers": (), "orderings": ()}
    store, every, found = do(make(**given), tmp_path)
    failed, fine = found[every[0].key], found[every[1].key]
    assert "loss = nan" in failed["error"] or "grad_norm" in failed["error"]
    assert "figures" in fine
    assert store.images(every[0].key) is None


def test_a_cell_that_cannot_be_measured_is_recorded(make, done, tmp_path):
    given = {"scale": {**ONE, "measures": [Measure("accuracy")]}, "papers": ()}
    _, every, found = do(make(**given), done(make(ONE, measures=MEASURES))[0])
    assert all("--metrics=accuracy" in found[cell.key]["error"] for cell in every)


def test_results_are_whole_or_absent(tmp_path):
    store = Store(tmp_path)
    assert store.result("a") is None and store.images("a") is None
    store.keep("a", {"figures": {}}, np.zeros((200, 2, 2, 1), np.uint8))
    assert store.result("a") == {"figures": {}} and store.images("a").shape == (100, 2, 2, 1)
    assert sorted(p.name for p in (tmp_path / "cells").iterdir()) == ["a.json", "a.npz"]


def test_parts_are_trained_once_and_shared(tmp_path, monkeypatch):
    """Without training: what is trained, where, and what lies there by then."""
    trained = []

    def train(config, workdir):
        if not workdir.config.exists():
            trained.append(config.system)
        assert all((workdir.path / name / "config.json").exists() for name in config.get("parts", {}))
        workdir.create()
        workdir.write_config(config)
        return None, None

    monkeypatch.setattr(cells, "train", train)
    monkeypatch.setattr(cells, "blueprint", lambda config: None)
    store, chain = Store(tmp_path / "w"), load_file(str(tiny.ROOT / "configs" / "unclip_shapes.py"))

    def newly(**fields):
        changed = with_fields(chain, {name.replace("__", "."): value for name, value in fields.items()})
        trained.clear()
        cells._train_one(store, changed)
        return store.run(training_key(changed)).path, sorted(trained)

    run, found = newly()
    assert found == ["clip", "ddpm", "ddpm", "pca", "prior", "unclip", "unclip_prior"]
    assert len({(run / path).resolve() for path in ("clip", "decoder/clip", "ar_prior/clip", "ar_prior/pca/clip")}) == 1
    assert sorted(Workdir(run / "ar_prior").read_config().parts) == ["clip", "pca"]
    other, found = newly(parts__decoder__train__steps=7)
    assert found == ["ddpm", "unclip"]
    assert (other / "prior").resolve() == (run / "prior").resolve()
    _, found = newly(parts__clip__seed=5)
    assert found == ["clip", "ddpm", "pca", "prior", "unclip", "unclip_prior"], "all but the upsampler stand on it"
    store.root.rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "runs" / run.name / "ar_prior" / "pca" / "config.json").exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cells_of_a_chain_of_shared_parts(make, tmp_path):
    sampler = {"prior": "diffusion", "candidates": 1, "stages": {}}
    config = tiny.write_chain(tmp_path, "unclip", ("clip", "prior", "decoder", "upsampler"), sampler=sampler)
    axes = [
        Axis("prior", {name: {"sampler.prior": name} for name in ("none", "diffusion")}),
        Axis("steps", {n: {"sampler.stages.decoder.steps": int(n)} for n in "15"}),
    ]
    given = {"axes": axes, "measures": [Measure("clip_score")], "papers": (), "orderings": ()}
    store, every, found = do(make(scales={"smoke": Scale(str(config), "seconds", num=12)}, **given), tmp_path / "w")
    assert not [result["error"] for result in found.values() if "error" in result]
    assert len(list((tmp_path / "w" / "runs").glob("*/config.json"))) == 5  # the chain and its parts
    for few, many in (every[:2], every[2:]):
        assert np.any(store.images(few.key) != store.images(many.key))
        stages = found[few.key]["provenance"]["sampler"]["stages"]
        assert (stages["decoder"]["steps"], stages["decoder"]["name"], stages["prior"]["steps"]) == (1, "ddim", 2)
