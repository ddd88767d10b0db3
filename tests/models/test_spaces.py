"""What is diffused of a picture, against NumPy: pixels, latents, embeddings; and masks of them."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.errors import UserError
from diffjax.models import build
from diffjax.models.diffusion import data_space
from diffjax.typing import Clip, ImageSpec, Objective, System, TextSpec
from tests import conditioned, tiny

PICTURES = np.random.default_rng(0).uniform(-1, 1, (5, 8, 8, 3)).astype(np.float32)
GREY = PICTURES[..., :1]
SPEC = ImageSpec(8, 3, 10)


def squares(x, factor):
    """[B, h, w, factor, factor, C]."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // factor, factor, width // factor, factor, channels).swapaxes(2, 3)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_pixels_are_averaged_and_shown_as_they_are(factor):
    space = data_space.pixels(SPEC, factor)
    x = space.encode({}, PICTURES)
    assert space.pixels and space.shape == x.shape[1:] == (8 // factor, 8 // factor, 3)
    np.testing.assert_allclose(x, squares(PICTURES, factor).mean((3, 4)), atol=1e-6)
    assert space.decode({}, x) is x


@pytest.mark.parametrize("factor", [0, 3, 16])
def test_a_factor_that_does_not_divide_is_refused(factor):
    with pytest.raises(UserError, match=f"diffusion.downsample={factor} does not divide data.image_size=8"):
        data_space.pixels(SPEC, factor)


def test_latents_are_the_codecs_there_and_back():
    """Of the variables that are frozen, not of those that it was built with; pictures stay in their range."""
    space = data_space.latents(*conditioned.CODEC)
    variables = {"frozen": {"codec": {"params": {"scale": jnp.full((), 5.0)}}}}
    z = space.encode(variables, GREY)
    assert not space.pixels and space.shape == z.shape[1:] == (4, 4, 4)
    np.testing.assert_allclose(z, 5 * squares(GREY, 2).reshape(5, 4, 4, 4), atol=1e-6)
    np.testing.assert_allclose(space.decode(variables, z), GREY, atol=1e-6)
    np.testing.assert_allclose(space.decode(variables, 2 * z), np.clip(2 * GREY, -1, 1), atol=1e-6)


@pytest.mark.slow
def test_latents_of_a_trained_autoencoder_have_unit_variance():
    """Of what training has seen, measured in NumPy; and the scale changes nothing of what they show."""
    system = build(tiny.config("kl"), conditioned.SPEC)
    frozen = {**tiny.randomised(system.objective.init), "frozen": {}}
    space = data_space.latents(system, frozen)

    @jax.jit
    def run(seen):
        variables = {"frozen": {"codec": {**frozen, "latents": seen}}}
        z = space.encode(variables, GREY)
        return z, space.decode(variables, z)

    plain, shown = run(frozen["latents"])
    seen = {"mean": np.mean(plain, dtype=np.float32), "square": np.mean(np.square(plain), dtype=np.float32)}
    z, same = run(seen)
    assert plain.shape[1:] == space.shape and abs(plain.std() - 1) > 0.1
    np.testing.assert_allclose(z.std(), 1.0, rtol=1e-4)
    np.testing.assert_allclose(same, shown, atol=1e-5)


@pytest.mark.parametrize("threshold", ["clip", "dynamic"])
def test_latents_have_no_range_to_be_kept_in(threshold):
    message = f"sampler.threshold={threshold} keeps pixels in their range, and latents and embeddings have none"
    with pytest.raises(UserError, match=message):
        build(conditioned.latent("caption", sampler__threshold=threshold), conditioned.SPEC, codec=conditioned.CODEC)
    made = conditioned.latent("caption")
    with pytest.raises(UserError, match=message):
        build(made, conditioned.SPEC, codec=conditioned.CODEC).plan(made.sampler, threshold=threshold)
    with pytest.raises(UserError, match=message):  # and no more have embeddings
        build(conditioned.prior(sampler__threshold=threshold), conditioned.SPEC, clip=conditioned.clip())


def test_embeddings_have_their_scale_and_are_shown_at_unit_length():
    """Whatever length a model draws; and no gradient goes into the CLIP."""

    def clip(variables) -> Clip:
        def embed(images):
            x = images.mean((1, 2)) @ variables["map"]
            return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

        return Clip(embed, None, None, jnp.ones(()), 7, 1, TextSpec(6, 300))

    space = data_space.embeddings(System(Objective(None, {}), 0, clip=clip), 7, 2.5)
    variables = {"frozen": {"clip": {"map": np.random.default_rng(1).normal(size=(3, 7)).astype(np.float32)}}}
    x = PICTURES.mean((1, 2)) @ variables["frozen"]["clip"]["map"]
    unit, z = x / np.linalg.norm(x, axis=1, keepdims=True), space.encode(variables, PICTURES)
    assert not space.pixels and space.shape == (7,)
    np.testing.assert_allclose(z, 2.5 * unit, atol=1e-5)
    np.testing.assert_allclose(space.decode(variables, 0.3 * z), unit, atol=1e-5)
    assert np.isfinite(space.decode(variables, jnp.zeros((1, 7)))).all()
    gradient = jax.grad(lambda variables: space.encode(variables, PICTURES)[:, 0].sum())(variables)
    assert not np.any(gradient["frozen"]["clip"]["map"])


@pytest.mark.parametrize("side", [8, 4, 2, 1])
def test_a_position_is_kept_where_all_that_it_stands_for_is(side):
    kept = (np.random.default_rng(2).uniform(size=(20, 8, 8, 1)) < 0.9).astype(np.float32)
    kept[0], factor = 1.0, 8 // side
    kept[1] = np.kron(np.eye(4), np.ones((2, 2)))[:, :, None]
    found = np.asarray(data_space.kept_in(kept, side))
    np.testing.assert_array_equal(found, squares(kept, factor).min((3, 4)))
    assert found.shape == (20, side, side, 1) and found[0].all()


def test_a_position_that_is_kept_in_part_is_not_kept():
    """Nor at the soft edge of a mask, nor where one pixel of many is erased."""
    kept = np.ones((2, 32, 32, 1), np.float32)
    kept[0, 5, 5], kept[1] = 0.0, 0.99
    assert data_space.kept_in(kept, 1).sum() == 0
    assert data_space.kept_in(kept, 2)[0].sum() == 3
