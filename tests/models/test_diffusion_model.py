"""Diffusion models with any conditions and data space: loss, guidance, crops, devices."""

import functools
import itertools

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.random import normal_each, split_each
from diffjax.errors import UserError
from diffjax.models.base import TrainedStage
from diffjax.models.diffusion.conditions import make_conditions
from diffjax.models.diffusion.data_space import pixel_space
from diffjax.models.diffusion.guided import guided
from diffjax.models.diffusion.model import random_crop
from diffjax.models.diffusion.process import Process
from diffjax.models.diffusion.variants import make_diffusion_model
from diffjax.nn.unet import UNet
from diffjax.training.compiled_step import compile_step, make_optimizers
from diffjax.training.sharding import Devices
from tests import conditioned, tiny
from tests.conditioned import CODEC, DIT, SPEC, clip, keys

BATCH = tiny.batch()
# config, and the trained models that it depends on
MODELS = {
    "caption": lambda **changes: (conditioned.config("caption", **changes), {}),
    "embedding": lambda **changes: (conditioned.config("image_embedding", **changes), {"clip": clip()}),
    "decoder": lambda **changes: (conditioned.config("caption", "image_embedding", **changes), {"clip": clip()}),
    "latent": lambda **changes: (conditioned.latent("caption", **changes), {"codec": CODEC}),
    "unclip_prior": lambda **changes: (conditioned.prior(**changes), {"clip": clip()}),
}


@functools.cache
def built(name, **changes):
    config, parts = MODELS[name](**changes)
    return config, *conditioned.with_random_params(models.build(config, SPEC, **parts))


def sample_conditions(name):
    conditions = dict(conditioned.example_conditions())
    if name == "decoder":
        embedding = np.random.default_rng(0).normal(size=(6, 12)).astype(np.float32)
        conditions["image_embedding"] = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    del conditions["original"]
    return conditions


# initial x_T of the samples
INITIAL = {
    name: np.random.default_rng(1).normal(size=(6, *shape)).astype(np.float32)
    for name, shape in {"caption": (8, 8, 1), "decoder": (8, 8, 1), "latent": (4, 4, 4), "unclip_prior": (12,)}.items()
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("caption", "latent", "decoder")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unclip_prior", *SLOW])
def test_guidance_extrapolates_from_the_null_to_the_conditional_model(name):
    """Scale 1 is conditional and 0 unconditional: two DDIM steps, in NumPy."""
    (config, model, variables), conditions = built(name), sample_conditions(name)
    settings = functools.partial(model.make_settings, config.sampler, steps=2)

    @jax.jit
    def estimates(x, t):
        bound = model.bind(variables, conditions)
        noise = bound.process.schedule(t)
        return [d(x, noise).x0 for d in (bound.denoiser, bound.unconditional)], noise, bound.decode(x)

    def by_hand(which):
        noise, x = [estimates(INITIAL[name], t)[1] for t in settings().times], INITIAL[name]
        for now, then in itertools.pairwise(noise):
            x0 = np.asarray(estimates(x, now.t)[0][which])
            x0 = np.clip(x0, -1, 1) if config.sampler.threshold == "clip" else x0
            x = then.alpha * x0 + then.sigma * (x - now.alpha * x0) / now.sigma
        return np.asarray(estimates(x, noise[0].t)[2])

    sample = jax.jit(lambda settings: model.sample(variables, keys(), conditions | {"latent": INITIAL[name]}, settings))
    conditional, unconditional = by_hand(0), by_hand(1)
    one, near_one, zero, two = (sample(settings(guidance=scale)) for scale in (1.0, 1.0 + 1e-6, 0.0, 2.0))
    np.testing.assert_allclose(one, conditional, atol=1e-5)
    np.testing.assert_allclose(near_one, conditional, atol=1e-4)
    np.testing.assert_allclose(zero, unconditional, atol=1e-5)
    apart = [
        np.abs(np.asarray(a) - b).reshape(6, -1).max(axis=1)
        for a, b in ((conditional, unconditional), (two, conditional))
    ]
    assert (np.array(apart) > 1e-3).all()
    if model.outputs_embeddings:
        np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1.0, rtol=1e-5)


def test_guidance_without_dropout_raises():
    config = conditioned.config("label_token", conditions__label_token__dropout=0.0)
    model = models.build(config, SPEC)
    with pytest.raises(UserError, match="another condition's dropout > 0; leave it at 1"):
        model.make_settings(config.sampler, guidance=2.0)


@functools.cache
def loss_of(name, **changes):
    """Returns (params, batch, keys) -> losses."""
    _, model, variables = built(name, **changes)
    loss = model.losses["model"]
    return jax.jit(lambda params, batch, keys: loss({**variables, "params": params}, batch, keys, tiny.moment())[0])


@pytest.mark.parametrize("name", ["unclip_prior", *SLOW])
def test_losses_are_per_example(name):
    params, loss = built(name)[2]["params"], loss_of(name)
    whole = loss(params, BATCH, keys())
    assert whole.shape == (6,) and len(np.unique(whole)) == 6
    of_reversed = loss(params, jax.tree.map(lambda x: x[::-1], BATCH), keys()[::-1])
    np.testing.assert_allclose(of_reversed[::-1], whole, rtol=1e-4)


def test_the_loss_of_a_prior_that_outputs_zero_is_the_norm_of_embeddings():
    """The target is `embedding_scale` times a unit vector of 12 values."""
    params = built("unclip_prior")[2]["params"]["model"]
    zero = {"model": {**params, "out": jax.tree.map(jnp.zeros_like, params["out"])}}
    np.testing.assert_allclose(loss_of("unclip_prior")(zero, BATCH, keys()), np.full(6, 11.3**2 / 12), rtol=1e-5)


ONE_STEP = {"diffusion__timesteps": 1, "sampler__steps": 1}


@pytest.mark.slow
def test_the_loss_is_the_error_of_the_bound_denoiser():
    """The error is that of the conditional or of the unconditional denoiser, by the example's key; T = 1."""
    batch, half = tiny.batch(16), {"conditions__image_embedding__dropout": 0.5, "diffusion__schedule": "linear"}
    _, model, variables = built("embedding", **half, **ONE_STEP)
    result = loss_of("embedding", **half, **ONE_STEP)(variables["params"], batch, keys(16))

    @jax.jit
    def estimates():
        x0 = batch["image"] / 127.5 - 1.0
        noise_keys = jax.vmap(lambda key: jax.random.split(key, 4)[2])(keys(16))
        bound = model.bind(variables, {**batch, "original": x0})
        noise = bound.process.schedule(1.0)
        eps = normal_each(split_each(noise_keys)[1], (8, 8, 1))
        x = noise.alpha * x0 + noise.sigma * eps
        return [
            ((d(x, noise).x0 - x0) ** 2).mean((1, 2, 3)) / noise.sigma**2 for d in (bound.denoiser, bound.unconditional)
        ]

    conditional, unconditional = estimates()  # the error of v is that of x_0 over sigma^2
    is_conditional, dropped = (np.isclose(result, expected, rtol=1e-4) for expected in (conditional, unconditional))
    assert (is_conditional ^ dropped).all() and 3 <= is_conditional.sum() <= 13


def test_crops_depend_on_the_key_alone_and_cover_all_positions():
    """The image has the positions of its pixels as values, so that crops show their position."""
    positions = np.moveaxis(np.indices((8, 8)), 0, -1).astype(np.float32)
    x = np.broadcast_to(positions, (500, 8, 8, 2))
    crop = jax.jit(lambda keys, x: random_crop(keys, 3, x))
    result = np.asarray(crop(keys(500), x))
    corners = result[:, 0, 0].astype(int)
    np.testing.assert_array_equal(result, corners[:, None, None] + positions[:3, :3])
    counts = np.zeros((6, 6))
    np.add.at(counts, tuple(corners.T), 1)
    assert counts.min() > 0 and counts.max() < 40  # 500 / 36 are expected
    np.testing.assert_array_equal(crop(keys(500), 2 * x), 2 * result)
    np.testing.assert_array_equal(crop(keys(500)[::-1], x)[::-1], result)


class CopyingNetwork(UNet):
    """Outputs the conditioning image, and x_t where that is masked."""

    @nn.compact
    def __call__(self, x, t, **inputs):
        self.param("none", nn.initializers.zeros, ())
        assert x.shape[1:] in ((8, 8, 3), (4, 4, 3))
        x_t, image, mask = jnp.split(x, 3, axis=-1)
        return jnp.where(mask == 1.0, x_t, image) if x.shape[1] == 4 else jnp.zeros_like(x_t)


def test_images_and_their_conditions_are_cropped_alike():
    """At negligible noise, a network that copies its inputs has no error; samples are not cropped."""
    clean = {"diffusion__parameterization": "x0", "diffusion__schedule": "edm(sigma_max=1e-6)"}
    config = conditioned.config("masked_image", diffusion__crop=4, **clean, **ONE_STEP)
    space, network = (
        pixel_space(SPEC),
        CopyingNetwork(1, attention_resolutions=(), middle_attention=False, multipliers=(1, 2)),
    )
    conditions = make_conditions(config, SPEC, space)
    model = make_diffusion_model(config, SPEC, Process.from_config(config.diffusion), space, conditions, network, {})
    variables = {"params": {"model": {"none": jnp.zeros(())}}, "frozen": {}}
    loss = jax.jit(lambda batch: model.losses["model"](variables, batch, keys(32), tiny.moment())[0])
    np.testing.assert_allclose(loss(tiny.batch(32)), np.zeros(32), atol=1e-9)
    conditions = {"label": BATCH["label"]}
    samples = jax.eval_shape(model.sample, variables, keys(), conditions, model.make_settings(config.sampler))
    assert samples.shape == (6, 8, 8, 1)


def test_without_guides_samples_are_unchanged():
    config, model, variables = conditioned.built("low_res_image")
    settings = model.make_settings(config.sampler, steps=2, augmentation=1.0)
    run = jax.jit(
        lambda sample, variables: sample(variables, keys(), conditioned.example_conditions(), settings),
        static_argnums=0,
    )
    unguided = run(model.sample, variables)
    np.testing.assert_allclose(run(guided(model).sample, {"model": variables}), unguided, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decoder", "unclip_prior"])
def test_eight_devices_train_as_one(name):
    config, parts = MODELS[name]()
    model, (_, _, variables) = models.build(config, SPEC, **parts), built(name)
    initial = {group: tree for group, tree in variables.items() if group != "frozen"}
    model = tiny.with_init(model, initial)
    result = []
    for options in ({"mode": "jit", "num_devices": 1}, {"mode": "pmap", "num_devices": 8}):
        devices = Devices.create(**options)
        step, state = compile_step(config, model, make_optimizers(config, model), devices, examples=64)
        frozen, rows = devices.replicate(model.frozen), []
        for seed in range(3):
            state, metrics = step(state, devices.put_batch(tiny.batch(16, seed)), frozen)
            rows.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        result.append(np.array(rows))
    one, eight = result
    np.testing.assert_allclose(eight[:, 0], one[:, 0], rtol=1e-5)
    np.testing.assert_allclose(eight[:, 1], one[:, 1], rtol=1e-3)


def upsampler(last_step=None, **changes):
    """Returns the stage of an upsampler with random parameters."""
    config = conditioned.config("low_res_image", **changes)
    model, variables = conditioned.with_random_params(models.build(config, SPEC, last_step=last_step))
    return TrainedStage(model, variables)


@pytest.mark.slow
def test_the_last_step_is_that_of_another_model():
    """Two steps of DDIM by hand: x_s = alpha_s x_0 + sigma_s eps, which is x_0 at the end."""
    last = upsampler(diffusion__parameterization="x0")
    model, variables, _ = upsampler(last)
    conditions = {"label": np.zeros(6, np.int32), "low_res_image": jnp.full((6, 4, 4, 1), 0.3)}
    x = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)

    @jax.jit
    def run(x):
        settings = model.make_settings({"name": "ddim", "threshold": "none"}, steps=2)
        sampled = model.sample(variables, keys(), {**conditions, "latent": x}, settings)
        levels = [model.noise_schedule(t) for t in settings.times]
        bound = [
            stage.model.bind(stage.variables, conditions, keys()) for stage in (TrainedStage(model, variables), last)
        ]
        x_0 = bound[0].denoiser(x, levels[0]).x0
        eps = (x - levels[0].alpha * x_0) / levels[0].sigma
        middle = levels[1].alpha * x_0 + levels[1].sigma * eps
        return sampled, *(one.denoiser(middle, levels[1]).x0 for one in bound)

    sampled, first, second = run(x)
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_allclose(sampled, second, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion__schedule": "linear"}, "has another noise schedule"),
        ({"diffusion__downsample": 2, "model": DIT | {"patch": 2}}, "has another size and channels of x_t"),
        ({"conditions__low_res_image__factor": 4}, "has another low-resolution image"),
        ({"diffusion__variance": "learned_range", "diffusion__loss": "hybrid"}, "has another variance"),
    ],
)
def test_another_model_that_cannot_take_the_last_step_raises(changes, message):
    config = conditioned.config("low_res_image", **changes)
    last = models.build(config, SPEC)
    stage = TrainedStage(last, last.variable_shapes)
    assert_raises(f"last_step: {message}", conditioned.config("low_res_image"), last_step=stage)


def unet(**fields):
    plain = {"channels": 8, "norm_groups": 4, "norm_min_channels": 0, "multipliers": (1, 2), "blocks": 1}
    return {"model": plain | {"attention_resolutions": (), "middle_attention": False} | fields}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (conditioned.config("low_res_image", diffusion__crop=4), "requires a network without attention"),
        (
            conditioned.config("low_res_image", diffusion__crop=4, **unet(middle_attention=True)),
            "middle_attention=False",
        ),
        (
            conditioned.config("low_res_image", diffusion__crop=4, **unet(attention_resolutions=(4,))),
            "without attention",
        ),
        (conditioned.config("low_res_image", diffusion__crop=9, **unet()), "diffusion.crop=9: must be at most 8"),
        (conditioned.config("low_res_image", diffusion__crop=-1, **unet()), "diffusion.crop=-1"),
        (conditioned.config("low_res_image", diffusion__crop=5, **unet()), "diffusion.crop=5: must be a multiple of 2"),
        (conditioned.config("caption", diffusion__downsample=3), "diffusion.downsample=3: must divide"),
        (
            conditioned.config("caption", diffusion__downsample=2, model=DIT | {"patch": 8}),
            "model.patch=8: must divide the 4x4 of x_t",
        ),
        (conditioned.latent("caption"), "requires a trained autoencoder; set --config.codec=WORKDIR"),
        (conditioned.prior(), "requires a trained CLIP; set --config.clip=WORKDIR"),
    ],
)
def test_invalid_configs_raise(config, message):
    assert_raises(message, config)


def assert_raises(message, config, **parts):
    with pytest.raises(UserError, match=message) as caught:
        models.build(config, SPEC, **parts)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"conditions": {"caption": conditioned.CONDITIONS["caption"]}, "text": conditioned.TEXT},
        {"conditions": {name: conditioned.CONDITIONS[name] for name in ("clip_text", "image_embedding")}},
        {"diffusion__class_conditional": True, "diffusion__label_dropout": 0.1},
    ],
)
def test_other_conditions_of_the_prior_raise(changes):
    assert_raises("supports clip_text only", conditioned.prior(**changes), clip=clip())
