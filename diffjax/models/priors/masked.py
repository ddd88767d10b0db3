"""Masked priors over the codes of a trained codec: discrete diffusion, in the place of an autoregressive model.

A transformer with attention to all positions predicts masked tokens from a condition and the other tokens. Sampling
starts with masks alone, and predicts many tokens in each step.

References:
  Chang et al. 2022, "MaskGIT: Masked generative image transformer".
  Shi et al. 2024, "Simplified and generalized masked diffusion for discrete data" (MD4).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from jax import numpy as jnp
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from diffjax.diffusion import masked, masking_schedules, unmasking
from diffjax.diffusion.random import split_each
from diffjax.errors import UserError, unknown, validate_integer, validate_number
from diffjax.models.base import Autoencoder, ContrastiveModel
from diffjax.models.networks import apply, check_buildable, dtype_of, make
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
from diffjax.models.priors.token_sequence import TokenSequence
from diffjax.models.sampling_settings import SamplingSettings
from diffjax.nn.layers import Dense
from diffjax.nn.transformer import Transformer
from diffjax.registry import choices, lookup, option_defaults
from diffjax.typing import Aux, Batch, Images, ImageSpec, PRNGKey, PRNGKeys, StepContext, Variables

_SETTINGS = TOKEN_SETTINGS | {"steps": 8}
_NAMES = {"name": "confidence", "schedule": "cosine"}  # settings that name a choice
_LOSSES = ("elbo", "cross_entropy")
_MAX_STEPS = 100_000
_TIMES_FOLD = 2**31 - 1  # folded into the key of a training step; no example has this index


@dataclasses.dataclass(frozen=True)
class MaskedTransformer:
    """A transformer over the prefix and then the tokens of all scales, each of which attends to all.

    Attributes:
      network: the transformer.
      prefix: the condition.
      sequence: the tokens, of which the last value is the mask token.
    """

    network: Transformer
    prefix: Prefix
    sequence: TokenSequence

    @property
    def mask_token(self) -> int:
        return self.sequence.vocabulary - 1

    def init(self, key: PRNGKey) -> dict[str, Any]:
        """Returns fresh parameters, under which all tokens are equally likely. Consumes `key`."""
        keys, width = jax.random.split(key, 5), self.network.width
        x = jnp.zeros((1, self.prefix.length + self.sequence.length, width))
        return {
            "network": self.network.init(keys[0], x, "all", positions=self._positions)["params"],
            **self.sequence.init(keys[1], keys[2]),
            "head": self._head.init(keys[3], x)["params"],
            "condition": self.prefix.init(keys[4], width, 0.02),
        }

    @property
    def _positions(self) -> Float[Array, "T 2"]:
        return self.sequence.grid_positions(self.prefix.length)

    @property
    def _head(self) -> Dense:
        return Dense(self.mask_token, "zero")

    def logits(
        self, params: Any, tokens: Int[Array, "B N"], values: Values, dropout_keys: PRNGKeys | None = None
    ) -> Float[Array, "B N K"]:
        """Returns the logits of every token, from those that are not masked and the values of the prefix."""
        prefix = self.prefix.embed(params["condition"], values)
        x = jnp.concatenate([prefix, self.sequence.embed(params, tokens)], axis=1)
        options = {"mask": "all", "dropout_keys": dropout_keys, "positions": self._positions}
        h = apply(self.network, params["network"], x, **options)
        return apply(self._head, params["head"], h[:, self.prefix.length :])


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedPrior(CodePrior):
    """A masked diffusion model of the codes of a frozen codec.

    Attributes:
      token_model: the trained network, with its prefix.
      schedule: masking schedule of training.
      weighted: whether the loss is the bound of the likelihood, rather than the cross-entropy without weights.
    """

    token_model: MaskedTransformer
    schedule: masked.MaskingSchedule
    weighted: bool

    @property
    def prefix(self) -> Prefix:
        return self.token_model.prefix

    def init(self, key: PRNGKey) -> Variables:
        return {"params": {"model": self.token_model.init(key)}}

    def loss(self, variables: Variables, batch: Batch, keys: PRNGKeys, context: StepContext):
        """Returns the cross-entropy of the masked tokens, in nats per token of the sequence.

        Each example has one random time. With weights it is the bound of MD4, without that of MaskGIT, eq. 1. The
        metrics estimate the bound in both cases.
        """
        drop_keys, dropout_keys, mask_keys = split_each(keys, 3)
        values = self._encode_training(variables, batch, keys, drop_keys)
        tokens = self.token_model.sequence.flatten(self._codes(variables, batch))
        offset = jax.random.uniform(jax.random.fold_in(context.key, _TIMES_FOLD))
        t = masked.spread_times(offset, batch["index"], context.batch_size)
        masked_tokens = masked.mask_each(mask_keys, tokens, self.schedule(t), self.token_model.mask_token)
        is_masked = masked_tokens == self.token_model.mask_token
        nats = jnp.where(is_masked, self._nats(variables, tokens, masked_tokens, values, dropout_keys), 0.0)
        bound = masked.elbo_weight(self.schedule, t)[:, None] * nats
        metrics = {"bits_per_code": BITS * bound.mean(axis=-1), "bits_per_dim": self._bits_per_dim(bound)}
        return (bound if self.weighted else nats).mean(axis=-1), Aux(metrics)

    def likelihood(
        self, variables: Variables, keys: PRNGKeys, batch: Batch, samples: int
    ) -> dict[str, Float[Array, " B"]]:
        """Returns estimates of the bound from `samples` numbers of masked tokens, of the images and per code."""
        tokens = self.token_model.sequence.flatten(self._codes(variables, batch))
        values = self._encode_prefix(variables, batch, keys)
        nats_of_masked = functools.partial(self._nats, variables, tokens, values=values)
        nats = masked.elbo_of_count(keys, nats_of_masked, tokens, self.token_model.mask_token, samples)
        return {"codes_elbo": BITS * nats / self.num_values, "bits_per_code_elbo": BITS * nats / tokens.shape[1]}

    def make_settings(
        self, sampler_config: Mapping[str, Any], capacity: int | None = None, **overrides: Any
    ) -> SamplingSettings:
        """Returns sampling settings, where `overrides` may include options of the sampler.

        The array "masked_fractions" [capacity + 1] has the expected fraction of masked tokens before each step, and
        after the last.
        """
        section = dict(sampler_config)
        names = {name: overrides.pop(name, section.pop(name, default)) for name, default in _NAMES.items()}
        section = {name: value for name, value in section.items() if name not in _NAMES}
        sampler = lookup("sampler", unmasking, names["name"])
        options = option_defaults(sampler.function) | sampler.options
        options |= {name: overrides.pop(name) for name in [*overrides] if name in options}
        for name, value in options.items():
            validate_number(f"sampler.name={sampler.name}, {name}", value, low=0)
        schedule = _read_schedule("sampler.schedule", names["schedule"])
        scalars, others = self._token_scalars("masked_prior", _SETTINGS, section, **overrides)
        steps = validate_integer("sampler.steps", int(scalars["steps"]), low=1, high=_MAX_STEPS)
        return SamplingSettings(
            scalars,
            choices=(("sampler", sampler.name), *others.items()),
            sampler_options={name: jnp.asarray(value, jnp.float32) for name, value in options.items()},
            arrays={"masked_fractions": masked.masked_fractions(schedule, steps, capacity)},
        )

    def sample(
        self,
        variables: Variables,
        keys: PRNGKeys,
        conditions: Mapping[str, Array],
        settings: SamplingSettings,
        observer: Observer | None = None,
    ) -> Images:
        model, params = self.token_model, variables["params"]["model"]
        values = self._encode_sampled(variables, conditions, keys)
        if settings["guided"]:
            values = with_null(values, self.prefix.null(values))

        def predict(tokens: Int[Array, "B N"]) -> Float[Array, "B N K"]:
            if not settings["guided"]:
                return model.logits(params, tokens, values)
            logits = model.logits(params, jnp.concatenate([tokens, tokens]), values)
            return guide(logits, settings["guidance"])

        known = self._known_tokens(variables, conditions, len(keys), settings["rows"])
        masks = jnp.full((len(keys), model.sequence.length - known.shape[1]), model.mask_token, known.dtype)
        unmask = functools.partial(choices(unmasking)[settings["sampler"]], **settings.sampler_options)
        tokens = masked.sample(
            keys,
            predict,
            unmask,
            jnp.concatenate([known, masks], axis=1),
            settings.arrays["masked_fractions"],
            settings["steps"],
            mask_token=model.mask_token,
            sample_tokens=token_sampler(settings),
        )
        return self._decode(variables, model.sequence.unflatten(tokens))

    def _nats(
        self,
        variables: Variables,
        tokens: Int[Array, "B N"],
        masked_tokens: Int[Array, "B N"],
        values: Values,
        dropout_keys: PRNGKeys | None = None,
    ) -> Float[Array, "B N"]:
        """Returns the cross-entropy of every token in nats, predicted from those that are not masked."""
        logits = self.token_model.logits(variables["params"]["model"], masked_tokens, values, dropout_keys)
        return optax.softmax_cross_entropy_with_integer_labels(logits, tokens)


def build(
    config: ConfigDict,
    spec: ImageSpec,
    codec: tuple[Autoencoder, Variables] | None = None,
    clip: tuple[ContrastiveModel, Variables] | None = None,
) -> MaskedPrior:
    """Builds the masked prior of `config` over the codes of `codec`.

    Args:
      clip: the CLIP of `model.condition` "clip" and "clip_caption".

    Raises:
      UserError: a missing part, an unknown choice, or one that does not fit.
    """
    prefix, fields = read_parts(config, spec, codec, clip)
    conditions = ("condition", "condition_dropout")
    network = make(Transformer, config.model, "model", but=conditions, dtype=dtype_of(config))
    codec_spec = fields["codec_spec"]
    sequence = TokenSequence(codec_spec.grids, codec_spec.vocabulary + 1, network.width)
    if config.masking.loss not in _LOSSES:
        raise unknown("masking.loss", config.masking.loss, _LOSSES)
    model = MaskedPrior(
        token_model=MaskedTransformer(network, prefix, sequence),
        schedule=_read_schedule("masking.schedule", config.masking.schedule),
        weighted=config.masking.loss == "elbo",
        **fields,
    )
    model.make_settings(config.sampler)  # reports invalid settings before training
    check_buildable(model)
    return model


def _read_schedule(field: str, text: str) -> Callable[[Array], Array]:
    """Returns the masking schedule that a field names. Raises UserError for an unknown one, or an invalid option."""
    schedule = lookup(field, masking_schedules, text).bind()
    try:
        jax.eval_shape(schedule, jnp.zeros(()))
    except ValueError as error:
        raise UserError(f"{field}={text}: {error}") from error
    return schedule
