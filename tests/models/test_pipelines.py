"""Pipelines: one program of all stages, settings by stage, conditions of each, and errors."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.random import fold_in_each, split_each
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.models.base import TrainedStage
from diffjax.models.diffusion.data_space import StandardizedSpace
from diffjax.models.pipelines.pipeline import shared_text
from diffjax.runs.datasets import image_spec
from tests import conditioned, tiny

UNCLIP = ("clip", "pca", "prior", "ar_prior", "decoder", "upsampler")
GLIDE = ("base", "upsampler", "noised_clip")
# Images are denoised by DiTs of one layer, which compile faster than the UNets of the configs.
DIT = {"base": {"model": conditioned.DIT}, "decoder": {"model": conditioned.DIT}}
DIT["upsampler"] = {"model": conditioned.DIT, "diffusion__crop": 0}


@functools.cache
def stage(name: str, **changes) -> TrainedStage:
    """Returns a stage with random parameters, as `runs.loading` opens it."""
    config = tiny.stage(name, **DIT.get(name, {}) | changes)
    dependencies = {"clip": "clip"} | ({"codec": "pca"} if name == "ar_prior" else {})
    parts = {field: stage(other) for field, other in dependencies.items() if config.get(field)}
    model = models.build(config, image_spec(config), **parts)
    return TrainedStage(model, conditioned.with_random_params(model)[1], config.get("sampler", {}))


def pipeline(name: str, stages, **changes):
    """Returns a tiny pipeline and its variables; `changes` are other stages, or None without one."""
    config = tiny.config(f"{name}_shapes", **tiny.SHAPES, sampler={})
    parts = {name: stage(name) for name in stages} | changes
    model = models.build(config, image_spec(config), **{name: part for name, part in parts.items() if part})
    return model, {"params": {}, "frozen": model.frozen}


@pytest.fixture(scope="module")
def unclip():
    return pipeline("unclip", UNCLIP)


def sample_conditions(count: int = 3) -> dict[str, np.ndarray]:
    tokens = np.full((count, 12), -1, np.int32)
    tokens[:, :4] = np.random.default_rng(0).integers(2, 256, (count, 4))
    return {"label": np.zeros(count, np.int32), "tokens": tokens}


def keys(count: int = 3):
    return jax.random.split(jax.random.key(1), count)


@pytest.mark.slow
def test_a_pipeline_equals_its_stages_in_sequence(unclip):
    """Each stage is sampled by itself, and its result is copied to the host before the next."""
    model, variables = unclip
    settings = model.make_settings({}, prior="diffusion", candidates=2)
    conditions, frozen = sample_conditions(), variables["frozen"]
    images = jax.jit(model.sample)(variables, keys(), conditions, settings)

    def sample(name, keys, condition):
        run = jax.jit(stage(name).model.sample)
        return np.asarray(run(frozen[name], keys, condition, settings.stages[name]))

    @jax.jit
    def split(keys):
        prior_keys, decoder_keys = split_each(fold_in_each(keys, 2**16))
        return [fold_in_each(prior_keys, k) for k in range(2)], decoder_keys, fold_in_each(keys, 0)

    prior_keys, decoder_keys, upsampler_keys = split(keys())
    candidates = np.stack([sample("prior", prior_keys[k], conditions) for k in range(2)], axis=1)
    texts = np.asarray(jax.jit(stage("clip").model.clip(frozen["clip"]).embed_texts)(conditions["tokens"]))
    best = np.einsum("bkd,bd->bk", candidates, texts).argmax(axis=1)
    embedding = candidates[np.arange(3), best]
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1.0, atol=1e-5)
    small = sample("decoder", decoder_keys, {**conditions, "image_embedding": embedding})
    assert small.shape == (3, 8, 8, 3)
    large = sample("upsampler", upsampler_keys, {**conditions, "low_res_image": small.clip(-1, 1)})
    assert images.shape == (3, 16, 16, 3)
    np.testing.assert_allclose(images, large, atol=1e-4)


@pytest.mark.slow
def test_without_a_prior_the_embedding_of_the_caption_is_decoded():
    model, variables = pipeline("unclip", ("clip", "decoder"))
    settings = model.make_settings({}, prior="none")
    assert set(settings.stages) == {"decoder"}

    @jax.jit
    def sample(conditions):
        texts = stage("clip").model.clip(variables["frozen"]["clip"]).embed_texts(conditions["tokens"])
        without = model.sample(variables, keys(), conditions, settings)
        return without, model.sample(variables, keys(), {**conditions, "image_embedding": texts}, settings)

    without, with_clip = sample(sample_conditions())
    np.testing.assert_allclose(without, with_clip, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("unit_length", [True, False])
def test_embeddings_of_any_norm_are_decoded_at_unit_length_or_as_they_are(unit_length):
    prior, rng = stage("prior"), np.random.default_rng(3)
    embedding = {"tokens": 2, "width": 8, "dropout": 0.1, "unit_length": unit_length}
    space = StandardizedSpace(prior.model.data_space.shape, prior.model.data_space.contrastive, 1.0)
    statistics = {"mean": rng.normal(size=space.shape), "std": rng.uniform(1.0, 2.0, space.shape)}
    prior = prior._replace(
        model=dataclasses.replace(prior.model, data_space=space),
        variables={**prior.variables, "embeddings": jax.tree.map(np.float32, statistics)},
    )
    decoder = stage.__wrapped__("decoder", conditions__image_embedding=embedding)  # dictionaries cannot be cached
    model, variables = pipeline("unclip", ("clip",), decoder=decoder, prior=prior)
    settings = model.make_settings({}, candidates=1)

    @jax.jit
    def sample(conditions):
        first = fold_in_each(split_each(fold_in_each(keys(), 2**16))[0], 0)
        embeddings = prior.model.sample(prior.variables, first, conditions, settings.stages["prior"])
        norm = jnp.linalg.norm(embeddings, axis=-1, keepdims=True)
        decoded = embeddings / norm if unit_length else embeddings
        whole = model.sample(variables, keys(), conditions, settings)
        return embeddings, whole, model.sample(variables, keys(), {**conditions, "image_embedding": decoded}, settings)

    embeddings, whole, decoded = sample(sample_conditions())
    assert abs(np.linalg.norm(embeddings, axis=-1) - 1).min() > 0.1
    np.testing.assert_allclose(whole, decoded, atol=1e-5)


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch_or_devices():
    """Eight devices, and five samples in batches of eight and of sixteen."""
    model, variables = pipeline("unclip", ("clip", "decoder"))
    settings = model.make_settings({}, prior="none", eta=1.0)
    whole = SampleRunner(model, batch_size=16)(variables, range(5), sample_conditions(5), settings)
    last = {name: values[3:] for name, values in sample_conditions(5).items()}
    images = SampleRunner(model, batch_size=8)(variables, [3, 4], last, settings)
    assert np.abs(images.astype(int) - whole[3:]).max() <= 1


@pytest.mark.slow
def test_a_sweep_over_a_stage_compiles_once(unclip):
    model, variables = unclip
    runner = SampleRunner(model, batch_size=8)
    for steps in (1, 3):
        for guidance in (1.0, 3.0):
            settings = model.make_settings({}, 8, prior="none", **{"decoder:steps": steps, "guidance": guidance})
            runner(variables, range(2), sample_conditions(2), settings)
    assert runner.compilations == 1


def test_settings_apply_to_the_named_stage(unclip):
    model, _ = unclip
    settings = model.make_settings({}, steps=5, guidance=3.0, **{"prior:steps": 7, "upsampler:augmentation": 0.5})
    steps = {name: stage.num_steps for name, stage in settings.stages.items()}
    assert steps == {"prior": 7, "decoder": 5, "upsampler": 2}
    assert settings.num_steps == 14
    assert settings.stages["decoder"]["guidance"] == 3.0
    assert settings.stages["prior"]["guidance"] == 1.0
    assert settings.stages["upsampler"]["augmentation"] == 0.5


def test_a_config_may_override_the_settings_of_stages(unclip):
    model, _ = unclip
    settings = model.make_settings(
        {"prior": "ar", "candidates": 1, "stages": {"decoder": {"steps": 3}}}, **{"decoder:eta": 1.0}
    )
    assert set(settings.stages) == {"ar_prior", "decoder", "upsampler"}
    assert (settings.stages["decoder"].num_steps, float(settings.stages["decoder"].sampler_options["eta"])) == (3, 1.0)


def test_settings_of_an_absent_stage_are_not_used():
    model, _ = pipeline("unclip", UNCLIP, prior=None, ar_prior=None)
    settings = {"prior": "none", "stages": {"prior": {"steps": 64}, "decoder": {"steps": 3}}}
    assert set(model.make_settings(settings).stages) == {"decoder", "upsampler"}
    with pytest.raises(UserError, match="unknown stage 'prior'"):
        model.make_settings(settings, **{"prior:steps": 3})


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
    "decoder without image_embedding": (
        "unclip", UNCLIP, {"decoder": "base"}, "decoder: must be conditioned on CLIP",
    ),
    "upsampler without low_res_image": ("glide", GLIDE, {"upsampler": "base"}, "upsampler: is not an upsampler"),
    "two upsamplers of the same size": (
        "glide", GLIDE, {"upsampler_2": "upsampler"}, "upsampler_2: upsamples images of 8x8, .* samples 16x16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISFITS)
def test_stages_that_do_not_fit_raise(case):
    name, stages, changes, message = MISFITS[case]
    with pytest.raises(UserError, match=message):
        pipeline(name, stages, **{field: other and stage(other) for field, other in changes.items()})


def test_embeddings_of_another_size_raise():
    other = stage("clip", model__dimensions=8)
    with pytest.raises(UserError, match="decoder: has embeddings of 12 values, and clip has 8"):
        pipeline("unclip", UNCLIP, clip=other)


def test_captions_of_another_length_raise():
    clip = stage("clip").model
    longer = dataclasses.replace(clip, text=clip.text._replace(length=20))
    with pytest.raises(UserError, match=r"clip 20 of 300, .*12 of 300 tokens"):
        shared_text({"clip": longer, "decoder": stage("decoder").model})


def test_a_missing_prior_raises():
    model, _ = pipeline("unclip", UNCLIP, ar_prior=None)
    with pytest.raises(UserError, match="ar_prior='': system=unclip with prior=ar requires"):
        model.make_settings({}, prior="ar")


@pytest.mark.slow
def test_a_clip_of_noised_images_guides_the_base_model():
    model, variables = pipeline("glide", ("base", "noised_clip"))
    settings = [model.make_settings({}, clip_scale=scale) for scale in (0.0, 50.0)]
    sample = jax.jit(lambda: [model.sample(variables, keys(), sample_conditions(), each) for each in settings])
    unguided, guided = sample()
    assert unguided.shape == (3, 8, 8, 3)
    assert np.abs(unguided - guided).max() > 1e-3
    assert np.isfinite(guided).all()


def test_guidance_without_a_clip_raises():
    model, _ = pipeline("glide", GLIDE, noised_clip=None)
    with pytest.raises(UserError, match="noised_clip='': system=glide with clip_scale requires"):
        model.make_settings({}, clip_scale=5.0)


@pytest.mark.slow
def test_the_known_region_stays_through_all_stages():
    model, variables = pipeline("glide", GLIDE)
    image = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    mask = np.zeros((3, 16, 16, 3), np.float32)
    mask[:, :, :8] = 1.0
    images = jax.jit(model.sample)(
        variables, keys(), {**sample_conditions(), "image": image, "mask": mask}, model.make_settings({})
    )
    np.testing.assert_allclose(images[:, :, :8], image[:, :, :8], atol=1e-5)
    assert np.abs(images[:, :, 8:] - image[:, :, 8:]).mean() > 0.1


def test_a_pipeline_trains_nothing(unclip):
    model = unclip[0]
    assert not model.losses
    assert tuple(model.stages) == ("decoder", "prior", "ar_prior", "upsampler")
    assert model.output_size == 16
