"""Masked priors over codes: loss, bound, network, sampling, guidance, completion, errors."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion import masked
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import SampleRunner
from diffjax.models.images import to_unit_range
from tests import tiny
from tests.models.test_prior import LN2, SPEC, TEXT, ReturnsCodes, codec_of, flat, others_than

BATCH = tiny.batch()
KEYS = jax.random.split(jax.random.key(3), 6)
DROPOUT = {"model__condition_dropout": 0.2}
UNWEIGHTED = {"masking__loss": "cross_entropy", "masking__schedule": "cosine"}
PRIORS = {  # codec, changes
    "label": ("vqvae", DROPOUT),
    "caption, two scales": (
        "vqvae2",
        DROPOUT | UNWEIGHTED | {"text": TEXT, "model__condition": "text", "model__rope": "grid"},
    ),
}


@functools.cache
def built(name):
    """(config, model, variables)."""
    base, changes = PRIORS[name]
    config = tiny.config("masked_digits", **changes)
    model = models.build(config, SPEC, codec=codec_of(base))
    return config, model, {**tiny.randomised(model.init), "frozen": model.frozen}


@functools.cache
def result(name):
    """Loss, metrics and gradient; and the bound of the likelihood, of random parameters and of a zero head."""
    model = dataclasses.replace(built(name)[1], condition_dropout=0.0)
    variables = built(name)[2]

    @jax.jit
    def run(variables):
        def mean(params):
            loss, aux = model.losses["model"]({**variables, "params": params}, BATCH, KEYS, tiny.moment())
            return loss.mean(), (loss, aux.metrics)

        gradient, (loss, metrics) = jax.grad(mean, has_aux=True)(variables["params"])
        return loss, metrics, gradient, model.likelihood(variables, KEYS, BATCH, 3)

    params = variables["params"]["model"]
    untrained = {"model": params | {"head": jax.tree.map(jnp.zeros_like, params["head"])}}
    return jax.device_get((run(variables), run({**variables, "params": untrained})))


def codes_of(name):
    autoencoder, frozen = codec_of(PRIORS[name][0])
    return flat(jax.jit(lambda x: autoencoder.codec(frozen).to_codes(x))(to_unit_range(BATCH["image"])))


def log_p_of(name, tokens):
    """log p of every value at every position [B, N, K]."""
    model, params = built(name)[1].token_model, built(name)[2]["params"]["model"]
    values = jnp.asarray(BATCH["tokens" if name.startswith("caption") else "label"])
    return np.asarray(jax.nn.log_softmax(jax.jit(model.logits)(params, jnp.asarray(tokens), values), axis=-1))


@pytest.mark.parametrize("name", PRIORS)
def test_the_loss_is_the_cross_entropy_of_masked_tokens(name):
    """In NumPy, with the masks of the same keys."""
    model, tokens = built(name)[1], codes_of(name)
    loss, metrics, gradient, _ = result(name)[0]
    context = tiny.moment()
    offset = jax.random.uniform(jax.random.fold_in(context.key, 2**31 - 1))
    t = 1e-4 + (1 - 1e-4) * ((float(offset) + np.arange(6) / 6) % 1)
    probability, weight = t, 1 / t
    if name != "label":  # cosine
        probability, weight = np.sin(np.pi / 2 * t), np.pi / 2 / np.tan(np.pi / 2 * t)
    mask_keys = jax.vmap(lambda key: jax.random.split(key, 3))(KEYS)[:, 2]
    masks = masked.mask_each(mask_keys, jnp.asarray(tokens), jnp.asarray(probability, jnp.float32), 8)
    log_p = np.take_along_axis(log_p_of(name, masks), tokens[..., None], axis=-1)[..., 0]
    nats = np.where(np.asarray(masks) == 8, -log_p, 0.0)
    bits = weight * nats.mean(axis=1) / LN2
    np.testing.assert_allclose(loss, bits * LN2 if name == "label" else nats.mean(axis=1), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_code"], bits, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(metrics["bits_per_dim"], bits * tokens.shape[1] / 64, rtol=1e-3, atol=1e-5)
    assert (nats > 0).any() and (nats == 0).any()
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, path
    assert model.frozen["codec"] is codec_of(PRIORS[name][0])[1]


@pytest.mark.parametrize("name", PRIORS)
def test_the_bound_of_equally_likely_tokens_is_exact(name):
    length = codes_of(name).shape[1]
    bits = result(name)[1][-1]
    np.testing.assert_allclose(bits["bits_per_code_elbo"], 3.0, rtol=1e-5)
    np.testing.assert_allclose(bits["codes_elbo"], 3.0 * length / 64, rtol=1e-5)
    of_random = result(name)[0][-1]["bits_per_code_elbo"]
    assert np.isfinite(of_random).all() and np.abs(of_random - 3).max() > 1e-2


def test_a_prediction_depends_on_all_other_tokens_and_the_condition():
    """Not only on previous ones."""
    tokens = codes_of("label")
    tokens[:, 5] = 8  # a mask
    before = log_p_of("label", tokens)
    for i in (0, 4, 6, 15):
        changed = tokens.copy()
        changed[:, i] = (changed[:, i] + 1) % 8
        assert (np.abs(log_p_of("label", changed) - before)[:, 5].max(axis=-1) > 1e-6).all(), i
    assert before.shape == (6, 16, 8)  # the mask token is never predicted


@functools.cache
def sampler(name):
    config, model, variables = built(name)
    generate = SampleRunner(model, batch_size=8)

    def sample(seeds, conditions, **settings):
        settings = model.make_settings(config.sampler, **{"capacity": 6, "steps": 4} | settings)
        return generate(variables, seeds, conditions, settings).astype(int)

    return generate, sample


def test_a_sample_depends_on_its_seed_and_label_alone_and_a_sweep_compiles_once():
    generate, sample = sampler("label")
    labels, order = np.arange(16, dtype=np.int32) % 10, np.random.default_rng(0).permutation(16)
    images, repeated = sample(np.arange(16), {"label": labels}), sample(order, {"label": labels[order]})
    assert images.shape == (16, 8, 8, 1)
    assert np.abs(images[order] - repeated).max() <= 1  # one grey level, by rounding
    assert len(np.unique(images.reshape(16, -1), axis=0)) == 16
    of_three = {"label": np.full(8, 3, np.int32)}
    by_steps = [sample(range(8), of_three, steps=steps) for steps in (1, 2, 6)]
    assert (by_steps[0] != by_steps[2]).any()
    for settings in ({"schedule": "linear"}, {"schedule": "polynomial(power=3)"}, {"choice_temperature": 0.0}):
        assert (sample(range(8), of_three, **settings) != sample(range(8), of_three)).any(), settings
    greedy = sample(range(8), of_three, top_k=1, choice_temperature=0.0)
    assert (greedy == greedy[:1]).all()
    np.testing.assert_array_equal(
        sample(range(8), of_three, temperature=1e-6, name="confidence(choice_temperature=0)"), greedy
    )
    assert generate.compilations == 1
    assert len(np.unique(sample(range(8), of_three, name="ancestral_unmasking").reshape(8, -1), axis=0)) == 8
    assert generate.compilations == 2


def test_guidance_interpolates_from_the_null_condition():
    """Scale 1 equals no guidance, scale 0 the null condition, with the same keys; by the tokens of one step."""
    name = "caption, two scales"
    config, model, variables = built(name)
    sample = jax.jit(lambda values, settings: model.sample(variables, KEYS, {**BATCH, "tokens": values}, settings))
    values = jnp.asarray(BATCH["tokens"])
    unguided = model.make_settings(config.sampler, steps=2)
    conditional, unconditional = sample(values, unguided), sample(model.prefix.null(values), unguided)
    near_one, zero, two = (
        sample(values, model.make_settings(config.sampler, steps=2, guidance=scale)) for scale in (1 + 1e-6, 0.0, 40.0)
    )
    np.testing.assert_allclose(near_one, conditional, atol=1e-5)
    np.testing.assert_allclose(zero, unconditional, atol=1e-5)
    assert np.abs(two - conditional).max() > 0.1
    other = sample(
        jnp.asarray(others_than(BATCH["tokens"])), model.make_settings(config.sampler, steps=2, guidance=40.0)
    )
    assert np.abs(other - two).max() > 0.1


def test_an_image_is_completed_from_its_first_rows():
    config, model, variables = built("label")
    model = dataclasses.replace(model, autoencoder=ReturnsCodes(autoencoder=model.autoencoder))
    settings = model.make_settings(config.sampler, keep_fraction=0.5, steps=3)
    conditions = {**BATCH, "image": to_unit_range(BATCH["image"])}
    codes, expected = (
        jax.jit(model.sample)(variables, KEYS, conditions, settings),
        codes_of("label").reshape(6, 4, 4, 1),
    )
    np.testing.assert_array_equal(codes[:, :2], expected[:, :2])
    assert (codes[:, 2:] != expected[:, 2:]).any() and codes.max() < 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masking__schedule": "cosin"}, "masking.schedule.*did you mean 'cosine'"),
        ({"masking__schedule": "polynomial(power=0)"}, "power=0: must be a finite number above 0"),
        ({"masking__loss": "mse"}, "masking.loss 'mse'.*choose from cross_entropy, elbo"),
        ({"model__masks": ("row",)}, "masks"),
        ({"sampler__name": "ddim"}, "unknown sampler 'ddim'"),
        ({"sampler__name": "confidence(choice_temperature=-1)"}, "choice_temperature=-1"),
        ({"sampler__steps": 0}, "sampler.steps=0: must be a whole number from 1"),
        ({"sampler__schedule": "karras"}, "unknown sampler.schedule 'karras'"),
        ({"sampler__guidance": 2.0, "model__condition_dropout": 0.0}, "condition_dropout > 0"),
        ({"sampler": {"eta": 1.0}}, "system=masked_prior takes no 'eta'"),
    ],
)
def test_invalid_configs_raise(changes, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config("masked_digits", **changes), SPEC, codec=codec_of("vqvae"))
    assert "\n" not in str(caught.value)


def test_a_missing_codec_raises():
    with pytest.raises(UserError, match="system=masked_prior requires a trained autoencoder"):
        models.build(tiny.config("masked_digits"), SPEC)
