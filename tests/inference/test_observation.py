"""Sampling loops that are observed while they run."""

import jax
import numpy as np
import pytest

from diffjax import models
from diffjax.inference.sampler_runner import Listener, SampleRunner
from tests import conditioned

CONDITIONS = {"label": np.arange(4, dtype=np.int32)}


@pytest.fixture(scope="module")
def latent():
    """A diffusion model of latents of 4x4x4 for images of 8x8, and its settings."""
    config = conditioned.latent("label")
    model, variables = conditioned.with_random_params(models.build(config, conditioned.SPEC, codec=conditioned.CODEC))
    return model, variables, model.make_settings(config.sampler, name="ddim", steps=4, guidance=2.0)


@pytest.fixture(scope="module")
def runner(latent):
    return SampleRunner(latent[0], batch_size=4, devices=jax.local_devices()[:1])


@pytest.mark.slow
def test_latents_are_observed_as_images_and_the_samples_are_the_same(latent, runner):
    _, variables, settings = latent
    progress, steps = [], []

    def start(step):
        progress.append(step)
        return step.index % 2 == 0

    plain = runner(variables, range(4), CONDITIONS, settings)
    observed = runner(variables, range(4), CONDITIONS, settings, listener=Listener(start, steps.append))
    np.testing.assert_array_equal(observed, plain)
    assert progress == [("", i, 4) for i in (1, 2, 3, 4)] and [step.progress.index for step in steps] == [2, 4]
    assert {(step.x_t.shape, step.x_0.shape, step.images.shape) for step in steps} == {
        (*[(4, 4, 4, 4)] * 2, (4, 8, 8, 1))
    }
    np.testing.assert_array_equal(steps[-1].images, observed)  # the step to the clean level returns its x_0


def test_an_exception_of_the_listener_ends_the_loop_and_is_raised(latent, runner):
    _, variables, settings = latent
    started = []

    def fail_at_2(step):
        started.append(step.index)
        if step.index == 2:
            raise KeyError("stop")
        return True

    with pytest.raises(KeyError, match="stop"):
        runner(variables, range(8), {"label": np.zeros(8, np.int32)}, settings, listener=Listener(fail_at_2, print))
    assert started == [1, 2]  # neither later steps nor the second batch
    compilations = runner.compilations
    runner(variables, range(4), CONDITIONS, settings, listener=Listener(lambda step: False, started.append))
    assert runner.compilations == compilations
