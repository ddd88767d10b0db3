"""Quantisers against float64 NumPy: codes, vectors, losses, gradients, and state, on any number of devices."""

import functools
import itertools

import jax
import numpy as np
import pytest
from jax import lax
from jax import numpy as jnp

from diffjax.latents import codebook
from diffjax.latents.quantizers import Bits, FiniteScalars, VectorQuantizer
from tests import tiny

CHANNELS, SIZE, BATCH = 4, 6, 8
KINDS = {
    "vq": {},
    "product": {"depth": 2, "split": True},
    "residual": {"depth": 3},
    "cosine": {"cosine": True},
    "cosine product": {"depth": 2, "split": True, "cosine": True},
}
every_kind = pytest.mark.parametrize(
    ("kind", "ema"),
    [
        *itertools.product(["vq", "residual"], [True, False]),
        ("product", True),
        ("cosine", True),
        ("cosine product", False),
    ],
)


def make(kind, ema, **options):
    rule = {"update_rule": "ema" if ema else "gradient"}
    return VectorQuantizer(CHANNELS, SIZE, **{"depth": 1, "decay": 0.8} | rule | KINDS[kind] | options)


def state(quantizer, dead=()):
    """Params and state during training: uneven counts, nearly zero for `dead` codes, shifted entries."""
    rng = np.random.default_rng(0)
    params, memory = quantizer.init(jax.random.key(0))
    counts = rng.uniform(0.2, 0.4, (quantizer.depth, SIZE))
    counts[:, list(dead)] = 1e-3
    books = rng.normal(size=(quantizer.depth, SIZE, CHANNELS // (quantizer.depth if quantizer.split else 1)))
    is_ema = quantizer.update_rule == "ema"
    followed = {"sums": books * counts[..., None]} if is_ema else {"shift": books - params["books"]}
    return params, jax.tree.map(jnp.float32, {**memory, "counts": counts, **followed})


def latents(seed=1):
    return np.random.default_rng(seed).normal(size=(BATCH, 2, 3, CHANNELS)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="quantizer")
def quantized(quantizer, params, memory, z, weight):
    """Quantised latents, the vectors of their codes, and gradients by params and z of each loss term and the sum."""

    def terms(params, z):
        found = quantizer.quantize(params, memory, z)
        decoded = (weight * found.vectors).sum(axis=(1, 2, 3))
        whole = decoded + found.codebook + 0.25 * found.commitment
        return jnp.stack([decoded, found.commitment, found.codebook, whole]).sum(axis=1), found

    by_params, by_z = jax.jacrev(lambda *at: terms(*at)[0], (0, 1))(params, z)
    found = terms(params, z)[1]
    return found, quantizer.lookup(params, memory, found.codes), by_params, by_z


@functools.partial(jax.jit, static_argnames=("quantizer", "mean"))
def learned(quantizer, params, memory, z, index, key, mean=lambda tree: tree):
    """State and metrics after a step of examples `index`, of BATCH."""
    moment = tiny.moment(batch_size=BATCH)._replace(key=key, new_epoch=jnp.asarray(False), mean=mean)
    return quantizer.learn(params, memory, quantizer.quantize(params, memory, z), index, moment)


def learned_by_one(quantizer, params, memory, z, key=0):
    return learned(quantizer, params, memory, z, jnp.arange(BATCH), jax.random.key(key))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def numpy_books(quantizer, params, memory):
    memory = {name: np.float64(x) for name, x in memory.items()}
    if quantizer.update_rule == "ema":
        books = memory["sums"] / memory["counts"][..., None]
    else:
        books = np.float64(params["books"]) + memory["shift"]
    return unit(books) if quantizer.cosine else books


def numpy_quantize(quantizer, books, z):
    """Vectors, codes [B, h, w, n], and inputs and outputs of each codebook [n, B, h, w, d]."""
    parts = np.split(np.float64(z), quantizer.depth, axis=-1) if quantizer.split else [np.float64(z)]
    parts = [unit(part) for part in parts] if quantizer.cosine else parts
    inputs, outputs, codes = [], [], []
    for i, book in enumerate(books):
        inputs.append(parts[i] if quantizer.split else parts[0] - sum(outputs))
        codes.append(((inputs[-1][..., None, :] - book) ** 2).sum(-1).argmin(-1))
        outputs.append(book[codes[-1]])
    vectors = np.concatenate(outputs, -1) if quantizer.split else sum(outputs)
    return vectors, np.stack(codes, -1), np.stack(inputs), np.stack(outputs)


def through_unit(gradient, x):
    """Returns the gradient by x, given the gradient by unit(x)."""
    u = unit(x)
    return (gradient - (gradient * u).sum(-1, keepdims=True) * u) / np.linalg.norm(x, axis=-1, keepdims=True)


@every_kind
def test_quantize_equals_numpy(kind, ema):
    quantizer, z = make(kind, ema), latents()
    params, memory = state(quantizer)
    found, looked_up, _, _ = quantized(quantizer, params, memory, z, z)
    vectors, codes, inputs, outputs = numpy_quantize(quantizer, numpy_books(quantizer, params, memory), z)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(found.vectors, vectors, atol=1e-5)
    np.testing.assert_allclose(found.inputs, inputs, atol=1e-5)
    error = ((inputs - outputs) ** 2).mean((0, 2, 3, 4))
    np.testing.assert_allclose(found.commitment, error, rtol=1e-5)
    np.testing.assert_allclose(found.codebook, error * (not ema), rtol=1e-5)
    np.testing.assert_allclose(looked_up, vectors, atol=1e-5)


@every_kind
def test_gradients_equal_closed_forms(kind, ema):
    """The gradient of the decoder reaches z, that of the commitment z only, that of the codebook the entries only."""
    quantizer, z = make(kind, ema), latents()
    params, memory = state(quantizer)
    weight = np.random.default_rng(2).normal(size=z.shape).astype(np.float32)

    _, _, by_params, by_z = quantized(quantizer, params, memory, z, weight)
    books = numpy_books(quantizer, params, memory)
    _, codes, inputs, outputs = numpy_quantize(quantizer, books, z)
    pull = 2 * (inputs - outputs) / inputs[:, 0].size  # of a mean over positions, channels and codebooks
    to_z, straight = np.concatenate(pull, -1) if quantizer.split else pull.sum(0), weight
    to_books = np.zeros_like(books)
    for i in range(0 if ema else quantizer.depth):
        np.add.at(to_books[i], codes[..., i], -pull[i])
    if quantizer.cosine:
        split = lambda x: x.reshape(*x.shape[:-1], quantizer.depth, -1)  # noqa: E731
        straight, to_z = (through_unit(split(g), split(z)).reshape(z.shape) for g in (weight, to_z))
        to_books = to_books if ema else through_unit(to_books, np.float64(params["books"] + memory["shift"]))
    zero = np.zeros_like(z)
    for found, expected in zip(by_z, (straight, to_z, zero, straight + 0.25 * to_z), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-5)
    if not ema:
        zero = np.zeros_like(books)
        for found, expected in zip(by_params["books"], (zero, zero, to_books, to_books), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-5)


@every_kind
def test_state_after_steps_equals_numpy(kind, ema):
    quantizer = make(kind, ema)
    params, memory = state(quantizer)
    books, shift = numpy_books(quantizer, params, memory), memory.get("shift")
    counts, sums = np.float64(memory["counts"]), np.float64(memory.get("sums", 0.0))
    seen = np.zeros((quantizer.depth, SIZE))
    for step in range(1, 4):
        memory, metrics = learned_by_one(quantizer, params, memory, latents(step))
        _, codes, inputs, _ = numpy_quantize(quantizer, books, latents(step))
        one_hot = np.eye(SIZE)[np.moveaxis(codes, -1, 0).reshape(quantizer.depth, -1)]  # [n, positions, K]
        counts, seen = 0.8 * counts + 0.2 * one_hot.mean(1), seen + one_hot.mean(1)
        if ema:
            inputs = inputs.reshape(*one_hot.shape[:2], -1)
            sums = 0.8 * sums + 0.2 * np.einsum("ink,ind->ikd", one_hot, inputs) / inputs.shape[1]
            books = sums / counts[..., None]
            books = unit(books) if quantizer.cosine else books
            np.testing.assert_allclose(memory["sums"], sums, atol=1e-5)
        np.testing.assert_allclose(memory["counts"], counts, atol=1e-5)
        np.testing.assert_allclose(memory["usage"], seen, atol=1e-5)
        p = seen / seen.sum(-1, keepdims=True)
        perplexity = np.exp(-(p * np.log(np.where(p > 0, p, 1))).sum(-1)).mean()
        used = codebook.usage_metrics(memory["usage"])
        np.testing.assert_allclose(used["perplexity"], perplexity, rtol=1e-5)
        np.testing.assert_allclose(used["codes_used"], (seen > 0).mean(), rtol=1e-6)
        assert metrics["restarts"] == 0
    if not ema:
        np.testing.assert_array_equal(memory["shift"], shift)


@pytest.mark.parametrize(("kind", "ema"), [("vq", False), ("residual", True), ("cosine product", False)])
def test_only_dead_codes_restart_at_latents_of_the_batch(kind, ema):
    quantizer, z, dead = make(kind, ema, dead_code_threshold=0.5), latents(), np.isin(np.arange(SIZE), [1, 4])
    params, memory = state(quantizer, dead=[1, 4])
    _, _, inputs, _ = numpy_quantize(quantizer, numpy_books(quantizer, params, memory), z)
    new, metrics = learned_by_one(quantizer, params, memory, z, key=7)
    assert metrics["restarts"] == 2 * quantizer.depth
    for book, pool in zip(numpy_books(quantizer, params, new), inputs, strict=True):
        apart = np.linalg.norm(book[dead][:, None] - pool.reshape(1, -1, pool.shape[-1]), axis=-1)
        np.testing.assert_allclose(apart.min(1), 0, atol=1e-5)
    np.testing.assert_allclose(new["counts"][:, dead], 1 / SIZE, rtol=1e-6)
    updated, _ = learned_by_one(make(kind, ema), params, memory, z)
    repeated, _ = learned_by_one(quantizer, params, memory, z, key=7)
    for name in new:
        np.testing.assert_allclose(new[name][:, ~dead], updated[name][:, ~dead], atol=1e-6)
        np.testing.assert_array_equal(repeated[name], new[name])
    followed = "sums" if ema else "shift"
    other, _ = learned_by_one(quantizer, params, memory, z, key=8)
    assert not np.allclose(other[followed][:, dead], new[followed][:, dead])


@pytest.mark.parametrize("ema", [True, False])
def test_without_restarts_dead_codes_do_not_move(ema):
    quantizer = make("vq", ema)
    params, memory = state(quantizer, dead=[1, 4])
    z = np.float32(numpy_books(quantizer, params, memory)[0, np.resize([0, 2, 3, 5], (BATCH, 2, 3))])
    new, metrics = learned_by_one(quantizer, params, memory, z)
    assert metrics["restarts"] == 0
    np.testing.assert_allclose(new["counts"][:, (1, 4)], 0.8 * 1e-3, rtol=1e-5)
    books = [numpy_books(quantizer, params, each) for each in (memory, new)]
    np.testing.assert_allclose(*books, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "ema", "devices", "parts"), [("residual", True, 8, 1), ("cosine product", False, 4, 2)]
)
def test_the_state_does_not_depend_on_devices_or_parts(kind, ema, devices, parts):
    quantizer, z = make(kind, ema, dead_code_threshold=0.5), latents()
    params, memory = state(quantizer, dead=[0, 3, 5])
    expected, expected_metrics = learned_by_one(quantizer, params, memory, z)
    assert expected_metrics["restarts"] == 3 * quantizer.depth
    mean = functools.partial(lax.pmean, axis_name="data")

    def one(z, index):
        batches = [(z[i::parts], index[i::parts]) for i in range(parts)]
        each = [learned(quantizer, params, memory, *batch, jax.random.key(0), mean=mean) for batch in batches]
        return mean(jax.tree.map(lambda *x: sum(x) / parts, *each))

    spmd = jax.pmap(one, axis_name="data", out_axes=None, devices=jax.devices()[:devices])
    found, metrics = spmd(z.reshape(devices, -1, *z.shape[1:]), jnp.arange(BATCH).reshape(devices, -1))
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    for name in expected_metrics if parts == 1 else ["restarts"]:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-5)


every_levels = pytest.mark.parametrize("levels", [(8, 5, 4), (3, 7), (2, 3)])


@functools.partial(jax.jit, static_argnums=0)
def rounded(levels, z):
    """Quantised latents, the vectors of their codes, of all codes [K, c], and the gradient by z."""
    quantizer = FiniteScalars(len(levels), int(np.prod(levels)), 1, levels=levels)
    params, memory = quantizer.init(jax.random.key(0))
    found = quantizer.quantize(params, memory, z)
    every = jnp.arange(quantizer.vocabulary)[:, None, None, None]
    gradient = jax.grad(lambda z: quantizer.quantize(params, memory, z).vectors.sum())(z)
    book = quantizer.lookup(params, memory, every)[:, 0, 0]
    return found, quantizer.lookup(params, memory, found.codes), book, gradient


@every_levels
def test_finite_scalars_equal_the_paper(levels):
    """Mentzer et al. 2024, app. A.1. Its tan moves even numbers of levels so that 0 nearly stays 0."""
    numbers = np.array(levels)
    z = np.float32(list(itertools.product(np.linspace(-4, 4, 41), repeat=len(levels))))[:, None, None]
    found, _, _, gradient = rounded(levels, z)
    vectors = np.asarray(found.vectors)
    half = (numbers - 1) * (1 - 1e-3) / 2
    offset = np.where(numbers % 2 == 1, 0, 0.5)
    moved = z + np.tan(offset / half)
    bounded = np.tanh(moved) * half - offset
    clear = np.abs(np.abs(bounded - np.round(bounded)) - 0.5) > 1e-3  # of a border between levels
    assert clear.mean() > 0.95
    np.testing.assert_allclose(vectors[clear], (np.round(bounded) / (numbers // 2))[clear], atol=1e-6)
    np.testing.assert_allclose(gradient, half / np.cosh(moved) ** 2 / (numbers // 2), atol=1e-3)
    assert (np.asarray(gradient) > 0).all()
    digits = np.round(vectors * (numbers // 2) + numbers // 2).astype(int)
    codes = np.ravel_multi_index(tuple(np.moveaxis(digits, -1, 0)), levels, order="F")
    np.testing.assert_array_equal(found.codes[..., 0], codes)
    assert not found.commitment.any() and not found.codebook.any()
    assert found.commitment.shape == found.codebook.shape == (len(z),)


@every_levels
def test_finite_scalars_use_every_code_and_invert_it(levels):
    z = np.float32(list(itertools.product(np.linspace(-4, 4, 41), repeat=len(levels))))[:, None, None]
    found, looked_up, book, _ = rounded(levels, z)
    count = int(np.prod(levels))
    np.testing.assert_array_equal(np.unique(found.codes), np.arange(count))
    np.testing.assert_allclose(looked_up, found.vectors, atol=1e-6)
    half = np.array(levels) // 2
    digits = np.stack(np.unravel_index(np.arange(count), levels, order="F"), -1)
    np.testing.assert_allclose(book, (digits - half) / half, atol=1e-6)


def test_finite_scalars_count_their_codes():
    quantizer = FiniteScalars(2, 9, 1, levels=(3, 3))
    z = np.zeros((BATCH, 1, 1, 2), np.float32)
    z[:2] = 9
    memory, _ = learned_by_one(quantizer, *quantizer.init(jax.random.key(0)), z)
    metrics = codebook.usage_metrics(memory["usage"])
    np.testing.assert_allclose(memory["usage"], [[0, 0, 0, 0, 0.75, 0, 0, 0, 0.25]], rtol=1e-6)
    p = np.array([0.75, 0.25])
    np.testing.assert_allclose(metrics["perplexity"], np.exp(-(p * np.log(p)).sum()), rtol=1e-5)
    np.testing.assert_allclose(metrics["codes_used"], 2 / 9, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def step_of(quantizer, params, memory, z):
    """Quantised latents, the vectors of their codes, the new state and metrics."""
    found = quantizer.quantize(params, memory, z)
    looked_up = quantizer.lookup(params, memory, found.codes)
    return found, looked_up, *quantizer.learn(params, memory, found, jnp.arange(BATCH), tiny.moment(batch_size=BATCH))


@pytest.mark.parametrize("ema", [True, False])
def test_a_shared_codebook_learns_from_the_residuals_of_all_depths(ema):
    """RQ-VAE (Lee et al. 2022), section 3.1, in NumPy: one codebook, counts and sums over every depth."""
    depth, decay = 3, 0.8
    rule = "ema" if ema else "gradient"
    quantizer = VectorQuantizer(CHANNELS, SIZE, depth, shared=True, update_rule=rule, decay=decay)
    params, memory = quantizer.init(jax.random.key(0))
    z = latents()
    book = np.asarray(memory["sums"] / memory["counts"][..., None] if ema else params["books"])[0].astype(np.float64)
    left, codes, inputs = z.reshape(-1, CHANNELS).astype(np.float64), [], []
    for _ in range(depth):
        code = ((left[:, None] - book[None]) ** 2).sum(-1).argmin(1)
        codes.append(code)
        inputs.append(left)
        left = left - book[code]
    found, looked_up, learned, _ = step_of(quantizer, params, memory, z)
    np.testing.assert_array_equal(found.codes.reshape(-1, depth), np.stack(codes, 1))
    np.testing.assert_allclose(found.vectors.reshape(-1, CHANNELS), sum(book[code] for code in codes), atol=1e-5)
    np.testing.assert_allclose(looked_up, found.vectors, atol=1e-5)
    every_code, every_input = np.concatenate(codes), np.concatenate(inputs)
    share = np.bincount(every_code, minlength=SIZE) / len(every_code)
    np.testing.assert_allclose(learned["counts"][0], decay / SIZE + (1 - decay) * share, rtol=1e-5)
    if ema:
        sums = np.zeros((SIZE, CHANNELS))
        np.add.at(sums, every_code, every_input)
        expected = decay * book / SIZE + (1 - decay) * sums / len(every_code)
        np.testing.assert_allclose(learned["sums"][0], expected, atol=1e-5)
    used = share[share > 0]
    perplexity = codebook.usage_metrics(learned["usage"])["perplexity"]
    np.testing.assert_allclose(perplexity, np.exp(-np.sum(used * np.log(used))), rtol=1e-5)


def test_a_dead_code_of_a_shared_codebook_restarts_at_a_residual_of_any_depth():
    quantizer = VectorQuantizer(CHANNELS, SIZE, 3, shared=True, decay=0.8, dead_code_threshold=0.5)
    params, memory = quantizer.init(jax.random.key(0))
    memory = {**memory, "counts": memory["counts"].at[0, 2].set(1e-3)}
    found, _, learned, measured = step_of(quantizer, params, memory, latents())
    vector = learned["sums"][0, 2] / learned["counts"][0, 2]
    distance = np.abs(np.asarray(found.inputs).reshape(-1, CHANNELS) - np.asarray(vector)).max(axis=1)
    assert measured["restarts"] == 1 and distance.min() < 1e-5


def test_the_rotation_trick_rotates_and_scales_gradients():
    """Fifty et al. 2024, section 4: the Jacobian maps the latent to its entry, and is a rotation times a factor."""
    quantizer = VectorQuantizer(CHANNELS, SIZE, 1, update_rule="gradient", rotate=True)
    params, memory = quantizer.init(jax.random.key(0))
    z = latents()[:2, :1, :1]
    z[1] = 0  # without a direction

    @jax.jit
    def both(z):
        found = quantizer.quantize(params, memory, z)
        whole = jax.jacrev(lambda z: quantizer.quantize(params, memory, z).vectors)(z)
        return found, whole

    found, jacobian = both(z)
    vectors = np.asarray(params["books"])[0][np.asarray(found.codes)[..., 0]]
    np.testing.assert_allclose(found.vectors, vectors, rtol=1e-6)
    assert np.isfinite(jacobian).all()
    latent, vector, jacobian = z[0, 0, 0], vectors[0, 0, 0], np.asarray(jacobian)[0, 0, 0, :, 0, 0, 0]
    factor = np.linalg.norm(vector) / np.linalg.norm(latent)
    np.testing.assert_allclose(jacobian @ latent, vector, rtol=1e-5)
    np.testing.assert_allclose(jacobian @ jacobian.T, factor**2 * np.eye(CHANNELS), atol=1e-5)
    np.testing.assert_allclose(np.linalg.det(jacobian / factor), 1, rtol=1e-4)
    apart = np.linalg.svd(np.stack([latent, vector]))[2][2:]  # directions outside of their plane do not turn
    np.testing.assert_allclose(jacobian @ apart.T, factor * apart.T, atol=1e-5)


def test_a_linear_map_of_fixed_entries_moves_unused_ones():
    """SimVQ (Zhu et al. 2024), equation 4, in NumPy."""
    quantizer = VectorQuantizer(CHANNELS, SIZE, 1, update_rule="linear")
    params, memory = quantizer.init(jax.random.key(0))
    params = {"map": params["map"] + 0.3 * jax.random.normal(jax.random.key(1), params["map"].shape)}
    z = latents() + 2
    fixed, linear = np.float64(memory["fixed"][0]), np.float64(params["map"][0])
    vectors, codes, _, _ = numpy_quantize(quantizer, (fixed @ linear)[None], z)

    @jax.jit
    def graded(params):
        return jax.value_and_grad(lambda params: quantizer.quantize(params, memory, z).codebook.mean())(params)

    found, looked_up, learned, _ = step_of(quantizer, params, memory, z)
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_allclose(looked_up, vectors, atol=1e-5)
    loss, gradient = graded(params)
    np.testing.assert_allclose(loss, ((z - vectors) ** 2).mean(), rtol=1e-5)
    error = (vectors - z).reshape(-1, CHANNELS)
    expected = 2 * fixed[codes.ravel()].T @ error / error.size
    np.testing.assert_allclose(gradient["map"][0], expected, rtol=1e-4, atol=1e-6)
    unused = sorted(set(range(SIZE)) - set(codes.ravel()))
    assert unused and (np.abs(fixed[unused] @ expected) > 1e-4).all()
    np.testing.assert_array_equal(learned["fixed"], memory["fixed"])


def test_bits_are_signs_with_an_entropy_penalty():
    """MAGVIT-v2, equation 5, with a softmax over all codes in NumPy; the batch on one device and on four."""
    quantizer = Bits(3, 8, 1, entropy_weight=0.5)
    z = np.random.default_rng(0).normal(size=(BATCH, 2, 1, 3)).astype(np.float32) / 100
    found, looked_up, learned, _ = step_of(quantizer, *quantizer.init(jax.random.key(0)), z)
    signs = np.sign(z)
    np.testing.assert_array_equal(found.vectors, signs)
    np.testing.assert_array_equal(looked_up, signs)
    np.testing.assert_array_equal(found.codes[..., 0], (z > 0) @ [1, 2, 4])
    np.testing.assert_allclose(found.commitment, ((z - signs) ** 2).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(learned["usage"].sum(), 1, rtol=1e-6)

    codes = np.array(list(itertools.product((-1, 1), repeat=3)))
    logits = -((np.float64(z)[..., None, :] - codes) ** 2).sum(-1) / 0.01
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mean = p.mean((0, 1, 2))
    expected = 0.5 * (-(p * np.log(p + 1e-300)).sum(-1).mean((1, 2)) + (mean * np.log(mean)).sum())
    penalty = jax.jit(lambda z: quantizer.penalty(z, tiny.moment()))
    np.testing.assert_allclose(penalty(z), expected, rtol=1e-4, atol=1e-6)

    averaged = tiny.moment()._replace(mean=functools.partial(lax.pmean, axis_name="data"))
    spmd = jax.pmap(lambda z: quantizer.penalty(z, averaged), axis_name="data", devices=jax.devices()[:4])
    np.testing.assert_allclose(spmd(z.reshape(4, -1, *z.shape[1:])).ravel(), expected, rtol=1e-4, atol=1e-6)
