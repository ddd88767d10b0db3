"""CLIP: its loss by brute force, on one device and on eight; the embeddings of a trained one; noised images."""

import functools
import itertools

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import data, models
from diffjax.data import tokenizer
from diffjax.diffusion import guidance, noise_schedules, samplers, sampling, time_sampling
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import perturb
from diffjax.diffusion.random import normal_each, split_each
from diffjax.errors import UserError
from diffjax.models.images import downsample, to_unit_range
from diffjax.training.compiled_step import compile_step, make_optimizers
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
LARGER = ImageSpec(16, 1, 10)  # 8x8 after downsampling
ENCODERS = {
    "vit": {"image_encoder__layers": 1},
    "resnet": {"image_encoder": {"architecture": "resnet", "layers": (1, 1), "width": 4, "heads": 2}},
}
NOISED = {"image_encoder__layers": 1, "text_encoder__layers": 1}


@functools.cache
def built(name, **changes):
    spec = SPEC if name == "vit" else LARGER  # this ResNet halves an image three times, and attends to 2x2 positions
    config = tiny.config("clip_shapes", text_encoder__layers=1, **ENCODERS[name], **changes)
    model = models.build(config, spec)
    return config, spec, model, {**tiny.randomised(model.init), "frozen": {}}


def batch(spec, size=16, seed=0):
    examples = dict(tiny.batch(size, seed))
    examples["image"] = np.random.default_rng(seed).integers(0, 256, (size, spec.size, spec.size, 1), np.uint8)
    return examples


@functools.cache
def embedder(name):
    _, _, model, variables = built(name)

    @jax.jit
    def run(images, tokens):
        clip = model.clip(variables)
        return clip.embed_images(images), clip.embed_texts(tokens), clip.text_states(tokens), clip.scale

    return lambda batch: jax.device_get(run(to_unit_range(batch["image"]), batch["tokens"]))


@functools.cache
def loss_function(name):
    _, _, model, variables = built(name)
    return jax.jit(lambda batch: model.losses["model"](variables, batch, None, tiny.moment(batch_size=16)))


def cross_entropies(images, texts, scale):
    """Mean over both directions of the cross entropy of each pair, float64, and the logits."""
    logits = float(scale) * np.asarray(images, np.float64) @ np.asarray(texts, np.float64).T
    nats = [np.log(np.exp(x).sum(axis=1)) - np.diagonal(x) for x in (logits, logits.T)]
    return sum(nats) / 2, logits


def test_the_loss_is_the_mean_of_both_cross_entropies():
    _, spec, _, variables = built("vit")
    examples = batch(spec)
    loss, aux = loss_function("vit")(examples)
    images, texts, _, scale = embedder("vit")(examples)
    assert scale == pytest.approx(np.exp(float(variables["params"]["model"]["log_scale"])))
    expected, logits = cross_entropies(images, texts, scale)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    nearest = examples["tokens"][logits.argmax(axis=1)]  # some captions are equal
    np.testing.assert_array_equal(aux.metrics["accuracy"], (nearest == examples["tokens"]).all(axis=1))


def test_any_equal_caption_is_a_correct_match():
    _, spec, _, _ = built("vit")
    examples = batch(spec)
    loss, aux = loss_function("vit")(examples | {"tokens": examples["tokens"][np.zeros(16, int)]})
    np.testing.assert_array_equal(aux.metrics["accuracy"], 1.0)
    assert loss.mean() > np.log(16) / 2  # the loss still has one target, as published


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_eight_devices_train_as_one(name, mode):
    """Pairs across devices, their gradients, and batch statistics over all devices."""
    config, spec, model, variables = built(name)
    model = tiny.with_init(model, {group: tree for group, tree in variables.items() if group != "frozen"})
    results = []
    for options in ({"mode": "jit", "num_devices": 1}, {"mode": mode, "num_devices": 8}):
        devices = Devices.create(**options)
        step, state = compile_step(config, model, make_optimizers(config, model), devices, examples=64)
        rows = []
        for seed in range(3):
            state, metrics = step(state, devices.put_batch(batch(spec, seed=seed)), {})
            rows.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        results.append((np.array(rows), jax.device_get(state.variables)))
    (one, after_one), (eight, after_eight) = results
    np.testing.assert_allclose(eight[:, 0], one[:, 0], rtol=1e-5)
    np.testing.assert_allclose(eight[:, 1], one[:, 1], rtol=1e-3)
    if name == "resnet":
        chex.assert_trees_all_close(after_eight["batch_stats"], after_one["batch_stats"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_a_trained_clip_gives_unit_norm_embeddings_and_states(name):
    _, spec, model, variables = built(name)
    examples = batch(spec)
    images, texts, states, _ = embedder(name)(examples)
    assert images.shape == texts.shape == (16, model.clip(variables).dimensions)
    for embeddings in (images, texts):
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    assert states.shape == (16, 6, 16)
    others = batch(spec, seed=1)
    others["image"][0] = examples["image"][0]
    np.testing.assert_allclose(embedder(name)(others)[0][0], images[0], atol=1e-5)  # no statistics of the batch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__accumulate": 2}, "train.accumulate=2: must be 1"),
        ({"image_encoder__architecture": "vits"}, "did you mean 'vit'"),
        ({"image_encoder__patch": 3}, "config.image_encoder"),
        ({"image_encoder__patches": 4}, "did you mean 'patch'"),
        ({"text_encoder__heads": 3}, "heads"),
        ({"model__dimensions": 0}, "model.dimensions=0: must be a whole number from 1"),
        ({"text__length": 2}, "text.length=2, text.vocabulary=300: length must be from 3"),
    ],
)
def test_invalid_configs_raise(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config("clip_shapes", **changes), SPEC)
    assert "\n" not in str(caught.value)


# --- published ones: one encoder, images of any size ---


@functools.cache
def with_one_encoder(section, dimensions=6):
    """Returns a CLIP with the encoder of a section only, and its variables."""
    config = tiny.config("clip_shapes", text_encoder__layers=1, image_encoder__layers=1)
    with config.unlocked():
        for other in {"image_encoder", "text_encoder"} - {section}:
            del config[other]
        if section == "image_encoder":
            del config["text"]
        config.model.dimensions = dimensions
    model = models.build(config, SPEC)
    return model, {**tiny.randomised(model.init), "frozen": {}}


@pytest.mark.parametrize("dimensions", [6, 0])
def test_a_text_encoder_alone_embeds_captions(dimensions):
    model, variables = with_one_encoder("text_encoder", dimensions)
    clip, tokens = model.clip(variables), batch(SPEC)["tokens"]
    assert variables["params"]["model"].keys() == {"text"}
    assert clip.text_states(tokens).shape == (16, 6, 16) and clip.width == 16
    assert clip.embed_texts(tokens).shape == (16, clip.dimensions) and clip.dimensions == (dimensions or 16)
    with pytest.raises(UserError, match="image_encoder: this CLIP encodes captions only"):
        clip.embed_images(np.zeros((1, 8, 8, 1)))


def test_an_image_encoder_alone_embeds_images():
    model, variables = with_one_encoder("image_encoder")
    clip = model.clip(variables)
    assert model.text is None and clip.text is None and variables["params"]["model"].keys() == {"image"}
    assert clip.embed_images(to_unit_range(batch(SPEC)["image"])).shape == (16, 6)
    with pytest.raises(UserError, match="text_encoder: this CLIP encodes images only"):
        clip.embed_texts(batch(SPEC)["tokens"])


@pytest.mark.parametrize("section", ["image_encoder", "text_encoder"])
def test_one_encoder_alone_cannot_be_trained(section):
    model, variables = with_one_encoder(section)
    with pytest.raises(UserError, match="training compares both; add the section that is missing"):
        model.losses["model"](variables, batch(SPEC), None, tiny.moment(batch_size=16))


def test_images_of_another_size_are_resized_on_request():
    """An image of one colour has one embedding at every size, grey or not."""
    spec = ImageSpec(8, 3, 10)
    config = tiny.config("clip_shapes", image_encoder__layers=1, text_encoder__layers=1)
    with config.unlocked():
        config.model.resize_images = True
    model = models.build(config, spec)
    clip = model.clip({**tiny.randomised(model.init), "frozen": {}})
    assert model.accepts_any_size
    expected = clip.embed_images(np.full((1, 8, 8, 3), 0.5))
    for size, channels in ((20, 3), (4, 1)):
        np.testing.assert_allclose(clip.embed_images(np.full((1, size, size, channels), 0.5)), expected, atol=1e-5)
    with pytest.raises(UserError, match=r"model\.resize_images=True: requires images of 3 channels, not 1"):
        models.build(config, SPEC)


# --- noised images ---


@functools.cache
def noised(**changes):
    model = models.build(tiny.config("noised_clip", **NOISED, **changes), LARGER)
    return model, {**tiny.randomised(model.init), "frozen": {}}


@functools.cache
def noised_loss(**changes):
    """(batch of 16) -> loss, aux, with the noise of one key."""
    model, variables = noised(**changes)
    context, keys = tiny.moment(batch_size=16), jax.random.split(jax.random.key(0), 16)
    return jax.jit(lambda batch: model.losses["model"](variables, batch, keys, context))


def test_only_a_noised_clip_has_time_embeddings():
    _, _, model, variables = built("vit")
    assert variables.keys() == {"params", "frozen"} and model.clip(variables).embed_noised is None
    clean, with_noise = variables["params"]["model"]["image"], noised()[1]["params"]["model"]["image"]
    assert clean.keys() == {"patch", "class", "place", "norm_in", "transformer", "out"}
    assert with_noise.keys() ^ clean.keys() == {"class", "time"}
    assert with_noise["time"].shape == (20, 16)
    assert (model.noise_schedule, model.output_size) == (None, 0) and noised()[0].output_size == 8


@pytest.mark.slow
def test_at_negligible_noise_the_loss_is_that_of_the_downsampled_images():
    changes = {"diffusion__timesteps": 1, "diffusion__schedule": "edm(sigma_max=1e-6)"}
    (model, variables), examples = noised(**changes), batch(LARGER)
    loss, aux = noised_loss(**changes)(examples)

    @jax.jit
    def embed(images, tokens):
        clip = model.clip(variables)
        return clip.embed_images(images), clip.embed_texts(tokens), clip.scale

    expected, _ = cross_entropies(*embed(to_unit_range(examples["image"]), examples["tokens"]))
    np.testing.assert_allclose(loss, expected, rtol=1e-3)
    assert loss.shape == aux.metrics["accuracy"].shape == (16,)
    squares = examples["image"].reshape(16, 8, 2, 8, 2, 1) / 127.5 - 1
    np.testing.assert_allclose(downsample(to_unit_range(examples["image"]), 2), squares.mean((2, 4)), atol=1e-6)


def test_each_image_is_encoded_with_the_timestep_of_its_noise():
    model, variables = noised()
    clip, schedule, larger_batch = model.clip(variables), noise_schedules.cosine(20), batch(LARGER)
    loss, _ = noised_loss()(larger_batch)

    @jax.jit
    def embed(images, tokens):
        time_key, eps_key = split_each(jax.random.split(jax.random.key(0), 16))
        t = jax.vmap(lambda key: time_sampling.uniform().sample(key, schedule, {})[0])(time_key)
        x = jax.vmap(perturb)(downsample(images, 2), normal_each(eps_key, (8, 8, 1)), schedule(t))
        one = lambda x, t: clip.embed_noised(x[None], schedule(t))[0]  # noqa: E731
        return t, jax.lax.map(lambda pair: one(*pair), (x, t)), clip.embed_texts(tokens)

    t, images, texts = embed(to_unit_range(larger_batch["image"]), larger_batch["tokens"])
    assert len(set(t.tolist())) > 5
    expected, _ = cross_entropies(images, texts, clip.scale)
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_at_pure_noise_the_loss_does_not_depend_on_the_image():
    run = noised_loss(diffusion__timesteps=1, diffusion__schedule="rectified_flow")
    losses = [run(batch(LARGER) | {"image": batch(LARGER, seed=i)["image"]})[0] for i in (0, 1)]
    np.testing.assert_array_equal(*losses)
    assert np.ptp(losses[0]) > 0


def test_importance_sampling_of_timesteps_is_updated():
    model, variables = noised(diffusion__time_sampling="importance(horizon=5)")
    context, keys = tiny.moment(batch_size=16), jax.random.split(jax.random.key(0), 16)
    updated = jax.jit(lambda batch: model.losses["model"](variables, batch, keys, context)[1].variables)
    assert updated(batch(LARGER))["times"]["counts"].sum() > 0


def test_embeddings_depend_on_the_timestep():
    model, variables = noised()
    schedule, images = noise_schedules.cosine(20), to_unit_range(batch(LARGER)["image"])

    @jax.jit
    def embed(variables, t):
        clip = model.clip(variables)
        return clip.embed_noised(downsample(images, 2), schedule(t)), clip.embed_images(images)

    embeddings = {t: np.asarray(embed(variables, t)[0]) for t in (1.0, 2.0, 20.0)}
    for value in embeddings.values():
        np.testing.assert_allclose(np.linalg.norm(value, axis=1), 1.0, rtol=1e-5)
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(embeddings.values())) > 0.01
    np.testing.assert_allclose(embed(variables, 1.0)[1], embeddings[1.0], atol=1e-6)  # clean images: first timestep

    def change_first(path, leaf):
        return np.concatenate([-leaf[:1], leaf[1:]]) if path[-1].key == "time" else leaf

    changed = jax.tree_util.tree_map_with_path(change_first, variables)  # timestep t has row t - 1 of the table
    assert np.abs(embed(changed, 1.0)[0] - embeddings[1.0]).max() > 0.01
    np.testing.assert_array_equal(embed(changed, 2.0)[0], embeddings[2.0])


def test_guidance_increases_the_similarity_to_the_caption():
    """The denoiser does not depend on the caption."""
    model, variables = noised()
    clip, schedule = model.clip(variables), noise_schedules.cosine(20)
    keys = jax.random.split(jax.random.key(0), 4)

    @jax.jit
    def similarity(tokens, scale):
        levels = schedule(jnp.array([20.0, 15.0, 10.0, 5.0, 0.0]))
        caption = clip.embed_texts(tokens)
        denoise = guidance.clip_similarity(lambda x, noise: Denoised(0.5 * x), clip.embed_noised, caption, scale)
        x = sampling.sample(keys, denoise, samplers.ddim(), levels, 4, shape=(8, 8, 1))
        return jnp.sum(clip.embed_noised(x, schedule(1.0)) * caption, axis=-1)

    tokens = batch(LARGER, 4)["tokens"]
    unguided, guided = similarity(tokens, 0.0), similarity(tokens, 1.0)
    assert np.all(np.isfinite(guided)) and np.all(guided > unguided + 1e-4)


@pytest.mark.slow
def test_training_distinguishes_noised_shapes():
    encoders = {
        f"{kind}_encoder__{name}": n for kind in ("image", "text") for name, n in (("width", 64), ("layers", 1))
    }
    training = {"learning_rate_schedule": "constant", "warmup_steps": 10, "learning_rate": 2e-3, "batch_size": 32}
    changes = {"text__length": 16, "model__dimensions": 32} | {f"train__{name}": n for name, n in training.items()}
    config = tiny.config("noised_clip", **encoders, **changes)
    source = data.open_dataset("shapes", directory="", split="train", image_size=16)
    words = tokenizer.train([source[i]["caption"] for i in range(200)], 300)
    source = data.with_tokens(source, lambda captions: words.encode(captions, 16))
    one = data.Batches(source, batch_size=32, seed=0, keys=("image", "tokens")).batch(0)
    model, devices = models.build(config, data.image_spec("shapes", 16)), Devices.create(mode="jit", num_devices=1)
    step, state = compile_step(config, model, make_optimizers(config, model), devices, examples=len(source))
    losses = []
    for _ in range(150):  # the same scenes, each time noised anew
        state, metrics = step(state, devices.put_batch(one), {})
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.9 * np.log(32)  # of chance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion__downsample": 3}, "diffusion.downsample=3: must divide data.image_size=16"),
        ({"diffusion__downsample": 0}, "diffusion.downsample=0"),
        ({"diffusion__schedule": "cosin"}, "did you mean 'cosine'"),
        (
            {"image_encoder": {"architecture": "resnet", "layers": (1,), "width": 4, "heads": 2}},
            "a ResNet is not conditioned on time",
        ),
    ],
)
def test_invalid_noise_raises(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config("noised_clip", **changes), LARGER)
    assert "\n" not in str(caught.value)
