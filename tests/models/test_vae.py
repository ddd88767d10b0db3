"""The variational autoencoder: its bound in NumPy, its importance-weighted bound by quadrature, its latents."""

import functools

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.random import normal_each, split_each
from diffjax.errors import UserError
from diffjax.latents import output_distributions
from diffjax.models.base import Autoencoder, LikelihoodModel
from diffjax.models.images import to_unit_range
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
LN2 = np.log(2.0)
PIXELCNN = {"features": 8, "layers": 2, "kernel": 3, "dropout": 0.0}
BATCH = tiny.batch()
X = to_unit_range(BATCH["image"])


@functools.cache
def built(kind="", **changes):
    pixelcnn = {"pixelcnn": PIXELCNN} if kind == "autoregressive" else {}
    config = tiny.config("vae", **pixelcnn, **changes)
    model = models.build(config, SPEC)
    return config, model, {**tiny.randomised(model.init), "frozen": {}}


def keys(count=6, seed=3):
    return jax.random.split(jax.random.key(seed), count)


@functools.cache
def computed(kind=""):
    """The mean loss's gradient, the loss [B], and aux."""
    _, model, variables = built(kind)

    def mean(params, keys):
        loss, aux = model.losses["model"]({**variables, "params": {"model": params}}, BATCH, keys, tiny.moment(1))
        return loss.mean(), (loss, aux)

    return jax.device_get(jax.jit(jax.grad(mean, has_aux=True))(variables["params"]["model"], keys()))


def logistic_nll(x, output):
    """-log p in nats of each grey level of x, by differences of the distribution function."""
    x, (mean, log_scale) = np.asarray(x, np.float64), np.moveaxis(np.asarray(output, np.float64), -1, 0)
    below, above = (1 / (1 + np.exp(-(x + side / 255 - mean) / np.exp(log_scale))) for side in (-1, 1))
    above, below = np.where(x > 0.999, 1.0, above), np.where(x < -0.999, 0.0, below)
    return -np.log(above - below)


@functools.cache
def numpy_terms():
    """nll [B] and KL [B, C] in nats, from the outputs of encoder and decoder."""
    _, model, variables = built()
    networks, params = model.networks, variables["params"]["model"]

    @jax.jit
    def encode(keys):
        q = networks.encode(params, X)
        return q, normal_each(split_each(keys)[0], (*q.shape[1:-1], q.shape[-1] // 2))

    q, noise = encode(keys())
    mean, log_variance = np.split(np.asarray(q, np.float64), 2, axis=-1)
    z = mean + np.exp(log_variance / 2) * noise
    output = jax.jit(networks.decode)(params, jnp.asarray(z, jnp.float32), X)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    return logistic_nll(X, output).sum(axis=(1, 2, 3)), kl.sum(axis=(1, 2))


@pytest.mark.slow
def test_the_loss_is_the_bound_in_nats_per_value():
    _, (loss, aux) = computed()
    nll, kl = numpy_terms()
    np.testing.assert_allclose(loss, (nll + kl.sum(-1)) / 64, rtol=1e-4)
    for name, nats in {"nll": nll, "kl": kl.sum(-1), "bits_per_dim": nll + kl.sum(-1)}.items():
        np.testing.assert_allclose(aux.metrics[name], nats / 64 / LN2, rtol=1e-4)


def test_beta_and_free_bits_weight_the_kl():
    variables, (nll, kl), cases = built()[2], numpy_terms(), [(4.0, 0.0), (0.5, 1.0)]
    weighted = [models.build(tiny.config("vae", loss__beta=b, loss__free_bits=f), SPEC) for b, f in cases]
    losses = jax.jit(lambda keys: [m.losses["model"](variables, BATCH, keys, tiny.moment(1)) for m in weighted])
    for (beta, free_bits), (loss, aux) in zip(cases, losses(keys()), strict=True):
        counted = np.maximum(kl, free_bits * LN2)
        assert not free_bits or 0 < (counted > kl).mean() < 1  # the bound applies to some channels, not to all
        np.testing.assert_allclose(loss, (nll + beta * counted.sum(-1)) / 64, rtol=1e-4)
        np.testing.assert_allclose(aux.metrics["kl"], kl.sum(-1) / 64 / LN2, rtol=1e-4)  # logged without weight


@pytest.mark.parametrize("kind", ["", "autoregressive"])
def test_every_parameter_has_a_gradient(kind):
    for path, leaf in jax.tree_util.tree_leaves_with_path(computed(kind)[0]):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pytest.mark.slow
def test_the_importance_weighted_bound_tends_to_the_exact_likelihood():
    """The latent is one number, so that p(x) is an integral over a line."""
    _, model, variables = built(model__factor=8, model__latent_channels=1)
    variables["params"]["model"]["decoder"]["conv"]["kernel"] *= 8  # so that the latent has an effect
    one, line = tiny.batch(1), np.linspace(-8, 8, 801)
    x = jnp.repeat(to_unit_range(one["image"]), len(line), axis=0)
    z = jnp.asarray(line[:, None, None, None], jnp.float32)
    output = jax.jit(model.networks.decode)(variables["params"]["model"], z, x)
    log_joint = -logistic_nll(x, output).sum(axis=(1, 2, 3)) - line**2 / 2 - np.log(2 * np.pi) / 2
    exact = -np.logaddexp.reduce(log_joint + np.log(line[1] - line[0])) / LN2 / 64

    repeated = jax.tree.map(lambda leaf: np.repeat(leaf, 200, axis=0), one)  # the same image with 200 keys
    run = jax.jit(lambda keys: {n: model.likelihood(variables, keys, repeated, n) for n in (1, 8, 200)})
    bits = jax.device_get(run(keys(200)))
    mean = {samples: result["importance_weighted"].mean() for samples, result in bits.items()}
    error = {samples: result["importance_weighted"].std() / np.sqrt(200) for samples, result in bits.items()}
    gap = bits[200]["elbo"].mean() - exact

    assert gap > 10 * error[200]
    np.testing.assert_allclose(mean[1], exact + gap, atol=4 * error[1])  # one sample is the ELBO, on average
    assert mean[1] - 2 * error[1] > mean[8] > mean[200] + 4 * error[200]
    np.testing.assert_allclose(mean[200], exact, atol=4 * error[200] + 0.02 * gap)
    np.testing.assert_allclose(bits[8]["elbo"], bits[8]["nll"] + bits[8]["kl"], rtol=1e-5)


def test_the_bound_is_exact_if_the_decoder_ignores_the_latent():
    """The ELBO is then above by the KL, which is 0 if the encoder outputs N(0, 1)."""
    _, model, variables = built()
    params = variables["params"]["model"]
    no_decoder = {**params, "decoder": jax.tree.map(jnp.zeros_like, params["decoder"])}
    no_decoder["decoder"]["conv_out"]["bias"] = jnp.asarray([0.2, -1.0])
    neither = {**no_decoder, "encoder": jax.tree.map(jnp.zeros_like, params["encoder"])}
    output = np.broadcast_to(np.array([0.2, -1.0]), (*X.shape, 2))
    exact = logistic_nll(X, output).sum(axis=(1, 2, 3)) / 64 / LN2
    run = jax.jit(lambda params: model.likelihood({**variables, "params": {"model": params}}, keys(), BATCH, 5))
    bits = run(neither)
    for name in ("elbo", "nll", "importance_weighted"):
        np.testing.assert_allclose(bits[name], exact, rtol=1e-5)
    bits = run(no_decoder)
    np.testing.assert_allclose(bits["elbo"], exact + bits["kl"], rtol=1e-5)
    assert bits["kl"].min() > 0.01


def test_capabilities_depend_on_the_distribution_and_the_decoder():
    gaussian = models.build(tiny.config("vae", loss__likelihood="l2(variance=0.1)"), SPEC)
    capabilities = [
        (isinstance(model, Autoencoder), isinstance(model, LikelihoodModel))
        for model in (built()[1], built("autoregressive")[1], gaussian)
    ]
    assert capabilities == [(True, True), (False, True), (True, False)]


def test_the_codec_encodes_means_and_decodes_them():
    _, model, variables = built()
    networks, params = model.networks, variables["params"]["model"]
    codec = model.codec({**variables, "latents": {"mean": jnp.asarray(1.0), "square": jnp.asarray(5.0)}})
    np.testing.assert_allclose(codec.scale, 0.5, rtol=1e-6)

    @jax.jit
    def run(x):
        mean, z = networks.encode(params, x)[..., :4], codec.encode(x)
        return mean, z, codec.decode(z), networks.reconstruct(params, mean)

    mean, z, decoded, expected = run(X)
    assert z.shape[1:] == codec.shape == (4, 4, 4)
    np.testing.assert_allclose(z, 0.5 * mean, rtol=1e-5)
    np.testing.assert_allclose(decoded, expected, rtol=1e-4, atol=1e-5)
    assert codec.to_codes is None
    assert codec.grids == ()


def test_latents_have_unit_variance():
    """After one step, by the moments of that step; later by a running average."""
    _, model, variables = built()

    @jax.jit
    def run(latents, step):
        context = tiny.moment()._replace(step=step)
        new = model.losses["model"]({**variables, "latents": latents}, BATCH, keys(), context)[1].variables["latents"]
        return new, model.codec({**variables, "latents": new}).encode(X).std()

    np.testing.assert_allclose(run(variables["latents"], 0)[1], 1.0, rtol=1e-4)
    latents = {"mean": jnp.asarray(50.0), "square": jnp.asarray(2600.0)}
    for step in range(60):
        latents, std = run(latents, step)
    np.testing.assert_allclose(std, 1.0, rtol=1e-3)


def test_samples_depend_on_their_key_alone():
    config, model, variables = built()
    conditions = {"label": jnp.zeros(6, jnp.int32)}
    sample = jax.jit(lambda keys, settings: model.sample(variables, keys, conditions, settings))
    zero = jax.jit(model.codec(variables).decode)(jnp.zeros((6, 4, 4, 4)))
    np.testing.assert_allclose(sample(keys(), model.make_settings(config.sampler, temperature=0.0)), zero)
    settings = model.make_settings(config.sampler)
    images, of_reversed = sample(keys(), settings), sample(keys()[::-1], settings)
    assert np.abs(images - zero).max() > 1e-2
    assert np.abs(images[0] - images[1]).max() > 1e-2
    np.testing.assert_allclose(of_reversed[::-1], images, atol=1e-5)
    with pytest.raises(UserError, match="temperatur"):
        model.make_settings(config.sampler, temperatur=1.0)


def test_an_autoregressive_decoder_is_causal():
    _, model, variables = built("autoregressive")
    params, rng = variables["params"]["model"], np.random.default_rng(0)
    x, z = jnp.asarray(rng.uniform(-1, 1, (1, 8, 8, 1)), jnp.float32), jnp.asarray(rng.normal(size=(1, 4, 4, 4)), "f4")

    @jax.jit
    def jacobians(x, z):
        """Returns the Jacobians of the outputs of each pixel by the image and by the latent."""
        decode = lambda x, z: model.networks.decode(params, z, x).sum(axis=(0, 3, 4)).reshape(64)  # noqa: E731
        return jax.jacrev(decode, (0, 1))(x, z)

    by_image, by_latent = (np.abs(jacobian).reshape(64, -1) for jacobian in jacobians(x, z))
    depends, place = by_image > 0, np.arange(64)
    assert not depends[place[:, None] <= place[None, :]].any()
    assert depends[1:].any(axis=1).all()  # each pixel but the first depends on some previous pixel
    assert depends[9, [0, 1, 2, 8]].all()
    assert (by_latent.max(axis=1) > 0).all()


def test_an_autoregressive_sample_has_the_distribution_that_the_loss_scores():
    """Each pixel sampled again with its key, from the output at the finished image."""
    config, model, variables = built("autoregressive")
    params, settings = variables["params"]["model"], model.make_settings(config.sampler)

    def pixel(key, place, output):
        noise = jax.random.logistic(jax.random.fold_in(key, place), (1, 1, 1))[0, 0, 0]
        return output[0] + jnp.exp(output[1]) * noise

    @jax.jit
    def run(keys):
        images = model.sample(variables, keys, {}, settings)
        latent_keys, pixel_keys = split_each(keys)
        output = model.networks.decode(params, normal_each(latent_keys, (4, 4, 4)), images).reshape(6, 64, 2)
        return images, jax.vmap(jax.vmap(pixel, (None, 0, 0)), (0, None, 0))(pixel_keys, jnp.arange(64), output)

    images, values = jax.device_get(run(keys()))
    rounded = np.clip(np.round((values.reshape(6, 8, 8, 1) + 1) * 127.5), 0, 255) / 127.5 - 1
    assert (np.abs(rounded - images) > 1e-4).mean() < 0.01
    assert len(np.unique(rounded)) > 50


def test_the_loss_of_an_autoregressive_decoder_is_in_nats():
    _, (loss, aux) = computed("autoregressive")
    np.testing.assert_allclose(loss, LN2 * aux.metrics["bits_per_dim"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({"loss__beta": -1.0}, SPEC, "loss.beta=-1: must be a finite number from 0"),
        ({"loss__free_bits": -1.0}, SPEC, "loss.free_bits=-1: must be a finite number from 0"),
        ({"loss__likelihood": "logistc"}, SPEC, "did you mean 'logistic'"),
        ({"model__architecture": "vqvea"}, SPEC, "did you mean 'vqvae'"),
        ({"model__factor": 4}, ImageSpec(10, 1, 0), "data.image_size=10: is not a multiple of 4"),
        ({"model__factor": 3}, ImageSpec(9, 1, 0), "power of two"),
        ({"model__chanels": 8}, SPEC, "did you mean 'channels'"),
        ({"pixelcnn": PIXELCNN | {"layer": 3}}, SPEC, "did you mean 'layers'"),
        ({"pixelcnn": PIXELCNN | {"kernel": 4}}, SPEC, "odd"),
    ],
)
def test_invalid_configs_raise(changes, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config("vae", **changes), spec)
    assert "\n" not in str(caught.value)


def test_the_likelihood_in_numpy_is_a_probability():
    """The 256 levels of one value sum to one, so that the other tests have a valid reference."""
    levels = np.arange(256).reshape(256, 1, 1, 1) / 127.5 - 1
    output = np.broadcast_to(np.array([0.3, -2.0]), (256, 1, 1, 1, 2))
    np.testing.assert_allclose(np.exp(-logistic_nll(levels, output)).sum(), 1.0, rtol=1e-9)
    nll = jax.jit(output_distributions.logistic().nll)(jnp.asarray(levels, "f4"), jnp.asarray(output, "f4"))
    np.testing.assert_allclose(nll, logistic_nll(levels, output).reshape(-1), rtol=2e-3)
