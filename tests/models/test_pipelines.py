"""Pipelines: one program of all stages, settings by stage, conditions of each, and errors."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from diffjax import models
from diffjax.diffusion.random import fold_in_each, split_each
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.models.base import TrainedStage
from diffjax.models.pipelines.pipeline import shared_text
from diffjax.runs.datasets import image_spec
from tests import tiny

UNCLIP = ("clip", "pca", "prior", "ar_prior", "decoder", "upsampler")
GLIDE = ("base", "upsampler", "noised_clip")


@functools.cache
def part(name: str, **changes):
    """A stage with random weights, as `workdir` opens one."""
    config = tiny.stage(name, **changes)
    beside = {"clip": "clip"} | ({"codec": "pca"} if name == "ar_prior" else {})
    given = {field: part(other) for field, other in beside.items() if config.get(field)}
    system = models.build(config, image_spec(config), **given)
    variables = {**tiny.randomised(system.init), "frozen": system.frozen}
    return TrainedStage(system, variables, config.get("sampler", {}))


def built(name: str, parts, **changed):
    """A tiny chain, and its variables."""
    config = tiny.config(f"{name}_shapes", **tiny.SHAPES, sampler={})
    given = {stage: part(stage) for stage in parts} | changed
    system = models.build(config, image_spec(config), **{n: p for n, p in given.items() if p})
    return system, {"params": {}, "frozen": system.frozen}


@pytest.fixture(scope="module")
def unclip():
    return built("unclip", UNCLIP)


def sample_conditions(count: int = 3) -> dict[str, np.ndarray]:
    tokens = np.full((count, 12), -1, np.int32)
    tokens[:, :4] = np.random.default_rng(0).integers(2, 256, (count, 4))
    return {"label": np.zeros(count, np.int32), "tokens": tokens}


def keys(count: int = 3):
    return jax.random.split(jax.random.key(1), count)


def test_a_pipeline_is_its_stages_in_sequence(unclip):
    """Each run by itself, its result copied to the host before the next."""
    system, variables = unclip
    plan = system.make_settings({}, prior="diffusion", candidates=2)
    conditions, frozen = sample_conditions(), variables["frozen"]
    images = jax.jit(system.sample)(variables, keys(), conditions, plan)

    def stage(name, keys, condition):
        run = jax.jit(part(name)[0].sample)
        return np.asarray(run(frozen[name], keys, condition, plan.stages[name]))

    prior_keys, decoder_keys = split_each(fold_in_each(keys(), 2**16))
    drawn = np.stack([stage("prior", fold_in_each(prior_keys, k), conditions) for k in range(2)], axis=1)
    text = np.asarray(part("clip")[0].clip(frozen["clip"]).embed_texts(conditions["tokens"]))
    best = np.einsum("bkd,bd->bk", drawn, text).argmax(axis=1)
    embedding = drawn[np.arange(3), best]
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1.0, atol=1e-5)
    small = stage("decoder", decoder_keys, {**conditions, "image_embedding": embedding})
    assert small.shape == (3, 8, 8, 3)
    large = stage("upsampler", fold_in_each(keys(), 0), {**conditions, "low_res_image": small.clip(-1, 1)})
    assert images.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(images, large, atol=1e-4)


def test_without_a_prior_the_embedding_of_the_caption_is_decoded(unclip):
    system, variables = unclip
    plan = system.make_settings({}, prior="none")
    assert set(plan.stages) == {"decoder", "upsampler"}
    text = part("clip")[0].clip(variables["frozen"]["clip"]).embed_texts(sample_conditions()["tokens"])
    draw = jax.jit(system.sample)
    without = draw(variables, keys(), sample_conditions(), plan)
    given = draw(variables, keys(), {**sample_conditions(), "image_embedding": text}, plan)
    np.testing.assert_allclose(without, given, atol=1e-5)


def test_samples_do_not_depend_on_the_batch_or_devices(unclip):
    """Eight devices, and five samples in batches of eight and of sixteen."""
    system, variables = unclip
    plan = system.make_settings({}, prior="none", eta=1.0)
    whole = SampleRunner(system, batch_size=16)(variables, range(5), sample_conditions(5), plan)
    last = {name: values[3:] for name, values in sample_conditions(5).items()}
    images = SampleRunner(system, batch_size=8)(variables, [3, 4], last, plan)
    assert np.abs(images.astype(int) - whole[3:]).max() <= 1


@pytest.mark.slow
def test_a_sweep_over_a_stage_compiles_once(unclip):
    system, variables = unclip
    generator = SampleRunner(system, batch_size=8)
    for steps in (1, 3):
        for guidance in (1.0, 3.0):
            plan = system.make_settings({}, 8, prior="none", **{"decoder:steps": steps, "guidance": guidance})
            generator(variables, range(2), sample_conditions(2), plan)
    assert generator.compilations == 1


def test_settings_apply_to_the_named_stage(unclip):
    system, _ = unclip
    plan = system.make_settings({}, steps=5, guidance=3.0, **{"prior:steps": 7, "upsampler:augmentation": 0.5})
    assert {name: int(stage.steps) for name, stage in plan.stages.items()} == {"prior": 7, "decoder": 5, "upsampler": 2}
    assert plan.steps == 14
    assert plan.stages["decoder"].scales["guidance"] == 3.0
    assert plan.stages["prior"].scales["guidance"] == 1.0
    assert plan.stages["upsampler"].scales["augmentation"] == 0.5


def test_a_config_may_override_the_settings_of_stages(unclip):
    system, _ = unclip
    plan = system.make_settings(
        {"prior": "ar", "candidates": 1, "stages": {"decoder": {"steps": 3}}}, **{"decoder:eta": 1.0}
    )
    assert set(plan.stages) == {"ar_prior", "decoder", "upsampler"}
    assert (int(plan.stages["decoder"].steps), float(plan.stages["decoder"].options["eta"])) == (3, 1.0)


def test_settings_of_an_absent_stage_are_not_used():
    system, _ = built("unclip", UNCLIP, prior=None, ar_prior=None)
    settings = {"prior": "none", "stages": {"prior": {"steps": 64}, "decoder": {"steps": 3}}}
    assert set(system.make_settings(settings).stages) == {"decoder", "upsampler"}
    with pytest.raises(UserError, match="unknown stage 'prior'"):
        system.make_settings(settings, **{"prior:steps": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": "autoregressive"}, "unknown prior 'autoregressive'"),
        ({"candidates": 0}, "candidates=0"),
        ({"decodr:steps": 3}, "unknown stage 'decodr': did you mean 'decoder'"),
        ({"decoder:steps": 50}, "20 timesteps has 1 to 20 steps"),
        ({"upsampler:guidance": 2.0}, "leave it at 1"),
        ({"ar_prior:top_k": 3}, "the stage ar_prior is not used"),
    ],
)
def test_invalid_settings_raise(unclip, settings, message):
    with pytest.raises(UserError, match=message):
        unclip[0].make_settings({}, **settings)


MISFITS = {
    "no decoder": ("unclip", UNCLIP, {"decoder": None}, "decoder='': system=unclip .*unclip_decoder.py"),
    "no CLIP": ("unclip", UNCLIP, {"clip": None}, "clip='': system=unclip requires"),
    "no base": ("glide", GLIDE, {"base": None}, "base='': system=glide requires"),
    "a decoder of no embedding": ("unclip", UNCLIP, {"decoder": "base"}, "decoder: must be conditioned on CLIP"),
    "an upsampler of nothing": ("glide", GLIDE, {"upsampler": "base"}, "upsampler: is not an upsampler"),
    "two upsamplers of one size": (
        "glide", GLIDE, {"upsampler_2": "upsampler"}, "upsampler_2: upsamples images of 8x8, .* samples 16x16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_stages_that_do_not_fit_raise(case):
    name, parts, changed, message = MISFITS[case]
    with pytest.raises(UserError, match=message):
        built(name, parts, **{stage: other and part(other) for stage, other in changed.items()})


def test_embeddings_of_another_size_raise():
    other = part("clip", model__dimensions=8)
    with pytest.raises(UserError, match="decoder: has embeddings of 12 values, and clip has 8"):
        built("unclip", UNCLIP, clip=other)


def test_captions_of_another_length_raise():
    clip = part("clip")[0]
    longer = dataclasses.replace(clip, text=clip.text._replace(length=20))
    with pytest.raises(UserError, match=r"clip 20 of 300, .*12 of 300 tokens"):
        shared_text({"clip": longer, "decoder": part("decoder")[0]})


def test_a_missing_prior_raises():
    system, _ = built("unclip", UNCLIP, ar_prior=None)
    with pytest.raises(UserError, match="ar_prior='': system=unclip with prior=ar requires"):
        system.make_settings({}, prior="ar")


def test_a_clip_of_noised_images_guides():
    system, variables = built("glide", GLIDE)
    draw = jax.jit(system.sample)
    plain = draw(variables, keys(), sample_conditions(), system.make_settings({}))
    guided = draw(variables, keys(), sample_conditions(), system.make_settings({}, clip_scale=50.0))
    assert plain.shape == (3, 16, 16, 3)
    assert np.abs(plain - guided).max() > 1e-3
    assert np.isfinite(guided).all()


def test_guidance_without_a_clip_raises():
    system, _ = built("glide", GLIDE, noised_clip=None)
    with pytest.raises(UserError, match="noised_clip='': system=glide with clip_scale requires"):
        system.make_settings({}, clip_scale=5.0)


@pytest.mark.slow
def test_the_known_region_stays_through_all_stages():
    system, variables = built("glide", GLIDE)
    image = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    kept = np.zeros((3, 16, 16, 3), np.float32)
    kept[:, :, :8] = 1.0
    images = jax.jit(system.sample)(
        variables, keys(), {**sample_conditions(), "image": image, "mask": kept}, system.make_settings({})
    )
    np.testing.assert_allclose(images[:, :, :8], image[:, :, :8], atol=1e-5)
    assert np.abs(images[:, :, 8:] - image[:, :, 8:]).mean() > 0.1


def test_a_pipeline_trains_nothing(unclip):
    system = unclip[0]
    assert not system.losses
    assert tuple(system.stages) == ("decoder", "prior", "ar_prior", "upsampler")
    assert system.output_size == 16
