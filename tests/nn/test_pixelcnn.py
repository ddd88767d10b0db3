"""PixelCNN: what it sees, masked convolutions position by position in NumPy, and sampling against the whole network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.latents.token_sampling import draw
from diffjax.nn.pixelcnn import PixelCNN, generate

K = 5


def randomised(model, *inputs):
    """Parameters with nothing left at zero."""
    params = jax.jit(model.init)(jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda p: (np.asarray(p) + 0.2 * rng.normal(size=p.shape)).astype(np.float32), params)


def small(**options):
    return PixelCNN(**({"outputs": K, "features": 8, "layers": 2, "kernel": 3} | options))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kernel,layers", [(3, 2), (5, 1)])
def test_a_position_sees_exactly_what_is_before_it_within_reach(kernel, layers):
    height, width, reach = 6, 7, layers * (kernel // 2)
    model = small(kernel=kernel, layers=layers, features=16)
    x = normal(1, height, width, 2)
    params = randomised(model, x)
    jacobian = jax.jit(jax.jacrev(lambda x: model.apply({"params": params}, x)[0].mean(-1)))(x)  # [H, W, 1, H, W, 2]
    found = np.abs(jacobian).max((2, 5))
    i, j, m, n = np.indices(found.shape)
    above = (m < i) & (m >= i - reach) & (np.abs(n - j) <= reach)
    left = (m == i) & (n < j) & (n >= j - reach)
    np.testing.assert_array_equal(found != 0, above | left)


def numpy_pixelcnn(params, x, condition, kernel, layers):
    """Section 2 of the paper, one position at a time, of one picture, float64."""
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    height, width, _ = x.shape
    half = kernel // 2

    def dense(p, y):
        return y @ p["kernel"] + p.get("bias", 0)

    def gate(y):
        a, b = np.split(y, 2, -1)
        return np.tanh(a) / (1 + np.exp(-b))

    def convolve(p, y, i, j, rows, columns):
        total = p["bias"].copy()
        for a, di in enumerate(rows):
            for b, dj in enumerate(columns):
                if 0 <= i + di < height and 0 <= j + dj < width:
                    total += y[i + di, j + dj] @ p["kernel"][a, b]
        return total

    vertical = horizontal = x.astype(np.float64)
    for n in range(layers):
        p, last = params[f"layer_{n}"], 0 if n == 0 else 1
        both = dense(p["condition"], np.broadcast_to(condition, (height, width, condition.shape[-1])))
        features = p["out"]["kernel"].shape[1]
        new = np.zeros((2, height, width, features))
        for i, j in np.ndindex(height, width):
            y = convolve(p["rows"], vertical, i, j, range(-half, last), range(-half, half + 1))
            z = convolve(p["columns"], horizontal, i, j, [0], range(-half, last)) + dense(p["link"], y)
            new[0, i, j] = gate(y + both[i, j, : 2 * features])
            new[1, i, j] = dense(p["out"], gate(z + both[i, j, 2 * features :])) + (horizontal[i, j] if n else 0)
        vertical, horizontal = new
    return dense(params["out"], np.maximum(dense(params["head"], np.maximum(horizontal, 0)), 0))


@pytest.mark.parametrize("sides", [(4, 5), (1, 1)])
def test_forward_pass_matches_numpy(sides):
    model, x, condition = small(), normal(2, 4, 5, 3), normal(2, *sides, 6, seed=2)
    params = randomised(model, x, condition)
    found = jax.jit(model.apply)({"params": params}, x, condition)
    for n in range(2):
        np.testing.assert_allclose(found[n], numpy_pixelcnn(params, x[n], condition[n], 3, 2), atol=2e-5)


TABLE = normal(K, 3, seed=7)  # embeds the values


def pick(keys, output, place, **options):
    token = jax.vmap(lambda key, logits: draw(key, logits, **options))(keys, output)
    return {"token": token, "output": output, "place": jnp.stack(place)[None, :]}, jnp.asarray(TABLE)[token]


@pytest.mark.parametrize("sides", [None, (4, 5)])
def test_sampling_sees_what_the_whole_network_would(sides):
    model = small(kernel=5, layers=3)
    condition = None if sides is None else normal(2, *sides, 6, seed=2)
    params = randomised(model, normal(2, 4, 5, 3), condition)
    keys = jax.random.split(jax.random.key(3), 2)
    values = jax.jit(lambda params: generate(model, params, pick, keys, condition, 4, 5))(params)
    assert values["token"].shape == (2, 4, 5)
    assert len(np.unique(values["token"])) > 2
    expected = jax.jit(model.apply)({"params": params}, TABLE[values["token"]], condition)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(values["output"], expected, atol=1e-5)
    np.testing.assert_array_equal(values["place"][0], np.moveaxis(np.indices((4, 5)), 0, -1))


def test_an_example_is_drawn_from_its_own_key():
    model, condition = small(), normal(3, 1, 1, 6, seed=2)
    params = randomised(model, normal(3, 4, 4, 3), condition)
    keys = jax.random.split(jax.random.key(3), 3)
    draws = jax.jit(lambda params, keys, condition: generate(model, params, pick, keys, condition, 4, 4)["token"])
    tokens = draws(params, keys, condition)
    turned = np.array([1, 2, 0])
    np.testing.assert_array_equal(draws(params, keys[turned], condition[turned]), tokens[turned])
    same = draws(params, keys[np.zeros(3, int)], np.repeat(condition[:1], 3, 0))
    assert (same == same[:1]).all()
    # Where the outputs are equal, examples, rows and columns differ by their keys alone.
    uniform = draws(jax.tree.map(np.zeros_like, params), keys, condition)
    for other in (uniform[1], uniform[0, ::-1], uniform[0, :, ::-1], uniform[0].T):
        assert (uniform[0] != other).any()


def test_one_compilation_sweeps_temperature_top_k_and_top_p():
    model = small()
    params = randomised(model, normal(2, 3, 3, 3))
    keys = jax.random.split(jax.random.key(3), 2)

    @jax.jit
    def sample(temperature, top_k, top_p):
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        return generate(model, params, lambda *given: pick(*given, **options), keys, None, 3, 3)

    for setting in ((1.0, 1, 1.0), (1.0, 0, 1e-6), (1e-4, 0, 1.0)):
        values = sample(jnp.float32(setting[0]), jnp.int32(setting[1]), jnp.float32(setting[2]))
        np.testing.assert_array_equal(values["token"], values["output"].argmax(-1))
    values = sample(jnp.float32(1), jnp.int32(0), jnp.float32(1))
    assert (values["token"] != values["output"].argmax(-1)).any()
    assert sample._cache_size() == 1


def test_a_picture_is_completed_from_its_first_rows():
    model = small()
    params = randomised(model, normal(2, 4, 4, 3))
    keys = jax.random.split(jax.random.key(3), 2)
    known = np.random.default_rng(4).integers(0, K, (2, 4, 4))

    def completing(keys, output, place):
        value, _ = pick(keys, output, place)
        token = jnp.where(place[0] < 2, jnp.asarray(known)[:, place[0], place[1]], value["token"])
        return {"token": token, "output": output}, jnp.asarray(TABLE)[token]

    values = jax.jit(lambda params: generate(model, params, completing, keys, None, 4, 4))(params)
    np.testing.assert_array_equal(values["token"][:, :2], known[:, :2])
    expected = jax.jit(model.apply)({"params": params}, TABLE[values["token"]])
    np.testing.assert_allclose(values["output"], expected, atol=1e-5)


def test_an_untrained_network_is_uniform():
    model, x, labels = small(), normal(2, 4, 4, 3), np.random.default_rng(0).integers(0, K, (2, 4, 4))
    logits, _ = jax.jit(model.init_with_output)(jax.random.key(0), x)
    entropy = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), labels[..., None], -1)
    np.testing.assert_allclose(entropy, np.log(K), rtol=1e-6)


def test_bfloat16():
    x, condition = normal(2, 4, 5, 3), normal(2, 1, 1, 6, seed=2)
    params = randomised(small(), x, condition)
    model = small(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, condition)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes))
    found, exact = (jax.jit(m.apply)({"params": params}, x, condition) for m in (model, small()))
    assert found.dtype == jnp.float32 and 0 < np.abs(found - exact).max() < 0.03 * np.abs(exact).max()
    keys = jax.random.split(jax.random.key(3), 2)
    values = jax.jit(lambda params: generate(model, params, pick, keys, condition, 4, 5))(params)
    expected = jax.jit(model.apply)({"params": params}, TABLE[values["token"]], condition)
    np.testing.assert_allclose(values["output"], expected, atol=0.03 * np.abs(expected).max())


def test_dropout_is_keyed_by_the_example():
    model, x = small(dropout=0.5), np.repeat(normal(1, 4, 4, 3), 3, 0)
    params = randomised(model, x)
    keys = jax.random.split(jax.random.key(0), 2)[np.array([0, 0, 1])]
    y, clean = (np.asarray(jax.jit(model.apply)({"params": params}, x, None, k)) for k in (keys, None))
    np.testing.assert_array_equal(y[0], y[1])
    assert np.abs(y[0] - y[2]).max() > 1e-3 and np.abs(y[0] - clean[0]).max() > 1e-3
    np.testing.assert_array_equal(clean[0], clean[2])


@pytest.mark.parametrize("options,message", [({"kernel": 4}, "kernel is 4"), ({"dropout": 1.0}, "dropout is 1.0")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(small(**options).init, jax.random.key(0), np.zeros((1, 3, 3, 2)))
