"""The patch discriminator has the published size and patches; spectral normalisation agrees with NumPy's SVD."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn import spectral
from diffjax.nn.discriminator import PatchDiscriminator

normalized = jax.jit(spectral.normalized)


def parameters(net, x):
    """Random parameters from shapes alone: no compilation."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(net.init, jax.random.key(0), x)
    return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)


def test_number_of_parameters():
    x = jax.ShapeDtypeStruct((1, 256, 256, 6), jnp.float32)  # pix2pix concatenates the condition
    logits, variables = jax.eval_shape(PatchDiscriminator(norm="none").init_with_output, jax.random.key(0), x)
    assert logits.shape == (1, 30, 30, 1)
    # 2,768,705 with scale and bias of batch norms of 128, 256 and 512 channels, without biases of these convolutions
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 2_768_705 - (128 + 256 + 512)


def test_channels_double_up_to_eight_times():
    net = PatchDiscriminator(2, 5, norm_groups=4)
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 96, 96, 3)))["params"]
    assert [params[f"conv_{i}"]["kernel"].shape[-1] for i in range(6)] == [2, 4, 8, 16, 16, 16]


@pytest.mark.parametrize(("layers", "patch", "side"), [(1, 16, 32), (3, 70, 80)])
def test_receptive_field_is_the_published_patch(layers, patch, side):
    net = PatchDiscriminator(1, layers, "none")
    x = np.random.default_rng(1).normal(size=(1, side, side, 1)).astype(np.float32)
    params = parameters(net, x)
    middle = jax.eval_shape(net.apply, params, x).shape[1] // 2
    gradient = np.asarray(jax.jit(jax.grad(lambda x: net.apply(params, x)[0, middle, middle, 0]))(x))[0, :, :, 0]
    for axis in (0, 1):
        field = np.flatnonzero(gradient.any(axis))
        assert field[-1] - field[0] + 1 == len(field) == patch


@pytest.mark.parametrize(
    ("side", "layers", "logits", "norm"), [(28, 3, 1, "group"), (8, 1, 2, "none"), (32, 2, 6, "group")]
)
def test_small_images_have_logits(side, layers, logits, norm):
    net = PatchDiscriminator(8, layers, norm, norm_groups=4, dtype=jnp.bfloat16)
    y, params = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((2, side, side, 1)))
    assert y.shape == (2, logits, logits, 1) and y.dtype == jnp.float32
    names = {f"conv_{i}" for i in range(layers + 1)} | {"conv_out"}
    norms = {f"norm_{i}" for i in range(1, layers + 1)} if norm == "group" else set()
    assert set(params["params"]) == names | norms


def test_an_example_does_not_depend_on_the_others():
    net = PatchDiscriminator(8, 1, norm_groups=4)
    x = np.random.default_rng(1).normal(size=(2, 8, 8, 3)).astype(np.float32)
    params, apply = parameters(net, x), jax.jit(net.apply)
    np.testing.assert_allclose(apply(params, x[[1, 1]])[0], apply(params, x)[1], atol=1e-5)


def test_invalid_options_are_reported():
    for net, side, message in [
        (PatchDiscriminator(norm="batch"), 32, "choose from group, none"),
        (PatchDiscriminator(), 23, "sides from 24"),
        (PatchDiscriminator(8, 1), 32, "groups=32: must divide the 16 channels of a group norm; use 16"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))


@pytest.fixture(scope="module")
def network():
    """Parameters of a discriminator, initial singular vectors, and those after many iterations."""
    net = PatchDiscriminator(4, 1, norm_groups=2)
    params = parameters(net, jnp.zeros((1, 8, 8, 3)))["params"]
    params["conv_0"]["kernel"] *= 30.0  # singular values above and below one
    start = memory = jax.jit(spectral.init)(jax.random.key(1), params)
    for _ in range(300):
        memory = normalized(params, memory)[1]
    return params, start, memory


def svd(kernel):
    left, values, right = np.linalg.svd(np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1]), False)
    return left[:, 0], values[0], right[0]


def test_kernels_are_divided_by_their_largest_singular_value(network):
    params, _, memory = network
    found, _ = normalized(params, memory)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for name, layer in params.items():
        for leaf, value in layer.items():
            expected = np.asarray(value) / (svd(value)[1] if leaf == "kernel" else 1.0)
            np.testing.assert_allclose(found[name][leaf], expected, rtol=1e-4, atol=1e-6, err_msg=f"{name} {leaf}")


def test_memory_has_one_unit_vector_per_kernel_and_converges(network):
    params, start, memory = network
    assert set(start) == {name for name, layer in params.items() if "kernel" in layer}
    for name in start:
        assert set(start[name]) == {"kernel"}
        assert abs(np.linalg.norm(start[name]["kernel"]) - 1) < 1e-5
        _, _, right = svd(params[name]["kernel"])
        assert abs(abs(right @ np.asarray(memory[name]["kernel"])) - 1) < 1e-4, name


def test_one_call_is_one_power_iteration(network):
    params, start, _ = network
    found, memory = normalized(params, start)
    matrix = np.asarray(params["conv_1"]["kernel"], np.float64).reshape(-1, 8)
    v = matrix @ np.asarray(start["conv_1"]["kernel"])
    u = matrix.T @ (v / np.linalg.norm(v))
    np.testing.assert_allclose(memory["conv_1"]["kernel"], u / np.linalg.norm(u), atol=1e-5)
    np.testing.assert_allclose(found["conv_1"]["kernel"], params["conv_1"]["kernel"] / np.linalg.norm(u), rtol=1e-4)


def test_gradient_is_equation_12(network):
    """(G - <G, W / sigma> u v^T) / sigma, where G is the gradient with respect to the normalised kernel."""
    params, _, memory = network
    kernel = params["conv_1"]["kernel"]
    direction = jax.random.normal(jax.random.key(3), kernel.shape)

    def loss(params, memory):
        return (direction * spectral.normalized(params, memory)[0]["conv_1"]["kernel"]).sum()

    found, through_memory = jax.jit(jax.grad(loss, (0, 1)))(params, memory)
    left, sigma, right = svd(kernel)
    g = np.asarray(direction, np.float64).reshape(-1, kernel.shape[-1])
    inner = (g * np.asarray(kernel).reshape(g.shape)).sum() / sigma
    expected = (g - inner * np.outer(left, right)) / sigma
    np.testing.assert_allclose(found["conv_1"]["kernel"].reshape(g.shape), expected, atol=1e-3 * np.abs(expected).max())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(through_memory))


def test_a_kernel_of_zeros_is_unchanged_and_has_a_gradient():
    kernel, start = np.zeros((3, 2), np.float32), np.array([0.6, 0.8], np.float32)

    @jax.jit
    def once(kernel):
        found, memory = spectral.normalized({"dense": {"kernel": kernel}}, {"dense": {"kernel": start}})
        return found["dense"]["kernel"], memory["dense"]["kernel"]

    found, memory = once(kernel)
    np.testing.assert_array_equal(found, 0)
    np.testing.assert_array_equal(memory, start)
    np.testing.assert_array_equal(jax.grad(lambda kernel: once(kernel)[0].sum())(kernel), 1)
