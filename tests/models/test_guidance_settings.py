"""Choices of guidance among the sampling settings, on a model of known functions."""

import functools
import re

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.denoiser import Denoised
from diffjax.errors import UserError
from diffjax.models.diffusion.bound_model import BoundModel, Guides
from diffjax.models.diffusion.diffusion_settings import make_diffusion_settings
from diffjax.models.diffusion.process import Process
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.typing import ImageSpec
from tests import tiny

PROCESS = Process.from_config(tiny.config().diffusion)
KEYS = jax.random.split(jax.random.key(0), 3)
WAVES = (lambda x, noise: Denoised(jnp.sin(2 * x)), lambda x, noise: Denoised(jnp.cos(x)))


def settings(guided=("label", "caption"), guidance_range=None, shape=(4, 2), **overrides):
    sampler = {**tiny.config().sampler, "threshold": "none", "guidance": 3.0, **overrides}
    options = {"guided": guided, "guidance_range": guidance_range, "shape": shape}
    return make_diffusion_settings(PROCESS, sampler, **options)


def sampler_of(**guides):
    """Returns a compiled sampler of the model, and the list of its traces."""
    traces = []

    @jax.jit
    def sample(settings):
        traces.append(settings)
        return BoundModel(PROCESS, *WAVES, (4, 2)).sample(KEYS, settings, {}, Guides(**guides))

    return lambda **changes: np.asarray(sample(settings(**changes))), traces


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"guidance": 1.0}, False),
        ({"guidance": 0.0}, True),
        ({"guidance": 1.0, "first_scale": 2.0}, False),  # without a first_condition
        ({"guidance": 1.0, "first_scale": 2.0, "first_condition": "label"}, True),
        ({"guidance": 2.0, "first_scale": 1.0, "first_condition": "label"}, True),
        ({"guidance": 1.0, "first_scale": 1.0, "first_condition": "label"}, False),
    ],
)
def test_settings_are_guided_by_a_scale_other_than_1(changes, expected):
    assert bool(settings(**changes).is_guided) == expected
    assert not SamplingSettings().is_guided  # of models without guidance


def differ(a, b):
    return np.abs(a - b).max() > 1e-3


@pytest.mark.slow
def test_options_of_rules_and_schedules_are_traced():
    sample, traces = sampler_of()
    plain, unguided, stronger = sample(), sample(guidance=1.0), sample(guidance=5.0)
    names = ("eta=1", "eta=0", "eta=1, momentum=-0.5", "eta=1, norm=0.5")
    same, *others = (sample(guidance_rule=f"adaptive_projected({text})") for text in names)
    np.testing.assert_allclose(same, plain, atol=1e-4)
    assert all(differ(other, plain) for other in others)
    with_memory = sample(guidance_rule="adaptive_projected(momentum=0.5)", guidance=1.0)
    np.testing.assert_allclose(with_memory, unguided, atol=1e-5)
    assert len(traces) == 2  # one per rule
    clamped = sample(guidance_schedule="linear(low=2)")
    np.testing.assert_allclose(clamped, stronger, atol=1e-4)
    assert differ(sample(guidance_schedule="linear"), plain) and len(traces) == 3
    star, from_zero = (sample(guidance_rule=f"zero_star(zero_steps={steps})") for steps in (0, 1))
    assert differ(star, plain) and differ(from_zero, star) and len(traces) == 4
    first = sample(guidance_channels=1)
    assert differ(first, plain) and not differ(first[..., 1], unguided[..., 1])


def test_a_schedule_applies_to_autoguidance():
    sample, _ = sampler_of(weak=lambda x, noise: Denoised(0.5 * x))
    clamped = sample(guidance=1.0, weak_scale=1.5, guidance_schedule="linear(low=2)")
    np.testing.assert_allclose(clamped, sample(guidance=1.0, weak_scale=2.0), atol=1e-5)


@pytest.mark.slow
def test_a_perturbation_names_blocks_of_the_network():
    model = models.build(tiny.config(), ImageSpec(8, 1, 10))
    make = functools.partial(model.make_settings, tiny.config().sampler)
    for text, message in {
        "identity_attention": "must have numbers of blocks, from 0 to",
        "skip_blocks(9)": "must have numbers of blocks, from 0 to",
        "skip_blocks(0.5)": "must have numbers of blocks",
        "skip": "did you mean 'skip_blocks'",
    }.items():
        with pytest.raises(UserError, match=message):
            make(perturbation=text)
    assert make(perturbation="skip_blocks(0, 2)")["perturbation"] == "skip_blocks(0, 2)"
    assert model._perturbed("skip_blocks(0, 2)").network.skipped_blocks == (0, 2)
    assert model._perturbed("identity_attention(1)").network.identity_attention == (1,)


def test_a_block_whose_values_are_used_later_cannot_be_skipped():
    residual = models.build(tiny.config(model={**tiny.DIT, "layers": 2, "value_residual": True}), ImageSpec(8, 1, 10))
    with pytest.raises(UserError, match=r"skip_blocks\(0\): later blocks use values of block 0"):
        residual.make_settings(tiny.config().sampler, perturbation="skip_blocks(0)")


def test_perturbed_guidance_and_autoguidance_agree_without_classifier_free_guidance():
    denoisers = WAVES[0], None, (4, 2)

    @jax.jit
    def sample(settings):
        weak = lambda x, noise: Denoised(0.5 * x)  # noqa: E731
        bound = BoundModel(PROCESS, *denoisers, perturbed=lambda text: weak)
        guides = Guides(weak=weak) if settings["perturbation"] == "none" else Guides()
        return bound.sample(KEYS, settings, {}, guides)

    changes = {"guided": False, "guidance": 1.0}
    perturbed = sample(settings(perturbation="skip_blocks(0)", perturbed_scale=2.0, **changes))
    np.testing.assert_allclose(perturbed, sample(settings(weak_scale=2.0, **changes)), atol=1e-5)
    assert differ(perturbed, sample(settings(**changes)))


INVALID = {
    ("guidance_rule", "projected"): "unknown sampler.guidance_rule 'projected'",
    ("guidance_rule", "adaptive_projected(momentum=1)"): "momentum=1: must be a finite number from -1 and below 1",
    ("guidance_rule", "adaptive_projected(norm=-1)"): "norm=-1: must be a finite number from 0",
    ("guidance_rule", "zero_star(zero_steps=0.5)"): "zero_steps=0.5: must be a whole number",
    ("guidance_rule", "zero_star(times=3)"): "takes no 'times'",
    ("guidance_schedule", "power_cosine(power=0)"): "power=0: must be a finite number above 0",
    ("guidance_schedule", "interval"): "unknown sampler.guidance_schedule 'interval'",
    ("guidance_channels", 3): "guidance_channels=3: must be at most 2, the channels of the data",
    (
        "first_condition",
        "captions",
    ): "must be one of two or more conditions with dropout > 0; this model has label, cap",
    ("guidance_channels", -1): "guidance_channels=-1: must be a whole number",
}


@pytest.mark.parametrize(("name", "value"), INVALID)
def test_invalid_choices_raise(name, value):
    with pytest.raises(UserError, match=re.escape(INVALID[name, value])):
        settings(**{name: value})


def test_choices_that_make_no_sense_raise():
    with pytest.raises(UserError, match=r"first steps return noise, which sampler.threshold=clip would clip"):
        settings(guidance_rule="zero_star", threshold="clip")
    settings(guidance_rule="zero_star(zero_steps=0)", threshold="clip")
    for changes in ({"guidance_rule": "zero_star"}, {"guidance_channels": 1}):
        with pytest.raises(UserError, match="requires a model that supports classifier-free guidance"):
            settings(guided=(), guidance=1.0, **changes)
        with pytest.raises(UserError, match="not supported with conditions"):
            settings(guidance_range=(1, 4), **changes)
    settings(guided=(), guidance=1.0, guidance_schedule="linear")  # of autoguidance
    with pytest.raises(UserError, match="not supported with conditions"):
        settings(guidance_range=(1, 4), guidance_schedule="linear")
    with pytest.raises(UserError, match=r"two or more conditions with dropout > 0; this model has label$"):
        settings(guided=("label",), first_condition="label")
    with pytest.raises(UserError, match="must be 0, as the data have no channels"):
        settings(shape=(2,), guidance_channels=1)
