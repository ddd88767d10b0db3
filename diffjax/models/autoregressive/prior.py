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
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from diffjax.diffusion.random import fold_in_each, split_each
from diffjax.errors import UserError, unknown, validate_integer, validate_number
from diffjax.latents import token_sampling
from diffjax.models.autoregressive.prefix import (
    CaptionPrefix,
    ClassPrefix,
    ClipCaptionPrefix,
    ClipEmbeddingPrefix,
    NullPrefix,
    Prefix,
    Values,
)
from diffjax.models.autoregressive.token_models import MODELS, SampleToken, TokenModel
from diffjax.models.base import Autoencoder, ContrastiveModel, GenerativeModel, LikelihoodModel, abstract_value
from diffjax.models.condition_inputs import ConditionInputs
from diffjax.models.images import to_unit_range
from diffjax.models.networks import check_buildable, text_of, validate_probability
from diffjax.models.observation import Observer
from diffjax.models.sampling_settings import SamplingSettings, make_scalars
from diffjax.typing import (
    Aux,
    Batch,
    Codec,
    Codes,
    Images,
    ImageSpec,
    LossFn,
    PRNGKey,
    PRNGKeys,
    StepContext,
    Variables,
)

# top_k 0 and top_p 1: all tokens; guidance 1: off; keep_fraction: fraction of the rows of a given image that are kept,
# from the top.
_SETTINGS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0, "keep_fraction": 0.0}
_CONDITIONS = ("none", "label", "text", "clip", "clip_caption")
_BITS = 1 / math.log(2)  # per nat
_CONDITIONS_FOLD = 2**31 - 1  # folded into sample keys for the conditions; no token position has this number


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoregressivePrior(GenerativeModel, LikelihoodModel):
    """An autoregressive model of the codes of a frozen codec.

    Attributes:
      token_model: the trained network, with its prefix.
      autoencoder: the codec's model, with variables "codec" among the frozen ones.
      codec_spec: the codec bound to abstract variables: shapes and numbers only.
      contrastive: the CLIP of the prefix, with variables "clip" among the frozen ones.
      condition_dropout: fraction of training examples with the null condition.
      text_weight: weight of the caption in the loss; the codes have the rest.
    """

    token_model: TokenModel
    autoencoder: Autoencoder
    codec_spec: Codec
    contrastive: ContrastiveModel | None
    condition_dropout: float
    text_weight: float
    num_values: int  # of an image or embedding, for bits per dimension

    @property
    def prefix(self) -> Prefix:
        """The condition of the token model."""
        return self.token_model.prefix

    def init(self, key: PRNGKey) -> Variables:
        return {"params": {"model": self.token_model.init(key)}}

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {"model": self.loss}

    def loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the mean negative log-likelihood per token, in nats: DALL-E, section 2.2."""
        drop_keys, dropout_keys = split_each(keys)
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, self.condition_dropout))(drop_keys)
        values = self.prefix.drop(self._encode_prefix(variables, batch, keys), dropped)
        nats = self._nll(variables, batch, values, dropout_keys)
        loss = nats["codes"].mean(axis=-1)
        metrics = _bits_per_token(nats) | {"bits_per_dim": self._bits_per_dim(nats)}
        if "text" in nats:
            loss = (1 - self.text_weight) * loss + self.text_weight * nats["text"].mean(axis=-1)
        return loss, Aux(metrics)

    def likelihood(
        self, variables: Variables, keys: PRNGKeys, batch: Batch, samples: int
    ) -> dict[str, Float[Array, " B"]]:
        nats = self._nll(variables, batch, self._encode_prefix(variables, batch, keys))
        return {"codes": self._bits_per_dim(nats)} | _bits_per_token(nats)

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        scalars = make_scalars("prior", _SETTINGS, sampler_config, **overrides)
        keep_fraction, guidance = float(scalars.pop("keep_fraction")), scalars["guidance"]
        _check_token_sampling(scalars)
        guided = bool(guidance != 1.0)
        if guided and not self.condition_dropout:
            raise UserError(
                f"sampler.guidance={guidance:g}: requires a prior trained with model.condition_dropout > 0; leave it "
                "at 1, or train with it"
            )
        rows = self._rows_to_keep(keep_fraction)
        return SamplingSettings(scalars, choices=(("guided", guided), ("rows", rows)))

    def _rows_to_keep(self, keep_fraction: float) -> int:
        height = self.codec_spec.grids[0][0]
        rows = round(keep_fraction * height)
        has_one_scale = len(self.codec_spec.grids) == 1
        if keep_fraction and (self.outputs_embeddings or not has_one_scale or not 0 < rows < height):
            raise UserError(
                f"keep_fraction={keep_fraction:g}: must keep 1 to {height - 1} of {height} rows of codes, and is only "
                "supported for images with one scale of codes; set it to 0"
            )
        return rows

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Images:
        values = self._encode_prefix(variables, conditions, fold_in_each(keys, _CONDITIONS_FOLD))
        known = self._known_tokens(variables, conditions, len(keys), settings["rows"])
        filters = {name: settings[name] for name in ("temperature", "top_k", "top_p")}
        sample_token = jax.vmap(functools.partial(token_sampling.sample, **filters))
        if settings["guided"]:
            values = jax.tree.map(lambda *both: jnp.concatenate(both), values, self.prefix.null(values))
            known = jnp.concatenate([known, known])
            sample_token = _guided(sample_token, settings["guidance"])
        codes = self.token_model.sample(variables["params"]["model"], keys, values, sample_token, known)
        return _from_codes(self._codec(variables), tuple(level[: len(keys)] for level in codes))

    def _known_tokens(
        self, variables: Variables, conditions: Mapping[str, Array], count: int, rows: int
    ) -> Int[Array, "B K"]:
        if not rows:
            return jnp.zeros((count, 0), jnp.int32)
        codes = _to_codes(self._codec(variables), conditions["image"])
        return codes[0][:, :rows].reshape(count, -1)

    def _codec(self, variables: Variables) -> Codec:
        return self.autoencoder.codec(variables["frozen"]["codec"])

    def _encode_prefix(self, variables: Variables, conditions: Mapping[str, Array], keys: PRNGKeys) -> Values:
        clip = self.contrastive.clip(variables["frozen"]["clip"]) if self.contrastive else None
        return self.prefix.encode(ConditionInputs(conditions, keys, clip, self._codec(variables)))

    def _nll(
        self, variables: Variables, batch: Batch, values: Values, dropout_keys: PRNGKeys | None = None
    ) -> Mapping[str, Float[Array, "B _"]]:
        codes = _to_codes(self._codec(variables), to_unit_range(batch["image"]))
        return self.token_model.nll(variables["params"]["model"], codes, values, dropout_keys)

    def _bits_per_dim(self, nats: Mapping[str, Float[Array, "B _"]]) -> Float[Array, " B"]:
        return _BITS * nats["codes"].sum(axis=-1) / self.num_values


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
    if codec is None:
        raise UserError("codec='': system=prior requires a trained autoencoder; set --config.codec=WORKDIR")
    autoencoder, frozen = codec[0], {"codec": codec[1]}
    codec_spec, is_embedding = abstract_value(autoencoder.codec, codec[1]), autoencoder.outputs_embeddings
    if not codec_spec.grids:
        raise UserError(f"codec={config.codec}: has a Gaussian latent and no codes; a prior requires vqvae or dvae")
    prefix = _make_prefix(config, spec, clip, is_embedding=is_embedding)
    contrastive = None
    if clip is not None and isinstance(prefix, ClipEmbeddingPrefix | ClipCaptionPrefix):
        contrastive, frozen["clip"] = clip[0], clip[1]
    if config.model.architecture not in MODELS:
        raise unknown("model.architecture", config.model.architecture, MODELS)
    text_weight = config.get("loss", {}).get("text_weight", 0.0)
    validate_number("loss.text_weight", text_weight, low=0, high=1, exclusive="high")
    validate_integer("rerank.best_of", config.get("rerank", {}).get("best_of", 1))
    model = AutoregressivePrior(
        token_model=MODELS[config.model.architecture].from_config(config, codec_spec, prefix),
        autoencoder=autoencoder,
        codec_spec=codec_spec,
        contrastive=contrastive,
        condition_dropout=validate_probability("model.condition_dropout", config.model.condition_dropout),
        text_weight=text_weight,
        num_values=math.prod(codec_spec.shape) if is_embedding else spec.size**2 * spec.channels,
        classes=prefix.classes if isinstance(prefix, ClassPrefix) else 0,
        text=prefix.text if isinstance(prefix, CaptionPrefix) else contrastive.text if contrastive else None,
        frozen=frozen,
        output_size=autoencoder.output_size if is_embedding else spec.size,
        outputs_embeddings=is_embedding,
    )
    model.make_settings(config.sampler)  # reports invalid settings before training
    check_buildable(model)
    return model


def _make_prefix(
    config: ConfigDict,
    spec: ImageSpec,
    clip: tuple[ContrastiveModel, Variables] | None,
    *,
    is_embedding: bool,
) -> Prefix:
    """Builds the prefix that `model.condition` names; `is_embedding`: the codes are those of an embedding."""
    name = config.model.condition
    if name not in _CONDITIONS:
        raise unknown("model.condition", name, _CONDITIONS)
    if name == "none" and config.model.condition_dropout:
        raise UserError(
            f"model.condition_dropout={config.model.condition_dropout}: requires a condition, and model.condition=none"
            "; set it to 0"
        )
    if name == "label":
        if not spec.classes:
            raise UserError("model.condition=label: the data set does not have labels; set model.condition=none")
        return ClassPrefix(spec.classes)
    if name == "text":
        return CaptionPrefix(text_of(config))
    if name in ("clip", "clip_caption"):
        if clip is None:
            raise UserError(f"model.condition={name}: requires a trained CLIP; set --config.clip=WORKDIR")
        clip_spec = abstract_value(clip[0].clip, clip[1])
        if name == "clip":
            return ClipEmbeddingPrefix(clip_spec.dimensions)
        if not is_embedding:
            raise UserError(
                "model.condition=clip_caption: is only supported for priors over CLIP embeddings, whose codec has "
                "system=pca"
            )
        if clip_spec.text is None:
            raise UserError(
                "model.condition=clip_caption: requires a CLIP with a text encoder; set --config.clip=WORKDIR"
            )
        return ClipCaptionPrefix(clip_spec.text, clip_spec.dimensions, clip_spec.width)
    return NullPrefix()


def _check_token_sampling(settings: Mapping[str, Array]) -> None:
    if not (settings["temperature"] > 0 and settings["top_k"] >= 0 and 0 < settings["top_p"] <= 1):
        raise UserError(
            f"temperature={settings['temperature']:g}, top_k={settings['top_k']}, top_p={settings['top_p']:g}: "
            "temperature must be above 0, top_k 0 or above (1: greedy), and top_p above 0 and at most 1"
        )


def _guided(sample_token: SampleToken, scale: Array) -> SampleToken:
    """Applies classifier-free guidance to logits, of which the second half are unconditional."""

    def sample_both(keys: PRNGKeys, logits: Float[Array, "2*B K"]) -> Int[Array, " 2*B"]:
        conditional, unconditional = jnp.split(logits, 2)
        tokens = sample_token(keys, unconditional + scale * (conditional - unconditional))
        return jnp.concatenate([tokens, tokens])

    return sample_both


def _bits_per_token(nats: Mapping[str, Float[Array, "B _"]]) -> dict[str, Float[Array, " B"]]:
    bits = {"bits_per_code": _BITS * nats["codes"].mean(axis=-1)}
    return bits | ({"bits_per_token": _BITS * nats["text"].mean(axis=-1)} if "text" in nats else {})


def _to_codes(codec: Codec, images: Images) -> Codes:
    assert codec.to_codes is not None
    return codec.to_codes(images)


def _from_codes(codec: Codec, codes: Codes) -> Images:
    assert codec.from_codes is not None
    return codec.from_codes(codes)
