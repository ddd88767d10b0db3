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


def by_hand(steps, interval, guidance):
    """Returns samples of DDIM in NumPy, for a network of v; both its parts are called by turns."""
    _, model, variables = built()
    params = {"params": variables["params"]["model"]}

    @jax.jit
    def parts(x, t, label):
        return model.network.apply(params, x, t, label=label, cache_branch=0)

    @jax.jit
    def shallow(x, t, label, deep):
        return model.network.apply(params, x, t, label=label, cache_branch=0, deep=deep)

    x, deep = X, {}
    times = model.make_settings(built()[0].sampler, steps=steps).times
    for i, (now, then) in enumerate(itertools.pairwise(map(PROCESS.schedule, times))):
        estimates = []
        for name, label in (("conditional", LABEL), ("null", NULL)):
            t = jnp.full(3, now.t - 1)
            if i % interval == 0:
                deep[name] = parts(x, t, label)[1]
            v = np.asarray(shallow(x, t, label, deep[name]))
            estimates.append(now.alpha * x - now.sigma * v)
        x0 = np.clip(estimates[1] + guidance * (estimates[0] - estimates[1]), -1, 1)
        x = np.asarray(then.alpha * x0 + then.sigma * (x - now.alpha * x0) / now.sigma)
    return x


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
        np.testing.assert_allclose(result, by_hand(5, interval, 2.0), atol=1e-4)
    assert np.abs(samples[2] - samples[3]).max() > 1e-3
    assert [make(cache_interval=interval).num_deep_steps for interval in (1, 2, 3, 4)] == [5, 3, 2, 2]
    off, default = make(cache_interval=1), make()
    assert jax.tree.structure(off) == jax.tree.structure(default) != jax.tree.structure(make(cache_interval=2))


def settings(cache_branches=1, process=PROCESS, **overrides):
    sampler = {**tiny.config().sampler, "threshold": "none"}
    fields = {"guided": ("label",), "cache_branches": cache_branches, "shape": (8, 8, 1)}
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
    "is not supported with sampler.name=rk45": {"name": "rk45"},
    "is not supported with sampler.name=restart": {"name": "restart"},
    "is not supported with a measurement": {"measure": "blur"},
    "is not supported for flow maps": {"process": FLOW_MAP},
}


@pytest.mark.parametrize("message", REFUSED)
def test_unsupported_settings_are_refused(message):
    with pytest.raises(UserError, match=re.escape(message)):
        settings(**{"cache_interval": 2, **REFUSED[message]})
