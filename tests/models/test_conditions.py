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
from diffjax.models.diffusion.condition_kinds import Caption, ClassToken, ClipText, ImageEmbedding
from diffjax.models.diffusion.conditions import Conditions, make_conditions
from diffjax.models.diffusion.data_space import pixel_space
from diffjax.models.images import upsample_bicubic, upsample_bilinear
from diffjax.typing import NO_TOKEN, ImageSpec
from tests import conditioned, tiny
from tests.conditioned import SPEC, TEXT, example_conditions, keys

DROPPABLE = ("label", "label_token", "caption", "clip_text", "image_embedding")
ALL = (*DROPPABLE, "low_res_image", "masked_image")
WHICH = ("denoiser", "unconditional")
X = np.random.default_rng(5).normal(size=(6, 8, 8, 1)).astype(np.float32)  # noised images


@functools.cache
def estimates(name):
    """Returns (conditions, values) -> x_0 of the conditional and of the unconditional model.

    The values are embeddings of images, or an embedding table of the CLIP.
    """
    _, model, variables = conditioned.built(name)

    def estimate(conditions, values, which):
        copied = jax.tree.map(lambda leaf: leaf, variables)
        if "table" in values:
            token_table(copied)["embedding"] = values["table"]
        bound = model.bind(copied, conditions | {n: x for n, x in values.items() if n != "table"})
        return getattr(bound, which)(X, bound.process.schedule(10.0)).x0

    return lambda conditions, conditional, unconditional: (
        estimate(conditions, conditional, WHICH[0]),
        estimate(conditions, unconditional, WHICH[1]),
    )


@functools.cache
def run(name):
    """Returns (conditions) -> x_0 of the conditional and of the unconditional model."""
    both = estimates(name)
    return jax.jit(lambda conditions: both(conditions, {}, {}))


def gradients(name, values):
    """Returns the gradients of the conditional and of the unconditional estimate, each by `values`."""
    both = functools.partial(estimates(name), example_conditions())

    @jax.jit
    def differentiate(values):
        outputs, pull = jax.vjp(both, values, values)
        return pull(outputs)

    return differentiate(values)


def token_table(variables):
    return variables["frozen"]["clip"]["params"]["model"]["text"]["token"]


def bound_clip():
    model, variables = conditioned.clip()
    return model.clip(variables)


def others(tree):
    """Returns the values of other examples for each example."""
    return jax.tree.map(lambda x: np.roll(x, 2, axis=0), tree)


def apart(a, b):
    """Returns the largest difference of each example, [B]."""
    return np.abs(np.asarray(a) - b).max(axis=(1, 2, 3))


def inpainting_conditions(mask=1.0):
    """Returns conditions with an image and a constant mask; 1: the known region."""
    return {
        **example_conditions(),
        "image": example_conditions()["original"],
        "mask": np.full((6, 8, 8, 1), mask, np.float32),
    }


# test_ddpm shows the same of `label`.
@pytest.mark.parametrize("name", [pytest.param("label", marks=pytest.mark.slow), *DROPPABLE[1:]])
def test_the_conditional_model_depends_on_a_condition_and_the_unconditional_does_not(name):
    (conditional, unconditional), (other, other_unconditional) = (
        run(name)(example_conditions()),
        run(name)(others(example_conditions())),
    )
    assert (apart(conditional, other) > 1e-3).all() and (apart(conditional, unconditional) > 1e-3).all()
    np.testing.assert_array_equal(unconditional, other_unconditional)


@pytest.mark.parametrize("name", ["caption", "clip_text"])
def test_a_negative_prompt_takes_the_place_of_the_null_caption(name):
    conditions = example_conditions()
    negative = others(conditions["tokens"])
    conditional, unconditional = run(name)({**conditions, "negative_tokens": negative})
    np.testing.assert_allclose(conditional, run(name)(conditions)[0], atol=1e-5)
    np.testing.assert_allclose(unconditional, run(name)({**conditions, "tokens": negative})[0], atol=1e-5)


def test_a_condition_alone_is_the_model_with_the_others_dropped():
    """The estimate depends on this condition only, and equals that of both where the other is null or negative."""
    _, model, variables = conditioned.built("label", "caption")
    conditions = example_conditions()

    @jax.jit
    def denoise(conditions):
        bound = model.bind(variables, conditions)
        level = bound.process.schedule(10.0)
        return bound.denoiser(X, level).x0, bound.alone("label")(X, level).x0

    without_caption = {**conditions, "tokens": np.full_like(conditions["tokens"], NO_TOKEN)}
    (both, alone), (expected, same) = denoise(conditions), denoise(without_caption)
    np.testing.assert_allclose(alone, expected, atol=1e-5)
    np.testing.assert_array_equal(alone, same)
    assert (apart(both, alone) > 1e-3).all()
    negative = others(conditions["tokens"])
    _, alone = denoise({**conditions, "negative_tokens": negative})
    np.testing.assert_allclose(alone, denoise({**conditions, "tokens": negative})[0], atol=1e-5)


@pytest.mark.parametrize("name", ["caption", "clip_text"])
def test_conditions_are_encoded_once_and_one_holds_for_a_batch(name, monkeypatch):
    _, model, variables = conditioned.built(name)
    expected = run(name)(example_conditions())
    bound = model.bind(variables, {field: values[2:3] for field, values in example_conditions().items()})
    monkeypatch.delattr({"caption": Caption, "clip_text": ClipText}[name], "network_inputs")  # encodes captions
    both = jax.jit(lambda x: [getattr(bound, which)(x, bound.process.schedule(10.0)).x0 for which in WHICH])(X)
    for result, batch in zip(both, expected, strict=True):
        np.testing.assert_allclose(result[2], batch[2], atol=1e-5)
        assert apart(result, np.roll(result, 1, axis=0)).min() > 1e-3  # x_t differs


@pytest.mark.parametrize("name", ["caption", "clip_text"])
def test_a_dropped_caption_equals_an_empty_caption(name):
    """The caption of CLIP keeps its start token."""
    empty = np.where(np.arange(6) < (name == "clip_text"), example_conditions()["tokens"], NO_TOKEN)
    np.testing.assert_allclose(
        run(name)({**example_conditions(), "tokens": empty})[0], run(name)(example_conditions())[1], atol=1e-5
    )


def test_padding_is_masked_and_other_context_is_not():
    tokens = jnp.array([[7, 3, 9, NO_TOKEN], [7, 9, NO_TOKEN, NO_TOKEN]])
    fake = bound_clip()._replace(text_states=lambda tokens: jnp.zeros((*tokens.shape, 8)), width=8)
    each = {"clip_text": ClipText(masked=True), "label_token": ClassToken(10, 8)}
    values = {"clip_text": {"tokens": tokens}, "label_token": jnp.array([1, 2])}
    inputs = Conditions(each).network_inputs({"label_token": {"table": jnp.zeros((11, 8))}}, values, fake)
    assert inputs.context.shape == (2, 5, 8)
    np.testing.assert_array_equal(inputs.context_mask, [[1, 1, 1, 0, 1], [1, 1, 0, 0, 1]])


def test_a_network_without_masks_cannot_mask_padding():
    config = conditioned.config("clip_text")
    with config.unlocked():
        config.conditions.clip_text.mask_padding = True
    with pytest.raises(UserError, match=r"conditions.clip_text.mask_padding=True: requires a UNet"):
        models.build(config, conditioned.SPEC, **conditioned.parts("clip_text"))


def test_the_null_caption_of_published_models_is_the_empty_caption():
    """A dropped caption is [start, end], for the captions of any length and for stored states of CLIP."""
    tokens = np.array([[7, 3, 4, 9, NO_TOKEN], [7, 9, NO_TOKEN, NO_TOKEN, NO_TOKEN], [7, 1, 2, 3, 9]], np.int32)
    clip_text = ClipText(dropout=0.5, null="empty")
    mask = np.array([True, True, False])
    dropped = clip_text.drop({"tokens": jnp.asarray(tokens)}, mask)["tokens"]
    np.testing.assert_array_equal(dropped, [[7, 9, *[NO_TOKEN] * 3]] * 2 + [tokens[2]])
    encode = lambda tokens: jnp.sum(tokens, axis=1)[:, None, None] + jnp.zeros((1, 5, 8))  # noqa: E731
    fake = bound_clip()._replace(text_states=encode, width=8)
    stored = {"tokens": dropped, "text_states": jnp.full((3, 5, 8), 100.0)}
    states = clip_text.network_inputs({}, stored, fake).context
    with pytest.raises(UserError, match=r"conditions.clip_text.null 'none': choose from empty, start"):
        conditions("clip_text", conditions__clip_text__null="none")
    np.testing.assert_array_equal(states[:, 0, 0], [7 + 9 + 3 * NO_TOKEN] * 2 + [100])


def test_states_of_a_caption_are_mapped_to_the_width_of_the_context():
    """A linear layer and a layer norm, in NumPy."""
    rng = np.random.default_rng(0)
    states, kernel, bias, scale, shift = (rng.normal(size=s) for s in ((2, 6, 8), (8, 5), (5,), (5,), (5,)))
    condition = ClipText(width=5, states_width=8)
    assert jax.tree.map(jnp.shape, condition.init(jax.random.key(0))) == {
        "linear": {"kernel": (8, 5), "bias": (5,)},
        "norm": {"scale": (5,), "bias": (5,)},
    }
    params = {"linear": {"kernel": kernel, "bias": bias}, "norm": {"scale": scale, "bias": shift}}
    values = {"tokens": jnp.ones((2, 6), jnp.int32), "text_states": jnp.asarray(states)}
    context = condition.network_inputs(params, values, bound_clip()).context
    h = states @ kernel + bias
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(context, h * scale + shift, atol=1e-4)
    assert condition.context_width(bound_clip()) == 5


def test_an_image_embedding_is_scaled_only_at_unit_length():
    params, values = {"null": jnp.zeros(12)}, {"embedding": jnp.full((2, 12), 0.5), "present": jnp.ones(2, bool)}
    for unit_length, factor in ((True, 12**0.5), (False, 1.0)):
        condition = ImageEmbedding(12, tokens=0, unit_length=unit_length)
        np.testing.assert_allclose(condition.network_inputs(params, values, None).embedding, factor * 0.5, rtol=1e-6)


def test_a_missing_caption_is_empty_and_raises_for_clip_text():
    without_caption = {"label": example_conditions()["label"]}
    tokens = conditions("caption").encode(inputs(without_caption))["caption"]
    np.testing.assert_array_equal(tokens, np.full((6, 6), NO_TOKEN))
    with pytest.raises(UserError, match="this run is conditioned on captions: pass --prompt"):
        conditions("clip_text").encode(inputs(without_caption))


def test_a_dropped_embedding_has_no_gradient():
    embedding = jax.jit(bound_clip().embed_images)(example_conditions()["original"])
    conditional, unconditional = gradients("image_embedding", {"image_embedding": embedding})
    assert (np.abs(conditional["image_embedding"]).max(axis=1) > 1e-4).all()
    np.testing.assert_array_equal(unconditional["image_embedding"], 0.0)


@pytest.mark.slow
def test_dropped_words_have_no_gradient():
    """In the table of CLIP's tokens, only the row of the start token has a gradient; it is never dropped."""
    conditional, unconditional = gradients(
        "clip_text", {"table": token_table(conditioned.built("clip_text")[2])["embedding"]}
    )
    rows = [np.flatnonzero(np.abs(gradient["table"]).max(axis=1)) for gradient in (conditional, unconditional)]
    np.testing.assert_array_equal(rows[0], np.unique(np.maximum(example_conditions()["tokens"], 0)))
    np.testing.assert_array_equal(rows[1], [0])


RATES = {"label": 0.1, "label_token": 0.2, "caption": 0.3, "clip_text": 0.4, "image_embedding": 0.5}
COUNT = 10_000


def conditions(*names, **changes):
    """Returns the conditions of a config, with an abstract CLIP."""
    model, variables = conditioned.clip()
    config = conditioned.config(*names, **changes)
    return make_conditions(config, SPEC, pixel_space(SPEC), abstract_value(model.clip, variables))


def test_conditions_of_equal_configs_are_equal():
    """A student must have the conditions of its teacher."""
    assert conditions(*ALL) == conditions(*ALL)
    assert conditions("low_res_image") != conditions("low_res_image", conditions__low_res_image__degradation="blur")


@functools.cache
def conditions_with_rates():
    rates = {f"conditions__{name}__dropout": rate for name, rate in RATES.items() if name != "label"}
    return conditions(*RATES, diffusion__label_dropout=RATES["label"], **rates)


def encoded_values(count=COUNT):
    """Returns encoded conditions of `count` examples, none of them null."""
    tokens = np.where(np.arange(6) < 2 + np.arange(count)[:, None] % 5, 7, NO_TOKEN).astype(np.int32)
    label = (np.arange(count) % 10).astype(np.int32)
    image_embedding = {"embedding": np.random.default_rng(0).normal(size=(count, 12)), "present": np.ones(count, bool)}
    discrete = {"label": label, "label_token": label, "caption": tokens, "clip_text": {"tokens": tokens}}
    return {**discrete, "image_embedding": jax.tree.map(jnp.asarray, image_embedding)}


def is_null(found):
    """Returns whether each example has the null value, [B], for each condition."""
    return {
        "label": np.asarray(found["label"] == 10),
        "label_token": np.asarray(found["label_token"] == 10),
        "caption": np.asarray(found["caption"] == NO_TOKEN).all(axis=1),
        "clip_text": np.asarray(found["clip_text"]["tokens"] == NO_TOKEN)[:, 1:].all(axis=1),
        "image_embedding": ~np.asarray(found["image_embedding"]["present"]),
    }


@functools.cache
def dropped(count=COUNT):
    return jax.jit(conditions_with_rates().drop_randomly)(encoded_values(count), keys(COUNT)[:count])


def test_conditions_are_dropped_independently_at_their_rates():
    """The rate of dropping a pair is the product of both rates."""
    is_dropped = is_null(dropped())

    def assert_rate(found, rate):
        np.testing.assert_allclose(found.mean(), rate, atol=4.5 * np.sqrt(rate * (1 - rate) / COUNT))

    for name, rate in RATES.items():
        assert_rate(is_dropped[name], rate)
    for a, b in itertools.combinations(RATES, 2):
        assert_rate(is_dropped[a] & is_dropped[b], RATES[a] * RATES[b])


def test_conditions_that_are_not_dropped_are_unchanged():
    is_dropped, before, after = is_null(dropped()), encoded_values(), dropped()
    for name in RATES:
        for old, new in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True):
            np.testing.assert_array_equal(np.asarray(new)[~is_dropped[name]], np.asarray(old)[~is_dropped[name]])
    assert (np.asarray(after["clip_text"]["tokens"])[:, 0] == 7).all()  # the start token is never dropped


def test_dropping_depends_on_the_key_of_the_example_alone():
    few = dropped(10)
    for old, new in zip(jax.tree.leaves(dropped()), jax.tree.leaves(few), strict=True):
        np.testing.assert_array_equal(np.asarray(old)[:10], new)


def test_conditions_without_dropout_are_never_dropped():
    without_dropout = conditions("caption", "low_res_image", conditions__caption__dropout=0.0)
    encoded = {"caption": encoded_values()["caption"], "low_res_image": None}
    assert not without_dropout.supports_guidance
    assert without_dropout.drop_randomly(encoded, keys(COUNT))["caption"] is encoded["caption"]
    assert without_dropout.drop_all(encoded, COUNT)["caption"] is encoded["caption"]
    assert conditions_with_rates().supports_guidance


@pytest.mark.slow
def test_training_drops_captions_at_their_rate():
    """The loss of an example equals that without a caption, or depends on the caption, by the key."""
    _, model, variables = conditioned.built("caption")
    batch = tiny.batch(31)
    loss = jax.jit(
        lambda tokens: model.losses["model"](variables, {**batch, "tokens": tokens}, keys(31), tiny.moment())[0]
    )
    without, one, other = (
        np.asarray(loss(tokens)) for tokens in (np.full((31, 6), NO_TOKEN), batch["tokens"], others(batch["tokens"]))
    )
    is_dropped = one == without
    np.testing.assert_array_equal(is_dropped, other == without)
    assert 2 <= is_dropped.sum() <= 16  # a quarter of 31
    assert (np.abs(one - other) > 1e-6)[~is_dropped].all()


def inputs(values, *, level=None, encode=lambda x: x, seed=0):
    return ConditionInputs(values, keys(len(values["label"]), seed), encode_image=encode, augmentation_level=level)


def test_a_number_is_a_hidden_layer():
    all_conditions, values = conditions("number"), np.array([0.0, 0.3, 2.0], np.float32)
    params = all_conditions.init(keys()[0])
    encoded = all_conditions.encode(ConditionInputs({"number": values}, keys(3)))
    kernel, bias = (np.asarray(params["number"]["hidden"][name]) for name in ("kernel", "bias"))
    hidden = values[:, None] * kernel + bias
    expected = hidden / (1 + np.exp(-hidden))
    np.testing.assert_allclose(all_conditions.network_inputs(params, encoded, None).embedding, expected, rtol=1e-5)
    with pytest.raises(UserError, match="this run is conditioned on a number: pass --number=NUMBER"):
        all_conditions.encode(inputs({"label": np.zeros(3)}))


def test_samples_depend_on_the_number():
    """The number of the settings holds for all samples without one among their conditions."""
    sample, values = sampled("number", sampler__number=0.5), example_conditions()
    one, other = sample(values), sample(values, number=1.5)
    assert (apart(one, other) > 1e-3).all()
    each = sample({**values, "number": np.array([0.5, 1.5] * 3, np.float32)})
    np.testing.assert_allclose(each, np.where(np.arange(6).reshape(6, 1, 1, 1) % 2, other, one), atol=1e-5)
    with pytest.raises(UserError, match=r"sampler.number=2.5: must be a finite number from 0 to 2"):
        sample(values, number=2.5)
    config, model, _ = conditioned.built("caption")
    with pytest.raises(UserError, match=r"sampler.number=0.5: requires a model with conditions.number"):
        model.make_settings(config.sampler, number=0.5)


def upsampled(images, factor):
    """Returns images interpolated linearly at half-pixel centres along both axes; np.interp repeats the edges."""
    for axis in (1, 2):
        side = images.shape[axis]
        positions = (np.arange(factor * side) + 0.5) / factor - 0.5
        along = functools.partial(np.interp, positions, np.arange(side))
        images = np.apply_along_axis(along, axis, images)
    return images


def test_a_low_res_image_is_upsampled_and_its_level_embedded():
    """At level 0 the image is averaged over squares; the level is embedded by sines and cosines."""
    all_conditions, original = conditions("low_res_image"), example_conditions()["original"]
    found = all_conditions.encode(inputs(example_conditions(), level=0.0))
    small = np.asarray(original).reshape(6, 4, 2, 4, 2, 1).mean((2, 4))
    np.testing.assert_allclose(found["low_res_image"]["image"], small, atol=1e-6)
    network_inputs = all_conditions.network_inputs({}, found, None)
    np.testing.assert_allclose(network_inputs.channels, upsampled(small, 2), atol=1e-5)
    assert network_inputs.context is None and network_inputs.label is None
    values = {"label": example_conditions()["label"], "low_res_image": small[::-1]}  # of the previous stage
    previous = all_conditions.encode(inputs(values, level=0.0))
    np.testing.assert_allclose(
        all_conditions.network_inputs({}, previous, None).channels, upsampled(small[::-1], 2), atol=1e-5
    )
    angles = 1000 * 0.3 / 10000 ** (np.arange(16) / 16)
    waves = all_conditions.network_inputs(
        {}, all_conditions.encode(inputs(example_conditions(), level=0.3)), None
    ).embedding
    np.testing.assert_allclose(waves, np.tile(np.concatenate([np.cos(angles), np.sin(angles)]), (6, 1)), atol=1e-3)


def keys_filter(x):
    """Returns Keys' cubic weights with a = -1/2 at distances `x`."""
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def test_an_upsampler_without_a_level_with_bicubic_interpolation():
    """The weights of each pixel are those of pixels inside the image, and sum to one."""
    all_conditions = conditions(
        "low_res_image",
        conditions__low_res_image__level=False,
        conditions__low_res_image__interpolation="bicubic",
        conditions__low_res_image__degradation="none",
    )
    low = np.random.default_rng(0).normal(size=(6, 4, 4, 1))
    values = {"label": example_conditions()["label"], "low_res_image": low}
    network_inputs = all_conditions.network_inputs({}, all_conditions.encode(inputs(values, level=0.3)), None)
    assert network_inputs.embedding is None
    weights = keys_filter((np.arange(8)[:, None] + 0.5) / 2 - 0.5 - np.arange(4))
    weights /= weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(network_inputs.channels, np.einsum("yh,xw,bhwc->byxc", weights, weights, low), atol=1e-5)


@pytest.mark.parity
def test_enlarged_images_are_those_of_published_upsamplers():
    """Bilinear in ADM and GLIDE, bicubic with antialiasing in karlo."""
    torch = pytest.importorskip("torch")
    images = np.random.default_rng(0).normal(size=(2, 5, 5, 3)).astype(np.float32)
    for enlarge, options in (
        (upsample_bilinear, {"mode": "bilinear", "align_corners": False}),
        (upsample_bicubic, {"mode": "bicubic", "align_corners": False, "antialias": True}),
    ):
        for factor in (2, 4):
            expected = torch.nn.functional.interpolate(
                torch.tensor(images).permute(0, 3, 1, 2), scale_factor=factor, **options
            )
            np.testing.assert_allclose(enlarge(images, factor), expected.permute(0, 2, 3, 1).numpy(), atol=1e-5)


def test_in_training_each_image_has_its_own_augmentation_level():
    """Levels are uniform and depend on the key; the standard deviation of the noise is half of the encoded level."""
    blank = {"label": np.arange(1000), "original": jnp.zeros((1000, 8, 8, 1))}
    degraded = jax.jit(lambda keys: conditions("low_res_image").encode(ConditionInputs(blank, keys))["low_res_image"])
    found = degraded(keys(1000))
    level, noise = np.sort(found["level"]), found["image"] / found["level"][:, None, None, None]
    assert len(np.unique(level)) == 1000
    assert np.abs(level - (np.arange(1000) + 0.5) / 1000).max() < 1.63 / np.sqrt(1000)  # Kolmogorov-Smirnov at 1 %
    np.testing.assert_allclose(np.mean(np.square(noise)), 0.25, rtol=5 * np.sqrt(2 / 16_000))
    of_reversed = degraded(keys(1000)[::-1])
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(lambda x: x[::-1], of_reversed), found)


@functools.cache
def sampled(name, **changes):
    """Returns (conditions, **settings) -> samples with the same keys."""
    config, model, variables = conditioned.built(name, **changes)
    sample = jax.jit(lambda conditions, settings: model.sample(variables, keys(), conditions, settings))
    return lambda conditions, **settings: np.asarray(
        sample(conditions, model.make_settings(config.sampler, **settings))
    )


def test_samples_depend_on_the_augmentation_level_and_the_low_res_image():
    """With degradation "none", the level only changes its embedding."""
    sample = sampled("low_res_image", conditions__low_res_image__degradation="none")
    clean, augmented = sample(example_conditions()), sample(example_conditions(), augmentation=0.7)
    assert (apart(clean, augmented) > 1e-3).all()
    assert (apart(clean, sample(others(example_conditions()))) > 1e-3).all()
    np.testing.assert_array_equal(clean, sample(example_conditions(), augmentation=0.0))


def test_invalid_augmentation_levels_raise():
    for name, level, message in (
        ("low_res_image", 1.5, "must be a finite number from 0 to 1"),
        ("caption", 0.5, "only supported for upsamplers"),
    ):
        config, model, _ = conditioned.built(name)
        with pytest.raises(UserError, match=message):
            model.make_settings(config.sampler, augmentation=level)


def test_a_masked_image_is_the_known_region_and_the_mask():
    all_conditions, original = conditions("masked_image"), np.asarray(example_conditions(64)["original"])
    network_inputs = jax.jit(
        lambda values, keys: all_conditions.network_inputs(
            {}, all_conditions.encode(ConditionInputs(values, keys, encode_image=lambda x: x)), None
        )
    )
    channels = np.asarray(network_inputs(example_conditions(64), keys(64)).channels)
    image, masked = channels[..., :1], channels[..., 1:]
    assert channels.shape == (64, 8, 8, 2) and set(np.unique(masked)) == {0.0, 1.0}
    np.testing.assert_array_equal(image, np.where(masked == 1.0, 0.0, original))
    shares = masked.mean(axis=(1, 2, 3))
    assert shares.min() > 0 and len(np.unique(masked.reshape(64, -1), axis=0)) > 30 and 0.3 < shares.mean() < 0.7
    of_reversed = network_inputs(jax.tree.map(lambda x: x[::-1], example_conditions(64)), keys(64)[::-1]).channels
    np.testing.assert_array_equal(of_reversed[::-1], channels)


def test_without_an_image_everything_is_masked():
    all_conditions = conditions("masked_image")
    channels = np.asarray(
        all_conditions.network_inputs(
            {}, all_conditions.encode(inputs({"label": example_conditions()["label"]})), None
        ).channels
    )
    np.testing.assert_array_equal(channels, np.broadcast_to([0.0, 1.0], (6, 8, 8, 2)))


def test_a_passed_mask_selects_the_known_region():
    all_conditions, values = conditions("masked_image"), inpainting_conditions()
    values["mask"] = np.random.default_rng(0).integers(0, 2, (6, 8, 8, 1)).astype(np.float32)
    channels = all_conditions.network_inputs({}, all_conditions.encode(inputs(values)), None).channels
    expected = np.concatenate([values["image"] * values["mask"], 1 - values["mask"]], axis=-1)
    np.testing.assert_array_equal(channels, expected)
    np.testing.assert_array_equal(
        all_conditions.network_inputs({}, all_conditions.encode(inputs(values, seed=1)), None).channels, expected
    )


def test_a_position_of_x_is_masked_if_any_of_its_pixels_is():
    space = pixel_space(SPEC, 2)
    all_conditions = make_conditions(conditioned.config("masked_image", diffusion__downsample=2), SPEC, space)
    values = inpainting_conditions()
    values["mask"][:, 3, 5] = 0.0
    channels = np.asarray(
        all_conditions.network_inputs(
            {}, all_conditions.encode(inputs(values, encode=lambda x: space.encode({}, x))), None
        ).channels
    )
    assert channels.shape == (6, 4, 4, 2)
    assert (channels[:, 1, 2, 1] == 1).all() and channels[..., 1].sum() == 6
    averaged = np.asarray(values["original"]).reshape(6, 4, 2, 4, 2, 1).mean((2, 4))
    known = channels[..., 1] == 0
    np.testing.assert_allclose(channels[..., 0][known], averaged[..., 0][known], atol=1e-6)


@pytest.mark.parametrize("ones", ["masked", "known"])
def test_the_mask_of_published_models(ones):
    """In Stable Diffusion 1 is masked, and a latent's mask is that of its first pixel; in GLIDE 1 is known."""
    config = conditioned.config("masked_image", conditions__masked_image__resize="nearest", diffusion__downsample=2)
    config.conditions.masked_image = {**config.conditions.masked_image, "ones": ones}
    space, values = pixel_space(SPEC, 2), inpainting_conditions()
    all_conditions = make_conditions(config, SPEC, space)
    values["mask"] = np.random.default_rng(0).integers(0, 2, (6, 8, 8, 1)).astype(np.float32)
    encoded = all_conditions.encode(inputs(values, encode=lambda x: space.encode({}, x)))
    channels = np.asarray(all_conditions.network_inputs({}, encoded, None).channels)
    first = values["mask"][:, ::2, ::2]
    np.testing.assert_array_equal(channels[..., 1:], first if ones == "known" else 1 - first)


@pytest.mark.slow
def test_in_latents_a_masked_image_is_the_latent_of_nothing():
    """Samples without an image see what training shows where everything is masked."""
    config = conditioned.latent("masked_image", conditions__masked_image__full_mask_prob=1.0)
    shifted = lambda x: conditioned.CODEC[0].codec(conditioned.CODEC[1]).encode(x) + 0.5  # noqa: E731
    all_conditions = models.build(config, SPEC, codec=conditioned.CODEC).conditions
    without_image = {"label": example_conditions()["label"]}
    found, trained = (
        all_conditions.network_inputs({}, all_conditions.encode(inputs(values, encode=shifted)), None).channels
        for values in (without_image, example_conditions())
    )
    np.testing.assert_array_equal(found, trained)
    np.testing.assert_array_equal(found[..., :4], np.full((6, 4, 4, 4), 0.5))


@pytest.mark.slow
def test_the_network_alone_may_inpaint():
    """Without `keep_known` the samples are those of the network's estimates, conditioned on the known region."""
    sample, values = sampled("masked_image"), inpainting_conditions()
    values["mask"][:, :, 4:] = 0.0
    replaced, alone = sample(values), sample(values, keep_known=False)
    assert (apart(replaced[:, :, :4], alone[:, :, :4]) > 1e-3).all()
    other_known = {**values, "image": np.where(values["mask"] == 1, np.roll(values["image"], 1, axis=0), 0.0)}
    assert (apart(sample(other_known, keep_known=False), alone) > 1e-3).all()
    config, model, _ = conditioned.built("caption")
    with pytest.raises(UserError, match=r"keep_known=False: requires a model with conditions.masked_image"):
        model.make_settings(config.sampler, keep_known=False)


def test_inpainting_keeps_the_known_region_and_is_conditioned_on_it():
    sample, values = sampled("masked_image"), inpainting_conditions()
    values["mask"][:, :, 4:] = 0.0
    samples, image = sample(values), np.asarray(values["image"])
    np.testing.assert_allclose(samples[:, :, :4], image[:, :, :4], atol=1e-6)
    assert (apart(samples[:, :, 4:], image[:, :, 4:]) > 1e-3).all()
    other_known = {**values, "image": np.where(values["mask"] == 1, np.roll(image, 1, axis=0), image)}
    assert (apart(sample(other_known)[:, :, 4:], samples[:, :, 4:]) > 1e-3).all()
    other_unknown = {**values, "image": np.where(values["mask"] == 1, image, -image)}
    np.testing.assert_array_equal(sample(other_unknown), samples)


def test_all_conditions_are_concatenated_in_the_order_of_the_config():
    """Embeddings and channels are concatenated along the last axis, contexts along the axis of tokens."""
    all_conditions = conditions(*ALL)
    shapes = jax.eval_shape(
        lambda: all_conditions.network_inputs(all_conditions.init(keys()[0]), encode_all(all_conditions), bound_clip())
    )
    assert shapes.label.shape == (6,)
    assert shapes.context.shape == (
        6,
        1 + 6 + 6 + 2,
        8,
    )  # label, caption, CLIP's states of the caption, CLIP's image embedding
    assert shapes.embedding.shape == (6, 8 + 12 + 12 + 32)  # caption, CLIP's two, level
    assert shapes.channels.shape == (6, 8, 8, 1 + 1 + 1)
    assert all_conditions.required_inputs == {"image_embedding": 12, "low_res_image": 4}
    assert (all_conditions.classes, all_conditions.num_label_embeddings, all_conditions.text.length) == (10, 11, 6)


def encode_all(all_conditions):
    return all_conditions.encode(inputs(example_conditions(), level=0.0)._replace(clip=bound_clip()))


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
        (("low_res_image",), {"conditions__low_res_image__interpolation": "cubic"}, "interpolation 'cubic': did you"),
        (("number",), {}, "sampler.number: is missing, as the model is conditioned on a number from 0 to 2; pass"),
        (("number",), {"conditions__number__high": 0.0}, "conditions.number.high=0: must be a finite number above 0"),
        (("number",), {"conditions__number__width": 0}, "conditions.number.width=0: must be a whole number"),
        (("masked_image",), {"conditions__masked_image__ones": "kept"}, "masked_image.ones 'kept': choose from"),
        (("masked_image",), {"conditions__masked_image__resize": "all"}, "masked_image.resize 'all': choose from"),
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
    assert_raises(message, conditioned.config(*names, **changes))


def assert_raises(message, config, spec=SPEC, **parts):
    with pytest.raises(UserError, match=message) as caught:
        models.build(config, spec, **parts)
    assert "\n" not in str(caught.value)


def test_contexts_of_different_or_no_width_raise():
    wider = conditioned.config("clip_text", "image_embedding", conditions__image_embedding__width=16)
    assert_raises("conditions.clip_text 8, conditions.image_embedding 16", wider, clip=conditioned.clip())
    no_width = conditioned.config("image_embedding", conditions__image_embedding__width=0)
    assert_raises("conditions.image_embedding.width=0: tokens must have", no_width, clip=conditioned.clip())


def test_missing_labels_and_short_texts_raise():
    assert_raises(
        "conditions.label_token: the data set does not have labels",
        conditioned.config("label_token"),
        ImageSpec(8, 1, 0),
    )
    assert_raises("length must be from 3", conditioned.config("caption", text=TEXT | {"length": 2}))


@pytest.mark.parametrize("name", ["image_embedding", "low_res_image"])
def test_a_missing_image_raises(name):
    config, model, variables = conditioned.built(name)
    values, settings = {"label": example_conditions()["label"]}, model.make_settings(config.sampler)
    with pytest.raises(UserError, match="conditioned on an image: pass --image=FILE, or sample the full pipeline"):
        jax.eval_shape(model.sample, variables, keys(), values, settings)
    assert set(model.required_inputs) == {name}
