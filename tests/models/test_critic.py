"""A discriminator's loss: closed forms of a linear critic, and its optimum where every picture has its own logit."""

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from ml_collections import ConfigDict

from diffjax.errors import UserError
from diffjax.models.gan.discriminator_loss import Critic, started
from diffjax.nn.layers import Conv, Dense
from tests import tiny

REAL, FAKE = jax.random.normal(jax.random.key(0), (2, 5, 2, 2, 3))
W = np.random.default_rng(0).normal(size=(12, 1)).astype(np.float32)
LINEAR = {"Dense_0": {"kernel": jnp.asarray(W)}}


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Dense(1, bias=False, name="Dense_0")(x.reshape(len(x), -1))[:, 0]


class Patches(nn.Module):
    """A logit a position: w1 x + w2 x^2, summed over channels."""

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


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_the_papers(loss):
    critic = Critic(Linear(), loss, spectral_norm=False, penalty=0.0)
    value, metrics, memory = critic.train_loss(LINEAR, {}, (REAL,), (FAKE,))
    np.testing.assert_allclose(value, LOSSES[loss](linear(REAL), linear(FAKE)), rtol=1e-5)
    np.testing.assert_allclose(metrics["real"], linear(REAL), rtol=1e-5)
    np.testing.assert_allclose(metrics["fake"], linear(FAKE), rtol=1e-5)
    assert memory == {}
    fooled = critic.generator_loss(LINEAR, {}, FAKE)
    expected = -linear(FAKE) if loss == "hinge" else softplus(-linear(FAKE))
    np.testing.assert_allclose(fooled, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_r1_is_the_gradients_square_at_real_pictures(loss):
    plain, penalised = (Critic(Patches(), loss, spectral_norm=False, penalty=gamma) for gamma in (0.0, 3.0))
    first, second = np.random.default_rng(1).normal(size=(2, 3, 1)).astype(np.float32)
    params = {"first": {"kernel": jnp.asarray(first)}, "second": {"kernel": jnp.asarray(second)}}
    without, _, _ = plain.train_loss(params, {}, (REAL,), (FAKE,))
    value, metrics, _ = penalised.train_loss(params, {}, (REAL,), (FAKE,))
    gradient = (first[:, 0] + 2 * second[:, 0] * np.asarray(REAL)) / 4  # of the mean of four patches
    squares = (gradient.reshape(5, -1) ** 2).sum(-1)
    np.testing.assert_allclose(metrics["penalty"], squares, rtol=1e-4)
    np.testing.assert_allclose(value - without, 1.5 * squares, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_gradient_goes_to_the_generator_but_by_its_own_loss(loss):
    critic = Critic(Linear(), loss, spectral_norm=False, penalty=1.0)
    through = jax.grad(lambda fake: critic.train_loss(LINEAR, {}, (REAL,), (fake,))[0].sum())(FAKE)
    assert not np.any(through)
    own = jax.grad(lambda fake: critic.generator_loss(LINEAR, {}, fake).sum())(FAKE)
    slope = np.ones(5) if loss == "hinge" else 1 / (1 + np.exp(linear(FAKE)))  # the logistic one does not saturate
    np.testing.assert_allclose(own.reshape(5, -1), -slope[:, None] * W[:, 0][None], rtol=1e-4)


def test_a_normalised_critic_has_norm_one_and_remembers_its_vectors():
    linear_critic = Critic(Linear(), "hinge", spectral_norm=True, penalty=2.0)
    _, memory = linear_critic.init(jax.random.key(0), REAL)
    _, metrics, _ = linear_critic.train_loss(LINEAR, memory, (REAL,), (FAKE,))
    np.testing.assert_allclose(metrics["real"], linear(REAL, W / np.linalg.norm(W)), rtol=1e-5)
    np.testing.assert_allclose(metrics["penalty"], 1.0, rtol=1e-5)  # of the normalised critic
    np.testing.assert_allclose(linear_critic.judge(LINEAR, memory, REAL), metrics["real"], rtol=1e-5)

    wide = Critic(Conv(4), "hinge", spectral_norm=True, penalty=0.0)
    params, memory = wide.init(jax.random.key(0), REAL)
    step = jax.jit(lambda memory: wide.train_loss(params, memory, (REAL,), (FAKE,)))
    for _ in range(200):
        _, _, memory = step(memory)
    u, _, _ = np.linalg.svd(np.asarray(params["kernel"]).reshape(-1, 4).T)
    assert abs(abs(u[:, 0] @ np.asarray(memory["kernel"])) - 1) < 1e-4
    _, _, again = step(memory)
    np.testing.assert_allclose(again["kernel"], memory["kernel"], atol=1e-5)


class Table(nn.Module):
    """A logit of its own for each of four pictures."""

    @nn.compact
    def __call__(self, x):
        return self.param("logits", nn.initializers.zeros, (4,), jnp.float32)[x[:, 0].astype(jnp.int32)]


def test_the_optimum_tells_the_densities():
    """log p / q (Goodfellow et al. 2014, prop. 1); for the hinge loss the sign of p - q (Lim & Ye 2017)."""
    p, q = np.array([4, 3, 2, 1]) / 10, np.array([1, 2, 3, 4]) / 10
    real, fake = (jnp.repeat(jnp.arange(4.0), np.rint(10 * d).astype(int), total_repeat_length=10) for d in (p, q))

    def loss(critic, logits):
        return critic.train_loss({"logits": logits}, {}, (real[:, None],), (fake[:, None],))[0].mean()

    logistic = Critic(Table(), "logistic", spectral_norm=False, penalty=0.0)
    best = jnp.asarray(np.log(p / q), jnp.float32)
    np.testing.assert_allclose(jax.grad(lambda logits: loss(logistic, logits))(best), 0.0, atol=1e-6)
    divergence = (p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q))).sum() / 2  # Jensen and Shannon's
    np.testing.assert_allclose(loss(logistic, best), 2 * np.log(2) - 2 * divergence, rtol=1e-5)

    hinge = Critic(Table(), "hinge", spectral_norm=False, penalty=0.0)
    least = loss(hinge, jnp.asarray(np.sign(p - q), jnp.float32))
    np.testing.assert_allclose(least, 1 - np.abs(p - q).sum() / 2, rtol=1e-5)  # 1 - total variation
    for other in np.random.default_rng(0).normal(size=(20, 4)):
        assert loss(hinge, jnp.asarray(other, jnp.float32)) >= least - 1e-6


def test_it_is_let_in_at_its_start():
    assert [float(started(tiny.moment(step), 2)) for step in (0, 1, 2, 3)] == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("loss", "penalty", "message"),
    [("hing", 0.0, "did you mean 'hinge'"), ("hinge", -1.0, "penalty=-1: a finite number from 0")],
)
def test_what_does_not_exist_is_refused(loss, penalty, message):
    with pytest.raises(UserError, match=message):
        Critic.from_config(Linear(), ConfigDict({"loss": loss, "spectral_norm": False, "penalty": penalty}))
