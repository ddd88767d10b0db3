"""Cells of an experiment, and trainings that they share."""

import pytest

from diffjax.errors import UserError
from diffjax.reproduce import Axis, Measure, Multiply, Ordering, Scale, plan, spec, steps
from diffjax.runs.config_files import load_file, with_fields
from tests import tiny


def groups(experiment, **overrides):
    return plan.make_groups(experiment, experiment.scales["smoke"], overrides)


def test_cells_that_differ_in_the_sampler_share_a_training(make):
    found_groups = groups(make())
    assert [len(group.cells) for group in found_groups] == [2, 2]
    assert all(len(group.trainings) == 1 for group in found_groups)
    cells = [cell for group in found_groups for cell in group.cells]
    assert len({cell.key for cell in cells}) == 4
    assert [cell.labels for cell in cells][:2] == [
        {"rate": "low", "steps": "2", "seed": "0"},
        {"rate": "low", "steps": "4", "seed": "0"},
    ]
    assert [cell.config.sampler.steps for cell in cells] == [2, 4, 2, 4]
    assert [cell.config.train.learning_rate for cell in cells] == [1e-3, 1e-3, 2e-3, 2e-3]


def test_each_seed_is_a_training(make):
    found_groups = groups(make({"seeds": (0, 7)}))
    assert len(found_groups) == 4
    assert {group.cells[0].config.seed for group in found_groups} == {0, 7}


def test_the_data_folder_changes_no_key(make):
    keys = [
        [cell.key for group in groups(make(), **{"data.dir": d}) for cell in group.cells] for d in ("", "elsewhere")
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize(
    "scale",
    [{"fields": {"train.steps": 5}}, {"fields": {"sampler.name": "heun"}}, {"measures": [Measure("kd_pixels")]}],
)
def test_fields_that_determine_a_value_change_every_key(make, scale):
    before, after = (
        {cell.key for group in groups(experiment) for cell in group.cells} for experiment in (make(), make(scale))
    )
    assert not before & after


def test_headings_change_no_key(make):
    before, after = (
        {cell.key for group in groups(make(measures=[m])) for cell in group.cells}
        for m in (Measure("fd_pixels"), Measure("fd_pixels", heading="distance"))
    )
    assert before == after


def test_a_scale_may_have_some_labels_of_an_axis(make):
    found_groups = groups(make({"axes": {"steps": ("4",)}}))
    assert [cell.labels["steps"] for group in found_groups for cell in group.cells] == ["4", "4"]


def test_combinations_without_a_change_have_no_cells(make):
    axes = [
        steps(2, 4),
        Axis("sampler", {"ddim": {"2": {}, "4": {}}, "heun": {"4": {"sampler.name": "heun"}}}, "steps"),
    ]
    [group] = groups(make(axes=axes, papers=[]))
    found = [(cell.labels["steps"], cell.config.sampler.name) for cell in group.cells]
    assert found == [("2", "ddim"), ("4", "ddim"), ("4", "heun")]


def test_a_classifier_is_trained_once_per_seed(make, config):
    fields_of_scale = {"seeds": (0, 1), "classifier": ("configs/classifier_digits.py", {"train.steps": 2})}
    found_groups = groups(make(fields_of_scale))
    assert len({cell.classifier for group in found_groups for cell in group.cells}) == 2
    for group in found_groups:
        assert next(iter(group.trainings)) == group.cells[0].classifier
        assert set(group.trainings) == {group.cells[0].classifier, group.cells[0].training}


def test_a_weaker_run_is_trained_once_per_run_that_it_guides(make):
    found_groups = groups(make({"weak": {"train.steps": Multiply(0.5)}}))
    plain = groups(make())
    for group, unguided in zip(found_groups, plain, strict=True):
        weak, run = group.trainings.values()
        assert list(group.trainings) == [group.cells[0].weak, group.cells[0].training]
        assert 2 * weak.train.steps == run.train.steps
        assert all(cell.key != other.key for cell, other in zip(group.cells, unguided.cells, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"axes": [Axis("a", {"b": {"train.learning_rat": 1.0}})], "orderings": (), "papers": (), "column_axis": ""},
            "did you mean",
        ),
        (
            {"axes": [Axis("a", {"b": {"train.steps": "many"}})], "orderings": (), "papers": (), "column_axis": ""},
            "train.steps='many'",
        ),
    ],
)
def test_fields_that_do_not_fit_are_refused(make, changes, message):
    with pytest.raises(UserError, match=message):
        groups(make(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"column_axis": "stepz"},
        {"orderings": [Ordering(claim="x", order=[{"steps": "3"}, {"steps": "2"}])]},
        {"orderings": [Ordering(claim="x", order=[{"steps": "4"}], where={"rat": ("low",)})]},
        {"orderings": [Ordering(claim="x", order=[{"steps": "4"}], measure="fid")]},
        {"axes": [steps(8)]},
        {"axes": [steps(2), Axis("sampler", {"ddim": {"3": {}}}, by="steps")]},
    ],
)
def test_names_that_do_not_exist_are_refused(make, changes):
    with pytest.raises(UserError, match="unknown"):
        make(**changes)


def pipeline_config(**fields):
    return with_fields(load_file(str(tiny.ROOT / "configs" / "unclip_shapes.py")), fields)


def test_a_pattern_sets_all_fields_that_match():
    pipeline = pipeline_config(**{"*train.steps": 3, "parts.*.model.width": 8, "sampler.stages.ar_prior.top_k": 5})
    assert {part.train.steps for part in pipeline.parts.values()} == {3}
    assert (pipeline.parts.prior.model.width, pipeline.parts.clip.text_encoder.width) == (8, 128)
    assert pipeline.sampler.stages.ar_prior.top_k == 5
    with pytest.raises(UserError, match="did you mean"):
        pipeline_config(**{"parts.prior.model.widht": 8})


def test_a_pipeline_has_settings_of_its_stages_and_one_seed_for_all_parts(make):
    config = str(tiny.ROOT / "configs" / "unclip_shapes.py")
    axes = [Axis("rate", {"low": {"sampler.stages.prior.steps": 7}, "high": {"parts.prior.sampler.guidance": 3.0}})]
    fields_of_scale = {"axes": axes, "column_axis": "", "papers": (), "orderings": ()}
    experiment = make(scales={"smoke": Scale(config=config, duration="seconds", seeds=(0, 3))}, **fields_of_scale)
    cells = [cell for group in groups(experiment) for cell in group.cells]
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
        plan.get_scale(make(), "large")
    assert isinstance(plan.get_scale(make(), "smoke"), Scale)


def test_lengths_of_the_average_share_a_training(make):
    axes = [Axis("EMA length", {"run": {}, "0.05": {"ema_length": 0.05}, "0.1": {"ema_length": 0.1}})]
    experiment = make(axes=axes, column_axis="", papers=(), orderings=())
    (group,) = plan.make_groups(experiment, experiment.scales["smoke"], {})
    assert [cell.ema_length for cell in group.cells] == [None, 0.05, 0.1]
    assert len({cell.key for cell in group.cells}) == 3 and len(group.trainings) == 1


def test_one_classifier_has_the_features_of_all_seeds(make):
    fields_of_scale = {"seeds": (0, 1), "features": ("configs/classifier_digits.py", {"train.steps": 2})}
    found_groups = groups(make(fields_of_scale))
    (key,) = {cell.features for group in found_groups for cell in group.cells}
    assert all(next(iter(group.trainings)) == key and len(group.trainings) == 2 for group in found_groups)
    assert found_groups[0].trainings[key].system == "classifier" and found_groups[0].trainings[key].seed == 0
    assert found_groups[0].cells[0].key != groups(make({"seeds": (0, 1)}))[0].cells[0].key
