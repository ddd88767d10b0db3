"""Diffusion models that learn flow maps: the interval of a step, averaged parameters, and teachers."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax import cli, io, models
from diffjax.diffusion.noised_batch import NoisedBatch
from diffjax.errors import UserError
from diffjax.inference.overrides import SettingsFactory
from diffjax.models.base import TrainedStage
from diffjax.models.diffusion.guided import guided
from diffjax.models.diffusion.process import Process
from diffjax.runs.loading import load
from tests import conditioned, tiny
from tests.conditioned import SPEC

FLOW = {
    "diffusion__schedule": "rectified_flow",
    "diffusion__continuous": True,
    "diffusion__parameterization": "flow(time_scale=0.05)",
    "diffusion__loss": "mean_flow",
    "diffusion__next_times": "second_sample(share=0.5)",
    "sampler__guidance": 1.0,
    "model": tiny.DIT,
}


def build(stage=None, **changes):
    config = tiny.config(**FLOW | changes)
    return conditioned.with_random_params(models.build(config, SPEC, **({"teacher": stage} if stage else {})))


@functools.cache
def mean_flow():
    return build()


def test_the_network_is_given_the_interval_of_the_step():
    """The flow map depends on the next level, which samplers of denoisers do not pass."""
    model, variables = mean_flow()
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)

    @jax.jit
    def estimates(x):
        bound = model.bind(variables, {"label": jnp.arange(3)})
        now, next = (bound.process.schedule(t) for t in (15.0, 4.0))
        return [bound.denoiser(x, *levels).x0 for levels in ((now,), (now, now), (now, next))]

    tangent, itself, step = map(np.asarray, estimates(x))
    np.testing.assert_array_equal(tangent, itself)
    assert np.abs(step - tangent).max() > 1e-3
    assert "embedding" in variables["params"]["model"]


@pytest.mark.parametrize(
    "parameterization", ["edm", "consistency(time_scale=1000)", "trig_flow", "flow(time_scale=0.05)"]
)
def test_samples_in_one_step_start_with_inputs_that_training_has(parameterization):
    """The time and the interval of the step from T, without signal, to the clean image."""
    process = Process.from_config(tiny.config(**FLOW | {"diffusion__parameterization": parameterization}).diffusion)

    @jax.jit
    def inputs(key):
        keys = jax.random.split(key, 4096)
        options = {"time_sampler": process.times, "state": {}, "next_times": process.next_times.bind()}
        batch = NoisedBatch.sample(keys, keys, jnp.zeros((4096, 1)), schedule=process.schedule, **options)
        pairs = (batch.noise, batch.next), (process.schedule(20.0), process.schedule(0.0))
        return [(process.coefficients(now).time, process.interval(now, next)) for now, next in pairs]

    (times, intervals), (time, interval) = inputs(jax.random.key(0))
    assert times.min() <= time <= times.max() * 1.05
    assert 0.9 * interval <= intervals.max() <= interval
    assert (intervals >= 0).all()


@pytest.mark.slow
def test_the_target_network_has_the_averaged_parameters():
    model, variables = build(diffusion__loss="shortcut", diffusion__next_times="dyadic(steps=8, share=0.9)")
    batch, keys = tiny.batch(), conditioned.keys()
    other = jax.tree.map(lambda leaf: 1.1 * leaf, variables["params"])
    loss = jax.jit(lambda variables: model.loss(variables, batch, keys, tiny.moment(1))[0])
    plain = loss(variables)
    np.testing.assert_allclose(loss({**variables, "ema": variables["params"]}), plain, rtol=1e-5)
    assert np.abs(loss({**variables, "ema": other}) - plain).max() > 1e-3


def distilled(**changes):
    """A student and its teacher, a denoiser with dropped labels, on the same schedule."""
    process = {"diffusion__schedule": "cosine", "diffusion__parameterization": "v", "diffusion__label_dropout": 0.1}
    model, variables = build(
        **process, diffusion__loss="mse", diffusion__next_times="clean", diffusion__continuous=False
    )
    options = {"diffusion__loss": "progressive", "diffusion__next_times": "grid(steps=2)", "teacher": "RUN"}
    stage = TrainedStage(model, variables)
    return build(stage, **process | options | changes), variables


@pytest.mark.slow
def test_a_student_starts_from_its_teacher_and_learns_its_guided_steps():
    (model, variables), teacher = distilled(diffusion__continuous=False, diffusion__teacher_guidance=2.0)
    assert model.fits_first_batch
    started = model.prepare(variables, {})
    jax.tree.map(np.testing.assert_array_equal, started["params"], teacher["params"])
    batch, keys = tiny.batch(), conditioned.keys()

    def loss(scale, params):
        guided = dataclasses.replace(model, teacher_guidance=scale)
        return guided.loss({**variables, "params": params}, batch, keys, tiny.moment())[0]

    compute = jax.jit(lambda params: [loss(scale, params) for scale in (1.0, 2.0)])
    plain, guided = compute(teacher["params"])
    assert np.abs(plain - guided).max() > 1e-3
    assert np.isfinite(guided).all()


@pytest.mark.parametrize("network", ["dit", *(pytest.param(name, marks=pytest.mark.slow) for name in ("unet", "edm2"))])
@pytest.mark.parametrize("conditions", [(), ("number",)], ids=["no vector", "number"])
def test_a_student_with_an_interval_starts_as_its_teacher(network, conditions):
    """At any interval, also of a teacher with a vector condition, whose weights are the first rows of the kernel."""
    if network == "edm2" and not conditions:
        pytest.skip("magnitude-preserving sums change with an input")
    edm2 = {"architecture": "edm2", "channels": 8, "multipliers": (1, 1), "blocks": 1, "head_channels": 4}
    networks = {"dit": tiny.DIT, "unet": dict(tiny.config().model), "edm2": edm2 | {"attention_resolutions": (4,)}}
    changes = FLOW | {"model": networks[network]} | ({"sampler__number": 1.0} if conditions else {})
    denoising = changes | {"diffusion__loss": "mse", "diffusion__next_times": "clean"}
    teacher, weights = conditioned.with_random_params(models.build(conditioned.config(*conditions, **denoising), SPEC))
    config = conditioned.config(*conditions, **changes, teacher="RUN")
    student, fresh = conditioned.with_random_params(models.build(config, SPEC, teacher=TrainedStage(teacher, weights)))
    x = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)

    @jax.jit
    def estimates(variables, weights):
        values = {"number": jnp.arange(3.0)}
        ours, theirs = student.bind(variables, values), teacher.bind(weights, values)
        now, next = (ours.process.schedule(t) for t in (15.0, 4.0))
        return theirs.denoiser(x, now).x0, [ours.denoiser(x, *levels).x0 for levels in ((now,), (now, next))]

    expected, (tangent, step) = estimates(student.prepare(fresh, {}), weights)
    np.testing.assert_allclose(tangent, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(step, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(estimates(fresh, weights)[1][0] - expected).max() > 1e-2


@pytest.mark.slow
def test_the_scale_of_distilled_guidance_is_an_input():
    """Each example has a scale of its own in training; samples have that of the setting `guidance`."""
    conditions = {"guidance_scale": {"low": 1.0, "high": 3.0}}
    (model, variables), _ = distilled(diffusion__continuous=False, conditions=conditions)
    batch, keys = tiny.batch(), conditioned.keys()

    @jax.jit
    def loss(scales):
        return model.loss(variables, {**batch, "guidance_scale": scales}, keys, tiny.moment())[0]

    low, high, mixed = map(loss, (jnp.full(6, 1.0), jnp.full(6, 3.0), jnp.array([1.0, 3.0] * 3)))
    np.testing.assert_array_equal(mixed, np.where(np.arange(6) % 2, high, low))
    assert (low != high).all()
    sampler = tiny.config().sampler

    @jax.jit
    def sample(settings):
        return model.sample(variables, keys, {"label": jnp.arange(6)}, settings)

    one, three = (sample(model.make_settings(sampler, guidance=scale)) for scale in (1.0, 3.0))
    assert np.abs(one - three).max() > 1e-4
    with pytest.raises(UserError, match=r"sampler\.guidance"):
        model.make_settings(sampler, guidance=4.0)
    with pytest.raises(UserError, match="scale of a teacher's guidance; set a teacher"):
        dataclasses.replace(model, teacher=None).loss(variables, batch, keys, tiny.moment())


@pytest.mark.parametrize(
    "loss",
    ["mean_flow", "continuous_consistency", pytest.param("improved_mean_flow", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("network", ["dit", pytest.param("unet", marks=pytest.mark.slow)])
def test_losses_that_differentiate_networks_have_finite_gradients(loss, network):
    changes = {"diffusion__loss": loss, "model__dropout": 0.1}
    if loss == "continuous_consistency":
        changes["diffusion__next_times"] = "clean"
    if network == "unet":
        changes["model"] = dict(tiny.config().model)
    model, variables = build(**changes)
    batch, keys = tiny.batch(), conditioned.keys()

    @jax.jit
    def gradients(params):
        return jax.grad(lambda p: model.loss({**variables, "params": p}, batch, keys, tiny.moment(5))[0].mean())(params)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients(variables["params"])))


def test_groups_of_moment_matching_are_those_of_the_batch():
    changes = {"diffusion__loss": "inductive_moment_matching(group=4)", "diffusion__next_times": "uniform_below"}
    model = models.build(tiny.config(**FLOW | changes), SPEC)
    assert model.group_size == 4
    with pytest.raises(ValueError, match="6 examples are not whole groups of 4"):
        model.process.train_loss(lambda x, t, interval: x, np.zeros((6, 8, 8, 1)), conditioned.keys(), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion__continuous": False}, "requires a continuous schedule; set diffusion.continuous=True"),
        (
            {
                "diffusion__loss": "shortcut",
                "diffusion__continuous": False,
                "diffusion__time_sampling": "importance",
            },
            "time_sampling=importance: is not supported",
        ),
        ({"diffusion__variance": "learned_range"}, "variance=learned_range"),
        ({"diffusion__loss": "mse"}, "are for losses of flow maps"),
        ({"diffusion__loss": "continuous_consistency"}, "loss=continuous_consistency does not use it; use clean"),
        (
            {"diffusion__loss": "progressive", "diffusion__next_times": "clean", "teacher": "RUN"},
            "requires the steps of the student",
        ),
        ({"diffusion__loss": "progressive", "diffusion__next_times": "grid(steps=4)"}, "set --config.teacher=WORKDIR"),
        (
            {
                "diffusion__loss": "progressive",
                "diffusion__next_times": "grid(steps=4)",
                "diffusion__continuous": False,
            },
            "timesteps=20: loss=progressive halves the 4 steps of next_times=grid, so it must be a multiple of 8",
        ),
        (
            {
                "diffusion__loss": "progressive",
                "diffusion__next_times": "grid(steps=5, rho=7)",
                "diffusion__continuous": False,
            },
            "next_times=grid, rho=7: loss=progressive halves the steps",
        ),
        ({"diffusion__next_times": "grid(steps=0)"}, "next_times=grid, steps=0: must be a whole number, at least 1"),
        (
            {"diffusion__loss": "consistency", "diffusion__weighting": "x0"},
            "learns nothing of pairs of equal times; use grid or square_root or doubling",
        ),
        (
            {"diffusion__loss": "inductive_moment_matching(group=2.5)", "diffusion__next_times": "uniform_below"},
            "group=2.5: must be a whole number",
        ),
        (
            {
                "diffusion__loss": "inductive_moment_matching",
                "diffusion__next_times": "uniform_below",
                "diffusion__metric": "pseudo_huber",
            },
            "metric=pseudo_huber: loss=inductive_moment_matching does not use it",
        ),
        (
            {"diffusion__loss": "shortcut", "diffusion__next_times": "clean"},
            "learns steps and their halves; use dyadic",
        ),
        ({"diffusion__loss": "shortcut(base_steps=8)", "diffusion__next_times": "dyadic"}, "no 'base_steps'"),
        (
            {"diffusion__loss": "shortcut", "diffusion__next_times": "dyadic(share=1)"},
            "share=1: loss=shortcut requires pairs of equal times",
        ),
        ({"diffusion__loss": "improved_mean_flow", "diffusion__next_times": "clean"}, "requires pairs of equal times"),
        ({"diffusion__metric": "adaptive(c=0)"}, "metric=adaptive, c=0: must be above 0"),
        (
            {"diffusion__loss": "inductive_moment_matching(a=0.5)", "diffusion__next_times": "uniform_below"},
            "a=0.5: must be eta_max > 0, a >= 1",
        ),
        (
            {"diffusion__loss": "continuous_consistency(sigma_data=0)", "diffusion__next_times": "clean"},
            "sigma_data=0: must be above 0",
        ),
        (
            {"diffusion__weighting": "x0"},
            "weighting=x0: has no effect on loss=mean_flow, .* set it to simple or learned",
        ),
        (
            {
                "diffusion__loss": "consistency(heun=True)",
                "diffusion__next_times": "grid",
                "diffusion__weighting": "x0",
            },
            "heun=True.*has no effect without a teacher",
        ),
        (
            {"diffusion__schedule": "trig_flow(sigma_data=0.7)", "diffusion__parameterization": "trig_flow"},
            "schedule=trig_flow, sigma_data=0.7: must be that of diffusion.parameterization=trig_flow, 0.5; set both",
        ),
        (
            {
                "diffusion__parameterization": "edm(sigma_data=0.7)",
                "diffusion__loss": "continuous_consistency",
                "diffusion__next_times": "clean",
            },
            "loss=continuous_consistency, sigma_data=0.5: must be that of diffusion.parameterization=edm, 0.7",
        ),
        ({"diffusion__metric": "huber"}, "did you mean .* or 'pseudo_huber'"),
        ({"model": {**tiny.DIT, "attention": "cudnn"}}, "attention=cudnn"),
    ],
)
def test_invalid_choices_raise(changes, message):
    with pytest.raises(UserError, match=message):
        models.build(tiny.config(**FLOW | changes), SPEC)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion__schedule": "linear"}, "teacher: has another noise schedule"),
        ({"diffusion__class_conditional": False}, "teacher: has another conditions"),
        ({"diffusion__loss": "mse", "diffusion__next_times": "clean"}, "loss=mse: has no teacher"),
    ],
)
def test_teachers_that_do_not_fit_raise(changes, message):
    with pytest.raises(UserError, match=message):
        distilled(diffusion__continuous=False, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion__teacher_guidance": float("nan"), "teacher": "RUN"}, "teacher_guidance=nan: must be a finite"),
        ({"diffusion__teacher_guidance": float("inf"), "teacher": "RUN"}, "teacher_guidance=inf: must be a finite"),
        ({"diffusion__teacher_guidance": -1.0, "teacher": "RUN"}, "teacher_guidance=-1: must be a finite"),
        ({"diffusion__teacher_guidance": 2.0}, "teacher_guidance=2: requires a teacher"),
        (
            {
                "diffusion__teacher_guidance": 2.0,
                "teacher": "RUN",
                "conditions": {"guidance_scale": {"low": 1.0, "high": 3.0}},
            },
            "teacher_guidance=2: has no effect with conditions.guidance_scale",
        ),
    ],
)
def test_guidance_of_a_teacher_that_has_no_effect_raises(changes, message):
    with pytest.raises(UserError, match=message):
        models.build(tiny.config(**FLOW | changes), SPEC)


def test_a_teacher_has_the_crops_of_its_student():
    """A condition with pixels is joined to the cropped x_t, and so is its null value, for guidance."""
    unet = {**tiny.config().model, "attention_resolutions": (), "middle_attention": False, "multipliers": (1,)}
    options = {"model": unet, "diffusion__crop": 4, "diffusion__loss": "consistency", "diffusion__weighting": "x0"}
    model = models.build(conditioned.config("low_res_image", "label", **options), SPEC)
    model = dataclasses.replace(model, teacher=model, teacher_guidance=2.0)
    value = jax.eval_shape(
        lambda variables: model.loss(
            {**variables, "frozen": {"teacher": variables}}, tiny.batch(), conditioned.keys(), tiny.moment()
        )[0],
        model.variable_shapes,
    )
    assert value.shape == (6,)


@pytest.mark.parametrize(
    ("loss", "overrides", "expected"),
    [
        ("progressive", {"steps": 4}, None),
        ("progressive", {"steps": 2}, "sampler.steps=2: this run was distilled for 4 steps"),
        ("progressive", {"steps": 4, "grid": "times(20, 9, 5, 2)"}, "sampler.grid: this run was distilled for 4 steps"),
        ("distribution_matching(generator_steps=2)", {"steps": 2}, None),
        ("distribution_matching(generator_steps=2)", {"steps": 1}, None),  # one of its levels
        (
            "distribution_matching(generator_steps=1)",
            {"steps": 4},
            "sampler.steps=4: this run was distilled for 1 step ",
        ),
        ("mean_flow", {"steps": 7}, None),
    ],
)
def test_a_student_that_samples_with_other_steps_is_noted_once(loss, overrides, expected, capsys):
    next_times = {"progressive": "grid(steps=4)", "mean_flow": "second_sample"}.get(loss, "clean")
    model = undistilled(loss, next_times)
    make_settings = SettingsFactory(guided(model), tiny.config().sampler)
    for _ in range(2):
        make_settings(guidance=1.0, **overrides)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (expected is not None)
    assert all(line.startswith(f"note: {expected}") for line in lines)


@functools.cache
def undistilled(loss, next_times):
    config = tiny.config(**FLOW | {"diffusion__loss": loss, "diffusion__next_times": next_times, "teacher": "RUN"})
    return models.build(config, SPEC)


@pytest.mark.slow
def test_rounds_of_progressive_distillation_are_parts_that_resume(tmp_path, capsys):
    """The whole config from the command line: a teacher, then students of four steps, two and one."""
    config = tiny.config("distilled_digits", model=tiny.DIT)
    for part in config.parts.values():
        with part.unlocked():
            part.model, part.train = ConfigDict(tiny.DIT), config.train
            part.diffusion.timesteps = config.diffusion.timesteps
            part.sampler.steps = min(part.sampler.steps, 4)
    file, workdir = tmp_path / "config.json", tmp_path / "run"
    file.write_text(io.to_json(config.to_dict()))
    command = ["launch.py", "train", f"--config={file}", f"--workdir={workdir}", "--logger=none"]
    assert cli.main([*command, "--config.parts.steps_2.train.steps=2"]) == 0
    assert cli.main([*command, "--allow_config_change"]) == 0
    steps = {name: load(workdir / name).step for name in ("", "teacher", "steps_4", "steps_2")}
    assert steps == dict.fromkeys(steps, 4)
    assert load(workdir).system.teacher is None  # sampling does not need it
    assert cli.main(["launch.py", "sample", f"--workdir={workdir}", "--num=4", f"--out={tmp_path}/one.png"]) == 0
    assert (tmp_path / "one.png").exists()
