"""CLIP as a system: its loss by brute force, on one device and on eight, what a trained one gives; of noised images."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import data, models
from diffjax.data import tokenizer
from diffjax.diffusion import guidance, noise_schedules, samplers, sampling, time_sampling
from diffjax.diffusion.denoiser import Denoised
from diffjax.diffusion.noise import perturb
from diffjax.errors import UserError
from diffjax.models.pixels import smaller, to_unit_range
from diffjax.nn import clip as networks
from diffjax.training.compiled_step import compile_step, make_optimizers
from diffjax.training.sharding import Devices
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
LARGER = ImageSpec(16, 1, 10)  # 8x8 once it is downsampled
ENCODERS = {
    "vit": {},
    "resnet": {"image_encoder": {"architecture": "resnet", "layers": (1, 1, 1, 1), "width": 4, "heads": 2}},
}
OTHERS = [("vit", "pmap"), ("resnet", "jit"), ("resnet", "pmap")]


@functools.cache
def built(name, **changes):
    spec = SPEC if name == "vit" else ImageSpec(32, 1, 10)  # a ResNet halves an image five times
    config = tiny.config("clip_shapes", **ENCODERS[name], **changes)
    system = models.build(config, spec)
    return config, spec, system, {**tiny.randomised(system.objective.init), "frozen": {}}


def batch(spec, size=16, seed=0):
    made = dict(tiny.batch(size, seed))
    made["image"] = np.random.default_rng(seed).integers(0, 256, (size, spec.size, spec.size, 1), np.uint8)
    return made


def embedded(system, variables, batch):
    clip = system.clip(variables)
    images, texts = clip.embed_images(to_unit_range(batch["image"])), clip.embed_texts(batch["tokens"])
    return np.asarray(images, np.float64), np.asarray(texts, np.float64), float(clip.scale)


def test_the_loss_is_the_mean_of_both_cross_entropies():
    _, spec, system, variables = built("vit")
    given = batch(spec)
    loss, aux = system.objective.losses["model"](variables, given, None, tiny.moment(batch_size=16))
    images, texts, scale = embedded(system, variables, given)
    assert scale == pytest.approx(np.exp(float(variables["params"]["model"]["log_scale"])))
    logits = scale * images @ texts.T
    by_rows, by_columns = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (logits, logits.T))
    np.testing.assert_allclose(loss, -(np.diagonal(by_rows) + np.diagonal(by_columns)) / 2, rtol=1e-4)
    assert float(aux.metrics["accuracy"].mean()) == pytest.approx((logits.argmax(axis=1) == np.arange(16)).mean())


def test_any_text_of_the_same_caption_is_right():
    _, spec, system, variables = built("vit")
    given = batch(spec)
    tokens = given["tokens"][np.zeros(16, int)]
    loss, aux = loss_of(system, variables, given | {"tokens": tokens})
    np.testing.assert_array_equal(aux.metrics["accuracy"], 1.0)
    assert loss.mean() > np.log(16) / 2  # the loss still has one target, as published


@pytest.mark.parametrize(
    ("name", "mode"),
    [("vit", "jit"), *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_eight_devices_learn_what_one_does(name, mode):
    """Of pictures and texts on other devices, whose gradients come back, and of statistics over all."""
    config, spec, system, variables = built(name)
    own = {group: tree for group, tree in variables.items() if group != "frozen"}
    system = system._replace(objective=system.objective._replace(init=lambda key: own))
    found = []
    for given in ({"mode": "jit", "count": 1}, {"mode": mode, "count": 8}):
        devices = Devices.create(**given)
        step, state = compile_step(config, system, make_optimizers(config, system), devices, examples=64)
        rows = []
        for seed in range(3):
            state, metrics = step(state, devices.put_batch(batch(spec, seed=seed)), {})
            rows.append([float(metrics["loss"]), float(metrics["grad_norm"])])
        found.append((np.array(rows), jax.device_get(state.variables)))
    (one, one_after), (eight, eight_after) = found
    np.testing.assert_allclose(eight[:, 0], one[:, 0], rtol=1e-5)
    np.testing.assert_allclose(eight[:, 1], one[:, 1], rtol=1e-3)
    if name == "resnet":
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6),
            eight_after["batch_stats"],
            one_after["batch_stats"],
        )


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_what_a_trained_one_gives(name):
    _, spec, system, variables = built(name)
    given = batch(spec)
    images, texts, _ = embedded(system, variables, given)
    clip = system.clip(variables)
    assert images.shape == texts.shape == (16, clip.dimensions)
    for embeddings in (images, texts):
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    assert clip.text_states(given["tokens"]).shape == (16, 6, 16)
    alone, _, _ = embedded(system, variables, {name: values[:1] for name, values in given.items()})
    np.testing.assert_allclose(alone, images[:1], atol=1e-5)  # no statistics of the batch


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__accumulate": 2}, "leave it at 1"),
        ({"image_encoder__architecture": "vits"}, "did you mean 'vit'"),
        ({"image_encoder__patch": 3}, "config.image_encoder"),
        ({"image_encoder__patches": 4}, "did you mean 'patch'"),
        ({"text_encoder__heads": 3}, "heads"),
        ({"text__length": 2}, "at least 3 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config("clip_shapes", **changes), SPEC)
    assert "\n" not in str(caught.value)


# --- noised images ---


@functools.cache
def noised(**changes):
    system = models.build(tiny.config("noised_clip", **changes), LARGER)
    return system, {**tiny.randomised(system.objective.init), "frozen": {}}


def loss_of(system, variables, given, seed=0):
    moment = tiny.moment(batch_size=len(given["image"]))
    loss = jax.jit(lambda given, keys: system.objective.losses["model"](variables, given, keys, moment))
    return loss(given, jax.random.split(jax.random.key(seed), moment.batch_size))


def test_without_a_diffusion_nothing_is_noised():
    _, _, system, variables = built("vit")
    assert variables.keys() == {"params", "frozen"} and system.clip(variables).embed_noised is None
    plain = variables["params"]["model"]
    assert plain["image"].keys() == {"patch", "class", "place", "norm_in", "transformer", "out"}
    told = noised()[1]["params"]["model"]
    assert told["image"].keys() ^ plain["image"].keys() == {"class", "time"}
    assert told["image"]["time"].shape == (20, 16)


def test_without_noise_to_speak_of_the_loss_is_that_of_the_smaller_images():
    system, variables = noised(diffusion__timesteps=1, diffusion__schedule="edm(sigma_max=1e-6)")
    given = batch(LARGER)
    loss, aux = loss_of(system, variables, given)
    images, texts, scale = embedded(system, variables, given)
    logits = scale * images @ texts.T
    nats = [np.log(np.exp(x).sum(axis=1)) - np.diagonal(x) for x in (logits, logits.T)]
    np.testing.assert_allclose(loss, sum(nats) / 2, rtol=1e-3)
    assert loss.shape == aux.metrics["accuracy"].shape == (16,)
    squares = given["image"].reshape(16, 8, 2, 8, 2, 1) / 127.5 - 1
    np.testing.assert_allclose(smaller(to_unit_range(given["image"]), 2), squares.mean((2, 4)), atol=1e-6)


def test_each_image_is_told_the_time_that_it_is_noised_at():
    system, variables = noised()
    clip, schedule, given = system.clip(variables), noise_schedules.cosine(20), batch(LARGER)
    loss, _ = loss_of(system, variables, given)
    time_key, eps_key = sampling.split(jax.random.split(jax.random.key(0), 16))
    t = jax.vmap(lambda key: time_sampling.uniform().draw(key, schedule, {})[0])(time_key)
    assert len(set(t.tolist())) > 5
    x = jax.vmap(perturb)(smaller(to_unit_range(given["image"]), 2), sampling.noise_of(eps_key, (8, 8, 1)), schedule(t))
    embed = jax.jit(lambda x, t: clip.embed_noised(x[None], schedule(t))[0])
    images, texts = jnp.stack([embed(*one) for one in zip(x, t, strict=True)]), clip.embed_texts(given["tokens"])
    expected, _ = networks.contrast(images, texts, images, texts, given["index"], clip.scale)
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


def test_noise_alone_says_nothing_of_the_picture():
    system, variables = noised(diffusion__timesteps=1, diffusion__schedule="rectified_flow")
    losses = [loss_of(system, variables, batch(LARGER) | {"image": batch(LARGER, seed=i)["image"]})[0] for i in (0, 1)]
    np.testing.assert_array_equal(*losses)
    assert np.ptp(losses[0]) > 0


def test_it_learns_which_times_are_hard():
    system, variables = noised(diffusion__times="importance(horizon=5)")
    _, aux = loss_of(system, variables, batch(LARGER))
    assert aux.variables["times"]["draws"].sum() > 0


def test_each_time_is_embedded_otherwise():
    system, variables = noised()
    clip, schedule = system.clip(variables), noise_schedules.cosine(20)
    images = to_unit_range(batch(LARGER)["image"])
    x = smaller(images, 2)
    found = [np.asarray(clip.embed_noised(x, schedule(t))) for t in (1.0, 2.0, 20.0)]
    for embeddings in found:
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1.0, rtol=1e-5)
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(found)) > 0.01
    np.testing.assert_allclose(clip.embed_images(images), found[0], atol=1e-6)  # told that they are the cleanest

    def first_changed(path, leaf):
        return leaf.at[0].multiply(-1.0) if path[-1].key == "time" else leaf

    other = system.clip(jax.tree_util.tree_map_with_path(first_changed, variables))  # times are counted from zero
    assert np.abs(other.embed_noised(x, schedule(1.0)) - found[0]).max() > 0.01
    np.testing.assert_array_equal(other.embed_noised(x, schedule(2.0)), found[1])


def test_it_guides():
    """Samples of a denoiser that knows nothing end nearer to the caption that they are guided to."""
    system, variables = noised()
    clip, schedule = system.clip(variables), noise_schedules.cosine(20)
    caption = clip.embed_texts(batch(LARGER, 4)["tokens"])
    keys, levels = jax.random.split(jax.random.key(0), 4), schedule(jnp.array([20.0, 15.0, 10.0, 5.0, 0.0]))

    def similarity(x, noise):
        return jnp.sum(clip.embed_noised(x, noise) * caption, axis=-1)

    @jax.jit
    def drawn(scale):
        denoise = guidance.clip_similarity(lambda x, noise: Denoised(0.5 * x), clip.embed_noised, caption, scale)
        x = sampling.sample(keys, denoise, samplers.ddim(), levels, 4, shape=(8, 8, 1))
        return similarity(x, schedule(1.0)), jax.grad(lambda x: similarity(x, schedule(1.0)).sum())(x)

    (plain, gradient), (guided, _) = drawn(0.0), drawn(1.0)
    assert np.all(np.isfinite(gradient)) and np.all(np.abs(gradient).max(axis=(1, 2, 3)) > 1e-4)
    assert np.all(guided > plain)


@pytest.mark.slow
def test_it_learns_to_tell_noised_shapes_apart():
    encoders = {
        f"{kind}_encoder__{name}": n for kind in ("image", "text") for name, n in (("width", 64), ("layers", 1))
    }
    training = {"schedule": "constant", "warmup_steps": 10, "learning_rate": 2e-3, "batch_size": 32}
    changes = {"text__length": 16, "model__dimensions": 32} | {f"train__{name}": n for name, n in training.items()}
    config = tiny.config("noised_clip", **encoders, **changes)
    source = data.open_source("shapes", directory="", split="train", image_size=16)
    words = tokenizer.train([source[i]["caption"] for i in range(200)], 300)
    source = data.tokenized(source, lambda captions: words.encode(captions, 16))
    one = data.Batches(source, batch_size=32, seed=0, keys=("image", "tokens")).batch(0)
    system, devices = models.build(config, data.spec("shapes", 16)), Devices.create(mode="jit", count=1)
    step, state = compile_step(config, system, make_optimizers(config, system), devices, examples=len(source))
    losses = []
    for _ in range(150):  # the same scenes, each time noised anew
        state, metrics = step(state, devices.put_batch(one), {})
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-10:]) < 0.9 * np.log(32)  # of chance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion__downsample": 3}, "diffusion.downsample=3 does not divide data.image_size=16"),
        ({"diffusion__downsample": 0}, "diffusion.downsample=0"),
        ({"diffusion__schedule": "cosin"}, "did you mean 'cosine'"),
        ({"image_encoder": {"architecture": "resnet", "layers": (1,), "width": 4, "heads": 2}}, "told no time"),
    ],
)
def test_noise_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config("noised_clip", **changes), LARGER)
    assert "\n" not in str(caught.value)
