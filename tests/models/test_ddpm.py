"""The pixel diffusion system: labels, guidance, samples."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import Generator
from diffjax.models.diffusion.conditioning import Conditions
from diffjax.models.diffusion.conditions import Label
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)


def built(seed=0, **changes):
    """A tiny system with weights that are not the zeros of initialisation."""
    config = tiny.config(**changes)
    system = models.build(config, SPEC)
    variables = jax.jit(system.objective.init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(variables["params"])
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    noisy = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return config, system, {**variables, "params": jax.tree.unflatten(tree, noisy)}


@pytest.fixture(scope="module")
def trained():
    return built()


def batch(size=6):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (size, 8, 8, 1), np.uint8)
    return {"image": image, "label": np.arange(size, dtype=np.int32), "index": np.arange(size, dtype=np.int32)}


def test_losses_come_back_unreduced_and_by_example(trained):
    _, system, variables = trained
    keys = jax.random.split(jax.random.key(3), 6)
    loss = jax.jit(lambda batch, keys: system.objective.losses["model"](variables, batch, keys, tiny.moment())[0])
    whole = loss(batch(), keys)
    assert whole.shape == (6,)
    assert len(np.unique(np.asarray(whole))) == 6
    backwards = loss(jax.tree.map(lambda x: x[::-1], batch()), keys[::-1])
    np.testing.assert_allclose(backwards[::-1], whole, rtol=1e-4)


def test_labels_are_dropped_at_their_rate():
    labels = jnp.arange(20_000) % 10
    told = Conditions({"label": Label(10, 0.1)})
    dropped = np.asarray(told.dropped({"label": labels}, jax.random.split(jax.random.key(0), 20_000))["label"])
    null = dropped == 10
    np.testing.assert_allclose(null.mean(), 0.1, atol=5 * np.sqrt(0.09 / 20_000))
    np.testing.assert_array_equal(dropped[~null], np.asarray(labels)[~null])


def test_guidance_one_is_unguided_and_others_are_not(trained):
    config, system, variables = trained
    keys, labels = jax.random.split(jax.random.key(0), 4), jnp.arange(4)

    @jax.jit
    def draw(labels, plan):
        return system.sample(variables, keys, {"label": labels}, plan)

    unguided = draw(labels, system.plan(config.sampler, guidance=1.0))
    null = draw(jnp.full(4, 10), system.plan(config.sampler, guidance=1.0))
    np.testing.assert_allclose(draw(labels, system.plan(config.sampler, guidance=0.0)), null, atol=1e-5)
    assert np.abs(unguided - null).max() > 1e-3  # the label is heard
    assert np.abs(draw(labels, system.plan(config.sampler, guidance=3.0)) - unguided).max() > 1e-3


@pytest.mark.parametrize("batch_size", [8, 16])
def test_a_sample_is_the_same_whatever_the_batch(trained, batch_size):
    config, system, variables = trained
    seeds, labels = np.arange(20), (np.arange(20, dtype=np.int32) % 10)
    plan = system.plan(config.sampler, eta=1.0)
    whole = Generator(system, batch_size=20)(variables, seeds, {"label": labels}, plan)
    parts = Generator(system, batch_size=batch_size)(variables, seeds, {"label": labels}, plan)
    assert whole.dtype == np.uint8
    assert whole.shape == (20, 8, 8, 1)
    assert np.abs(whole.astype(int) - parts).max() <= 1  # a grey level: sums of another order round differently
    later = Generator(system, batch_size=batch_size)(variables, seeds[13:], {"label": labels[13:]}, plan)
    assert np.abs(whole[13:].astype(int) - later).max() <= 1


def test_a_sweep_compiles_the_sampler_once(trained):
    config, system, variables = trained
    generator = Generator(system, batch_size=8)
    for steps in (2, 5, 20):
        for eta in (0.0, 1.0):
            for guidance in (1.0, 2.0):
                plan = system.plan(config.sampler, capacity=20, steps=steps, eta=eta, guidance=guidance)
                generator(variables, range(8), {"label": (np.arange(8, dtype=np.int32) % 10)}, plan)
    assert generator.compilations == 1
    generator(
        variables,
        range(8),
        {"label": (np.arange(8, dtype=np.int32) % 10)},
        system.plan(config.sampler, name="ancestral"),
    )
    assert generator.compilations == 2


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
        "times": "importance(horizon=2)",
    },
    "EDM": {"schedule": "edm", "continuous": True, "parameterization": "edm", "times": "log_normal"},
    "rectified flow": {
        "schedule": "rectified_flow",
        "continuous": True,
        "parameterization": "flow",
        "times": "logit_normal",
    },
    "VDM": {"schedule": "learned", "continuous": True, "parameterization": "eps", "loss": "vlb"},
}


@pytest.mark.parametrize("paper", sorted(PAPERS))
def test_a_papers_choices_train_and_sample(paper):
    """The gradient is finite and reaches every parameter; what the times remember moves; samples are finite."""
    changes = {f"diffusion__{name}": value for name, value in PAPERS[paper].items()}
    config, system, variables = built(**changes)
    keys = jax.random.split(jax.random.key(1), 6)

    @jax.jit
    def gradient(params):
        def mean(params):
            given = {**variables, "params": {"model": params}}
            loss, aux = system.objective.losses["model"](given, batch(), keys, tiny.moment())
            return loss.mean(), aux

        return jax.grad(mean, has_aux=True)(params)

    grads, aux = gradient(variables["params"]["model"])
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    assert ("times" in aux.variables) == ("times" in PAPERS[paper] and "importance" in PAPERS[paper]["times"])
    plan = system.plan(config.sampler, steps=2, name="heun", grid="karras")
    images = jax.jit(system.sample)(variables, keys, {"label": jnp.arange(6)}, plan)
    assert images.shape == (6, 8, 8, 1)
    assert np.isfinite(images).all()


@pytest.mark.parametrize("field", ["norm_groups", "norm_min_channels"])
def test_a_config_without_its_norms_is_refused(field):
    """Weights of a run mean something else with another number of groups."""
    config = tiny.config().unlock()
    del config.model[field]
    with pytest.raises(UserError, match=f"model.{field}: is missing; set "):
        models.build(config, SPEC)


def test_an_unconditional_model_has_no_labels():
    config, system, variables = built(diffusion__class_conditional=False, sampler__guidance=1.0)
    assert "label" not in str(jax.tree_util.tree_structure(variables))
    with pytest.raises(UserError, match="leave it at 1"):
        system.plan(config.sampler, guidance=2.0)


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({}, ImageSpec(7, 1, 10), "image_size=7 cannot be halved 1 times"),
        ({"model__multipliers": (1, 2, 2, 2, 2)}, SPEC, "multiple of 16, or fewer multipliers"),
        ({}, ImageSpec(8, 1, 0), "has no labels"),
        ({"model__chanels": 8}, SPEC, "did you mean 'channels'"),
        ({"model__resample": "cnv"}, SPEC, "resample"),
        ({"model__heads": 3}, SPEC, "config.model: "),
        ({"diffusion__label_dropout": 1.0}, SPEC, "a share from 0"),
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
def test_what_does_not_fit_is_refused(changes, spec, message):
    with pytest.raises(UserError, match=message):
        models.build(tiny.config(**{"model__norm_min_channels": 0} | changes), spec)
