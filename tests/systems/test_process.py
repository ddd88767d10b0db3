"""The diffusion process of a config: its loss, its plans and its errors."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.systems.process import Process
from tests import tiny


def process(**changes) -> Process:
    return Process.from_config(tiny.config(**changes).diffusion)


def test_the_loss_is_ddpms():
    """Algorithm 1 of Ho et al. 2020 in NumPy: a network that is off by a constant has its square as loss."""
    made = process(diffusion__schedule="linear", diffusion__parameterization="eps", diffusion__timesteps=1000)
    x0 = np.random.default_rng(0).uniform(-1, 1, (64, 4, 4, 1)).astype(np.float32)
    bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    seen = []

    def network(x, t):
        index = np.asarray(t).astype(int)
        seen.append(index)
        alpha, sigma = (f(bar[index])[:, None, None, None] for f in (np.sqrt, lambda b: np.sqrt(1 - b)))
        return jnp.asarray((x - alpha * x0) / sigma + 0.3)

    loss = made.loss(network, x0, jax.random.split(jax.random.key(0), 64))
    np.testing.assert_allclose(loss, 0.09 * np.ones(64), atol=2e-3)
    assert seen[0].min() >= 0
    assert seen[0].max() <= 999
    assert len(np.unique(seen[0])) > 40


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("parameterization", ["eps", "x0", "v"])
def test_the_best_network_has_the_smallest_loss(parameterization, continuous):
    """For x_0 = 0 every target is known from x_t alone, so the loss of the right network is zero."""
    made = process(
        diffusion__parameterization=parameterization, diffusion__continuous=continuous, diffusion__timesteps=100
    )

    def network(x, t):
        noise = made.schedule(t if continuous else t + 1)
        c = made.parameterization(noise)
        return -x * jax.vmap(lambda c: c.skip / c.out)(c)[:, None]

    keys = jax.random.split(jax.random.key(1), 50)
    np.testing.assert_allclose(made.loss(network, jnp.zeros((50, 3)), keys), np.zeros(50), atol=1e-6)
    worse = made.loss(lambda x, t: network(x, t) + 0.5, jnp.zeros((50, 3)), keys)
    np.testing.assert_allclose(worse, 0.25 * np.ones(50), rtol=1e-4)


def test_times_are_uniform():
    made = process(diffusion__timesteps=4)
    seen = []
    made.loss(lambda x, t: seen.append(t) or x, jnp.zeros((4000, 1)), jax.random.split(jax.random.key(0), 4000))
    counts = np.bincount(np.asarray(seen[0]).astype(int), minlength=4)
    np.testing.assert_allclose(counts, 1000 * np.ones(4), atol=5 * np.sqrt(4000 * 0.25 * 0.75))


def test_plans_of_one_sampler_share_their_structure():
    sampler = tiny.config().sampler
    made = process()
    one = made.plan(sampler, guided=True, capacity=20, steps=3, eta=0.0)
    other = made.plan(sampler, guided=True, capacity=20, steps=20, eta=1.0, guidance=3.0, grid="quadratic")
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert [x.shape for x in jax.tree.leaves(one)] == [x.shape for x in jax.tree.leaves(other)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "cosin"}, "unknown diffusion.schedule 'cosin': did you mean 'cosine'"),
        ({"parameterization": "epsilon"}, "unknown diffusion.parameterization 'epsilon': did you mean 'eps'"),
        ({"weighting": "simpel"}, "did you mean 'simple'"),
        ({"variance": "fixedsmall"}, "did you mean 'fixed_small'"),
        ({"times": "uniforn"}, "did you mean 'uniform'"),
        ({"timesteps": 0}, "at least one step"),
        ({"schedule_options": {"beta_max": 0.1}}, "schedule 'cosine' takes no 'beta_max'; it takes offset"),
    ],
)
def test_bad_choices_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        process(**{f"diffusion__{name}": value for name, value in changes.items()})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"steps": 0}, "from 1 to 20"),
        ({"steps": 21}, "this model has 20 timesteps"),
        ({"name": "dim"}, "did you mean 'ddim'"),
        ({"grid": "trialing"}, "did you mean 'trailing'"),
        ({"name": "ancestral", "eta": 1.0}, "sampler 'ancestral' takes no 'eta'"),
        ({"guidance": 2.0}, "leave it at 1"),
    ],
)
def test_bad_plans_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        process().plan(tiny.config(sampler__guidance=1.0).sampler, guided=False, **overrides)
