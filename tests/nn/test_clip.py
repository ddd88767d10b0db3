"""CLIP: its encoders, and the loss by brute force, on one device and on several."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.nn import clip
from diffjax.nn.transformer import Transformer
from diffjax.typing import NO_TOKEN

SIZES = {"width": 8, "layers": 1, "heads": 2, "dimensions": 6}


def vit(**options):
    return clip.VisionTransformer(**({"patch": 4} | SIZES | options))


def resnet(**options):
    return clip.ModifiedResNet(**({"layers": (2, 1), "width": 4, "heads": 2, "dimensions": 6} | options))


def text(**options):
    return clip.TextTransformer(**({"vocabulary": 20} | SIZES | options))


def one_device(tree):
    return tree


def normal(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def uniform(*shape, seed=1):
    return np.random.default_rng(seed).uniform(-1, 1, size=shape).astype(np.float32)


def randomised(module, *inputs):
    """Random variables, none of them zero or one."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)

    def sample(path, leaf):
        name, fan_in = path[-1].key, math.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 10
        centre = float(name in ("scale", "var"))
        noise = rng.uniform(-0.5, 0.5, leaf.shape) if name == "var" else rng.normal(size=leaf.shape)
        return (centre + noise / math.sqrt(fan_in)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(sample, shapes)


# --- images ---


@pytest.mark.parametrize("options", [{}, {"registers": 2, "rope": "grid"}])
def test_vit_sequence_is_class_token_registers_and_patches_in_raster_order(options):
    x = uniform(2, 8, 12, 3)
    variables = randomised(vit(**options), x)
    params = variables["params"]

    rows = x.astype(np.float64).reshape(2, 2, 4, 3, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(2, 6, 48)
    tokens = rows @ params["patch"]["kernel"].reshape(48, 8)
    tokens = np.concatenate([np.tile(params["class"], (2, 1, 1)), tokens], axis=1) + params["place"]
    count = options.get("registers", 0)
    if count:  # without position embeddings
        tokens = np.concatenate([tokens[:, :1], np.tile(params["registers"], (2, 1, 1)), tokens[:, 1:]], axis=1)
    tokens -= tokens.mean(axis=-1, keepdims=True)
    tokens /= np.sqrt(tokens.var(axis=-1, keepdims=True) + 1e-5)
    tokens = tokens * params["norm_in"]["scale"] + params["norm_in"]["bias"]
    transformer = Transformer(8, 1, 2, activation="quick_gelu", rope=options.get("rope", False))
    positions = np.array([[0, 0]] * (1 + count) + [[row, column] for row in range(2) for column in range(3)])

    @jax.jit
    def run(variables, tokens):
        h = transformer.apply({"params": variables["params"]["transformer"]}, tokens, "all", positions=positions)
        encoder = vit(**options)
        return encoder.apply(variables, x), encoder.apply(variables, x, return_features=True), h

    found, features, h = run(variables, tokens.astype(np.float32))
    np.testing.assert_allclose(found, h[:, 0] @ params["out"]["kernel"], atol=1e-5)
    np.testing.assert_allclose(features.reshape(2, 6, 8), h[:, 1 + count :], atol=1e-5)


def test_vit_with_timesteps_has_one_class_token_per_timestep():
    x, t = uniform(4, 8, 8, 3), np.array([0.0, 3.0, 2.6, 9.0], np.float32)
    module = vit(timesteps=5)
    params = randomised(module, x, None, None, t)["params"]
    found = jax.jit(module.apply)({"params": params}, x, t=t)
    table = params.pop("time")
    assert table.shape == (5, 8)
    unconditional = jax.jit(vit().apply)
    for i, row in enumerate((0, 3, 3, 4)):  # nearest timestep
        expected = unconditional({"params": {**params, "class": table[row]}}, x)
        np.testing.assert_allclose(found[i], expected[i], atol=1e-5)


@pytest.mark.parametrize(
    "module,t,message",
    [
        (vit(), np.zeros(1), "timesteps=0"),
        (vit(timesteps=5), None, "timesteps=5"),
        (resnet(), np.zeros(1), "a ResNet is not conditioned on time"),
    ],
)
def test_time_must_match_the_encoder(module, t, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(module.init, t=t), jax.random.key(0), np.zeros((1, 32, 32, 3)))


@pytest.mark.parametrize("encoder,size,channels", [(vit, 8, 1), (resnet, 8, 4)])
def test_pixels_are_normalised_by_mean_and_standard_deviation(encoder, size, channels):
    x = uniform(2, size, size, channels)
    variables = randomised(encoder(), x)
    mean, std = np.linspace(0.3, 0.6, channels), np.linspace(0.2, 0.4, channels)
    found = jax.jit(encoder(pixel_mean=tuple(mean), pixel_std=tuple(std)).apply)(variables, x)
    by_hand = ((x + 1) / 2 - mean) / std
    expected = jax.jit(encoder().apply)(variables, by_hand.astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.shape == (2, 6) and found.dtype == jnp.float32
    with pytest.raises(ValueError, match=f"must have 1 or {channels} values"):
        encoder(pixel_mean=(0.5, 0.5)).apply(variables, x)


@pytest.mark.parametrize(
    "encoder,small,large,message",
    [
        (vit, np.zeros((1, 8, 8, 3)), np.zeros((1, 12, 8, 3)), r"embeddings \(5, 8\) were learned.*\(7, 8\)"),
        (resnet, np.zeros((1, 8, 8, 3)), np.zeros((1, 8, 16, 3)), r"embeddings \(2, 32\) were learned.*\(3, 32\)"),
        (text, np.zeros((1, 5), int), np.zeros((1, 6), int), r"embeddings \(5, 8\) were learned.*\(6, 8\)"),
    ],
)
def test_inputs_must_have_the_size_of_the_parameters(encoder, small, large, message):
    variables = randomised(encoder(), small)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(encoder().apply, variables, large)


@pytest.mark.parametrize(
    "module,shape,message",
    [
        (vit(), (1, 8, 10, 3), "patch=4: must divide the sides of images of 8x10"),
        (resnet(), (1, 8, 12, 3), "multiples of 8, not 8x12"),
        (resnet(width=3), (1, 32, 32, 3), "width=3: must be even"),
        (resnet(heads=3), (1, 32, 32, 3), "heads=3: must divide"),
        (vit(heads=3), (1, 8, 8, 3), "heads=3: must divide"),
        (vit(activation="relu"), (1, 8, 8, 3), "activation='relu'"),
    ],
)
def test_invalid_options_are_reported(module, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(module.init, jax.random.key(0), np.zeros(shape))


def test_resnet_halves_by_average_pools():
    """Only the first convolution has a stride; all other halvings are pools."""
    x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    module = resnet(layers=(2, 1, 1, 1))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    first, *others = [
        equation.params
        for equation in jax.make_jaxpr(module.apply)(variables, x).eqns
        if equation.primitive.name == "conv_general_dilated"
    ]
    assert first["window_strides"] == (2, 2) and first["padding"] == ((1, 1), (1, 1))
    assert {conv["window_strides"] for conv in others} == {(1, 1)}
    capture = partial(module.apply, capture_intermediates=True, mutable=["intermediates"])
    outputs = jax.eval_shape(capture, variables, x)[1]["intermediates"]
    shapes = {name: output["__call__"][0].shape for name, output in outputs.items() if name != "__call__"}
    assert shapes["conv_0"] == shapes["conv_1"] == (1, 32, 32, 2) and shapes["conv_2"] == (1, 32, 32, 4)
    blocks = {name: shape for name, shape in shapes.items() if name.startswith("stage")}
    assert blocks == {
        "stage_0_block_0": (1, 16, 16, 16),
        "stage_0_block_1": (1, 16, 16, 16),
        "stage_1_block_0": (1, 8, 8, 32),
        "stage_2_block_0": (1, 4, 4, 64),
        "stage_3_block_0": (1, 2, 2, 128),
    }
    skips = {name for name, block in variables["params"].items() if "conv_skip" in block}
    assert skips == blocks.keys() - {"stage_0_block_1"}


def test_bottleneck_skip_connection_against_numpy():
    """With a last norm of zeros, a block that halves is an average pool and a 1x1 convolution."""
    x = normal(2, 4, 6, 3)
    block = clip.Bottleneck(2, True, clip.BatchNorm, jnp.float32)
    variables = randomised(block, x)
    params, statistics = variables["params"], variables["batch_stats"]
    params["norm_2"] = jax.tree.map(np.zeros_like, params["norm_2"])
    pooled = x.astype(np.float64).reshape(2, 2, 2, 3, 2, 3).mean((2, 4)) @ params["conv_skip"]["kernel"][0, 0]
    norm, seen = params["norm_skip"], statistics["norm_skip"]
    expected = (pooled - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * norm["scale"] + norm["bias"]
    np.testing.assert_allclose(jax.jit(block.apply)(variables, x), np.maximum(expected, 0), atol=1e-5)


def test_resnet_uses_batch_statistics_in_training_and_running_averages_in_evaluation():
    x = uniform(4, 8, 8, 3)
    module = resnet()
    variables = randomised(module, x)
    evaluate = jax.jit(module.apply)
    np.testing.assert_allclose(evaluate(variables, x)[:1], evaluate(variables, x[[0, 0, 0, 0]])[:1], atol=1e-5)

    # With this many examples the unbiased variance equals that of the batch.
    train = jax.jit(partial(module.apply, mean=one_device, examples=10**9, mutable=["batch_stats"]))
    _, after = train(variables, x)
    changed = jax.tree.map(lambda a, b: np.abs(a - b).max() > 0, after["batch_stats"], variables["batch_stats"])
    assert all(jax.tree.leaves(changed)) and len(jax.tree.leaves(changed)) == 2 * (3 + 3 * 3 + 2)
    for _ in range(200):
        found, after = train({"params": variables["params"], **after}, x)
    np.testing.assert_allclose(evaluate({"params": variables["params"], **after}, x), found, atol=1e-4)


# --- texts ---


TOKENS = np.array(
    [[1, 5, 3, 2, NO_TOKEN, NO_TOKEN], [1, 2, NO_TOKEN, NO_TOKEN, NO_TOKEN, NO_TOKEN], [1, 7, 8, 9, 4, 2]], np.int32
)
LAST = np.array([3, 1, 5])


@pytest.fixture(scope="module")
def reader():
    return randomised(text(), TOKENS)


def test_text_embedding_is_that_of_the_last_token(reader):
    states, pooled = jax.jit(text().apply)(reader, TOKENS)
    assert states.shape == (3, 6, 8) and states.dtype == pooled.dtype == jnp.float32
    assert np.all(np.isfinite(states))
    expected = np.asarray(states)[np.arange(3), LAST] @ reader["params"]["out"]["kernel"]
    np.testing.assert_allclose(pooled, expected, atol=1e-6)


def test_no_token_attends_to_later_ones(reader):
    """Gradients by the position embeddings show the dependencies."""
    params = reader["params"]

    def read(place):
        return text().apply({"params": params | {"place": place}}, TOKENS)

    of_states, of_pooled = jax.jit(jax.jacrev(lambda place: jax.tree.map(lambda y: y.sum(-1), read(place))))(
        params["place"]
    )
    np.testing.assert_array_equal(np.abs(of_states).max((0, -1)) != 0, np.tril(np.ones((6, 6), bool)))
    np.testing.assert_array_equal(np.abs(of_pooled).max(-1) != 0, np.arange(6) <= LAST[:, None])


def test_states_do_not_depend_on_padding(reader):
    apply = jax.jit(text().apply)
    first, _ = apply(reader, TOKENS)
    other, _ = apply(reader, np.where(TOKENS == NO_TOKEN, 17, TOKENS))
    there = TOKENS != NO_TOKEN
    np.testing.assert_array_equal(np.asarray(first)[there], np.asarray(other)[there])


# --- both ---

ENCODERS = {"vit": (vit, uniform(2, 8, 8, 3)), "resnet": (resnet, uniform(2, 8, 8, 3)), "text": (text, TOKENS)}


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_remat_has_one_checkpoint_per_block(name):
    """test_transformer compares the numbers of a rematerialised transformer."""
    encoder, x = ENCODERS[name]
    encoder = encoder if name == "resnet" else partial(encoder, layers=2)
    variables = jax.eval_shape(encoder().init, jax.random.key(0), x)
    traced = str(jax.make_jaxpr(encoder(remat="blocks").apply)(variables, x))
    assert traced.count("remat") == (3 if name == "resnet" else 2)


@pytest.mark.slow
def test_remat_does_not_change_loss_and_gradients_of_a_resnet():
    x = uniform(2, 8, 8, 3)
    variables = randomised(resnet(layers=(1, 1)), x)

    def loss(params, module):
        y, after = module.apply({**variables, "params": params}, x, mean=one_device, mutable=["batch_stats"])
        return (y**2).sum(), after

    found, expected = (
        jax.jit(jax.value_and_grad(partial(loss, module=resnet(layers=(1, 1), remat=remat)), has_aux=True))(
            variables["params"]
        )
        for remat in ("blocks", "none")
    )
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_bfloat16(name):
    encoder, x = ENCODERS[name]
    variables = randomised(encoder(), x)
    half = encoder(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    found, exact = (jax.tree.leaves(jax.jit(module.apply)(variables, x)) for module in (half, encoder()))
    for y, z in zip(found, exact, strict=True):
        assert y.dtype == jnp.float32 and 0 < np.abs(y - z).max() < 0.05 * np.abs(z).max()


@pytest.mark.slow
def test_initialisation():
    """Standard deviations are those of OpenAI's code."""
    params = jax.jit(vit(width=64, patch=8, layers=1).init)(jax.random.key(0), np.zeros((1, 64, 64, 3)))["params"]
    for leaf in (params["place"], params["class"], params["out"]["kernel"]):
        np.testing.assert_allclose(np.std(leaf), 1 / 8, rtol=0.3)
    limit = 1 / math.sqrt(8 * 8 * 3)
    assert 0.98 * limit < np.abs(params["patch"]["kernel"]).max() <= limit
    params = jax.jit(text(width=64, vocabulary=200, layers=1).init)(jax.random.key(0), np.zeros((1, 40), int))["params"]
    for leaf, std in ((params["token"]["embedding"], 0.02), (params["place"], 0.01), (params["out"]["kernel"], 1 / 8)):
        np.testing.assert_allclose(np.std(leaf), std, rtol=0.1)
    np.testing.assert_allclose(np.std(params["transformer"]["block_0"]["out"]["kernel"]), 1 / 8 / 2**0.5, rtol=0.05)

    def norms(key):
        params = resnet().init(key, np.zeros((1, 8, 8, 3)))["params"]
        blocks = [block for name, block in params.items() if name.startswith("stage")]
        return [{name: block[name]["scale"] for name in ("norm_1", "norm_2")} for block in blocks]

    for block in jax.jit(norms)(jax.random.key(0)):
        assert not np.any(block["norm_2"]) and np.all(block["norm_1"] == 1)


@pytest.mark.slow
def test_states_of_padding_are_those_of_the_padding_token():
    """The U-Net of Stable Diffusion attends to them; the embedding does not depend on them."""
    encoder = text(padding=7)
    tokens = np.array([[3, 5, 9, NO_TOKEN, NO_TOKEN]])
    params = jax.jit(encoder.init)(jax.random.key(0), tokens)
    states, embedding = encoder.apply(params, tokens)
    expected, _ = text().apply(params, np.where(tokens == NO_TOKEN, 7, tokens))
    np.testing.assert_allclose(states, expected, atol=1e-6)
    others, same = text().apply(params, tokens)
    assert np.abs(others - states)[:, 3:].max() > 0.01
    np.testing.assert_allclose(embedding, same, atol=1e-6)


def test_padding_outside_of_the_vocabulary_raises():
    with pytest.raises(ValueError, match="padding=20: must be a token id, from 0 to 19"):
        text(padding=20).init(jax.random.key(0), np.zeros((1, 5), int))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["image", "text"])
def test_without_a_linear_map_the_embedding_is_a_state(name):
    encoder, inputs = {
        "image": (vit(dimensions=0), np.ones((2, 8, 8, 3))),
        "text": (text(dimensions=0), np.ones((2, 5), int)),
    }[name]
    params = jax.jit(encoder.init)(jax.random.key(0), inputs)["params"]
    assert "out" not in params
    projected = encoder.clone(dimensions=6)
    kernel = np.random.default_rng(0).normal(size=(encoder.width, 6)).astype(np.float32)
    with_map = projected.apply({"params": {**params, "out": {"kernel": kernel}}}, inputs)
    found = encoder.apply({"params": params}, inputs)
    if name == "text":
        (states, found), with_map = found, with_map[1]
        np.testing.assert_array_equal(found, states[:, -1])
    np.testing.assert_allclose(found @ kernel, with_map, atol=1e-5)


# --- the loss ---


def units(n, dimensions, seed):
    x = normal(n, dimensions, seed=seed).astype(np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute_force(images, texts, scale):
    """Returns the loss of each pair, in loops and float64."""
    losses = []
    for i in range(len(images)):
        by_image = [scale * sum(a * b for a, b in zip(images[i], t, strict=True)) for t in texts]
        by_text = [scale * sum(a * b for a, b in zip(texts[i], x, strict=True)) for x in images]
        ways = (by_image, by_text)
        losses.append(sum(math.log(sum(math.exp(z - way[i]) for z in way)) for way in ways) / 2)
    return losses


def test_loss_by_brute_force():
    images, texts, loss = units(7, 5, 1), units(7, 5, 2), jax.jit(clip.clip_loss)
    place = np.array([2, 0, 5])
    for scale in (1 / 0.07, 100.0):
        found, nearest = loss(images[place], texts[place], images, texts, place, scale)
        np.testing.assert_allclose(found, np.array(brute_force(images, texts, scale))[place], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(nearest, (images @ texts.T).argmax(axis=1)[place])
        assert found.dtype == jnp.float32


def test_loss_of_perfect_wrong_and_uniform_predictions():
    same, place, loss = np.eye(4, dtype=np.float32), np.arange(4), jax.jit(clip.clip_loss)
    found, nearest = loss(same, same, same, same, place, 1e4)  # exp would overflow
    np.testing.assert_array_equal(found, 0)
    np.testing.assert_array_equal(nearest, place)
    found, nearest = loss(same, same[::-1], same, same[::-1], place, 1e4)
    np.testing.assert_allclose(found, 1e4)
    np.testing.assert_array_equal(nearest, place[::-1])
    one = np.ones((4, 1), np.float32)
    np.testing.assert_allclose(loss(one, one, one, one, place, 50.0)[0], math.log(4), rtol=1e-5)


def towers(params, x):
    """Maps inputs to two embeddings of unit length."""
    found = [jnp.tanh(x @ params[name]) for name in ("image", "text")]
    return [y / jnp.linalg.norm(y, axis=1, keepdims=True) for y in found]


def test_gradients_of_parts_and_devices_match_the_batch():
    params = {"image": normal(5, 4), "text": normal(5, 4, seed=2), "log_scale": jnp.float32(2)}
    x, place = normal(8, 5, seed=3), np.arange(8)

    def loss(params, rows):
        """Returns the loss of some of the pairs, each against all."""
        everyone, pairs = towers(params, x), towers(params, jnp.asarray(x)[rows])
        return clip.clip_loss(*pairs, *everyone, rows, jnp.exp(params["log_scale"]))[0].mean()

    gradient = jax.jit(jax.grad(loss))
    whole = gradient(params, place)
    parts = [gradient(params, rows) for rows in np.split(place, 4)]
    mean = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *parts)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), mean, whole)

    def on_device(params, x, place):
        def loss(params):
            pairs = towers(params, x)
            everyone = jax.lax.all_gather(pairs, "data", tiled=True)
            return clip.clip_loss(*pairs, *everyone, place, jnp.exp(params["log_scale"]))[0].mean()

        return jax.lax.pmean(jax.grad(loss)(params), "data")

    split = (x.reshape(4, 2, 5), place.reshape(4, 2))
    devices = jax.pmap(on_device, "data", in_axes=(None, 0, 0), out_axes=None)(params, *split)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), devices, whole)


@pytest.mark.parametrize(
    "log_scale,cotangent,passed",
    [
        (2.0, -1.0, True),
        (2.0, 1.0, True),
        (math.log(100) + 1e-3, 1.0, True),  # gradient descent decreases it
        (math.log(100) + 1e-3, -1.0, False),
        (6.0, -1.0, False),
        (6.0, 1.0, True),
    ],
)
def test_logit_scale_is_clamped(log_scale, cotangent, passed):
    found, back = jax.vjp(clip.clamped_logit_scale, jnp.float32(log_scale))
    np.testing.assert_allclose(jnp.exp(found), min(math.exp(log_scale), 100), rtol=1e-5)
    assert back(jnp.float32(cotangent)) == ((cotangent,) if passed else (0,))


def test_logit_scale_stays_at_its_maximum_and_can_decrease():
    log_scale = jnp.float32(math.log(100) - 0.05)
    slope = jax.jit(jax.grad(lambda x, sign: sign * clip.clamped_logit_scale(x)))
    for _ in range(10):
        log_scale -= 0.1 * slope(log_scale, -1.0)
    assert math.log(100) <= log_scale < math.log(100) + 0.1
    for _ in range(3):
        log_scale -= 0.1 * slope(log_scale, 1.0)
    assert log_scale < math.log(100) - 0.1


def test_devices_clamp_by_the_mean_gradient():
    """The sum over devices is 3 - 5 < 0, which would increase the scale, so that all gradients are zero."""
    signs = np.array([1, 1, 1, -1, -1, -1, -1, -1], np.float32)

    def gradient(x, sign):
        mean = partial(jax.lax.pmean, axis_name="data")
        return jax.grad(lambda x: sign * clip.clamped_logit_scale(x, mean))(x)

    over = jax.pmap(gradient, "data", in_axes=(None, 0))
    np.testing.assert_array_equal(over(jnp.float32(5), signs), 0)
    np.testing.assert_array_equal(over(jnp.float32(5), -signs), -signs)
