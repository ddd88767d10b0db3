"""What the reconstructions of an autoencoder cost, alone or against a discriminator."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.errors import UserError, checked_number, checked_whole
from diffjax.latents.output_distributions import Output
from diffjax.models.autoencoders.encoder_decoder import Coder, Params
from diffjax.models.gan.discriminator_loss import SETTINGS, Critic, kept, own, started
from diffjax.models.networks import check_buildable, check_norms, dtype_of, make
from diffjax.models.pixels import to_unit_range
from diffjax.nn import perceptual
from diffjax.nn.discriminator import PatchDiscriminator
from diffjax.nn.pretrained import efficientnet
from diffjax.typing import Aux, Images, ImageSpec, Latents, Moment, Objective, PRNGKey, PRNGKeys, Variables

_MOST_BALANCE = 1e4  # VQGAN's code


class Attempt(NamedTuple):
    """What an autoencoder makes of a batch, before it is told what that costs."""

    latent: Latents  # that the decoder was given
    output: Output
    cost: Float[Array, "B"]  # of the latent: a KL, a commitment; nats a value
    metrics: dict[str, Array]
    variables: dict[str, Any]


def make_objective(
    config,
    spec: ImageSpec,
    coder: Coder,
    init: Callable[[PRNGKey], Variables],
    attempt: Callable[[Params, Variables, Images, PRNGKeys, Moment], Attempt],
    **others,
) -> Objective:
    """Reconstruction plus the latent's cost; with a section `adversarial`, against a discriminator too.

    The discriminator is VQGAN's (Esser et al. 2021, eqs. 5 to 7): hinge loss on patches, let in at `adversarial.start`;
    with `adaptive`, its weight is the ratio of both losses' gradients at the decoder's last layer. `init` gives the
    autoencoder's variables, `others` are further fields of the Objective. The perceptual loss is on the network whose
    parameters are variables["frozen"]["features"], where they are. Raises UserError for networks that do not fit.
    """
    settings = config.get("adversarial")
    if settings and coder.pixelcnn is not None:
        raise UserError("an autoregressive decoder (section pixelcnn) has no one picture to judge: drop adversarial")
    checked_number("loss.perceptual_weight", config.loss.perceptual_weight, low=0)
    if config.loss.perceptual_file:
        others["note"] = f"perceptual loss on the features of {config.loss.perceptual_file}"
    else:
        others["note"] = f"no perceptual loss, plain {config.loss.likelihood}: loss.perceptual_file is empty"

    def reconstruction(variables, x, output):
        value = coder.likelihood.nll(x, output)
        metrics = {"reconstruction": value}
        if "features" in variables["frozen"]:
            maps = functools.partial(efficientnet.features, variables["frozen"]["features"])
            distance = perceptual.distance(maps, x, coder.likelihood.mean(output))
            value, metrics = value + config.loss.perceptual_weight * distance, metrics | {"perceptual": distance}
        return value, metrics

    def tried(variables, batch, keys, moment):
        x = to_unit_range(batch["image"])
        return x, attempt(variables["params"]["model"], variables, batch | {"image": x}, keys, moment)

    def plain(variables, batch, keys, moment):
        x, made = tried(variables, batch, keys, moment)
        value, metrics = reconstruction(variables, x, made.output)
        return value + made.cost, Aux(metrics | made.metrics, made.variables)

    if not settings:
        check_buildable(init)
        return Objective(init, {"model": plain}, **others)

    network = make(
        PatchDiscriminator,
        settings,
        "adversarial",
        but=("weight", "start", "adaptive", *SETTINGS),
        dtype=dtype_of(config),
    )
    if network.norm == "group":
        doublings = [2**i for i in range(1, min(network.layers, 3) + 1)]  # of every layer with a norm
        check_norms("adversarial", settings, network.channels, doublings, unit="norm")
    critic = Critic.from_config(network, settings)
    checked_number("adversarial.weight", settings.weight, low=0)
    checked_whole("adversarial.start", settings.start, low=0)

    def init_both(key):
        coder_key, discriminator_key = jax.random.split(key)
        variables = init(coder_key)
        params, memory = critic.init(discriminator_key, jnp.zeros((1, *coder.shape)))
        return {**variables, **kept(memory), "params": {**variables["params"], "discriminator": params}}

    def balance(variables, made, x, moment):
        """Ratio of the norms of both costs' gradients at the last layer: VQGAN, eq. 7."""
        params = variables["params"]["model"]
        decoder, latent = params["decoder"], lax.stop_gradient(made.latent)

        def decode(kernel):
            last = {**decoder, "conv_out": {**decoder["conv_out"], "kernel": kernel}}
            return coder.decode({**params, "decoder": last}, latent, x)

        output, pull = jax.vjp(decode, decoder["conv_out"]["kernel"])
        costs = (
            lambda output: reconstruction(variables, x, output)[0].mean(),
            lambda output: critic.generator_loss(*own(variables), coder.likelihood.mean(output)).mean(),
        )
        ours, theirs = (optax.global_norm(moment.mean(pull(jax.grad(cost)(output)))) for cost in costs)
        return lax.stop_gradient(jnp.clip(ours / (theirs + 1e-4), 0.0, _MOST_BALANCE))

    def against(variables, batch, keys, moment):
        x, made = tried(variables, batch, keys, moment)
        value, metrics = reconstruction(variables, x, made.output)
        fooled = critic.generator_loss(*own(variables), coder.likelihood.mean(made.output))
        weight = settings.weight * started(moment, settings.start)
        if settings.adaptive:
            weight = weight * balance(variables, made, x, moment)
        metrics |= {"adversarial": fooled, "adversarial_weight": weight}
        return value + made.cost + weight * fooled, Aux(metrics | made.metrics, made.variables)

    def discriminator(variables, batch, keys, moment):
        x, made = tried(variables, batch, keys, moment)  # as the model's: XLA makes it once
        fake = coder.likelihood.mean(made.output)
        value, metrics, memory = critic.train_loss(*own(variables), (x,), (fake,))
        return started(moment, settings.start) * value, Aux(metrics, kept(memory))

    check_buildable(init_both, "config.model, config.adversarial or config.data.image_size")
    return Objective(init_both, {"model": against, "discriminator": discriminator}, **others)
