"""Distribution matching distillation of a diffusion model: groups of parameters, samples, refusals, a whole run."""

import functools
import shutil

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax import cli, io, models
from diffjax.errors import UserError
from diffjax.models.base import TrainedStage
from diffjax.runs.loading import load
from diffjax.training.compiled_step import make_optimizers, update_every
from tests import conditioned, tiny
from tests.conditioned import SPEC
from tests.running import state_arrays, steps

PROCESS = {
    "diffusion__schedule": "cosine",
    "diffusion__label_dropout": 0.1,
    "sampler__guidance": 1.0,
    "sampler__threshold": "none",
    "model": tiny.DIT,
}


AUGMENTED = {**tiny.config().data.to_dict(), "augment": {"prob": 0.1, "transforms": ("x_flip",)}}


@functools.cache
def teacher():
    return conditioned.with_random_params(models.build(tiny.config(**PROCESS), SPEC))


def build(loss="distribution_matching", stage=None, **changes):
    config = tiny.config(**PROCESS | {"diffusion__loss": loss, "teacher": "RUN"} | changes)
    return conditioned.with_random_params(models.build(config, SPEC, teacher=stage or TrainedStage(*teacher())))


def gradients(model, variables, keys):
    """Returns the losses, metrics and gradients of both groups."""
    batch = tiny.batch()

    def one(group, params):
        def mean_loss(params_of_group):
            of_groups = {**params, group: params_of_group}
            loss, aux = model.losses[group]({**variables, "params": of_groups}, batch, keys, tiny.moment())
            return loss.mean(), (loss, aux.metrics)

        gradient, (loss, metrics) = jax.grad(mean_loss, has_aux=True)(params[group])
        return loss, metrics, gradient

    return jax.jit(lambda params: {group: one(group, params) for group in model.losses})(variables["params"])


@pytest.mark.slow
def test_groups_start_as_the_teacher_and_the_fake_score_has_the_discriminator():
    """At the start the scores are equal, so the generator's gradient is the discriminator's alone."""
    model, fresh = build("distribution_matching(gan_weight=0.5)")
    variables = model.prepare(fresh, {})
    params, start = variables["params"], teacher()[1]["params"]["model"]
    assert params["fake_score"].keys() - params["model"].keys() == {"discriminator"}
    for group in ("model", "fake_score"):
        others = {name: leaf for name, leaf in params[group].items() if name != "discriminator"}
        jax.tree.map(np.testing.assert_array_equal, others, start)
    found = gradients(model, variables, conditioned.keys())
    loss, metrics, gradient = found["model"]
    np.testing.assert_allclose(metrics["matching"], 0.0, atol=1e-9)
    np.testing.assert_allclose(loss, 0.5 * metrics["adversarial"], rtol=1e-5)
    assert np.abs(gradient["out"]["kernel"]).max() > 0
    loss, metrics, gradient = found["fake_score"]
    np.testing.assert_allclose(loss, metrics["denoising"] + 0.01 * metrics["discriminator"], rtol=1e-5)
    assert np.abs(gradient["discriminator"]["logit"]["kernel"]).max() > 0


@pytest.mark.slow
def test_a_generator_of_several_steps_is_given_its_own_samples():
    """The last step of three is the third sample of the sampler lcm; only this evaluation has a gradient."""
    model, variables = build("distribution_matching(generator_steps=3, gan_weight=0)")
    keys, labels = conditioned.keys(), jnp.arange(6)
    assert variables["params"]["fake_score"].keys() == variables["params"]["model"].keys()
    bound = {"label": labels}
    settings = model.make_settings(tiny.config(**PROCESS).sampler, name="lcm", steps=3)

    @jax.jit
    def generated(step):
        values = model.conditions.encode(model._condition_inputs(variables, bound, keys))
        return model.generate(variables, keys, values, tiny.moment(step))

    sampled = np.asarray(jax.jit(functools.partial(model.sample, variables))(keys, bound, settings))
    differences = [np.abs(np.asarray(generated(step)) - sampled).max() for step in range(12)]
    assert min(differences) < 1e-4  # the last step
    assert len({round(difference, 3) for difference in differences}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": ""}, "diffusion.loss=distribution_matching distils a run; set --config.teacher=WORKDIR"),
        ({"diffusion__next_times": "grid(steps=2)"}, "next_times=grid.*not loss=distribution_matching; leave"),
        ({"diffusion__metric": "pseudo_huber"}, "metric=pseudo_huber.*not loss=distribution_matching; leave"),
        ({"diffusion__variance": "learned_range"}, "variance=learned_range: has no loss"),
        ({"diffusion__time_sampling": "importance"}, "time_sampling=importance: is not supported"),
        ({"diffusion__loss": "distribution_matching(generator_steps=1.5)"}, "must be a whole number, at least 1"),
        ({"diffusion__loss": "distribution_matching(generator_steps=30)"}, "distribution_matching: .*20"),
        ({"diffusion__loss": "distribution_matching(low=0.9, high=0.5)"}, "low < high"),
        ({"diffusion__loss": "distribution_matching(gan=1)"}, "takes no 'gan'; it takes discriminator_weight, gan_w"),
        ({"diffusion__parameterization": "x0"}, "teacher: has another parameterization"),
        ({"model": {**tiny.DIT, "width": 16}}, "teacher: has another network"),
        ({"diffusion__crop": 4}, "crop"),
        ({"data": AUGMENTED}, "data.augment.prob: is not supported for diffusion.loss=distribution_matching"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message) as error:
        build(changes.pop("diffusion__loss", "distribution_matching"), **changes)
    assert "\n" not in str(error.value)


def test_the_last_step_of_another_model_is_refused():
    config = tiny.config(**PROCESS, diffusion__loss="distribution_matching", teacher="RUN", last_step="RUN")
    stage = TrainedStage(*teacher())
    with pytest.raises(UserError, match=r"last_step: is not supported for diffusion\.loss=distribution_matching"):
        models.build(config, SPEC, teacher=stage, last_step=stage)


def test_the_learning_rate_of_a_group_is_that_of_the_training_step():
    """The generator is updated in each fifth of 100 steps, so its cosine ends at its 20th update."""
    config = tiny.config("distilled_digits:distribution_matching", train__steps=100)
    config = ConfigDict(config.to_dict())
    config.train.update(warmup_steps=0, clip_norm=0.0, learning_rate=1.0, learning_rate_schedule="cosine")
    params = {"model": {"w": jnp.zeros(())}, "fake_score": {"w": jnp.zeros(())}}
    losses = dict.fromkeys(params)
    model = tiny.LossModel(init_function=lambda key: {"params": params}, loss_functions=losses)
    assert update_every(config, model) == {"model": 5, "fake_score": 1}
    optimizer = make_optimizers(config, model)["model"]
    state, rates = optimizer.init(params["model"]), []
    for _ in range(20):
        updates, state = optimizer.update({"w": jnp.ones(())}, state, params["model"])
        rates.append(-float(updates["w"]))  # Adam's update of a constant gradient is the learning rate
    np.testing.assert_allclose(rates, (1 + np.cos(np.pi * np.arange(20) / 20)) / 2, rtol=1e-3)
    config.train.fake_score.update_every = 2
    with pytest.raises(UserError, match=r"train\.fake_score\.update_every=2: must be 1 for at least one group"):
        update_every(config, model)


@pytest.mark.slow
def test_latents_captions_guidance_and_its_scale_have_finite_gradients():
    """A UNet on latents, whose student is given a scale of guidance by which the teacher is guided."""
    unet = dict(tiny.config().model)
    process = {"model": unet | {"attention_resolutions": (2,)}, "diffusion__schedule": "linear"}
    stages = {}
    for name in ("teacher", "student"):
        config = conditioned.latent("caption", **process)
        with config.unlocked():
            config.diffusion.teacher_guidance = 1.0
            if name == "student":
                config.conditions.guidance_scale = {"low": 1.0, "high": 3.0}
                config.diffusion.loss, config.teacher = "distribution_matching", "RUN"
        stages[name] = conditioned.with_random_params(
            models.build(config, SPEC, codec=conditioned.CODEC, **parts(stages))
        )
    model, variables = stages["student"]
    variables = model.prepare(variables, {})
    for loss, metrics, gradient in gradients(model, variables, conditioned.keys()).values():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, metrics, gradient)))
        assert np.abs(gradient["conditions"]["caption"]["token"]["embedding"]).max() > 0
        assert np.abs(gradient["embedding"]["kernel"]).max() > 0


def parts(stages):
    return {"teacher": TrainedStage(*stages["teacher"])} if stages else {}


@pytest.mark.slow
def test_a_whole_run_resumes_and_its_export_has_the_generator_alone(tmp_path):
    """The config from the command line: the teacher, then a student whose generator is updated in each second step."""
    config = tiny.config("distilled_digits:distribution_matching", model=tiny.DIT, parallel__num_devices=1)
    with config.unlocked():
        part = config.parts.teacher
        part.model, part.sampler.steps = ConfigDict(tiny.DIT), 4
        part.train.update({name: value for name, value in config.train.items() if name in part.train})
        part.diffusion.timesteps = config.diffusion.timesteps
        config.train.model.update_every = 2
    file = tmp_path / "config.json"
    file.write_text(io.to_json(config.to_dict()))

    def train(name, *flags):
        command = ["launch.py", "train", f"--config={file}", f"--workdir={tmp_path / name}", "--logger=none", *flags]
        assert cli.main(command) == 0

    train("whole")
    shutil.copytree(tmp_path / "whole" / "teacher", tmp_path / "resumed" / "teacher")
    train("resumed", "--config.train.steps=2")
    train("resumed")
    assert state_arrays(tmp_path / "resumed", 4) == state_arrays(tmp_path / "whole", 4)
    lines = steps(tmp_path / "whole")
    assert [line["model/loss"] is not None for line in lines] == [True, False, True, False]
    assert all(line["fake_score/loss"] > 0 for line in lines)
    run = load(tmp_path / "whole")
    assert run.system.teacher is None and run.variables["params"].keys() == {"model", "fake_score"}
    out = tmp_path / "out"
    assert cli.main(["launch.py", "export", f"--workdir={tmp_path / 'whole'}", f"--out={out}"]) == 0
    assert not (out / "teacher").exists()
    exported = load(out)
    assert exported.variables["params"].keys() == {"model"}
    jax.tree.map(np.testing.assert_array_equal, exported.variables["params"]["model"], run.variables["params"]["model"])
    assert cli.main(["launch.py", "sample", f"--workdir={out}", "--num=4", f"--out={tmp_path}/one.png"]) == 0
    assert (tmp_path / "one.png").exists()
