"""Maximal update parametrization: kinds of parameters, initial values and learning rates, against Tensor Programs V."""

import collections

import chex
import jax
import numpy as np
import pytest

from diffjax import models
from diffjax.errors import UserError
from diffjax.models import width_transfer
from diffjax.models.parameter_paths import flatten
from diffjax.training.compiled_step import make_optimizers
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
BASE = 16


def config(width=64, base=BASE, **changes):
    network = {**tiny.DIT, "width": width, "heads": width // 8}
    return tiny.config(model=network, train__mup_base_width=base, train__warmup_steps=0, **changes)


def kinds(c):
    """Returns the names of parameters by kind, and their multipliers."""
    model = models.build(c, SPEC)
    widths = width_transfer.widths(model, width_transfer.base_model(c, model))
    named = collections.defaultdict(set)
    flat = jax.tree_util.tree_leaves_with_path(widths["model"], is_leaf=lambda x: isinstance(x, width_transfer.Width))
    for keys, width in flat:
        named[width].add("/".join(entry.key for entry in keys))
    return named


def test_the_kinds_of_the_parameters_of_a_dit():
    """Yang et al. 2022, table 3; Zheng et al. 2025 mark the layers of DiT alike."""
    named = kinds(config())
    hidden = {"qkv", "out", "mlp_in", "mlp_out", "modulation"}
    assert named == {
        ("fixed", 1): {"out/bias"},
        ("input", 1): {
            *("patch/kernel", "patch/bias", "time_0/kernel", "time_0/bias", "time_1/bias", "label/embedding"),
            *("modulation_out/bias", *(f"block_0/{name}/bias" for name in hidden)),
        },
        ("hidden", 4): {"time_1/kernel", "modulation_out/kernel", *(f"block_0/{name}/kernel" for name in hidden)},
        ("output", 4): {"out/kernel"},
    }


def test_the_kinds_of_the_parameters_of_a_unet():
    channels = {"model__channels": 32, "model__head_channels": 8, "model__heads": 1}
    named = kinds(tiny.config(train__mup_base_width=16, **channels))
    assert named["output", 2] == {"conv_out/kernel"} and named["fixed", 1] == {"conv_out/bias"}
    assert "conv_in/kernel" in named["input", 1] and "label/embedding" in named["input", 1]
    matrices = {name for kind, names in named.items() if kind[0] == "input" for name in names if "kernel" in name}
    assert matrices == {"conv_in/kernel"}


@pytest.fixture(scope="module")
def initial():
    """Initial parameters of muP at width 64 and, from the same key, at the base width; and those without muP."""
    c = config()
    model = models.build(c, SPEC)
    base = width_transfer.base_model(c, model)

    @jax.jit
    def init(key):
        return width_transfer.initial_variables(model, base, key), base.init(key), model.init(key)

    return [flatten(variables["params"]["model"]) for variables in init(jax.random.key(0))]


def test_initial_values_have_the_size_of_the_base_width(initial):
    mup, base, standard = initial
    size = lambda x: float(np.sqrt(np.mean(np.square(x))))  # noqa: E731
    for name, leaf in mup.items():
        factor = 0.5 if leaf.ndim == 2 and name not in ("patch/kernel", "time_0/kernel", "label/embedding") else 1.0
        np.testing.assert_allclose(size(leaf), factor * size(base[name]), rtol=1e-5, err_msg=name)
        if np.any(leaf):  # only the size changes
            np.testing.assert_allclose(leaf / size(leaf), standard[name] / size(standard[name]), rtol=1e-4)
    assert size(standard["patch/kernel"]) < 0.8 * size(mup["patch/kernel"])  # Xavier's shrinks with the width


def test_at_the_base_width_nothing_changes():
    c, off = config(width=BASE), config(width=BASE, base=0)
    model = models.build(c, SPEC)
    base = width_transfer.base_model(c, model)
    init = jax.jit(lambda key: (width_transfer.initial_variables(model, base, key), model.init(key)))
    actual, expected = init(jax.random.key(0))
    chex.assert_trees_all_equal(actual, expected)
    gradients, params = (tiny.randomised(model.init, seed)["params"]["model"] for seed in (0, 1))

    def first_update(c):
        optimizer = make_optimizers(c, model)["model"]
        return optimizer.update(gradients, optimizer.init(params), params)[0]

    chex.assert_trees_all_equal(*jax.jit(lambda: (first_update(c), first_update(off)))())
    assert width_transfer.base_model(off, model) is None


@pytest.mark.parametrize("frozen", [(), ("patch",)])
def test_learning_rates_are_divided_by_the_multiplier_and_the_decay_is_not(frozen):
    """The first update of Adam is -rate (sign(gradient) / m + decay * parameter)."""
    c = config(train__weight_decay=0.1, train__clip_norm=0.0, train__freeze=frozen)
    model = models.build(c, SPEC)
    optimizer, rate = make_optimizers(c, model)["model"], c.train.learning_rate
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), model.variable_shapes["params"]["model"])
    updates = jax.jit(lambda: optimizer.update(ones, optimizer.init(ones), ones)[0])()
    updates = flatten(updates)
    for name, factor in {
        "block_0/qkv/kernel": 0.25,
        "out/kernel": 0.25,
        "label/embedding": 1,
        "time_0/kernel": 1,
    }.items():
        np.testing.assert_allclose(updates[name], -rate * (factor + 0.1), rtol=1e-4, err_msg=name)
    for name in ("block_0/qkv/bias", "out/bias"):
        np.testing.assert_allclose(updates[name], -rate, rtol=1e-4, err_msg=name)


def test_what_does_not_fit_is_an_error():
    for c, message in [
        (config(width=64, base=12), "requires heads of the size at model.width=64, so 1.5 heads"),
        (config(base=-1), "mup_base_width=-1: must be"),
        (tiny.config(train__mup_base_width=4), "set model.head_channels in place of model.heads"),
        (tiny.config("vae", train__mup_base_width=4), "only supported for all weights of a diffusion model"),
        (config(train__lora={"rank": 2, "alpha": 8.0, "targets": ("*",)}), "only supported for all weights"),
        (config(train__optimizer="muon"), "train.optimizer=muon: does not support train.mup_base_width"),
    ]:
        model = models.build(c, SPEC)
        with pytest.raises(UserError, match=message):
            make_optimizers(c, model)
