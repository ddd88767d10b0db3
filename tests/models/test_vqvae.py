"""Autoencoders with codes: what pulls what, levels that hear each other, and codebooks that collapse and recover."""

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
from diffjax.models.autoencoders.multiscale import Levels
from diffjax.models.autoencoders.vqvae import make_quantizer
from diffjax.models.pixels import to_unit_range
from diffjax.runs.state import initial_state
from diffjax.training.compiled_step import prepared
from diffjax.training.step import make_step
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
BATCH = tiny.batch()
X = to_unit_range(BATCH["image"])


@functools.cache
def built(base="vqvae", **changes):
    config = tiny.config(base, **changes)
    system = models.build(config, SPEC)
    variables = {**tiny.randomised(system.objective.init), "frozen": {}}
    variables["params"]["model"]["encoder"]["conv_out"]["kernel"] *= 5  # so that latents are apart
    return config, system, variables


def loss_of(system, variables, step=1):
    keys = jax.random.split(jax.random.key(3), 6)
    return system.objective.losses["model"](variables, BATCH, keys, tiny.moment(step))


@functools.cache
def graded(**changes):
    """Of a built system the mean loss's gradient by all variables, the loss [B], its metrics, and what a codec does."""
    _, system, variables = built(**changes)

    @jax.jit
    def run(variables):
        loss, aux = loss_of(system, variables)
        codec = system.codec(variables)
        codes, z = codec.to_codes(X), codec.encode(X)
        return loss.mean(), (loss, aux, Coded(codes, z / codec.scale, codec.decode(z), codec.from_codes(codes)))

    gradient, (loss, aux, coded) = jax.grad(run, has_aux=True)(variables)
    return gradient, loss, aux, coded


class Coded(NamedTuple):
    codes: tuple
    latents: np.ndarray
    decoded: np.ndarray
    of_codes: np.ndarray


def leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


@pytest.mark.parametrize("learned", ["ema", "gradient"])
def test_the_commitment_alone_is_weighted(learned):
    """|z - e|^2 has one value, whichever of both it moves."""
    _, system, variables = built(codes__learned=learned)
    _, loss, aux, coded = graded(codes__learned=learned)
    book = books(system, variables)[0]
    distance = ((coded.latents[..., None, :] - book[None, None, None]) ** 2).sum(-1).min(-1).mean(axis=(1, 2)) / 4
    np.testing.assert_allclose(aux.metrics["commitment"], distance, rtol=1e-4)
    weight = 0.25 + (learned == "gradient")
    np.testing.assert_allclose(loss, aux.metrics["reconstruction"] + weight * distance, rtol=1e-4)


def books(system, variables, level="level_0"):
    memory, params = variables["codes"][level], variables["params"]["model"]["codes"][level]
    return codebook.means(memory) if "sums" in memory else params["books"] + memory["shift"]


THREE = {"base": "vqvae2", "model__coarser_factors": (2, 2), "codes__learned": "gradient"}


@pytest.mark.parametrize("changes", [{"codes__learned": "ema"}, {"codes__learned": "gradient"}, THREE])
def test_gradients_reach_every_parameter(changes):
    gradient = graded(**changes)[0]
    for path, leaf in leaves(gradient["params"]):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    for path, leaf in leaves(gradient["codes"]):  # what is remembered is not learned by gradients
        assert "shift" in str(path) or not np.abs(leaf).any(), path


def test_running_means_are_no_parameters_and_learned_codes_are():
    own, memory = {}, {}
    for learned in ("ema", "gradient"):
        variables = built(codes__learned=learned)[2]
        own[learned], memory[learned] = variables["params"]["model"]["codes"], variables["codes"]["level_0"]
    assert jax.tree.leaves(own["ema"]) == []
    assert own["gradient"]["level_0"]["books"].shape == memory["ema"]["sums"].shape == (1, 8, 4)
    assert memory["gradient"].keys() == {"counts", "seen", "shift"}
    gradient, _, _, coded = graded(codes__learned="gradient")
    rows = np.abs(gradient["params"]["model"]["codes"]["level_0"]["books"][0]).max(axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(rows), np.unique(coded.codes[0]))  # it learns from what it stands for


def test_the_encoder_is_told_what_the_decoder_is():
    """Straight through: without a commitment, what the encoder learns is the reconstruction's gradient at the codes."""
    config, _, variables = built()
    system = models.build(tiny.config("vqvae", codes__commitment=0.0), SPEC)
    levels = Levels.from_config(config, SPEC, make_quantizer(config))
    params, memory = variables["params"]["model"], variables["codes"]

    @jax.jit
    def both(encoder):
        def loss(encoder):
            model = {**params, "encoder": encoder}
            return loss_of(system, {**variables, "params": {"model": model}})[0].mean()

        vectors = levels.encode(params, memory, X)[1][0].vectors
        at_codes = jax.grad(lambda z: ((X - levels.coder.reconstruct(params, z)) ** 2 / 0.2).mean())(vectors)
        _, pull = jax.vjp(lambda encoder: levels.coder.encode({**params, "encoder": encoder}, X), encoder)
        return jax.grad(loss)(encoder), pull(at_codes)[0]

    ours, expected = both(params["encoder"])
    for (path, found), (_, wanted) in zip(leaves(ours), leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6, err_msg=str(path))


KINDS = {
    "vq": ({"codes__learned": "ema"}, ((4, 4, 1),), 8),
    "product of directions": (
        {"codes__kind": "product", "codes__depth": 2, "codes__cosine": True},
        ((4, 4, 2),),
        8,
    ),
    "fsq": ({"codes__kind": "fsq", "codes__levels": (4, 5, 3, 6)}, ((4, 4, 1),), 360),
    "residual on two levels": (
        {"base": "vqvae2", "codes__kind": "residual", "codes__depth": 2},
        ((2, 2, 2), (4, 4, 2)),
        8,
    ),
    "three levels": (THREE, ((1, 1, 1), (2, 2, 1), (4, 4, 1)), 8),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_codes_go_there_and_back(kind):
    changes, grids, vocabulary = KINDS[kind]
    _, system, variables = built(**changes)
    _, loss, aux, coded = graded(**changes)
    codec = system.codec(variables)
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
    error = ((X - coded.of_codes) ** 2 / 0.2).mean(axis=(1, 2, 3))  # training sees what the codec gives
    np.testing.assert_allclose(aux.metrics["reconstruction"], error, rtol=1e-3)
    assert np.isfinite(loss).all()


@pytest.mark.parametrize("base", ["vqvae", "vqvae2"])
def test_latents_have_unit_variance(base):
    """Those before quantisation, where there is one level; what the decoder is given, where there are more."""
    _, system, variables = built(base)

    @jax.jit
    def run(variables):
        after = {**loss_of(system, variables, step=0)[1].variables, "codes": variables["codes"]}
        codec = system.codec({**variables, **after})
        return codec.encode(X), codec.scale

    z, scale = run(variables)
    assert abs(scale - 1) > 0.1
    np.testing.assert_allclose(z.std(), 1.0, rtol=1e-3)


def test_each_level_hears_those_above_it_and_none_below():
    _, system, variables = built(**THREE)
    to_codes = jax.jit(lambda variables: system.codec(variables).to_codes(X)[::-1])  # the finest first
    before, names = to_codes(variables), sorted(variables["codes"])
    assert names == ["level_0", "level_1", "level_2"]
    for changed, name in enumerate(names):
        memory = variables["codes"][name]
        other = {**memory, "shift": 300 * np.random.default_rng(0).normal(size=(1, 8, 4)).astype(np.float32)}
        after = to_codes({**variables, "codes": {**variables["codes"], name: other}})
        for level in range(3):
            same = np.array_equal(before[level], after[level])
            assert same == (level > changed), (changed, level)


@pytest.mark.parametrize("changes", [{"base": "vqvae2"}, {"codes__learned": "gradient"}])
def test_a_run_begins_with_codes_of_its_data(changes):
    """Every code is a latent of the first batch, and so most are in use; below, given what the levels above found."""
    config, system, variables = built(**changes)
    fitted = system.objective.prepare(variables, BATCH)
    levels = Levels.from_config(config, SPEC, make_quantizer(config))
    z, found, _ = jax.jit(levels.encode)(fitted["params"]["model"], fitted["codes"], X)
    for level, name in enumerate(levels.names):
        distance = np.abs(z[level][..., None, :] - books(system, fitted, name)[0][None, None, None]).max(axis=-1)
        assert distance.min(axis=(0, 1, 2)).max() < 1e-5
        assert len(np.unique(found[level].codes)) == 8  # at least as the one that it was
    for name in ("encoder", "decoder"):
        assert fitted["params"]["model"][name] is variables["params"]["model"][name]


def test_only_a_run_that_asks_for_it_is_prepared():
    assert models.build(tiny.config("vqvae", codes__initial="normal"), SPEC).objective.prepare is None


def trained(steps, spoil, **changes):
    """The system, its last state, and the steps' metrics, of a run on one batch; four steps are an epoch."""
    config = tiny.config("vqvae", codes__size=32, codes__initial="normal", **changes)
    system = models.build(config, SPEC)
    optimizers = {"model": optax.adam(1e-3)}
    fresh = spoil(tiny.randomised(system.objective.init))
    objective = system.objective._replace(init=lambda key: fresh)
    state = jax.jit(functools.partial(initial_state, objective, optimizers))(jax.random.key(0))
    step = jax.jit(make_step(system.objective, optimizers, key=jax.random.key(1), ema_decay=0.9, examples=24))
    history = []
    for _ in range(steps):
        state, metrics = step(state, BATCH)
        history.append({name: float(value) for name, value in metrics.items()})
    return system, state, history


def far_away(variables):
    """Books a hundred times too large."""
    memory, params = variables["codes"]["level_0"], variables["params"]["model"]
    if "sums" in memory:
        return {**variables, "codes": {"level_0": {**memory, "sums": 100 * memory["sums"]}}}
    books = {"level_0": {"books": 100 * params["codes"]["level_0"]["books"]}}
    return {**variables, "params": {"model": {**params, "codes": books}}}


def test_a_collapsed_codebook_stays_so_and_is_warned_of():
    system, _, history = trained(24, far_away, codes__restart_below=0.0, codes__decay=0.7)
    for step in history:
        assert step["codes_used"] == 1 / 32
        np.testing.assert_allclose(step["perplexity"], 1.0, rtol=1e-5)
        warning = system.objective.warn(step)
        assert "collapsed" in warning
        assert "codes.restart_below" in warning
        assert "\n" not in warning
    assert system.objective.warn({**history[-1], "codes_used": 0.3}) is None


@pytest.mark.parametrize("learned", ["ema", "gradient"])
def test_a_collapsed_codebook_recovers_by_restarts(learned):
    options = {"codes__restart_below": 0.1, "codes__decay": 0.7, "codes__learned": learned}
    system, state, history = trained(24, far_away, **options)
    assert history[0]["codes_used"] == 1 / 32
    assert sum(step["restarts"] for step in history) >= 31
    assert history[-1]["codes_used"] > 0.5
    assert history[-1]["perplexity"] > 8
    assert all(system.objective.warn(step) is None for step in history)  # it is being seen to
    # Uses are counted, as shares, since the last epoch began: 4 steps ago.
    np.testing.assert_allclose(state.variables["codes"]["level_0"]["seen"].sum(), 4.0, rtol=1e-5)


def test_running_means_follow_the_latents():
    """Where the encoder stands still, a code tends to the mean of what it stands for."""
    _, system, variables = built(codes__decay=0.5)

    @jax.jit
    def run(variables):
        still = {name: tree for name, tree in variables.items() if name != "codes"}
        learn = lambda _, codes: loss_of(system, {**still, "codes": codes})[1].variables["codes"]  # noqa: E731
        codes = lax.fori_loop(0, 40, learn, variables["codes"])
        codec = system.codec({**still, "codes": codes})
        return codes, codec.encode(X) / codec.scale, codec.to_codes(X)[0]

    memory, z, codes = jax.device_get(run(variables))
    z, codes, book = z.reshape(-1, 4), codes.reshape(-1), books(system, {**variables, "codes": memory})[0]
    assert len(np.unique(codes)) > 2
    for code in np.unique(codes):
        np.testing.assert_allclose(book[code], z[codes == code].mean(axis=0), rtol=1e-3, atol=1e-4)


def test_the_average_begins_at_the_prepared_parameters():
    _, system, variables = built(codes__learned="gradient")
    optimizers = {"model": optax.adam(1e-3)}
    objective = system.objective._replace(init=lambda key: {n: v for n, v in variables.items() if n != "frozen"})
    state = prepared(system, initial_state(objective, optimizers, jax.random.key(0)), BATCH)
    before, after = (v["params"]["model"]["codes"]["level_0"]["books"] for v in (variables, state.variables))
    assert np.abs(after - before).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, state.ema, state.variables["params"])


@pytest.mark.parametrize(
    ("base", "changes", "spec", "message"),
    [
        ("vqvae", {"codes__kind": "residuals"}, SPEC, "did you mean 'residual'"),
        ("vqvae", {"codes__learned": "emma"}, SPEC, "did you mean 'ema'"),
        ("vqvae", {"codes__initial": "kmean"}, SPEC, "did you mean 'kmeans'"),
        ("vqvae", {"codes__size": 1}, SPEC, "codes.size=1: a whole number from 2"),
        ("vqvae", {"codes__decay": 1.0}, SPEC, "up to, but not, 1"),
        ("vqvae", {"codes__commitment": -1.0}, SPEC, "a finite weight from 0"),
        ("vqvae", {"codes__kind": "product", "codes__depth": 3}, SPEC, "depth=3 does not divide"),
        ("vqvae", {"codes__depth": 4}, SPEC, "codes.depth=4: must be 1 for codes.kind=vq"),
        ("vqvae", {"codes__shared": True}, SPEC, "codes.shared=True: is only supported for codes.kind=residual"),
        ("vqvae", {"codes__kind": "residual", "codes__depth": 0}, SPEC, "codes.depth=0: a whole number from 1"),
        ("vqvae", {"codes__kind": "residual", "codes__cosine": True}, SPEC, "not with kind=residual"),
        ("vqvae", {"codes__kind": "fsq", "codes__levels": (8, 5)}, SPEC, "model.latent_channels=4"),
        ("vqvae", {"codes__kind": "fsq", "codes__levels": (8, 5, 5, 1)}, SPEC, "codes.levels=1: a whole number from 2"),
        ("vqvae", {"model__factor": 4}, ImageSpec(6, 1, 0), "not a multiple of 4"),
        ("vqvae2", {"model__z_channels": 0}, SPEC, "model.z_channels"),
        ("vqvae2", {"model__coarser_factors": (2, 4)}, SPEC, "a grid of 2x2 codes is not a multiple of 4"),
    ],
)
def test_what_does_not_fit_is_refused(base, changes, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config(base, **changes), spec)
    assert "\n" not in str(caught.value)
