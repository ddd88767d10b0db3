"""The text transformer that is trained with a denoiser: what stands where there is no token, and who sees whom."""

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
    """Nothing is left at zero or one."""
    shapes = jax.eval_shape(net.init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), shapes)


PARAMS = parameters(small())


@jax.jit
def states_of(params, tokens):
    return small().apply({"params": params}, tokens)


@jax.jit
def gradient(params, tokens):
    """Of something of all states of one caption."""
    return jax.grad(lambda params: jnp.sum(states_of(params, tokens[None]) ** 3))(params)


def test_padding_stands_exactly_where_there_is_no_token():
    """Without any layer the states are the inputs, normalised: in NumPy."""
    net = small(layers=0)
    params = parameters(net)
    x = np.array(params["token"]["embedding"])[np.maximum(TOKENS, 0)] + np.array(params["place"])[None]
    x = np.where(THERE[..., None], x, np.array(params["padding"])[None])
    norm = {name: np.array(leaf) for name, leaf in params["transformer"]["norm_out"].items()}
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    found = net.apply({"params": params}, TOKENS)
    assert found.shape == (3, L, WIDTH) and found.dtype == jnp.float32
    np.testing.assert_allclose(found, x * norm["scale"] + norm["bias"], atol=1e-5)


@pytest.mark.parametrize("caption", range(len(TOKENS)))
def test_only_what_a_caption_has_is_learned_from_it(caption):
    """By gradients, exactly zero or not: rows of tokens that it has, places that have one, padding elsewhere."""
    found = gradient(PARAMS, TOKENS[caption])
    moved = {name: np.abs(found[name]).max(axis=1) != 0 for name in ("padding", "place")}
    rows = np.abs(found["token"]["embedding"]).max(axis=1) != 0
    np.testing.assert_array_equal(moved["padding"], ~THERE[caption])
    np.testing.assert_array_equal(moved["place"], THERE[caption])
    np.testing.assert_array_equal(rows, np.isin(np.arange(VOCABULARY), TOKENS[caption]))


def test_a_caption_of_no_tokens_at_all_says_nothing():
    """No table or place has any part in it, and all such captions are alike."""
    noise = np.random.default_rng(1).normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
    others = {**PARAMS, "token": {"embedding": noise}, "place": 2 * PARAMS["place"]}
    found, other = states_of(PARAMS, TOKENS), states_of(others, TOKENS)
    np.testing.assert_array_equal(found[2], other[2])
    assert (np.abs(found - other)[:2].max(axis=2) > 1e-3).all()


def test_all_places_see_one_another():
    """Those before and those behind, tokens and padding."""

    @jax.jit
    @jax.jacrev
    def jacobian(own):
        return states_of({**PARAMS, **own}, TOKENS[1:2])[0, :, 0]

    found = jacobian({name: PARAMS[name] for name in ("place", "padding")})
    seen = sum(np.abs(np.asarray(found[name])).max(axis=2) for name in found)  # [place that sees, place that is seen]
    assert seen.shape == (L, L) and (seen > 1e-6).all()


def test_fresh_states_tell_which_word_stands_where():
    """Most of their variance is between places, and they change where two words are exchanged and hardly elsewhere.

    "A left of B" and "B left of A" have the same words: what is to be learned of them begins here.
    """
    net = CaptionEncoder(vocabulary=100, width=64, layers=3, heads=4)
    tokens = jnp.stack([jnp.arange(12), jnp.arange(12).at[jnp.array([2, 8])].set(jnp.array([8, 2]))])
    states, exchanged = jax.jit(lambda key: net.init_with_output(key, tokens)[0])(jax.random.key(0))
    moved = jnp.mean((exchanged - states) ** 2, axis=1)
    assert jnp.mean(jnp.var(states, axis=0)) > 0.7  # of 1
    assert moved[jnp.array([2, 8])].min() > 0.5 > 5 * jnp.median(moved)


def test_a_state_depends_on_no_other_caption():
    np.testing.assert_allclose(states_of(PARAMS, TOKENS[::-1])[::-1], states_of(PARAMS, TOKENS), atol=1e-6)


@pytest.mark.parametrize("length", [L - 1, L + 1])
def test_a_caption_of_another_length_is_refused(length):
    with pytest.raises(ValueError, match=rf"places \({L}, 8\) are learned, and the inputs ask for \({length}, 8\)"):
        states_of(PARAMS, np.zeros((1, length), np.int32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "relu"}, "activation is 'relu': choose from gelu, quick_gelu"),
        ({"heads": 3}, "8 channels cannot be split among 3 attention heads"),
        ({"attention": "flash"}, "attention is 'flash'"),
    ],
)
def test_errors_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(small(**options).init, jax.random.key(0), TOKENS)
