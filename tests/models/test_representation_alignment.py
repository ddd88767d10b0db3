"""Alignment of a DiT's tokens with the features of a CLIP's image encoder: REPA."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.models.diffusion.representation_alignment import similarity
from diffjax.models.images import to_unit_range
from diffjax.nn.pretrained import dinov2
from diffjax.runs.loading import build_model
from tests import conditioned, published_dinov2, tiny
from tests.conditioned import SPEC

SECTION = {"clip": "RUN", "block": 1, "weight": 0.3, "width": 12, "dimensions": 16}
DIT = {**tiny.DIT, "patch": 2, "layers": 2, "registers": 1}  # 4x4 tokens
CLIP = {"image_encoder__patch": 4, "image_encoder__layers": 1, "text_encoder__layers": 1}  # 2x2 tokens of 16 channels


@functools.cache
def clip(**changes):
    model = models.build(tiny.config("clip_shapes", **CLIP | changes), SPEC)
    return model, {**model.variable_shapes, "frozen": {}}


def config(section=None, lora=0, **changes):
    result = tiny.config(**{"model": DIT, **changes})
    with result.unlocked():
        result.alignment = {**SECTION, **(section or {})}
        result.train.lora.rank = lora
    return result


def projected(params, tokens):
    """The projection in NumPy."""
    h = np.asarray(tokens, np.float64)
    for i in range(3):
        h = h @ np.asarray(params[f"layer_{i}"]["kernel"]) + np.asarray(params[f"layer_{i}"]["bias"])
        h = h / (1 + np.exp(-h)) if i < 2 else h
    return h


def test_loss_adds_the_similarity_and_reaches_the_blocks_before_it():
    encoder = conditioned.with_random_params(clip()[0])
    model, variables = conditioned.with_random_params(models.build(config(), SPEC, alignment=encoder))
    batch, keys = tiny.batch(), conditioned.keys()
    images, penalty = to_unit_range(batch["image"]), model.alignment.bind
    tokens = np.random.default_rng(0).normal(size=(6, 4, 4, 8)).astype(np.float32)

    @jax.jit
    def compute(variables):
        features = model.alignment.encoder.clip(variables["frozen"]["alignment"]).image_features(images)
        of_tokens = penalty(variables, images)(tokens)[1]["similarity"]

        def loss(variables):
            value, aux = model.loss(variables, batch, keys, tiny.moment())
            return aux.metrics["similarity"].sum(), (value, aux.metrics)

        gradient, (value, metrics) = jax.grad(loss, has_aux=True)(variables)
        return features, value, metrics, of_tokens, gradient

    features, loss, metrics, of_tokens, gradient = compute(variables)
    np.testing.assert_allclose(loss, metrics["denoising"] - 0.3 * metrics["similarity"], rtol=1e-5)

    assert features.shape == (6, 2, 2, 16)
    resize = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])  # bilinear, from 2 to 4
    ours, theirs = projected(variables["params"]["model"]["alignment"], tokens), np.asarray(features, np.float64)
    theirs = np.einsum("yh,xw,bhwd->byxd", resize, resize, theirs)
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    np.testing.assert_allclose(of_tokens, cosine.mean((1, 2)), rtol=1e-4)

    largest = jax.tree.map(lambda leaf: np.abs(leaf).max(), gradient["params"]["model"])
    assert min(jax.tree.leaves([largest[name] for name in ("alignment", "block_0", "patch")])) > 0
    assert max(jax.tree.leaves([largest[name] for name in ("block_1", "out", "modulation_out")])) == 0
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient["frozen"])) == 0


def test_the_features_of_a_resnet_are_its_last_feature_maps():
    resnet = {"architecture": "resnet", "layers": (1, 1), "width": 4, "heads": 2}
    encoder = clip.__wrapped__(image_encoder=resnet)
    with pytest.raises(UserError, match=r"alignment.dimensions=16: must be 32, the channels"):
        models.build(config(), SPEC, alignment=encoder)


def test_the_encoder_may_be_a_published_dinov2(tmp_path):
    """Its targets are the tokens of patches of images that are normalised as those of ImageNet."""
    folder = published_dinov2.write(tmp_path)
    model = build_model(config({"clip": str(folder)}), training=True)
    network, params = model.alignment.encoder, model.frozen["alignment"]
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    grey = np.random.default_rng(0).uniform(-1, 1, (2, 224, 224, 1)).astype(np.float32)
    pixels = ((grey.repeat(3, axis=-1) + 1) / 2 - mean) / std
    small, tokens = grey[:, :8, :8], np.random.default_rng(1).normal(size=(2, 4, 4, 8)).astype(np.float32)
    larger = jax.image.resize(small, grey.shape, "cubic")

    @jax.jit
    def compute(projection):
        variables = {"params": {"model": {"alignment": projection}}, "frozen": {"alignment": params}}
        states = network.apply({"params": params}, pixels)
        features = [dinov2.patch_tokens(network, params, images) for images in (grey, small, larger)]
        return states, features, model.alignment.bind(variables, small)(tokens)[1]["similarity"]

    shapes = model.variable_shapes["params"]["model"]["alignment"]
    projection = tiny.randomised(lambda key: {"params": jax.tree.map(lambda p: jnp.zeros(p.shape), shapes)})["params"]
    states, (features, of_small, of_larger), found = compute(projection)
    np.testing.assert_allclose(features, states[:, 1:].reshape(2, 4, 4, 16), atol=1e-4)
    np.testing.assert_allclose(of_small, of_larger, atol=1e-4)
    ours, theirs = projected(projection, tokens), np.asarray(of_small, np.float64)
    cosine = (ours * theirs).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(theirs, axis=-1)
    np.testing.assert_allclose(found, cosine.mean((1, 2)), rtol=1e-4)
    with pytest.raises(UserError, match=r"alignment.dimensions=12: must be 16, the channels"):
        build_model(config({"clip": str(folder), "dimensions": 12}), training=True)


def test_sampling_does_not_need_the_clip():
    model, aligned = (models.build(config(), SPEC, **parts) for parts in ({}, {"alignment": clip()}))
    assert model.variable_shapes == aligned.variable_shapes and not model.frozen
    plain = models.build(tiny.config(model=DIT), SPEC)
    params = dict(model.variable_shapes["params"]["model"])
    assert set(params.pop("alignment")) == {"layer_0", "layer_1", "layer_2"}
    assert params == plain.variable_shapes["params"]["model"] and model.network == plain.network


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ({"clip": ""}, {}, "alignment.clip='': must be a CLIP or a DINOv2"),
        ({"block": 3}, {}, "alignment.block=3: must be .* 2"),
        ({"block": 0}, {}, "alignment.block=0"),
        ({"weight": 0.0}, {}, "alignment.weight=0"),
        ({"dimensions": 12}, {}, "alignment.dimensions=12: must be 16, the channels"),
        ({"similarity": "l2"}, {}, "unknown field of config.alignment 'similarity'"),
        ({}, {"system": "gan"}, "alignment: is only supported for system=ddpm and latent, not gan"),
        ({}, {"model": tiny.config().model}, "alignment: requires a network of tokens"),
        (
            {},
            {"diffusion__loss": "shortcut", "diffusion__next_times": "dyadic", "diffusion__continuous": True},
            "loss=shortcut: is not supported",
        ),
        ({}, {"diffusion__coupling": "reflow", "teacher": "RUN"}, "coupling=reflow: trains on samples of the teacher"),
        ({}, {"lora": 2}, "train.lora.rank=2: is not supported with the section alignment"),
    ],
)
def test_what_does_not_fit_is_refused(section, changes, message):
    with pytest.raises(UserError, match=message) as error:
        models.build(config(section, **changes), SPEC, alignment=clip())
    assert "\n" not in str(error.value)


def test_alignment_of_grids_of_equal_size_is_not_resized():
    tokens = np.random.default_rng(1).normal(size=(2, 3, 2, 5)).astype(np.float32)
    np.testing.assert_allclose(similarity(tokens, 2 * tokens), 1, rtol=1e-6)
