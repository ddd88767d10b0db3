"""Diffusion on pixels: the published choices train and sample, labels, guidance, and compilation of samplers."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.models.diffusion.condition_kinds import ClassLabel
from diffjax.models.diffusion.conditions import Conditions
from diffjax.typing import ImageSpec
from tests import conditioned, tiny

SPEC = ImageSpec(8, 1, 10)


@pytest.fixture(scope="module")
def built():
    """Returns the config of a model conditioned on labels, the model, and random variables."""
    return conditioned.built("label")


def test_losses_are_per_example(built):
    _, model, variables = built
    batch, keys = tiny.batch(), jax.random.split(jax.random.key(3), 6)
    loss = jax.jit(lambda batch, keys: model.losses["model"](variables, batch, keys, tiny.moment())[0])
    losses = loss(batch, keys)
    assert losses.shape == (6,)
    assert len(np.unique(np.asarray(losses))) == 6
    reversed_losses = loss(jax.tree.map(lambda x: x[::-1], batch), keys[::-1])
    np.testing.assert_allclose(reversed_losses[::-1], losses, rtol=1e-4)


def test_labels_are_dropped_at_their_rate():
    labels, keys = jnp.arange(20_000) % 10, jax.random.split(jax.random.key(0), 20_000)
    conditions = Conditions({"label": ClassLabel(10, 0.1)})
    dropped = np.asarray(conditions.drop_randomly({"label": labels}, keys)["label"])
    is_null = dropped == 10
    np.testing.assert_allclose(is_null.mean(), 0.1, atol=5 * np.sqrt(0.09 / 20_000))
    np.testing.assert_array_equal(dropped[~is_null], np.asarray(labels)[~is_null])


@pytest.mark.slow
def test_samples_depend_on_the_guidance_but_not_on_the_batch(built):
    """Guidance 0 is unconditional and 1 is conditional; all settings share one compilation per batch size."""
    config, model, variables = built
    seeds, labels = np.arange(20), np.arange(20, dtype=np.int32) % 10
    large, small = SampleRunner(model, batch_size=24), SampleRunner(model, batch_size=8)

    def sample(labels, runner=large, **settings):
        options = {} if "name" in settings else {"eta": 0.0}  # equal options share a compilation
        settings = model.make_settings(config.sampler, capacity=20, **options | settings)
        return runner(variables, seeds[: len(labels)], {"label": labels}, settings).astype(int)

    unguided, null = sample(labels, guidance=1.0), sample(np.full(20, 10, np.int32), guidance=1.0)
    assert unguided.shape == (20, 8, 8, 1)
    np.testing.assert_allclose(sample(labels, guidance=0.0), null, atol=1)
    assert np.abs(unguided - null).max() > 1
    assert np.abs(sample(labels, guidance=3.0) - unguided).max() > 1

    noisy = sample(labels, eta=1.0)
    assert np.abs(sample(labels, small, eta=1.0) - noisy).max() <= 1  # one grey level: sums round differently
    later = small(variables, seeds[13:], {"label": labels[13:]}, model.make_settings(config.sampler, 20, eta=1.0))
    assert np.abs(later.astype(int) - noisy[13:]).max() <= 1

    for settings in ({"steps": 2}, {"steps": 20, "eta": 1.0}, {"steps": 5, "guidance": 2.0}):
        sample(labels, small, **settings)
    assert (large.compilations, small.compilations) == (1, 1)
    sample(labels[:8], small, name="ancestral")
    assert small.compilations == 2


PAPERS = {
    "Improved DDPM, hybrid": {
        "schedule": "cosine",
        "parameterization": "eps",
        "loss": "hybrid",
        "variance": "learned_range",
    },
    "Improved DDPM, L_vlb": {
        "parameterization": "eps",
        "loss": "vlb",
        "variance": "learned_range",
        "time_sampling": "importance(horizon=2)",
    },
    "EDM": {"schedule": "edm", "continuous": True, "parameterization": "edm", "time_sampling": "log_normal"},
    "rectified flow": {
        "schedule": "rectified_flow",
        "continuous": True,
        "parameterization": "flow",
        "time_sampling": "logit_normal",
    },
    "VDM": {"schedule": "learned", "continuous": True, "parameterization": "eps", "loss": "vlb"},
}


SLOW = ("EDM", "Improved DDPM, hybrid", "rectified flow")  # the others have the same branches


@pytest.mark.parametrize("paper", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in PAPERS])
def test_choices_of_a_paper_train_and_sample(paper):
    """Gradients are finite and reach all parameters; state of time sampling is updated; samples are finite."""
    choices = {"time_sampling": "uniform"} | PAPERS[paper]
    changes = {f"diffusion__{name}": value for name, value in choices.items()}
    config, model, variables = conditioned.built("label", **changes)
    keys, batch = jax.random.split(jax.random.key(1), 6), tiny.batch()
    settings = model.make_settings(config.sampler, steps=2, name="heun", grid="karras")

    @jax.jit
    def run(params):
        def mean_loss(params):
            loss, aux = model.losses["model"]({**variables, "params": {"model": params}}, batch, keys, tiny.moment())
            return loss.mean(), aux

        images = model.sample({**variables, "params": {"model": params}}, keys, {"label": jnp.arange(6)}, settings)
        return jax.grad(mean_loss, has_aux=True)(params), images

    (grads, aux), images = run(variables["params"]["model"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    assert ("times" in aux.variables) == ("importance" in PAPERS[paper].get("time_sampling", ""))
    assert images.shape == (6, 8, 8, 1)
    assert np.isfinite(images).all()


def test_missing_fields_of_group_norm_raise():
    """The number of groups determines what the weights of a run compute."""
    for field in ("norm_groups", "norm_min_channels"):
        config = tiny.config().unlock()
        del config.model[field]
        with pytest.raises(UserError, match=f"model.{field}: is missing; set "):
            models.build(config, SPEC)


def test_an_unconditional_model_has_no_labels():
    config = tiny.config(diffusion__class_conditional=False, sampler__guidance=1.0)
    model = models.build(config, SPEC)
    assert "label" not in str(jax.tree.structure(model.variable_shapes))
    with pytest.raises(UserError, match="leave it at 1"):
        model.make_settings(config.sampler, guidance=2.0)


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({}, ImageSpec(7, 1, 10), "data.image_size=7: must be a multiple of 2"),
        ({"model__multipliers": (1, 2, 2, 2, 2)}, SPEC, "multiple of 16, .* use fewer multipliers"),
        ({}, ImageSpec(8, 1, 0), "does not have labels"),
        ({"model__chanels": 8}, SPEC, "did you mean 'channels'"),
        ({"model__resample": "cnv"}, SPEC, "resample"),
        ({"model__heads": 3}, SPEC, "config.model: "),
        ({"diffusion__label_dropout": 1.0}, SPEC, "must be a fraction from 0"),
        ({"dtype": "float16"}, SPEC, "unknown dtype 'float16'"),
        ({"system": "ddmp"}, SPEC, "did you mean 'ddpm'"),
        ({"sampler__steps": 21}, SPEC, "20 timesteps has 1 to 20 steps"),
        ({"model__pool": "mean"}, SPEC, "unknown field of config.model 'pool'"),
        (
            {"model__channels": 24, "model__multipliers": (2, 3), "model__norm_groups": 32},
            SPEC,
            "model.norm_groups=32: must divide the 48 channels of level 0; use 8, or model.norm_min_channels=4",
        ),
        ({"model__multipliers": (1, 1.3)}, SPEC, "model.multipliers=.1, 1.3.: 8 channels x 1.3 must be a whole number"),
        ({"model__head_channels": 4, "model__heads": 2}, SPEC, "head_channels=4: must be unset where heads=2"),
    ],
)
def test_invalid_configs_raise(changes, spec, message):
    with pytest.raises(UserError, match=message):
        models.build(tiny.config(**{"model__norm_min_channels": 0} | changes), spec)
