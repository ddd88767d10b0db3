"""PixelCNN: receptive field, masked convolutions by position in NumPy, sampling against the forward pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.latents import token_sampling
from diffjax.nn.pixelcnn import PixelCNN, generate

K = 5


def randomised(model, *inputs):
    """Random parameters, none of them zero, from shapes alone: no compilation."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(np.float32), shapes)


def small(**options):
    return PixelCNN(**({"outputs": K, "features": 8, "layers": 2, "kernel": 3} | options))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kernel,layers", [(3, 2), (5, 1)])
def test_receptive_field_is_all_previous_positions_within_reach(kernel, layers):
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
    """Returns outputs for one image, one position at a time, float64 (section 2 of the paper)."""
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


TABLE = normal(K, 3, seed=7)  # embeds tokens
HEIGHT, WIDTH = 4, 5
KEYS = jax.random.split(jax.random.key(3), 3)
CONDITION = normal(3, HEIGHT, WIDTH, 6, seed=2)
KNOWN = np.random.default_rng(4).integers(0, K, (3, HEIGHT, WIDTH))
DEFAULTS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "known_rows": 0}


def make_sampler(model):
    @jax.jit
    def sample(params, keys, condition, options):
        def pick(keys, output, place):
            settings = {name: options[name] for name in ("temperature", "top_k", "top_p")}
            token = jax.vmap(lambda key, logits: token_sampling.sample(key, logits, **settings))(keys, output)
            token = jnp.where(place[0] < options["known_rows"], jnp.asarray(KNOWN)[:, place[0], place[1]], token)
            place = jnp.broadcast_to(jnp.stack(place), (len(keys), 2))
            return {"token": token, "output": output, "place": place}, jnp.asarray(TABLE)[token]

        return generate(model, params, pick, keys, condition, HEIGHT, WIDTH)

    return lambda params, keys=KEYS, condition=CONDITION, **options: sample(params, keys, condition, DEFAULTS | options)


@pytest.fixture(scope="module")
def sampling():
    """(parameters, sampler, forward pass) of one network with a condition, compiled once each."""
    model = small(kernel=5, layers=2)
    params = randomised(model, normal(3, HEIGHT, WIDTH, 3), CONDITION)
    return params, make_sampler(model), jax.jit(model.apply)


def test_sampling_outputs_match_the_forward_pass(sampling):
    """Sampling starts without known rows, or completes an image from its first rows."""
    params, sample, forward = sampling
    for known_rows in (0, 2):
        values = sample(params, known_rows=known_rows)
        assert values["token"].shape == (3, HEIGHT, WIDTH) and len(np.unique(values["token"])) > 2
        np.testing.assert_array_equal(values["token"][:, :known_rows], KNOWN[:, :known_rows])
        expected = forward({"params": params}, TABLE[values["token"]], CONDITION)
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(values["output"], expected, atol=1e-5)
        np.testing.assert_array_equal(values["place"][0], np.moveaxis(np.indices((HEIGHT, WIDTH)), 0, -1))


def test_an_example_is_sampled_with_its_own_key(sampling):
    params, sample, _ = sampling
    tokens = sample(params)["token"]
    order = np.array([1, 2, 0])
    np.testing.assert_array_equal(sample(params, KEYS[order], CONDITION[order])["token"], tokens[order])
    same = sample(params, KEYS[np.zeros(3, int)], np.repeat(CONDITION[:1], 3, 0))["token"]
    assert (same == same[:1]).all()
    # With equal outputs, examples, rows and columns differ by their keys alone.
    uniform = sample(jax.tree.map(np.zeros_like, params))["token"]
    for other in (uniform[1], uniform[0, ::-1], uniform[0, :, ::-1]):
        assert (uniform[0] != other).any()


def test_one_compilation_for_all_temperatures_top_k_and_top_p(sampling):
    """The sampler of the fixture takes them as traced inputs."""
    params, sample, _ = sampling
    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        values = sample(params, **options)
        np.testing.assert_array_equal(values["token"], values["output"].argmax(-1))
    values = sample(params)
    assert (values["token"] != values["output"].argmax(-1)).any()


def test_bfloat16_sampling_without_a_condition():
    x, model = normal(3, HEIGHT, WIDTH, 3), small(dtype=jnp.bfloat16)
    params = randomised(small(), x)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes))
    values = make_sampler(model)(params, condition=None)
    found, exact = (jax.jit(m.apply)({"params": params}, TABLE[values["token"]]) for m in (model, small()))
    assert found.dtype == jnp.float32 and 0 < np.abs(found - exact).max() < 0.03 * np.abs(exact).max()
    np.testing.assert_allclose(values["output"], found, atol=0.03 * np.abs(found).max())


def test_initial_distribution_is_uniform():
    x = normal(2, 4, 4, 3)
    layer = jax.jit(lambda key: small().init(key, x)["params"]["out"])(jax.random.key(0))
    assert set(layer) == {"kernel", "bias"} and not any(np.any(leaf) for leaf in layer.values())


def test_dropout_depends_on_the_key_of_the_example():
    model, x = small(dropout=0.5), np.repeat(normal(1, 4, 4, 3), 3, 0)
    params = randomised(model, x)
    keys = jax.random.split(jax.random.key(0), 2)[np.array([0, 0, 1])]
    y = np.asarray(jax.jit(model.apply)({"params": params}, x, None, keys))
    np.testing.assert_array_equal(y[0], y[1])
    assert np.abs(y[0] - y[2]).max() > 1e-3


@pytest.mark.parametrize("options,message", [({"kernel": 4}, "kernel=4"), ({"dropout": 1.0}, "dropout=1.0")])
def test_invalid_options_are_reported(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(small(**options).init, jax.random.key(0), np.zeros((1, 3, 3, 2)))
