"""Feature caching: samples, numbers of evaluations, and where it is refused."""

import functools
import itertools
import math
import re

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.denoiser import Denoised
from diffjax.errors import UserError
from diffjax.models.diffusion.bound_model import BoundModel
from diffjax.models.diffusion.diffusion_settings import make_diffusion_settings
from diffjax.models.diffusion.process import Process
from diffjax.models.observation import Observer
from diffjax.typing import ImageSpec
from tests import tiny

PROCESS = Process.from_config(tiny.config().diffusion)
KEYS = jax.random.split(jax.random.key(0), 3)
LABEL, NULL = jnp.array([0, 4, 9]), jnp.full(3, 10)
X = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)


@functools.cache
def built():
    config = tiny.config(model={**tiny.DIT, "layers": 2})
    model = models.build(config, ImageSpec(8, 1, 10))
    return config, model, tiny.randomised(model.init)


def by_hand(is_due, *, guidance, steps=5):
    """Returns samples of DDIM in NumPy, for a network of v, and the steps of each that compute deep features.

    Both parts of the network are called by turns. `is_due` maps the step and the old and new shallow features to the
    examples that compute deep ones.
    """
    _, model, variables = built()
    params = {"params": variables["params"]["model"]}

    @jax.jit
    def parts(x, t, label):
        return model.network.apply(params, x, t, label=label, cache_branch=0)

    @jax.jit
    def shallow(x, t, label, deep):
        return model.network.apply(params, x, t, label=label, cache_branch=0, deep=deep)

    x, old, counts = X, np.zeros((2, 2, 3, 4, 8)), np.zeros(3, int)  # deep and shallow, of both networks
    times = model.make_settings(built()[0].sampler, steps=steps).times
    for i, (now, then) in enumerate(itertools.pairwise(map(PROCESS.schedule, times))):
        t = jnp.full(3, now.t - 1)
        deep = np.stack([parts(x, t, label)[1] for label in (LABEL, NULL)])
        new = np.stack([shallow(x, t, label, 0.0)[1] for label in (LABEL, NULL)])
        due = np.broadcast_to(i == 0 or is_due(i, old[1], new), 3)
        counts += due
        old = np.where(due[:, None, None], np.stack([deep, new]), old)
        v = [np.asarray(shallow(x, t, *inputs)[0]) for inputs in zip((LABEL, NULL), old[0], strict=True)]
        conditional, unconditional = (now.alpha * x - now.sigma * value for value in v)
        x0 = np.clip(unconditional + guidance * (conditional - unconditional), -1, 1)
        x = np.asarray(then.alpha * x0 + then.sigma * (x - now.alpha * x0) / now.sigma)
    return x, counts


def test_samples_reuse_deep_features_for_an_interval():
    config, model, variables = built()
    traces = []

    @jax.jit
    def sample(settings):
        traces.append(settings)
        return model.sample(variables, KEYS, {"label": LABEL, "latent": X}, settings)

    make = functools.partial(model.make_settings, config.sampler, steps=5, guidance=2.0)
    samples = {interval: sample(make(cache_interval=interval)) for interval in (2, 3, 4)}
    assert len(traces) == 1
    for interval, result in samples.items():
        expected, _ = by_hand(lambda i, *_, interval=interval: i % interval == 0, guidance=2.0)
        np.testing.assert_allclose(result, expected, atol=1e-4)
    assert np.abs(samples[2] - samples[3]).max() > 1e-3
    assert [make(cache_interval=interval).num_deep_steps for interval in (1, 2, 3, 4)] == [5, 3, 2, 2]
    off, default = make(cache_interval=1), make()
    assert jax.tree.structure(off) == jax.tree.structure(default) != jax.tree.structure(make(cache_interval=2))


def test_deep_features_are_computed_where_shallow_ones_of_the_example_have_changed():
    config, model, variables = built()
    counts = []

    @jax.jit
    def sample(settings):
        observer = Observer(None, lambda *_: None)
        images = model.sample(variables, KEYS, {"label": LABEL, "latent": X}, settings, observer)
        return images, observer.evaluations[0].count

    for guidance, threshold in ((2.0, 1.0), (2.0, 1e-6), (1.0, 1.0)):

        def is_due(i, old, new, threshold=threshold, networks=1 + (guidance != 1)):
            change, size = (np.abs(values)[:networks].mean(axis=(2, 3)) for values in (new - old, old))
            return (change > threshold * size).any(axis=0)

        settings = model.make_settings(config.sampler, steps=5, guidance=guidance, cache_threshold=threshold)
        (images, count), (expected, number) = sample(settings), by_hand(is_due, guidance=guidance)
        np.testing.assert_allclose(images, expected, atol=1e-4)
        np.testing.assert_array_equal(count, number)
        counts.append(number)
    assert len({*counts[0].tolist()}) > 1 < len({*counts[2].tolist()}), "examples decide alike"
    assert (counts[1] == 5).all()


def settings(cache_branches=1, process=PROCESS, **overrides):
    sampler = {**tiny.config().sampler, "threshold": "none"}
    fields = {"guided": ("label",), "cache_branches": cache_branches, "shape": (8, 8, 1)}
    fields["has_shallow_features"] = cache_branches > 1
    return make_diffusion_settings(process, sampler, **fields, **overrides)


@pytest.mark.parametrize(("name", "rule"), [("ddim", "extrapolation"), ("heun", "adaptive_projected(momentum=0.5)")])
def test_deep_features_are_evaluated_once_per_interval(name, rule):
    """Counts calls of the host, which branches that are not taken do not make."""
    counts = {}

    def denoiser(kind):
        def count(part):
            def add():
                counts[kind, part] = counts.get((kind, part), 0) + 1

            jax.debug.callback(add, ordered=True)

        def denoise(x, level, *, cache_branch, deep=None):
            if deep is not None:
                count("shallow")
                return Denoised(0.1 * x + deep)
            count("deep")
            return Denoised(x, features=0.2 * x)

        return denoise

    @jax.jit
    def sample(settings):
        return BoundModel(PROCESS, denoiser("conditional"), denoiser("null"), (8, 8, 1)).sample(KEYS, settings, {})

    for guidance, interval in itertools.product((1.0, 2.0), (2, 3)):
        counts.clear()
        changes = {"name": name, "guidance_rule": rule, "guidance": guidance, "cache_interval": interval}
        changes["first_scale"] = 3.0  # has no effect without a first_condition
        jax.block_until_ready(sample(settings(steps=7, **changes)))
        jax.effects_barrier()
        kinds = ("conditional",) if guidance == 1 else ("conditional", "null")
        assert {kind for kind, _ in counts} == set(kinds)
        for kind in kinds:
            assert counts[kind, "deep"] == math.ceil(7 / interval)
            assert counts[kind, "shallow"] >= 7 + 4 * (name == "heun")


FLOW_MAP = Process.from_config(tiny.config("few_step_digits:mean_flow").diffusion)
REFUSED = {
    "cache_interval=0: must be": {"cache_interval": 0},
    "cache_interval=1.5: must be a whole number": {"cache_interval": 1.5},
    "cache_branch_id=-1: must be": {"cache_branch_id": -1},
    "cache_branch_id=1: must be from 0 to 0": {"cache_branch_id": 1},
    "cache_interval=2: requires a UNet, or a DiT of two layers or more; leave it at 1": {"cache_branches": 0},
    "cache_threshold=-1: must be": {"cache_interval": 1, "cache_threshold": -1},
    "cache_threshold=0.1: requires a DiT or MMDiT": {"cache_interval": 1, "cache_threshold": 0.1},
    "cache_threshold=0.1: cannot be combined with cache_interval=2": {"cache_branches": 2, "cache_threshold": 0.1},
    "is not supported with sampler.name=rk45": {"name": "rk45"},
    "is not supported with sampler.name=restart": {"name": "restart"},
    "is not supported with a measurement": {"measure": "blur"},
    "is not supported for flow maps": {"process": FLOW_MAP},
}


@pytest.mark.parametrize("message", REFUSED)
def test_unsupported_settings_are_refused(message):
    with pytest.raises(UserError, match=re.escape(message)):
        settings(**{"cache_interval": 2, **REFUSED[message]})
