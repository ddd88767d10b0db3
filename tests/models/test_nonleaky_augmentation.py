"""Non-leaky augmentation against NumPy, SciPy and PyTorch, and in the training and sampling of a diffusion model."""

import functools
import itertools
import math

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from scipy import ndimage

from diffjax import models
from diffjax.data import shapes
from diffjax.diffusion.random import split_each
from diffjax.errors import UserError
from diffjax.models.diffusion import nonleaky_augmentation as augmentation
from diffjax.models.diffusion.conditions import make_conditions
from diffjax.models.diffusion.data_space import pixel_space
from diffjax.models.diffusion.nonleaky_augmentation import TRANSFORMS, NonLeakyAugmentation, Transform
from diffjax.models.diffusion.process import Process
from diffjax.models.diffusion.variants import make_diffusion_model
from tests import conditioned, tiny
from tests.conditioned import SPEC, keys

SIDE = 24
IMAGES = np.stack([shapes.render(shapes.scene("train", i), SIDE) for i in range(4)]).astype(np.float32) / 127.5 - 1
SMOOTH = ndimage.gaussian_filter(IMAGES.astype(np.float64), (0, 2.0, 2.0, 0), mode="mirror").astype(np.float32)
apply = jax.jit(jax.vmap(augmentation.transform_image, in_axes=(0, None)))


def transform(**parameters: float) -> Transform:
    values = dict.fromkeys(Transform._fields, 0.0) | parameters
    return Transform(**{name: jnp.float32(value) for name, value in values.items()})


@functools.cache
def sampled(prob: float, transforms: tuple[str, ...] = TRANSFORMS, num: int = 4000) -> Transform:
    """Returns NumPy arrays [num] of parameters."""
    sample = jax.jit(jax.vmap(lambda key: augmentation.sample_transform(key, prob, transforms)))
    return Transform(*map(np.asarray, sample(keys(num))))


# The warp


def least_asymmetric_filter(moments: int) -> np.ndarray:
    """Returns Daubechies' orthogonal filter of the least asymmetry, by spectral factorisation."""
    y = np.roots([math.comb(moments - 1 + k, k) for k in reversed(range(moments))])
    pairs = [np.roots([1, 4 * root - 2, 1]) for root in y if root.imag >= -1e-9]  # a root z, and 1 / z
    frequencies, candidates = np.linspace(0, np.pi / 2, 50), []
    for chosen in itertools.product((0, 1), repeat=len(pairs)):
        zeros = [pair[i] for pair, i in zip(pairs, chosen, strict=True)]
        zeros += [zero.conj() for zero in zeros if abs(zero.imag) > 1e-9]
        taps = np.poly([-1] * moments + zeros).real
        taps *= np.sqrt(2) / taps.sum()
        phase = np.unwrap(np.angle(np.exp(-1j * np.outer(frequencies, np.arange(2 * moments))) @ taps))
        slope, offset = np.polyfit(frequencies, phase, 1)
        candidates.append((np.abs(phase - slope * frequencies - offset).max(), -slope, taps))
    least = min(asymmetry for asymmetry, _, _ in candidates)
    return min((delay, taps.tolist()) for asymmetry, delay, taps in candidates if asymmetry < least + 1e-6)[1]


def test_the_filter_is_the_least_asymmetric_wavelet_with_six_vanishing_moments():
    """The filter has a smaller delay than its reversal, which is as symmetric."""
    np.testing.assert_allclose(augmentation._SYM6, least_asymmetric_filter(6), atol=1e-11)


def test_flips_are_exact():
    np.testing.assert_array_equal(apply(IMAGES, transform(x_flip=1)), IMAGES[:, :, ::-1])
    np.testing.assert_array_equal(apply(IMAGES, transform(y_flip=1)), IMAGES[:, ::-1])


def test_the_filters_of_the_warp_cancel_without_a_transform():
    warp = jax.jit(jax.vmap(augmentation.warp, in_axes=(0, None)))
    np.testing.assert_allclose(warp(IMAGES, transform()), IMAGES, atol=1e-5)
    np.testing.assert_array_equal(apply(IMAGES, transform()), IMAGES)


@pytest.mark.parametrize(("right", "down"), [(1, 0), (-3, 2), (7, -11)])
def test_translations_by_whole_pixels_are_exact_and_reflect_edges(right, down):
    translated = apply(IMAGES, transform(right=8 * right / SIDE, down=8 * down / SIDE))
    padded = np.pad(IMAGES, [(0, 0), (16, 16), (16, 16), (0, 0)], mode="reflect")
    expected = padded[:, 16 - down : 16 - down + SIDE, 16 - right : 16 - right + SIDE]
    np.testing.assert_allclose(translated, expected, atol=1e-4)


def test_quarter_turns_are_those_of_numpy():
    """Approximately, as the filter is not symmetric."""
    for turns in (1, 2, -1):
        turned = apply(SMOOTH, transform(rotation=turns * np.pi / 2))
        np.testing.assert_allclose(turned, np.rot90(SMOOTH, turns, axes=(1, 2)), atol=0.05)


def by_scipy(images: np.ndarray, t: Transform) -> np.ndarray:
    """Returns transformed images by cubic splines; the matrix is a product of those of each transform, (x, y)."""

    def turn(angle):  # counter-clockwise, as y points down
        return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])

    stretch = np.diag([2 ** (0.2 * t.anisotropy), 2 ** (-0.2 * t.anisotropy)])
    matrix = turn(t.axis) @ stretch @ turn(-t.axis) @ turn(t.rotation) * 2 ** (0.2 * t.scaling)
    inverse, centre = np.linalg.inv(matrix), np.full(2, (SIDE - 1) / 2)
    offset = centre - inverse @ (centre + np.array([t.right, t.down]) * SIDE / 8)
    exchanged = inverse[::-1, ::-1], offset[::-1]  # rows, then columns
    channels = np.moveaxis(images, -1, 1).reshape(-1, SIDE, SIDE).astype(np.float64)
    warped = np.stack([ndimage.affine_transform(c, *exchanged, order=3, mode="mirror") for c in channels])
    return np.moveaxis(warped.reshape(len(images), -1, SIDE, SIDE), 1, -1)


@pytest.mark.parametrize(
    "parameters",
    [
        {"scaling": 1.5},
        {"scaling": -1.0},
        {"rotation": 0.6},
        {"anisotropy": 1.2},
        {"anisotropy": -1.0, "axis": 0.7},
        {"right": 0.4, "down": -0.73},
        {"scaling": 0.7, "rotation": -2.0, "anisotropy": 0.8, "axis": -1.0, "right": -0.5, "down": 0.3},
    ],
    ids=str,
)
def test_a_smooth_image_is_warped_as_by_scipy(parameters):
    t = transform(**parameters)
    expected, result = by_scipy(SMOOTH, Transform(*map(float, t))), np.asarray(apply(SMOOTH, t))
    unchanged = np.sqrt(np.mean((SMOOTH - expected) ** 2))
    assert np.sqrt(np.mean((result - expected) ** 2)) < 0.03 * unchanged  # filter and interpolation differ
    np.testing.assert_allclose(result, expected, atol=0.05)


@pytest.mark.parity
def test_random_transforms_match_pytorch_on_noise():
    """Zeros between pixels, a convolution, affine_grid, grid_sample and a strided convolution, in double precision."""
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    t = Transform(*(values[:24] for values in sampled(1.0)))
    images = np.random.default_rng(0).uniform(-1, 1, (24, SIDE, SIDE, 3)).astype(np.float32)
    result = jax.jit(jax.vmap(augmentation.transform_image))(images, t)

    x = torch.from_numpy(np.moveaxis(images, -1, 1).astype(np.float64))
    x = torch.stack([i.flip(2) if flip else i for i, flip in zip(x, t.x_flip, strict=True)])
    x = torch.stack([i.flip(1) if flip else i for i, flip in zip(x, t.y_flip, strict=True)])
    x = functional.pad(x, [SIDE - 1] * 4, mode="reflect")
    taps = torch.from_numpy(np.array(least_asymmetric_filter(6)))
    kernel = torch.outer(taps, taps)[None, None].repeat(3, 1, 1, 1)
    x = functional.conv_transpose2d(x, kernel, stride=2, groups=3)[:, :, 5:-5, 5:-5]  # pixel i is at 2 i

    def matrices(*rows):
        return np.moveaxis(np.array([np.broadcast_arrays(*row, t.right)[:-1] for row in rows], np.float64), -1, 0)

    def turn(angle):
        return matrices((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle)))

    axes = matrices((2 ** (-0.2 * t.anisotropy), 0), (0, 2 ** (0.2 * t.anisotropy)))
    inverse = turn(-t.rotation) @ turn(t.axis) @ axes @ turn(-t.axis) * (2 ** (-0.2 * t.scaling))[:, None, None]
    translation = np.stack([t.right, t.down], axis=1)[:, :, None] * SIDE / 8
    # Grids of half a pixel's spacing start at a pixel, so their centres are a quarter pixel from those of images.
    positions, size, quarter = 2 * SIDE + 12, x.shape[-1], np.full((2, 1), 0.25)
    offset = inverse @ (quarter - translation) - quarter
    theta = np.concatenate([inverse * positions / size, 4 * offset / size], axis=2)
    grid = functional.affine_grid(torch.from_numpy(theta), [24, 3, positions, positions], align_corners=False)
    x = functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    x = functional.conv2d(x[:, :, 1:, 1:], kernel, stride=2, groups=3)[:, :, :SIDE, :SIDE]
    np.testing.assert_allclose(result, np.moveaxis(x.numpy(), 1, -1), atol=1e-4)


# The distribution of transforms, and their labels


def test_each_transform_has_its_probability():
    t, num = sampled(0.12), 4000
    shares = {
        "x_flip": (t.x_flip, 0.5),
        "y_flip": (t.y_flip, 0.06),
        "scaling": (t.scaling, 0.12),
        "rotation": (t.rotation, 0.12),
        "anisotropy": (t.anisotropy, 0.12),
        "axis": (t.axis, 0.06),
        "translation": (t.right, 0.12),
    }
    for name, (values, prob) in shares.items():
        error = 4 * math.sqrt(prob * (1 - prob) / num)
        assert np.mean(values != 0) == pytest.approx(prob, abs=error), name
    np.testing.assert_array_equal(t.right != 0, t.down != 0)
    assert np.all(t.anisotropy[t.axis != 0] != 0)
    both = np.mean((t.scaling != 0) & (t.rotation != 0))
    assert both == pytest.approx(0.12**2, abs=4 * 0.12 / math.sqrt(num))


def test_parameters_have_the_distributions_of_the_paper():
    t = sampled(1.0)
    for values in (t.scaling, t.anisotropy, t.right, t.down):
        assert np.mean(values) == pytest.approx(0, abs=0.08) and np.std(values) == pytest.approx(1, abs=0.05)
    for values in (t.rotation, t.axis[t.axis != 0]):
        assert np.abs(values).max() <= np.pi * (1 + 1e-6)
        counts, _ = np.histogram(values, bins=8, range=(-np.pi, np.pi))
        assert counts.min() > 0.7 * len(values) / 8
    assert np.abs(np.corrcoef([t.scaling, t.rotation, t.anisotropy, t.axis, t.right, t.down]) - np.eye(6)).max() < 0.08


def test_labels_are_the_nine_numbers_of_the_paper():
    t = transform(x_flip=1, y_flip=1, scaling=0.3, rotation=0.5, anisotropy=-0.7, axis=2.0, right=0.9, down=-1.1)
    turn, stretch = (np.cos(0.5) - 1, np.sin(0.5)), (-0.7 * np.cos(2.0), -0.7 * np.sin(2.0))
    np.testing.assert_allclose(t.label, [1, 1, 0.3, *turn, *stretch, 0.9, -1.1], rtol=1e-5)
    np.testing.assert_array_equal(transform().label, np.zeros(9))


def test_only_enabled_transforms_are_sampled():
    t = sampled(1.0, ("y_flip", "translation"), num=32)
    assert {name for name, values in t._asdict().items() if np.any(values)} == {"y_flip", "right", "down"}


def test_an_example_depends_on_its_key_alone():
    augment = jax.jit(NonLeakyAugmentation(0.5))
    images, labels = augment(keys(4), IMAGES)
    reversed_images, reversed_labels = augment(keys(4)[::-1], IMAGES[::-1])
    np.testing.assert_allclose(reversed_images[::-1], images, atol=1e-6)
    np.testing.assert_array_equal(reversed_labels[::-1], labels)
    assert len(np.unique(labels, axis=0)) > 1


# The diffusion model


def augmented(prob: float = 0.9, transforms: tuple[str, ...] = TRANSFORMS) -> dict:
    return {"data__augment": {"prob": prob, "transforms": transforms}}


PLAIN = {"model": conditioned.DIT, "diffusion__label_dropout": 0.0, "sampler__guidance": 1.0}
UNAUGMENTED, AUGMENTED = tiny.config(**PLAIN), tiny.config(**PLAIN, **augmented())


@functools.cache
def built():
    """Returns the model with augmentation, the same without, and their variables."""
    model, variables = conditioned.with_random_params(models.build(AUGMENTED, SPEC))
    params = dict(variables["params"]["model"])
    assert params.pop("augment").keys() == {"kernel"}
    return model, variables, models.build(UNAUGMENTED, SPEC), {**variables, "params": {"model": params}}


def compiled_loss(model):
    """Returns (variables, batch, keys) -> losses."""
    return jax.jit(lambda variables, batch, keys: model.losses["model"](variables, batch, keys, tiny.moment())[0])


@pytest.mark.slow
def test_samples_are_those_of_the_network_without_augmentation():
    model, variables, plain, plain_variables = built()
    conditions = {"label": np.arange(6, dtype=np.int32)}
    settings = model.make_settings(AUGMENTED.sampler, steps=2)
    sample = jax.jit(model.sample)
    samples = sample(variables, keys(), conditions, settings)
    np.testing.assert_allclose(samples, jax.jit(plain.sample)(plain_variables, keys(), conditions, settings), atol=1e-6)
    labelled = sample(variables, keys(), conditions | {"augment_label": jnp.ones((6, 9))}, settings)
    assert np.abs(labelled - samples).max() > 1e-3


@pytest.mark.slow
def test_the_loss_is_that_of_transformed_images_with_their_labels():
    """The images are transformed beforehand; a network that ignores the labels has the same loss."""
    transforms = ("x_flip", "y_flip")
    plain = {"model": conditioned.DIT, "diffusion__label_dropout": 0.0, "sampler__guidance": 1.0}
    model, variables = conditioned.with_random_params(
        models.build(tiny.config(**plain, **augmented(1.0, transforms)), SPEC)
    )
    params, batch = variables["params"]["model"], tiny.batch(16)
    images, labels = NonLeakyAugmentation(1.0, transforms)(split_each(keys(16), 5)[4], np.float32(batch["image"]))
    is_transformed = np.any(np.asarray(labels), axis=1)
    assert {tuple(row) for row in np.asarray(labels[:, :2])} == {(0, 0), (0, 1), (1, 0), (1, 1)}

    def with_kernel(kernel):
        return {**variables, "params": {"model": {**params, "augment": {"kernel": kernel}}}}

    kernel, loss = params["augment"]["kernel"], compiled_loss(model)
    whole = batch | {"image": np.uint8(images)}
    expected = compiled_loss(models.build(UNAUGMENTED, SPEC))(variables, whole, keys(16))
    np.testing.assert_allclose(loss(with_kernel(jnp.zeros_like(kernel)), batch, keys(16)), expected, rtol=1e-5)
    changes = np.abs(loss(with_kernel(kernel), batch, keys(16)) / expected - 1)
    assert changes[is_transformed].min() > 1e-5 > changes[~is_transformed].max()


class CopyingNetwork(nn.Module):
    """Outputs the conditioning image, and x_t where that is masked."""

    @nn.compact
    def __call__(self, x, t, **inputs):
        self.param("none", nn.initializers.zeros, ())
        x_t, image, masked = jnp.split(x, 3, axis=-1)
        return jnp.where(masked == 1.0, x_t, image)


@pytest.mark.slow
def test_images_and_their_conditions_are_transformed_alike():
    """At negligible noise, a network that copies its inputs has no error."""
    clean = {"diffusion__parameterization": "x0", "diffusion__schedule": "edm(sigma_max=1e-6)"}
    config = conditioned.config("masked_image", diffusion__timesteps=1, sampler__steps=1, **augmented(), **clean)
    space = pixel_space(SPEC)
    conditions, process = make_conditions(config, SPEC, space), Process.from_config(config.diffusion)
    model = make_diffusion_model(config, SPEC, process, space, conditions, CopyingNetwork(), {})
    variables = {"params": {"model": {"none": jnp.zeros(())}}, "frozen": {}}
    loss = compiled_loss(model)(variables, tiny.batch(32), keys(32))
    np.testing.assert_allclose(loss, np.zeros(32), atol=1e-9)


def test_probability_zero_leaves_the_program_of_a_step_unchanged():
    batch, off = tiny.batch(), tiny.config(**PLAIN, **augmented(0.0))
    without = UNAUGMENTED.copy_and_resolve_references().unlock()
    del without.data.augment

    def program(config):
        model = models.build(config, SPEC)
        variables = {**model.variable_shapes, "frozen": {}}
        return str(jax.make_jaxpr(lambda v: model.losses["model"](v, batch, keys(), tiny.moment())[0])(variables))

    assert program(off) == program(without) != program(AUGMENTED)


def test_invalid_configs_raise():
    for system, changes, message in (
        ("digits", augmented(1.5), "data.augment.prob=1.5: must be a finite number from 0 to 1"),
        ("digits", augmented(transforms=("x_flop",)), "unknown transform .* 'x_flop': did you mean 'x_flip'"),
        ("digits", augmented(transforms=(1,)), "data.augment.transforms=.*: must be a tuple of text"),
        ("digits", augmented(transforms=()), "must name at least one transform; or set data.augment.prob=0"),
        ("gan", augmented(), "data.augment.prob=0.9: is only supported for system=ddpm"),
        ("classifier_digits", augmented(), "set it to 0 for system=classifier"),
        ("latent_shapes", augmented(), "set it to 0 for system=latent"),
    ):
        with pytest.raises(UserError, match=message) as raised:
            models.build(tiny.config(system, **changes), SPEC)
        assert "\n" not in str(raised.value)
