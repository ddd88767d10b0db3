"""VQ-VAE, and VQ-VAE-2 and VQGAN by their configs.

References:
  van den Oord et al. 2017, "Neural discrete representation learning" (VQ-VAE).
  Razavi et al. 2019, "Generating diverse high-fidelity images with VQ-VAE-2".
  Esser et al. 2021, "Taming transformers for high-resolution image synthesis" (VQGAN).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from diffjax.diffusion.random import split_each
from diffjax.errors import UserError, unknown, validate_integer, validate_number
from diffjax.latents import codebook, statistics
from diffjax.latents.quantizers import Bits, FiniteScalars, Quantizer, VectorQuantizer
from diffjax.models.autoencoders.encoder_decoder import Params
from diffjax.models.autoencoders.multiscale import Encoded, MultiScaleEncoder
from diffjax.models.autoencoders.objective import (
    AutoencoderOutput,
    ReconstructionModel,
    check_autoencoder,
    choose_class,
    loss_fields,
)
from diffjax.models.base import Autoencoder, LikelihoodModel
from diffjax.models.images import to_unit_range
from diffjax.typing import Batch, Codec, Codes, Images, ImageSpec, Latents, PRNGKey, PRNGKeys, StepContext, Variables

_OPTIONS = {"shared": False, "estimator": "straight_through", "entropy_weight": 0.1}  # that old configs lack
_MAX_BITS = 14
_MIN_USAGE = 0.05  # fraction of the codebook; with less in use the codebook has collapsed


@dataclasses.dataclass(frozen=True, kw_only=True)
class VQVAE(ReconstructionModel):
    """An autoencoder whose latents are quantised.

    Attributes:
      encoder: the networks and the quantiser of all scales.
      commitment: weight of the commitment loss.
      fits_codebook: whether codebooks are initialised with the latents of the first batch.
      may_collapse: whether codes can stay unused and could be restarted.
    """

    encoder: MultiScaleEncoder
    commitment: float
    fits_codebook: bool
    may_collapse: bool

    @property
    def quantizer(self) -> Quantizer:
        """The quantiser, which all scales share with a codebook each."""
        return self.encoder.quantizer

    @property
    def has_one_scale(self) -> bool:
        """True if there is one scale of codes."""
        return len(self.encoder.names) == 1

    def init_autoencoder(self, key: PRNGKey) -> Variables:
        key, *keys = jax.random.split(key, 1 + len(self.encoder.names))
        params, memory = {}, {}
        for name, codebook_key in zip(self.encoder.names, keys, strict=True):
            params[name], memory[name] = self.quantizer.init(codebook_key)
        model = {**self.encoder.init(key), "codebook": params}
        return {"params": {"model": model}, "codebook": memory, "latents": statistics.init()}

    def forward(
        self, variables: Variables, x: Images, batch: Batch, keys: PRNGKeys, context: StepContext
    ) -> AutoencoderOutput:
        params, (encoder_keys, decoder_keys) = variables["params"]["model"], split_each(keys)
        encoded = self.encoder.encode(params, variables["codebook"], x, encoder_keys)
        latent_cost, memory, metrics = jnp.zeros(()), {}, {}
        for name, z, quantized in zip(self.encoder.names, encoded.latents, encoded.quantized, strict=True):
            latent_cost += quantized.codebook + self.commitment * quantized.commitment
            latent_cost += self.quantizer.penalty(z, context)
            entries = params["codebook"][name], variables["codebook"][name]
            memory[name], measured = self.quantizer.learn(*entries, quantized, batch["index"], context)
            measured = {"commitment": quantized.commitment, **measured}
            metrics |= {key + self._suffix(name): value for key, value in measured.items()}
        latents = statistics.ema_update(variables["latents"], self._codec_latents(encoded), context)
        output = self.networks.decode(params, encoded.latent, x, decoder_keys)
        updated = {"codebook": memory, "latents": latents}
        return AutoencoderOutput(encoded.latent, output, latent_cost, metrics, updated)

    def _codec_latents(self, encoded: Encoded) -> Latents:
        """Returns latents before quantisation with one scale, as in latent diffusion; else the decoder's input."""
        return encoded.latents[0] if self.has_one_scale else encoded.latent

    def _suffix(self, name: str) -> str:
        return "" if self.has_one_scale else f"_{name}"

    @property
    def fits_first_batch(self) -> bool:
        return self.fits_codebook

    def prepare(self, variables: Variables, batch: Batch) -> Variables:
        """Returns variables with codebooks fitted to the first batch, coarsest first, as finer scales depend on it."""
        if not self.fits_codebook:
            return variables
        params, memory, x = variables["params"]["model"], variables["codebook"], to_unit_range(batch["image"])
        encode = jax.jit(self.encoder.encode)
        for level, name in reversed(list(enumerate(self.encoder.names))):
            z = encode(params, memory, x).latents[level]
            fitted, remembered = self.quantizer.fit(params["codebook"][name], memory[name], z)
            params = {**params, "codebook": {**params["codebook"], name: fitted}}
            memory = {**memory, name: remembered}
        return {**variables, "params": {**variables["params"], "model": params}, "codebook": memory}

    def summarize(self, collections: Mapping[str, Any]) -> dict[str, Array]:
        """Returns the usage of each codebook by all latents of the epoch."""
        usage = {name: codebook.usage_metrics(collections["codebook"][name]["usage"]) for name in self.encoder.names}
        return {key + self._suffix(name): value for name, values in usage.items() for key, value in values.items()}

    def warn(self, metrics: Mapping[str, float]) -> str | None:
        usage = min(value for name, value in metrics.items() if "codes_used" in name)
        if usage >= _MIN_USAGE or not self.may_collapse:
            return None
        return (
            f"less than {_MIN_USAGE:.0%} of the codes are in use: the codebook has collapsed; set "
            "codebook.dead_code_threshold, or codebook.init=data"
        )


class CodecVQVAE(VQVAE, Autoencoder):
    """A VQ-VAE whose decoder is not autoregressive, so that codes have one reconstruction."""

    def codec(self, variables: Variables) -> Codec:
        params, memory = variables["params"]["model"], variables["codebook"]
        scale = statistics.scale(variables["latents"])

        def encode(x: Images) -> Latents:
            return self._codec_latents(self.encoder.encode(params, memory, x)) * scale

        def decode(z: Latents) -> Images:
            if self.has_one_scale:
                (name,) = self.encoder.names
                z = self.quantizer.quantize(params["codebook"][name], memory[name], z / scale).vectors * scale
            return self.networks.reconstruct(params, z / scale)

        def to_codes(x: Images) -> Codes:
            return tuple(level.codes for level in reversed(self.encoder.encode(params, memory, x).quantized))

        def from_codes(codes: Codes) -> Images:
            vectors = [
                self.quantizer.lookup(params["codebook"][name], memory[name], code)
                for name, code in zip(self.encoder.names, reversed(codes), strict=True)
            ]
            return self.networks.reconstruct(params, self.encoder.join(params, vectors))

        return Codec(
            encode=encode,
            decode=decode,
            shape=self.encoder.latent_shape,
            scale=scale,
            to_codes=to_codes,
            from_codes=from_codes,
            grids=tuple((*grid, self.quantizer.depth) for grid in reversed(self.encoder.grids)),
            vocabulary=self.quantizer.vocabulary,
        )


class LikelihoodVQVAE(VQVAE, LikelihoodModel):
    """A VQ-VAE whose output distribution is a probability of grey levels."""

    def likelihood(
        self, variables: Variables, keys: PRNGKeys, batch: Batch, samples: int
    ) -> dict[str, Float[Array, " B"]]:
        """Returns the ELBO under equally likely codes, and its terms, in bits per dimension.

        Reference: van den Oord et al. 2017, section 3.2.
        """
        params, x = variables["params"]["model"], to_unit_range(batch["image"])
        latent = self.encoder.encode(params, variables["codebook"], x).latent
        nll = self.networks.distribution.nll(x, self.networks.decode(params, latent, x))
        num_codes = sum(math.prod(grid) for grid in self.encoder.grids) * self.quantizer.depth
        kl = jnp.full_like(nll, num_codes * math.log(self.quantizer.vocabulary) / math.prod(self.networks.shape))
        return {name: nats / math.log(2) for name, nats in {"elbo": nll + kl, "nll": nll, "kl": kl}.items()}


class CodecLikelihoodVQVAE(CodecVQVAE, LikelihoodVQVAE):
    """A VQ-VAE with both a codec and a likelihood."""


def build(config: ConfigDict, spec: ImageSpec, **frozen: Params) -> VQVAE:
    """Builds the VQ-VAE of `config` for images of `spec`.

    Args:
      frozen: "features", the parameters of the network of the perceptual loss.

    Raises:
      UserError: an unknown choice, or one that does not fit the images.
    """
    encoder, section = MultiScaleEncoder.from_config(config, spec, make_quantizer(config)), config.codebook
    networks = encoder.networks
    model_class = choose_class(networks, VQVAE, LikelihoodVQVAE, CodecVQVAE, CodecLikelihoodVQVAE)
    model = model_class(
        **loss_fields(config, networks),
        encoder=encoder,
        commitment=section.commitment,
        fits_codebook=section.init != "normal",
        may_collapse=not section.dead_code_threshold
        and section.kind not in ("fsq", "lfq")
        and section.update_rule != "linear",
        frozen=frozen,
    )
    check_autoencoder(model)
    return model


def make_quantizer(config: ConfigDict) -> Quantizer:
    """Builds the quantiser of a config's section `codebook`.

    Raises:
      UserError: an unknown choice, or an invalid field.
    """
    section, channels = config.codebook, config.model.latent_channels
    choices = {
        "kind": ("vq", "residual", "product", "fsq", "lfq"),
        "update_rule": ("ema", "gradient", "linear"),
        "init": ("normal", "data", "kmeans"),
        "estimator": ("straight_through", "rotation"),
    }
    section = ConfigDict({**_OPTIONS, **section})
    for name, known in choices.items():
        if section[name] not in known:
            raise unknown(f"codebook.{name}", section[name], known)
    validate_integer("model.latent_channels", channels)
    if section.kind in ("fsq", "lfq") and section.estimator != "straight_through":
        raise UserError(
            f"codebook.estimator={section.estimator}: is not supported for codebook.kind={section.kind}; set it to "
            "straight_through"
        )
    if section.kind == "fsq":
        return _make_finite_scalars(section.levels, channels)
    if section.kind == "lfq":
        return _make_bits(section.entropy_weight, channels)
    _check_codebook(section, channels)
    return VectorQuantizer(
        channels,
        section.size,
        section.depth,
        split=section.kind == "product",
        shared=section.shared,
        update_rule=section.update_rule,
        rotate=section.estimator == "rotation",
        decay=section.decay,
        cosine=section.cosine,
        dead_code_threshold=section.dead_code_threshold,
        initial=section.init,
    )


def _make_finite_scalars(levels: Sequence[int], channels: int) -> FiniteScalars:
    for level in levels:
        validate_integer("codebook.levels", level, low=2)
    if len(levels) != channels:
        raise UserError(
            f"codebook.levels={tuple(levels)}: must have model.latent_channels={channels} numbers for "
            "codebook.kind=fsq; set one number of levels per channel"
        )
    return FiniteScalars(channels, math.prod(levels), 1, levels=tuple(levels))


def _make_bits(entropy_weight: float, channels: int) -> Bits:
    validate_number("codebook.entropy_weight", entropy_weight, low=0)
    if channels > _MAX_BITS:
        raise UserError(
            f"model.latent_channels={channels}: must be at most {_MAX_BITS} for codebook.kind=lfq, as its penalty "
            "has all codes in memory; lower it"
        )
    return Bits(channels, 2**channels, 1, entropy_weight=entropy_weight)


def _check_codebook(section: ConfigDict, channels: int) -> None:
    """Raises UserError for invalid fields of learned codebooks."""
    validate_integer("codebook.size", section.size, low=2)
    depth = validate_integer("codebook.depth", section.depth)
    validate_number("codebook.decay", section.decay, low=0, high=1, exclusive="high")
    validate_number("codebook.dead_code_threshold", section.dead_code_threshold, low=0, high=1)
    validate_number("codebook.commitment", section.commitment, low=0)
    if section.kind == "vq" and depth > 1:
        raise UserError(
            f"codebook.depth={depth}: must be 1 for codebook.kind=vq; set codebook.kind=residual or product"
        )
    if section.kind == "product" and channels % depth:
        raise UserError(
            f"codebook.depth={depth}: does not divide model.latent_channels={channels}; use a divisor for "
            "codebook.kind=product"
        )
    if section.update_rule == "linear" and section.dead_code_threshold:
        raise UserError(
            f"codebook.dead_code_threshold={section.dead_code_threshold:g}: must be 0 for codebook.update_rule=linear, "
            "which moves unused entries too"
        )
    if section.shared and section.kind != "residual":
        raise UserError(
            f"codebook.shared=True: is only supported for codebook.kind=residual, not {section.kind}; set it to False"
        )
    if section.cosine and section.kind == "residual":
        raise UserError(
            "codebook.cosine=True: is not supported for codebook.kind=residual, as residuals are not directions; set "
            "it to False"
        )
