"""Chains: stages that fit, one program of all of them, and what each is told."""

import functools

import jax
import numpy as np
import pytest

from diffjax import models
from diffjax.diffusion import sampling
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import Generator
from diffjax.models.pipelines import pipeline
from diffjax.runs.loading import image_spec
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
    variables = {**tiny.randomised(system.objective.init), "frozen": system.frozen}
    if system.plan:
        system = system._replace(plan=functools.partial(system.plan, config.sampler))
    return system, variables


def built(name: str, parts, **changed):
    """A tiny chain, and its variables."""
    config = tiny.config(f"{name}_shapes", **tiny.SHAPES, sampler={})
    given = {stage: part(stage) for stage in parts} | changed
    system = models.build(config, image_spec(config), **{n: p for n, p in given.items() if p})
    return system, {"params": {}, "frozen": system.frozen}


@pytest.fixture(scope="module")
def unclip():
    return built("unclip", UNCLIP)


def asked(count: int = 3) -> dict[str, np.ndarray]:
    tokens = np.full((count, 12), -1, np.int32)
    tokens[:, :4] = np.random.default_rng(0).integers(2, 256, (count, 4))
    return {"label": np.zeros(count, np.int32), "tokens": tokens}


def keys(count: int = 3):
    return jax.random.split(jax.random.key(1), count)


def test_a_chain_is_its_stages_one_after_another(unclip):
    """Each run by itself, its result copied to the host before the next."""
    system, variables = unclip
    plan = system.plan({}, prior="diffusion", candidates=2)
    told, frozen = asked(), variables["frozen"]
    found = jax.jit(system.sample)(variables, keys(), told, plan)

    def stage(name, keys, condition):
        run = jax.jit(part(name)[0].sample)
        return np.asarray(run(frozen[name], keys, condition, plan.stages[name]))

    prior_keys, decoder_keys = sampling.split(sampling.fold_in(keys(), 2**16))
    drawn = np.stack([stage("prior", sampling.fold_in(prior_keys, k), told) for k in range(2)], axis=1)
    text = np.asarray(part("clip")[0].clip(frozen["clip"]).embed_texts(told["tokens"]))
    best = np.einsum("bkd,bd->bk", drawn, text).argmax(axis=1)
    embedding = drawn[np.arange(3), best]
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1.0, atol=1e-5)
    small = stage("decoder", decoder_keys, {**told, "image_embedding": embedding})
    assert small.shape == (3, 8, 8, 3)
    large = stage("upsampler", sampling.fold_in(keys(), 0), {**told, "smaller_image": small.clip(-1, 1)})
    assert found.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(found, large, atol=1e-4)


def test_without_a_prior_the_captions_own_embedding_is_decoded(unclip):
    system, variables = unclip
    plan = system.plan({}, prior="none")
    assert set(plan.stages) == {"decoder", "upsampler"}
    text = part("clip")[0].clip(variables["frozen"]["clip"]).embed_texts(asked()["tokens"])
    draw = jax.jit(system.sample)
    without = draw(variables, keys(), asked(), plan)
    given = draw(variables, keys(), {**asked(), "image_embedding": text}, plan)
    np.testing.assert_allclose(without, given, atol=1e-5)


def test_a_sample_is_the_same_in_any_batch_over_any_devices(unclip):
    """Eight devices, and five samples in batches of eight and of sixteen."""
    system, variables = unclip
    plan = system.plan({}, prior="none", eta=1.0)
    whole = Generator(system, batch_size=16)(variables, range(5), asked(5), plan)
    last = {name: values[3:] for name, values in asked(5).items()}
    found = Generator(system, batch_size=8)(variables, [3, 4], last, plan)
    assert np.abs(found.astype(int) - whole[3:]).max() <= 1


@pytest.mark.slow
def test_a_sweep_over_a_stage_compiles_once(unclip):
    system, variables = unclip
    generator = Generator(system, batch_size=8)
    for steps in (1, 3):
        for guidance in (1.0, 3.0):
            plan = system.plan({}, 8, prior="none", **{"decoder:steps": steps, "guidance": guidance})
            generator(variables, range(2), asked(2), plan)
    assert generator.compilations == 1


def test_settings_are_of_the_stage_that_is_named(unclip):
    system, _ = unclip
    plan = system.plan({}, steps=5, guidance=3.0, **{"prior:steps": 7, "upsampler:augmentation": 0.5})
    assert {name: int(stage.steps) for name, stage in plan.stages.items()} == {"prior": 7, "decoder": 5, "upsampler": 2}
    assert plan.steps == 14
    assert plan.stages["decoder"].scales["guidance"] == 3.0
    assert plan.stages["prior"].scales["guidance"] == 1.0
    assert plan.stages["upsampler"].scales["augmentation"] == 0.5


def test_a_config_may_change_the_settings_of_stages(unclip):
    system, _ = unclip
    plan = system.plan({"prior": "ar", "candidates": 1, "stages": {"decoder": {"steps": 3}}}, **{"decoder:eta": 1.0})
    assert set(plan.stages) == {"ar_prior", "decoder", "upsampler"}
    assert (int(plan.stages["decoder"].steps), float(plan.stages["decoder"].options["eta"])) == (3, 1.0)


def test_a_config_may_have_settings_of_a_stage_that_is_left_out():
    system, _ = built("unclip", UNCLIP, prior=None, ar_prior=None)
    settings = {"prior": "none", "stages": {"prior": {"steps": 64}, "decoder": {"steps": 3}}}
    assert set(system.plan(settings).stages) == {"decoder", "upsampler"}
    with pytest.raises(UserError, match="unknown stage 'prior'"):
        system.plan(settings, **{"prior:steps": 3})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prior": "autoregressive"}, "unknown prior 'autoregressive'"),
        ({"candidates": 0}, "candidates=0"),
        ({"decodr:steps": 3}, "unknown stage 'decodr': did you mean 'decoder'"),
        ({"decoder:steps": 50}, "20 timesteps has 1 to 20 steps"),
        ({"upsampler:guidance": 2.0}, "leave it at 1"),
        ({"ar_prior:top_k": 3}, "of a stage that takes no part"),
    ],
)
def test_settings_that_do_not_fit_are_refused(unclip, settings, message):
    with pytest.raises(UserError, match=message):
        unclip[0].plan({}, **settings)


MISFITS = {
    "no decoder": ("unclip", UNCLIP, {"decoder": None}, "needs a stage decoder: .*configs/unclip_decoder.py"),
    "no CLIP": ("unclip", UNCLIP, {"clip": None}, "needs a stage clip"),
    "no base": ("glide", GLIDE, {"base": None}, "needs a stage base"),
    "a decoder of no embedding": ("unclip", UNCLIP, {"decoder": "base"}, "decoder is told no CLIP embedding"),
    "an upsampler of nothing": ("glide", GLIDE, {"upsampler": "base"}, "upsampler enlarges no picture"),
    "two upsamplers of one size": (
        "glide", GLIDE, {"upsampler_2": "upsampler"}, "upsampler_2 enlarges pictures of 8x8, and before it 16x16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_stages_that_do_not_fit_are_refused(case):
    name, parts, changed, message = MISFITS[case]
    with pytest.raises(UserError, match=message):
        built(name, parts, **{stage: other and part(other) for stage, other in changed.items()})


def test_embeddings_of_another_size_are_refused():
    other = part("clip", model__dimensions=8)
    with pytest.raises(UserError, match="decoder is of embeddings of 12 values, and clip makes 8"):
        built("unclip", UNCLIP, clip=other)


def test_texts_of_another_length_are_refused():
    clip = part("clip")[0]
    longer = clip._replace(text=clip.text._replace(length=20))
    with pytest.raises(UserError, match=r"clip 20 of 300, .*12 of 300 tokens"):
        pipeline.text_of({"clip": longer, "decoder": part("decoder")[0]})


def test_a_prior_that_is_not_there_is_asked_for_by_name():
    system, _ = built("unclip", UNCLIP, ar_prior=None)
    with pytest.raises(UserError, match="prior=ar needs a stage ar_prior"):
        system.plan({}, prior="ar")


def test_a_clip_of_noised_pictures_guides():
    system, variables = built("glide", GLIDE)
    draw = jax.jit(system.sample)
    plain = draw(variables, keys(), asked(), system.plan({}))
    guided = draw(variables, keys(), asked(), system.plan({}, clip_scale=50.0))
    assert plain.shape == (3, 16, 16, 3)
    assert np.abs(plain - guided).max() > 1e-3
    assert np.isfinite(guided).all()


def test_a_clip_that_is_not_there_does_not_guide():
    system, _ = built("glide", GLIDE, noised_clip=None)
    with pytest.raises(UserError, match="needs a stage noised_clip"):
        system.plan({}, clip_scale=5.0)


@pytest.mark.slow
def test_the_known_part_of_a_picture_stays_through_all_stages():
    system, variables = built("glide", GLIDE)
    image = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    kept = np.zeros((3, 16, 16, 3), np.float32)
    kept[:, :, :8] = 1.0
    found = jax.jit(system.sample)(variables, keys(), {**asked(), "image": image, "mask": kept}, system.plan({}))
    np.testing.assert_allclose(found[:, :, :8], image[:, :, :8], atol=1e-5)
    assert np.abs(found[:, :, 8:] - image[:, :, 8:]).mean() > 0.1


def test_a_chain_has_nothing_to_train(unclip):
    system = unclip[0]
    assert not system.objective.losses
    assert system.stages == ("decoder", "prior", "ar_prior", "upsampler")
    assert system.gives == 16
