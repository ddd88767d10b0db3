"""The variational autoencoder: its bound in NumPy, its importance-weighted bound by quadrature, its latents."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.diffusion.sampling import noise_of, split
from diffjax.errors import UserError
from diffjax.inference.sampler_runner import Generator
from diffjax.latents import output_distributions
from diffjax.models.autoencoders.encoder_decoder import Coder
from diffjax.models.pixels import to_unit_range
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
LN2 = np.log(2.0)
PIXELCNN = {"features": 8, "layers": 2, "kernel": 3, "dropout": 0.0}


def built(base="vae", **changes):
    config = tiny.config(base, **changes)
    system = models.build(config, SPEC)
    return config, system, {**tiny.randomised(system.objective.init), "frozen": {}}


def coder_of(config):
    return Coder.from_config(config, SPEC, encoded=2 * config.model.latent_channels)


def keys(count=6, seed=3):
    return jax.random.split(jax.random.key(seed), count)


def graded(system, variables):
    """Loss [B], metrics, new variables and the mean loss's gradient, by the batch's keys."""

    @jax.jit
    def run(params, keys):
        whole = {**variables, "params": {"model": params}}
        loss, aux = system.objective.losses["model"](whole, tiny.batch(), keys, tiny.moment(1))
        return loss.mean(), (loss, aux)

    return jax.grad(run, has_aux=True)(variables["params"]["model"], keys())


@pytest.fixture(scope="module")
def made():
    config, system, variables = built()
    return config, system, variables, graded(system, variables)


@pytest.fixture(scope="module")
def autoregressive():
    config, system, variables = built(pixelcnn=PIXELCNN)
    return config, system, variables, graded(system, variables)


def logistic_nll(x, output):
    """-log p in nats, value by value, of the grey levels of x by differences of the distribution function."""
    x, (mean, log_scale) = np.asarray(x, np.float64), np.moveaxis(np.asarray(output, np.float64), -1, 0)
    below, above = (1 / (1 + np.exp(-(x + side / 255 - mean) / np.exp(log_scale))) for side in (-1, 1))
    above, below = np.where(x > 0.999, 1.0, above), np.where(x < -0.999, 0.0, below)
    return -np.log(above - below)


def numpy_terms(config, variables, batch, keys):
    """What the encoder and the decoder say, worked through in NumPy: nll [B] and KL [B, C] in nats."""
    coder, params, x = coder_of(config), variables["params"]["model"], to_unit_range(batch["image"])
    mean, log_variance = np.split(np.asarray(coder.encode(params, x), np.float64), 2, axis=-1)
    noise = np.stack([jax.random.normal(key, mean.shape[1:]) for key in split(keys)[0]])
    z = mean + np.exp(log_variance / 2) * noise
    output = coder.decode(params, jnp.asarray(z, jnp.float32), x)
    kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    return logistic_nll(x, output).sum(axis=(1, 2, 3)), kl.sum(axis=(1, 2))


def test_the_loss_is_the_bound_in_nats_a_value(made):
    config, _, variables, (_, (loss, aux)) = made
    nll, kl = numpy_terms(config, variables, tiny.batch(), keys())
    np.testing.assert_allclose(loss, (nll + kl.sum(-1)) / 64, rtol=1e-4)
    for name, nats in {"nll": nll, "kl": kl.sum(-1), "bits_per_dim": nll + kl.sum(-1)}.items():
        np.testing.assert_allclose(aux.metrics[name], nats / 64 / LN2, rtol=1e-4)


@pytest.mark.parametrize("beta,free_bits", [(4.0, 0.0), (0.5, 1.0)])
def test_beta_and_free_bits_weigh_the_divergence(made, beta, free_bits):
    config, _, variables, _ = made
    system = models.build(tiny.config("vae", loss__beta=beta, loss__free_bits=free_bits), SPEC)
    loss, aux = system.objective.losses["model"](variables, tiny.batch(), keys(), tiny.moment(1))
    nll, kl = numpy_terms(config, variables, tiny.batch(), keys())
    counted = np.maximum(kl, free_bits * LN2)
    assert not free_bits or 0 < (counted > kl).mean() < 1  # some channels are free, some are not
    np.testing.assert_allclose(loss, (nll + beta * counted.sum(-1)) / 64, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["kl"], kl.sum(-1) / 64 / LN2, rtol=1e-4)  # what is logged is not weighted


@pytest.mark.parametrize("which", ["made", "autoregressive"])
def test_every_parameter_has_a_gradient(which, request):
    gradient = request.getfixturevalue(which)[3][0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pytest.fixture(scope="module")
def scalar():
    """One number is the latent of an image, so that p(x) is an integral over a line."""
    config, system, variables = built(model__factor=8, model__latent_channels=1)
    variables["params"]["model"]["decoder"]["conv"]["kernel"] *= 8  # so that it says something of the image
    return config, system, variables


def test_the_importance_weighted_bound_tends_to_the_exact_likelihood(scalar):
    config, system, variables = scalar
    one, coder, line = tiny.batch(1), coder_of(config), np.linspace(-8, 8, 801)
    x = jnp.repeat(to_unit_range(one["image"]), len(line), axis=0)
    output = jax.jit(coder.decode)(variables["params"]["model"], jnp.asarray(line[:, None, None, None], jnp.float32), x)
    log_joint = -logistic_nll(x, output).sum(axis=(1, 2, 3)) - line**2 / 2 - np.log(2 * np.pi) / 2
    exact = -np.logaddexp.reduce(log_joint + np.log(line[1] - line[0])) / LN2 / 64

    often = jax.tree.map(lambda leaf: np.repeat(leaf, 200, axis=0), one)  # the same image by 200 keys
    run = jax.jit(system.likelihood, static_argnums=3)
    bits = {draws: jax.device_get(run(variables, keys(200), often, draws)) for draws in (1, 8, 200)}
    mean = {draws: found["importance_weighted"].mean() for draws, found in bits.items()}
    error = {draws: found["importance_weighted"].std() / np.sqrt(200) for draws, found in bits.items()}
    gap = bits[200]["elbo"].mean() - exact

    assert gap > 10 * error[200]
    np.testing.assert_allclose(mean[1], exact + gap, atol=4 * error[1])  # one draw is the bound, on average
    assert mean[1] - 2 * error[1] > mean[8] > mean[200] + 4 * error[200]
    np.testing.assert_allclose(mean[200], exact, atol=4 * error[200] + 0.02 * gap)
    np.testing.assert_allclose(bits[8]["elbo"], bits[8]["nll"] + bits[8]["kl"], rtol=1e-5)


def test_where_the_decoder_ignores_the_latent_the_likelihood_is_exact(made):
    """And the bound lies above it by the divergence: that is 0 where the encoder says N(0, 1)."""
    config, system, variables, _ = made
    coder, model = coder_of(config), variables["params"]["model"]
    deaf = {**model, "decoder": jax.tree.map(jnp.zeros_like, model["decoder"])}
    deaf["decoder"]["conv_out"]["bias"] = jnp.asarray([0.2, -1.0])
    x = to_unit_range(tiny.batch()["image"])
    exact = logistic_nll(x, coder.decode(deaf, jnp.zeros((6, 4, 4, 4)), x)).sum(axis=(1, 2, 3)) / 64 / LN2
    run = jax.jit(system.likelihood, static_argnums=3)
    dumb = {**deaf, "encoder": jax.tree.map(jnp.zeros_like, model["encoder"])}
    for draws in (1, 5):
        bits = run({**variables, "params": {"model": dumb}}, keys(), tiny.batch(), draws)
        for name in ("elbo", "nll", "importance_weighted"):
            np.testing.assert_allclose(bits[name], exact, rtol=1e-5)
    bits = run({**variables, "params": {"model": deaf}}, keys(), tiny.batch(), 1)
    np.testing.assert_allclose(bits["elbo"], exact + bits["kl"], rtol=1e-5)
    assert bits["kl"].min() > 0.01


def test_errors_are_no_likelihood():
    assert models.build(tiny.config("vae", loss__likelihood="l2(variance=0.1)"), SPEC).likelihood is None


def test_the_codec_takes_means_there_and_back(made):
    config, system, variables, _ = made
    x, coder, params = to_unit_range(tiny.batch()["image"]), coder_of(config), variables["params"]["model"]
    codec = system.codec({**variables, "latents": {"mean": jnp.asarray(1.0), "square": jnp.asarray(5.0)}})
    np.testing.assert_allclose(codec.scale, 0.5, rtol=1e-6)
    mean = coder.encode(params, x)[..., :4]
    z = codec.encode(x)
    assert z.shape[1:] == codec.shape == (4, 4, 4)
    np.testing.assert_allclose(z, 0.5 * mean, rtol=1e-5)
    np.testing.assert_allclose(codec.decode(z), coder.reconstruct(params, mean), rtol=1e-4, atol=1e-5)
    assert codec.to_codes is None
    assert codec.grids == ()


def test_the_latent_scale_gives_unit_variance(made):
    """After one step, of what that step saw; of steps that see different latents, in between."""
    _, system, variables, _ = made
    x = to_unit_range(tiny.batch()["image"])
    loss = jax.jit(
        lambda variables, batch, step: (
            system.objective.losses["model"](variables, batch, keys(), tiny.moment()._replace(step=step))[1].variables
        )
    )
    after = {**variables, **loss(variables, tiny.batch(), jnp.asarray(0))}
    np.testing.assert_allclose(system.codec(after).encode(x).std(), 1.0, rtol=1e-4)
    other = {**variables, "latents": {"mean": jnp.asarray(50.0), "square": jnp.asarray(2600.0)}}
    for step in range(60):
        other = {**other, **loss(other, tiny.batch(), jnp.asarray(step))}
    np.testing.assert_allclose(system.codec(other).encode(x).std(), 1.0, rtol=1e-3)


def test_samples(made):
    config, system, variables, _ = made
    zero = system.codec(variables).decode(jnp.zeros((6, 4, 4, 4)))
    condition = {"label": jnp.zeros(6, jnp.int32)}
    draw = jax.jit(system.sample)
    np.testing.assert_allclose(draw(variables, keys(), condition, system.plan(config.sampler, temperature=0.0)), zero)
    drawn = draw(variables, keys(), condition, system.plan(config.sampler))
    assert np.abs(drawn - zero).max() > 1e-2
    assert np.abs(drawn[0] - drawn[1]).max() > 1e-2
    with pytest.raises(UserError, match="temperatur"):
        system.plan(config.sampler, temperatur=1.0)


def test_a_sample_is_the_same_whatever_the_batch(made):
    config, system, variables, _ = made
    condition, plan = {"label": np.zeros(10, np.int32)}, system.plan(config.sampler)
    whole, parts = (
        Generator(system, batch_size=size)(variables, range(10), condition, plan).astype(int) for size in (16, 8)
    )
    assert whole.shape == (10, 8, 8, 1)
    assert np.abs(whole - parts).max() <= 1  # a grey level: sums of another order round differently
    assert len(np.unique(whole.reshape(10, -1), axis=0)) == 10


def test_an_autoregressive_decoder_sees_no_future(autoregressive):
    config, _, variables, _ = autoregressive
    coder, params = coder_of(config), variables["params"]["model"]
    rng = np.random.default_rng(0)
    x, z = jnp.asarray(rng.uniform(-1, 1, (1, 8, 8, 1)), jnp.float32), jnp.asarray(rng.normal(size=(1, 4, 4, 4)), "f4")

    @jax.jit
    def jacobians(x, z):
        """Of the outputs that the nll of each pixel is made of, by the image and by the latent."""
        return jax.jacrev(lambda x, z: coder.decode(params, z, x).sum(axis=(0, 3, 4)).reshape(64), (0, 1))(x, z)

    by_image, by_latent = jacobians(x, z)
    heard = np.abs(by_image).reshape(64, 64) > 0
    place = np.arange(64)
    assert not heard[place[:, None] <= place[None, :]].any()
    assert heard[1:].any(axis=1).all()  # each pixel but the first sees some before it
    assert heard[9, [0, 1, 2, 8]].all()
    assert (np.abs(by_latent).reshape(64, -1).max(axis=1) > 0).all()  # all see the latent


def test_an_autoregressive_draw_is_from_what_the_loss_scores(autoregressive):
    """Each pixel again: by its key, from the output at the finished image."""
    config, system, variables, _ = autoregressive
    coder, params, condition = coder_of(config), variables["params"]["model"], {"label": jnp.zeros(6, jnp.int32)}
    drawn = jax.jit(system.sample)(variables, keys(), condition, system.plan(config.sampler))
    of_latent, of_pixels = split(keys())
    z = noise_of(of_latent, (4, 4, 4))
    output = jax.jit(coder.decode)(params, z, drawn)

    def pixel(key, place, output):
        """One number of noise by the pixel's key."""
        noise = jax.random.logistic(jax.random.fold_in(key, place), (1, 1, 1))[0, 0, 0]
        return output[0] + jnp.exp(output[1]) * noise

    by_place = jax.vmap(jax.vmap(pixel, (None, 0, 0)), (0, None, 0))
    value = np.asarray(by_place(of_pixels, jnp.arange(64), output.reshape(6, 64, 2))).reshape(6, 8, 8, 1)
    again = np.clip(np.round((value + 1) * 127.5), 0, 255) / 127.5 - 1
    assert (np.abs(again - drawn) > 1e-4).mean() < 0.01
    assert len(np.unique(again)) > 50


def test_an_autoregressive_decoder_is_no_codec(autoregressive):
    _, system, _, (_, (loss, aux)) = autoregressive
    assert system.codec is None
    np.testing.assert_allclose(loss, LN2 * aux.metrics["bits_per_dim"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "spec", "message"),
    [
        ({"loss__beta": -1.0}, SPEC, "loss.beta=-1: a finite number from 0"),
        ({"loss__free_bits": -1.0}, SPEC, "loss.free_bits=-1: a finite number from 0"),
        ({"loss__likelihood": "logistc"}, SPEC, "did you mean 'logistic'"),
        ({"model__architecture": "vqvea"}, SPEC, "did you mean 'vqvae'"),
        ({"model__factor": 4}, ImageSpec(10, 1, 0), "data.image_size=10 is not a multiple of 4"),
        ({"model__factor": 3}, ImageSpec(9, 1, 0), "power of two"),
        ({"model__chanels": 8}, SPEC, "did you mean 'channels'"),
        ({"pixelcnn": PIXELCNN | {"layer": 3}}, SPEC, "did you mean 'layers'"),
        ({"pixelcnn": PIXELCNN | {"kernel": 4}}, SPEC, "odd"),
    ],
)
def test_what_does_not_fit_is_refused(changes, spec, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config("vae", **changes), spec)
    assert "\n" not in str(caught.value)


def test_the_likelihood_of_the_tests_is_a_probability():
    """Of one value the 256 levels sum to one, so that what the tests compare with is right."""
    levels = np.arange(256).reshape(256, 1, 1, 1) / 127.5 - 1
    output = np.broadcast_to(np.array([0.3, -2.0]), (256, 1, 1, 1, 2))
    np.testing.assert_allclose(np.exp(-logistic_nll(levels, output)).sum(), 1.0, rtol=1e-9)
    ours = output_distributions.logistic().nll(jnp.asarray(levels, jnp.float32), jnp.asarray(output, jnp.float32))
    np.testing.assert_allclose(ours, logistic_nll(levels, output).reshape(-1), rtol=2e-3)
