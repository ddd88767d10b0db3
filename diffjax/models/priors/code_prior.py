"""Base class of priors over the codes of a trained codec: codec, condition, guidance, known rows."""

import abc
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from diffjax.diffusion.random import fold_in_each
from diffjax.errors import UserError, unknown, validate_integer
from diffjax.latents import token_sampling
from diffjax.models.base import Autoencoder, ContrastiveModel, GenerativeModel, LikelihoodModel, abstract_value
from diffjax.models.condition_inputs import ConditionInputs
from diffjax.models.images import to_unit_range
from diffjax.models.networks import text_of, validate_probability
from diffjax.models.priors.prefix import (
    CaptionPrefix,
    ClassPrefix,
    ClipCaptionPrefix,
    ClipEmbeddingPrefix,
    NullPrefix,
    Prefix,
    Values,
)
from diffjax.models.priors.token_models import SampleToken
from diffjax.models.sampling_settings import SamplingSettings, make_scalars
from diffjax.typing import Batch, Codec, Codes, Images, ImageSpec, LossFn, PRNGKeys, Variables

# top_k 0 and top_p 1: all tokens; guidance 1: off; keep_fraction: fraction of the rows of a given image that are kept,
# from the top.
TOKEN_SETTINGS = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0, "keep_fraction": 0.0}
BITS = 1 / math.log(2)  # per nat
_CONDITIONS = ("none", "label", "text", "clip", "clip_caption")
_CONDITIONS_FOLD = 2**31 - 1  # folded into sample keys for the conditions; no token position has this number


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodePrior(GenerativeModel, LikelihoodModel):
    """A model of the codes of a frozen codec.

    Attributes:
      autoencoder: the codec's model, with variables "codec" among the frozen ones.
      codec_spec: the codec bound to abstract variables: shapes and numbers only.
      contrastive: the CLIP of the prefix, with variables "clip" among the frozen ones.
      condition_dropout: fraction of training examples with the null condition.
      num_values: number of values of an image or embedding, for bits per dimension.
    """

    autoencoder: Autoencoder
    codec_spec: Codec
    contrastive: ContrastiveModel | None
    condition_dropout: float
    num_values: int

    @property
    @abc.abstractmethod
    def prefix(self) -> Prefix:
        """The condition."""

    @property
    def losses(self) -> Mapping[str, LossFn]:
        return {"model": self.loss}

    @abc.abstractmethod
    def loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: Any) -> Any:
        """Returns the loss of the network, as `LossFn`."""

    def _token_scalars(
        self, system: str, defaults: Mapping[str, float], sampler_config: Mapping[str, Any], **overrides: Any
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Returns the scalars and the choices of settings that include `TOKEN_SETTINGS`.

        Raises:
          UserError: an unknown setting, or one that does not fit.
        """
        scalars = make_scalars(system, defaults, sampler_config, **overrides)
        keep_fraction, guidance = float(scalars.pop("keep_fraction")), scalars["guidance"]
        _check_token_sampling(scalars)
        guided = bool(guidance != 1.0)
        if guided and not self.condition_dropout:
            raise UserError(
                f"sampler.guidance={guidance:g}: requires a prior trained with model.condition_dropout > 0; leave it "
                "at 1, or train with it"
            )
        return scalars, {"guided": guided, "rows": self._rows_to_keep(keep_fraction)}

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

    def _known_tokens(
        self, variables: Variables, conditions: Mapping[str, Array], count: int, rows: int
    ) -> Int[Array, "B K"]:
        """Returns the tokens of the first rows of the given images; none without rows."""
        if not rows:
            return jnp.zeros((count, 0), jnp.int32)
        codes = _to_codes(self._codec(variables), conditions["image"])
        return codes[0][:, :rows].reshape(count, -1)

    def _codec(self, variables: Variables) -> Codec:
        return self.autoencoder.codec(variables["frozen"]["codec"])

    def _codes(self, variables: Variables, batch: Batch) -> Codes:
        """Returns the codes of a batch's images."""
        return _to_codes(self._codec(variables), to_unit_range(batch["image"]))

    def _decode(self, variables: Variables, codes: Codes) -> Images:
        codec = self._codec(variables)
        assert codec.from_codes is not None
        return codec.from_codes(codes)

    def _encode_prefix(self, variables: Variables, conditions: Mapping[str, Array], keys: PRNGKeys) -> Values:
        clip = self.contrastive.clip(variables["frozen"]["clip"]) if self.contrastive else None
        return self.prefix.encode(ConditionInputs(conditions, keys, clip, self._codec(variables)))

    def _encode_sampled(self, variables: Variables, conditions: Mapping[str, Array], keys: PRNGKeys) -> Values:
        """Returns the prefix' values of samples with these keys, which are not consumed."""
        return self._encode_prefix(variables, conditions, fold_in_each(keys, _CONDITIONS_FOLD))

    def _encode_training(self, variables: Variables, batch: Batch, keys: PRNGKeys, drop_keys: PRNGKeys) -> Values:
        """Returns the prefix' values of a training batch, some of them null. Consumes `drop_keys`."""
        dropped = jax.vmap(lambda key: jax.random.bernoulli(key, self.condition_dropout))(drop_keys)
        return self.prefix.drop(self._encode_prefix(variables, batch, keys), dropped)

    def _bits_per_dim(self, nats: Float[Array, "B N"]) -> Float[Array, " B"]:
        """Returns bits per dimension of the data from the nats of each code."""
        return BITS * nats.sum(axis=-1) / self.num_values


def token_sampler(settings: SamplingSettings) -> SampleToken:
    """Returns a function that samples tokens with the temperature, top_k and top_p of `settings`."""
    filters = {name: settings[name] for name in ("temperature", "top_k", "top_p")}
    return jax.vmap(functools.partial(token_sampling.sample, **filters))


def with_null(values: Values, null: Values) -> Values:
    """Returns values [2 B, ...]: those of the conditional and then of the unconditional branch of guidance."""
    return jax.tree.map(lambda *both: jnp.concatenate(both), values, null)


def guide(logits: Float[Array, "2*B ..."], scale: Array) -> Float[Array, "B ..."]:
    """Applies classifier-free guidance to logits, of which the second half are unconditional."""
    conditional, unconditional = jnp.split(logits, 2)
    return unconditional + scale * (conditional - unconditional)


def read_parts(
    config: ConfigDict,
    spec: ImageSpec,
    codec: tuple[Autoencoder, Variables] | None,
    clip: tuple[ContrastiveModel, Variables] | None,
) -> tuple[Prefix, dict[str, Any]]:
    """Returns the prefix of a prior over the codes of `codec`, and the fields of `CodePrior`.

    Args:
      clip: the CLIP of `model.condition` "clip" and "clip_caption".

    Raises:
      UserError: a missing part, an unknown choice, or one that does not fit.
    """
    if codec is None:
        raise UserError(f"codec='': system={config.system} requires a trained autoencoder; set --config.codec=WORKDIR")
    autoencoder, frozen = codec[0], {"codec": codec[1]}
    codec_spec, is_embedding = abstract_value(autoencoder.codec, codec[1]), autoencoder.outputs_embeddings
    if not codec_spec.grids:
        raise UserError(f"codec={config.codec}: has a Gaussian latent and no codes; a prior requires vqvae or dvae")
    prefix = _make_prefix(config, spec, clip, is_embedding=is_embedding)
    contrastive = None
    if clip is not None and isinstance(prefix, ClipEmbeddingPrefix | ClipCaptionPrefix):
        contrastive, frozen["clip"] = clip[0], clip[1]
    validate_integer("rerank.best_of", config.get("rerank", {}).get("best_of", 1))
    return prefix, {
        "autoencoder": autoencoder,
        "codec_spec": codec_spec,
        "contrastive": contrastive,
        "condition_dropout": validate_probability("model.condition_dropout", config.model.condition_dropout),
        "num_values": math.prod(codec_spec.shape) if is_embedding else spec.size**2 * spec.channels,
        "classes": prefix.classes if isinstance(prefix, ClassPrefix) else 0,
        "text": prefix.text if isinstance(prefix, CaptionPrefix) else contrastive.text if contrastive else None,
        "frozen": frozen,
        "output_size": autoencoder.output_size if is_embedding else spec.size,
        "outputs_embeddings": is_embedding,
    }


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


def _to_codes(codec: Codec, images: Images) -> Codes:
    assert codec.to_codes is not None
    return codec.to_codes(images)
