"""Networks of GANs: sizes, and the discriminator with its projection against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn.gan import Discriminator, Generator, MappingNetwork


def randomised(module, *inputs):
    """Random parameters, none of them zero."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(module.init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.3, jnp.float32), shapes)


@pytest.mark.parametrize(("size", "multipliers", "side"), [(8, (1, 2), 4), (28, (1, 2, 4), 7), (32, (1, 2, 4, 8), 4)])
def test_generator_starts_from_the_smallest_map(size, multipliers, side):
    module = Generator(size, 3, 10, latent=6, channels=8, multipliers=multipliers, norm_groups=4, dtype=jnp.bfloat16)
    images, variables = jax.eval_shape(
        module.init_with_output, jax.random.key(0), jnp.zeros((2, 6)), jnp.zeros(2, jnp.int32)
    )
    assert images.shape == (2, size, size, 3) and images.dtype == jnp.float32
    assert variables["params"]["dense_in"]["kernel"].shape == (12, side * side * 8 * multipliers[-1])


def test_generated_images_depend_on_their_latent_and_class_only():
    module = Generator(8, 1, 10, latent=6, channels=8, multipliers=(1, 2), norm_groups=4)
    z, label = jax.random.normal(jax.random.key(0), (4, 6)), jnp.arange(4)
    variables, apply = randomised(module, z, label), jax.jit(module.apply)
    whole = apply(variables, z, label)
    assert np.abs(whole).max() <= 1
    np.testing.assert_allclose(apply(variables, z[jnp.ones(4, int)], label[jnp.ones(4, int)])[0], whole[1], atol=1e-5)
    assert np.abs(apply(variables, z, label + 1) - whole).max() > 1e-2
    assert np.abs(apply(variables, -z, label) - whole).max() > 1e-2


def leaky(x):
    return np.where(x > 0, x, 0.2 * x)


def conv(x, layer):
    x, kernel = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), layer["kernel"]
    height, width = (side - 2 for side in x.shape[1:3])
    return layer["bias"] + sum(x[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


def block(x, layers, scale, down):
    h = conv(leaky(conv(leaky(x), layers["conv_0"])), layers["conv_1"])
    if "skip" in layers:
        x = x @ layers["skip"]["kernel"] + layers["skip"]["bias"]
    x = (x + h) * scale
    return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4 if down else x


def test_discriminator_against_numpy():
    module = Discriminator(5, channels=4, multipliers=(1, 2), residual_scale=0.7)
    x, label = jax.random.normal(jax.random.key(0), (3, 4, 4, 2)), jnp.array([4, 0, 2])
    variables = randomised(module, x, label)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    h = block(conv(np.asarray(x, np.float64), p["conv_in"]), p["block_0"], 0.7, True)
    features = leaky(block(h, p["block_1"], 0.7, False)).sum((1, 2))
    # Miyato & Koyama 2018, eq. 3: a linear function of the features plus their product with the class embedding
    expected = features @ p["dense_out"]["kernel"][:, 0] + p["dense_out"]["bias"]
    expected += np.einsum("bc,bc->b", p["label"]["kernel"][np.asarray(label)], features)
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x, label), expected, rtol=1e-4, atol=1e-4)


def test_discriminator_of_pairs_depends_on_both_images_and_the_time():
    module = Discriminator(channels=4, multipliers=(1, 1))
    x, noisier = jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 1))
    t = jnp.array([0.0, 1.0, 3.0])
    variables, apply = randomised(module, x, None, noisier, t), jax.jit(module.apply)
    logits = apply(variables, x, None, noisier, t)
    assert logits.shape == (3,) and logits.dtype == jnp.float32
    for changed in [(noisier, None, x, t), (x, None, x, t), (x, None, noisier, t + 1)]:
        assert np.abs(apply(variables, *changed) - logits).min() > 1e-3
    last = jnp.array([2, 2, 2])
    np.testing.assert_allclose(apply(variables, x[last], None, noisier[last], t[last]), logits[last], rtol=1e-4)


def test_mapping_network_against_numpy():
    module = MappingNetwork(latent=6, width=5, layers=2)
    z = jax.random.normal(jax.random.key(0), (3, 6))
    variables = randomised(module, z)
    h = np.asarray(z) / np.sqrt(np.mean(np.asarray(z) ** 2, axis=1, keepdims=True))
    for i in range(2):
        layer = variables["params"][f"dense_{i}"]
        h = leaky(h @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]))
    apply = jax.jit(module.apply)
    for scale in (1, 3):  # only the direction of z matters
        np.testing.assert_allclose(apply(variables, scale * z), h, rtol=1e-4, atol=1e-6)


def test_invalid_options_are_reported():
    image, z, label = jnp.zeros((1, 6, 6, 1)), jnp.zeros((1, 4)), jnp.zeros(1, jnp.int32)
    for module, inputs, message in [
        (Generator(6, 1), (z,), "multiples of 4, not 6"),
        (Discriminator(), (image,), "multiples of 4, not 6"),
        (Generator(8, 1, 3, channels=4), (z,), "classes=3: requires label to be set"),
        (Discriminator(channels=4, multipliers=(1,)), (image, label), "classes=0: requires label to be None"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(module.init, jax.random.key(0), *inputs)
