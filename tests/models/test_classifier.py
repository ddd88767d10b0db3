"""The classifier of noised images, and a diffusion system that it guides."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.noise import Noise
from diffjax.errors import UserError
from diffjax.models.diffusion.guided import guided
from diffjax.models.diffusion.sampling_settings import draw, latents
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)


def batch(size=6):
    image = np.random.default_rng(0).integers(0, 256, (size, 8, 8, 1), np.uint8)
    return {"image": image, "label": np.arange(size, dtype=np.int32) % 10, "index": np.arange(size, dtype=np.int32)}


def built(base, **changes):
    system = models.build(tiny.config(base, **changes), SPEC)
    variables = jax.jit(system.objective.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return system, jax.tree.unflatten(
        tree, [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


def test_its_loss_is_the_cross_entropy_of_its_logits():
    system, variables = built("classifier_digits", diffusion__times="uniform")
    original = system.objective.losses["model"]
    keys = jax.random.split(jax.random.key(2), 6)
    loss, aux = jax.jit(lambda keys: original(variables, batch(), keys, tiny.moment()))(keys)
    assert loss.shape == aux.metrics["accuracy"].shape == (6,)
    # At no noise to speak of the loss can be had from the image itself.
    calm = models.build(
        tiny.config("classifier_digits", diffusion__timesteps=1, diffusion__schedule="edm(sigma_max=1e-6)"), SPEC
    )
    loss, aux = calm.objective.losses["model"](variables, batch(), keys, tiny.moment())
    x = batch()["image"] / 127.5 - 1
    logits = np.asarray(
        calm.classify(variables, jnp.asarray(x, jnp.float32), Noise(*map(jnp.asarray, (1.0, 1.0, 0.0))))
    )
    label = batch()["label"]
    expected = np.log(np.exp(logits).sum(-1)) - logits[np.arange(6), label]
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_array_equal(aux.metrics["accuracy"], logits.argmax(-1) == label)


def test_its_time_is_rescaled_as_the_models():
    """Level t of T = 20 with `rescale_timesteps` is what level 1 + 50 (t - 1) is without."""
    system, variables = built("classifier_digits", diffusion__timesteps=20)
    rescaled = models.build(
        tiny.config("classifier_digits", diffusion__timesteps=20, diffusion__rescale_timesteps=True), SPEC
    )
    x = jax.random.normal(jax.random.key(3), (2, 8, 8, 1))
    one, other = (
        np.asarray(made.classify(variables, x, Noise(*map(jnp.asarray, (t, 0.8, 0.6)))))
        for made, t in ((rescaled, 7.0), (system, 301.0))
    )
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    unscaled = np.asarray(system.classify(variables, x, Noise(*map(jnp.asarray, (7.0, 0.8, 0.6)))))
    assert np.abs(unscaled - one).max() > 0.01


def test_it_learns_which_times_are_hard():
    system, variables = built("classifier_digits", diffusion__times="importance(horizon=5)")
    _, aux = system.objective.losses["model"](variables, batch(), jax.random.split(jax.random.key(2), 6), tiny.moment())
    assert aux.variables["times"]["draws"].sum() > 0


def test_a_classifier_shifts_eps_by_sigma_times_its_gradient():
    """ADM's algorithm 2, in one step of DDIM to the clean image: x_0 rises by scale sigma^2 / alpha times gradient."""
    system, variables = built("digits")
    plan = system.plan(
        tiny.config().sampler, steps=1, guidance=1.0, threshold="none", classifier_scale=2.0, grid="times(10)"
    )
    keys, condition = jax.random.split(jax.random.key(0), 2), {"label": jnp.array([3, 3])}

    class TwoClasses:  # log p(3 | x) = log sigmoid(x's first pixel)
        classes = 10

        @staticmethod
        def classify(variables, x, noise):
            return jnp.full((2, 10), -1e9).at[:, 3].set(x[:, 0, 0, 0]).at[:, 4].set(0.0)

    joined = guided(system, classifier=TwoClasses)
    moved = joined.sample({"model": variables, "classifier": {}}, keys, condition, plan)
    plain = system.sample(variables, keys, condition, plan)
    model = system.model(variables, condition)
    x = latents(model, keys, plan)[:, 0, 0, 0]
    noise = model.process.schedule(10.0)
    rise = 2.0 * noise.sigma**2 / noise.alpha * (1 - 1 / (1 + np.exp(-x)))
    np.testing.assert_allclose((moved - plain)[:, 0, 0, 0], rise, rtol=1e-3)
    np.testing.assert_allclose((moved - plain)[:, 1:], 0, atol=1e-5)


@pytest.mark.slow
def test_autoguidance_by_itself_changes_nothing():
    system, variables = built("digits", sampler__guidance=1.0)
    plan = system.plan(tiny.config().sampler, guidance=1.0, weak_scale=3.0)
    keys, condition = jax.random.split(jax.random.key(0), 2), {"label": jnp.array([3, 4])}
    joined = guided(system, weak=system)
    both = joined.sample({"model": variables, "weak": variables}, keys, condition, plan)
    np.testing.assert_allclose(both, system.sample(variables, keys, condition, plan), atol=1e-4)
    _, other = built("digits")
    moved = jax.tree.map(lambda leaf: leaf * 1.1, other)
    assert np.abs(joined.sample({"model": variables, "weak": moved}, keys, condition, plan) - both).max() > 1e-3


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({}, ImageSpec(8, 1, 0), "needs labels"),
        ({"model__pool": ""}, SPEC, "needs model.pool"),
        ({"model__pool": "max"}, SPEC, "choose from attention, mean"),
        ({"diffusion__schedule": "cosin"}, SPEC, "did you mean 'cosine'"),
    ],
)
def test_what_does_not_fit_is_refused(changes, spec, message):
    with pytest.raises(UserError, match=message):
        models.build(tiny.config("classifier_digits", **changes), spec)


def test_the_plan_is_read_whole():
    """Every scale of a plan reaches the sample: none is a setting that does nothing."""
    system, variables = built("digits")
    model = system.model(variables, {"label": jnp.array([3, 4])})
    keys = jax.random.split(jax.random.key(0), 2)
    weak = model._replace(denoiser=lambda x, noise: model.denoiser(0.9 * x, noise)).denoiser

    def classify(x, noise):
        return x.reshape(2, -1)[:, :10]

    @jax.jit
    def run(plan):
        return draw(model, keys, plan, {"label": jnp.array([3, 4])}, classify=classify, weak=weak)

    base = {"guidance": 2.0, "guidance_rescale": 0.3, "guidance_low": 0.1, "guidance_high": 9.0}
    base |= {"classifier_scale": 1.0, "weak_scale": 1.5, "threshold": "none"}
    plain = run(system.plan(tiny.config().sampler, **base))
    changes = {"guidance": 3.0, "guidance_rescale": 0.6, "guidance_low": 2.0, "guidance_high": 0.5}
    for name, value in (changes | {"classifier_scale": 4.0, "weak_scale": 2.5}).items():
        changed = run(system.plan(tiny.config().sampler, **{**base, name: value}))
        assert np.abs(changed - plain).max() > 1e-5, name
