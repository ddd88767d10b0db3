"""Priors over codes: causality, likelihood, sampling, guidance; and runs with a trained codec."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

import diffjax
from diffjax import cli, models
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.models.base import Autoencoder
from diffjax.models.condition_inputs import ConditionInputs
from diffjax.models.images import to_unit_range
from diffjax.models.priors.prefix import CaptionPrefix, ClassPrefix, NullPrefix
from diffjax.models.priors.token_models import PixelCNNPrior, TransformerPrior
from diffjax.models.priors.token_sequence import TokenSequence
from diffjax.runs.datasets import open_dataset
from diffjax.typing import ImageSpec, TextSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
BATCH = tiny.batch()
LN2 = np.log(2.0)


@functools.cache
def codec_of(base, **changes):
    """An untrained frozen autoencoder, with many codes in use."""
    model = models.build(tiny.config(base, **changes), SPEC)
    variables = {**tiny.randomised(model.init), "frozen": {}}
    variables["params"]["model"]["encoder"]["conv_out"]["kernel"] *= 5
    return model, variables


TEXT = {"tokenizer": "", "vocabulary": 300, "length": 6}
READS = {"text": TEXT, "model__condition": "text", "model__condition_dropout": 0.2, "loss": {"text_weight": 1 / 8}}
SPARSE = {"model__layers": 3, "model__masks": ("row", "column"), "model__last_mask": "convolution"}
GRID = {"model__rope": "grid"}
# codec, model, config file, changes, prefix; DALL-E has its own masks
PRIORS = {
    "pixelcnn": ("vqvae", PixelCNNPrior, "prior_pixelcnn", {"model__condition_dropout": 0.2}, ClassPrefix(10)),
    "transformer": ("vqvae2", TransformerPrior, "prior_transformer", {}, ClassPrefix(10)),
    "dalle": ("vqvae", TransformerPrior, "prior_transformer", READS | SPARSE | GRID, CaptionPrefix(TextSpec(6, 300))),
}
BY_LABEL = ["pixelcnn", "transformer"]


@functools.cache
def built(name):
    """(config, model, variables)."""
    base, _, file, changes, _ = PRIORS[name]
    config, codec = tiny.config(file, **changes), codec_of(base)
    model = models.build(config, SPEC, codec=codec)
    variables = {**tiny.randomised(model.init), "frozen": model.frozen}
    if name == "dalle":
        variables["params"]["model"]["condition"]["token"] *= 20  # so that the caption has an effect
    return config, model, variables


def token_model(name):
    return built(name)[1].token_model


@functools.cache
def codes_of(name):
    autoencoder, frozen = codec_of(PRIORS[name][0])
    return jax.jit(lambda x: autoencoder.codec(frozen).to_codes(x))(to_unit_range(BATCH["image"]))


def values_of(name):
    """Values of the condition."""
    return BATCH["tokens" if name == "dalle" else "label"]


def others_than(values):
    """Values of the same shape that differ everywhere."""
    return np.where(values > 1, values - 1, values) if values.ndim > 1 else (values + 1) % 10


def test_grid_positions_follow_the_text_and_are_those_of_the_finest_scale():
    found = TokenSequence(((1, 2, 1), (2, 4, 2)), 8, 16).grid_positions(3)
    fine = [[3 + row, 3 + column] for row in range(2) for column in range(4)]
    coarse = [[3.5, 3.5], [3.5, 5.5]]  # the centres of two squares of four
    np.testing.assert_array_equal(found, [[0, 0], [1, 1], [2, 2], *coarse, *np.repeat(fine, 2, axis=0)])


def flat(codes):
    return np.concatenate([np.asarray(level).reshape(len(level), -1) for level in codes], axis=1)


def unflat(codes, grids):
    parts = np.split(codes, np.cumsum([np.prod(grid) for grid in grids])[:-1], axis=1)
    return tuple(jnp.asarray(part.reshape(-1, *grid)) for part, grid in zip(parts, grids, strict=True))


@functools.cache
def computed(name):
    """(params, frozen) -> loss, metrics, its gradient, bits of the likelihood and nats, without condition dropout."""
    model = dataclasses.replace(built(name)[1], condition_dropout=0.0)
    keys, codes, values = jax.random.split(jax.random.key(3), 6), codes_of(name), values_of(name)

    @jax.jit
    def run(params, frozen):
        def mean(params):
            loss, aux = model.losses["model"]({"params": params, "frozen": frozen}, BATCH, keys, tiny.moment())
            return loss.mean(), (loss, aux.metrics)

        gradient, (loss, metrics) = jax.grad(mean, has_aux=True)(params)
        bits = model.likelihood({"params": params, "frozen": frozen}, keys[::-1], BATCH, 1)
        return loss, metrics, gradient, bits, model.token_model.nll(params["model"], codes, values, None)

    return lambda params, frozen: jax.device_get(run(params, frozen))


@functools.cache
def result(name):
    _, model, variables = built(name)
    return computed(name)(variables["params"], model.frozen)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PRIORS))
def test_an_untrained_prior_has_uniform_probabilities(name):
    _, model, variables = built(name)
    last = ("network",) if name == "pixelcnn" else ("head", "text_head")  # the parameters that start at zero
    init = jax.jit(lambda key: {n: p for n, p in model.init(key)["params"]["model"].items() if n in last})
    params = {"model": {**variables["params"]["model"], **init(jax.random.key(0))}}
    loss, metrics, *_ = computed(name)(params, model.frozen)
    np.testing.assert_allclose(metrics["bits_per_code"], np.log2(8), rtol=1e-6)
    nats = np.log(8) if name != "dalle" else 7 / 8 * np.log(8) + 1 / 8 * np.log(300 + 6)
    np.testing.assert_allclose(loss, nats, rtol=1e-6)
    count = {"pixelcnn": 16, "transformer": 4 + 16, "dalle": 16}[name]
    np.testing.assert_allclose(metrics["bits_per_dim"], 3 * count / 64, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_loss_and_likelihood_are_means_of_the_negative_log_likelihood(name):
    loss, metrics, _, bits, nats = result(name)
    codes = nats["codes"].mean(axis=-1)
    np.testing.assert_allclose(bits["bits_per_code"], codes / LN2, rtol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_code"], codes / LN2, rtol=1e-5)
    np.testing.assert_allclose(bits["codes"], metrics["bits_per_dim"], rtol=1e-5)
    expected = codes
    if name == "dalle":  # the mean of each modality
        assert nats["text"].shape == (6, 5)
        np.testing.assert_allclose(bits["bits_per_token"], nats["text"].mean(axis=-1) / LN2, rtol=1e-5)
        expected = 7 / 8 * codes + 1 / 8 * nats["text"].mean(axis=-1)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert np.abs(codes - np.log(8)).max() > 1e-2


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_gradients_reach_every_parameter_and_the_codec_is_frozen(name):
    """The codec's variables are an input of the loss and no parameters."""
    _, model, variables = built(name)
    frozen = codec_of(PRIORS[name][0])[1]
    assert model.frozen["codec"] is frozen
    assert variables.keys() - {"frozen"} == {"params"} and variables["params"].keys() == {"model"}
    loss, _, gradient, _, _ = result(name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, path
    spoiled = jax.tree.map(jnp.zeros_like, frozen["params"])
    other = computed(name)(variables["params"], {"codec": {**frozen, "params": spoiled}})[0]
    assert abs(other.mean() - loss.mean()) > 1e-3


@functools.cache
def scored(name):
    """(codes [N, L], values [N, ...]) -> -log p of every code, [N, L], in one compilation."""
    model, params = token_model(name), built(name)[2]["params"]["model"]
    run = jax.jit(lambda codes, values: model.nll(params, codes, values, None)["codes"])
    size = 2 * 8 * sum(int(np.prod(grid)) for grid in model.grids)

    def padded(codes, values):
        place = np.arange(size) % len(codes)
        return np.asarray(run(unflat(codes[place], model.grids), jnp.asarray(values[place])))[: len(codes)]

    return padded


def by_alternatives(name, codes, values):
    """log p of every value of each code, given the previous codes: [B, N, K], by scoring all of them."""
    batch, count = codes.shape
    every = np.broadcast_to(codes[:, None, None], (batch, count, 8, count)).copy()
    place = np.arange(count)
    every[:, place, :, place] = np.arange(8)
    nats = scored(name)(every.reshape(-1, count), np.repeat(values, count * 8, axis=0)).reshape(batch, count, 8, count)
    return -nats[:, place, :, place].transpose(1, 0, 2)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_each_code_has_a_distribution_given_the_previous(name):
    log_p = by_alternatives(name, flat(codes_of(name))[:2], values_of(name)[:2])
    np.testing.assert_allclose(np.exp(log_p).sum(axis=-1), 1.0, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_the_model_is_causal_and_conditioned(name):
    codes, values = flat(codes_of(name))[:1], values_of(name)[3:4]
    count = codes.shape[1]
    codes, values = np.repeat(codes, count, axis=0), np.repeat(values, count, axis=0)  # rows round as in one program
    changed = codes.copy()
    changed[np.arange(count), np.arange(count)] = (changed[np.arange(count), np.arange(count)] + 3) % 8
    before, after = scored(name)(codes, values), scored(name)(changed, values)
    moved = np.abs(after - before) > 1e-6  # [changed code, scored code]
    assert not moved[np.tril_indices(count, -1)].any()
    assert moved[np.arange(count), np.arange(count)].all()
    later = np.triu_indices(count, 1)
    assert moved[later].all() if name == "transformer" else moved[np.arange(count - 1), np.arange(1, count)].any()
    for code in range(1, count):
        assert moved[:code, code].any(), code  # each depends on some previous code
    other = scored(name)(codes, others_than(values))
    assert (np.abs(other - before) > 1e-6).all()


@pytest.mark.parametrize("name", sorted(PRIORS))
def test_codes_are_sampled_with_the_probabilities_they_are_scored_with(name):
    """Sampled again by each code's key, and greedily, from the log-likelihoods of the result."""
    model, params = token_model(name), built(name)[2]["params"]["model"]
    keys, values = jax.random.split(jax.random.key(0), 2), jnp.asarray(values_of(name)[3:5])

    @jax.jit
    def sample(greedy):
        def sample_token(keys, logits):
            return jnp.where(greedy, jnp.argmax(logits, axis=-1), jax.vmap(jax.random.categorical)(keys, logits))

        return model.sample(params, keys, values, sample_token, jnp.zeros((2, 0), jnp.int32))

    @jax.jit
    def sample_again(log_p, places):  # [B, N, K], [N]
        folded = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, places)
        return jax.vmap(jax.vmap(jax.random.categorical))(folded, log_p)

    first = {"pixelcnn": 0, "transformer": 1, "dalle": 6}[name]  # position of the first code
    for greedy in (False, True):
        levels = sample(greedy)
        assert tuple(level.shape[1:] for level in levels) == model.grids
        codes = flat(levels)
        log_p = by_alternatives(name, codes, np.asarray(values))
        repeated = log_p.argmax(axis=-1) if greedy else sample_again(log_p, first + np.arange(codes.shape[1]))
        np.testing.assert_array_equal(repeated, codes)
        if not greedy:
            assert len(np.unique(codes)) > 4
            assert (codes[0] != codes[1]).any()


@functools.cache
def sampler(name):
    config, model, variables = built(name)
    generate = SampleRunner(model, batch_size=8)

    def sample(seeds, conditions, **settings):
        images = generate(variables, seeds, conditions, model.make_settings(config.sampler, **settings))
        return images.astype(int)

    return generate, sample


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_LABEL)
def test_a_sample_depends_on_its_seed_and_label_alone(name):
    generate, sample = sampler(name)
    labels, order = np.arange(16, dtype=np.int32) % 10, np.random.default_rng(0).permutation(16)
    images, repeated = sample(np.arange(16), {"label": labels}), sample(order, {"label": labels[order]})
    assert images.shape == (16, 8, 8, 1)
    assert np.abs(images[order] - repeated).max() <= 1  # one grey level, by rounding
    assert len(np.unique(images.reshape(16, -1), axis=0)) == 16
    of_three = {"label": np.full(8, 3, np.int32)}
    greedy = sample(range(50, 58), of_three, top_k=1)
    assert (greedy == greedy[:1]).all()
    for setting in ({"top_k": 1}, {"temperature": 1e-6}, {"top_p": 1e-6}):
        np.testing.assert_array_equal(sample(range(8), of_three, **setting), greedy)
    assert generate.compilations == 1


def test_samples_depend_on_the_caption_and_the_seed():
    generate, sample = sampler("dalle")
    conditions = {name: BATCH[name] for name in ("label", "tokens")}
    images = sample(range(6), conditions)
    others = sample(range(6), {**conditions, "tokens": others_than(BATCH["tokens"])})
    assert (images[1:] != others[1:]).any(axis=(1, 2, 3)).sum() >= 4
    equal = {"label": conditions["label"], "tokens": np.tile(BATCH["tokens"][3:4], (6, 1))}
    greedy = sample(range(6), equal, top_k=1)
    assert (greedy == greedy[:1]).all()
    assert generate.compilations == 1


KEYS, FIELD = jax.random.split(jax.random.key(5), 6), {"pixelcnn": "label", "dalle": "tokens"}


@pytest.mark.parametrize("name", ["pixelcnn", pytest.param("dalle", marks=pytest.mark.slow)])
def test_guidance_interpolates_from_the_null_condition(name):
    """Scale 1 equals no guidance, scale 0 the null condition, with the same keys."""
    config, model, variables = built(name)
    sample = jax.jit(lambda values, settings: model.sample(variables, KEYS, {**BATCH, FIELD[name]: values}, settings))
    values = jnp.asarray(values_of(name))
    unguided = model.make_settings(config.sampler)
    conditional, unconditional = sample(values, unguided), sample(model.prefix.null(values), unguided)
    near_one, zero, two = (
        sample(values, model.make_settings(config.sampler, guidance=scale)) for scale in (1 + 1e-6, 0.0, 2.0)
    )
    np.testing.assert_allclose(near_one, conditional, atol=1e-5)
    np.testing.assert_allclose(zero, unconditional, atol=1e-5)
    assert np.abs(two - conditional).max() > 0.1 and np.abs(zero - conditional).max() > 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReturnsCodes(Autoencoder):
    """An autoencoder whose codec decodes codes to themselves."""

    autoencoder: Autoencoder

    def init(self, key):
        return self.autoencoder.init(key)

    @property
    def losses(self):
        return {}

    def codec(self, variables):
        return self.autoencoder.codec(variables)._replace(from_codes=lambda codes: codes[0])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "guidance"), [("pixelcnn", 1.0), ("dalle", 3.0)])
def test_an_image_is_completed_from_its_first_rows(name, guidance):
    config, model, variables = built(name)
    model = dataclasses.replace(model, autoencoder=ReturnsCodes(autoencoder=model.autoencoder))
    settings = model.make_settings(config.sampler, keep_fraction=0.5, guidance=guidance)
    conditions = {**BATCH, "image": to_unit_range(BATCH["image"])}
    codes, expected = jax.jit(model.sample)(variables, KEYS, conditions, settings), codes_of(name)[0]
    np.testing.assert_array_equal(codes[:, :2], expected[:, :2])
    assert (codes[:, 2:] != expected[:, 2:]).any()
    assert codes.shape == (6, 4, 4, 1)


def test_a_null_caption_does_not_depend_on_the_words():
    """No gradient reaches the embeddings of the words, but it reaches that of the start token."""
    model, params, values = token_model("dalle"), built("dalle")[2]["params"]["model"], jnp.asarray(BATCH["tokens"])
    codes = codes_of("dalle")

    def score(table):
        changed = {**params, "condition": {**params["condition"], "token": table}}
        return model.nll(changed, codes, model.prefix.null(values), None)["codes"].sum()

    moved = np.abs(jax.jit(jax.grad(score))(params["condition"]["token"])).max(axis=1) > 0
    words = np.unique(BATCH["tokens"][BATCH["tokens"] > 0])
    assert moved[0] and moved[301:306].all()  # the start token, and padding at the following positions
    assert not moved[words].any()


def test_each_position_has_its_own_padding_token():
    targets = np.asarray(CaptionPrefix(TextSpec(6, 300)).targets(jnp.asarray(BATCH["tokens"])))
    padded = BATCH["tokens"] < 0
    assert padded.any() and (targets[~padded] == BATCH["tokens"][~padded]).all()
    np.testing.assert_array_equal(targets[padded], np.broadcast_to(300 + np.arange(6), targets.shape)[padded])


@pytest.mark.parametrize("name", BY_LABEL)
def test_an_unconditional_prior_has_the_null_prefix(name):
    base, _, file, _, _ = PRIORS[name]
    model = models.build(tiny.config(file, model__condition="none"), SPEC, codec=codec_of(base))
    assert model.classes == 0 and model.prefix == NullPrefix()
    codec = codec_of(base)[0].codec(codec_of(base)[1])
    values = model.prefix.encode(ConditionInputs(BATCH, None, codec=codec))
    np.testing.assert_array_equal(values, model.prefix.null(0 * BATCH["label"]))  # the same for all labels


@pytest.mark.parametrize(
    ("name", "base", "changes", "message"),
    [
        ("pixelcnn", "vqvae2", {}, "is only supported for one scale"),
        ("pixelcnn", "residual", {}, "use transformer"),
        ("transformer", "vae", {}, "a Gaussian latent"),
        ("transformer", "vqvae2", {"model__architecture": "transfomer"}, "did you mean 'transformer'"),
        ("transformer", "vqvae2", {"model__heads": 3}, "heads"),
        ("transformer", "vqvae2", {"model__head": 2}, "did you mean 'heads'"),
        ("pixelcnn", "vqvae", {"model__kernel": 4}, "odd"),
        ("pixelcnn", "vqvae", {"sampler": {"topk": 3}}, "takes no 'topk'"),
        ("pixelcnn", "vqvae", {"model__condition": "labels"}, "did you mean 'label'"),
        ("pixelcnn", "vqvae", READS, "does not support captions token by token"),
        ("pixelcnn", "vqvae", {"model__condition": "clip"}, "--config.clip=WORKDIR"),
        ("pixelcnn", "vqvae", {"model__condition": "none", "model__condition_dropout": 0.1}, "set it to 0"),
        ("pixelcnn", "vqvae", {"model__condition_dropout": 1.0}, "model.condition_dropout=1"),
        ("pixelcnn", "vqvae", {"sampler": {"guidance": 2.0}}, "condition_dropout > 0"),
        ("pixelcnn", "vqvae", {"sampler": {"keep_fraction": 0.9}}, "must keep 1 to 3 of 4 rows of codes"),
        ("transformer", "vqvae2", {"sampler": {"keep_fraction": 0.5}}, "with one scale of codes"),
        ("transformer", "vqvae2", {"model__condition": "text"}, "text: the section .* is missing"),
        ("transformer", "vqvae2", READS | {"text": TEXT | {"vocabulary": 200}}, "256 bytes"),
        (
            "transformer",
            "vqvae2",
            READS | {"loss": {"text_weight": 1.0}},
            "loss.text_weight=1: must be a finite number from 0 and below 1",
        ),
        ("transformer", "vqvae2", {"model__masks": ("row",)}, "leave them ()"),
        ("transformer", "vqvae", {"model__rope": "rows"}, "rope='rows': choose from False, True, grid"),
        ("transformer", "vqvae", {"model__masks": ("rows",)}, "choose from full, row"),
        ("transformer", "vqvae", {"model__masks": ("row",), "model__mask_kernel": 4}, "odd"),
        ("pixelcnn", None, {}, "--config.codec=WORKDIR"),
    ],
)
def test_invalid_configs_raise(name, base, changes, message):
    changed = {"codebook__kind": "residual", "codebook__depth": 2} if base == "residual" else {}
    codec = base and codec_of("vqvae" if changed else base, **changed)
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config(f"prior_{name}", **changes), SPEC, codec=codec)
    assert "\n" not in str(caught.value)


def test_missing_labels_raise():
    with pytest.raises(UserError, match="the data set does not have labels"):
        models.build(tiny.config("prior_pixelcnn"), ImageSpec(8, 1, 0), codec=codec_of("vqvae"))


# --- trained runs ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a trained VQ-VAE, a prior over its codes, and their config files."""
    folder = tmp_path_factory.mktemp("runs")
    common = {"parallel__num_devices": 1, "train__num_preview_samples": 8}
    tiny.write(folder / "vqvae.py", "vqvae", **common)
    tiny.write(folder / "prior.py", "prior_pixelcnn", codec=str(folder / "vqvae"), **common)
    for name in ("vqvae", "prior"):
        assert train(folder, name) == 0
    return folder


def train(folder, name, *others, workdir=None):
    return cli.main(
        ["launch.py", "train", f"--config={folder / name}.py", f"--workdir={folder / (workdir or name)}", *others]
    )


@pytest.mark.slow
def test_runs_of_an_autoencoder_and_its_prior_open(runs):
    run, prior = diffjax.load(runs / "vqvae"), diffjax.load(runs / "prior")
    x = to_unit_range(open_dataset(run.config, "test")[0]["image"][None])
    codes = run.codec.to_codes(x)
    assert codes[0].shape == (1, 4, 4, 1)
    np.testing.assert_allclose(run.codec.decode(run.codec.encode(x)), run.codec.from_codes(codes), atol=1e-5)
    assert (runs / "vqvae" / "samples" / "reconstruction_00000004.png").exists()
    assert (runs / "prior" / "samples" / "step_00000004.png").exists()
    assert prior.step == 4
    assert prior.parameters == sum(leaf.size for leaf in jax.tree.leaves(prior.variables["params"]))
    jax.tree.map(np.testing.assert_array_equal, prior.variables["frozen"]["codec"], run.variables)
    with pytest.raises(UserError, match="must be an autoencoder"):
        _ = prior.codec


@pytest.mark.slow
def test_a_prior_resumes(runs, capsys):
    assert train(runs, "prior", "--config.train.steps=5", "--allow_config_change") == 0
    assert "continuing at step 4" in capsys.readouterr().out


ERRORS = {
    "no codec": ("prior", ["--config.codec="], "set --config.codec=WORKDIR"),
    "missing codec": ("prior", ["--config.codec=nowhere"], "nowhere is not a run"),
    "codec that is not an autoencoder": (
        "prior",
        ["--config.codec=RUNS/prior"],
        "must be an autoencoder, not a run of system=prior",
    ),
    "codec of another image size": (
        "prior",
        ["--config.data.image_size=16"],
        "was trained on 8x8 images with 1 channels, but this config has 16x16 with 1",
    ),
    "image size that is not a multiple": ("vqvae", ["--config.model.factor=16"], "is not a multiple of 16"),
    "missing features": ("vqvae", ["--config.loss.perceptual_file=nowhere.pth"], "nowhere.pth"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(ERRORS))
def test_invalid_parts_are_reported_in_one_line(case, runs, capsys):
    name, others, message = ERRORS[case]
    code = train(runs, name, *(other.replace("RUNS", str(runs)) for other in others), workdir="none")
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not (runs / "none").exists()


@pytest.mark.slow
@pytest.mark.parametrize("override", ["codebook.size=16", "codebook.update_rule=gradient"])
def test_a_codebook_unlike_the_checkpoint_is_reported_in_one_line(override, runs, capsys):
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
