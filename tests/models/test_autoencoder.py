"""Losses that autoencoders share: adversarial and perceptual; sizes of the published first stages."""

import functools

import chex
import jax
import numpy as np
import pytest
from jax import numpy as jnp

from diffjax import models
from diffjax.errors import UserError
from diffjax.models.images import to_unit_range
from diffjax.nn import spectral
from diffjax.nn.discriminator import PatchDiscriminator
from diffjax.nn.pretrained import efficientnet
from diffjax.typing import ImageSpec
from tests import tiny

SPEC = ImageSpec(8, 1, 10)
BATCH = tiny.batch()
X = to_unit_range(BATCH["image"])
START = 100
ADVERSARIAL = tiny.config("vqgan", adversarial__start_step=START).adversarial.to_dict()
KINDS = {  # changes of VQGAN's discriminator
    "adaptive": {},
    "spectral": {"spectral_norm": True, "norm": "none", "adaptive": False, "loss": "logistic", "r1_gamma": 5.0},
}


@functools.cache
def built(kind):
    """A VQ-VAE with a discriminator; its networks compile faster than VQGAN's."""
    config = tiny.config("vqvae", loss__likelihood="l1", adversarial=ADVERSARIAL | KINDS[kind])
    model = models.build(config, SPEC)
    variables = {**tiny.randomised(model.init), "frozen": {}}
    # Logits on both sides of the hinge's margins: within, real and fake images have equal gradients of the last bias.
    kernel = variables["params"]["discriminator"]["conv_out"]["kernel"]
    variables["params"]["discriminator"]["conv_out"]["kernel"] = kernel * 10
    return config, model, variables


def at_step(step):
    return jax.random.split(jax.random.key(3), 6), tiny.moment()._replace(step=step)


def discriminator_logits(config, variables, images):
    """Returns the discriminator's logits of each patch, without spectral normalisation."""
    section = config.adversarial
    fields = ("channels", "layers", "norm", "norm_groups", "norm_min_channels")
    network = PatchDiscriminator(**{name: section[name] for name in fields})
    return network.apply({"params": variables["params"]["discriminator"]}, images)


@functools.cache
def computed(kind):
    """(step) -> per group (gradient, loss, aux), by all parameters for the discriminator, else by the model's."""
    _, model, variables = built(kind)

    @jax.jit
    def run(params, step):
        def mean(own_loss, group):
            whole = {**variables, "params": {**params, **own_loss}}
            loss, aux = model.losses[group](whole, BATCH, *at_step(step))
            return loss.mean(), (loss, aux)

        gradient = jax.grad(mean, has_aux=True)
        return {
            "model": gradient({"model": params["model"]}, "model"),
            "discriminator": gradient(params, "discriminator"),
        }

    return functools.cache(lambda step: jax.device_get(run(variables["params"], jnp.asarray(step))))


@functools.cache
def expected():
    """Independently of the losses: gradients of both costs at the last layer, and logits of real and fake images."""
    config, model, variables = built("adaptive")

    def costs(kernel):
        params, decoder = variables["params"], variables["params"]["model"]["decoder"]
        decoder = {**decoder, "conv_out": {**decoder["conv_out"], "kernel": kernel}}
        changed = {**variables, "params": {**params, "model": {**params["model"], "decoder": decoder}}}
        codec = model.codec(changed)
        images = codec.from_codes(codec.to_codes(X))
        fake = discriminator_logits(config, variables, images)
        return (jnp.abs(X - images).mean(), -fake.mean()), fake

    kernel = variables["params"]["model"]["decoder"]["conv_out"]["kernel"]
    gradients, fake = jax.jit(jax.jacrev(costs, has_aux=True))(kernel)
    real = jax.jit(lambda x: discriminator_logits(config, variables, x))(X)
    return jax.device_get((gradients, real, fake))


@pytest.mark.slow
def test_the_adaptive_weight_is_a_ratio_of_gradient_norms_at_the_last_layer():
    (reconstruction, adversarial), _, fake = expected()
    weight = np.linalg.norm(reconstruction) / (np.linalg.norm(adversarial) + 1e-4)
    assert 0.01 < weight < 1e4
    _, (loss, aux) = computed("adaptive")(START)["model"]
    np.testing.assert_allclose(aux.metrics["adversarial_weight"], 0.75 * weight, rtol=1e-3)
    reconstruction_only = aux.metrics["reconstruction"] + 0.25 * aux.metrics["commitment"]
    np.testing.assert_allclose(loss, reconstruction_only + 0.75 * weight * aux.metrics["adversarial"], rtol=1e-3)
    np.testing.assert_allclose(aux.metrics["adversarial"], -fake.mean(axis=(1, 2, 3)), rtol=1e-3, atol=1e-5)


def test_the_discriminator_has_the_hinge_loss_of_both_logits():
    """Half of the means over patches of both sides, as in VQGAN's code."""
    _, real, fake = expected()
    hinge = 0.5 * (np.maximum(0, 1 - real).mean(axis=(1, 2, 3)) + np.maximum(0, 1 + fake).mean(axis=(1, 2, 3)))
    _, (loss, aux) = computed("adaptive")(START)["discriminator"]
    np.testing.assert_allclose(loss, hinge, rtol=1e-4)
    np.testing.assert_allclose(aux.metrics["real"], real.mean(axis=(1, 2, 3)), rtol=1e-3, atol=1e-5)


def test_before_its_start_step_the_discriminator_has_no_effect():
    _, _, variables = built("adaptive")
    before, later = computed("adaptive")(START - 1), computed("adaptive")(START)
    gradient, (loss, aux) = before["model"]
    reconstruction_only = models.build(tiny.config("vqvae", loss__likelihood="l1"), SPEC)
    assert set(reconstruction_only.losses) == {"model"}

    @functools.partial(jax.grad, has_aux=True)
    def run(params):
        whole = {**variables, "params": params}
        loss, _ = reconstruction_only.losses["model"](whole, BATCH, *at_step(jnp.asarray(START - 1)))
        return loss.mean(), loss

    expected_gradient, expected_loss = jax.jit(run)({"model": variables["params"]["model"]})
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    chex.assert_trees_all_close(gradient, jax.device_get(expected_gradient), rtol=1e-3, atol=1e-6)
    assert not np.any(aux.metrics["adversarial_weight"])
    gradient, (loss, aux) = before["discriminator"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient)) and not np.any(loss)
    for name, value in aux.metrics.items():  # its metrics are logged from the first step on
        np.testing.assert_allclose(value, later["discriminator"][1][1].metrics[name], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_of_a_group_and_no_other(kind):
    results = computed(kind)(START)
    for group, (gradient, _) in results.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient[group]):
            assert np.isfinite(leaf).all(), path
            assert np.abs(leaf).max() > 0, path
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(results["discriminator"][0]["model"]))


def test_spectral_norm_penalty_and_a_constant_weight():
    """The penalty is R1 of the normalised network; the power iteration is updated; the weight is the config's."""
    config, model, variables = built("spectral")
    results = computed("spectral")(START)
    np.testing.assert_allclose(results["model"][1][1].metrics["adversarial_weight"], 0.75, rtol=1e-6)
    _, (loss, aux) = results["discriminator"]

    @jax.jit
    @jax.grad
    def score(x):
        normalized, _ = spectral.normalized(variables["params"]["discriminator"], variables["spectral"])
        changed = {"params": {"discriminator": normalized}}
        return discriminator_logits(config, changed, x).mean(axis=(1, 2, 3)).sum()

    squares = (np.asarray(score(X)) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(aux.metrics["penalty"], squares, rtol=1e-3)
    assert squares.min() > 0
    assert (loss > 2.5 * squares).all()  # and the loss of the logits
    before, after = (jax.tree.leaves(tree["spectral"]) for tree in (variables, aux.variables))
    assert max(np.abs(a - b).max() for a, b in zip(before, after, strict=True)) > 1e-3
    for vector in after:
        np.testing.assert_allclose(np.linalg.norm(vector), 1.0, rtol=1e-4)
    assert model.warn({"model/codes_used": 0.9, "discriminator/loss": 0.0}) is None


def test_the_perceptual_distance_is_added_with_its_weight(monkeypatch):
    """The features are the image times a frozen number."""
    monkeypatch.setattr(efficientnet, "features", lambda params, x: [params["gain"] * x])
    config = tiny.config("vae", loss__perceptual_weight=2.0, loss__likelihood="l1", loss__beta=0.0)
    model = models.build(config, SPEC, features={"gain": 3.0})
    assert model.frozen == {"features": {"gain": 3.0}}
    variables = {**tiny.randomised(model.init), "frozen": model.frozen}
    assert "features" not in variables["params"]
    run = jax.jit(lambda variables: model.losses["model"](variables, BATCH, *at_step(jnp.asarray(0))))
    loss, aux = jax.device_get(run(variables))
    assert aux.metrics["perceptual"].min() > 0
    np.testing.assert_allclose(loss, aux.metrics["reconstruction"] + 2 * aux.metrics["perceptual"], rtol=1e-5)
    _, blind = run({**variables, "frozen": {"features": {"gain": 0.0}}})
    assert not np.any(blind.metrics["perceptual"])


VQ = {"base": "vqgan", "codebook__update_rule": "gradient", "codebook__size": 8192}
PUBLISHED = {  # latent diffusion's model zoo: changes, and number of parameters with 1x1 convolutions and codebook
    "KL-f8": (
        {"base": "kl", "model__multipliers": (1, 2, 4, 4), "model__z_channels": 4, "model__latent_channels": 4},
        83_653_863,
    ),
    "VQ-f4": (
        VQ
        | {
            "model__multipliers": (1, 2, 4),
            "model__z_channels": 3,
            "model__latent_channels": 3,
            "codebook__size": 8192,
        },
        55_322_782,
    ),
    "VQ-f8": (
        VQ
        | {
            "model__multipliers": (1, 2, 2, 4),
            "model__z_channels": 4,
            "model__latent_channels": 4,
            "model__attention_resolutions": (32,),
            "codebook__size": 16384,
        },
        67_717_295,
    ),
}


@pytest.mark.parametrize(
    "name", ["KL-f8", *(pytest.param(name, marks=pytest.mark.slow) for name in ("VQ-f4", "VQ-f8"))]
)
def test_published_first_stages_have_their_size(name):
    changes, parameters = PUBLISHED[name]
    common = {
        "model__channels": 128,
        "model__blocks": 2,
        "model__norm_groups": 32,
        "model__attention_resolutions": (),
        "data__image_size": 256,
    }
    changes = common | changes
    model = models.build(tiny.config(changes.pop("base"), **changes), ImageSpec(256, 3, 0))
    variables, shapes = model.variable_shapes, []
    jax.eval_shape(lambda variables: shapes.append(model.codec(variables).shape), variables)
    factor = 2 ** (len(changes["model__multipliers"]) - 1)
    assert shapes == [(256 // factor, 256 // factor, changes["model__latent_channels"])]
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["model"])) == parameters


INVALID = [
    ("vqgan", {"adversarial__los": "hinge"}, "did you mean 'loss'"),
    ("vqgan", {"adversarial__loss": "hing"}, "did you mean 'hinge'"),
    ("vqgan", {"adversarial__r1_gamma": -1.0}, "must be a finite number from 0"),
    ("vqgan", {"adversarial__layers": 3}, "requires image sides from 24"),
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
    ("kl", {"model__dropout": 1.0}, "dropout=1.0: must be in"),
    ("kl", {"dtype": "float16"}, "unknown dtype 'float16'"),
]


@pytest.mark.parametrize(("base", "changes", "message"), INVALID)
def test_invalid_configs_raise(base, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        models.build(tiny.config(base, **changes), SPEC)
    assert "\n" not in str(caught.value)
