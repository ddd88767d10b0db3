"""Priors over codes: what they see, what they draw, and the trained run that they stand on."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

import diffjax
from diffjax import cli, models
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import Generator
from diffjax.models.autoregressive.prefix import Caption, Label, Nothing, Told
from diffjax.models.autoregressive.token_models import PixelCNNPrior, TransformerPrior
from diffjax.models.pixels import to_unit_range
from diffjax.runs.loading import open_source
from diffjax.runs.state import initial_state
from diffjax.training.step import make_step
from diffjax.typing import ImageSpec, TextSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
BATCH = tiny.batch()
LN2 = np.log(2.0)


@functools.cache
def codec_of(base, **changes):
    """A frozen autoencoder, untrained: system and variables."""
    system = models.build(tiny.config(base, **changes), SPEC)
    variables = {**tiny.randomised(system.objective.init), "frozen": {}}
    variables["params"]["model"]["encoder"]["conv_out"]["kernel"] *= 5  # so that codes are many
    return system, variables


TEXT = {"tokenizer": "", "vocabulary": 300, "length": 6}
READS = {"text": TEXT, "model__condition": "text", "model__condition_dropout": 0.2, "loss": {"text_weight": 1 / 8}}
SPARSE = {"model__layers": 4, "model__masks": ("row", "column"), "model__last_mask": "convolution"}
# codec, model, config file, changes, condition; DALL-E's network has DALL-E's masks
PRIORS = {
    "pixelcnn": ("vqvae", PixelCNNPrior, "prior_pixelcnn", {"model__condition_dropout": 0.2}, Label(10)),
    "transformer": ("vqvae2", TransformerPrior, "prior_transformer", {}, Label(10)),
    "dalle": ("vqvae", TransformerPrior, "prior_transformer", READS | SPARSE, Caption(TextSpec(6, 300))),
}
BY_LABEL = ["pixelcnn", "transformer"]


@functools.cache
def built(name, **changes):
    """(config, system, variables, the model of the codes)."""
    base, model, file, own, condition = PRIORS[name]
    config = tiny.config(file, **own | changes)
    autoencoder, frozen = codec_of(base)
    system = models.build(config, SPEC, codec=(autoencoder, frozen))
    variables = {**tiny.randomised(system.objective.init), "frozen": system.frozen}
    if name == "dalle":
        variables["params"]["model"]["condition"]["token"] *= 20  # so that words count for something
    return config, system, variables, model.from_config(config, autoencoder.codec(frozen), condition)


def codes_of(name):
    autoencoder, frozen = codec_of(PRIORS[name][0])
    return jax.jit(lambda x: autoencoder.codec(frozen).to_codes(x))(to_unit_range(BATCH["image"]))


def values_of(name):
    """What the prior is told."""
    return BATCH["tokens" if name == "dalle" else "label"]


def others_than(values):
    """Of the same form, and different everywhere that counts."""
    return np.where(values > 1, values - 1, values) if values.ndim > 1 else (values + 1) % 10


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
    nats = np.log(8) if name != "dalle" else 7 / 8 * np.log(8) + 1 / 8 * np.log(300 + 6)
    np.testing.assert_allclose(loss, nats, rtol=1e-6)
    count = {"pixelcnn": 16, "transformer": 4 + 16, "dalle": 16}[name]
    np.testing.assert_allclose(aux.metrics["bits_per_dim"], 3 * count / 64, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_the_likelihood_is_the_loss(name):
    _, system, variables, model = built(name, model__condition_dropout=0.0)
    keys = jax.random.split(jax.random.key(3), 6)
    loss, aux = jax.jit(lambda v: system.objective.losses["model"](v, BATCH, keys, tiny.moment()))(variables)
    bits = jax.jit(system.likelihood, static_argnums=3)(variables, jax.random.split(jax.random.key(9), 6), BATCH, 1)
    nats = jax.jit(model.nll)(variables["params"]["model"], codes_of(name), values_of(name), None)
    codes = nats["codes"].mean(axis=-1)
    np.testing.assert_allclose(bits["bits_per_code"], codes / LN2, rtol=1e-5)
    np.testing.assert_allclose(aux.metrics["bits_per_code"], codes / LN2, rtol=1e-5)
    np.testing.assert_allclose(bits["codes"], aux.metrics["bits_per_dim"], rtol=1e-5)
    expected = codes
    if name == "dalle":  # each kind by its mean
        assert nats["text"].shape == (6, 5)
        np.testing.assert_allclose(bits["bits_per_token"], nats["text"].mean(axis=-1) / LN2, rtol=1e-5)
        expected = 7 / 8 * codes + 1 / 8 * nats["text"].mean(axis=-1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert np.abs(codes - np.log(8)).max() > 1e-2


@functools.cache
def scored(name):
    """-log p of every code, [B, N]: (codes [B, N], what the prior is told) -> nats."""
    _, _, variables, model = built(name)
    run = jax.jit(lambda codes, values: model.nll(variables["params"]["model"], codes, values, None)["codes"])
    return lambda codes, values: np.asarray(run(unflat(codes, model.grids), jnp.asarray(values)))


def by_alternatives(name, codes, values):
    """log p of every value a code may have, given those before it: [B, N, K], by scoring all of them."""
    batch, count = codes.shape
    every = np.broadcast_to(codes[:, None, None], (batch, count, 8, count)).copy()
    place = np.arange(count)
    every[:, place, :, place] = np.arange(8)
    nats = scored(name)(every.reshape(-1, count), np.repeat(values, count * 8, axis=0)).reshape(batch, count, 8, count)
    return -nats[:, place, :, place].transpose(1, 0, 2)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_each_code_is_a_distribution_given_those_before(name):
    log_p = by_alternatives(name, flat(codes_of(name))[:2], values_of(name)[:2])
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_no_code_sees_its_future_and_all_hear_the_condition(name):
    codes, values = flat(codes_of(name))[:1], values_of(name)[3:4]
    count = codes.shape[1]
    codes, values = np.repeat(codes, count, axis=0), np.repeat(values, count, axis=0)  # rows round as in one program
    changed = codes.copy()
    changed[np.arange(count), np.arange(count)] = (changed[np.arange(count), np.arange(count)] + 3) % 8
    before, after = scored(name)(codes, values), scored(name)(changed, values)
    moved = np.abs(after - before) > 1e-6  # [code that was changed, code that is scored]
    assert not moved[np.tril_indices(count, -1)].any()
    assert moved[np.arange(count), np.arange(count)].all()
    later = np.triu_indices(count, 1)
    assert moved[later].all() if name == "transformer" else moved[np.arange(count - 1), np.arange(1, count)].any()
    for code in range(1, count):
        assert moved[:code, code].any(), code  # each sees some before it
    other = scored(name)(codes, others_than(values))
    assert (np.abs(other - before) > 1e-6).all()


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_codes_are_drawn_with_the_probabilities_they_are_scored_with(name):
    """Again by each code's key, and by the greatest probability, from what teacher forcing says of the result."""
    _, _, variables, model = built(name)
    keys, values = jax.random.split(jax.random.key(0), 2), jnp.asarray(values_of(name)[3:5])
    none = jnp.zeros((2, 0), jnp.int32)
    categorical = jax.vmap(jax.random.categorical)
    greedy = lambda keys, logits: jnp.argmax(logits, axis=-1)  # noqa: E731
    for pick in (categorical, greedy):
        drawn = jax.jit(functools.partial(model.draw, pick=pick))(
            variables["params"]["model"], keys, values, known=none
        )
        assert tuple(level.shape[1:] for level in drawn) == model.grids
        codes = flat(drawn)
        log_p = by_alternatives(name, codes, np.asarray(values))
        first = {"pixelcnn": 0, "transformer": 1, "dalle": 6}[name]  # where the codes begin
        for place in range(codes.shape[1]):
            folded = jax.vmap(jax.random.fold_in, (0, None))(keys, place + first)
            np.testing.assert_array_equal(pick(folded, jnp.asarray(log_p[:, place])), codes[:, place])
        if pick is categorical:
            assert len(np.unique(codes)) > 4
            assert (codes[0] != codes[1]).any()


@pytest.mark.parametrize("name", BY_LABEL)
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


def test_a_text_decides_what_is_drawn_and_a_seed_the_rest():
    config, system, variables, _ = built("dalle")
    by_6, by_4 = (Generator(system, batch_size=size) for size in (6, 4))
    condition = {name: BATCH[name] for name in ("label", "tokens")}
    plan = system.plan(config.sampler)
    whole, parts = (generator(variables, range(6), condition, plan).astype(int) for generator in (by_6, by_4))
    assert np.abs(whole - parts).max() <= 1
    others = by_6(variables, range(6), {**condition, "tokens": others_than(BATCH["tokens"])}, plan)
    assert (whole[1:] != others[1:]).any(axis=(1, 2, 3)).sum() >= 4
    greedy = system.plan(config.sampler, top_k=1)
    same = {"label": condition["label"], "tokens": np.tile(BATCH["tokens"][3:4], (6, 1))}
    drawn = by_6(variables, range(6), same, greedy)
    assert (drawn == drawn[:1]).all()
    assert by_6.compilations == 1


@pytest.mark.parametrize("name", ["pixelcnn", "dalle"])
def test_guidance_leads_from_the_withheld_condition_to_the_given_one(name):
    """At scale 1 the pictures of no guidance, at 0 those of the condition withheld: drawn by the same keys."""
    config, system, variables, model = built(name)
    draw = jax.jit(lambda values, plan: system.sample(variables, KEYS, {**BATCH, FIELD[name]: values}, plan))
    values = jnp.asarray(values_of(name))
    withheld = model.condition.withheld(values)
    plain = draw(values, system.plan(config.sampler))
    near_one, zero, two = (draw(values, system.plan(config.sampler, guidance=scale)) for scale in (1 + 1e-6, 0.0, 2.0))
    np.testing.assert_allclose(near_one, plain, atol=1e-5)
    np.testing.assert_allclose(zero, draw(withheld, system.plan(config.sampler)), atol=1e-5)
    assert np.abs(two - plain).max() > 0.1 and np.abs(zero - plain).max() > 0.1


KEYS, FIELD = jax.random.split(jax.random.key(5), 6), {"pixelcnn": "label", "dalle": "tokens"}


@pytest.mark.parametrize("name", ["pixelcnn", "dalle"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_picture_is_completed_from_its_first_rows(name, guidance):
    config, system, variables, _ = built(name)
    given = {**BATCH, "image": to_unit_range(BATCH["image"])}
    plan = system.plan(config.sampler, kept=0.5, guidance=guidance)
    autoencoder, frozen = codec_of(PRIORS[name][0])
    seen = []
    spied = autoencoder._replace(
        codec=lambda v: (c := autoencoder.codec(v))._replace(from_codes=lambda x: seen.append(x) or c.from_codes(x))
    )
    own = models.build(config, SPEC, codec=(spied, frozen))
    own.sample(variables, KEYS, given, plan)
    ((codes,),) = seen
    np.testing.assert_array_equal(codes[:, :2], codes_of(name)[0][:, :2])
    assert (codes[:, 2:] != codes_of(name)[0][:, 2:]).any()
    assert codes.shape == (6, 4, 4, 1)


def test_a_withheld_text_is_really_absent():
    """No gradient comes from the words, and one does from the start."""
    _, _, variables, model = built("dalle")
    params, values = variables["params"]["model"], jnp.asarray(BATCH["tokens"])
    codes = codes_of("dalle")

    def score(table):
        told = {**params, "condition": {**params["condition"], "token": table}}
        return model.nll(told, codes, model.condition.withheld(values), None)["codes"].sum()

    moved = np.abs(jax.grad(score)(params["condition"]["token"])).max(axis=1) > 0
    words = np.unique(values[values > 0])
    assert moved[0] and moved[301:306].all()  # the start, and no token at the places behind it
    assert not moved[words].any()


def test_each_place_has_a_padding_of_its_own():
    condition = Caption(TextSpec(6, 300))
    targets = np.asarray(condition.targets(jnp.asarray(BATCH["tokens"])))
    padded = BATCH["tokens"] < 0
    assert padded.any() and (targets[~padded] == BATCH["tokens"][~padded]).all()
    np.testing.assert_array_equal(targets[padded], np.broadcast_to(300 + np.arange(6), targets.shape)[padded])


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


@pytest.mark.parametrize("name", BY_LABEL)
def test_a_prior_without_labels_hears_none(name):
    base, model, file, _, _ = PRIORS[name]
    config = tiny.config(file, model__condition="none")
    system = models.build(config, SPEC, codec=codec_of(base))
    assert system.classes == 0
    params = tiny.randomised(system.objective.init)["params"]["model"]
    codec = codec_of(base)[0].codec(codec_of(base)[1])
    nll = jax.jit(functools.partial(model.from_config(config, codec, Nothing()).nll, params, dropout_keys=None))
    codes = codes_of(name)
    found = nll(codes, Nothing().of(Told(BATCH, None, codec, None))), nll(codes, Nothing().withheld(0 * BATCH["label"]))
    np.testing.assert_array_equal(*(nats["codes"] for nats in found))


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
        ("pixelcnn", "vqvae", {"model__condition": "labels"}, "did you mean 'label'"),
        ("pixelcnn", "vqvae", READS, "reads no captions word by word"),
        ("pixelcnn", "vqvae", {"model__condition": "clip"}, "--config.clip=WORKDIR"),
        ("pixelcnn", "vqvae", {"model__condition": "none", "model__condition_dropout": 0.1}, "set it to 0"),
        ("pixelcnn", "vqvae", {"model__condition_dropout": 1.0}, "a share from 0 up to"),
        ("pixelcnn", "vqvae", {"sampler": {"guidance": 2.0}}, "condition_dropout > 0"),
        ("pixelcnn", "vqvae", {"sampler": {"kept": 0.9}}, "its first 1 to 3 of 4 rows"),
        ("transformer", "vqvae2", {"sampler": {"kept": 0.5}}, "of one level"),
        ("transformer", "vqvae2", {"model__condition": "text"}, "no section text"),
        ("transformer", "vqvae2", READS | {"text": TEXT | {"vocabulary": 200}}, "256 bytes"),
        ("transformer", "vqvae2", READS | {"loss": {"text_weight": 1.0}}, "a share from 0 up to"),
        ("transformer", "vqvae2", {"model__masks": ("row",)}, "leave them ()"),
        ("transformer", "vqvae", {"model__masks": ("rows",)}, "choose from full, row"),
        ("transformer", "vqvae", {"model__masks": ("row",), "model__mask_kernel": 4}, "odd"),
        ("pixelcnn", None, {}, "--config.codec=WORKDIR"),
    ],
)
def test_what_does_not_fit_is_refused(name, base, changes, message):
    changed = {"codes__kind": "residual", "codes__depth": 2} if base == "residual" else {}
    codec = base and codec_of("vqvae" if changed else base, **changed)
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config(f"prior_{name}", **changes), SPEC, codec=codec)
    assert "\n" not in str(caught.value)


def test_labels_that_are_not_there_are_refused():
    with pytest.raises(UserError, match="choose none"):
        models.build(tiny.config("prior_pixelcnn"), ImageSpec(8, 1, 0), codec=codec_of("vqvae"))


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
    return cli.main(
        ["launch.py", "train", f"--config={folder / name}.py", f"--workdir={folder / (workdir or name)}", *others]
    )


def test_runs_of_an_autoencoder_and_its_prior_open(runs):
    run, prior = diffjax.load(runs / "vqvae"), diffjax.load(runs / "prior")
    x = to_unit_range(open_source(run.config, "test")[0]["image"][None])
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
    assert train(runs, "prior", "--config.train.steps=5", "--allow_config_change") == 0
    assert "continuing at step 4" in capsys.readouterr().out


ERRORS = {
    "no codec": ("prior", ["--config.codec="], "set --config.codec=WORKDIR"),
    "codec that is not there": ("prior", ["--config.codec=nowhere"], "nowhere is not a run"),
    "codec that is none": ("prior", ["--config.codec=RUNS/prior"], "a run of system=prior, which is no autoencoder"),
    "codec of other images": (
        "prior",
        ["--config.data.image_size=16"],
        "is of 8x8 images of 1 channels, and these are 16x16 of 1 (data.name, data.image_size): they must agree",
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
    code = cli.main(
        [
            "launch.py", "train", f"--workdir={runs / 'vqvae'}", "--allow_config_change",
            f"--config.{override}", "--config.train.steps=9",
        ]
    )  # fmt: skip
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert diffjax.load(runs / "vqvae").step >= 4  # the run is as it was
