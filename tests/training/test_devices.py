"""One device or eight, either way of running the step: the same numbers."""

import functools

import chex
import jax
import numpy as np
import pytest

from diffjax import models
from diffjax.errors import UserError
from diffjax.training.compiled_step import compile_step, lower_step, make_optimizers, prepared
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec
from tests import tiny

STEPS = 20
SPEC = ImageSpec(8, 1, 10)
KEY = jax.random.key(0)
WAYS = {
    "jit on 8": {"mode": "jit", "count": 8},
    "pmap on 8": {"mode": "pmap", "count": 8},
    "fsdp 4 x 2": {"mode": "jit", "count": 8, "fsdp": 2},
    "pmap on 2, 2 parts": {"mode": "pmap", "count": 2, "accumulate": 2},
}


@functools.cache
def losses(mode="jit", count=1, fsdp=1, accumulate=1) -> np.ndarray:
    """Of a tiny diffusion model with dropout of labels and activations, [STEPS, 2] with the gradients' norms."""
    config = tiny.config(
        parallel__mode=mode,
        parallel__count=count,
        parallel__fsdp=fsdp,
        train__accumulate=accumulate,
        model__dropout=0.2,
    )
    system = models.build(config, ImageSpec(8, 1, 10))
    devices = Devices.create(**config.parallel)
    step, state = compile_step(config, system, make_optimizers(config, system), devices, examples=64)
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(STEPS):
        batch = {
            "image": rng.integers(0, 256, (16, 8, 8, 1), np.uint8),
            "label": rng.integers(0, 10, 16, np.int32),
            "index": np.arange(16, dtype=np.int32),
        }
        state, metrics = step(state, devices.put_batch(batch), {})
        rows.append([float(metrics["loss"]), float(metrics["grad_norm"])])
    if fsdp > 1:
        spread = [leaf for leaf in jax.tree.leaves(state) if leaf.addressable_shards[0].data.size < leaf.size]
        assert sum(leaf.size for leaf in spread) > 0.9 * sum(leaf.size for leaf in jax.tree.leaves(state))
    return np.array(rows)


_OTHERS_COVER = ("jit on 8", "pmap on 8")  # by shards, and by parts of the batch


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.slow] * (way in _OTHERS_COVER)) for way in sorted(WAYS)]
)
def test_the_same_losses(way):
    np.testing.assert_allclose(losses(**WAYS[way])[:, 0], losses()[:, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(losses(**WAYS[way])[:, 1], losses()[:, 1], rtol=1e-3)


AUTOENCODERS = {
    "codebook with restarts": {"codes__decay": 0.5, "codes__restart_below": 0.6},
    "discriminator": {
        "adversarial": tiny.config("vqgan", adversarial__start=2).adversarial.to_dict(),
        "codes__learned": "gradient",
        "codes__restart_below": 0.6,
        "codes__decay": 0.5,
    },
}


@functools.cache
def autoencoder(name, mode="jit", count=1, accumulate=1):
    """Metrics of each of a few steps, and the variables after them."""
    given = {"parallel__mode": mode, "parallel__count": count, "train__accumulate": accumulate}
    config = tiny.config("vqvae", **given, **AUTOENCODERS[name])
    system, devices = models.build(config, ImageSpec(8, 1, 10)), Devices.create(**config.parallel)
    fresh = tiny.randomised(system.objective.init)
    system = system._replace(objective=system.objective._replace(init=lambda key: fresh))  # compiled at once
    step, state = compile_step(config, system, make_optimizers(config, system), devices, examples=48)
    state = prepared(system, state, tiny.batch(16))
    history = []
    for seed in range(5):
        state, metrics = step(state, devices.put_batch(tiny.batch(16, seed)), {})
        history.append({name: float(value) for name, value in metrics.items()})
    return history, jax.device_get(state.variables)


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("name", sorted(AUTOENCODERS))
def test_the_same_codebooks_and_metrics(name, mode):
    """What a step takes from its batch is of the whole one: running means, restarts, uses, gradients' ratio."""
    (expected, before), (found, after) = autoencoder(name), autoencoder(name, mode, 8)
    prefix = "model/" if name == "discriminator" else ""
    assert {"loss", "codes_used", "perplexity", "commitment"} <= {key.removeprefix(prefix) for key in expected[0]}
    assert sum(step[f"{prefix}restarts"] for step in expected) > 0
    assert name != "discriminator" or expected[-1]["model/adversarial_weight"] > 0
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            np.testing.assert_allclose(other[key], value, rtol=1e-3, atol=1e-5, err_msg=key)
    chex.assert_trees_all_close(after["codes"], before["codes"], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(after["latents"], before["latents"], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(after["params"], before["params"], atol=1e-4)


def test_metrics_of_accumulated_parts_are_those_of_the_whole_batch():
    """A perplexity is not the mean of the parts' perplexities."""
    (expected, _), (found, _) = (
        autoencoder("codebook with restarts"),
        autoencoder("codebook with restarts", accumulate=4),
    )
    assert expected[0]["perplexity"] > 2
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            np.testing.assert_allclose(other[key], value, rtol=1e-3, atol=1e-5, err_msg=key)


def prior_with_codec():
    """A prior over the codes of an untrained autoencoder."""
    codec = models.build(tiny.config("vqvae"), SPEC)
    frozen = {**tiny.randomised(codec.objective.init), "frozen": {}}
    return tiny.config("prior_transformer"), {"codec": (codec, frozen)}


KINDS = {  # config and the parts it stands on; diffusion is above, with dropout
    "codes": lambda: (tiny.config("vqvae", **AUTOENCODERS["codebook with restarts"]), {}),
    "two groups": lambda: (tiny.config("gan"), {}),
    "clip": lambda: (tiny.config("clip_shapes"), {}),
    "autoregressive": prior_with_codec,
}


@functools.cache
def losses_of(kind, mode="jit", count=1, fsdp=1):
    """Losses of each group over STEPS steps."""
    config, parts = KINDS[kind]()
    system, devices = models.build(config, SPEC, **parts), Devices.create(mode=mode, count=count, fsdp=fsdp)
    fresh = {name: tree for name, tree in tiny.randomised(system.objective.init).items() if name != "frozen"}
    system = system._replace(objective=system.objective._replace(init=lambda key: fresh))  # compiled at once
    step, state = compile_step(config, system, make_optimizers(config, system), devices, examples=48)
    if system.objective.prepare:
        state = prepared(system, state, tiny.batch(16))
    frozen, rows = devices.put_everywhere(system.frozen), []
    for seed in range(STEPS):
        state, metrics = step(state, devices.put_batch(tiny.batch(16, seed)), frozen)
        rows.append([float(value) for name, value in metrics.items() if name.split("/")[-1] == "loss"])
    return np.array(rows)


@pytest.mark.parametrize(
    ("kind", "way"), tiny.thinned(sorted(KINDS), ("fsdp 4 x 2", "jit on 8", "pmap on 8"), every=len(KINDS) * 3)
)
def test_every_kind_of_system_has_the_same_losses(kind, way):
    found, expected = losses_of(kind, **WAYS[way]), losses_of(kind)
    assert expected.shape == (STEPS, 2 if kind == "two groups" else 1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_device_holds_its_share_of_the_state():
    """Parameters, optimiser and average over four devices: a quarter each, by the compiled program's own count."""
    config = tiny.config("vae", model__residual_channels=32)
    system = models.build(config, SPEC)
    shapes = jax.eval_shape(lambda: tiny.batch(16))
    held = {}
    for fsdp in (1, 4):
        devices = Devices.create(count=4, fsdp=fsdp)
        held[fsdp] = lower_step(config, system, devices, shapes, 64).compile().memory_analysis()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(system.objective.init, KEY)["params"]))
    batch = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes)) / 4
    four = 4 * 4 * parameters  # parameters, two moments, average
    assert held[1].argument_size_in_bytes == pytest.approx(four + batch, rel=0.01)
    assert held[4].argument_size_in_bytes == pytest.approx(four / 4 + batch, rel=0.1)  # what does not divide is whole
    assert held[4].output_size_in_bytes == pytest.approx(held[1].output_size_in_bytes / 4, rel=0.1)


def test_a_fresh_state_is_the_same_however_it_is_spread():
    """Initial parameters are drawn once, not once a device."""
    drawn = []
    for options in ({"count": 1}, {"count": 8, "fsdp": 4}):
        config = tiny.config(**{f"parallel__{name}": value for name, value in options.items()})
        system, devices = models.build(config, ImageSpec(8, 1, 10)), Devices.create(**config.parallel)
        _, state = compile_step(config, system, make_optimizers(config, system), devices, examples=64)
        drawn.append(jax.device_get(state.variables))
    chex.assert_trees_all_equal(*drawn)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "pnap"}, "did you mean 'pmap'"),
        ({"count": 9}, "this machine has 8"),
        ({"count": 8, "fsdp": 3}, "does not divide the 8 devices"),
        ({"mode": "pmap", "fsdp": 2}, "parallel.mode='jit'"),
    ],
)
def test_impossible_layouts_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Devices.create(**options)


@pytest.mark.parametrize(("size", "accumulate"), [(12, 1), (8, 2), (16, 0)])
def test_batches_that_do_not_divide_are_refused(size, accumulate):
    with pytest.raises(UserError, match="make it a multiple of"):
        Devices.create(count=8).check_batch(size, accumulate)
