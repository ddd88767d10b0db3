"""Every file of experiments/: its grid fits its configs, at every scale."""

import functools

import pytest

from diffjax.reproduce import Axis, plan, spec
from diffjax.reproduce.cells import _figure
from diffjax.runs.loading import blueprint
from tests import tiny

FILES = sorted((tiny.ROOT / "experiments").glob("*.py"))
SCALES = ("smoke", "small", "paper")
MOST_IN_SMOKE = 12  # trainings

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)  # files name configs relative to it


@functools.cache
def load(path):
    return spec.load(str(path))


@functools.cache
def units(path, scale):
    experiment = load(path)
    return plan.make_units(experiment, experiment.scales[scale], {"data.dir": "anywhere"})


def trainings(path, scale):
    """By key, the configs that a scale trains."""
    return {key: config for unit in units(path, scale) for key, config in unit.trainings.items()}


def check(path, scale, key):
    """Builds one of them, which traces its networks, and plans how its cells are sampled."""
    system = blueprint(trainings(path, scale)[key])
    for cell in (cell for unit in units(path, scale) for cell in unit.cells if cell.training == key and system.sample):
        system.plan(cell.config.sampler)


def columns(experiment, *scales):
    return {m.name for scale in scales for m in plan.measures_of(experiment, experiment.scales[scale])}


@each_file
def test_it_says_how_it_is_run(path):
    header = path.read_text().split('"""')[1]
    assert f"python launch.py reproduce --experiment=experiments/{path.name}" in header
    assert set(load(path).scales) == set(SCALES)


@each_file
@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_fits_its_configs(path, scale):
    found = trainings(path, scale)
    assert all(config.data.dir == "anywhere" for config in found.values())
    assert len({config.data.name for config in found.values()}) == 1, "figures of different data are not comparable"


@each_file
def test_smoke_is_small_and_builds(path):
    found = trainings(path, "smoke")
    assert len(found) <= MOST_IN_SMOKE
    for key, config in found.items():
        assert config.data.name in ("digits", "shapes"), "smoke needs no data"
        check(path, "smoke", key)


@each_file
def test_the_other_scales_build(path):
    for scale in ("small", "paper"):
        *_, last = trainings(path, scale)
        check(path, scale, last)


@each_file
def test_small_measures_what_is_claimed(path):
    experiment = load(path)
    run = experiment.scales["small"].axes
    for ordering in experiment.orderings:
        assert not ordering.measure or ordering.measure in columns(experiment, "small")
        for axis, label in (pair for settings in ordering.order for pair in settings.items()):
            assert label in run.get(axis, (label,)), f"{ordering.says}: {axis} {label} is not run"
        for axis, labels in ordering.where.items():
            assert set(labels) & set(run.get(axis, labels)), f"{ordering.says}: no {axis} of {labels} is run"


@each_file
def test_what_the_paper_reports_stands_beside_something_that_is_measured(path):
    experiment = load(path)
    for paper in experiment.papers:
        assert paper.values
        for labels in paper.values:
            assert all(label in axis.values for axis, label in zip(experiment.axes, labels, strict=True))
        assert set(paper.beside) <= columns(experiment, *SCALES)
    for scale in experiment.scales.values():
        measured = plan.measures_of(experiment, scale)
        beside = [name for paper in experiment.papers for name in paper.beside or (measured[0].name,)]
        assert len(beside) == len(set(beside)), "two papers beside one measure"


def test_a_label_may_start_from_another_config_and_know_what_it_starts_from(make, config):
    axes = [
        Axis("system", {"diffusion": {}, "GAN": {"config": "configs/gan.py"}}),
        Axis("rate", {f: (lambda c, f=f: {"train.learning_rate": float(f) * c.train.learning_rate}) for f in "12"}),
    ]
    given = {"axes": axes, "across": "", "papers": (), "orderings": ()}
    experiment = make({"fields": {"train.steps": 7}}, **given)
    units = plan.make_units(experiment, experiment.scales["smoke"], {})
    configs = {tuple(cell.labels.values())[:2]: cell.config for unit in units for cell in unit.cells}
    assert [configs["diffusion", "1"].system, configs["GAN", "1"].system] == ["ddpm", "gan"]
    assert all(c.train.steps == 7 for c in configs.values())
    for system in ("diffusion", "GAN"):
        assert configs[system, "2"].train.learning_rate == 2 * configs[system, "1"].train.learning_rate


def test_a_figure_that_a_run_does_not_have_is_left_out():
    found = {"mse": {"mean": 0.5, "standard_error": 0.1}, "codes": [{"used": 1.0}]}
    assert _figure(found, "mse") == {"value": 0.5, "standard_error": 0.1}
    assert _figure(found, "codes.-1.used") == {"value": 1.0, "standard_error": None}
    assert _figure(found, "codes.1.used") is None
    assert _figure({"mse": found["mse"]}, "codes.0.used") is None
