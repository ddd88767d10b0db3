"""DALL-E's discrete VAE: relaxed and hard codes, and annealing."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.models.autoencoders.dvae import Annealing
from diffjax.models.images import to_unit_range
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
BATCH = tiny.batch()
X = to_unit_range(BATCH["image"])
SCHEDULES = {
    "codebook__temperature": 2.0,
    "codebook__temperature_end": 1e-4,
    "codebook__temperature_steps": 40,
    "loss__kl_weight_start": 0.5,
    "loss__kl_weight": 3.0,
    "loss__kl_steps": 20,
}


@pytest.fixture(scope="module")
def tiny_dvae():
    """A model whose temperature ends near zero; its variables; and its loss with the gradient, by step."""
    model = models.build(tiny.config("dvae", loss__likelihood="l1", **SCHEDULES), SPEC)
    variables = {**tiny.randomised(model.init), "frozen": {}}

    def run(params, step):
        whole, keys = {**variables, "params": params}, jax.random.split(jax.random.key(3), 6)
        loss, aux = model.losses["model"](whole, BATCH, keys, tiny.moment()._replace(step=step))
        return loss.mean(), (loss, aux)

    graded = jax.jit(jax.grad(run, has_aux=True))
    return model, variables, lambda step, params=variables["params"]: graded(params, jnp.asarray(step))


def with_last_layer(variables, change):
    """Parameters with another last layer of the encoder."""
    model = variables["params"]["model"]
    encoder = {**model["encoder"], "conv_out": change(model["encoder"]["conv_out"])}
    return {"model": {**model, "encoder": encoder}}


def confident(head):
    """Logits so large that noise has no effect."""
    return jax.tree.map(lambda leaf: 1e5 * leaf, head)


@pytest.mark.parametrize("start,end", [(1.0, 0.0625), (0.0, 6.6)])
def test_annealing_has_its_start_end_and_shape(start, end):
    steps = np.array([0, 50, 100, 150, 200, 500])
    result = jax.vmap(lambda step: Annealing(start, end, 200)(step))(jnp.asarray(steps))
    np.testing.assert_allclose(
        result[jnp.array([0, 2, 4, 5])], [start, (start + end) / 2, end, end], rtol=1e-5, atol=1e-6
    )
    quarter = start + (end - start) * (1 - np.sqrt(0.5)) / 2
    np.testing.assert_allclose(result[1], quarter, rtol=1e-5)
    np.testing.assert_allclose(result[3], start + end - quarter, rtol=1e-5)
    np.testing.assert_allclose(Annealing(start, end, 0)(jnp.asarray(0)), end, rtol=1e-6)


@pytest.mark.parametrize(
    "step,weight,temperature", [(0, 0.5, 2.0), (10, 1.75, 1.7071), (20, 3.0, 1.00005), (40, 3.0, 1e-4)]
)
def test_the_kl_is_weighted_by_its_schedule(tiny_dvae, step, weight, temperature):
    _, (loss, aux) = tiny_dvae[2](step)
    np.testing.assert_allclose(aux.metrics["kl_weight"], weight, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["temperature"], temperature, rtol=1e-3)
    nats = np.log(2.0) * aux.metrics["kl"]
    assert nats.min() > 1e-3
    np.testing.assert_allclose(loss, aux.metrics["reconstruction"] + weight * nats, rtol=1e-4)


def test_the_kl_is_that_of_the_logits(tiny_dvae):
    """log K minus the entropy, for an encoder with constant logits."""
    _, variables, graded = tiny_dvae
    logits = np.linspace(-2, 2, 8).astype(np.float32)
    params = with_last_layer(variables, lambda head: {"kernel": 0 * head["kernel"], "bias": jnp.asarray(logits)})
    p = np.exp(logits) / np.exp(logits).sum()
    nats = 16 * (np.log(8) + (p * np.log(p)).sum())  # 16 positions
    np.testing.assert_allclose(graded(0, params)[1][1].metrics["kl"], nats / 64 / np.log(2), rtol=1e-4)


def test_at_a_low_temperature_the_relaxed_code_is_the_hard_one(tiny_dvae):
    model, variables, graded = tiny_dvae
    params = with_last_layer(variables, confident)

    @jax.jit
    def hard(params):
        codec = model.codec({**variables, "params": params})
        codes = codec.to_codes(X)
        return codes, codec.from_codes(codes), codec.decode(codec.encode(X))

    codes, of_codes, decoded = hard(params)
    codec = model.codec(variables)
    assert codec.grids == ((4, 4, 1),)
    assert codec.vocabulary == 8
    assert codec.shape == (4, 4, 4)
    assert codes[0].shape == (6, 4, 4, 1)
    assert len(np.unique(codes[0])) > 2
    np.testing.assert_allclose(decoded, of_codes, rtol=1e-4, atol=1e-5)
    error = np.abs(X - of_codes).mean(axis=(1, 2, 3))
    _, (_, aux) = graded(40, params)
    np.testing.assert_allclose(aux.metrics["reconstruction"], error, rtol=1e-4)
    _, (_, warm) = graded(0, params)
    assert np.abs(warm.metrics["reconstruction"] - error).max() < 1e-4  # independent of the temperature
    _, (_, soft) = graded(0)
    of_argmax = hard(variables["params"])[1]
    assert np.abs(soft.metrics["reconstruction"] - np.abs(X - of_argmax).mean(axis=(1, 2, 3))).max() > 1e-3
    share = np.bincount(np.asarray(codes[0]).ravel(), minlength=8) / 96
    np.testing.assert_allclose(model.summarize(aux.variables)["codes_used"], (share > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(aux.variables["codebook"]["usage"][0], share, rtol=1e-5)  # argmax, not the noisy sample


def test_gradients_reach_every_parameter(tiny_dvae):
    gradient, _ = tiny_dvae[2](0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_latents_have_unit_variance(tiny_dvae):
    """Latents of training, which equal those of the codec at a low temperature."""
    model, variables, graded = tiny_dvae
    params = with_last_layer(variables, confident)
    after = {**variables, "params": params, "latents": {"mean": jnp.zeros(()), "square": jnp.ones(())}}
    seen = graded(40, params)[1][1].variables["latents"]
    weight = 40 / 50  # decay: min(0.99, step / (10 + step))
    fresh = {"mean": seen["mean"] / (1 - weight), "square": (seen["square"] - weight) / (1 - weight)}
    z = jax.jit(lambda latents: model.codec({**after, "latents": latents}).encode(X))(fresh)
    np.testing.assert_allclose(z.std(), 1.0, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebook__size": 1}, "codebook.size=1: must be a whole number from 2"),
        ({"codebook__temperature_end": 0.0}, "codebook.temperature_end=0: must be a finite number above 0"),
        ({"codebook__temperature": -1.0}, "codebook.temperature=-1: must be a finite number above 0"),
        ({"model__channels": 6}, "a multiple of 4"),
        ({"model__groups": 5}, "data.image_size=8: is not a multiple of 16"),
        ({"model__grops": 2}, "did you mean 'groups'"),
    ],
)
def test_invalid_configs_raise(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config("dvae", **changes), SPEC)
    assert "\n" not in str(caught.value)
