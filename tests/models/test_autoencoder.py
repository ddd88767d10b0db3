"""What autoencoders share: a discriminator's weight and start, a perceptual loss, the published first stages."""

import functools

import jax
import numpy as np
import optax
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.models.pixels import to_unit_range
from diffjax.nn.discriminator import PatchDiscriminator
from diffjax.nn.pretrained import efficientnet
from diffjax.runs.state import initial_state
from diffjax.training.step import make_step
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
BATCH = tiny.batch()
X = to_unit_range(BATCH["image"])
START = 100


ADVERSARIAL = tiny.config("vqgan", adversarial__start=START).adversarial.to_dict()


@functools.cache
def built(base="vqvae", **changes):
    """A VQ-VAE with a discriminator, whose networks are compiled sooner than VQGAN's; or another system."""
    section = {"adversarial": dict(ADVERSARIAL)} if base == "vqvae" else {}
    config = tiny.config(base, loss__likelihood="l1", **section, **changes)
    system = models.build(config, SPEC)
    variables = {**tiny.randomised(system.objective.init), "frozen": {}}
    # Logits on both sides of the hinge's margins: within, real and fake images pull the last bias alike.
    variables["params"]["discriminator"]["conv_out"]["kernel"] *= 10
    return config, system, variables


def at_step(step):
    return jax.random.split(jax.random.key(3), 6), tiny.moment()._replace(step=step)


@functools.cache
def graded(base="vqvae", **changes):
    """(step) -> for each group (gradient, loss, aux): the discriminator's by all parameters, the model's by its own."""
    _, system, variables = built(base, **changes)

    @jax.jit
    def run(params, step):
        def mean(own, group):
            whole = {**variables, "params": {**params, **own}}
            loss, aux = system.objective.losses[group](whole, BATCH, *at_step(step))
            return loss.mean(), (loss, aux)

        graded = jax.grad(mean, has_aux=True)
        return {
            "model": graded({"model": params["model"]}, "model"),
            "discriminator": graded(params, "discriminator"),
        }

    return functools.cache(lambda step: run(variables["params"], jnp.asarray(step)))


def size(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def judge(config, params, images):
    """Of each image the mean of the discriminator's logits."""
    c = config.adversarial
    network = PatchDiscriminator(
        channels=c.channels,
        layers=c.layers,
        norm=c.norm,
        norm_groups=c.norm_groups,
        norm_min_channels=c.norm_min_channels,
    )
    return network.apply({"params": params["discriminator"]}, images).mean(axis=(1, 2, 3))


def test_the_adaptive_weight_is_a_ratio_of_gradients_at_the_last_layer():
    config, system, variables = built()

    def costs(kernel):
        """What reconstruction and discriminator say of a decoder with this last kernel."""
        params, model = variables["params"], variables["params"]["model"]
        decoder = {**model["decoder"], "conv_out": {**model["decoder"]["conv_out"], "kernel": kernel}}
        changed = {**variables, "params": {**params, "model": {**model, "decoder": decoder}}}
        codec = system.codec(changed)
        images = codec.from_codes(codec.to_codes(X))
        return jnp.abs(X - images).mean(), -judge(config, params, images).mean()

    ours, theirs = jax.jit(jax.jacrev(costs))(variables["params"]["model"]["decoder"]["conv_out"]["kernel"])
    weight = np.linalg.norm(ours) / (np.linalg.norm(theirs) + 1e-4)
    assert 0.01 < weight < 1e4
    _, (loss, aux) = graded()(START)["model"]
    np.testing.assert_allclose(aux.metrics["adversarial_weight"], 0.75 * weight, rtol=1e-3)
    plain = aux.metrics["reconstruction"] + 0.25 * aux.metrics["commitment"]
    np.testing.assert_allclose(loss, plain + 0.75 * weight * aux.metrics["adversarial"], rtol=1e-3)
    codec = system.codec(variables)
    fooled = jax.jit(lambda x: -judge(config, variables["params"], codec.from_codes(codec.to_codes(x))))(X)
    np.testing.assert_allclose(aux.metrics["adversarial"], fooled, rtol=1e-3, atol=1e-5)


def test_before_its_start_there_is_no_discriminator():
    _, _, variables = built()
    before, later = graded()(START - 1), graded()(START)
    gradient, (loss, aux) = before["model"]
    alone = models.build(tiny.config("vqvae", loss__likelihood="l1"), SPEC).objective
    assert set(alone.losses) == {"model"}

    @jax.jit
    def run(params):
        whole = {**variables, "params": params}
        loss, _ = alone.losses["model"](whole, BATCH, *at_step(jnp.asarray(START - 1)))
        return loss.mean(), loss

    plain_gradient, plain = jax.grad(run, has_aux=True)({"model": variables["params"]["model"]})
    np.testing.assert_allclose(loss, plain, rtol=1e-5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-6), gradient, plain_gradient)
    assert not np.any(aux.metrics["adversarial_weight"])
    assert size(before["discriminator"][0]) == 0
    assert not np.any(before["discriminator"][1][0])
    for name, value in before["discriminator"][1][1].metrics.items():
        np.testing.assert_allclose(value, later["discriminator"][1][1].metrics[name], rtol=1e-5)  # it is measured


KL = {"adversarial__start": START, "adversarial__penalty": 5.0, "adversarial__loss": "logistic"}


@pytest.mark.parametrize("options", [{}, {"base": "kl", **KL}])
def test_each_group_learns_all_of_its_own(options):
    """And the discriminator's loss teaches the autoencoder nothing."""
    found = graded(**options)(START)
    for group, (gradient, _) in found.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient[group]):
            assert np.isfinite(leaf).all(), path
            assert np.abs(leaf).max() > 0, path
    assert size(found["discriminator"][0]["model"]) == 0


def test_the_discriminator_learns_to_tell_apart():
    """Hinge loss of its logits: VQGAN's code, half of both sides' means."""
    _, system, variables = built()

    @jax.jit
    def logits(x):
        codec = system.codec(variables)
        network = PatchDiscriminator(channels=8, layers=1, norm_groups=4)
        weights = {"params": variables["params"]["discriminator"]}
        return network.apply(weights, x), network.apply(weights, codec.from_codes(codec.to_codes(x)))

    real, fake = (np.asarray(found) for found in logits(X))
    hinge = 0.5 * (np.maximum(0, 1 - real).mean(axis=(1, 2, 3)) + np.maximum(0, 1 + fake).mean(axis=(1, 2, 3)))
    _, (loss, aux) = graded()(START)["discriminator"]
    np.testing.assert_allclose(loss, hinge, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["real"], real.mean(axis=(1, 2, 3)), rtol=1e-3, atol=1e-5)


def test_the_penalty_is_that_of_the_gradient_at_real_images():
    config, _, variables = built("kl", **KL)
    _, (loss, aux) = graded("kl", **KL)(START)["discriminator"]
    score = jax.jit(jax.grad(lambda x: judge(config, variables["params"], x).sum()))
    squares = (np.asarray(score(X)) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(aux.metrics["penalty"], squares, rtol=1e-3)
    assert squares.min() > 0
    assert (loss > 2.5 * squares).all()  # and what the logits cost


def test_a_step_with_spectral_norm():
    """Power iteration goes on from step to step, and both groups move; the weight is the config's."""
    changed = {"start": 0, "spectral_norm": True, "norm": "none", "adaptive": False, "loss": "logistic"}
    system = models.build(tiny.config("vqvae", loss__likelihood="l1", adversarial=ADVERSARIAL | changed), SPEC)
    fresh = tiny.randomised(system.objective.init)
    optimizers = {group: optax.adam(1e-3) for group in system.objective.losses}
    objective = system.objective._replace(init=lambda key: fresh)
    state = jax.jit(functools.partial(initial_state, objective, optimizers))(jax.random.key(0))
    step = jax.jit(make_step(system.objective, optimizers, key=jax.random.key(1), ema_decay=0.9, examples=60))
    after, metrics = step(state, BATCH)
    assert all(np.isfinite(value) for value in metrics.values())
    for group in ("model", "discriminator"):
        for old, new in zip(*(jax.tree.leaves(s.variables["params"][group]) for s in (state, after)), strict=True):
            assert np.abs(old - new).max() > 1e-5
    assert {"model/loss", "discriminator/loss", "model/codes_used"} <= metrics.keys()
    np.testing.assert_allclose(metrics["model/adversarial_weight"], 0.75, rtol=1e-6)
    old, new = (jax.tree.leaves(s.variables["spectral"]) for s in (state, after))
    assert max(np.abs(a - b).max() for a, b in zip(old, new, strict=True)) > 1e-3
    for vector in new:
        np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-4)
    assert system.objective.warn({**metrics, "model/codes_used": 0.9}) is None


def test_a_perceptual_loss_is_added(monkeypatch):
    """Here of features that are the picture itself, as their one frozen number says."""
    monkeypatch.setattr(efficientnet, "features", lambda params, x: [params["gain"] * x])
    config = tiny.config("vae", loss__perceptual_weight=2.0, loss__likelihood="l1", loss__beta=0.0)
    system = models.build(config, SPEC, features={"gain": jnp.asarray(3.0)})
    variables = {**tiny.randomised(system.objective.init), "frozen": system.frozen}
    assert "features" not in variables["params"]
    run = jax.jit(lambda variables: system.objective.losses["model"](variables, BATCH, *at_step(jnp.asarray(0))))
    loss, aux = run(variables)
    assert aux.metrics["perceptual"].min() > 0
    np.testing.assert_allclose(loss, aux.metrics["reconstruction"] + 2 * aux.metrics["perceptual"], rtol=1e-5)
    _, blind = run({**variables, "frozen": {"features": {"gain": jnp.asarray(0.0)}}})
    assert not np.any(blind.metrics["perceptual"])


PUBLISHED = {  # of latent diffusion's model zoo: name, changes, parameters of the networks, 1x1 convolutions and codes
    "KL-f8": (
        "kl",
        {"model__multipliers": (1, 2, 4, 4), "model__z_channels": 4, "model__latent_channels": 4},
        83_653_863,
    ),
    "VQ-f4": (
        "vqgan",
        {"model__multipliers": (1, 2, 4), "model__z_channels": 3, "model__latent_channels": 3, "codes__size": 8192},
        55_322_782,
    ),
    "VQ-f8": (
        "vqgan",
        {
            "model__multipliers": (1, 2, 2, 4),
            "model__z_channels": 4,
            "model__latent_channels": 4,
            "model__attention_resolutions": (32,),
            "codes__size": 16384,
        },
        67_717_295,
    ),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_published_first_stages_have_their_size(name):
    base, changes, parameters = PUBLISHED[name]
    common = {
        "model__channels": 128,
        "model__blocks": 2,
        "model__norm_groups": 32,
        "model__attention_resolutions": (),
        "data__image_size": 256,
    }
    learned = {"codes__learned": "gradient"} if base == "vqgan" else {}
    system = models.build(tiny.config(base, **(common | learned | changes)), ImageSpec(256, 3, 0))
    variables, shapes = jax.eval_shape(system.objective.init, jax.random.key(0)), []
    jax.eval_shape(lambda variables: shapes.append(system.codec(variables).shape), variables)
    factor = 2 ** (len(changes["model__multipliers"]) - 1)
    assert shapes == [(256 // factor, 256 // factor, changes["model__latent_channels"])]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["model"])) == parameters


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        ("vqgan", {"adversarial__los": "hinge"}, "did you mean 'loss'"),
        ("vqgan", {"adversarial__loss": "hing"}, "did you mean 'hinge'"),
        ("vqgan", {"adversarial__penalty": -1.0}, "a finite number from 0"),
        ("vqgan", {"adversarial__layers": 3}, "need sides of 24"),
        ("vqgan", {"adversarial__norm": "grup"}, "grup"),
        ("vqgan", {"pixelcnn": {"features": 8}}, "drop adversarial"),
        ("vqgan", {"model__multipliers": (1, 2, 2, 2, 2)}, "not a multiple of 16"),
        (
            "vqgan",
            {"adversarial__channels": 24, "adversarial__norm_groups": 32, "adversarial__norm_min_channels": 0},
            "adversarial.norm_groups=32: must divide the 48 channels of norm 0; use 16, or",
        ),
        (
            "kl",
            {"model__channels": 12, "model__norm_groups": 8, "model__norm_min_channels": 0},
            "model.norm_groups=8: must divide the 12 channels of level 0; use 4, or model.norm_min_channels=4",
        ),
        ("kl", {"model__attention_resolutions": (5,)}, "attention_resolutions"),
        ("kl", {"model__dropout": 1.0}, "dropout is 1.0"),
        ("kl", {"dtype": "float16"}, "unknown dtype 'float16'"),
    ],
)
def test_what_does_not_fit_is_refused(base, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config(base, **changes), SPEC)
    assert "\n" not in str(caught.value)
