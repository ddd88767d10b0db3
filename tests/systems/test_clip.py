"""CLIP as a system: its loss by brute force, on one device and on eight, and what a trained one gives."""

import functools

import jax
import numpy as np
import pytest

from diffjax import systems
from diffjax.errors import UserError
from diffjax.systems.pixels import to_unit_range
from diffjax.train.devices import Devices
from diffjax.training import compile_step, make_optimizers
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
ENCODERS = {
    "vit": {},
    "resnet": {"image_encoder": {"architecture": "resnet", "layers": (1, 1, 1, 1), "width": 4, "heads": 2}},
}
OTHERS = [("vit", "pmap"), ("resnet", "jit"), ("resnet", "pmap")]


@functools.cache
def built(name, **changes):
    spec = SPEC if name == "vit" else ImageSpec(32, 1, 10)  # a ResNet halves an image five times
    config = tiny.config("clip_shapes", **ENCODERS[name], **changes)
    system = systems.build(config, spec)
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
        systems.build(tiny.config("clip_shapes", **changes), SPEC)
    assert "\n" not in str(caught.value)
