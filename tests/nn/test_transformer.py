"""The transformer: masks, PyTorch's with the same weights, and sampling against the forward pass."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erf

from diffjax.latents import token_sampling
from diffjax.nn.caption_encoder import CaptionEncoder
from diffjax.nn.clip import TextTransformer, VisionTransformer
from diffjax.nn.prior_transformer import PriorTransformer
from diffjax.nn.transformer import Transformer, generate
from tests import tiny

WIDTH, K = 8, 5


def small(**options):
    return Transformer(**({"width": WIDTH, "layers": 2, "heads": 2} | options))


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture(scope="module")
def params():
    """Random parameters of the small network, none of them zero or one."""
    shapes = jax.eval_shape(small().init, jax.random.key(0), np.zeros((1, 2, WIDTH)))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda s: rng.normal(0, 0.35, s.shape).astype(np.float32), shapes)


def sparse_mask(length, seed=5):
    """Returns a causal mask without half of the previous positions."""
    return np.tril(np.random.default_rng(seed).random((length, length)) < 0.5) | np.eye(length, dtype=bool)


def numpy_transformer(params, x, mask, activation="gelu", positions=None):
    """Returns the outputs for one sequence, with two heads, float64. The other options follow from the parameters.

    Each axis of `positions` rotates its share of the channels.
    """
    positions = np.zeros((len(x), 1)) if positions is None else positions
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), params)

    def dense(p, y):
        return y @ p["kernel"] + p["bias"]

    def norm(p, y, epsilon=1e-5):
        if "bias" not in p:
            return y / np.sqrt((y**2).mean(-1, keepdims=True) + epsilon) * p["scale"]
        return (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]

    def prepared(y, p, name):
        y = norm(p[name], y, 1e-6) if name in p else y
        pairs = y[..., ::2] + 1j * y[..., 1::2]
        count = pairs.shape[-1] // positions.shape[1]
        frequencies = 10_000.0 ** -(np.arange(count) / count)
        pairs = pairs * np.exp(1j * np.concatenate([np.outer(axis, frequencies) for axis in positions.T], -1))
        return np.stack([pairs.real, pairs.imag], -1).reshape(y.shape)

    x, first = x.astype(np.float64), None
    for n in range(len(params) - 1):
        p, heads = params[f"block_{n}"], []
        thirds = np.split(dense(p["qkv"], norm(p["norm_attention"], x)), 3, -1)
        if "value_residual" in p:
            weights = p["value_residual"]["weights"]
            thirds[2] = weights[0] * first + weights[1] * thirds[2]
        first = thirds[2] if first is None else first
        for q, k, v in zip(*(np.split(y, 2, -1) for y in thirds), strict=True):
            q, k = prepared(q, p, "norm_q"), prepared(k, p, "norm_k")
            weights = np.where(mask, np.exp(q @ k.T / np.sqrt(q.shape[-1])), 0)
            heads.append(weights / weights.sum(-1, keepdims=True) @ v)
        x = x + dense(p["out"], np.concatenate(heads, -1))
        h = dense(p["mlp_in"], norm(p["norm_mlp"], x))
        if activation == "swiglu":
            gate, h = np.split(h, 2, -1)
            h = h * gate / (1 + np.exp(-gate))
        else:
            h = h * (0.5 * (1 + erf(h / np.sqrt(2))) if activation == "gelu" else 1 / (1 + np.exp(-1.702 * h)))
        x = x + dense(p["mlp_out"], h)
    return norm(params["norm_out"], x)


@pytest.mark.parametrize(
    "kind,activation",
    [
        ("causal", "quick_gelu"),
        ("all", "gelu"),
        ("examples", "gelu"),
    ],
)
def test_forward_pass_matches_numpy(params, kind, activation):
    x = normal(2, 6, WIDTH)
    mask, expected = {
        "causal": ("causal", [np.tril(np.ones((6, 6), bool))] * 2),
        "all": ("all", [np.ones((6, 6), bool)] * 2),
        "examples": (np.stack([sparse_mask(6, s) for s in (5, 6)]), [sparse_mask(6, s) for s in (5, 6)]),
    }[kind]
    found = jax.jit(lambda x: small(activation=activation).apply({"params": params}, x, mask))(x)
    for n in range(2):
        np.testing.assert_allclose(found[n], numpy_transformer(params, x[n], expected[n], activation), atol=2e-5)


MODERN = {"norm": "rms", "rope": True, "qk_norm": True, "value_residual": True, "activation": "swiglu"}


POSITIONS = np.array([[0, 0], [1, 1], [2, 2], [2, 3], [3, 2], [3, 3], [4, 2], [4, 3]], np.float32)  # two, and a grid


@pytest.mark.parametrize("rope", [True, "grid"])
def test_options_match_numpy_and_cached_sampling_the_forward_pass(rope):
    model, x = small(**MODERN | {"rope": rope}), normal(2, 6, WIDTH)
    params = tiny.randomised(lambda key: model.init(key, x, positions=jnp.asarray(POSITIONS)))["params"]
    assert params["block_1"].keys() - params["block_0"].keys() == {"value_residual"}

    @jax.jit
    def outputs(x):
        def extend(x, cache, position, method="extend"):
            return model.apply({"params": params}, x, cache, position, positions=jnp.asarray(POSITIONS), method=method)

        first, cache = extend(x[:, :3], model.init_cache(2, 8), 0)
        second, cache = extend(x[:, 3:5], cache, 3)
        last, _ = extend(x[:, 5], cache, 5, method="step")
        whole = [model.apply({"params": params}, x, positions=POSITIONS + shift) for shift in (0, np.array([3, 5]))]
        return *whole, jnp.concatenate([first, second, last[:, None]], axis=1)

    found, shifted, cached = outputs(x)
    positions = POSITIONS[:6] if rope == "grid" else np.arange(6)[:, None]
    for n in range(2):
        expected = numpy_transformer(params, x[n], np.tril(np.ones((6, 6), bool)), "swiglu", positions)
        np.testing.assert_allclose(found[n], expected, atol=2e-5)
    np.testing.assert_allclose(cached, found, atol=1e-5)
    np.testing.assert_allclose(shifted, found, atol=1e-5)  # only relative positions have an effect
    assert np.abs(numpy_transformer(params, x[0], np.tril(np.ones((6, 6), bool)), "swiglu") - found[0]).max() > 1e-2


def test_positions_of_a_grid_are_required():
    with pytest.raises(ValueError, match="rope='grid': requires tokens of images; use True"):
        jax.eval_shape(small(rope="grid").init, jax.random.key(0), np.zeros((1, 2, WIDTH)))


def test_modules_with_a_transformer_have_its_options_off_by_default():
    images, tokens = jnp.zeros((1, 4, 4, 3)), jnp.zeros((1, 6), jnp.int32)
    fields = {"width": 8, "layers": 2, "heads": 2}
    modules = {
        VisionTransformer(2, **fields, dimensions=4): (images,),
        TextTransformer(10, **fields, dimensions=4): (tokens,),
        CaptionEncoder(10, **fields): (tokens,),
        PriorTransformer(**fields): (jnp.zeros((1, 4)), jnp.zeros(1)),
    }
    for module, inputs in modules.items():
        options = {name: value for name, value in MODERN.items() if hasattr(module, name)}
        assert options.keys() == MODERN.keys()
        defaults = {field.name: field.default for field in dataclasses.fields(Transformer)}
        assert all(getattr(module, name) == defaults[name] for name in options if name != "activation")
        params = jax.eval_shape(module.clone(**options).init, jax.random.key(0), *inputs)["params"]["transformer"]
        assert {"norm_q", "norm_k", "value_residual"} < params["block_1"].keys()
        assert params["norm_out"].keys() == {"scale"} and params["block_1"]["mlp_in"]["kernel"].shape == (8, 2 * 21)


@pytest.mark.slow
def test_a_run_that_diverges_in_bfloat16_at_a_large_rate_is_cured_by_qk_norm():
    """Predicts the previous token, without attention at a loss of log(8), about 2: the logits of attention explode.

    ViT-22B (Dehghani et al. 2023, section 3) has this cause and cure. The control is a small rate.
    """
    width, vocabulary, length, steps = 32, 8, 12, 150
    table, places, head = normal(vocabulary, width), normal(length, width, seed=2), normal(width, vocabulary, seed=3)

    def trained(qk_norm):
        """rate -> the losses of all steps, and the largest logits of attention."""
        model = Transformer(width, 1, 2, dtype=jnp.bfloat16, qk_norm=qk_norm)

        def loss(params, key):
            tokens = jax.random.randint(key, (32, length), 0, vocabulary)
            x = jnp.asarray(table)[tokens] + places[None]
            h, captured = model.apply({"params": params}, x, capture_intermediates=True)
            block = {name: outputs["__call__"][0] for name, outputs in captured["intermediates"]["block_0"].items()
                     if name != "__call__"}  # fmt: skip
            q, k = (block["norm_q"], block["norm_k"]) if qk_norm else jnp.split(block["qkv"], 3, -1)[:2]
            q, k = (y.astype(jnp.float32).reshape(32, length, 2, width // 2) for y in (q, k))
            largest = jnp.abs(jnp.einsum("bqhd,bkhd->bhqk", q, k)).max() / (width // 2) ** 0.5
            logits = (h @ head)[:, 1:] / width**0.5
            return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, :-1]).mean(), largest

        @jax.jit
        def train(key, rate):
            optimizer = optax.adam(rate)

            def step(carry, key):
                params, state = carry
                values, gradients = jax.value_and_grad(loss, has_aux=True)(params, key)
                updates, state = optimizer.update(gradients, state)
                return (optax.apply_updates(params, updates), state), values

            params = model.init(key, jnp.zeros((1, length, width)))["params"]
            return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key, steps))[1]

        return lambda rate: map(np.asarray, train(jax.random.key(0), rate))

    plain, normalised = trained(qk_norm=False), trained(qk_norm=True)
    losses, logits = plain(0.3)
    assert (losses[-20:] > 1.5).all()
    assert logits[-1] > 1e5 and logits[-1] > 10 * logits[10]
    for losses, logits in (plain(0.01), normalised(0.3)):
        assert (losses[-20:] < 0.1).all()
        assert logits.max() < 200


@pytest.mark.parametrize("mask", ["causal", sparse_mask(7)], ids=["causal", "sparse"])
def test_positions_depend_on_those_in_the_mask(params, mask):
    model = small(layers=1)  # with one layer, dependencies are the mask
    x = normal(1, 7, WIDTH)
    jacobian = jax.jit(jax.jacrev(lambda x: model.apply({"params": params}, x, mask)[0, :, 0]))(x)  # [T, 1, T, W]
    seen = np.tril(np.ones((7, 7), bool)) if isinstance(mask, str) else mask
    np.testing.assert_array_equal(np.abs(jacobian).max((1, 3)) != 0, seen)


def test_masks_of_layers(params):
    """The dependencies of two layers are the composition of their masks."""
    first, second = np.eye(5, k=-1, dtype=bool), np.eye(5, dtype=bool)
    first[0, 0] = True
    x = normal(1, 5, WIDTH)
    jacobian = jax.jit(jax.jacrev(lambda x: small().apply({"params": params}, x, (first, second))[0, :, 0]))(x)
    np.testing.assert_array_equal(np.abs(jacobian).max((1, 3)) != 0, first | np.eye(5, dtype=bool))
    jacobian = jax.jit(jax.jacrev(lambda x: small().apply({"params": params}, x, (first, "causal"))[0, :, 0]))(x)
    seen = np.tril(np.ones((5, 5), bool)).astype(int) @ (first | np.eye(5, dtype=bool)) > 0
    np.testing.assert_array_equal(np.abs(jacobian).max((1, 3)) != 0, seen)
    with pytest.raises(ValueError, match="3 masks for layers=2"):
        small().apply({"params": params}, x, (first, first, first))


def test_named_masks_without_an_array_and_with_remat(params):
    x = normal(2, 6, WIDTH)
    for name, seen in (("causal", np.tril(np.ones((6, 6), bool))), ("all", np.ones((6, 6), bool))):
        remat = jax.jit(small(remat="blocks").apply, static_argnums=2)({"params": params}, x, name)
        expected = jax.jit(small().apply)({"params": params}, x, seen)
        np.testing.assert_allclose(remat, expected, atol=1e-5)
    assert "bool" not in str(jax.make_jaxpr(lambda x: small().apply({"params": params}, x, "all"))(x))


@pytest.mark.parametrize("mask", ["before", None])
def test_unknown_masks_are_reported(params, mask):
    with pytest.raises(ValueError, match="choose from causal, all"):
        small().apply({"params": params}, normal(1, 3, WIDTH), mask)


@pytest.mark.parametrize("mask", ["all", ("causal", "all")])
def test_a_cache_requires_a_mask_without_later_positions(params, mask):
    model = small()
    with pytest.raises(ValueError, match="mask='all': a cache"):
        model.apply({"params": params}, normal(1, WIDTH), model.init_cache(1, 3), 0, mask, method="step")


TABLE, PLACES = normal(K, WIDTH, seed=7), normal(12, WIDTH, seed=8)  # embed tokens and positions
HEAD = normal(WIDTH, K, seed=9)


def pick(keys, output, position, **options):
    token = jax.vmap(lambda key, logits: token_sampling.sample(key, logits, **options))(keys, output @ HEAD)
    x = jnp.asarray(TABLE)[token] + jnp.asarray(PLACES)[position][None, :]
    return {"token": token, "output": output, "position": position[None]}, x


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["causal", "sparse", "layers"])
def test_sampling_outputs_match_the_forward_pass(params, kind):
    model, length = small(layers=2 if kind == "layers" else 1), 6
    known = 1 if kind == "layers" else 4
    total = known + length - 1
    examples = np.stack([sparse_mask(total, s) for s in (5, 6)])
    mask = {
        "causal": "causal",
        "sparse": sparse_mask(total + 2),  # larger than needed: the rest is ignored
        "layers": (examples, "causal"),  # one mask per layer, and per example
    }[kind]
    prefix = normal(2, known, WIDTH, seed=3)
    keys = jax.random.split(jax.random.key(3), 2)
    values = jax.jit(lambda params: generate(model, params, pick, keys, prefix, length, mask))(params)
    assert values["token"].shape == (2, length)
    assert len(np.unique(values["token"])) > 2
    np.testing.assert_array_equal(values["position"][0], known + np.arange(length))

    sampled = TABLE[values["token"][:, :-1]] + PLACES[None, known:total]
    whole = mask[:total, :total] if kind == "sparse" else mask
    expected = jax.jit(lambda x: model.apply({"params": params}, x, whole))(np.concatenate([prefix, sampled], 1))
    np.testing.assert_allclose(values["output"], expected[:, known - 1 :], atol=1e-5)


def test_extending_in_parts_is_the_forward_pass(params):
    model, x = small(), normal(2, 7, WIDTH)
    cache = model.init_cache(2, 9)

    @jax.jit
    def extend(x, cache, position):
        full = np.ones((9, 9), bool)  # later positions are masked by the cache
        return model.apply({"params": params}, x, cache, position, full, method="extend")

    step = jax.jit(lambda x, cache, position: model.apply({"params": params}, x, cache, position, method="step"))
    first, cache = extend(x[:, :3], cache, 0)
    second, cache = extend(x[:, 3:6], cache, 3)
    last, cache = step(x[:, 6], cache, 6)
    found = jnp.concatenate([first, second, last[:, None]], 1)
    np.testing.assert_allclose(found, jax.jit(model.apply)({"params": params}, x), atol=1e-5)


def test_one_compilation_samples_with_keys_temperatures_top_k_and_top_p(params):
    """An example is sampled with its own key; all settings are traced inputs."""
    model, prefix = small(), normal(3, 2, WIDTH, seed=3)
    keys = jax.random.split(jax.random.key(3), 3)

    @jax.jit
    def sample_with(params, keys, prefix, options):
        return generate(model, params, lambda *inputs: pick(*inputs, **options), keys, prefix, 8)

    def sample(params=params, keys=keys, prefix=prefix, **options):
        return sample_with(params, keys, prefix, {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options)

    tokens = sample()["token"]
    order = np.array([1, 2, 0])
    np.testing.assert_array_equal(sample(keys=keys[order], prefix=prefix[order])["token"], tokens[order])
    same = sample(keys=keys[np.zeros(3, int)], prefix=np.repeat(prefix[:1], 3, 0))["token"]
    assert (same == same[:1]).all()
    # With equal outputs, examples and positions differ by their keys alone.
    uniform = sample(jax.tree.map(np.zeros_like, params))["token"]
    assert len(np.unique(uniform[0])) > 1 and (uniform[0] != uniform[1]).any()

    for options in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        values = sample(**options)
        np.testing.assert_array_equal(values["token"], (values["output"] @ HEAD).argmax(-1))
    values = sample(temperature=3.0)
    assert (values["token"] != (values["output"] @ HEAD).argmax(-1)).any()
    assert sample_with._cache_size() == 1


def test_initialisation():
    params = jax.jit(small(width=128).init)(jax.random.key(0), jnp.zeros((1, 2, 128)))["params"]
    for name, std in (("qkv", 0.02), ("mlp_in", 0.02), ("out", 0.01), ("mlp_out", 0.01)):  # 0.02 / sqrt(2 * 2)
        for block in (params["block_0"], params["block_1"]):
            np.testing.assert_allclose(np.std(block[name]["kernel"]), std, rtol=0.02)
            assert not np.any(block[name]["bias"])


def test_initialisation_as_in_clip():
    init = small(width=128, initializer="clip").init
    params = jax.jit(lambda key: {"block_1": init(key, jnp.zeros((1, 2, 128)))["params"]["block_1"]})(jax.random.key(0))
    width = 128**-0.5
    for name, std in (("qkv", width), ("mlp_in", width / 2**0.5), ("out", width / 2), ("mlp_out", width / 2)):
        np.testing.assert_allclose(np.std(params["block_1"][name]["kernel"]), std, rtol=0.02)


def test_bfloat16(params):
    model, x = small(dtype=jnp.bfloat16), normal(2, 6, WIDTH)
    assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0), x)))
    found, exact = (jax.jit(m.apply)({"params": params}, x) for m in (model, small()))
    assert found.dtype == jnp.float32 and 0 < np.abs(found - exact).max() < 0.03 * np.abs(exact).max()
    cache = jax.eval_shape(lambda: model.init_cache(2, 6))
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}
    extend = partial(model.apply, method="extend")
    y, _ = jax.jit(extend)({"params": params}, x, model.init_cache(2, 6), 0)
    np.testing.assert_allclose(y, found, atol=0.03 * np.abs(found).max())


@pytest.mark.slow
def test_remat_does_not_change_outputs_and_gradients(params):
    x, keys = normal(2, 6, WIDTH), jax.random.split(jax.random.key(0), 2)
    remat, plain = (small(layers=1, dropout=0.5, remat=remat) for remat in ("blocks", "none"))
    traced = str(jax.make_jaxpr(small(remat="blocks").apply)({"params": params}, x))
    assert traced.count("remat") == 2  # one per layer

    def loss(params, model):
        return (model.apply({"params": params}, x, dropout_keys=keys) ** 2).sum()

    found, expected = (jax.jit(jax.value_and_grad(partial(loss, model=model)))(params) for model in (remat, plain))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    jax.eval_shape(lambda params: generate(remat, params, pick, keys, x, 2, sparse_mask(7)), params)  # also samples


def test_dropout_of_each_branch_depends_on_the_key_of_the_example(params):
    model, x = small(layers=1, dropout=0.5), np.repeat(normal(1, 4, WIDTH), 3, 0)
    keys = jax.random.split(jax.random.key(0), 2)[np.array([0, 0, 1])]
    apply = jax.jit(lambda params: model.apply({"params": params}, x, dropout_keys=keys))
    for zero in ("out", "mlp_out"):  # only the other branch makes a difference
        block = params["block_0"] | {zero: jax.tree.map(np.zeros_like, params["block_0"][zero])}
        y = np.asarray(apply(params | {"block_0": block}))
        np.testing.assert_array_equal(y[0], y[1])
        assert np.abs(y[0] - y[2]).max() > 1e-3


@pytest.mark.parametrize(
    "options,message",
    [
        ({"activation": "relu"}, "activation='relu': choose from gelu, quick_gelu"),
        ({"initializer": "torch"}, "initializer='torch': choose from gpt2, clip"),
        ({"heads": 3}, "heads=3: must divide"),
        ({"width": 6}, "width=6: inputs have 8 channels"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"attention": "flash"}, "attention='flash'"),
        ({"norm": "batch"}, "norm='batch': choose from layer, rms"),
        ({"rope": True, "width": 6}, "the 3 channels per head must be a multiple of 2"),
        ({"rope": "rows"}, "rope='rows': choose from False, True, grid"),
    ],
)
def test_invalid_options_are_reported(options, message):
    with pytest.raises(ValueError, match=message):
        width = 6 if options.get("rope") is True else WIDTH
        jax.eval_shape(small(**options).init, jax.random.key(0), np.zeros((1, 2, width)))


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["causal", "sparse"])
def test_parity_with_pytorch(kind):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, 2, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    theirs = torch.nn.TransformerEncoder(layer, 2, torch.nn.LayerNorm(WIDTH), enable_nested_tensor=False).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.2 * torch.randn_like(p))

    def norm(m):
        return {"scale": m.weight.detach().numpy(), "bias": m.bias.detach().numpy()}

    def dense(weight, bias):
        return {"kernel": weight.detach().numpy().T, "bias": bias.detach().numpy()}

    ours = {"norm_out": norm(theirs.norm)}
    for n, m in enumerate(theirs.layers):
        ours[f"block_{n}"] = {
            "norm_attention": norm(m.norm1),
            "qkv": dense(m.self_attn.in_proj_weight, m.self_attn.in_proj_bias),
            "out": dense(m.self_attn.out_proj.weight, m.self_attn.out_proj.bias),
            "norm_mlp": norm(m.norm2),
            "mlp_in": dense(m.linear1.weight, m.linear1.bias),
            "mlp_out": dense(m.linear2.weight, m.linear2.bias),
        }
    x = normal(2, 6, WIDTH)
    seen = {"causal": np.tril(np.ones((6, 6), bool)), "sparse": sparse_mask(6)}[kind]
    mask = seen if kind == "sparse" else kind
    with torch.no_grad():
        expected = theirs(torch.tensor(x), mask=torch.tensor(~seen)).numpy()
    found = jax.jit(lambda x: small().apply({"params": ours}, x, mask))(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_compiled_gradient_grows_linearly_with_the_layers():
    """XLA does not compute the gradient of the residual stream again in each norm."""

    def instructions(layers):
        network, x = small(layers=layers), np.zeros((2, 3, WIDTH), np.float32)
        params = jax.eval_shape(network.init, jax.random.key(0), x)
        gradient = jax.jit(jax.grad(lambda params, x: (network.apply(params, x) ** 2).sum()))
        return len(gradient.lower(params, x).compile().as_text().splitlines())

    two, three, four = map(instructions, (2, 3, 4))
    assert four - three == three - two
