"""Conditions: their effect on the model, dropping them, and their values, against NumPy."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.models.base import abstract_value
from diffjax.models.condition_inputs import ConditionInputs
from diffjax.models.diffusion.conditions import make_conditions
from diffjax.models.diffusion.data_space import pixel_space
from diffjax.typing import NO_TOKEN, ImageSpec
from tests import conditioned, tiny
from tests.conditioned import SPEC, TEXT, example_conditions, keys

DROPPABLE = ("label", "label_token", "caption", "clip_text", "image_embedding")
ALL = (*DROPPABLE, "low_res_image", "masked_image")
X = np.random.default_rng(5).normal(size=(6, 8, 8, 1)).astype(np.float32)  # noised pictures


@functools.cache
def estimates(name):
    """Returns (conditions, values) -> x_0 of the conditional and of the unconditional model.

    The values are embeddings of images, or an embedding table of the CLIP.
    """
    _, system, variables = conditioned.built(name)

    def estimate(conditions_of_samples, own, which):
        known = jax.tree.map(lambda leaf: leaf, variables)  # a copy
        if "table" in own:
            table_of(known)["embedding"] = own["table"]
        model = system.bind(known, conditions_of_samples | {n: x for n, x in own.items() if n != "table"})
        return getattr(model, which)(X, model.process.schedule(10.0)).x0

    return lambda conditions_of_samples, conditional, unconditional: (
        estimate(conditions_of_samples, conditional, "denoiser"),
        estimate(conditions_of_samples, unconditional, "unconditional"),
    )


@functools.cache
def run(name):
    both = estimates(name)
    return jax.jit(lambda conditions_of_samples: both(conditions_of_samples, {}, {}))


def gradients(name, own):
    """Of what is conditional and of what is not, by values of their own."""
    both = functools.partial(estimates(name), example_conditions())

    @jax.jit
    def pulled(own):
        found, pull = jax.vjp(both, own, own)
        return pull(found)

    return pulled(own)


def table_of(variables):
    return variables["frozen"]["clip"]["params"]["model"]["text"]["token"]


def system_clip():
    system, variables = conditioned.clip()
    return system.clip(variables)


def others(tree):
    """Of each example what was another's."""
    return jax.tree.map(lambda x: np.roll(x, 2, axis=0), tree)


def apart(a, b):
    """By example."""
    return np.abs(np.asarray(a) - b).max(axis=(1, 2, 3))


def inpainting_conditions(mask=1.0):
    """A picture to be painted in, where a mask does not keep it."""
    return {
        **example_conditions(),
        "image": example_conditions()["original"],
        "mask": np.full((6, 8, 8, 1), mask, np.float32),
    }


@pytest.mark.parametrize("name", DROPPABLE)
def test_the_conditional_model_depends_on_a_condition_and_the_unconditional_does_not(name):
    """Not a bit depends on it."""
    (conditional, unconditional), (other, other_untold) = (
        run(name)(example_conditions()),
        run(name)(others(example_conditions())),
    )
    assert (apart(conditional, other) > 1e-3).all() and (apart(conditional, unconditional) > 1e-3).all()
    np.testing.assert_array_equal(unconditional, other_untold)


@pytest.mark.parametrize("name", ["caption", "clip_text"])
def test_a_dropped_caption_equals_an_empty_caption(name):
    """Or of nothing but its start, as CLIP has it."""
    empty = np.where(np.arange(6) < (name == "clip_text"), example_conditions()["tokens"], NO_TOKEN)
    np.testing.assert_allclose(
        run(name)({**example_conditions(), "tokens": empty})[0], run(name)(example_conditions())[1], atol=1e-5
    )


def test_a_missing_caption_is_empty_and_raises_for_clip_text():
    """A caption of no tokens says nothing to the one encoder; to the other there is none."""
    silent = {"label": example_conditions()["label"]}
    found = conditions("caption").encode(inputs(silent))["caption"]
    np.testing.assert_array_equal(found, np.full((6, 6), NO_TOKEN))
    with pytest.raises(UserError, match="this run is conditioned on captions: pass --prompt"):
        conditions("clip_text").encode(inputs(silent))


def test_a_dropped_embedding_has_no_gradient():
    embedding = jax.jit(system_clip().embed_images)(example_conditions()["original"])
    conditional, unconditional = gradients("image_embedding", {"image_embedding": embedding})
    assert (np.abs(conditional["image_embedding"]).max(axis=1) > 1e-4).all()
    np.testing.assert_array_equal(unconditional["image_embedding"], 0.0)


@pytest.mark.slow
def test_dropped_words_have_no_gradient():
    """Of the table of CLIP's tokens only the start's row, which is the same for all, has one."""
    conditional, unconditional = gradients(
        "clip_text", {"table": table_of(conditioned.built("clip_text")[2])["embedding"]}
    )
    heard = [np.flatnonzero(np.abs(gradient["table"]).max(axis=1)) for gradient in (conditional, unconditional)]
    np.testing.assert_array_equal(heard[0], np.unique(np.maximum(example_conditions()["tokens"], 0)))
    np.testing.assert_array_equal(heard[1], [0])


RATES = {"label": 0.1, "label_token": 0.2, "caption": 0.3, "clip_text": 0.4, "image_embedding": 0.5}
COUNT = 10_000


def conditions(*names, **changes):
    """The conditions of a config; what CLIP would say of them is not conditions_of_samples."""
    system, variables = conditioned.clip()
    made = conditioned.config(*names, **changes)
    return make_conditions(made, SPEC, pixel_space(SPEC), abstract_value(system.clip, variables))


@functools.cache
def rated():
    rates = {f"conditions__{name}__dropout": rate for name, rate in RATES.items() if name != "label"}
    return conditions(*RATES, diffusion__label_dropout=RATES["label"], **rates)


def values(count=COUNT):
    tokens = np.where(np.arange(6) < 2 + np.arange(count)[:, None] % 5, 7, NO_TOKEN).astype(np.int32)
    label = (np.arange(count) % 10).astype(np.int32)
    picture = {"embedding": np.random.default_rng(0).normal(size=(count, 12)), "present": np.ones(count, bool)}
    conditional = {"label": label, "label_token": label, "caption": tokens, "clip_text": tokens}
    return {**conditional, "image_embedding": jax.tree.map(jnp.asarray, picture)}


def absent(found):
    """Of each condition whether an example is without it."""
    return {
        "label": np.asarray(found["label"] == 10),
        "label_token": np.asarray(found["label_token"] == 10),
        "caption": np.asarray(found["caption"] == NO_TOKEN).all(axis=1),
        "clip_text": np.asarray(found["clip_text"] == NO_TOKEN)[:, 1:].all(axis=1),
        "image_embedding": ~np.asarray(found["image_embedding"]["present"]),
    }


@functools.cache
def dropped(count=COUNT):
    return jax.jit(rated().drop_randomly)(values(count), keys(COUNT)[:count])


def test_conditions_are_dropped_independently_at_their_rates():
    """Pairs are dropped together as often as independent ones are."""
    gone = absent(dropped())

    def expect(found, rate):
        np.testing.assert_allclose(found.mean(), rate, atol=4.5 * np.sqrt(rate * (1 - rate) / COUNT))

    for name, rate in RATES.items():
        expect(gone[name], rate)
    for a, b in itertools.combinations(RATES, 2):
        expect(gone[a] & gone[b], RATES[a] * RATES[b])


def test_conditions_that_are_not_dropped_are_unchanged():
    gone, before, after = absent(dropped()), values(), dropped()
    for name in RATES:
        for old, new in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True):
            np.testing.assert_array_equal(np.asarray(new)[~gone[name]], np.asarray(old)[~gone[name]])
    assert (np.asarray(after["clip_text"])[:, 0] == 7).all()  # its start, even where the rest is dropped


def test_dropping_depends_on_the_key_of_the_example_alone():
    few = dropped(10)
    for old, new in zip(jax.tree.leaves(dropped()), jax.tree.leaves(few), strict=True):
        np.testing.assert_array_equal(np.asarray(old)[:10], new)


def test_conditions_without_dropout_are_never_dropped():
    none = conditions("caption", "low_res_image", conditions__caption__dropout=0.0)
    given = {"caption": values()["caption"], "low_res_image": None}
    assert not none.supports_guidance
    assert none.drop_randomly(given, keys(COUNT))["caption"] is given["caption"]
    assert none.drop_all(given, COUNT)["caption"] is given["caption"]
    assert rated().supports_guidance


@pytest.mark.slow
def test_training_drops_captions_at_their_rate():
    """A loss is that of no caption, whatever the caption, of some examples by their keys; of the rest it is not."""
    _, system, variables = conditioned.built("caption")
    batch = tiny.batch(31)
    loss = jax.jit(
        lambda tokens: system.losses["model"](variables, {**batch, "tokens": tokens}, keys(31), tiny.moment())[0]
    )
    none, one, other = (
        np.asarray(loss(tokens)) for tokens in (np.full((31, 6), NO_TOKEN), batch["tokens"], others(batch["tokens"]))
    )
    gone = one == none
    np.testing.assert_array_equal(gone, other == none)
    assert 2 <= gone.sum() <= 16  # a quarter of 31
    assert (np.abs(one - other) > 1e-6)[~gone].all()


def inputs(about, *, level=None, encode=lambda x: x, seed=0):
    return ConditionInputs(about, keys(len(about["label"]), seed), encode_image=encode, augmentation_level=level)


def enlarged(images, factor):
    """Linear interpolation at half-pixel centres along both axes; np.interp repeats the edges."""
    for axis in (1, 2):
        side = images.shape[axis]
        places = (np.arange(factor * side) + 0.5) / factor - 0.5
        along = functools.partial(np.interp, places, np.arange(side))
        images = np.apply_along_axis(along, axis, images)
    return images


def test_a_low_res_image_is_upsampled_and_its_level_embedded():
    """At level 0 it is the picture itself, averaged down; the level is conditional by sines and cosines of it."""
    made, picture = conditions("low_res_image"), example_conditions()["original"]
    found = made.encode(inputs(example_conditions(), level=0.0))
    small = np.asarray(picture).reshape(6, 4, 2, 4, 2, 1).mean((2, 4))
    np.testing.assert_allclose(found["low_res_image"]["image"], small, atol=1e-6)
    conditional = made.network_inputs({}, found, None)
    np.testing.assert_allclose(conditional.channels, enlarged(small, 2), atol=1e-5)
    assert conditional.context is None and conditional.label is None
    own = made.encode(
        inputs({"label": example_conditions()["label"], "low_res_image": small[::-1]}, level=0.0)
    )  # of the stage before
    np.testing.assert_allclose(made.network_inputs({}, own, None).channels, enlarged(small[::-1], 2), atol=1e-5)
    angles = 1000 * 0.3 / 10000 ** (np.arange(16) / 16)
    waves = made.network_inputs({}, made.encode(inputs(example_conditions(), level=0.3)), None).embedding
    np.testing.assert_allclose(waves, np.tile(np.concatenate([np.cos(angles), np.sin(angles)]), (6, 1)), atol=1e-3)


def test_in_training_each_image_has_its_own_augmentation_level():
    """Uniform, by its key, and that is the level which is conditional: noise of half of it on nothing at all."""
    blank = {"label": np.arange(1000), "original": jnp.zeros((1000, 8, 8, 1))}
    degraded = jax.jit(lambda keys: conditions("low_res_image").encode(ConditionInputs(blank, keys))["low_res_image"])
    found = degraded(keys(1000))
    level, noise = np.sort(found["level"]), found["image"] / found["level"][:, None, None, None]
    assert len(np.unique(level)) == 1000
    assert np.abs(level - (np.arange(1000) + 0.5) / 1000).max() < 1.63 / np.sqrt(1000)  # Kolmogorov's, at 1 %
    np.testing.assert_allclose(np.mean(np.square(noise)), 0.25, rtol=5 * np.sqrt(2 / 16_000))
    turned = degraded(keys(1000)[::-1])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[::-1], turned), found)


@functools.cache
def sampled(name, **changes):
    """(what is conditions_of_samples, the plan) -> samples by the same keys."""
    made, system, variables = conditioned.built(name, **changes)
    draw = jax.jit(lambda conditions_of_samples, plan: system.sample(variables, keys(), conditions_of_samples, plan))
    return lambda conditions_of_samples, **settings: np.asarray(
        draw(conditions_of_samples, system.make_settings(made.sampler, **settings))
    )


def test_samples_depend_on_the_augmentation_level_and_the_low_res_image():
    """With nothing degraded it is the level alone that differs."""
    draw = sampled("low_res_image", conditions__low_res_image__degradation="none")
    none, some = draw(example_conditions()), draw(example_conditions(), augmentation=0.7)
    assert (apart(none, some) > 1e-3).all()
    assert (apart(none, draw(others(example_conditions()))) > 1e-3).all()
    np.testing.assert_array_equal(none, draw(example_conditions(), augmentation=0.0))


def test_invalid_augmentation_levels_raise():
    for name, level, message in (
        ("low_res_image", 1.5, "must be a finite number from 0 to 1"),
        ("caption", 0.5, "only supported for upsamplers"),
    ):
        made, system, _ = conditioned.built(name)
        with pytest.raises(UserError, match=message):
            system.make_settings(made.sampler, augmentation=level)


def test_a_masked_image_is_the_known_region_and_the_mask():
    made, picture = conditions("masked_image"), np.asarray(example_conditions(64)["original"])
    conditional = jax.jit(
        lambda about, keys: made.network_inputs(
            {}, made.encode(ConditionInputs(about, keys, encode_image=lambda x: x)), None
        )
    )
    channels = np.asarray(conditional(example_conditions(64), keys(64)).channels)
    image, erased = channels[..., :1], channels[..., 1:]
    assert channels.shape == (64, 8, 8, 2) and set(np.unique(erased)) == {0.0, 1.0}
    np.testing.assert_array_equal(image, np.where(erased == 1.0, 0.0, picture))
    shares = erased.mean(axis=(1, 2, 3))
    assert shares.min() > 0 and len(np.unique(erased.reshape(64, -1), axis=0)) > 30 and 0.3 < shares.mean() < 0.7
    turned = conditional(jax.tree.map(lambda x: x[::-1], example_conditions(64)), keys(64)[::-1]).channels
    np.testing.assert_array_equal(turned[::-1], channels)


def test_without_an_image_everything_is_masked():
    made = conditions("masked_image")
    channels = np.asarray(
        made.network_inputs({}, made.encode(inputs({"label": example_conditions()["label"]})), None).channels
    )
    np.testing.assert_array_equal(channels, np.broadcast_to([0.0, 1.0], (6, 8, 8, 2)))


def test_a_passed_mask_selects_the_known_region():
    made, about = conditions("masked_image"), inpainting_conditions()
    about["mask"] = np.random.default_rng(0).integers(0, 2, (6, 8, 8, 1)).astype(np.float32)
    channels = made.network_inputs({}, made.encode(inputs(about)), None).channels
    kept = np.concatenate([about["image"] * about["mask"], 1 - about["mask"]], axis=-1)
    np.testing.assert_array_equal(channels, kept)
    np.testing.assert_array_equal(made.network_inputs({}, made.encode(inputs(about, seed=1)), None).channels, kept)


def test_a_position_of_x_is_masked_if_any_of_its_pixels_is():
    space = pixel_space(SPEC, 2)
    made = make_conditions(conditioned.config("masked_image", diffusion__downsample=2), SPEC, space)
    about = inpainting_conditions()
    about["mask"][:, 3, 5] = 0.0
    channels = np.asarray(
        made.network_inputs({}, made.encode(inputs(about, encode=lambda x: space.encode({}, x))), None).channels
    )
    assert channels.shape == (6, 4, 4, 2)
    assert (channels[:, 1, 2, 1] == 1).all() and channels[..., 1].sum() == 6
    averaged = np.asarray(about["original"]).reshape(6, 4, 2, 4, 2, 1).mean((2, 4))
    there = channels[..., 1] == 0
    np.testing.assert_allclose(channels[..., 0][there], averaged[..., 0][there], atol=1e-6)


def test_inpainting_keeps_the_known_region_and_is_conditioned_on_it():
    draw, about = sampled("masked_image"), inpainting_conditions()
    about["mask"][:, :, 4:] = 0.0
    found, picture = draw(about), np.asarray(about["image"])
    np.testing.assert_allclose(found[:, :, :4], picture[:, :, :4], atol=1e-6)
    assert (apart(found[:, :, 4:], picture[:, :, 4:]) > 1e-3).all()
    other = {**about, "image": np.where(about["mask"] == 1, np.roll(picture, 1, axis=0), picture)}
    assert (apart(draw(other)[:, :, 4:], found[:, :, 4:]) > 1e-3).all()  # the other half has heard of it
    hidden = {**about, "image": np.where(about["mask"] == 1, picture, -picture)}
    np.testing.assert_array_equal(draw(hidden), found)  # and nothing of what is to be painted


def test_all_conditions_are_concatenated_in_the_order_of_the_config():
    """Embeddings and channels along the last axis, contexts along that of tokens, in the config's order."""
    made = conditions(*ALL)
    shapes = jax.eval_shape(lambda: made.network_inputs(made.init(keys()[0]), of_all(made), system_clip()))
    assert shapes.label.shape == (6,)
    assert shapes.context.shape == (6, 1 + 6 + 6 + 2, 8)  # label, caption, CLIP's of it, CLIP's of the picture
    assert shapes.embedding.shape == (6, 8 + 12 + 12 + 32)  # caption, CLIP's two, level
    assert shapes.channels.shape == (6, 8, 8, 1 + 1 + 1)
    assert made.required_inputs == {"image_embedding": 12, "low_res_image": 4}
    assert (made.classes, made.num_label_embeddings, made.text.length) == (10, 11, 6)


def of_all(made):
    return made.encode(inputs(example_conditions(), level=0.0)._replace(clip=system_clip()))


@pytest.mark.parametrize(
    ("names", "changes", "message"),
    [
        ((), {"conditions": {"captoin": {}}}, "unknown field of config.conditions 'captoin': did you mean 'caption'"),
        (
            ("caption",),
            {"conditions__caption__dropout": 1.0},
            "conditions.caption.dropout=1.0: must be a fraction from 0",
        ),
        (
            ("label_token",),
            {"conditions__label_token__dropout": -0.1},
            "conditions.label_token.dropout=-0.1: must be a fraction",
        ),
        (("label",), {"diffusion__label_dropout": 1.5}, "diffusion.label_dropout=1.5: must be a fraction"),
        (("caption",), {"conditions__caption__layer": 2}, "unknown field of config.conditions.caption 'layer'"),
        ((), {"conditions": {"caption": {"width": 8}}}, "conditions.caption: missing 2 required"),
        (("low_res_image",), {"conditions__low_res_image__dropout": 0.1}, "unexpected keyword argument 'dropout'"),
        (("low_res_image",), {"conditions__low_res_image__degradation": "blurr"}, "did you mean 'blur'"),
        (("low_res_image",), {"conditions__low_res_image__factor": 3}, "factor=3: must be at least 2 and divide 8"),
        (("low_res_image",), {"conditions__low_res_image__factor": 1}, "factor=1: must be at least 2"),
        (("image_embedding",), {}, "conditions.image_embedding: requires a trained CLIP; set --config.clip"),
        (("clip_text",), {}, "conditions.clip_text: requires a trained CLIP"),
        (
            ("caption", "label_token"),
            {"conditions__caption__width": 16},
            "conditions.caption 16, conditions.label_token 8: context must have one width",
        ),
        (("caption",), {"conditions__caption__heads": 3}, "config.model: heads=3: must divide"),
    ],
)
def test_invalid_configs_raise(names, changes, message):
    refused(message, conditioned.config(*names, **changes))


def refused(message, config, spec=SPEC, **parts):
    with pytest.raises(UserError, match=message) as caught:
        models.build(config, spec, **parts)
    assert "\n" not in str(caught.value)


def test_contexts_of_different_or_no_width_raise():
    """Contexts of its width and another, and tokens of no width at all."""
    wider = conditioned.config("clip_text", "image_embedding", conditions__image_embedding__width=16)
    refused("conditions.clip_text 8, conditions.image_embedding 16", wider, clip=conditioned.clip())
    none = conditioned.config("image_embedding", conditions__image_embedding__width=0)
    refused("conditions.image_embedding.width=0: tokens must have", none, clip=conditioned.clip())


def test_missing_labels_and_short_texts_raise():
    refused(
        "conditions.label_token: the data set does not have labels",
        conditioned.config("label_token"),
        ImageSpec(8, 1, 0),
    )
    refused("length must be from 3", conditioned.config("caption", text=TEXT | {"length": 2}))


@pytest.mark.parametrize("name", ["image_embedding", "low_res_image"])
def test_a_missing_image_raises(name):
    made, system, variables = conditioned.built(name)
    about, plan = {"label": example_conditions()["label"]}, system.make_settings(made.sampler)
    with pytest.raises(UserError, match="conditioned on an image: pass --image=FILE, or sample the full pipeline"):
        jax.eval_shape(system.sample, variables, keys(), about, plan)
    assert set(system.required_inputs) == {name}
