"""What autoencoders share: their networks, what a reconstruction costs, and a discriminator that judges it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import optax
from flax import linen as nn
from jax import lax
from jax import numpy as jnp
from jaxtyping import Array, Float

from diffjax.choice import choose
from diffjax.errors import UserError, unknown
from diffjax.latents import likelihoods
from diffjax.latents.likelihoods import Likelihood, Output
from diffjax.nn import efficientnet, perceptual
from diffjax.nn.autoencoders import dalle, ldm, vqvae
from diffjax.nn.discriminator import PatchDiscriminator
from diffjax.nn.layers import Dense
from diffjax.nn.pixelcnn import PixelCNN, generate
from diffjax.systems.critic import Critic, started
from diffjax.systems.pixels import dtype_of, to_unit_range
from diffjax.typing import Aux, Images, ImageSpec, Latents, Moment, Objective, PRNGKey, PRNGKeys, Variables

ARCHITECTURES = {"dalle": dalle, "ldm": ldm, "vqvae": vqvae}
_OWN = (
    "architecture",
    "latent_channels",
    "z_channels",
    "coarser_factors",
)  # fields of config.model that are not the architecture's
_MOST_BALANCE = 1e4  # VQGAN's code
_STATISTICS_DECAY = 0.99  # of the latents' mean and variance

Params = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Coder:
    """The encoder and the decoder of a config, and the likelihood between.

    Attributes:
      to_latent, from_latent: 1x1 convolutions between `model.z_channels` and the latent's; None where that is 0.
      pixelcnn: an autoregressive decoder, which sees the pixels so far and what `decoder` makes of the latent.
      shape: of an image.
      grid: height and width of a latent.
    """

    encoder: nn.Module
    decoder: nn.Module
    to_latent: Dense | None
    from_latent: Dense | None
    pixelcnn: PixelCNN | None
    likelihood: Likelihood
    shape: tuple[int, int, int]
    grid: tuple[int, int]

    @classmethod
    def from_config(cls, config, spec: ImageSpec, *, encoded: int, hidden: int | None = None) -> "Coder":
        """Of `config.model` and `config.loss`; the encoder gives `encoded` channels. Raises UserError.

        `hidden` stands for model.z_channels.
        """
        model, dtype = config.model, dtype_of(config)
        if model.architecture not in ARCHITECTURES:
            raise unknown("model.architecture", model.architecture, ARCHITECTURES)
        likelihood = choose("loss.likelihood", likelihoods, config.loss.likelihood).bind()()
        pixelcnn = None
        decoded = spec.channels * likelihood.parameters
        if config.get("pixelcnn"):
            pixelcnn = make(PixelCNN, config.pixelcnn, "pixelcnn", outputs=decoded, dtype=dtype)
            decoded = pixelcnn.features
        hidden = model.get("z_channels", 0) if hidden is None else hidden
        architecture = ARCHITECTURES[model.architecture]
        fields = {name: value for name, value in model.items() if name not in _OWN}
        encoder, decoder = _pair(architecture, fields, hidden or encoded, decoded, dtype)
        if spec.size % encoder.factor:
            raise UserError(
                f"data.image_size={spec.size} is not a multiple of {encoder.factor}, by which this "
                f"{model.architecture} encoder divides it: use another size, or an encoder with fewer halvings"
            )
        side = spec.size // encoder.factor
        return cls(
            encoder=encoder,
            decoder=decoder,
            to_latent=Dense(encoded, "torch") if hidden else None,
            from_latent=Dense(hidden, "torch") if hidden else None,
            pixelcnn=pixelcnn,
            likelihood=likelihood,
            shape=(spec.size, spec.size, spec.channels),
            grid=(side, side),
        )

    def init(self, key: PRNGKey, latent: Latents) -> Params:
        """Fresh parameters; `latent` [1, h, w, c] is any that the decoder is to be given."""
        image, keys = jnp.zeros((1, *self.shape)), jax.random.split(key, 5)
        params, h = {}, image
        for name, module, k in (("encoder", self.encoder, keys[0]), ("to_latent", self.to_latent, keys[1])):
            if module is not None:
                h, variables = module.init_with_output(k, h)
                params[name] = variables.get("params", {})
        h = latent
        for name, module, k in (("from_latent", self.from_latent, keys[2]), ("decoder", self.decoder, keys[3])):
            if module is not None:
                h, variables = module.init_with_output(k, h)
                params[name] = variables["params"]
        if self.pixelcnn is not None:
            params["pixelcnn"] = self.pixelcnn.init(keys[4], image, h)["params"]
        return params

    def encode(self, params: Params, x: Images, dropout_keys: PRNGKeys | None = None) -> Latents:
        """Images in [-1, 1] to what the encoder says of them, [B, h, w, encoded]."""
        h = self.encoder.apply({"params": params["encoder"]}, x, dropout_keys)
        return h if self.to_latent is None else self.to_latent.apply({"params": params["to_latent"]}, h)

    def decode(self, params: Params, z: Latents, x: Images, dropout_keys: PRNGKeys | None = None) -> Output:
        """The parameters of p(x | z); an autoregressive decoder sees x, each pixel those before it."""
        h = self._features(params, z, dropout_keys)
        if self.pixelcnn is not None:
            h = self.pixelcnn.apply({"params": params["pixelcnn"]}, x, h, dropout_keys)
        return self._by_value(h)

    def reconstruct(self, params: Params, z: Latents) -> Images:
        """The mean of p(x | z), where the decoder gives it at once."""
        return self.likelihood.mean(self._by_value(self._features(params, z)))

    def draw(self, params: Params, keys: PRNGKeys, z: Latents) -> Images:
        """Of an autoregressive decoder a draw from p(x | z), pixel after pixel; of another one its mean."""
        if self.pixelcnn is None:
            return self.reconstruct(params, z)

        def pick(keys, output, position):
            pixel = self.likelihood.draw(keys, output.reshape(len(output), 1, 1, self.shape[-1], -1))[:, 0, 0]
            return pixel, pixel

        condition = self._features(params, z)
        height, width, _ = self.shape
        return generate(self.pixelcnn, params["pixelcnn"], pick, keys, condition, height, width)

    def _features(self, params: Params, z: Latents, dropout_keys: PRNGKeys | None = None) -> Array:
        if self.from_latent is not None:
            z = self.from_latent.apply({"params": params["from_latent"]}, z)
        return self.decoder.apply({"params": params["decoder"]}, z, dropout_keys)

    def _by_value(self, h: Float[Array, "B H W CP"]) -> Output:
        return h.reshape(*h.shape[:3], self.shape[-1], self.likelihood.parameters)


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
    autoencoder's variables, `others` are further fields of the Objective.
    """
    settings = config.get("adversarial")
    if settings and coder.pixelcnn is not None:
        raise UserError("an autoregressive decoder (section pixelcnn) has no one picture to judge: drop adversarial")
    perceptual_weight = config.loss.get("perceptual_weight", 1.0)

    def reconstruction(variables, x, output):
        value = coder.likelihood.nll(x, output)
        metrics = {"reconstruction": value}
        if "features" in variables["frozen"]:
            maps = functools.partial(efficientnet.features, variables["frozen"]["features"])
            distance = perceptual.distance(maps, x, coder.likelihood.mean(output))
            value, metrics = value + perceptual_weight * distance, metrics | {"perceptual": distance}
        return value, metrics

    def plain(variables, batch, keys, moment):
        params, x = variables["params"]["model"], to_unit_range(batch["image"])
        made = attempt(params, variables, batch | {"image": x}, keys, moment)
        value, metrics = reconstruction(variables, x, made.output)
        return value + made.cost, Aux(metrics | made.metrics, made.variables)

    if not settings:
        return Objective(init, {"model": plain}, **others)

    network = make(PatchDiscriminator, settings, "adversarial", but=_SETTINGS, dtype=dtype_of(config))
    critic = Critic.from_config(network, settings)

    def init_both(key):
        own, other = jax.random.split(key)
        variables = init(own)
        judge, memory = critic.init(other, jnp.zeros((1, *coder.shape)))
        memory = {"spectral": memory} if memory else {}
        return {**variables, **memory, "params": {**variables["params"], "discriminator": judge}}

    def judge(variables):
        return variables["params"]["discriminator"], variables.get("spectral", {})

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
            lambda output: critic.generator_loss(*judge(variables), coder.likelihood.mean(output)).mean(),
        )
        ours, theirs = (optax.global_norm(moment.mean(pull(jax.grad(cost)(output)))) for cost in costs)
        return lax.stop_gradient(jnp.clip(ours / (theirs + 1e-4), 0.0, _MOST_BALANCE))

    def against(variables, batch, keys, moment):
        params, x = variables["params"]["model"], to_unit_range(batch["image"])
        made = attempt(params, variables, batch | {"image": x}, keys, moment)
        value, metrics = reconstruction(variables, x, made.output)
        fooled = critic.generator_loss(*judge(variables), coder.likelihood.mean(made.output))
        weight = settings.weight * started(moment, settings.start)
        if settings.adaptive:
            weight = weight * balance(variables, made, x, moment)
        metrics |= {"adversarial": fooled, "adversarial_weight": weight}
        return value + made.cost + weight * fooled, Aux(metrics | made.metrics, made.variables)

    def discriminator(variables, batch, keys, moment):
        params, x = variables["params"]["model"], to_unit_range(batch["image"])
        made = attempt(params, variables, batch | {"image": x}, keys, moment)  # the model's own: XLA makes it once
        fake = coder.likelihood.mean(made.output)
        value, metrics, memory = critic.train_loss(*judge(variables), (x,), (fake,))
        memory = {"spectral": memory} if memory else {}
        return started(moment, settings.start) * value, Aux(metrics, memory)

    return Objective(init_both, {"model": against, "discriminator": discriminator}, **others)


_SETTINGS = (
    "weight",
    "start",
    "adaptive",
    "loss",
    "spectral_norm",
    "penalty",
)  # of `adversarial`, beside the network's


def make(module: type[nn.Module], section: Mapping, name: str, but: tuple[str, ...] = (), **given) -> nn.Module:
    """The module with the fields of a config's section. Raises UserError for fields that it has not."""
    fields = {field.name for field in dataclasses.fields(module)} - {"parent", "name", *given}
    for field in section:
        if field not in fields and field not in but:
            raise unknown(f"field of config.{name}", field, fields | set(but))
    return module(**given, **{field: value for field, value in section.items() if field in fields})


def _pair(architecture: ModuleType, fields: Mapping, encoded: int, decoded: int, dtype) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder with the fields of `config.model`; some are of one of them only."""
    known = [{field.name for field in dataclasses.fields(c)} for c in (architecture.Encoder, architecture.Decoder)]
    made = []
    for cls, own, other, outputs in zip(
        (architecture.Encoder, architecture.Decoder), known, reversed(known), (encoded, decoded), strict=True
    ):
        mine = {name: value for name, value in fields.items() if name in own or name not in other}
        made.append(make(cls, mine, "model", outputs=outputs, dtype=dtype))
    return tuple(made)


def fresh_statistics() -> dict[str, Array]:
    """Of latents, before any was seen: those of unit variance."""
    return {"mean": jnp.zeros(()), "square": jnp.ones(())}


def statistics(before: Mapping[str, Array], z: Latents, moment: Moment) -> dict[str, Array]:
    """The running mean of latents and of their squares, which a codec takes its scale from."""
    decay = jnp.minimum(_STATISTICS_DECAY, moment.step / (10.0 + moment.step))
    z = lax.stop_gradient(z)
    return {"mean": _mix(decay, before["mean"], z.mean()), "square": _mix(decay, before["square"], (z**2).mean())}


def latent_scale(seen: Mapping[str, Array]) -> Float[Array, ""]:
    """What gives latents unit variance: latent diffusion (Rombach et al. 2022), app. G."""
    return 1.0 / jnp.sqrt(jnp.maximum(seen["square"] - seen["mean"] ** 2, 1e-12))


def frozen_features(features: Params | None) -> dict[str, Params]:
    """What `System.frozen` holds for the perceptual loss."""
    return {} if features is None else {"features": features}


def note(config) -> str:
    """What a run's log says of its perceptual loss."""
    if config.loss.get("perceptual_file"):
        return f"perceptual loss on the features of {config.loss.perceptual_file}"
    return f"no perceptual loss: plain {config.loss.likelihood} (loss.perceptual_file is empty)"


def _mix(decay: Array, old: Array, new: Array) -> Array:
    return decay * old + (1 - decay) * new
