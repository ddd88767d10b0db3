"""Losses of a discriminator: closed forms of a linear one, and the optimum of one with a free logit per image."""

import functools

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax.errors import UserError
from diffjax.models.gan.discriminator_loss import DiscriminatorLoss, is_active
from diffjax.nn.layers import Conv, Dense
from tests import tiny

REAL, FAKE = np.random.default_rng(0).normal(size=(2, 5, 2, 2, 3)).astype(np.float32)
W = np.random.default_rng(0).normal(size=(12, 1)).astype(np.float32)
LINEAR = {"Dense_0": {"kernel": W}}


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Dense(1, bias=False, name="Dense_0")(x.reshape(len(x), -1))[:, 0]


class Patches(nn.Module):
    """A logit per position: w1 x + w2 x^2, summed over channels."""

    @nn.compact
    def __call__(self, x):
        return Dense(1, bias=False, name="first")(x) + Dense(1, bias=False, name="second")(x**2)


def linear(x, w=W):
    return np.asarray(x).reshape(len(x), -1) @ w[:, 0]


def softplus(x):
    return np.log1p(np.exp(x))


LOSSES = {
    "hinge": lambda real, fake: (np.maximum(1 - real, 0) + np.maximum(1 + fake, 0)) / 2,
    "logistic": lambda real, fake: softplus(-real) + softplus(fake),
}


@functools.cache
def computed():
    """Per loss: the losses and metrics of both networks, and gradients by fake images, in one program."""
    first, second = np.random.default_rng(1).normal(size=(2, 3, 1)).astype(np.float32)
    patches = {"first": {"kernel": first}, "second": {"kernel": second}}

    @jax.jit
    def run(real, fake):
        results = {}
        for loss in LOSSES:
            build = functools.partial(DiscriminatorLoss, loss=loss, spectral_norm=False)
            on_linear, penalized = build(Linear(), r1_gamma=1.0), build(Patches(), r1_gamma=3.0)
            through = jax.grad(lambda fake, d=on_linear: d.train_loss(LINEAR, {}, (real,), (fake,))[0].sum())
            separate = jax.grad(lambda fake, d=on_linear: d.generator_loss(LINEAR, {}, fake).sum())
            results[loss] = {
                "linear": build(Linear(), r1_gamma=0.0).train_loss(LINEAR, {}, (real,), (fake,)),
                "generator": on_linear.generator_loss(LINEAR, {}, fake),
                "patches": build(Patches(), r1_gamma=0.0).train_loss(patches, {}, (real,), (fake,)),
                "penalized": penalized.train_loss(patches, {}, (real,), (fake,)),
                "gradients": (through(fake), separate(fake)),
            }
        return results

    return jax.device_get(run(REAL, FAKE)), first, second


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_match_the_papers(loss):
    results = computed()[0][loss]
    value, metrics, power = results["linear"]
    np.testing.assert_allclose(value, LOSSES[loss](linear(REAL), linear(FAKE)), rtol=1e-5)
    np.testing.assert_allclose(metrics["real"], linear(REAL), rtol=1e-5)
    np.testing.assert_allclose(metrics["fake"], linear(FAKE), rtol=1e-5)
    assert power == {}
    expected = -linear(FAKE) if loss == "hinge" else softplus(-linear(FAKE))
    np.testing.assert_allclose(results["generator"], expected, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_r1_is_the_squared_gradient_at_real_images(loss):
    results, first, second = computed()
    without, (value, metrics, _) = results[loss]["patches"][0], results[loss]["penalized"]
    gradient = (first[:, 0] + 2 * second[:, 0] * REAL) / 4  # of the mean of four patches
    squares = (gradient.reshape(5, -1) ** 2).sum(-1)
    np.testing.assert_allclose(metrics["penalty"], squares, rtol=1e-4)
    np.testing.assert_allclose(value - without, 1.5 * squares, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_generator_loss_has_a_gradient_by_fake_images(loss):
    through, separate = computed()[0][loss]["gradients"]
    assert not np.any(through)
    slope = np.ones(5) if loss == "hinge" else 1 / (1 + np.exp(linear(FAKE)))  # the logistic one does not saturate
    np.testing.assert_allclose(separate.reshape(5, -1), -slope[:, None] * W[:, 0][None], rtol=1e-4)


def test_spectral_normalisation_has_norm_one_and_converges():
    discriminator = DiscriminatorLoss(Linear(), "hinge", spectral_norm=True, r1_gamma=2.0)
    wide = DiscriminatorLoss(Conv(4), "hinge", spectral_norm=True, r1_gamma=0.0)

    @jax.jit
    def run(key):
        _, power = discriminator.init(key, REAL)
        _, metrics, _ = discriminator.train_loss(LINEAR, power, (REAL,), (FAKE,))
        params, before = wide.init(key, REAL)
        step = lambda _, power: wide.train_loss(params, power, (REAL,), (FAKE,))[2]  # noqa: E731
        converged = jax.lax.fori_loop(0, 200, step, before)
        logits = discriminator.logits(LINEAR, power, REAL)
        return metrics, logits, params["kernel"], converged["kernel"], step(0, converged)["kernel"]

    metrics, logits, kernel, converged, next_step = jax.device_get(run(jax.random.key(0)))
    np.testing.assert_allclose(metrics["real"], linear(REAL, W / np.linalg.norm(W)), rtol=1e-5)
    np.testing.assert_allclose(metrics["penalty"], 1.0, rtol=1e-5)  # of the normalised network
    np.testing.assert_allclose(logits, metrics["real"], rtol=1e-5)
    u, _, _ = np.linalg.svd(kernel.reshape(-1, 4).T)
    assert abs(abs(u[:, 0] @ converged) - 1) < 1e-4
    np.testing.assert_allclose(next_step, converged, atol=1e-5)


class Table(nn.Module):
    """A free logit for each of four images."""

    @nn.compact
    def __call__(self, x):
        return self.param("logits", nn.initializers.zeros, (4,), jnp.float32)[x[:, 0].astype(jnp.int32)]


def test_the_optimum_depends_on_the_densities():
    """log p / q (Goodfellow et al. 2014, proposition 1); for the hinge loss sign(p - q) (Lim & Ye 2017)."""
    p, q = np.array([4, 3, 2, 1]) / 10, np.array([1, 2, 3, 4]) / 10
    real, fake = (np.repeat(np.arange(4.0, dtype=np.float32), np.rint(10 * d).astype(int))[:, None] for d in (p, q))

    def loss_of(name):
        discriminator = DiscriminatorLoss(Table(), name, spectral_norm=False, r1_gamma=0.0)
        return lambda logits: discriminator.train_loss({"logits": logits}, {}, (real,), (fake,))[0].mean()

    best = np.log(p / q).astype(np.float32)
    value, gradient = jax.jit(jax.value_and_grad(loss_of("logistic")))(best)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    divergence = (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))).sum() / 2  # Jensen-Shannon
    np.testing.assert_allclose(value, 2 * np.log(2) - 2 * divergence, rtol=1e-5)

    others = np.random.default_rng(0).normal(size=(20, 4))
    logits = np.concatenate([np.sign(p - q)[None], others]).astype(np.float32)
    values = np.asarray(jax.jit(jax.vmap(loss_of("hinge")))(logits))
    np.testing.assert_allclose(values[0], 1 - np.abs(p - q).sum() / 2, rtol=1e-5)  # 1 - total variation
    assert (values >= values[0] - 1e-6).all()


def test_is_active_from_its_start_step():
    assert [float(is_active(tiny.moment(step), 2)) for step in (0, 1, 2, 3)] == [0, 0, 1, 1]


def test_invalid_settings_raise():
    for loss, r1_gamma, message in (
        ("hing", 0.0, "did you mean 'hinge'"),
        ("hinge", -1.0, "r1_gamma=-1: must be a finite"),
    ):
        with pytest.raises(UserError, match=message):
            DiscriminatorLoss.from_config(
                Linear(), ConfigDict({"loss": loss, "spectral_norm": False, "r1_gamma": r1_gamma})
            )
