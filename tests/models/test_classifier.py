"""The classifier of noised images, and guidance by it and by a weaker model."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.noise import Noise
from diffjax.errors import UserError
from diffjax.models.diffusion.bound_model import Guides
from diffjax.models.diffusion.guided import guided
from diffjax.typing import ImageSpec
from tests import conditioned, tiny

SPEC = ImageSpec(8, 1, 10)
BATCH = tiny.batch()
KEYS = jax.random.split(jax.random.key(2), 6)


def config(**changes):
    return tiny.config("classifier_digits", **changes)


@pytest.fixture(scope="module")
def classifier():
    return conditioned.with_random_params(models.build(config(diffusion__time_sampling="uniform"), SPEC))


@pytest.fixture(scope="module")
def digits():
    """Returns a diffusion model conditioned on labels, and random variables."""
    return conditioned.built("label")


def noise(t, alpha, sigma):
    return Noise(*map(jnp.asarray, (t, alpha, sigma)))


@pytest.mark.slow
def test_the_loss_is_the_cross_entropy_of_the_logits(classifier):
    """With negligible noise, the loss follows from the logits of the images."""
    _, variables = classifier
    changes = {"diffusion__timesteps": 1, "diffusion__schedule": "edm(sigma_max=1e-6)"}
    model = models.build(config(diffusion__time_sampling="uniform", **changes), SPEC)
    x = np.float32(BATCH["image"] / 127.5 - 1)

    @jax.jit
    def run():
        loss, aux = model.losses["model"](variables, BATCH, KEYS, tiny.moment())
        return loss, aux.metrics["accuracy"], model.classify(variables, x, noise(1.0, 1.0, 0.0))

    loss, accuracy, logits = run()
    logits, label = np.asarray(logits), BATCH["label"]
    assert loss.shape == accuracy.shape == (6,)
    np.testing.assert_allclose(loss, np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), label], rtol=1e-4)
    np.testing.assert_array_equal(accuracy, logits.argmax(-1) == label)


def test_the_time_input_is_rescaled(classifier):
    """Timestep t of T = 20 with `rescale_timesteps` is timestep 1 + 50 (t - 1) without."""
    model, variables = classifier
    rescaled = dataclasses.replace(model, time_scale=50.0)
    built = models.build(config(diffusion__timesteps=20, diffusion__rescale_timesteps=True), SPEC)
    assert built.time_scale == 50.0
    x = np.random.default_rng(3).normal(size=(2, 8, 8, 1)).astype(np.float32)
    cases = [(model, 301.0), (model, 7.0), (rescaled, 7.0)]
    classify = jax.jit(lambda x: [m.classify(variables, x, noise(t, 0.8, 0.6)) for m, t in cases])
    expected, different, logits = classify(x)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(different - expected).max() > 0.01


def test_training_updates_the_distribution_of_timesteps():
    model = models.build(config(diffusion__time_sampling="importance(horizon=5)"), SPEC)
    variables = conditioned.with_random_params(model)[1]
    aux = jax.jit(lambda: model.losses["model"](variables, BATCH, KEYS, tiny.moment())[1])()
    assert aux.variables["times"]["counts"].sum() > 0


@pytest.mark.slow
def test_guidance_shifts_eps_by_sigma_times_the_gradient(digits):
    """ADM, algorithm 2, in one DDIM step to x_0, which changes by scale sigma^2 / alpha times the gradient."""
    _, model, variables = digits
    settings = model.make_settings(
        tiny.config().sampler, steps=1, guidance=1.0, threshold="none", classifier_scale=2.0, grid="times(10)"
    )
    keys, conditions = jax.random.split(jax.random.key(0), 2), {"label": jnp.array([3, 3])}

    class TwoClasses:  # log p(3 | x) = log sigmoid(first pixel of x)
        classes = 10

        @staticmethod
        def classify(variables, x, noise):
            return jnp.full((2, 10), -1e9).at[:, 3].set(x[:, 0, 0, 0]).at[:, 4].set(0.0)

    @jax.jit
    def run():
        joined = {"model": variables, "classifier": {}}
        samples = guided(model, classifier=TwoClasses).sample(joined, keys, conditions, settings)
        bound = model.bind(variables, conditions)
        difference = samples - model.sample(variables, keys, conditions, settings)
        return difference, bound.initial_latents(keys, settings), model.process.schedule(10.0)

    difference, x, level = run()
    expected = 2.0 * level.sigma**2 / level.alpha * (1 - 1 / (1 + np.exp(-x[:, 0, 0, 0])))
    np.testing.assert_allclose(difference[:, 0, 0, 0], expected, rtol=1e-3)
    np.testing.assert_allclose(difference[:, 1:], 0, atol=1e-5)


@pytest.mark.slow
def test_autoguidance_by_the_model_itself_has_no_effect(digits):
    _, model, variables = digits
    settings = model.make_settings(tiny.config().sampler, guidance=1.0, weak_scale=3.0)
    keys, conditions = jax.random.split(jax.random.key(0), 2), {"label": jnp.array([3, 4])}
    joined = guided(model, weak=model)
    sample = jax.jit(lambda weak: joined.sample({"model": variables, "weak": weak}, keys, conditions, settings))
    guided_by_itself = sample(variables)
    unguided = jax.jit(model.sample)(variables, keys, conditions, settings)
    np.testing.assert_allclose(guided_by_itself, unguided, atol=1e-4)
    other = jax.tree.map(lambda leaf: leaf * 1.1, variables)
    assert np.abs(sample(other) - guided_by_itself).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({}, ImageSpec(8, 1, 0), "requires labels"),
        ({"model__pool": ""}, SPEC, "model.pool='': must be attention or mean"),
        ({"model__pool": "max"}, SPEC, "choose from attention, mean"),
        ({"diffusion__schedule": "cosin"}, SPEC, "did you mean 'cosine'"),
    ],
)
def test_invalid_configs_raise(changes, spec, message):
    with pytest.raises(UserError, match=message):
        models.build(config(**changes), spec)


def test_every_scale_of_the_settings_has_an_effect(digits):
    _, model, variables = digits
    conditions = {"label": jnp.array([3, 4])}
    keys = jax.random.split(jax.random.key(0), 2)

    @jax.jit
    def sample(settings):
        bound = model.bind(variables, conditions)
        guides = Guides(
            classify=lambda x, noise: x.reshape(2, -1)[:, :10],
            weak=lambda x, noise: bound.denoiser(0.9 * x, noise),
        )
        return bound.sample(keys, settings, conditions, guides)

    base = {"guidance": 2.0, "guidance_rescale": 0.3, "guidance_low": 0.1, "guidance_high": 9.0}
    base |= {"classifier_scale": 1.0, "weak_scale": 1.5, "threshold": "none", "eta": 1.0}
    reference = sample(model.make_settings(tiny.config().sampler, **base))
    changes = {"guidance": 3.0, "guidance_rescale": 0.6, "guidance_low": 2.0, "guidance_high": 0.5}
    for name, value in (changes | {"classifier_scale": 4.0, "weak_scale": 2.5, "temperature": 0.5}).items():
        changed = sample(model.make_settings(tiny.config().sampler, **{**base, name: value}))
        assert np.abs(changed - reference).max() > 1e-5, name
