"""Autoencoders with codebooks: gradients, conditioning between scales, and codebooks that collapse and recover."""

import functools
from typing import NamedTuple

import jax
import numpy as np
import optax
import pytest
from jax import lax

from diffjax import models
from diffjax.errors import UserError
from diffjax.latents import codebook
from diffjax.models.autoencoders.multiscale import MultiScaleEncoder
from diffjax.models.autoencoders.vqvae import make_quantizer
from diffjax.models.images import to_unit_range
from diffjax.training.compiled_step import fit_to_first_batch
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
BATCH = tiny.batch()
X = to_unit_range(BATCH["image"])


@functools.cache
def built(base="vqvae", **changes):
    config = tiny.config(base, **changes)
    model = models.build(config, SPEC)
    variables = {**tiny.randomised(model.init), "frozen": {}}
    variables["params"]["model"]["encoder"]["conv_out"]["kernel"] *= 5  # so that latents differ
    return config, model, variables


def loss_of(model, variables, step=1):
    keys = jax.random.split(jax.random.key(3), 6)
    return model.losses["model"](variables, BATCH, keys, tiny.moment(step))


@functools.cache
def graded(**changes):
    """The mean loss's gradient by all variables, the loss [B], aux, and outputs of the codec."""
    _, model, variables = built(**changes)

    def run(variables):
        loss, aux = loss_of(model, variables)
        codec = model.codec(variables)
        codes, z = codec.to_codes(X), codec.encode(X)
        return loss.mean(), (loss, aux, Coded(codes, z / codec.scale, codec.decode(z), codec.from_codes(codes)))

    gradient, (loss, aux, coded) = jax.device_get(jax.jit(jax.grad(run, has_aux=True))(variables))
    return gradient, loss, aux, coded


class Coded(NamedTuple):
    codes: tuple
    latents: np.ndarray
    decoded: np.ndarray
    of_codes: np.ndarray


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.mark.slow
@pytest.mark.parametrize("learned", ["ema", "gradient"])
def test_the_weight_applies_to_the_commitment_loss_only(learned):
    """Commitment and codebook loss have the same value, |z - e|^2."""
    _, model, variables = built(codebook__update_rule=learned)
    _, loss, aux, coded = graded(codebook__update_rule=learned)
    book = books(model, variables)[0]
    distance = ((coded.latents[..., None, :] - book[None, None, None]) ** 2).sum(-1).min(-1).mean(axis=(1, 2)) / 4
    np.testing.assert_allclose(aux.metrics["commitment"], distance, rtol=1e-4)
    weight = 0.25 + (learned == "gradient")
    np.testing.assert_allclose(loss, aux.metrics["reconstruction"] + weight * distance, rtol=1e-4)


def books(model, variables, level="level_0"):
    memory, params = variables["codebook"][level], variables["params"]["model"]["codebook"][level]
    return codebook.means(memory) if "sums" in memory else params["books"] + memory["shift"]


THREE = {"base": "vqvae2", "model__coarser_factors": (2, 2), "codebook__update_rule": "gradient"}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"codebook__update_rule": "ema"}, {"codebook__update_rule": "gradient"}, THREE])
def test_gradients_reach_every_parameter(changes):
    gradient = graded(**changes)[0]
    for path, leaf in leaves(gradient["params"]):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    for path, leaf in leaves(gradient["codebook"]):  # collections have no gradient
        assert "shift" in str(path) or not np.abs(leaf).any(), path


def test_codebooks_are_parameters_only_with_the_gradient_update_rule():
    trained, memory = {}, {}
    for learned in ("ema", "gradient"):
        variables = built(codebook__update_rule=learned)[2]
        trained[learned], memory[learned] = variables["params"]["model"]["codebook"], variables["codebook"]["level_0"]
    assert jax.tree.leaves(trained["ema"]) == []
    assert trained["gradient"]["level_0"]["books"].shape == memory["ema"]["sums"].shape == (1, 8, 4)
    assert memory["gradient"].keys() == {"counts", "usage", "shift"}
    gradient, _, _, coded = graded(codebook__update_rule="gradient")
    rows = np.abs(gradient["params"]["model"]["codebook"]["level_0"]["books"][0]).max(axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(rows), np.unique(coded.codes[0]))  # only entries in use


def test_the_gradient_is_passed_straight_through():
    """Without commitment loss, the encoder gets the gradient of the reconstruction by the codebook entries."""
    config, _, variables = built()
    model = models.build(tiny.config("vqvae", codebook__commitment=0.0), SPEC)
    levels = MultiScaleEncoder.from_config(config, SPEC, make_quantizer(config))
    params, memory = variables["params"]["model"], variables["codebook"]

    @jax.jit
    def both(encoder):
        def loss(encoder):
            changed = {**params, "encoder": encoder}
            return loss_of(model, {**variables, "params": {"model": changed}})[0].mean()

        vectors = levels.encode(params, memory, X).quantized[0].vectors
        at_codes = jax.grad(lambda z: ((X - levels.networks.reconstruct(params, z)) ** 2 / 0.2).mean())(vectors)
        _, pull = jax.vjp(lambda encoder: levels.networks.encode({**params, "encoder": encoder}, X), encoder)
        return jax.grad(loss)(encoder), pull(at_codes)[0]

    gradient, expected = both(params["encoder"])
    for (path, ours), (_, theirs) in zip(leaves(gradient), leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6, err_msg=str(path))


KINDS = {
    "vq": ({"codebook__update_rule": "ema"}, ((4, 4, 1),), 8),
    "product of directions": (
        {"codebook__kind": "product", "codebook__depth": 2, "codebook__cosine": True},
        ((4, 4, 2),),
        8,
    ),
    "lfq": ({"codebook__kind": "lfq"}, ((4, 4, 1),), 16),
    "linear, rotation": (
        {"codebook__update_rule": "linear", "codebook__estimator": "rotation", "codebook__dead_code_threshold": 0.0},
        ((4, 4, 1),),
        8,
    ),
    "fsq": ({"codebook__kind": "fsq", "codebook__levels": (4, 5, 3, 6)}, ((4, 4, 1),), 360),
    "residual on two levels": (
        {"base": "vqvae2", "codebook__kind": "residual", "codebook__depth": 2},
        ((2, 2, 2), (4, 4, 2)),
        8,
    ),
    "three levels": (THREE, ((1, 1, 1), (2, 2, 1), (4, 4, 1)), 8),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_the_codec_encodes_and_decodes(kind):
    changes, grids, vocabulary = KINDS[kind]
    _, model, variables = built(**changes)
    _, loss, aux, coded = graded(**changes)
    codec = model.codec(variables)
    assert codec.grids == grids
    assert codec.vocabulary == vocabulary
    assert tuple(level.shape[1:] for level in coded.codes) == grids
    for level in coded.codes:
        assert level.min() >= 0
        assert level.max() < vocabulary
    assert len(np.unique(coded.codes[-1])) > 2
    assert coded.latents.shape[1:] == codec.shape
    np.testing.assert_allclose(coded.decoded, coded.of_codes, rtol=1e-4, atol=1e-4)
    assert np.abs(coded.of_codes[0] - coded.of_codes[1]).max() > 1e-2
    error = ((X - coded.of_codes) ** 2 / 0.2).mean(axis=(1, 2, 3))  # the reconstruction of training
    np.testing.assert_allclose(aux.metrics["reconstruction"], error, rtol=1e-3)
    assert np.isfinite(loss).all()


@pytest.mark.parametrize("base", ["vqvae", "vqvae2"])
def test_latents_have_unit_variance(base):
    """Before quantisation with one scale; else the input of the decoder."""
    _, model, variables = built(base)

    @jax.jit
    def run(variables):
        after = {**loss_of(model, variables, step=0)[1].variables, "codebook": variables["codebook"]}
        codec = model.codec({**variables, **after})
        return codec.encode(X), codec.scale

    z, scale = run(variables)
    assert abs(scale - 1) > 0.1
    np.testing.assert_allclose(z.std(), 1.0, rtol=1e-3)


def test_each_scale_is_conditioned_on_the_coarser_ones_only():
    _, model, variables = built(**THREE)
    to_codes = jax.jit(lambda variables: model.codec(variables).to_codes(X)[::-1])  # the finest first
    before, names = to_codes(variables), sorted(variables["codebook"])
    assert names == ["level_0", "level_1", "level_2"]
    for changed, name in enumerate(names):
        memory = variables["codebook"][name]
        other = {**memory, "shift": 300 * np.random.default_rng(0).normal(size=(1, 8, 4)).astype(np.float32)}
        after = to_codes({**variables, "codebook": {**variables["codebook"], name: other}})
        for level in range(3):
            same = np.array_equal(before[level], after[level])
            assert same == (level > changed), (changed, level)


@pytest.mark.parametrize("changes", [{"base": "vqvae2"}, {"codebook__update_rule": "gradient"}])
def test_codebooks_are_initialised_with_latents_of_the_first_batch(changes):
    """Every entry is a latent, given the codes of the coarser scales, and so all are in use."""
    config, model, variables = built(**changes)
    fitted = model.prepare(variables, BATCH)
    levels = MultiScaleEncoder.from_config(config, SPEC, make_quantizer(config))
    z, quantized, _ = jax.jit(levels.encode)(fitted["params"]["model"], fitted["codebook"], X)
    for level, name in enumerate(levels.names):
        distance = np.abs(z[level][..., None, :] - books(model, fitted, name)[0][None, None, None]).max(axis=-1)
        assert distance.min(axis=(0, 1, 2)).max() < 1e-5
        assert len(np.unique(quantized[level].codes)) == 8
    for name in ("encoder", "decoder"):
        assert fitted["params"]["model"][name] is variables["params"]["model"][name]


def test_a_normal_codebook_does_not_fit_the_first_batch():
    assert models.build(tiny.config("vqvae", codebook__init="normal"), SPEC).fits_first_batch is False


def codebook_history(steps, **changes):
    """The model and the metrics of each step of a VQ-VAE whose codebook starts far from the latents.

    The networks stand still; four steps are an epoch.
    """
    config = tiny.config("vqvae", codebook__size=32, codebook__init="normal", **changes)
    model = models.build(config, SPEC)
    variables = {**far_away(tiny.randomised(model.init)), "frozen": {}}

    @jax.jit
    def run(step, memory):
        context = tiny.moment()._replace(step=step, key=jax.random.key(step), new_epoch=step % 4 == 0)
        keys = jax.random.split(context.key, 6)
        _, aux = model.losses["model"]({**variables, "codebook": memory}, BATCH, keys, context)
        memory = aux.variables["codebook"]
        return memory, {"restarts": aux.metrics["restarts"].mean(), **model.summarize({"codebook": memory})}

    memory, history = variables["codebook"], []
    for step in range(steps):
        memory, metrics = run(step, memory)
        history.append({name: float(value) for name, value in metrics.items()})
    return model, memory["level_0"], history


def far_away(variables):
    """Variables with a codebook a hundred times too large."""
    memory, params = variables["codebook"]["level_0"], variables["params"]["model"]
    if "sums" in memory:
        return {**variables, "codebook": {"level_0": {**memory, "sums": 100 * memory["sums"]}}}
    books = {"level_0": {"books": 100 * params["codebook"]["level_0"]["books"]}}
    return {**variables, "params": {"model": {**params, "codebook": books}}}


def test_a_collapsed_codebook_stays_collapsed_and_is_reported():
    model, _, history = codebook_history(24, codebook__dead_code_threshold=0.0, codebook__decay=0.7)
    for metrics in history:
        assert metrics["codes_used"] == 1 / 32
        np.testing.assert_allclose(metrics["perplexity"], 1.0, rtol=1e-5)
        warning = model.warn(metrics)
        assert "collapsed" in warning
        assert "codebook.dead_code_threshold" in warning
        assert "\n" not in warning
    assert model.warn({**history[-1], "codes_used": 0.3}) is None


@pytest.mark.slow
@pytest.mark.parametrize("update_rule", ["ema", "gradient"])
def test_a_collapsed_codebook_recovers_by_restarts(update_rule):
    options = {"codebook__dead_code_threshold": 0.1, "codebook__decay": 0.7, "codebook__update_rule": update_rule}
    model, memory, history = codebook_history(24, **options)
    assert history[0]["codes_used"] == 1 / 32
    assert sum(metrics["restarts"] for metrics in history) >= 31
    assert history[-1]["codes_used"] > 0.5
    assert history[-1]["perplexity"] > 8
    assert all(model.warn(metrics) is None for metrics in history)  # restarts make a warning unnecessary
    np.testing.assert_allclose(memory["usage"].sum(), 4.0, rtol=1e-5)  # of the epoch: one per step


def test_running_means_follow_the_latents():
    """With fixed networks, an entry tends to the mean of its latents."""
    _, model, variables = built(codebook__decay=0.5)

    @jax.jit
    def run(variables):
        still = {name: tree for name, tree in variables.items() if name != "codebook"}
        learn = lambda _, codes: loss_of(model, {**still, "codebook": codes})[1].variables["codebook"]  # noqa: E731
        codes = lax.fori_loop(0, 40, learn, variables["codebook"])
        codec = model.codec({**still, "codebook": codes})
        return codes, codec.encode(X) / codec.scale, codec.to_codes(X)[0]

    memory, z, codes = jax.device_get(run(variables))
    z, codes, book = z.reshape(-1, 4), codes.reshape(-1), books(model, {**variables, "codebook": memory})[0]
    assert len(np.unique(codes)) > 2
    for code in np.unique(codes):
        np.testing.assert_allclose(book[code], z[codes == code].mean(axis=0), rtol=1e-3, atol=1e-4)


def test_the_ema_starts_at_the_prepared_parameters():
    _, model, variables = built(codebook__update_rule="gradient")
    optimizers = {"model": optax.adam(1e-3)}
    trained = {name: tree for name, tree in variables.items() if name != "frozen"}
    state = fit_to_first_batch(model, tiny.initial_state(trained, optimizers), BATCH)
    before, after = (v["params"]["model"]["codebook"]["level_0"]["books"] for v in (variables, state.variables))
    assert np.abs(after - before).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.variables["params"])


@pytest.mark.parametrize(
    ("base", "changes", "spec", "message"),
    [
        ("vqvae", {"codebook__kind": "residuals"}, SPEC, "did you mean 'residual'"),
        ("vqvae", {"codebook__update_rule": "emma"}, SPEC, "did you mean 'ema'"),
        ("vqvae", {"codebook__init": "kmean"}, SPEC, "did you mean 'kmeans'"),
        ("vqvae", {"codebook__update_rule": "linear"}, SPEC, "codebook.dead_code_threshold=0.03: must be 0"),
        ("vqvae", {"codebook__estimator": "rotate"}, SPEC, "did you mean 'rotation'"),
        ("vqvae", {"codebook__kind": "lfq", "codebook__estimator": "rotation"}, SPEC, "set it to straight_through"),
        ("vqvae", {"codebook__kind": "lfq", "model__latent_channels": 15}, SPEC, "must be at most 14"),
        ("vqvae", {"codebook__size": 1}, SPEC, "codebook.size=1: must be a whole number from 2"),
        ("vqvae", {"codebook__decay": 1.0}, SPEC, "codebook.decay=1: must be a finite number from 0 and below 1"),
        ("vqvae", {"codebook__commitment": -1.0}, SPEC, "codebook.commitment=-1: must be a finite number from 0"),
        (
            "vqvae",
            {"codebook__kind": "product", "codebook__depth": 3},
            SPEC,
            "codebook.depth=3: does not divide model.latent_channels=4",
        ),
        ("vqvae", {"codebook__depth": 4}, SPEC, "codebook.depth=4: must be 1 for codebook.kind=vq"),
        (
            "vqvae",
            {"codebook__shared": True},
            SPEC,
            "codebook.shared=True: is only supported for codebook.kind=residual",
        ),
        (
            "vqvae",
            {"codebook__kind": "residual", "codebook__depth": 0},
            SPEC,
            "codebook.depth=0: must be a whole number from 1",
        ),
        (
            "vqvae",
            {"codebook__kind": "residual", "codebook__cosine": True},
            SPEC,
            "codebook.cosine=True: is not supported for codebook.kind=residual",
        ),
        ("vqvae", {"codebook__kind": "fsq", "codebook__levels": (8, 5)}, SPEC, "model.latent_channels=4"),
        (
            "vqvae",
            {"codebook__kind": "fsq", "codebook__levels": (8, 5, 5, 1)},
            SPEC,
            "codebook.levels=1: must be a whole number from 2",
        ),
        ("vqvae", {"model__factor": 4}, ImageSpec(6, 1, 0), "not a multiple of 4"),
        ("vqvae2", {"model__z_channels": 0}, SPEC, "model.z_channels"),
        ("vqvae2", {"model__coarser_factors": (2, 4)}, SPEC, "a grid of 2x2 codes is not a multiple of 4"),
    ],
)
def test_invalid_configs_raise(base, changes, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config(base, **changes), spec)
    assert "\n" not in str(caught.value)
