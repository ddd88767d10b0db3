"""Autoregressive priors over the codes of a trained codec; DALL-E is one conditioned on captions.

A prior is a gated PixelCNN over one scale (VQ-VAE), or a causal transformer over all scales, coarsest first (in place
of VQ-VAE-2's PixelSNAILs), or over a caption and then the codes (DALL-E). Over the codes of a CLIP embedding it is
unCLIP's autoregressive prior. The frozen codec computes codes of the images in every training step.

References:
  van den Oord et al. 2017, "Neural discrete representation learning", section 4.2.
  Razavi et al. 2019, "Generating diverse high-fidelity images with VQ-VAE-2", section 3.2.
  Ramesh et al. 2021, "Zero-shot text-to-image generation".
  Ramesh et al. 2022, "Hierarchical text-conditional image generation with CLIP latents", section 2.2.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax import numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from diffjax.diffusion.random import split_each
from diffjax.errors import unknown, validate_number
from diffjax.models.base import Autoencoder, ContrastiveModel
from diffjax.models.networks import check_buildable
from diffjax.models.observation import Observer
from diffjax.models.priors.code_prior import (
    BITS,
    TOKEN_SETTINGS,
    CodePrior,
    guide,
    read_parts,
    token_sampler,
    with_null,
)
from diffjax.models.priors.prefix import Prefix, Values
from diffjax.models.priors.token_models import MODELS, SampleToken, TokenModel
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.typing import Aux, Batch, Images, ImageSpec, PRNGKey, PRNGKeys, StepContext, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressivePrior(CodePrior):
    """An autoregressive model of the codes of a frozen codec.

    Attributes:
      token_model: the trained network, with its prefix.
      text_weight: weight of the caption in the loss; the codes have the rest.
    """

    token_model: TokenModel
    text_weight: float

    @property
    def prefix(self) -> Prefix:
        return self.token_model.prefix

    def init(self, key: PRNGKey) -> Variables:
        return {"params": {"model": self.token_model.init(key)}}

    def loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the mean negative log-likelihood per token, in nats: DALL-E, section 2.2."""
        drop_keys, dropout_keys = split_each(keys)
        values = self._encode_training(variables, batch, keys, drop_keys)
        nats = self._nll(variables, batch, values, dropout_keys)
        loss = nats["codes"].mean(axis=-1)
        metrics = _bits_per_token(nats) | {"bits_per_dim": self._bits_per_dim(nats["codes"])}
        if "text" in nats:
            loss = (1 - self.text_weight) * loss + self.text_weight * nats["text"].mean(axis=-1)
        return loss, Aux(metrics)

    def likelihood(
        self, variables: Variables, keys: PRNGKeys, batch: Batch, samples: int
    ) -> dict[str, Float[Array, " B"]]:
        nats = self._nll(variables, batch, self._encode_prefix(variables, batch, keys))
        return {"codes": self._bits_per_dim(nats["codes"])} | _bits_per_token(nats)

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        scalars, others = self._token_scalars("prior", TOKEN_SETTINGS, sampler_config, **overrides)
        return SamplingSettings(scalars, choices=tuple(others.items()))

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Images:
        values = self._encode_sampled(variables, conditions, keys)
        known = self._known_tokens(variables, conditions, len(keys), settings["rows"])
        sample_token = token_sampler(settings)
        if settings["guided"]:
            values, known = with_null(values, self.prefix.null(values)), jnp.concatenate([known, known])
            sample_token = _guided(sample_token, settings["guidance"])
        codes = self.token_model.sample(variables["params"]["model"], keys, values, sample_token, known)
        return self._decode(variables, tuple(level[: len(keys)] for level in codes))

    def _nll(
        self, variables: Variables, batch: Batch, values: Values, dropout_keys: PRNGKeys | None = None
    ) -> Mapping[str, Float[Array, "B _"]]:
        codes = self._codes(variables, batch)
        return self.token_model.nll(variables["params"]["model"], codes, values, dropout_keys)


def build(
    config: ConfigDict,
    spec: ImageSpec,
    codec: tuple[Autoencoder, Variables] | None = None,
    clip: tuple[ContrastiveModel, Variables] | None = None,
) -> AutoregressivePrior:
    """Builds the prior of `config` over the codes of `codec`.

    Args:
      clip: the CLIP of `model.condition` "clip" and "clip_caption".

    Raises:
      UserError: a missing part, an unknown choice, or one that does not fit.
    """
    prefix, fields = read_parts(config, spec, codec, clip)
    if config.model.architecture not in MODELS:
        raise unknown("model.architecture", config.model.architecture, MODELS)
    text_weight = config.get("loss", {}).get("text_weight", 0.0)
    validate_number("loss.text_weight", text_weight, low=0, high=1, exclusive="high")
    token_model = MODELS[config.model.architecture].from_config(config, fields["codec_spec"], prefix)
    model = AutoregressivePrior(token_model=token_model, text_weight=text_weight, **fields)
    model.make_settings(config.sampler)  # reports invalid settings before training
    check_buildable(model)
    return model


def _guided(sample_token: SampleToken, scale: Array) -> SampleToken:
    """Returns a function that samples tokens from guided logits; both halves of its tokens are equal."""

    def sample_both(keys: PRNGKeys, logits: Float[Array, "2*B K"]) -> Int[Array, " 2*B"]:
        tokens = sample_token(keys, guide(logits, scale))
        return jnp.concatenate([tokens, tokens])

    return sample_both


def _bits_per_token(nats: Mapping[str, Float[Array, "B _"]]) -> dict[str, Float[Array, " B"]]:
    bits = {"bits_per_code": BITS * nats["codes"].mean(axis=-1)}
    return bits | ({"bits_per_token": BITS * nats["text"].mean(axis=-1)} if "text" in nats else {})
