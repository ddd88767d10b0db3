"""Data spaces and masks of them, against NumPy."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.models import build
from diffjax.models.base import ContrastiveModel
from diffjax.models.diffusion.data_space import (
    EmbeddingSpace,
    StandardizedSpace,
    downsample_mask,
    latent_space,
    pixel_space,
)
from diffjax.typing import Clip, ImageSpec, TextSpec
from tests import conditioned, tiny

IMAGES = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
GREY = IMAGES[..., :1]
SPEC = ImageSpec(8, 3, 10)


def squares(x, factor):
    """[B, h, w, factor, factor, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // factor, factor, width // factor, factor, channels).swapaxes(2, 3)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixels_are_averaged_and_decoded_unchanged(factor):
    space = pixel_space(SPEC, factor)
    x = space.encode({}, IMAGES)
    assert space.shape == x.shape[1:] == (8 // factor, 8 // factor, 3)
    np.testing.assert_allclose(x, squares(IMAGES, factor).mean((3, 4)), atol=1e-6)
    assert space.decode({}, x) is x


@pytest.mark.parametrize("factor", [0, 3, 16])
def test_a_factor_that_does_not_divide_the_size_raises(factor):
    with pytest.raises(UserError, match=f"diffusion.downsample={factor}: must divide data.image_size=8"):
        pixel_space(SPEC, factor)


def test_latents_match_the_codec():
    """The codec has the frozen variables of the call; decoded images are clipped."""
    space = latent_space(*conditioned.CODEC)
    variables = {"frozen": {"codec": {"params": {"scale": jnp.full((), 5.0)}}}}
    z = space.encode(variables, GREY)
    assert space.shape == z.shape[1:] == (4, 4, 4)
    np.testing.assert_allclose(z, 5 * squares(GREY, 2).reshape(5, 4, 4, 4), atol=1e-6)
    np.testing.assert_allclose(space.decode(variables, z), GREY, atol=1e-6)
    np.testing.assert_allclose(space.decode(variables, 2 * z), np.clip(2 * GREY, -1, 1), atol=1e-6)


@pytest.mark.slow
def test_latents_of_a_trained_autoencoder_have_unit_variance():
    """The statistics of training are computed in NumPy; the scale does not change decoded images."""
    model = build(tiny.config("kl"), conditioned.SPEC)
    frozen = {**tiny.randomised(model.init), "frozen": {}}
    space = latent_space(model, frozen)

    @jax.jit
    def run(statistics):
        variables = {"frozen": {"codec": {**frozen, "latents": statistics}}}
        z = space.encode(variables, GREY)
        return z, space.decode(variables, z)

    plain, decoded = run(frozen["latents"])
    statistics = {"mean": np.mean(plain, dtype=np.float32), "square": np.mean(np.square(plain), dtype=np.float32)}
    z, same = run(statistics)
    assert plain.shape[1:] == space.shape and abs(plain.std() - 1) > 0.1
    np.testing.assert_allclose(z.std(), 1.0, rtol=1e-4)
    np.testing.assert_allclose(same, decoded, atol=1e-5)


@pytest.mark.slow
def test_thresholds_of_latents_and_embeddings_raise():
    threshold = "dynamic"
    message = f"sampler.threshold={threshold}: is the range of pixels"
    with pytest.raises(UserError, match=message):
        build(conditioned.latent("caption", sampler__threshold=threshold), conditioned.SPEC, codec=conditioned.CODEC)
    latent_config = conditioned.latent("caption")
    with pytest.raises(UserError, match=message):
        build(latent_config, conditioned.SPEC, codec=conditioned.CODEC).make_settings(
            latent_config.sampler, threshold=threshold
        )
    with pytest.raises(UserError, match=message):
        build(conditioned.prior(sampler__threshold=threshold), conditioned.SPEC, clip=conditioned.clip())


def test_embeddings_are_scaled_and_decoded_to_unit_norm():
    """For samples of any norm; the CLIP receives no gradient."""

    class LinearClip(ContrastiveModel):
        init = losses = None

        def clip(self, variables) -> Clip:
            def embed(images):
                x = images.mean((1, 2)) @ variables["map"]
                return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

            return Clip(embed, None, None, jnp.ones(()), 7, 1, TextSpec(6, 300))

    space = EmbeddingSpace((7,), LinearClip(), 2.5)
    variables = {"frozen": {"clip": {"map": np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)}}}
    x = IMAGES.mean((1, 2)) @ variables["frozen"]["clip"]["map"]
    unit, z = x / np.linalg.norm(x, axis=1, keepdims=True), space.encode(variables, IMAGES)
    assert space.shape == (7,)
    np.testing.assert_allclose(z, 2.5 * unit, atol=1e-5)
    np.testing.assert_allclose(space.decode(variables, 0.3 * z), unit, atol=1e-5)
    assert np.isfinite(space.decode(variables, jnp.zeros((1, 7)))).all()
    gradient = jax.grad(lambda variables: space.encode(variables, IMAGES)[:, 0].sum())(variables)
    assert not np.any(gradient["frozen"]["clip"]["map"])


def test_standardized_embeddings_have_any_norm():
    class LinearClip(ContrastiveModel):
        init = losses = None

        def clip(self, variables) -> Clip:
            def project(images):
                return images.mean((1, 2)) @ variables["map"]

            return Clip(None, None, None, jnp.ones(()), 7, 1, TextSpec(6, 300), project_images=project)

    space, rng = StandardizedSpace((7,), LinearClip(), 1.0), np.random.default_rng(1)
    statistics = {"mean": rng.normal(size=7), "std": rng.uniform(0.5, 2, 7)}
    variables = {"frozen": {"clip": {"map": rng.normal(size=(3, 7))}}, "embeddings": statistics}
    x = IMAGES.mean((1, 2)) @ variables["frozen"]["clip"]["map"]
    z = space.encode(variables, IMAGES)
    np.testing.assert_allclose(z, (x - statistics["mean"]) / statistics["std"], atol=1e-5)
    np.testing.assert_allclose(space.decode(variables, z), x, atol=1e-5)
    assert jax.tree.map(jnp.shape, space.init()) == {"embeddings": {"mean": (7,), "std": (7,)}}


@pytest.mark.parametrize("side", [8, 4, 2, 1])
def test_a_mask_is_1_where_all_pixels_of_a_position_are(side):
    mask = (np.random.default_rng(2).uniform(size=(20, 8, 8, 1)) < 0.9).astype(np.float32)
    mask[0], factor = 1.0, 8 // side
    mask[1] = np.kron(np.eye(4), np.ones((2, 2)))[:, :, None]
    downsampled = np.asarray(downsample_mask(mask, side))
    np.testing.assert_array_equal(downsampled, squares(mask, factor).min((3, 4)))
    assert downsampled.shape == (20, side, side, 1) and downsampled[0].all()


def test_a_mask_is_0_where_any_pixel_is_partly_masked():
    """At soft edges, and with one masked pixel of many."""
    mask = np.ones((2, 32, 32, 1), np.float32)
    mask[0, 5, 5], mask[1] = 0.0, 0.99
    assert downsample_mask(mask, 1).sum() == 0
    assert downsample_mask(mask, 2)[0].sum() == 3
