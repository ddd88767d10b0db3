"""Principal components of CLIP embeddings against NumPy, their codes, and unCLIP's prior over these codes."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy import stats

from diffjax import models
from diffjax.diffusion.random import fold_in_each
from diffjax.errors import UserError
from diffjax.models.condition_inputs import ConditionInputs
from diffjax.models.images import to_unit_range
from diffjax.models.pipelines import pca
from diffjax.models.priors.prefix import ClipCaptionPrefix
from diffjax.models.priors.token_models import TransformerPrior
from diffjax.typing import TextSpec
from tests import conditioned, tiny
from tests.conditioned import SPEC, TEXT, clip, keys

D, KEPT, BINS, LEVELS = 12, 5, 16, 64
STEPS, SIZE = 4, 24
BATCHES = [tiny.batch(SIZE, seed) for seed in range(STEPS)]
BATCH = tiny.batch()


def config(name="pca", **changes):
    sizes = {"pca": {"model__components": KEPT, "model__bins": BINS, "text": TEXT}, "unclip_ar_prior": {}}
    changed = {"model__layers": 1, "model__condition_dropout": 0.2} if name != "pca" else {}
    return tiny.config(name, data__image_size=8, **sizes[name] | changed | changes)


@functools.cache
def counted():
    """(model, variables after all batches, losses of the last)."""
    model = models.build(config(), SPEC, clip=clip())
    statistics = jax.jit(model.init)(jax.random.key(0))["statistics"]

    @jax.jit
    def step(statistics, batch, i):
        changed = {"params": {"model": {}}, "statistics": statistics, "frozen": model.frozen}
        return model.losses["model"](changed, batch, keys(SIZE), tiny.moment(i, SIZE))

    for i, batch in enumerate(BATCHES):
        loss, aux = step(statistics, batch, i)
        statistics = aux.variables["statistics"]
    return model, {"params": {"model": {}}, "statistics": statistics, "frozen": model.frozen}, loss


@functools.cache
def embedded():
    """Embeddings of images and captions of all batches, [STEPS * SIZE, D] each."""
    model, variables = clip()
    bound = model.clip(variables)
    embed = jax.jit(lambda b: (bound.embed_images(to_unit_range(b["image"])), bound.embed_texts(b["tokens"])))
    images, texts = zip(*map(embed, BATCHES), strict=True)
    return np.concatenate(images).astype(np.float64), np.concatenate(texts).astype(np.float64)


@functools.cache
def spectrum():
    """Mean, components (rows, largest first) and their standard deviations, by NumPy from all batches."""
    images, _ = embedded()
    values, vectors = np.linalg.eigh(np.cov(images.T, bias=True))
    return images.mean(axis=0), vectors.T[::-1], np.sqrt(np.maximum(values[::-1], 0))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_components_match_those_of_all_batches():
    """Up to the sign of each component."""
    _, variables, loss = counted()
    (mean, basis, std), statistics = spectrum(), variables["statistics"]
    np.testing.assert_allclose(statistics["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(np.abs(np.asarray(statistics["basis"]) @ basis.T), np.eye(D), atol=5e-3)
    np.testing.assert_allclose(statistics["std"], std, rtol=2e-3)
    assert loss.shape == (SIZE,)
    np.testing.assert_allclose(loss, (std[KEPT:] ** 2).sum() / (std**2).sum(), rtol=1e-3)


def scores(embeddings):
    """Coordinates along the model's components [N, D], with its signs."""
    statistics = counted()[1]["statistics"]
    return (embeddings - spectrum()[0]) @ np.asarray(statistics["basis"], np.float64).T


@functools.cache
def coded():
    """Codes of the images of the first batch, and their embeddings."""
    model, variables, _ = counted()

    @jax.jit
    def run(images):
        codec = model.codec(variables)
        codes = codec.to_codes(images)
        return codes[0], codec.from_codes(codes)

    return jax.device_get(run(to_unit_range(BATCHES[0]["image"])))


def test_codes_are_within_half_a_bin():
    """The bins cover four standard deviations on both sides."""
    codes, result = coded()
    assert codes.shape == (SIZE, KEPT, 1, 1) and codes.min() >= 0 and codes.max() < BINS
    std = spectrum()[2][:KEPT]
    centre = ((codes[:, :, 0, 0] + 0.5) / BINS * 8 - 4) * std
    away = np.abs(centre - scores(embedded()[0][:SIZE])[:, :KEPT]) / std
    assert away.max() < 1.01 * 4 / BINS
    assert len(np.unique(codes)) > BINS // 2
    basis = np.asarray(counted()[1]["statistics"]["basis"], np.float64)
    np.testing.assert_allclose(result, unit(centre @ basis[:KEPT] + spectrum()[0]), atol=1e-4)
    projected = unit(scores(embedded()[0][:SIZE])[:, :KEPT] @ basis[:KEPT] + spectrum()[0])
    agree = (result * embedded()[0][:SIZE]).sum(axis=1), (projected * embedded()[0][:SIZE]).sum(axis=1)
    np.testing.assert_allclose(*agree, atol=0.05)  # close to those without bins


def test_values_out_of_range_have_the_outermost_codes():
    model, variables, _ = counted()
    narrow = {**variables, "statistics": {**variables["statistics"], "std": variables["statistics"]["std"] * 1e-4}}
    codes = jax.jit(lambda x: model.codec(narrow).to_codes(x)[0])(to_unit_range(BATCHES[0]["image"]))
    positive = scores(embedded()[0][:SIZE])[:, :KEPT] > 0
    np.testing.assert_array_equal(codes[:, :, 0, 0], np.where(positive, BINS - 1, 0))


def test_projection_on_the_first_components():
    """All components give the identity, none the mean."""
    statistics, x = counted()[1]["statistics"], embedded()[0][:6]
    basis = np.asarray(statistics["basis"], np.float64)
    project = jax.jit(pca.project)
    np.testing.assert_allclose(project(statistics, x.astype(np.float32), D), x, atol=1e-5)
    strangers = unit(np.random.default_rng(0).normal(size=(6, D))).astype(np.float32)
    np.testing.assert_allclose(project(statistics, strangers, D), strangers, atol=1e-5)
    for count in (0, 3):
        expected = unit(scores(x)[:, :count] @ basis[:count] + spectrum()[0])
        np.testing.assert_allclose(project(statistics, x.astype(np.float32), count), expected, atol=1e-4)


def agreements(images, texts):
    """Fraction of training pairs with a lower similarity, if the similarities are normal."""
    dots = (embedded()[0] * embedded()[1]).sum(axis=1)
    return stats.norm.cdf((images * texts).sum(axis=-1), dots.mean(), dots.std())


def test_quantiles_of_the_similarity_are_uniform_over_the_training_set():
    statistics, (images, texts) = counted()[1]["statistics"], embedded()
    result = np.asarray(pca.agreement(statistics, images.astype(np.float32), texts.astype(np.float32)))
    np.testing.assert_allclose(result, agreements(images, texts), atol=2e-3)
    assert abs(result.mean() - 0.5) < 0.06 and abs(result.std() - 12**-0.5) < 0.06
    assert pca.agreement(statistics, images[:1], images[:1]) > 0.9  # equal embeddings have the highest similarity


# --- the prior over these codes, conditioned on the caption by CLIP ---


@functools.cache
def prior(**changes):
    """Returns the config, the model, its variables, and its token model."""
    pca_config, (codec, variables, _) = config("unclip_ar_prior", **changes), counted()
    model = models.build(pca_config, SPEC, codec=(codec, variables), clip=clip())
    prefix = ClipCaptionPrefix(TextSpec(6, 300), D, 8)
    token_model = TransformerPrior.from_config(pca_config, codec.codec(variables), prefix)
    return pca_config, *conditioned.with_random_params(model), token_model


def test_an_untrained_prior_has_uniform_probabilities():
    """Its loss is per example."""
    _, model, variables, token_model = prior()
    params = {
        **variables["params"]["model"],
        "head": jax.tree.map(jnp.zeros_like, variables["params"]["model"]["head"]),
    }
    loss = losses()
    plain, aux = loss({"model": params}, BATCH, keys())
    np.testing.assert_allclose(plain, np.full(6, np.log(BINS)), rtol=1e-6)
    for name in ("bits_per_code", "bits_per_dim"):  # a code per dimension
        np.testing.assert_allclose(aux.metrics[name], np.full(6, np.log2(BINS)), rtol=1e-6)
    whole, _ = loss(variables["params"], BATCH, keys())
    assert whole.shape == (6,) and len(np.unique(whole)) == 6
    of_reversed, _ = loss(variables["params"], jax.tree.map(lambda x: x[::-1], BATCH), keys()[::-1])
    np.testing.assert_allclose(of_reversed[::-1], whole, rtol=1e-5)
    assert (
        model.output_size == D
        and model.outputs_embeddings
        and model.text.length == 6
        and token_model.grids == ((KEPT, 1, 1),)
    )


@functools.cache
def losses():
    _, model, variables, _ = prior()
    loss = model.losses["model"]
    return jax.jit(lambda params, batch, keys: loss({**variables, "params": params}, batch, keys, tiny.moment()))


@functools.cache
def prefix_values(training):
    """Returns values of the prefix of training pairs, or of samples."""
    _, _, _, token_model = prior()
    codec, variables, _ = counted()
    bound = clip()[0].clip(clip()[1])
    batch = {name: np.concatenate([b[name] for b in BATCHES]) for name in ("image", "tokens")}
    batch = batch if training else {"tokens": np.tile(batch["tokens"], (6, 1))}
    count = len(batch["tokens"])
    return jax.device_get(
        jax.jit(
            lambda batch: token_model.prefix.encode(ConditionInputs(batch, keys(count), bound, codec.codec(variables)))
        )(batch)
    )


def test_training_is_conditioned_on_the_similarity():
    share = agreements(*embedded()) * LEVELS
    level = prefix_values(True)["level"]
    sure = np.abs(share - np.round(share)) > 0.1  # not close to two levels
    np.testing.assert_array_equal(level[sure], np.floor(share)[sure])
    assert sure.mean() > 0.7 and level.min() < LEVELS // 4 and level.max() >= 3 * LEVELS // 4


def test_samples_are_conditioned_on_the_upper_half_of_the_levels():
    """Levels are uniform."""
    level = prefix_values(False)["level"]
    assert level.min() >= LEVELS // 2 and level.max() < LEVELS
    counts = np.bincount(level - LEVELS // 2, minlength=LEVELS // 2)
    assert stats.chisquare(counts).pvalue > 1e-3


@functools.cache
def scored():
    """Returns (codes [N, KEPT], values [N, ...]) -> -log p of every code."""
    _, _, variables, token_model = prior()
    run = jax.jit(lambda codes, values: token_model.nll(variables["params"]["model"], codes, values, None)["codes"])
    return lambda codes, values: np.asarray(run((codes[:, :, None, None],), values))


def some(values, rows):
    return jax.tree.map(lambda x: x[rows], values)


def test_the_prior_is_causal_and_depends_on_each_condition():
    codes = np.tile(coded()[0][:1, :, 0, 0], (10, 1))
    values = some(prefix_values(True), np.full(10, 3))
    values = jax.tree.map(np.array, values)
    codes[np.arange(KEPT), np.arange(KEPT)] = (codes[0] + 5) % BINS
    words = np.flatnonzero(values["present"][0, :6])
    values["states"][5, words[1]] += 1.0
    values["embedding"][6] = -values["embedding"][6]
    values["level"][7] = LEVELS - 1 - values["level"][7]
    values["present"][8] = False
    result = scored()(codes, values)  # the last row is unchanged
    moved = np.abs(result - result[9]) > 1e-6
    np.testing.assert_array_equal(moved[:KEPT], np.triu(np.ones((KEPT, KEPT), bool)))
    assert moved[5:9].all() and not moved[9].any()


def test_null_captions_and_padding_have_no_effect():
    _, _, _, token_model = prior()
    codes, values = np.tile(coded()[0][:1, :, 0, 0], (10, 1)), some(prefix_values(True), np.arange(10))
    null = scored()(codes, token_model.prefix.null(values))
    np.testing.assert_array_equal(null, np.broadcast_to(null[:1], null.shape))
    assert (np.abs(scored()(codes, values) - null).max(axis=1) > 1e-3).all()
    padded = ~values["present"][:, :6]
    noise = np.random.default_rng(0).normal(size=values["states"].shape).astype(np.float32)
    other = {**values, "states": np.where(padded[:, :, None], noise, values["states"])}
    assert padded.any()
    np.testing.assert_array_equal(scored()(codes, other), scored()(codes, values))


@pytest.mark.slow
def test_samples_are_guided_unit_norm_embeddings():
    """Scale 1 equals no guidance, scale 0 the null caption; the reference samples codes with the same keys."""
    pca_config, model, variables, token_model = prior()
    (codec, frozen, _), conditions = counted(), {"label": BATCH["label"], "tokens": BATCH["tokens"]}

    @jax.jit
    def by_hand():
        bound = codec.codec(frozen)
        values = token_model.prefix.encode(
            ConditionInputs(conditions, fold_in_each(keys(), 2**31 - 1), clip()[0].clip(clip()[1]), bound)
        )
        values = jax.tree.map(lambda *two: jnp.concatenate(two), values, token_model.prefix.null(values))
        known, twice = jnp.zeros((12, 0), jnp.int32), jnp.concatenate([keys(), keys()])
        codes = token_model.sample(variables["params"]["model"], twice, values, jax.vmap(jax.random.categorical), known)
        return jnp.split(bound.from_codes(codes), 2)

    sample = jax.jit(lambda settings: model.sample(variables, keys(), conditions, settings))
    conditional, unconditional = by_hand()
    near_one, zero, two = (
        sample(model.make_settings(pca_config.sampler, guidance=scale)) for scale in (1 + 1e-6, 0.0, 2.0)
    )
    assert two.shape == (6, D)
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(near_one, conditional, atol=1e-5)
    np.testing.assert_allclose(zero, unconditional, atol=1e-5)
    assert np.abs(conditional - zero).max() > 0.1 and np.abs(two - conditional).max() > 0.1
    assert len(np.unique(conditional, axis=0)) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__components": 0}, "model.components=0: must be a whole number from 1 to 12"),
        ({"model__components": 13}, "model.components=13"),
        ({"model__bins": 1}, "model.bins=1: must be a whole number from 2"),
        ({"train__accumulate": 2}, "train.accumulate=2: must be 1"),
    ],
)
def test_invalid_configs_raise(changes, message):
    assert_raises(message, config(**changes), clip=clip())


def assert_raises(message, config, **parts):
    with pytest.raises(UserError, match=message) as caught:
        models.build(config, SPEC, **parts)
    assert "\n" not in str(caught.value)


def test_a_missing_clip_raises():
    assert_raises("requires a trained CLIP; set --config.clip", config())


def test_a_prior_with_another_codec_or_without_clip_raises():
    autoencoder = models.build(tiny.config("vqvae"), SPEC)
    codes = autoencoder, {**autoencoder.variable_shapes, "frozen": {}}
    assert_raises(
        "clip_caption: is only supported for priors over CLIP embeddings",
        *[config("unclip_ar_prior")],
        codec=codes,
        clip=clip(),
    )
    assert_raises(
        "model.condition=clip_caption: requires a trained CLIP", config("unclip_ar_prior"), codec=counted()[:2]
    )
    assert_raises(
        "does not support captions token by token",
        config("unclip_ar_prior", model__architecture="pixelcnn"),
        codec=counted()[:2],
        clip=clip(),
    )


def test_embeddings_have_no_rows_to_keep():
    pca_config, model, _, _ = prior()
    with pytest.raises(UserError, match="must keep 1 to"):
        model.make_settings(pca_config.sampler, keep_fraction=0.5)
