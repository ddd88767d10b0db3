"""Losses of generator and discriminator, for the GAN and the denoising diffusion GAN; samples of the GAN."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.nn.gan import Generator as Network
from diffjax.runs.config_files import load_file
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
TINY = {
    "gan": {"model.channels": 8, "model.latent": 4, "discriminator.channels": 8, "discriminator.multipliers": (1,)},
    "ddgan": {
        "model.channels": 8,
        "model.norm_groups": 4,
        "model.multipliers": (1,),
        "model.blocks": 1,
        "model.attention_resolutions": (),
        "mapping.latent": 4,
        "mapping.width": 8,
        "mapping.layers": 1,
        "discriminator.channels": 8,
        "discriminator.multipliers": (1,),
    },
}


def config(name, **changes):
    """A config on digits made tiny; `changes` by dotted name with __ for the dots."""
    gan_config = load_file(str(tiny.ROOT / "configs" / f"{name}.py")).unlock()
    for path, value in (TINY[name] | {path.replace("__", "."): value for path, value in changes.items()}).items():
        section, _, field = path.rpartition(".")
        (gan_config[section] if section else gan_config)[field] = value
    return gan_config.lock()


@functools.cache
def built(name):
    gan_config = config(name)
    model = models.build(gan_config, SPEC)
    return gan_config, model, tiny.randomised(model.init)


@functools.cache
def computed(name):
    """Per group (losses, aux, gradient), of the batch and of the batch reversed.

    The gradient of the discriminator's loss is by all parameters, that of the generator's by its own.
    """
    _, model, variables = built(name)

    def differentiated(group, names, batch, keys):
        def total(params):
            whole = {**variables, "params": {**variables["params"], **params}}
            values, aux = model.losses[group](whole, batch, keys, tiny.moment())
            return values.sum(), (values, aux)

        gradient, (values, aux) = jax.grad(total, has_aux=True)({name: variables["params"][name] for name in names})
        return values, aux, gradient

    @jax.jit
    def run(batch, keys):
        return {
            "generator": differentiated("generator", ["generator"], batch, keys),
            "discriminator": differentiated("discriminator", ["generator", "discriminator"], batch, keys),
        }

    keys = jax.random.split(jax.random.key(3), 6)
    return jax.device_get((run(tiny.batch(), keys), run(jax.tree.map(lambda x: x[::-1], tiny.batch()), keys[::-1])))


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_losses_are_per_example(name):
    losses, of_reversed = computed(name)
    for group in ("generator", "discriminator"):
        values = losses[group][0]
        assert values.shape == (6,)
        assert len(np.unique(values)) == 6
        np.testing.assert_allclose(of_reversed[group][0][::-1], values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_a_group_and_the_discriminator_loss_no_other(name):
    _, _, variables = built(name)
    losses, _ = computed(name)
    for group, (_, _, gradient) in losses.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient[group]):
            assert np.isfinite(leaf).all(), path
            assert np.abs(leaf).max() > 0, path
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(losses["discriminator"][2]["generator"]))
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    assert jax.tree.structure(losses["discriminator"][1].variables) == jax.tree.structure(collections)
    assert losses["generator"][1].variables == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_sample_depends_on_its_key_and_label_alone(name):
    """Among other examples, and at another position in the batch."""
    gan_config, model, variables = built(name)
    generate, settings = SampleRunner(model, batch_size=8), model.make_settings(gan_config.sampler)
    labels = np.arange(16, dtype=np.int32) % 10
    images = generate(variables, np.arange(16), {"label": labels}, settings)
    assert images.shape == (16, 8, 8, 1)
    order = np.random.default_rng(0).permutation(16)[:11]
    repeated = generate(variables, order, {"label": labels[order]}, settings)
    assert np.abs(images[order].astype(int) - repeated).max() <= 1  # one grey level, by rounding


@pytest.mark.parametrize("name", TINY)
def test_an_unconditional_model_has_no_label_embedding(name):
    gan_config = config(
        name, **{"model__class_conditional" if name == "gan" else "diffusion__class_conditional": False}
    )
    model = models.build(gan_config, SPEC._replace(classes=0))
    assert model.classes == 0
    variables = model.variable_shapes
    assert "label" not in str(jax.tree.structure(variables))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 6))
    loss = lambda variables, keys: model.losses["generator"](variables, tiny.batch(), keys, tiny.moment())[0]  # noqa: E731
    assert jax.eval_shape(loss, variables, keys).shape == (6,)


def test_truncation_bounds_z_and_compiles_once():
    gan_config, model, variables = built("gan")
    generator, labels = SampleRunner(model, batch_size=8), {"label": np.zeros(8, np.int32)}
    spreads = []
    for bound in (float("inf"), 1.0, 1e-3):
        images = generator(variables, range(8), labels, model.make_settings(gan_config.sampler, truncation=bound))
        spreads.append(images.std(axis=0).mean())
    assert generator.compilations == 1
    assert spreads[0] > spreads[1] > 10 * spreads[2]


def test_untruncated_samples_have_normal_latents():
    """Mean and standard deviation of each pixel, against latents of NumPy."""
    gan_config, model, variables = built("gan")
    label = jnp.zeros(2000, jnp.int32)
    draw = jax.jit(lambda keys, settings: model.sample(variables, keys, {"label": label}, settings))
    images = np.asarray(draw(jax.random.split(jax.random.key(0), 2000), model.make_settings(gan_config.sampler)))
    network = Network(8, 1, 10, latent=4, channels=8, multipliers=(1, 2), norm_min_channels=4)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2000, 4)), jnp.float32)
    others = np.asarray(jax.jit(network.apply)({"params": variables["params"]["generator"]}, z, label))
    error = 5 * np.sqrt(2 / 2000) * others.std(axis=0)
    assert (np.abs(images.mean(axis=0) - others.mean(axis=0)) < error).all()
    np.testing.assert_allclose(images.std(axis=0), others.std(axis=0), rtol=0.15)


@pytest.mark.parametrize(
    ("name", "changes", "spec", "message"),
    [
        ("gan", {}, ImageSpec(7, 1, 10), "1 halvings require sides that are multiples of 2, not 7"),
        ("gan", {}, ImageSpec(8, 1, 0), "model.class_conditional=True: the data set does not have labels"),
        ("gan", {"model__chanels": 8}, SPEC, "field of config.model 'chanels': did you mean 'channels'"),
        ("gan", {"discriminator__chanels": 8}, SPEC, "field of config.discriminator 'chanels'"),
        ("gan", {"discriminator__loss": "hing"}, SPEC, "did you mean 'hinge'"),
        ("gan", {"dtype": "float16"}, SPEC, "unknown dtype 'float16'"),
        ("gan", {"sampler__steps": 4}, SPEC, "system=gan takes no 'steps'; it takes truncation"),
        ("gan", {"sampler__truncation": 0.0}, SPEC, "truncation=0: must be above 0"),
        ("ddgan", {"model__multipliers": (1, 2)}, ImageSpec(7, 1, 10), "data.image_size=7: must be a multiple of 2"),
        ("ddgan", {}, ImageSpec(8, 1, 0), "diffusion.class_conditional=True: the data set does not have labels"),
        ("ddgan", {"mapping__widht": 8}, SPEC, "field of config.mapping 'widht': did you mean 'width'"),
        ("ddgan", {"sampler__steps": 5}, SPEC, "sampler.steps=5"),
        ("ddgan", {"sampler__guidance": 2.0}, SPEC, "leave it at 1"),
        ("ddgan", {"diffusion__schedule": "linaer"}, SPEC, "did you mean 'linear'"),
    ],
)
def test_invalid_configs_raise(name, changes, spec, message):
    with pytest.raises(UserError, match=message):
        models.build(config(name, **changes), spec)


@pytest.mark.parametrize("name", TINY)
def test_an_unknown_data_set_raises(name):
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_file(str(tiny.ROOT / "configs" / f"{name}.py") + ":cifar")
