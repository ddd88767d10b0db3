"""Principal components of CLIP's embeddings against NumPy's, their codes, and unCLIP's prior over these codes."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from scipy import stats

from diffjax import models
from diffjax.diffusion.sampling import fold_in
from diffjax.errors import UserError
from diffjax.models.autoregressive.prefix import ClipCaption, Told
from diffjax.models.autoregressive.token_models import TransformerPrior
from diffjax.models.pipelines import pca
from diffjax.models.pixels import to_unit_range
from diffjax.typing import TextSpec
from tests import conditioned, tiny
from tests.conditioned import SPEC, TEXT, clip, keys

D, KEPT, BINS, LEVELS = 12, 5, 16, 64
STEPS, SIZE = 4, 24
BATCHES = [tiny.batch(SIZE, seed) for seed in range(STEPS)]
BATCH = tiny.batch()


def config(name="pca", **changes):
    sizes = {"pca": {"model__components": KEPT, "model__bins": BINS, "text": TEXT}, "unclip_ar_prior": {}}
    given = {"model__layers": 1, "model__condition_dropout": 0.2} if name != "pca" else {}
    return tiny.config(name, data__image_size=8, **sizes[name] | given | changes)


@functools.cache
def counted():
    """(system, its variables after all batches, the losses of the last)."""
    system = models.build(config(), SPEC, clip=clip())
    seen = jax.jit(system.objective.init)(jax.random.key(0))["seen"]

    @jax.jit
    def step(seen, batch, i):
        given = {"params": {"model": {}}, "seen": seen, "frozen": system.frozen}
        return system.objective.losses["model"](given, batch, keys(SIZE), tiny.moment(i, SIZE))

    for i, batch in enumerate(BATCHES):
        loss, aux = step(seen, batch, i)
        seen = aux.variables["seen"]
    return system, {"params": {"model": {}}, "seen": seen, "frozen": system.frozen}, loss


@functools.cache
def embedded():
    """Of all batches: pictures and captions, [STEPS * SIZE, D] each."""
    system, variables = clip()
    bound = system.clip(variables)
    embed = jax.jit(lambda b: (bound.embed_images(to_unit_range(b["image"])), bound.embed_texts(b["tokens"])))
    images, texts = zip(*map(embed, BATCHES), strict=True)
    return np.concatenate(images).astype(np.float64), np.concatenate(texts).astype(np.float64)


@functools.cache
def spectrum():
    """Mean, components (rows, the largest first) and standard deviations along them: NumPy's, of all at once."""
    images, _ = embedded()
    values, vectors = np.linalg.eigh(np.cov(images.T, bias=True))
    return images.mean(axis=0), vectors.T[::-1], np.sqrt(np.maximum(values[::-1], 0))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_the_components_are_those_of_all_batches_together():
    """All batches count alike; signs are anyone's."""
    _, variables, loss = counted()
    (mean, basis, std), seen = spectrum(), variables["seen"]
    np.testing.assert_allclose(seen["mean"], mean, atol=1e-6)
    np.testing.assert_allclose(np.abs(np.asarray(seen["basis"]) @ basis.T), np.eye(D), atol=5e-3)
    np.testing.assert_allclose(seen["std"], std, rtol=2e-3)
    assert loss.shape == (SIZE,)
    np.testing.assert_allclose(loss, (std[KEPT:] ** 2).sum() / (std**2).sum(), rtol=1e-3)


def scores(embeddings):
    """Along the system's own components, whose signs are its own: [N, D]."""
    seen = counted()[1]["seen"]
    return (embeddings - spectrum()[0]) @ np.asarray(seen["basis"], np.float64).T


@functools.cache
def coded():
    """Codes of the pictures of the first batch, and embeddings of them."""
    system, variables, _ = counted()

    @jax.jit
    def run(images):
        codec = system.codec(variables)
        codes = codec.to_codes(images)
        return codes[0], codec.from_codes(codes)

    return jax.device_get(run(to_unit_range(BATCHES[0]["image"])))


def test_codes_are_within_half_a_bin():
    """Of the four deviations on both sides that the bins are spread over."""
    codes, found = coded()
    assert codes.shape == (SIZE, KEPT, 1, 1) and codes.min() >= 0 and codes.max() < BINS
    std = spectrum()[2][:KEPT]
    centre = ((codes[:, :, 0, 0] + 0.5) / BINS * 8 - 4) * std
    away = np.abs(centre - scores(embedded()[0][:SIZE])[:, :KEPT]) / std
    assert away.max() < 1.01 * 4 / BINS
    assert len(np.unique(codes)) > BINS // 2
    basis = np.asarray(counted()[1]["seen"]["basis"], np.float64)
    np.testing.assert_allclose(found, unit(centre @ basis[:KEPT] + spectrum()[0]), atol=1e-4)
    kept = unit(scores(embedded()[0][:SIZE])[:, :KEPT] @ basis[:KEPT] + spectrum()[0])
    agree = (found * embedded()[0][:SIZE]).sum(axis=1), (kept * embedded()[0][:SIZE]).sum(axis=1)
    np.testing.assert_allclose(*agree, atol=0.05)  # hardly worse than without bins


def test_what_is_out_of_reach_has_the_outermost_codes():
    system, variables, _ = counted()
    narrow = {**variables, "seen": {**variables["seen"], "std": variables["seen"]["std"] * 1e-4}}
    codes = jax.jit(lambda x: system.codec(narrow).to_codes(x)[0])(to_unit_range(BATCHES[0]["image"]))
    positive = scores(embedded()[0][:SIZE])[:, :KEPT] > 0
    np.testing.assert_array_equal(codes[:, :, 0, 0], np.where(positive, BINS - 1, 0))


def test_what_is_left_in_the_first_components():
    """Nothing is lost with all of them, everything but the mean with none."""
    seen, x = counted()[1]["seen"], embedded()[0][:6]
    basis = np.asarray(seen["basis"], np.float64)
    project = jax.jit(pca.projected)
    np.testing.assert_allclose(project(seen, x.astype(np.float32), D), x, atol=1e-5)
    strangers = unit(np.random.default_rng(0).normal(size=(6, D))).astype(np.float32)
    np.testing.assert_allclose(project(seen, strangers, D), strangers, atol=1e-5)
    for count in (0, 3):
        wanted = unit(scores(x)[:, :count] @ basis[:count] + spectrum()[0])
        np.testing.assert_allclose(project(seen, x.astype(np.float32), count), wanted, atol=1e-4)


def agreements(images, texts):
    """As the share of the training set's pairs that agree less, if those are normal."""
    dots = (embedded()[0] * embedded()[1]).sum(axis=1)
    return stats.norm.cdf((images * texts).sum(axis=-1), dots.mean(), dots.std())


def test_how_well_pairs_agree_is_spread_evenly_over_the_training_set():
    seen, (images, texts) = counted()[1]["seen"], embedded()
    found = np.asarray(pca.agreement(seen, images.astype(np.float32), texts.astype(np.float32)))
    np.testing.assert_allclose(found, agreements(images, texts), atol=2e-3)
    assert abs(found.mean() - 0.5) < 0.06 and abs(found.std() - 12**-0.5) < 0.06
    assert pca.agreement(seen, images[:1], images[:1]) > 0.9  # none agree more than those that are the same


# The prior over those codes, told what CLIP makes of the caption.


@functools.cache
def prior(**changes):
    """(config, system, variables, the model of the codes)."""
    made, (codec, variables, _) = config("unclip_ar_prior", **changes), counted()
    system = models.build(made, SPEC, codec=(codec, variables), clip=clip())
    told = ClipCaption(TextSpec(6, 300), D, 8)
    model = TransformerPrior.from_config(made, codec.codec(variables), told)
    return made, *conditioned.randomised(system), model


def test_an_untrained_prior_finds_all_codes_equally_likely():
    """And its loss comes back by example."""
    _, system, variables, model = prior()
    params = {
        **variables["params"]["model"],
        "head": jax.tree.map(jnp.zeros_like, variables["params"]["model"]["head"]),
    }
    loss = losses()
    plain, aux = loss({"model": params}, BATCH, keys())
    np.testing.assert_allclose(plain, np.full(6, np.log(BINS)), rtol=1e-6)
    for name in ("bits_per_code", "bits_per_dim"):  # a component is a dimension
        np.testing.assert_allclose(aux.metrics[name], np.full(6, np.log2(BINS)), rtol=1e-6)
    whole, _ = loss(variables["params"], BATCH, keys())
    assert whole.shape == (6,) and len(np.unique(whole)) == 6
    turned, _ = loss(variables["params"], jax.tree.map(lambda x: x[::-1], BATCH), keys()[::-1])
    np.testing.assert_allclose(turned[::-1], whole, rtol=1e-5)
    assert system.gives == D and system.embeds and system.text.length == 6 and model.grids == ((KEPT, 1, 1),)


@functools.cache
def losses():
    _, system, variables, _ = prior()
    loss = system.objective.losses["model"]
    return jax.jit(lambda params, batch, keys: loss({**variables, "params": params}, batch, keys, tiny.moment()))


@functools.cache
def told(training):
    """What the prior is told: of 600 pairs, or of as many samples."""
    _, _, _, model = prior()
    codec, variables, _ = counted()
    bound = clip()[0].clip(clip()[1])
    batch = {name: np.concatenate([b[name] for b in BATCHES]) for name in ("image", "tokens")}
    batch = batch if training else {"tokens": np.tile(batch["tokens"], (6, 1))}
    count = len(batch["tokens"])
    return jax.device_get(
        jax.jit(lambda batch: model.condition.of(Told(batch, keys(count), codec.codec(variables), bound)))(batch)
    )


def test_training_tells_how_well_the_picture_agrees():
    share = agreements(*embedded()) * LEVELS
    level = told(True)["level"]
    sure = np.abs(share - np.round(share)) > 0.1  # not between two levels
    np.testing.assert_array_equal(level[sure], np.floor(share)[sure])
    assert sure.mean() > 0.7 and level.min() < LEVELS // 4 and level.max() >= 3 * LEVELS // 4


def test_samples_are_asked_for_the_upper_half():
    """Each by its key, any of the half as often as another."""
    level = told(False)["level"]
    assert level.min() >= LEVELS // 2 and level.max() < LEVELS
    counts = np.bincount(level - LEVELS // 2, minlength=LEVELS // 2)
    assert stats.chisquare(counts).pvalue > 1e-3


@functools.cache
def scored():
    """(codes [N, KEPT], what is told [N, ...]) -> -log p of every code."""
    _, _, variables, model = prior()
    run = jax.jit(lambda codes, values: model.nll(variables["params"]["model"], codes, values, None)["codes"])
    return lambda codes, values: np.asarray(run((codes[:, :, None, None],), values))


def some(values, rows):
    return jax.tree.map(lambda x: x[rows], values)


def test_no_code_sees_its_future_and_all_hear_each_thing_they_are_told():
    codes = np.tile(coded()[0][:1, :, 0, 0], (10, 1))
    values = some(told(True), np.full(10, 3))
    values = jax.tree.map(np.array, values)
    codes[np.arange(KEPT), np.arange(KEPT)] = (codes[0] + 5) % BINS
    words = np.flatnonzero(values["there"][0, :6])
    values["states"][5, words[1]] += 1.0
    values["embedding"][6] = -values["embedding"][6]
    values["level"][7] = LEVELS - 1 - values["level"][7]
    values["there"][8] = False
    found = scored()(codes, values)  # the last is as it was
    moved = np.abs(found - found[9]) > 1e-6
    np.testing.assert_array_equal(moved[:KEPT], np.triu(np.ones((KEPT, KEPT), bool)))
    assert moved[5:9].all() and not moved[9].any()


def test_a_caption_that_is_withheld_is_absent():
    """And so is what stands where there is no token: not a bit depends on either."""
    _, _, _, model = prior()
    codes, values = np.tile(coded()[0][:1, :, 0, 0], (10, 1)), some(told(True), np.arange(10))
    withheld = scored()(codes, model.condition.withheld(values))
    np.testing.assert_array_equal(withheld, np.broadcast_to(withheld[:1], withheld.shape))
    assert (np.abs(scored()(codes, values) - withheld).max(axis=1) > 1e-3).all()
    padded = ~values["there"][:, :6]
    noise = np.random.default_rng(0).normal(size=values["states"].shape).astype(np.float32)
    other = {**values, "states": np.where(padded[:, :, None], noise, values["states"])}
    assert padded.any()
    np.testing.assert_array_equal(scored()(codes, other), scored()(codes, values))


def test_samples_are_embeddings_of_unit_length_that_guidance_leads():
    """At scale 1 those of no guidance, at 0 those of the caption withheld: drawn by hand, by the same keys."""
    made, system, variables, model = prior()
    (codec, frozen, _), about = counted(), {"label": BATCH["label"], "tokens": BATCH["tokens"]}

    @jax.jit
    def by_hand():
        bound = codec.codec(frozen)
        values = model.condition.of(Told(about, fold_in(keys(), 2**31 - 1), bound, clip()[0].clip(clip()[1])))
        values = jax.tree.map(lambda *two: jnp.concatenate(two), values, model.condition.withheld(values))
        known, twice = jnp.zeros((12, 0), jnp.int32), jnp.concatenate([keys(), keys()])
        codes = model.draw(variables["params"]["model"], twice, values, jax.vmap(jax.random.categorical), known)
        return jnp.split(bound.from_codes(codes), 2)

    guide = jax.jit(lambda drawing: system.sample(variables, keys(), about, drawing))
    plain, withheld = by_hand()
    near_one, none, two = (guide(system.plan(made.sampler, guidance=scale)) for scale in (1 + 1e-6, 0.0, 2.0))
    assert two.shape == (6, D)
    np.testing.assert_allclose(np.linalg.norm(two, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(near_one, plain, atol=1e-5)
    np.testing.assert_allclose(none, withheld, atol=1e-5)
    assert np.abs(plain - none).max() > 0.1 and np.abs(two - plain).max() > 0.1
    assert len(np.unique(plain, axis=0)) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__components": 0}, "model.components=0, model.bins=16: from 1 to the 12 dimensions"),
        ({"model__components": 13}, "model.components=13"),
        ({"model__bins": 1}, "at least 2 codes of each"),
        ({"train__accumulate": 2}, "components are of the whole: leave it at 1"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    refused(message, config(**changes), clip=clip())


def refused(message, config, **parts):
    with pytest.raises(UserError, match=message) as caught:
        models.build(config, SPEC, **parts)
    assert "\n" not in str(caught.value)


def test_components_of_no_clip_are_refused():
    refused("embeddings of a trained CLIP: set --config.clip", config())


def test_a_prior_over_other_codes_or_of_no_clip_is_refused():
    autoencoder = models.build(tiny.config("vqvae"), SPEC)
    codes = autoencoder, {**jax.eval_shape(autoencoder.objective.init, jax.random.key(0)), "frozen": {}}
    refused(
        "clip_caption is of priors over CLIP embeddings, whose codec is system=pca",
        *[config("unclip_ar_prior")],
        codec=codes,
        clip=clip(),
    )
    refused("model.condition=clip_caption is of a trained CLIP", config("unclip_ar_prior"), codec=counted()[:2])
    refused(
        "reads no captions word by word",
        config("unclip_ar_prior", model__architecture="pixelcnn"),
        codec=counted()[:2],
        clip=clip(),
    )


def test_there_are_no_rows_of_a_picture_to_keep():
    made, system, _, _ = prior()
    with pytest.raises(UserError, match="an image is completed from its first"):
        system.plan(made.sampler, kept=0.5)
