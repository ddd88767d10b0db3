"""The game of a generator and a discriminator, for both systems that play it; and the GAN's samples."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import Generator
from diffjax.nn.gan import Generator as Network
from diffjax.runs.config_files import load_file
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
TINY = {
    "gan": {"model.channels": 8, "model.latent": 4, "discriminator.channels": 8},
    "ddgan": {
        "model.channels": 8,
        "model.norm_groups": 4,
        "model.multipliers": (1,),
        "model.attention_resolutions": (),
        "mapping.latent": 4,
        "mapping.width": 8,
        "mapping.layers": 1,
        "discriminator.channels": 8,
    },
}


def config(name, **changes):
    """A config on digits made tiny; `changes` by dotted name with __ for the dots."""
    made = load_file(str(tiny.ROOT / "configs" / f"{name}.py")).unlock()
    for path, value in (TINY[name] | {path.replace("__", "."): value for path, value in changes.items()}).items():
        section, _, field = path.rpartition(".")
        (made[section] if section else made)[field] = value
    return made.lock()


@functools.cache
def built(name):
    made = config(name)
    system = models.build(made, SPEC)
    return made, system, tiny.randomised(system.objective.init)


@functools.cache
def game(name):
    """(batch, keys) -> of each group's loss: its values, what it gives beside them, the gradient by all parameters."""
    _, system, variables = built(name)

    def by_all(loss, batch, keys):
        def total(params):
            values, aux = loss({**variables, "params": params}, batch, keys, tiny.moment())
            return values.sum(), (values, aux)

        gradient, (values, aux) = jax.grad(total, has_aux=True)(variables["params"])
        return values, aux, gradient

    return jax.jit(lambda batch, keys: {g: by_all(loss, batch, keys) for g, loss in system.objective.losses.items()})


KEYS = jax.random.split(jax.random.key(3), 6)


@pytest.mark.parametrize("name", TINY)
def test_losses_come_back_unreduced_and_by_example(name):
    whole, backwards = (
        game(name)(tiny.batch(), KEYS),
        game(name)(jax.tree.map(lambda x: x[::-1], tiny.batch()), KEYS[::-1]),
    )
    for group in ("generator", "discriminator"):
        values = whole[group][0]
        assert values.shape == (6,)
        assert len(np.unique(np.asarray(values))) == 6
        np.testing.assert_allclose(backwards[group][0][::-1], values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_a_gradient_reaches_all_of_its_own_group_and_the_discriminators_none_other(name):
    _, _, variables = built(name)
    found = game(name)(tiny.batch(), KEYS)
    for group, (_, _, gradient) in found.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient[group]):
            assert np.isfinite(leaf).all(), path
            assert np.abs(leaf).max() > 0, path
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(found["discriminator"][2]["generator"]))
    memory = {name: tree for name, tree in variables.items() if name != "params"}
    assert jax.tree.structure(found["discriminator"][1].variables) == jax.tree.structure(memory)
    assert found["generator"][1].variables == {}


@pytest.mark.parametrize("name", TINY)
def test_a_sample_is_the_same_whatever_the_batch(name):
    made, system, variables = built(name)
    seeds, labels, plan = np.arange(11), (np.arange(11, dtype=np.int32) % 10), system.plan(made.sampler)
    whole = Generator(system, batch_size=16)(variables, seeds, {"label": labels}, plan)
    assert whole.shape == (11, 8, 8, 1)
    parts = Generator(system, batch_size=8)(variables, seeds[3:], {"label": labels[3:]}, plan)
    assert np.abs(whole[3:].astype(int) - parts).max() <= 1  # a grey level: sums of another order round differently


@pytest.mark.parametrize("name", TINY)
def test_a_system_without_labels_has_none(name):
    made = config(name, **{"model__class_conditional" if name == "gan" else "diffusion__class_conditional": False})
    system = models.build(made, SPEC._replace(classes=0))
    assert system.classes == 0
    variables = jax.eval_shape(system.objective.init, jax.random.key(0))
    assert "label" not in str(jax.tree.structure(variables))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 6))
    for loss in system.objective.losses.values():
        value = jax.eval_shape(lambda v, k, loss=loss: loss(v, tiny.batch(), k, tiny.moment())[0], variables, keys)
        assert value.shape == (6,)


def test_truncation_keeps_z_in_bounds_and_compiles_once():
    made, system, variables = built("gan")
    generator, labels = Generator(system, batch_size=8), {"label": np.zeros(8, np.int32)}
    spreads = []
    for bound in (float("inf"), 1.0, 1e-3):
        images = generator(variables, range(8), labels, system.plan(made.sampler, truncation=bound))
        spreads.append(images.std(axis=0).mean())
    assert generator.compilations == 1
    assert spreads[0] > spreads[1] > 10 * spreads[2]


def test_untruncated_samples_are_those_of_normal_latents():
    """Mean and deviation of each pixel, against latents of NumPy's."""
    made, system, variables = built("gan")
    label = jnp.zeros(2000, jnp.int32)
    draw = jax.jit(lambda keys, plan: system.sample(variables, keys, {"label": label}, plan))
    images = np.asarray(draw(jax.random.split(jax.random.key(0), 2000), system.plan(made.sampler)))
    network = Network(8, 1, 10, latent=4, channels=8, multipliers=(1, 2), norm_min_channels=4)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 4)), jnp.float32)
    others = np.asarray(jax.jit(network.apply)({"params": variables["params"]["generator"]}, z, label))
    error = 5 * np.sqrt(2 / 2000) * others.std(axis=0)
    assert (np.abs(images.mean(axis=0) - others.mean(axis=0)) < error).all()
    np.testing.assert_allclose(images.std(axis=0), others.std(axis=0), rtol=0.15)


@pytest.mark.parametrize(
    ("name", "changes", "spec", "message"),
    [
        ("gan", {}, ImageSpec(7, 1, 10), "halve a picture 1 times, which 7 cannot be"),
        ("gan", {}, ImageSpec(8, 1, 0), "model.class_conditional=True, but the data set has no labels"),
        ("gan", {"model__chanels": 8}, SPEC, "field of config.model 'chanels': did you mean 'channels'"),
        ("gan", {"discriminator__chanels": 8}, SPEC, "field of config.discriminator 'chanels'"),
        ("gan", {"discriminator__loss": "hing"}, SPEC, "did you mean 'hinge'"),
        ("gan", {"dtype": "float16"}, SPEC, "unknown dtype 'float16'"),
        ("gan", {"sampler__steps": 4}, SPEC, "system=gan takes no 'steps'; it takes truncation"),
        ("gan", {"sampler__truncation": 0.0}, SPEC, "truncation=0: the bound on each value of z is above 0"),
        ("ddgan", {"model__multipliers": (1, 2)}, ImageSpec(7, 1, 10), "image_size=7 cannot be halved 1 times"),
        ("ddgan", {}, ImageSpec(8, 1, 0), "diffusion.class_conditional=True, but the data set has no labels"),
        ("ddgan", {"mapping__widht": 8}, SPEC, "field of config.mapping 'widht': did you mean 'width'"),
        ("ddgan", {"sampler__steps": 5}, SPEC, "sampler.steps=5"),
        ("ddgan", {"sampler__guidance": 2.0}, SPEC, "leave it at 1"),
        ("ddgan", {"diffusion__schedule": "linaer"}, SPEC, "did you mean 'linear'"),
    ],
)
def test_what_does_not_fit_is_refused(name, changes, spec, message):
    with pytest.raises(UserError, match=message):
        models.build(config(name, **changes), spec)


@pytest.mark.parametrize("name", TINY)
def test_a_data_set_without_settings_is_refused(name):
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_file(str(tiny.ROOT / "configs" / f"{name}.py") + ":cifar")
