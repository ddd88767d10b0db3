"""The caption encoder: padding, attention between positions, initial states."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax.nn.caption_encoder import CaptionEncoder
from diffjax.typing import NO_TOKEN

WIDTH, L, VOCABULARY = 8, 5, 12
TOKENS = np.array([[3, 4, 3, 9, 1], [3, 7, 1, -1, -1], [-1] * L], np.int32)  # all tokens, some, none
THERE = TOKENS != NO_TOKEN


def small(**options):
    return CaptionEncoder(**{"vocabulary": VOCABULARY, "width": WIDTH, "layers": 1, "heads": 2} | options)


def parameters(net):
    """Random parameters, none of them zero or one."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), shapes)


PARAMS = parameters(small())


@jax.jit
def states_of(params, tokens):
    return small().apply({"params": params}, tokens)


@jax.jit
def gradient(params, tokens):
    """Returns the gradient of a function of all states of one caption."""
    return jax.grad(lambda params: jnp.sum(states_of(params, tokens[None]) ** 3))(params)


def test_padding_is_at_positions_without_a_token():
    """Without layers, the states are the normalised inputs, as in NumPy."""
    net = small(layers=0)
    params = parameters(net)
    x = np.array(params["token"]["embedding"])[np.maximum(TOKENS, 0)] + np.array(params["place"])[None]
    x = np.where(THERE[..., None], x, np.array(params["padding"])[None])
    norm = {name: np.array(leaf) for name, leaf in params["transformer"]["norm_out"].items()}
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    found = jax.jit(net.apply)({"params": params}, TOKENS)
    assert found.shape == (3, L, WIDTH) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, x * norm["scale"] + norm["bias"], atol=1e-5)


@pytest.mark.parametrize("caption", range(len(TOKENS)))
def test_gradients_are_nonzero_for_the_inputs_of_a_caption_only(caption):
    """These are its tokens, the positions with a token, and padding at the others."""
    found = gradient(PARAMS, TOKENS[caption])
    changed = {name: np.abs(found[name]).max(axis=1) != 0 for name in ("padding", "place")}
    rows = np.abs(found["token"]["embedding"]).max(axis=1) != 0
    np.testing.assert_array_equal(changed["padding"], ~THERE[caption])
    np.testing.assert_array_equal(changed["place"], THERE[caption])
    np.testing.assert_array_equal(rows, np.isin(np.arange(VOCABULARY), TOKENS[caption]))


def test_states_without_tokens_do_not_depend_on_token_and_position_embeddings():
    """A caption without tokens is the null condition."""
    noise = np.random.default_rng(1).normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    others = {**PARAMS, "token": {"embedding": noise}, "place": 2 * PARAMS["place"]}
    found, other = states_of(PARAMS, TOKENS), states_of(others, TOKENS)
    np.testing.assert_array_equal(found[2], other[2])
    assert (np.abs(found - other)[:2].max(axis=2) > 1e-3).all()


def test_all_positions_attend_to_all():
    """Earlier and later positions, tokens and padding."""

    @jax.jit
    @jax.jacrev
    def jacobian(changed):
        return states_of({**PARAMS, **changed}, TOKENS[1:2])[0, :, 0]

    found = jacobian({name: PARAMS[name] for name in ("place", "padding")})
    seen = sum(np.abs(np.asarray(found[name])).max(axis=2) for name in found)  # [query position, key position]
    assert seen.shape == (L, L) and (seen > 1e-6).all()


def test_initial_states_distinguish_tokens_and_positions():
    """Most variance is between positions; exchanging two words changes their states and hardly any other.

    "A left of B" and "B left of A" have the same words, so that a condition with both must distinguish positions.
    """
    net = CaptionEncoder(vocabulary=100, width=32, layers=2, heads=4)
    tokens = np.stack([np.arange(12), np.array([0, 1, 8, 3, 4, 5, 6, 7, 2, 9, 10, 11])])
    run = jax.jit(lambda key: net.init_with_output(key, tokens)[0])
    states, exchanged = np.asarray(run(jax.random.key(0)))
    change = np.mean((exchanged - states) ** 2, axis=1)
    assert np.mean(np.var(states, axis=0)) > 0.7  # of 1
    assert change[[2, 8]].min() > 0.5 > 5 * np.median(change)


def test_states_do_not_depend_on_other_captions():
    np.testing.assert_allclose(states_of(PARAMS, TOKENS[::-1])[::-1], states_of(PARAMS, TOKENS), atol=1e-6)


@pytest.mark.parametrize("length", [L - 1, L + 1])
def test_captions_must_have_the_length_of_the_parameters(length):
    with pytest.raises(
        ValueError, match=rf"embeddings \({L}, 8\) were learned, but the inputs require \({length}, 8\)"
    ):
        states_of(PARAMS, np.zeros((1, length), np.int32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "activation='relu': choose from gelu, quick_gelu"),
        ({"heads": 3}, "heads=3: must divide"),
        ({"attention": "flash"}, "attention='flash'"),
    ],
)
def test_errors_name_the_option(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(small(**options).init, jax.random.key(0), TOKENS)
