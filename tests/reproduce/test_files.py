"""Every file of experiments/: its grid fits its configs, at every scale."""

import dataclasses
import functools
import json

import pytest

from diffjax.reproduce import Axis, Multiply, plan, spec
from diffjax.runs.config_files import flatten, load_file, with_fields
from diffjax.runs.dependencies import standalone_part, training_hash
from diffjax.runs.loading import build_model
from tests import tiny

FILES = {path.stem: path for path in sorted((tiny.ROOT / "experiments").glob("*.py"))}
MAX_SMOKE_TRAININGS = 12
# Fields that change no network
TRAINING_FIELDS = ("train.", "sampler.", "seed", "rerank.", "parallel.", "data.", "model.dropout")


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)  # files name configs relative to it


@functools.cache
def load(name):
    return spec.load(str(FILES[name]))


@functools.cache
def groups(name, scale):
    """Returns the job groups of a scale, of its first seed only, as others have the same grid."""
    full = load(name).scales[scale]
    return plan.make_groups(load(name), dataclasses.replace(full, seeds=full.seeds[:1]), {"data.dir": "anywhere"})


def trainings(name, scale):
    """Returns the configs that a scale trains, by key."""
    return {key: config for group in groups(name, scale) for key, config in group.trainings.items()}


def columns(experiment, *scales):
    return {m.name for scale in scales for m in plan.get_measures(experiment, experiment.scales[scale])}


def architecture(config):
    """Returns a key of the networks of a config."""
    fields = {name.split("parts.")[-1].split(".", 1)[-1]: name for name in flatten(config)}
    included = {name for short, name in fields.items() if not short.startswith(TRAINING_FIELDS)}
    included = {name for name in included if not name.startswith(TRAINING_FIELDS)} | {"data.name", "data.image_size"}
    return json.dumps(
        {name: repr(value) for name, value in flatten(config).items() if name in included}, sort_keys=True
    )


def build(*scales, names=FILES):
    """Builds each distinct architecture of the scales once, without weights, and checks the sampler settings.

    Without `scales` those are all of each file.
    """
    built = {}
    for name in names:
        for scale in scales or load(name).scales:
            for group in groups(name, scale):
                for key, config in group.trainings.items():
                    model = built.get(architecture(config)) or build_model(config, abstract=True)
                    built[architecture(config)] = model
                    for cell in group.cells if getattr(model, "sample", None) else ():
                        if cell.training == key:
                            model.make_settings(cell.sampler)
    return built


def test_headers_have_the_command_and_all_scales_exist():
    for name, path in FILES.items():
        header = path.read_text().split('"""')[1]
        assert f"python launch.py reproduce --experiment=experiments/{name}.py" in header
        assert set(load(name).scales) in ({"smoke", "small", "paper"}, {"smoke", "small", "fashion_mnist"}), name


@pytest.mark.slow
def test_every_scale_fits_its_configs():
    for name in FILES:
        for scale in load(name).scales:
            configs = trainings(name, scale).values()
            assert all(config.data.dir == "anywhere" for config in configs)
            assert len({config.data.name for config in configs}) == 1, f"{name}: data sets are not comparable"


def test_smoke_scales_are_small():
    for name in FILES:
        configs = trainings(name, "smoke")
        assert len(configs) <= MAX_SMOKE_TRAININGS, name
        assert {config.data.name for config in configs.values()} <= {"digits", "shapes"}, f"{name} needs no data"


@pytest.mark.slow
def test_smoke_scales_build():
    assert build("smoke", names=("ddim_table1", "gan_stability", "iddpm_table2", "vqvae2_levels"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_scale_of_every_file_builds():
    assert len(build()) > 100


def test_small_scales_measure_every_claim():
    for name in FILES:
        experiment = load(name)
        axes = experiment.scales["small"].axes
        for ordering in experiment.orderings:
            assert not ordering.measure or ordering.measure in columns(experiment, "small")
            for axis, label in (pair for setting in ordering.order for pair in setting.items()):
                assert label in axes.get(axis, (label,)), f"{name}: {ordering.claim}: {axis} {label} does not run"
            for axis, labels in ordering.where.items():
                assert set(labels) & set(axes.get(axis, labels)), f"{name}: {ordering.claim}: no {axis} runs"


def test_published_results_belong_to_one_measure():
    for name in FILES:
        experiment = load(name)
        for paper in experiment.papers:
            assert paper.values and set(paper.metrics) <= columns(experiment, *experiment.scales), name
        for scale in experiment.scales.values():
            measured = plan.get_measures(experiment, scale)
            shown = [metric for paper in experiment.papers for metric in paper.metrics or (measured[0].name,)]
            assert len(shown) == len(set(shown)), f"{name}: two papers for one measure"


@pytest.mark.parametrize(("setting", "variant"), [("E", "edm"), ("F", "augment")])
def test_edm_settings_end_at_the_configs_of_edm(setting, variant):
    """Settings E and F of the paper's scale are configs/edm_cifar10.py."""
    (last,) = (c.config for g in groups("edm_settings", "paper") for c in g.cells if c.labels["setting"][0] == setting)
    expected = with_fields(load_file(f"configs/edm_cifar10.py:{variant}"), {"data.dir": "anywhere"})
    expected = flatten(expected)
    for name, value in flatten(last).items():
        assert value == (pytest.approx(expected[name], rel=1e-9) if isinstance(value, float) else expected[name]), name


def test_teachers_and_rounds_of_distillation_are_shared_with_their_variants():
    few, distilled = "configs/few_step_digits.py", "configs/distilled_digits.py"
    for variant, part, same in [
        ("consistency", "teacher", f"{few}:edm"),
        ("reflow", "teacher", f"{few}:flow"),
        ("progressive", "teacher", f"{few}:diffusion"),
        ("progressive", "steps_4", f"{distilled}:progressive_4"),
        ("progressive", "steps_2", f"{distilled}:progressive_2"),
    ]:
        config = standalone_part(load_file(f"{distilled}:{variant}"), part)
        assert training_hash(config) == training_hash(load_file(same)), same


def test_an_axis_changes_configs_by_file_by_function_and_by_factor(make):
    axes = [
        Axis("system", {"diffusion": {}, "GAN": {"config": "configs/gan.py:{data}"}}),
        Axis("rate", {"1": {}, "2": {"train.*learning_rate": Multiply(2)}}),
        Axis("batch", {"1": {}, "2": lambda config: {"train.batch_size": 2 * config.train.batch_size}}),
        Axis("steps", {"7": {"diffusion": {"train.steps": 7}, "GAN": {"train.steps": 70}}}, by="system"),
    ]
    experiment = make(axes=axes, column_axis="", papers=(), orderings=())
    cells = [cell for g in plan.make_groups(experiment, experiment.scales["smoke"], {}) for cell in g.cells]
    configs = {tuple(cell.labels.values())[:3]: cell.config for cell in cells}
    assert [configs["diffusion", "1", "1"].system, configs["GAN", "1", "1"].system] == ["ddpm", "gan"]
    for system, steps in (("diffusion", 7), ("GAN", 70)):
        one, two = configs[system, "1", "1"].train, configs[system, "2", "2"].train
        assert (one.steps, two.steps) == (steps, steps)
        assert two.learning_rate == 2 * one.learning_rate and two.batch_size == 2 * one.batch_size
    one, two = (configs["GAN", rate, "1"].train.discriminator.learning_rate for rate in "12")
    assert two == 2 * one
