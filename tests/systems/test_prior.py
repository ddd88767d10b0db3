"""Priors over codes: what they see, what they draw, and the trained run that they stand on."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

import diffjax
from diffjax import commands, systems
from diffjax.errors import UserError
from diffjax.generate import Generator
from diffjax.systems.pixels import to_unit_range
from diffjax.systems.prior import PixelCNNPrior, TransformerPrior
from diffjax.train.state import initial_state
from diffjax.train.step import make_step
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
BATCH = tiny.batch()
LN2 = np.log(2.0)


@functools.cache
def codec_of(base, **changes):
    """A frozen autoencoder, untrained: system and variables."""
    system = systems.build(tiny.config(base, **changes), SPEC)
    variables = {**tiny.randomised(system.objective.init), "frozen": {}}
    variables["params"]["model"]["encoder"]["conv_out"]["kernel"] *= 5  # so that codes are many
    return system, variables


PRIORS = {"pixelcnn": ("vqvae", PixelCNNPrior), "transformer": ("vqvae2", TransformerPrior)}


@functools.cache
def built(name, **changes):
    """(config, system, variables, the model of the codes)."""
    base, model = PRIORS[name]
    config = tiny.config(f"prior_{name}", **changes)
    autoencoder, frozen = codec_of(base)
    system = systems.build(config, SPEC, codec=(autoencoder, frozen))
    variables = {**tiny.randomised(system.objective.init), "frozen": system.frozen}
    return config, system, variables, model.from_config(config, autoencoder.codec(frozen), 10)


def codes_of(name):
    autoencoder, frozen = codec_of(PRIORS[name][0])
    return jax.jit(lambda x: autoencoder.codec(frozen).to_codes(x))(to_unit_range(BATCH["image"]))


def flat(codes):
    return np.concatenate([np.asarray(level).reshape(len(level), -1) for level in codes], axis=1)


def unflat(codes, grids):
    parts = np.split(codes, np.cumsum([np.prod(grid) for grid in grids])[:-1], axis=1)
    return tuple(jnp.asarray(part.reshape(-1, *grid)) for part, grid in zip(parts, grids, strict=True))


@functools.cache
def loss_of(name):
    """(variables) -> loss, aux."""
    keys, losses = jax.random.split(jax.random.key(3), 6), built(name)[1].objective.losses
    return jax.jit(lambda variables: losses["model"](variables, BATCH, keys, tiny.moment()))


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_an_untrained_prior_finds_all_codes_equally_likely(name):
    _, system, variables, _ = built(name)
    fresh = jax.jit(system.objective.init)(jax.random.key(0))
    loss, aux = loss_of(name)({**variables, **fresh})
    np.testing.assert_allclose(aux.metrics["bits_per_code"], np.log2(8), rtol=1e-6)
    np.testing.assert_allclose(loss, np.log(8), rtol=1e-6)
    count = {"pixelcnn": 16, "transformer": 4 + 16}[name]
    np.testing.assert_allclose(aux.metrics["bits_per_dim"], 3 * count / 64, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_the_likelihood_is_the_loss(name):
    _, system, variables, model = built(name)
    loss, aux = loss_of(name)(variables)
    bits = jax.jit(system.likelihood, static_argnums=3)(variables, jax.random.split(jax.random.key(9), 6), BATCH, 1)
    np.testing.assert_allclose(bits["bits_per_code"], loss / LN2, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["bits_per_code"], loss / LN2, rtol=1e-5)
    np.testing.assert_allclose(bits["codes"], aux.metrics["bits_per_dim"], rtol=1e-5)
    nats = jax.jit(model.nll)(variables["params"]["model"], codes_of(name), BATCH["label"], None)
    np.testing.assert_allclose(loss, nats.mean(axis=-1), rtol=1e-5)
    assert np.abs(loss - np.log(8)).min() > 1e-3


@functools.cache
def scored(name):
    """-log p of every code, [B, N]: (codes [B, N], labels) -> nats."""
    _, _, variables, model = built(name)
    run = jax.jit(lambda codes, label: model.nll(variables["params"]["model"], codes, label, None))
    return lambda codes, label: np.asarray(run(unflat(codes, model.grids), jnp.asarray(label)))


def by_alternatives(name, codes, label):
    """log p of every value a code may have, given those before it: [B, N, K], by scoring all of them."""
    batch, count = codes.shape
    every = np.broadcast_to(codes[:, None, None], (batch, count, 8, count)).copy()
    place = np.arange(count)
    every[:, place, :, place] = np.arange(8)
    nats = scored(name)(every.reshape(-1, count), np.repeat(label, count * 8)).reshape(batch, count, 8, count)
    return -nats[:, place, :, place].transpose(1, 0, 2)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_each_code_is_a_distribution_given_those_before(name):
    log_p = by_alternatives(name, flat(codes_of(name))[:2], BATCH["label"][:2])
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_no_code_sees_its_future_and_all_hear_the_label(name):
    codes, label = flat(codes_of(name))[:1], BATCH["label"][:1]
    count = codes.shape[1]
    changed = np.repeat(codes, count, axis=0)
    changed[np.arange(count), np.arange(count)] = (changed[np.arange(count), np.arange(count)] + 3) % 8
    before, after = scored(name)(codes, label), scored(name)(changed, np.repeat(label, count))
    moved = np.abs(after - before) > 1e-6  # [code that was changed, code that is scored]
    assert not moved[np.tril_indices(count, -1)].any()
    assert moved[np.arange(count), np.arange(count)].all()
    later = np.triu_indices(count, 1)
    assert moved[later].all() if name == "transformer" else moved[np.arange(count - 1), np.arange(1, count)].any()
    for code in range(1, count):
        assert moved[:code, code].any(), code  # each sees some before it
    other = scored(name)(codes, label + 1)
    assert (np.abs(other - before) > 1e-6).all()


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_codes_are_drawn_with_the_probabilities_they_are_scored_with(name):
    """Again by each code's key, and by the greatest probability, from what teacher forcing says of the result."""
    _, _, variables, model = built(name)
    keys, label = jax.random.split(jax.random.key(0), 2), jnp.array([3, 7])
    categorical = jax.vmap(jax.random.categorical)
    greedy = lambda keys, logits: jnp.argmax(logits, axis=-1)  # noqa: E731
    for pick in (categorical, greedy):
        drawn = jax.jit(functools.partial(model.draw, pick=pick))(variables["params"]["model"], keys, label)
        assert tuple(level.shape[1:] for level in drawn) == model.grids
        codes = flat(drawn)
        log_p = by_alternatives(name, codes, np.asarray(label))
        first = {"pixelcnn": 0, "transformer": 1}[name]  # the label's start has position 0
        for place in range(codes.shape[1]):
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys, place + first)
            np.testing.assert_array_equal(pick(folded, jnp.asarray(log_p[:, place])), codes[:, place])
        if pick is categorical:
            assert len(np.unique(codes)) > 4
            assert (codes[0] != codes[1]).any()


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_a_sample_depends_on_its_seed_alone(name):
    config, system, variables, _ = built(name)
    of_three = {"label": np.full(8, 3, np.int32)}
    by_24, by_8 = (Generator(system, batch_size=size) for size in (24, 8))
    condition, plan = {"label": np.arange(20, dtype=np.int32) % 10}, system.plan(config.sampler)
    whole, parts = (generator(variables, range(20), condition, plan).astype(int) for generator in (by_24, by_8))
    assert whole.shape == (20, 8, 8, 1)
    assert np.abs(whole - parts).max() <= 1  # a grey level: sums of another order round differently
    assert len(np.unique(whole.reshape(20, -1), axis=0)) == 20
    greedy = by_8(variables, range(50, 58), of_three, system.plan(config.sampler, top_k=1))
    assert (greedy == greedy[:1]).all()
    for setting in ({"top_k": 1}, {"temperature": 1e-6}, {"top_p": 1e-6}):
        sure = by_8(variables, range(8), of_three, system.plan(config.sampler, **setting))
        np.testing.assert_array_equal(sure, greedy)
    assert by_8.compilations == 1


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_the_autoencoder_is_frozen(name):
    """A step moves every parameter of the prior, and of the codec there are none; its variables are an input."""
    _, system, variables, _ = built(name)
    frozen = codec_of(PRIORS[name][0])[1]
    assert system.frozen["codec"] is frozen
    own = {n: tree for n, tree in variables.items() if n != "frozen"}
    assert own.keys() == {"params"}
    assert own["params"].keys() == {"model"}
    optimizers = {"model": optax.adam(1e-3)}
    objective = system.objective._replace(init=lambda key: own)
    state = jax.jit(functools.partial(initial_state, objective, optimizers))(jax.random.key(0))
    step = jax.jit(make_step(system.objective, optimizers, key=jax.random.key(1), ema_decay=0.9, examples=60))
    after, metrics = step(state, BATCH, system.frozen)
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.tree.map(jnp.subtract, after.variables, own)):
        assert np.abs(leaf).max() > 0, path
    spoiled = jax.tree.map(jnp.zeros_like, frozen["params"])
    _, others = step(state, BATCH, {"codec": {**frozen, "params": spoiled}})
    assert abs(others["loss"] - metrics["loss"]) > 1e-3


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_a_prior_without_labels_hears_none(name):
    base, model = PRIORS[name]
    config = tiny.config(f"prior_{name}", model__class_conditional=False)
    system = systems.build(config, SPEC, codec=codec_of(base))
    assert system.classes == 0
    params = tiny.randomised(system.objective.init)["params"]["model"]
    codec = codec_of(base)[0].codec(codec_of(base)[1])
    nll = jax.jit(functools.partial(model.from_config(config, codec, 0).nll, params, dropout_keys=None))
    codes = codes_of(name)
    np.testing.assert_array_equal(nll(codes, BATCH["label"]), nll(codes, 0 * BATCH["label"]))


@pytest.mark.parametrize(
    ("name", "base", "changes", "message"),
    [
        ("pixelcnn", "vqvae2", {}, "models one level"),
        ("pixelcnn", "residual", {}, "choose transformer"),
        ("transformer", "vae", {}, "a Gaussian latent"),
        ("transformer", "vqvae2", {"model__architecture": "transfomer"}, "did you mean 'transformer'"),
        ("transformer", "vqvae2", {"model__heads": 3}, "heads"),
        ("transformer", "vqvae2", {"model__head": 2}, "did you mean 'heads'"),
        ("pixelcnn", "vqvae", {"model__kernel": 4}, "odd"),
        ("pixelcnn", "vqvae", {"sampler": {"topk": 3}}, "takes no 'topk'"),
        ("pixelcnn", None, {}, "--config.codec=WORKDIR"),
    ],
)
def test_what_does_not_fit_is_refused(name, base, changes, message):
    changed = {"codes__kind": "residual", "codes__depth": 2} if base == "residual" else {}
    codec = base and codec_of("vqvae" if changed else base, **changed)
    with pytest.raises(UserError, match=message) as caught:
        systems.build(tiny.config(f"prior_{name}", **changes), SPEC, codec=codec)
    assert "\n" not in str(caught.value)


def test_labels_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="set it to False"):
        systems.build(tiny.config("prior_pixelcnn"), ImageSpec(8, 1, 0), codec=codec_of("vqvae"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a trained VQ-VAE, a prior over its codes, and their config files."""
    folder = tmp_path_factory.mktemp("runs")
    common = {"parallel__count": 1, "train__sample_count": 8}
    tiny.write(folder / "vqvae.py", "vqvae", **common)
    tiny.write(folder / "prior.py", "prior_pixelcnn", codec=str(folder / "vqvae"), **common)
    for name in ("vqvae", "prior"):
        assert train(folder, name) == 0
    return folder


def train(folder, name, *others, workdir=None):
    return commands.main(
        ["launch.py", "train", f"--config={folder / name}.py", f"--workdir={folder / (workdir or name)}", *others]
    )


def test_runs_of_an_autoencoder_and_its_prior_open(runs):
    run, prior = diffjax.load(runs / "vqvae"), diffjax.load(runs / "prior")
    x = to_unit_range(diffjax.workdir.open_source(run.config, "test")[0]["image"][None])
    codes = run.codec.to_codes(x)
    assert codes[0].shape == (1, 4, 4, 1)
    np.testing.assert_allclose(run.codec.decode(run.codec.encode(x)), run.codec.from_codes(codes), atol=1e-5)
    assert (runs / "vqvae" / "samples" / "reconstruction_00000004.png").exists()
    assert (runs / "prior" / "samples" / "step_00000004.png").exists()
    assert prior.step == 4
    assert prior.parameters == sum(leaf.size for leaf in jax.tree.leaves(prior.variables["params"]))
    jax.tree.map(np.testing.assert_array_equal, prior.variables["frozen"]["codec"], run.variables)
    with pytest.raises(UserError, match="no autoencoder"):
        _ = prior.codec


def test_a_prior_continues(runs, capsys):
    assert train(runs, "prior", "--config.train.steps=5") == 0
    assert "continuing at step 4" in capsys.readouterr().out


ERRORS = {
    "no codec": ("prior", ["--config.codec="], "set --config.codec=WORKDIR"),
    "codec that is not there": ("prior", ["--config.codec=nowhere"], "nowhere is not a run"),
    "codec that is none": ("prior", ["--config.codec=RUNS/prior"], "a run of system=prior, which is no autoencoder"),
    "codec of other images": (
        "prior",
        ["--config.data.image_size=16"],
        "was trained on 8x8 images of 1 channels, and digits here has 16x16 of 1: they must agree",
    ),
    "size that does not divide": ("vqvae", ["--config.model.factor=16"], "is not a multiple of 16"),
    "features that are not there": ("vqvae", ["--config.loss.perceptual_file=nowhere.pth"], "nowhere.pth"),
}


@pytest.mark.parametrize("case", sorted(ERRORS))
def test_bad_parts_are_one_clear_line(case, runs, capsys):
    name, others, message = ERRORS[case]
    code = train(runs, name, *(other.replace("RUNS", str(runs)) for other in others), workdir="none")
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (runs / "none").exists()


@pytest.mark.parametrize("override", ["codes.size=16", "codes.learned=gradient"])
def test_a_codebook_that_does_not_fit_the_checkpoint_is_one_clear_line(override, runs, capsys):
    code = commands.main(
        [
            "launch.py", "train", f"--workdir={runs / 'vqvae'}", "--overwrite",
            f"--config.{override}", "--config.train.steps=9",
        ]
    )  # fmt: skip
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert diffjax.load(runs / "vqvae").step >= 4  # the run is as it was
