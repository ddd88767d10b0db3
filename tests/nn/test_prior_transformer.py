"""The prior transformer: size, masks, conditions. test_parity_prior compares it with a peer."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn.prior_transformer import PriorTransformer

WIDTH, D, L, C = 8, 5, 4, 6
B = 3


def small(**options):
    return PriorTransformer(**({"width": WIDTH, "layers": 1, "heads": 2} | options))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, T = normal(B, D), np.array([3.0, 700.0, 12.5], np.float32)
INPUTS = {"embedding": normal(B, D, seed=2), "context": normal(B, L, C, seed=3)}
MASK = np.arange(L)[None] < np.array([4, 2, 0])[:, None]  # all tokens, some, none
KEYS = jax.random.split(jax.random.key(0), B)


def parameters(net, **inputs):
    """Random parameters, none of them zero or one."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), X, T, **inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def params():
    return parameters(small(), **INPUTS)


def size(net, dimensions, tokens, width):
    """Number of parameters."""
    vector, states = jnp.zeros((1, dimensions)), jnp.zeros((1, tokens, width))
    shapes = jax.eval_shape(net.init, jax.random.key(0), vector, jnp.zeros(1), embedding=vector, context=states)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_number_of_parameters():
    """Karlo's is counted on diffusers 0.42's PriorTransformer() without the statistics clip_mean and clip_std."""
    assert size(PriorTransformer(2048, 20, 32), 768, 77, 768) == 1_022_028_544


@pytest.mark.slow
def test_number_of_parameters_in_the_paper():
    # unCLIP (table 3): 24 layers, 256 tokens, 1B; its transformer is GLIDE's text encoder, 1.2 billion (section 4).
    assert size(PriorTransformer(2048, 24, 32), 1024, 256, 1024) == pytest.approx(1.22e9, rel=0.01)


def test_initial_output_is_zero():
    net = small(layers=1)
    y = jax.eval_shape(net.init_with_output, jax.random.key(0), X, T, **INPUTS)[0]
    assert y.shape == X.shape and y.dtype == jnp.float32
    layer = jax.jit(lambda key: net.init(key, X, T, **INPUTS)["params"]["out"])(jax.random.key(0))
    assert set(layer) == {"kernel", "bias"} and not any(np.any(leaf) for leaf in layer.values())


@pytest.mark.parametrize("tokens", [None, 2])
def test_positions_attend_to_previous_positions_with_a_token(params, tokens):
    """Gradients are zero exactly where attention is masked. The order is context, embedding, time, image, query."""
    mask = None if tokens is None else np.arange(L)[None] < tokens

    @jax.jit
    @jax.jacrev
    def jacobian(inputs):
        states = {"capture_intermediates": lambda module, _: module.name == "transformer"}
        _, found = small().apply({"params": params}, **inputs, context_mask=mask, **states)
        return found["intermediates"]["transformer"]["__call__"][0][0, :, 0]

    found = jacobian({name: value[:1] for name, value in {"x": X, "t": T, **INPUTS}.items()})
    columns = [*np.moveaxis(found["context"], 2, 0), found["embedding"], found["t"], found["x"]]
    seen = np.stack([np.abs(column).reshape(L + 4, -1).max(1) for column in columns], 1) != 0
    there = np.arange(L + 3) >= L
    there[: L if tokens is None else tokens] = True
    expected = np.tril(np.ones((L + 4, L + 3), bool)) & there[None] | np.eye(L + 4, L + 3, dtype=bool)
    np.testing.assert_array_equal(seen, expected)


def test_output_does_not_depend_on_padding(params):
    @jax.jit
    def apply(mask, context):
        inputs = {"embedding": INPUTS["embedding"], "context": context, "context_mask": mask}
        return small().apply({"params": params}, X, T, **inputs)

    context = INPUTS["context"]
    y, full = apply(MASK, context), apply(np.ones_like(MASK), context)
    np.testing.assert_allclose(full, jax.jit(small().apply)({"params": params}, X, T, **INPUTS), atol=1e-5)
    np.testing.assert_allclose(y[0], full[0], atol=1e-5)
    assert np.abs(y - full)[1:].max(1).min() > 1e-3  # and not NaN
    np.testing.assert_array_equal(apply(MASK, np.where(MASK[:, :, None], context, 100)), y)
    gradient = jax.grad(lambda context: (apply(MASK, context) ** 2).sum())(context)
    np.testing.assert_array_equal(np.abs(gradient).max(2) != 0, MASK)


@pytest.mark.parametrize("names", [(), ("embedding", "context")])
def test_output_depends_on_every_input_and_parameter(names):
    """Gradients show the dependencies; absent inputs have no parameters."""
    net, inputs = small(layers=1), {name: INPUTS[name] for name in names}
    params = parameters(net, **inputs)
    assert set(params) == {"time_0", "time_1", "image", "query", "place", "transformer", "out", *names}
    assert len(params["place"]) == 3 + L * ("context" in names) + ("embedding" in names)

    @jax.jit
    @jax.grad
    def gradients(values):
        return (net.apply({"params": values["params"]}, values["x"], values["t"], **values["inputs"]) ** 2).sum()

    found = gradients({"params": params, "x": X, "t": T, "inputs": inputs})
    assert all(np.abs(g).max() > 1e-7 for g in jax.tree.leaves(found))
    assert all(
        np.abs(g).reshape(B, -1).max(1).min() > 1e-7 for g in (found["x"], found["t"], *found["inputs"].values())
    )


def test_an_example_does_not_depend_on_the_others(params):
    net = small(dropout=0.5)

    @jax.jit
    def apply(inputs):
        return net.apply({"params": params}, **inputs)

    inputs = {"x": X, "t": T, **INPUTS, "context_mask": MASK, "dropout_keys": KEYS}
    turned = np.array([1, 2, 0])
    y = apply(inputs)
    np.testing.assert_allclose(apply({name: value[turned] for name, value in inputs.items()}), y[turned], atol=1e-5)
    same = {name: value[np.zeros(B, int)] for name, value in inputs.items()}
    y = apply(same | {"dropout_keys": KEYS[np.array([0, 0, 1])]})
    np.testing.assert_array_equal(y[0], y[1])
    assert np.abs(y[0] - y[2]).max() > 1e-3


def test_remat_has_one_checkpoint_per_layer(params):
    remat = small(dropout=0.5, remat="blocks")
    inputs = {**INPUTS, "context_mask": MASK, "dropout_keys": KEYS}
    apply = partial(remat.apply, **inputs)
    traced = str(jax.make_jaxpr(apply)({"params": params}, X, T))
    assert traced.count("remat") == 1  # test_transformer compares numbers


def test_bfloat16_is_close_with_float32_parameters(params):
    half = small(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), X, T, **INPUTS)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
    inputs = {**INPUTS, "context_mask": MASK}
    found, exact = (jax.jit(net.apply)({"params": params}, X, T, **inputs) for net in (half, small()))
    assert found.dtype == jnp.float32
    assert 0 < np.abs(found - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("options", "inputs", "message"),
    [
        ({"activation": "relu"}, {}, "activation='relu': choose from gelu, quick_gelu"),
        ({"heads": 3}, {}, "heads=3: must divide"),
        ({"width": 7, "heads": 1}, {}, r"dim=7: .* must be even and at least 4"),
        ({"dropout": 1.0}, {}, "dropout=1.0"),
        ({"attention": "flash"}, {}, "attention='flash'"),
        ({}, {"context_mask": MASK}, r"shape \(3, 4\), but context is None"),
        ({}, {**INPUTS, "context_mask": MASK[:, 1:]}, r"shape \(3, 3\), but context is of shape \(3, 4, 6\)"),
    ],
)
def test_errors_name_the_option(options, inputs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(small(**options).init, jax.random.key(0), X, T, **inputs)


@pytest.mark.parametrize("absent", INPUTS)
def test_sequences_must_have_the_length_of_the_parameters(params, absent):
    inputs = {name: value for name, value in INPUTS.items() if name != absent}
    with pytest.raises(ValueError, match=r"embeddings \(8, 8\) were learned, but the inputs require"):
        small().apply({"params": params}, X, T, **inputs)
