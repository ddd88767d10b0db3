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


@pytest.mark.slow
def test_evaluations_with_adaptive_step_sizes_are_counted_per_sample(latent, runner, capsys):
    """Also with guidance that has a memory, whose sampler wraps the adaptive one."""
    model, variables, plain = latent
    config, conditions = conditioned.latent("label").sampler, {"label": np.arange(3, dtype=np.int32)}

    def sample(**options):
        rule = "adaptive_projected(momentum=-0.5)"
        options |= {"name": "dpm_adaptive", "steps": 1, "guidance": 2.0, "guidance_rule": rule}
        settings = model.make_settings(config, **options)
        assert settings.is_adaptive and not plain.is_adaptive
        return runner(variables, range(3), conditions, settings)

    compilations = runner.compilations
    sample(rtol=0.5)
    loose = runner.evaluations
    sample(rtol=0.01)
    assert loose.shape == (3,) and (loose < runner.evaluations).all() and not capsys.readouterr().err
    sample(rtol=0.01, max_evaluations=9)
    assert (runner.evaluations <= 9).all() and runner.compilations == compilations + 1
    assert "3 of 3 samples reached max_evaluations" in capsys.readouterr().err
