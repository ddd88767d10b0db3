"""Which cells there are, and which share a training."""

import pytest

from diffjax.errors import UserError
from diffjax.reproduce import Axis, Measure, Ordering, Scale, plan, spec, steps
from diffjax.runs.config_files import load_file
from tests import tiny


def units(experiment, **overrides):
    return plan.make_units(experiment, experiment.scales["smoke"], overrides)


def test_cells_that_differ_in_the_sampler_share_a_training(make):
    found = units(make())
    assert [len(unit.cells) for unit in found] == [2, 2]
    assert all(len(unit.trainings) == 1 for unit in found)
    cells = [cell for unit in found for cell in unit.cells]
    assert len({cell.key for cell in cells}) == 4
    assert [cell.labels for cell in cells][:2] == [
        {"rate": "low", "steps": "2", "seed": "0"},
        {"rate": "low", "steps": "4", "seed": "0"},
    ]
    assert [cell.config.sampler.steps for cell in cells] == [2, 4, 2, 4]
    assert [cell.config.train.learning_rate for cell in cells] == [1e-3, 1e-3, 2e-3, 2e-3]


def test_seeds_are_trainings(make):
    found = units(make({"seeds": (0, 7)}))
    assert len(found) == 4
    assert {unit.cells[0].config.seed for unit in found} == {0, 7}


def test_where_the_data_lie_changes_no_key(make):
    keys = [[cell.key for unit in units(make(), **{"data.dir": d}) for cell in unit.cells] for d in ("", "elsewhere")]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "scale",
    [{"fields": {"train.steps": 5}}, {"fields": {"sampler.name": "heun"}}, {"measures": [Measure("kd_pixels")]}],
)
def test_what_determines_a_figure_changes_every_key(make, scale):
    before, after = ({cell.key for unit in units(made) for cell in unit.cells} for made in (make(), make(scale)))
    assert not before & after


def test_headings_change_no_key(make):
    before, after = (
        {cell.key for unit in units(make(measures=[m])) for cell in unit.cells}
        for m in (Measure("fd_pixels"), Measure("fd_pixels", heading="distance"))
    )
    assert before == after


def test_a_part_of_the_labels(make):
    found = units(make({"axes": {"steps": ("4",)}}))
    assert [cell.labels["steps"] for unit in found for cell in unit.cells] == ["4", "4"]


def test_axes_that_train_together_are_one_unit(make):
    found = units(make({"seeds": (0, 1)}, together=("rate", "seed")))
    assert [(len(unit.trainings), len(unit.cells)) for unit in found] == [(4, 8)]
    found = units(make({"seeds": (0, 1)}, together=("rate",)))
    assert [(len(unit.trainings), len(unit.cells)) for unit in found] == [(2, 4), (2, 4)]


def test_the_machine_may_say_what_trains_together(make):
    experiment = make({"seeds": (0, 1)}, together=("rate",))
    scale = experiment.scales["smoke"]
    assert len(plan.make_units(experiment, scale, {}, together=())) == 4
    assert len(plan.make_units(experiment, scale, {}, together=("seed",))) == 2
    with pytest.raises(UserError, match="did you mean 'seed'"):
        plan.make_units(experiment, scale, {}, together=("seeds",))


def test_a_classifier_is_trained_once_a_seed(make, config):
    given = {"seeds": (0, 1), "classifier": ("configs/classifier_digits.py", {"train.steps": 2})}
    found = units(make(given))
    assert len({cell.classifier for unit in found for cell in unit.cells}) == 2
    for unit in found:
        assert next(iter(unit.trainings)) == unit.cells[0].classifier
        assert set(unit.trainings) == {unit.cells[0].classifier, unit.cells[0].training}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"axes": [Axis("a", {"b": {"train.learning_rat": 1.0}})], "orderings": (), "papers": (), "across": ""},
            "did you mean",
        ),
        (
            {"axes": [Axis("a", {"b": {"train.steps": "many"}})], "orderings": (), "papers": (), "across": ""},
            "train.steps='many'",
        ),
    ],
)
def test_fields_that_do_not_fit_are_refused(make, changes, message):
    with pytest.raises(UserError, match=message):
        units(make(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"across": "stepz"},
        {"together": ("speed",)},
        {"orderings": [Ordering("x", [{"steps": "3"}, {"steps": "2"}])]},
        {"orderings": [Ordering("x", [{"steps": "4"}], where={"rat": ("low",)})]},
        {"orderings": [Ordering("x", [{"steps": "4"}], measure="fid")]},
        {"axes": [steps(8)]},
    ],
)
def test_what_an_experiment_names_must_be_there(make, changes):
    with pytest.raises(UserError, match="unknown"):
        make(**changes)


def chain(**fields):
    return plan.with_fields(load_file(str(tiny.ROOT / "configs" / "unclip_shapes.py")), fields)


def test_a_pattern_sets_all_fields_that_match():
    made = chain(**{"*train.steps": 3, "parts.*.model.width": 8, "sampler.stages.ar_prior.top_k": 5})
    assert {part.train.steps for part in made.parts.values()} == {3}
    assert (made.parts.prior.model.width, made.parts.clip.text_encoder.width) == (8, 128)
    assert made.sampler.stages.ar_prior.top_k == 5
    with pytest.raises(UserError, match="did you mean"):
        chain(**{"parts.prior.model.widht": 8})


def test_a_chain_says_the_settings_of_its_stages_and_a_seed_is_of_all_parts(make):
    config = str(tiny.ROOT / "configs" / "unclip_shapes.py")
    axes = [Axis("rate", {"low": {"sampler.stages.prior.steps": 7}, "high": {"parts.prior.sampler.guidance": 3.0}})]
    given = {"axes": axes, "across": "", "papers": (), "orderings": ()}
    experiment = make(scales={"smoke": Scale(config, "seconds", seeds=(0, 3))}, **given)
    cells = [cell for unit in units(experiment) for cell in unit.cells]
    assert len({cell.key for cell in cells}) == 4 and len({cell.training for cell in cells}) == 2
    by = {tuple(cell.labels.values()): cell.config for cell in cells}
    assert by["low", "0"].sampler.stages.prior.to_dict() | {"guidance": 3.0} == (
        by["high", "0"].sampler.stages.prior.to_dict() | {"steps": 7}
    )
    assert {part.seed for part in by["low", "3"].parts.values()} == {3}


def test_unknown_metrics_are_refused():
    with pytest.raises(UserError, match="did you mean 'fd_pixels'"):
        Measure("fd_pixel")


def test_a_file_is_read(tmp_path):
    path = tmp_path / "x.py"
    with pytest.raises(UserError, match="no such file"):
        spec.load(str(path))
    path.write_text("EXPERIMENT = 3")
    with pytest.raises(UserError, match="has no EXPERIMENT"):
        spec.load(str(path))
    path.write_text("import nothing_of_that_name")
    with pytest.raises(UserError, match="ModuleNotFoundError"):
        spec.load(str(path))


def test_scales_are_looked_up(make):
    with pytest.raises(UserError, match="choose from smoke"):
        plan.scale_of(make(), "large")
    assert isinstance(plan.scale_of(make(), "smoke"), Scale)
