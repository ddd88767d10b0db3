"""Diffusion models trained with coupled noise, and on pairs of noise and samples."""

import functools

import jax
import numpy as np
import pytest
import scipy.optimize
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.random import normal_each, split_each
from diffjax.errors import UserError
from diffjax.models.images import to_unit_range
from tests import conditioned, tiny
from tests.conditioned import SPEC

FLOW = {
    "diffusion__schedule": "rectified_flow",
    "diffusion__continuous": True,
    "diffusion__parameterization": "flow",
    "diffusion__label_dropout": 0.0,
    "sampler__guidance": 1.0,
    "model": tiny.DIT,
}


@functools.cache
def loss(**changes):
    """Returns the compiled loss of a model whose network returns zeros: |eps - x_0|^2 at every timestep, as a mean."""
    model = models.build(tiny.config(**FLOW, **changes), SPEC)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.variable_shapes)
    return jax.jit(lambda batch, keys: model.loss(variables, batch, keys, tiny.moment())[0])


@pytest.mark.slow
def test_minibatches_are_coupled_within_classes():
    batch, keys = {**tiny.batch(16), "label": np.arange(16) % 2}, jax.random.split(jax.random.key(0), 16)
    _, eps_keys = split_each(split_each(keys, 4)[2])
    eps = np.asarray(normal_each(eps_keys, (8, 8, 1)))
    x0 = np.asarray(to_unit_range(jnp.asarray(batch["image"])))
    squares = np.mean((x0[:, None] - eps[None]) ** 2, axis=(2, 3, 4))
    np.testing.assert_allclose(loss()(batch, keys), np.diag(squares), rtol=1e-5)
    expected = np.empty(16)
    for k in range(2):
        mine = np.flatnonzero(batch["label"] == k)
        rows, columns = scipy.optimize.linear_sum_assignment(squares[np.ix_(mine, mine)])
        expected[mine[rows]] = squares[mine[rows], mine[columns]]
    coupled = loss(diffusion__coupling="minibatch")(batch, keys)
    np.testing.assert_allclose(coupled, expected, rtol=1e-5)
    assert np.mean(coupled) < np.mean(np.diag(squares))


def test_pairs_have_noise_of_their_own():
    rng = np.random.default_rng(0)
    x0, noise = (rng.normal(size=(6, 8, 8, 1)).astype(np.float32) for _ in range(2))
    batch = {"x0": x0, "noise": noise, "label": np.arange(6), "index": np.arange(6)}
    for seed in range(2):
        keys = jax.random.split(jax.random.key(seed), 6)
        np.testing.assert_allclose(loss()(batch, keys), np.mean((noise - x0) ** 2, axis=(1, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion__loss": "vlb", "diffusion__continuous": False}, "has no variational bound, which loss=vlb"),
        ({"conditions": {"number": {}}}, "the noise would depend on conditions.number"),
        ({"diffusion__coupling": "optimal"}, "coupling"),
        ({"diffusion__coupling": "reflow"}, "coupling=reflow samples a run; set --config.teacher=WORKDIR"),
        ({"diffusion__coupling": "reflow(steps=0)"}, "coupling=reflow: "),
        ({"diffusion__coupling": "reflow(steps=1.5)"}, "must be a whole number, not 1.5"),
        ({"diffusion__coupling": "reflow", "diffusion__loss": "shortcut"}, "trains a flow on samples of the teacher"),
    ],
)
def test_unsupported_couplings_raise(changes, message):
    with pytest.raises(UserError, match=message):
        models.build(tiny.config(**{**FLOW, "diffusion__coupling": "minibatch", **changes}), SPEC)


@functools.cache
def teacher():
    return models.base.TrainedStage(*conditioned.with_random_params(models.build(tiny.config(**FLOW), SPEC)))


def test_a_teacher_of_another_coupling_raises():
    student = {"diffusion__loss": "consistency", "diffusion__next_times": "grid", "diffusion__weighting": "x0"}
    config = tiny.config(**FLOW, **student, diffusion__coupling="minibatch", teacher="RUN")
    with pytest.raises(UserError, match="teacher: has another coupling"):
        models.build(config, SPEC, teacher=teacher())


def test_reflow_trains_on_samples_of_the_teacher():
    """The loss is that of the pairs which the sampler of the teacher makes of the same noise."""
    model = models.build(
        tiny.config(**FLOW, diffusion__coupling="reflow(steps=3)", teacher="RUN"),
        SPEC,
        teacher=teacher(),
    )
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), model.variable_shapes)
    variables = {**params, "frozen": {"teacher": teacher().variables}}
    batch, keys = tiny.batch(), conditioned.keys()
    _, eps_keys = split_each(split_each(keys, 4)[2])

    @jax.jit
    def expected():
        noise = normal_each(eps_keys, (8, 8, 1))
        sampler = {"name": "ddim", "steps": 3, "threshold": "none", "guidance": 1.0}
        settings = teacher().model.make_settings(sampler)
        x0 = teacher().model.sample(
            teacher().variables, keys, {"label": jnp.asarray(batch["label"]), "latent": noise}, settings
        )
        return jnp.mean((noise - x0) ** 2, axis=(1, 2, 3))

    compute = jax.jit(lambda variables: model.loss(variables, batch, keys, tiny.moment())[0])
    np.testing.assert_allclose(compute(variables), expected(), rtol=1e-4)
